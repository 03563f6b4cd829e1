"""What an adopting developer types: the extension on an app of one's own."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from hypercorn.utils import is_asgi
from quart import Quart, ResponseReturnValue, session, url_for, websocket
from quart.testing import WebsocketResponseError

from quart_tenants import (
    Connection,
    NoTenantError,
    QuartTenants,
    Tenant,
    UnknownTenantError,
    current_tenant,
    login_attempt,
    tenant_connection,
)
from quart_tenants import app as reference
from quart_tenants.admin import parse_slug, rename_tenant
from quart_tenants.errors import (
    InvalidCredentialsError,
    InvalidSlugError,
    RegistryNotReadyError,
    SettingError,
    TenantExistsError,
    WrongTenantError,
)
from tests.support.databases import REFERENCE_FILES, drop_for_good, let_names_rest

pytestmark = pytest.mark.slow

COUNT = "SELECT count(*) FROM company_data"


def test_second_extension_on_an_app_is_refused() -> None:
    """Its hooks and routes would be there twice."""
    app, _ = make_app(None)
    with pytest.raises(RuntimeError, match="has tenants already"):
        QuartTenants(app)


def make_app(database_url: str | None) -> tuple[Quart, QuartTenants]:
    """Return an app with routes on every kind of host."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url)
    tenants = QuartTenants(app)

    @app.get("/count", host=tenants.host)
    async def count() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            return {"tenant": current_tenant.slug, "rows": await connection.fetchval(COUNT)}

    @app.get("/peek/<other>", host=tenants.host)
    async def peek(other: str) -> ResponseReturnValue:
        async with tenant_connection(other) as connection:
            return {"rows": await connection.fetchval(COUNT)}

    @app.get("/links", host=tenants.host)
    async def links() -> ResponseReturnValue:
        return {
            "here": url_for("count"),
            "absolute": url_for("count", _external=True),
            "other": url_for("count", tenant="globex"),
            "apex": url_for("home"),
            "probe": url_for("probe"),
        }

    @app.get("/", host=tenants.apex_host)
    async def home() -> ResponseReturnValue:
        return {"acme": url_for("count", tenant="acme")}

    @app.get("/nowhere", host=tenants.apex_host)
    async def nowhere() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            return {"rows": await connection.fetchval(COUNT)}

    @app.get("/probe", host=tenants.any_host)
    async def probe() -> ResponseReturnValue:
        return {"ok": True}

    @app.websocket("/talk", host=tenants.host)
    async def talk() -> None:
        await websocket.accept()
        async with tenant_connection() as connection:
            await websocket.send(f"{current_tenant.slug}: {await connection.fetchval(COUNT)}")

    return app, tenants


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """The app, serving."""
    app, _ = make_app(database_url)
    async with app.test_app():
        yield app


@pytest.fixture
def tenants(app: Quart) -> QuartTenants:
    """The app's extension."""
    extension = app.extensions["quart_tenants"]
    assert isinstance(extension, QuartTenants)
    return extension


async def get_json(app: Quart, host: str, path: str) -> dict[str, object]:
    """Return the JSON that *host* answers."""
    answer = await app.test_client().get(path, headers={"Host": host})
    return {"status": answer.status_code, **(await answer.get_json())}


async def enter(block: AbstractAsyncContextManager[Connection]) -> None:
    """Enter *block* and leave it."""
    async with block:
        pass


async def test_view_gets_its_tenant_and_no_extra_argument(app: Quart) -> None:
    """The host's part of the route is not passed to the view; the tenant is in `current_tenant`."""
    answer = await get_json(app, "acme.localhost:5000", "/count")

    assert answer == {"status": 200, "tenant": "acme", "rows": 0}


async def test_request_cannot_open_another_tenant(app: Quart) -> None:
    """At a tenant's host only that tenant's connection is lent. To name another one is a bug of the app: a 500."""
    refused = await get_json(app, "acme.localhost", "/peek/globex")
    allowed = await get_json(app, "acme.localhost", "/peek/acme")

    assert (refused["status"], refused["code"]) == (500, "internal_server_error")
    assert "globex" not in str(refused)
    assert allowed["rows"] == 0


async def test_request_without_a_tenant_opens_none(app: Quart) -> None:
    """On the domain itself there is no tenant, and no default."""
    answer = await app.test_client().get("/nowhere", headers={"Host": "localhost"})

    assert answer.status_code == 500
    assert (await answer.get_json())["code"] == "internal_server_error"


async def test_urls_keep_the_host_and_the_port(app: Quart) -> None:
    """`url_for` stays at the tenant, leads to another one by name, and knows the port."""
    answer = await get_json(app, "acme.localhost:5000", "/links")

    assert answer == {
        "status": 200,
        "here": "/count",
        "absolute": "http://acme.localhost:5000/count",
        "other": "http://globex.localhost:5000/count",
        "apex": "http://localhost:5000/",
        "probe": "/probe",
    }
    assert (await get_json(app, "localhost:5000", "/"))["acme"] == "http://acme.localhost:5000/count"


async def test_reserved_label_has_routes_of_its_own(app: Quart, tenants: QuartTenants) -> None:
    """On any port, with addresses that lead there; nobody else's label can be given routes."""

    @app.get("/", host=tenants.reserved_host("admin"))
    async def console() -> ResponseReturnValue:
        return {"here": url_for("console"), "outside": url_for("console", _external=True), "home": url_for("home")}

    @app.get("/to-console", host=tenants.apex_host)
    async def to_console() -> ResponseReturnValue:
        return {"console": url_for("console")}

    answer = await get_json(app, "ADMIN.localhost:5000", "/")
    assert answer == {
        "status": 200,
        "here": "/",
        "outside": "http://admin.localhost:5000/",
        "home": "http://localhost:5000/",
    }
    assert (await get_json(app, "localhost:5000", "/to-console"))["console"] == "http://admin.localhost:5000/"
    assert (await get_json(app, "api.localhost", "/count"))["code"] == "unknown_tenant"
    with pytest.raises(SettingError, match="TENANTS_RESERVED_SLUGS lacks 'shop'"):
        tenants.reserved_host("shop")


@pytest.mark.parametrize("path", ["/", "/nowhere", "/nothing?a=%2F"])
async def test_www_leads_to_the_domain_itself(app: Quart, tenants: QuartTenants, path: str) -> None:
    """Whichever page is asked for, with its query, also where tenants have a first page of their own."""

    @app.get("/", host=tenants.host)
    async def index() -> ResponseReturnValue:
        return {}

    answer = await app.test_client().get(path, headers={"Host": "www.localhost:5000"})

    assert (answer.status_code, answer.headers["Location"]) == (308, f"http://localhost:5000{path}")
    assert (await get_json(app, "www.localhost", "/count"))["code"] == "unknown_tenant"


async def test_login_at_the_domain_itself_is_counted(app: Quart, tenants: QuartTenants) -> None:
    """Operators have accounts, too: guessing is slowed there, apart from every tenant's."""
    app.secret_key = "a key of a decent length"
    for host in (tenants.apex_host, tenants.host):

        @app.post("/guess", host=host, endpoint=f"guess {host}")
        async def guess() -> ResponseReturnValue:
            async with login_attempt("root"):
                raise InvalidCredentialsError

        @app.post("/enter", host=host, endpoint=f"enter {host}")
        async def enter_here() -> ResponseReturnValue:
            async with login_attempt("root") as attempt:
                await attempt.succeed("root")
            return {}

    async def post(host: str, path: str) -> int:
        return (await app.test_client().post(path, headers={"Host": host})).status_code

    assert await post("localhost", "/enter") == 200
    statuses = [await post("localhost", "/guess") for _ in range(8)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert await post("acme.localhost", "/guess") == 401


async def test_websocket_has_a_tenant(app: Quart) -> None:
    """The same call serves a websocket."""
    async with app.test_client().websocket("/talk", headers={"Host": "globex.localhost"}) as talk:
        assert await talk.receive() == "globex: 0"


async def test_job_names_its_tenant(app: Quart, tenants: QuartTenants) -> None:
    """Outside a request the tenant is given by name or as an object."""
    async with app.app_context():
        for tenant in ("acme", tenants.registry.get_tenant(parse_slug("acme"))):
            async with tenant_connection(tenant) as connection:
                assert await connection.fetchval("SELECT current_schemas(false)::text") == "{acme}"


async def test_job_without_a_tenant_is_an_error(app: Quart) -> None:
    """Outside a request there is no default tenant."""
    async with app.app_context():
        with pytest.raises(NoTenantError, match=r"tenant_connection\(tenant\)"):
            tenant_connection()
        with pytest.raises(UnknownTenantError):
            await enter(tenant_connection("nobody"))
        with pytest.raises(InvalidSlugError):
            tenant_connection("No Body")


async def test_call_outside_an_app_is_an_error() -> None:
    """Without an app the error says what to write around the call."""
    with pytest.raises(NoTenantError, match="app_context"):
        tenant_connection("acme")


async def test_job_of_a_dropped_tenant_does_not_reach_its_successor(app: Quart, tenants: QuartTenants) -> None:
    """A tenant object from before a drop opens nothing, also when the name is taken again."""
    async with app.app_context():
        old = await tenants.create("initech")
        await drop_for_good(tenants.database, old.slug)
        await tenants.registry.refresh()
        with pytest.raises(UnknownTenantError):
            await enter(tenant_connection(old))
        await tenants.create("initech")
        with pytest.raises(WrongTenantError):
            tenant_connection(old)


async def test_created_tenant_is_served_at_once(app: Quart, tenants: QuartTenants) -> None:
    """A sign-up can send its visitor to the new tenant's address straight away."""
    tenant = await tenants.create("initech", name="Initech")

    assert isinstance(tenant, Tenant)
    assert (await get_json(app, "initech.localhost", "/count"))["rows"] == 0
    with pytest.raises(TenantExistsError):
        await tenants.create("initech")


async def test_job_goes_on_when_its_tenant_is_renamed(app: Quart, tenants: QuartTenants) -> None:
    """A tenant is its number: who holds one from before the new name still gets its connection."""
    async with app.app_context():
        acme = tenants.registry.get_tenant(parse_slug("acme"))
        await rename_tenant(tenants.database, acme.slug, parse_slug("zenith"), settings=tenants.settings)
        await tenants.registry.refresh()

        async with tenant_connection(acme) as connection:
            assert await connection.fetchval(COUNT) == 0
        with pytest.raises(UnknownTenantError):
            await enter(tenant_connection("acme"))


async def test_name_of_a_renamed_tenant_is_given_to_the_next(app: Quart, tenants: QuartTenants) -> None:
    """The renamed one's schema keeps its name, so the next gets a schema of another one."""
    await rename_tenant(
        tenants.database, parse_slug("acme"), parse_slug("zenith"), settings=tenants.settings, redirect_days=0
    )
    await let_names_rest(tenants.database)
    with pytest.raises(TenantExistsError, match=r"zenith.*schema acme"):
        await tenants.create("acme")

    tenant = await tenants.create("acme", schema="acme_2")

    assert tenant.schema.name == "acme_2"
    assert (await get_json(app, "acme.localhost", "/count"))["rows"] == 0


async def test_script_runs_without_serving(database_url: str) -> None:
    """`running` opens for a script what serving opens for requests, and closes it again."""
    app, tenants = make_app(database_url)

    async with app.app_context(), tenants.running(), tenant_connection("acme") as connection:
        assert await connection.fetchval(COUNT) == 0

    with pytest.raises(RuntimeError, match="not serving"):
        _ = tenants.database


async def test_app_without_a_registry_does_not_start(empty_database_url: str) -> None:
    """A database that was never set up is told at the start, with the command that helps."""
    _, tenants = make_app(empty_database_url)

    with pytest.raises(RegistryNotReadyError, match="quart-tenants init"):
        async with tenants.running():
            pass


async def test_concurrent_requests_keep_their_tenants_apart(app: Quart) -> None:
    """Requests that run at the same time never see each other's tenant."""
    slugs = ("acme", "globex", "company1", "company2") * 10

    answers = await asyncio.gather(*(get_json(app, f"{slug}.localhost", "/count") for slug in slugs))

    assert [answer["tenant"] for answer in answers] == list(slugs)
    assert [answer["rows"] for answer in answers] == [0, 0, 1, 1] * 10


def test_one_object_serves_one_app(database_url: str) -> None:
    """An extension that has an app takes no second one."""
    _, tenants = make_app(database_url)

    with pytest.raises(RuntimeError, match="one QuartTenants for each app"):
        tenants.init_app(Quart(__name__, host_matching=True, static_folder=None))


def test_environment_goes_before_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment changes by QUART_TENANTS_* what the code sets."""
    monkeypatch.setenv("QUART_TENANTS_DOMAIN", "example.org")
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config["TENANTS_DOMAIN"] = "example.com"

    assert QuartTenants(app).settings.domain == "example.org"


@pytest.mark.parametrize("key", ["TENANTS_POOL_MAX_SIZE", "TENANTS_DOMAIN", "TENANTS_NO_SUCH_KEY"])
async def test_late_setting_is_refused_at_start(database_url: str, key: str) -> None:
    """A key that is set after the extension has read its settings is an error that names it, and what to do."""
    app, tenants = make_app(database_url)
    app.config["SOMETHING_ELSE"] = "late"

    app.config[key] = "late"

    with pytest.raises(SettingError, match=f"^{key} was changed after QuartTenants.* set it before"):
        tenants.refuse_late_settings(app)
    with pytest.raises(Exception, match=key):
        await app.startup()


async def test_settings_that_are_not_late_are_taken(database_url: str) -> None:
    """Control: an app whose other keys change, or that gives the same value again, starts."""
    app, tenants = make_app(database_url)
    app.config["SOMETHING_ELSE"] = "late"
    app.config["TENANTS_DATABASE_URL"] = database_url

    async with app.test_app():
        assert tenants.settings.database_url == database_url


async def test_websocket_of_a_dropped_tenant_does_not_reach_its_successor(app: Quart, tenants: QuartTenants) -> None:
    """A websocket that is older than the drop of its tenant gets no connection of the next one of that name."""

    @app.websocket("/ask", host=tenants.host)
    async def ask() -> None:
        await websocket.accept()
        while True:
            await websocket.receive()
            try:
                async with tenant_connection() as connection:
                    await websocket.send(str(await connection.fetchval(COUNT)))
            except WrongTenantError as error:
                await websocket.send(error.code)

    async with app.test_client().websocket("/ask", headers={"Host": "acme.localhost"}) as talk:
        await talk.send("before")
        before = await talk.receive()
        await drop_for_good(tenants.database, parse_slug("acme"))
        await tenants.create("acme", name="Somebody else")
        await talk.send("after")
        after = await talk.receive()

    assert (before, after) == ("0", "other_tenant")


async def test_nested_app_context_does_not_change_the_tenant(app: Quart, tenants: QuartTenants) -> None:
    """An app context opened inside a request is still that request's tenant's."""

    @app.get("/nested", host=tenants.host)
    async def nested() -> ResponseReturnValue:
        async with app.app_context(), tenant_connection("globex") as connection:
            return {"rows": await connection.fetchval(COUNT)}

    assert (await get_json(app, "acme.localhost", "/nested"))["code"] == "internal_server_error"


async def test_page_for_an_unknown_path_has_the_hosts_session(database_url: str) -> None:
    """A 404 page may read and write the session: it is the tenant's, as on every other page."""
    app, tenants = make_app(database_url)
    app.secret_key = "a key of a decent length"

    @app.errorhandler(404)
    async def not_found(error: Exception) -> ResponseReturnValue:
        session["lost"] = session.get("lost", 0) + 1
        return f"lost {session['lost']} times at {current_tenant.slug}", 404

    @app.get("/lost", host=tenants.host)
    async def lost() -> ResponseReturnValue:
        return str(session.get("lost", 0))

    async with app.test_app():
        client = app.test_client()
        headers = {"Host": "acme.localhost"}
        for times in (1, 2):
            answer = await client.get("/nothing", headers=headers)
            assert await answer.get_data(as_text=True) == f"lost {times} times at acme"
        known = await client.get("/lost", headers=headers)

    assert await known.get_data(as_text=True) == "2"


async def test_websocket_of_an_unknown_tenant_is_refused_with_the_reason(app: Quart) -> None:
    """A handshake that fails is answered by the problem, as a request would be."""
    with pytest.raises(WebsocketResponseError) as caught:
        async with app.test_client().websocket("/talk", headers={"Host": "nobody.localhost"}) as talk:
            await talk.receive()

    assert caught.value.response.status_code == 400


async def test_websocket_without_a_fresh_registry_is_refused_with_503(app: Quart, tenants: QuartTenants) -> None:
    """A worker that cannot know its tenants says so to websockets, too."""
    tenants.registry._read_at = float("-inf")

    with pytest.raises(WebsocketResponseError) as caught:
        async with app.test_client().websocket("/talk", headers={"Host": "acme.localhost"}) as talk:
            await talk.receive()

    assert caught.value.response.status_code == 503
    assert caught.value.response.headers["Retry-After"]


def test_secret_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """QUART_SECRET_KEY signs the sessions of an app of one's own, as every message says."""
    monkeypatch.setenv("QUART_SECRET_KEY", "a key of a decent length")
    app, _ = make_app(None)

    assert app.secret_key == "a key of a decent length"


@pytest.mark.parametrize("make", ["an app", "the reference app"])
def test_libraries_that_wrap_an_app_take_it_for_one_of_asgi_3(make: str) -> None:
    """They ask whether `__call__` is a coroutine function: Hypercorn and Uvicorn, asgiref, OpenTelemetry and Sentry."""
    if make == "an app":
        app = Quart(__name__, host_matching=True, static_folder=None)
        app.config.update(TENANTS_DATABASE_URL="postgresql://localhost/unused")
        QuartTenants(app)
    else:
        app = reference.create_app({"TENANTS_DATABASE_URL": "postgresql://localhost/unused"})

    outermost: Any = app.asgi_app
    assert is_asgi(outermost)
    assert inspect.iscoroutinefunction(outermost.__call__)
