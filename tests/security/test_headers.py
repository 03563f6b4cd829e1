"""The headers that protect a visitor stand on every answer, once."""

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from quart import Quart, ResponseReturnValue, websocket
from quart.testing import WebsocketResponseError
from quart.wrappers import Response

import quart_tenants.app
from quart_tenants import QuartTenants
from quart_tenants.admin import Database, Settings, parse_slug, rename_tenant
from quart_tenants.app import create_app
from tests.support.databases import REFERENCE_FILES
from tests.support.processes import SECRET_KEY

pytestmark = pytest.mark.slow

EVERYWHERE = {"x-content-type-options": "nosniff", "referrer-policy": "same-origin"}
STYLE = (Path(quart_tenants.app.__file__).parent / "static" / "style.css").read_bytes()
DIGEST = base64.b64encode(hashlib.sha256(STYLE).digest()).decode()
REFERENCE_APP = EVERYWHERE | {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{DIGEST}'; img-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
HSTS = "strict-transport-security"


@asynccontextmanager
async def reference_app(database_url: str, **settings: Any) -> AsyncIterator[Quart]:
    """Yield the reference app, serving."""
    app = create_app(
        {
            "TENANTS_DATABASE_URL": database_url,
            "SECRET_KEY": SECRET_KEY,
            # Nothing here depends on how passwords are hashed.
            "TENANTS_PASSWORD_SCHEMES": "pbkdf2_sha256",
            **settings,
        }
    )
    async with app.test_app():
        yield app


def assert_protected(answer: Response, expected: dict[str, str], *, https: bool = False) -> None:
    """Assert that *answer* has each header once, and HSTS under https only."""
    for name, value in expected.items():
        assert answer.headers.getlist(name) == [value], (answer.status, name)
    assert answer.headers.getlist(HSTS) == (["max-age=31536000"] if https else [])
    assert ("x-request-id" in answer.headers) is (answer.status_code >= 400)


async def test_every_answer_is_protected(database: Database, database_url: str) -> None:
    """Pages, files, errors, redirects and answers at foreign hosts all have the headers, with http and https."""
    await rename_tenant(database, parse_slug("globex"), parse_slug("zenith"), settings=Settings())
    async with database.connection() as connection:
        await connection.execute("ALTER TABLE acme.app_user RENAME COLUMN password TO gone")
    statuses = []
    async with reference_app(database_url) as app:
        client = app.test_client()
        for method, path, host, options in (
            ("GET", "/", "localhost", {}),
            ("GET", "/static/style.css", "acme.localhost", {}),
            ("GET", "/static/none.css", "acme.localhost", {}),
            ("GET", "/healthz", "203.0.113.9", {}),
            ("GET", "/data", "acme.localhost", {}),
            ("GET", "/data", "globex.localhost", {}),
            ("GET", "/data", "nobody.localhost", {}),
            ("GET", "/", "evil.test", {}),
            ("GET", "/", "a..b", {}),
            ("DELETE", "/data", "acme.localhost", {}),
            ("OPTIONS", "/login", "acme.localhost", {}),
            ("POST", "/login", "acme.localhost", {"data": "x" * 70_000}),
            ("POST", "/login", "acme.localhost", {"json": []}),
            ("POST", "/login", "acme.localhost", {"form": {"uname": "ann", "passwd": "foo"}}),
        ):
            for scheme in ("http", "https"):
                answer = await client.open(path, method=method, headers={"Host": host}, scheme=scheme, **options)
                assert_protected(answer, REFERENCE_APP, https=scheme == "https")
            statuses.append(answer.status_code)
        async with database.connection() as connection:
            await connection.execute("DROP SCHEMA quart_tenants CASCADE")
        unready = await client.get("/readyz", headers={"Host": "localhost"})
        assert_protected(unready, REFERENCE_APP)

    assert statuses == [200, 200, 404, 200, 401, 308, 400, 404, 404, 405, 200, 413, 400, 500]
    assert unready.status_code == 503


async def test_hsts_can_be_switched_off(database_url: str) -> None:
    """With `TENANTS_HSTS_SECONDS` 0 nothing is said about https."""
    async with reference_app(database_url, TENANTS_HSTS_SECONDS=0) as app:
        answer = await app.test_client().get("/healthz", headers={"Host": "localhost"}, scheme="https")

    assert HSTS not in answer.headers


async def test_header_of_a_view_is_neither_doubled_nor_replaced(database_url: str) -> None:
    """What an adopter's view says stands; the pages of other apps get no policy that would break them."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url)
    tenants = QuartTenants(app)

    @app.get("/", host=tenants.host)
    async def home() -> ResponseReturnValue:
        return "", 418, {"Referrer-Policy": "no-referrer", "X-Request-Id": "mine"}

    @app.websocket("/talk", host=tenants.host)
    async def talk() -> None:
        await websocket.accept()

    async with app.test_app():
        answer = await app.test_client().get("/", headers={"Host": "acme.localhost"})
        with pytest.raises(WebsocketResponseError) as refused:
            async with app.test_client().websocket("/talk", headers={"Host": "nobody.localhost"}) as talk_to:
                await talk_to.receive()

    assert_protected(answer, EVERYWHERE | {"referrer-policy": "no-referrer", "x-request-id": "mine"})
    assert "content-security-policy" not in answer.headers
    assert_protected(refused.value.response, EVERYWHERE)


async def test_header_that_is_added_twice_is_sent_twice(database_url: str) -> None:
    """Browsers obey all policies of an answer together: a second one must not take the first away."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url)
    tenants = QuartTenants(app)
    tenants.answer_headers.add({"Content-Security-Policy": "default-src 'self'"})
    tenants.answer_headers.add({"Content-Security-Policy": "frame-ancestors 'none'"})

    async with app.test_app():
        answer = await app.test_client().get("/", headers={"Host": "localhost"})

    assert answer.headers.getlist("Content-Security-Policy") == ["default-src 'self'", "frame-ancestors 'none'"]


async def test_request_id_is_a_proxys_or_our_own(database_url: str) -> None:
    """A sane id that a trusted proxy has given is kept; strangers' and odd ones are replaced."""
    async with reference_app(database_url, TENANTS_TRUSTED_PROXIES="192.0.2.1") as app:

        async def get_id(given: str, client: str) -> str:
            answer = await app.test_client().get(
                "/", headers={"Host": "evil.test", "X-Request-Id": given}, scope_base={"client": (client, 1)}
            )
            return str(answer.headers["X-Request-Id"])

        assert await get_id("0123-abcd.Ef", "192.0.2.1") == "0123-abcd.Ef"
        for given, client in (
            ("0123-abcd.Ef", "192.0.2.2"),
            ("short", "192.0.2.1"),
            ("x" * 65, "192.0.2.1"),
            ('12345678" admin="1', "192.0.2.1"),
        ):
            made = await get_id(given, client)
            assert made != given
            assert len(made) == 32


async def test_answer_without_the_middleware_lacks_the_headers(database_url: str) -> None:
    """Quart alone says none of it: the middleware, and nothing else, does."""
    app = create_app({"TENANTS_DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY})
    # The class's own, without anything that was put around it.
    del app.asgi_app
    async with app.test_app():
        answer = await app.test_client().get("/", headers={"Host": "localhost"})

    assert answer.status_code == 200
    assert not set(REFERENCE_APP) & {name.lower() for name in answer.headers.keys()}  # noqa: SIM118
