"""Promise: a session opens the tenant that issued it, and no other."""

import hashlib
from collections.abc import AsyncIterator
from functools import partial

import pytest
from itsdangerous import URLSafeTimedSerializer
from quart import Quart, session
from quart.sessions import SecureCookieSessionInterface, SessionInterface, session_json_serializer

from quart_tenants import QuartTenants
from quart_tenants.admin import parse_slug
from quart_tenants.postgres.tenants.lifecycle import rename_tenant, resume_tenant, suspend_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant, undrop_tenant
from tests.support.databases import REFERENCE_FILES, drop_for_good
from tests.support.processes import SECRET_KEY
from tests.support.sessions import PlainSessions

TENANTS = ("acme", "globex", "company1", "company2")


@pytest.fixture
def interface() -> SessionInterface | None:
    """None for our own sessions; the negative controls replace them."""
    return None


@pytest.fixture
async def app(database_url: str, interface: SessionInterface | None) -> AsyncIterator[Quart]:
    """An app that keeps a user in its session."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(SECRET_KEY=SECRET_KEY, TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url)
    tenants = QuartTenants(app)
    if interface is not None:
        app.session_interface = interface  # type: ignore[assignment]

    @app.post("/enter", host=tenants.host)
    async def enter() -> str:
        session["user"] = "ada"
        return "entered"

    @app.get("/who", host=tenants.host)
    async def who() -> str:
        return str(session.get("user", "nobody"))

    @app.get("/who", host=tenants.apex_host, endpoint="apex_who")
    async def apex_who() -> str:
        return str(session.get("user", "nobody"))

    @app.post("/enter", host=tenants.apex_host, endpoint="apex_enter")
    async def apex_enter() -> str:
        session["user"] = "ada"
        return "entered"

    async with app.test_app():
        yield app


async def enter(app: Quart, host: str) -> str:
    """Return the cookie that *host* issues, as a Cookie header."""
    answer = await app.test_client(use_cookies=False).post("/enter", headers={"Host": host})
    return answer.headers["Set-Cookie"].partition(";")[0]


async def ask_who(app: Quart, host: str, cookie: str) -> tuple[int, str]:
    """Return the status and the text that *host* answers to *cookie*."""
    answer = await app.test_client(use_cookies=False).get("/who", headers={"Host": host, "Cookie": cookie})
    return answer.status_code, await answer.get_data(as_text=True)


async def test_session_is_refused_by_every_other_tenant(app: Quart) -> None:
    """Each tenant's cookie, replayed at each other tenant, is 400; at its own it opens."""
    for issuer in TENANTS:
        cookie = await enter(app, f"{issuer}.localhost")
        for reader in TENANTS:
            status, text = await ask_who(app, f"{reader}.localhost", cookie)

            if reader == issuer:
                assert (status, text) == (200, "ada")
            else:
                assert status == 400
                assert "wrong_tenant" in text


@pytest.mark.parametrize("interface", [PlainSessions()])
async def test_plain_session_is_accepted_by_every_tenant(app: Quart) -> None:
    """Negative control: Quart's own session of one tenant opens all that share the key."""
    cookie = await enter(app, "acme.localhost")

    for reader in TENANTS:
        assert await ask_who(app, f"{reader}.localhost", cookie) == (200, "ada")


async def test_session_of_the_domain_opens_no_tenant(app: Quart) -> None:
    """The public site's session belongs to no tenant, and a tenant's session not to the public site."""
    apex_cookie = await enter(app, "localhost")
    tenant_cookie = await enter(app, "acme.localhost")

    assert (await ask_who(app, "acme.localhost", apex_cookie))[0] == 400
    assert (await ask_who(app, "localhost", tenant_cookie))[0] == 400
    assert await ask_who(app, "localhost", apex_cookie) == (200, "ada")


async def test_cookie_from_before_the_tenants_is_no_session(app: Quart) -> None:
    """A cookie that a plain Quart app with the same key signed names no tenant, and opens none."""
    plain = Quart("plain")
    plain.secret_key = SECRET_KEY
    serializer = SecureCookieSessionInterface().get_signing_serializer(plain)
    assert serializer is not None
    ours = URLSafeTimedSerializer(
        SECRET_KEY,
        salt="quart-tenants-session",
        serializer=session_json_serializer,
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )

    for signer in (serializer, ours):
        status, text = await ask_who(app, "acme.localhost", f"session={signer.dumps({'user': 'ada'})!s}")
        assert (status, text) == (200, "nobody")


async def test_session_of_a_dropped_tenant_is_worthless_to_the_next_of_its_name(app: Quart) -> None:
    """A tenant of the same name is another customer: the old session is refused."""
    tenants: QuartTenants = app.extensions["quart_tenants"]
    cookie = await enter(app, "acme.localhost")
    await drop_for_good(tenants.database, parse_slug("acme"))
    await tenants.create("acme", name="Somebody else")

    assert (await ask_who(app, "acme.localhost", cookie))[0] == 400


async def test_session_outlives_suspension_rename_and_a_way_through_the_trash(app: Quart) -> None:
    """While its tenant is not served the session opens nothing; when it is again, it is as valid as before."""
    tenants: QuartTenants = app.extensions["quart_tenants"]
    acme, newco = parse_slug("acme"), parse_slug("newco")
    cookie = await enter(app, "acme.localhost")
    undrop = partial(undrop_tenant, settings=tenants.settings)
    for stop, go_on in ((suspend_tenant, resume_tenant), (drop_tenant, undrop)):
        await stop(tenants.database, acme)
        await tenants.registry.refresh()
        status, text = await ask_who(app, "acme.localhost", cookie)
        assert status == 400
        assert "unknown_tenant" in text

        await go_on(tenants.database, acme)
        await tenants.registry.refresh()
        assert await ask_who(app, "acme.localhost", cookie) == (200, "ada")

    await rename_tenant(tenants.database, acme, newco, settings=tenants.settings)
    await tenants.registry.refresh()

    assert await ask_who(app, "newco.localhost", cookie) == (200, "ada")
