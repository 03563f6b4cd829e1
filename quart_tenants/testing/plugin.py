"""The pytest plugin: fixtures for an app with tenants. `pip install quart-tenants` registers it."""

import asyncio
import functools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Protocol

import pytest

from quart_tenants.errors import SettingError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.role_setup import give_roles, make_owner, revoke_public_rights
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.postgres.tenants.new_tenant import Fill
from quart_tenants.postgres.tenants.provisioning import create_tenants
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from quart_tenants.testing.clients import ClientMaker
from quart_tenants.testing.databases import (
    DatabaseStock,
    drop_with_roles,
    name_database,
    new_database_between_loops,
    serve_postgres,
)
from quart_tenants.web.extension import QuartTenants
from quart_tenants.web.state import find_state

if TYPE_CHECKING:
    from pytest_asyncio import fixture as _async_fixture
    from quart import Quart

    FindStock = Callable[[Callable[[], Quart]], DatabaseStock]
else:
    try:
        from pytest_asyncio import fixture as _async_fixture
    except ModuleNotFoundError:
        # Then pytest says to whoever asks for an async fixture what is missing.
        _async_fixture = pytest.fixture

FIRST, SECOND = Slug("acme"), Slug("globex")
_DATABASE = "QUART_TENANTS_DATABASE_URL"
_SECRET_KEY = "QUART_SECRET_KEY"  # noqa: S105  (the name of a variable)


class NewTenant(Protocol):
    """Makes one more tenant in a test."""

    def __call__(self, slug: str | None = None, *, fill: Fill | None = None) -> Awaitable[Tenant]:
        """Return a new tenant. *slug*: default a random one. *fill* writes its first rows."""


@pytest.fixture(scope="session")
def tenants_app_factory() -> "Callable[[], Quart]":
    """Return the function that makes the app. Every project defines this fixture in its conftest.py."""
    raise SettingError(
        "tenants_app_factory",
        "is not defined: add a fixture of that name to conftest.py, with scope='session', that returns your create_app",
    )


@pytest.fixture(scope="session")
def tenants_server_url() -> Iterator[str]:
    """The URL of a PostgreSQL server: the one that `TEST_DATABASE_URL` names, or an embedded one."""
    with serve_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def tenants_database_stocks(tenants_server_url: str) -> "Iterator[FindStock]":
    """The copies that there are so far, by the function that makes the app: a run of pytest may test several apps."""
    with ExitStack() as stack:
        yield functools.cache(lambda factory: stack.enter_context(_make_stock(tenants_server_url, factory)))


@pytest.fixture
def tenants_database_stock(
    tenants_database_stocks: "FindStock", tenants_app_factory: "Callable[[], Quart]"
) -> DatabaseStock:
    """Copies of a database in which the app's migrations have run, with two tenants."""
    return tenants_database_stocks(tenants_app_factory)


@_async_fixture
async def tenants_database_url(tenants_server_url: str, tenants_database_stock: DatabaseStock) -> AsyncIterator[str]:
    """The URL of a database of the test's own."""
    name = await tenants_database_stock.take()
    yield name_database(tenants_server_url, name)
    tenants_database_stock.drop(name)


@_async_fixture
async def tenants_app(tenants_database_url: str, tenants_app_factory: "Callable[[], Quart]") -> "AsyncIterator[Quart]":
    """The app, serving, with a database of the test's own."""
    with _pointing_at(tenants_database_url):
        app = tenants_app_factory()
        _get_extension(app)
        async with app.test_app():
            yield app


@pytest.fixture
def tenants(tenants_app: "Quart") -> QuartTenants:
    """The extension of `tenants_app`."""
    return _get_extension(tenants_app)


@pytest.fixture
def first_tenant(tenants: QuartTenants) -> Tenant:
    """One tenant, `acme`."""
    return tenants.registry.get_tenant(FIRST)


@pytest.fixture
def second_tenant(tenants: QuartTenants) -> Tenant:
    """Another tenant, `globex`."""
    return tenants.registry.get_tenant(SECOND)


@pytest.fixture
def new_tenant(tenants: QuartTenants) -> NewTenant:
    """Make one more tenant: await a call of this, with a slug or without."""

    async def make(slug: str | None = None, *, fill: Fill | None = None) -> Tenant:
        return await tenants.create(slug or f"t{secrets.token_hex(6)}", fill=fill)

    return make


@pytest.fixture
def client_for(tenants_app: "Quart", tenants: QuartTenants) -> ClientMaker:
    """Make a test client at a tenant's address: await a call of this, with the tenant and perhaps a user."""
    return ClientMaker(tenants_app, tenants.settings.domain)


@contextmanager
def _make_stock(server_url: str, factory: "Callable[[], Quart]") -> Iterator[DatabaseStock]:
    with new_database_between_loops(server_url) as url:
        # Only for this: other tests of the session have nothing to do with the template.
        with _pointing_at(url):
            prefix = asyncio.run(_fill(url, _get_extension(factory()).settings))
        template = url.partition("?")[0].rpartition("/")[2]
        try:
            with DatabaseStock(server_url, template) as stock:
                yield stock
        finally:
            if prefix is not None:
                asyncio.run(drop_with_roles(server_url, template, [prefix]))


@contextmanager
def _pointing_at(url: str) -> Iterator[None]:
    """Let the app read the test's database from its environment, and a secret key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_DATABASE, url)
        patch.setenv(_SECRET_KEY, f"for tests only {secrets.token_hex(16)}")
        yield


def _get_extension(app: "Quart") -> QuartTenants:
    state = find_state(app)
    if not isinstance(state, QuartTenants):
        raise SettingError("tenants_app_factory", "returns an app that has no tenants: call QuartTenants(app)")
    if not app.secret_key:
        # An app reads QUART_SECRET_KEY by config.from_prefixed_env(), and this one does not.
        app.secret_key = f"for tests only {secrets.token_hex(16)}"
    return state


async def _fill(url: str, settings: Settings) -> str | None:
    """Fill the template. Return how the names of its roles begin, if there are any."""
    async with await Database.open(settings, max_size=1) as database:
        await init_registry(database)
        prefix = None
        if settings.role_per_tenant:
            owner, without = await make_owner(database)
            prefix = owner.name.removesuffix("owner")
            await give_roles(database, owner, without, on_done=lambda *_: None)
            await revoke_public_rights(database, owner)
        await migrate_shared(database, settings=settings)
        await create_tenants(database, {FIRST: "Acme", SECOND: "Globex"}, settings=settings, jobs=1)
    return prefix
