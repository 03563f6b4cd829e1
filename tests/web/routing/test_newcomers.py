"""A tenant that another worker made a moment ago is served: a worker that does not know a name asks first."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from quart import Quart, ResponseReturnValue

from quart_tenants import (
    QuartTenants,
    current_tenant,
    find_tenant,
    get_session,
    start_session,
    tenant_connection,
)
from quart_tenants.admin import parse_slug
from quart_tenants.domain import parse_domain
from quart_tenants.postgres.fleet.fleet_plan import plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import migrate_fleet
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.tenants.domains import add_domain
from quart_tenants.postgres.tenants.lifecycle import rename_tenant, resume_tenant, suspend_tenant
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.web.routing.ask_route import ASK_PATH
from tests.support.databases import REFERENCE_FILES
from tests.support.feeds import RARE_NEWS

pytestmark = pytest.mark.slow

ACME, NEWCO = parse_slug("acme"), parse_slug("newco")
COUNT = "SELECT count(*) FROM company_data"


class Worker(NamedTuple):
    """An app that serves, and its extension."""

    app: Quart
    tenants: QuartTenants


def make_worker(settings: Settings, **config: object) -> Worker:
    """Return an app that does not hear by itself what the others change."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.secret_key = "a key of a decent length"
    app.config.update(
        RARE_NEWS,
        TENANTS_DATABASE_URL=settings.database_url,
        TENANTS_ROLE_PER_TENANT=settings.role_per_tenant,
        **{"TENANTS_MIGRATIONS_DIR": REFERENCE_FILES} | config,
    )
    tenants = QuartTenants(app)

    @app.get("/", host=tenants.host)
    async def index() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            return {"tenant": current_tenant.slug, "rows": await connection.fetchval(COUNT)}

    @app.post("/login", host=tenants.host)
    async def login() -> ResponseReturnValue:
        await start_session("ada")
        return {}

    @app.get("/me", host=tenants.host)
    async def me() -> ResponseReturnValue:
        return {"user": get_session().user}

    @app.get("/rows/<slug>", host=tenants.apex_host)
    async def rows(slug: str) -> ResponseReturnValue:
        async with tenant_connection(slug) as connection:
            return {"rows": await connection.fetchval(COUNT)}

    @app.get("/who", host=tenants.any_host)
    async def who() -> ResponseReturnValue:
        found = find_tenant()
        return {"rows": None if found is None else found.slug}

    @app.websocket("/talk", host=tenants.host)
    async def talk() -> None:
        pass

    return Worker(app, tenants)


@asynccontextmanager
async def serving(settings: Settings, **config: object) -> AsyncIterator[Worker]:
    """Let one more worker serve inside the block."""
    worker = make_worker(settings, **config)
    async with worker.app.test_app():
        yield worker


@pytest.fixture
async def here(settings: Settings) -> AsyncIterator[Worker]:
    """The worker that changes something."""
    async with serving(settings) as worker:
        yield worker


@pytest.fixture
async def there(settings: Settings, here: Worker) -> AsyncIterator[Worker]:
    """Another worker, which is asked next."""
    async with serving(settings) as worker:
        yield worker


async def get(worker: Worker, host: str, path: str = "/") -> tuple[int, object]:
    """Return the status that *host* answers, and what comes back: a number of rows, or the code of an error."""
    answer = await worker.app.test_client().get(path, headers={"Host": host})
    content = await answer.get_json() or {}
    return answer.status_code, content.get("rows", content.get("code"))


async def create(tenants: QuartTenants) -> str:
    """Create newco. Return the host at which it is."""
    await tenants.create("newco")
    return "newco.localhost"


async def resume(tenants: QuartTenants) -> str:
    """Resume acme. Return the host at which it is."""
    await resume_tenant(tenants.database, ACME)
    return "acme.localhost"


async def rename(tenants: QuartTenants) -> str:
    """Rename acme. Return the host at which it is."""
    await rename_tenant(tenants.database, ACME, NEWCO, settings=tenants.settings)
    return "newco.localhost"


async def give_domain(tenants: QuartTenants) -> str:
    """Give acme a domain of its own. Return the host at which it is."""
    await add_domain(tenants.database, ACME, parse_domain("shop.example"), settings=tenants.settings, trusted=True)
    return "shop.example"


CHANGES = {"created": create, "resumed": resume, "renamed": rename, "given a domain": give_domain}
Change = Callable[[QuartTenants], Awaitable[str]]


@pytest.fixture(params=CHANGES.values(), ids=list(CHANGES))
async def change(request: pytest.FixtureRequest, settings: Settings) -> Change:
    """What the first worker does. Where it resumes a tenant, both workers begin with a suspended one."""
    if request.param is resume:
        async with serving(settings) as worker:
            await suspend_tenant(worker.tenants.database, ACME)
    change: Change = request.param
    return change


async def test_change_of_another_worker_is_served_at_once(change: Change, here: Worker, there: Worker) -> None:
    """What was created, resumed, renamed or given a domain before a request began is served by every worker."""
    host = await change(here.tenants)

    assert await get(there, host) == (200, 0)


async def test_page_of_every_host_knows_who_is_here(change: Change, here: Worker, there: Worker) -> None:
    """It is served also where nobody is, and where that cannot be known."""
    host = await change(here.tenants)

    assert await get(there, host, "/who") == (200, "acme" if host in ("acme.localhost", "shop.example") else "newco")
    async with here.tenants.database.connection() as connection:
        await connection.execute("ALTER TABLE quart_tenants.changes RENAME TO changes_elsewhere")
    assert await get(there, "nobody.localhost", "/who") == (200, None)
    assert await get(there, "nobody.localhost", "/healthz") == (200, None)


async def test_worker_that_does_not_ask_refuses_a_newcomer(
    change: Change, here: Worker, there: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: a worker that waits for its feed answers that there is no such tenant."""

    async def do_nothing(registry: Registry) -> None:
        """Trust the memory."""

    monkeypatch.setattr(Registry, "catch_up", do_nothing)
    host = await change(here.tenants)

    status, _ = await get(there, host)

    assert status in (400, 404)


async def test_certificate_is_allowed_at_once(change: Change, here: Worker, there: Worker) -> None:
    """A proxy that asks a worker about a new address is not told to wait."""
    host = await change(here.tenants)

    assert (await get(there, "localhost", f"{ASK_PATH}?domain={host}"))[0] == 200


async def test_websocket_of_a_new_tenant_is_accepted(here: Worker, there: Worker) -> None:
    """A page of the new tenant may open its websocket at another worker than the one that served the page."""
    host = await create(here.tenants)

    async with there.app.test_client().websocket("/talk", headers={"Host": host}):
        pass


async def test_session_of_a_new_tenant_is_known(here: Worker, there: Worker) -> None:
    """A visitor who logs in at one worker goes on at another that has never heard of the tenant."""
    host = await create(here.tenants)
    login = await here.app.test_client().post("/login", headers={"Host": host})
    cookie = login.headers["Set-Cookie"].partition(";")[0]

    answer = await there.app.test_client().get("/me", headers={"Host": host, "Cookie": cookie})

    assert await answer.get_json() == {"user": "ada"}


async def test_page_of_the_operator_reads_a_new_tenant(here: Worker, there: Worker) -> None:
    """A tenant that is named to `tenant_connection` is looked for in the same way."""
    await create(here.tenants)

    assert await get(there, "localhost", "/rows/newco") == (200, 0)
    assert await get(there, "localhost", "/rows/nobody") == (400, "unknown_tenant")


async def test_migrated_tenant_is_served_at_once(settings: Settings, tmp_path: Path) -> None:
    """A worker that needs the newest tables answers as soon as the tenant has them."""
    first = get_resource_path("sql/tenant/0001_users_and_data.sql")
    (tmp_path / first.name).write_bytes(first.read_bytes())
    (tmp_path / "0002_note.sql").write_text("ALTER TABLE company_data ADD COLUMN note text")
    async with serving(settings, TENANTS_MIGRATIONS_DIR=tmp_path) as worker:
        assert await get(worker, "acme.localhost") == (503, "schema_behind")
        plan = await plan_fleet(worker.tenants.database, settings=worker.tenants.settings, slugs=[ACME])
        await migrate_fleet(worker.tenants.database, plan, settings=worker.tenants.settings)

        assert await get(worker, "acme.localhost") == (200, 0)


async def test_redirect_of_a_new_name_needs_no_news(here: Worker, there: Worker) -> None:
    """The old address leads on before and after the worker has heard of the new name."""
    host = await rename(here.tenants)

    assert await get(there, "acme.localhost") == (200, 0)
    assert await get(there, host) == (200, 0)
    assert (await get(there, "acme.localhost"))[0] == 308


async def test_unknown_name_is_no_tenant_when_nothing_can_be_read(there: Worker, here: Worker) -> None:
    """A worker that cannot ask does not say that there is no such tenant, and goes on serving those that it knows."""
    async with here.tenants.database.connection() as connection:
        await connection.execute("ALTER TABLE quart_tenants.changes RENAME TO changes_elsewhere")

    assert await get(there, "nobody.localhost") == (503, "registry_stale")
    assert await get(there, "acme.localhost") == (200, 0)
