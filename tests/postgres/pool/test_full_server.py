"""Promise: while other programs hold all of the server's connections, requests wait for those that the pool has."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest

from quart_tenants.errors import DatabaseUnavailableError, PoolExhaustedError, TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres
from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from quart_tenants.testing.databases import FAST_AND_FORGETFUL
from tests.support.databases import REFERENCE_FILES, execute, fill_template
from tests.support.patience import DEADLINE
from tests.support.timings import WARM
from tests.support.web_lender import WebLender

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fast_driver_only")]

SMALL = {"max_connections": "8", "superuser_reserved_connections": "2", "max_wal_senders": "0"}
READ = "SELECT pg_backend_pid()"


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with few places, two of which are kept for superusers, as one who is none."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("small") / "postgres", options=FAST_AND_FORGETFUL | SMALL)

    async def start() -> None:
        await server.start()
        await fill_template(server.url)
        await execute(
            server.url,
            "CREATE ROLE app LOGIN",
            "GRANT USAGE ON SCHEMA quart_tenants, acme, globex, company1, company2 TO app",
            "GRANT SELECT ON ALL TABLES IN SCHEMA quart_tenants TO app",
        )

    asyncio.run(start())
    try:
        yield server.url
    finally:
        asyncio.run(server.stop())


@pytest.fixture(params=["postgres", "app"])
def url(request: pytest.FixtureRequest, small_server: str) -> str:
    """The URL of a role that may take the last place, and of one for which the last two are not."""
    return small_server.replace("postgres@", f"{request.param}@")


@pytest.fixture
def small_settings(url: str) -> Settings:
    """Settings for a pool that would open more connections than the server has places for."""
    return Settings(
        database_url=url,
        migrations_dir=REFERENCE_FILES,
        pool_max_size=10,
        tenant_pool_share=10,
        acquire_timeout=DEADLINE,
    )


@asynccontextmanager
async def full_server(url: str) -> AsyncIterator[AsyncExitStack]:
    """Take all places that are left; what is yielded gives them back."""
    async with AsyncExitStack() as stack:
        while True:
            try:
                connection = await asyncpg.connect(url)
            except asyncpg.TooManyConnectionsError:
                break
            stack.push_async_callback(connection.close)
        yield stack


async def ask(database: Database, tenant: Tenant) -> int:
    """Return the server process that served a block of *tenant*."""
    async with database.tenant_connection(tenant) as connection:
        return int(await connection.fetchval(READ))


async def count_refused(database: Database, url: str) -> tuple[set[int], list[BaseException]]:
    """Return which server processes serve many tenants at once while the server is full, and what blocks raised."""
    tenants = await list_tenants(database)
    async with full_server(url):
        # More blocks than connections, by tenants who would like connections of their own.
        ended = await asyncio.gather(
            *(ask(database, tenants[number % len(tenants)]) for number in range(200)), return_exceptions=True
        )
    refused = [outcome for outcome in ended if isinstance(outcome, BaseException)]
    return {outcome for outcome in ended if isinstance(outcome, int)}, refused


async def test_requests_wait_for_open_connections(
    url: str, small_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the server has no place for another connection, no block fails: all are served by what is open."""
    caplog.set_level(logging.WARNING)
    async with await WebLender.open(small_settings, timings=WARM) as database:
        backends, refused = await count_refused(database, url)

    assert refused == []
    assert len(backends) == 1
    assert caplog.text.count("no place for another connection") == 1


async def test_blocks_fail_where_nobody_waits(
    url: str, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: if a refusal counts as if there were no other connection, many blocks fail."""
    async with await WebLender.open(small_settings, timings=WARM) as database:
        monkeypatch.setattr(asyncpg.Pool, "get_size", lambda _: 0)
        _, refused = await count_refused(database, url)

    assert len(refused) > 50
    assert {type(error) for error in refused} == {DatabaseUnavailableError}


async def test_full_server_is_asked_again(url: str, small_settings: Settings) -> None:
    """As soon as others give places back, the pool opens the connections that it wants, for those who wait."""
    timings = Timings(known=60, fresh=60, tidy_every=60, full=0.01)
    async with await WebLender.open(small_settings, timings=timings) as database:
        acme, globex, *_ = await list_tenants(database)
        async with full_server(url) as others, database.tenant_connection(acme) as only:
            backend = await only.fetchval(READ)
            waiting = asyncio.create_task(ask(database, globex))
            while not database._pool._slots._waiters:
                await asyncio.sleep(0)
            await others.aclose()
            async with asyncio.timeout(DEADLINE):
                other = await waiting

    assert other != backend


async def test_wait_for_open_connections_ends(url: str) -> None:
    """Whoever waited for TENANTS_ACQUIRE_TIMEOUT is told that all are in use, and why there are no more."""
    settings = Settings(database_url=url, migrations_dir=REFERENCE_FILES, acquire_timeout=0.2)
    async with await WebLender.open(settings, timings=WARM) as database:
        acme, globex, *_ = await list_tenants(database)
        async with full_server(url), database.tenant_connection(acme) as only:
            await only.fetchval(READ)
            with pytest.raises(PoolExhaustedError, match=r"all 1 connections .* no place for another one") as caught:
                await ask(database, globex)

    assert caught.value.status == 503


async def test_pool_without_a_connection_says_why(url: str, small_settings: Settings) -> None:
    """A pool that has no connection at all waits for nothing: the error says that there are too many."""
    async with full_server(url):
        with pytest.raises(TenantError, match=r"(?i)too many clients|reserved") as caught:
            await WebLender.open(small_settings)

    assert type(caught.value) is DatabaseUnavailableError
