"""Promise: a tenant that was dropped reads nothing of the tenant that has its schema's name next."""

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from quart_tenants.errors import (
    DatabaseUnavailableError,
    RecentlyDroppedError,
    RegistryNotReadyError,
    TenantError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver import noting_connection
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant, parse_slug
from quart_tenants.testing.databases import name_database
from tests.support.databases import let_names_rest
from tests.support.patience import DEADLINE
from tests.support.pgbouncer import SWALLOWS_PATH, empty_default_path, needs_pgbouncer, run_pgbouncer
from tests.support.roles import new_login
from tests.support.tcp_proxy import TcpProxy
from tests.support.timings import WARM
from tests.support.web_lender import WebLender

LIST_ROWS = "SELECT description FROM company_data"
ADD_ROW = "INSERT INTO company_data (description) VALUES ('of the next')"
NEWCO = parse_slug("newco")


@pytest.fixture
async def forgetful(settings: Settings) -> AsyncIterator[Database]:
    """A pool of one warm connection whose blocks ask again before each transaction that begins later than they did."""
    async with await WebLender.open(settings, max_size=1, timings=replace(WARM, known=0)) as database:
        yield database


@pytest.fixture
async def trusting(settings: Settings) -> AsyncIterator[Database]:
    """A pool of one warm connection whose blocks believe for a minute what they were told."""
    async with await WebLender.open(settings, max_size=1, timings=WARM) as database:
        yield database


async def take_over(database: Database, settings: Settings, tenant: Tenant) -> Tenant:
    """Drop *tenant*, and give the name of its schema to another tenant as soon as it is free."""
    await drop_tenant(database, tenant.slug)
    await let_names_rest(database)
    return await create_tenant(database, NEWCO, "x", settings=settings, schema=tenant.schema, first_rows=ADD_ROW)


async def fetch(connection: Any) -> str:
    """Read rows."""
    return str((await connection.fetch(LIST_ROWS))[0][0])


async def fetch_another_text(connection: Any) -> str:
    """Read by a statement that nobody has prepared."""
    return str(await connection.fetchval(f"{LIST_ROWS} WHERE description <> $1", "x"))


async def fetch_in_transaction(connection: Any) -> str:
    """Read in a transaction()."""
    async with connection.transaction():
        return str(await connection.fetchval(LIST_ROWS))


async def write(connection: Any) -> str:
    """Write, and read what is there."""
    return str(await connection.fetchval("UPDATE company_data SET description = description RETURNING description"))


async def prepare(connection: Any) -> str:
    """Read by a statement that is prepared first."""
    return str(await (await connection.prepare(LIST_ROWS)).fetchval())


async def copy(connection: Any) -> str:
    """Read by a copy."""
    pieces: list[bytes] = []

    async def keep(data: bytes) -> None:
        pieces.append(data)

    await connection.copy_from_query(LIST_ROWS, output=keep)
    return b"".join(pieces).decode().strip()


async def run_script(connection: Any) -> str:
    """Read after a script without arguments."""
    await connection.execute("SELECT 1; SELECT 2")
    return str(await connection.fetchval(LIST_ROWS))


STATEMENTS = (fetch, fetch_another_text, fetch_in_transaction, write, prepare, copy, run_script)


@pytest.mark.usefixtures("fast_driver_only")
@pytest.mark.parametrize("read", STATEMENTS)
async def test_block_of_reads_reads_nothing_of_the_next_tenant(
    forgetful: Database,
    database: Database,
    settings: Settings,
    acme: Tenant,
    read: Callable[[Any], Awaitable[str]],
) -> None:
    """A block that only reads has no transaction between two reads, which would keep the name from others."""
    async with forgetful.tenant_connection(acme) as warm:
        await warm.fetch(LIST_ROWS)
    with pytest.raises(UnknownTenantError):
        async with forgetful.tenant_connection(acme) as connection:
            assert await connection.fetch(LIST_ROWS) == []
            new = await take_over(database, settings, acme)
            for _ in range(2):
                with pytest.raises(UnknownTenantError):
                    await read(connection)
            await read(connection)

    # Nothing is lost: the next block has the connection.
    async with forgetful.tenant_connection(new) as connection:
        assert await connection.fetchval(LIST_ROWS) == "of the next"
    assert forgetful.show_pool().opened == 1


@pytest.mark.usefixtures("fast_driver_only")
@pytest.mark.parametrize("read", STATEMENTS)
async def test_block_that_does_not_ask_again_reads_the_next_tenants_rows(
    trusting: Database,
    database: Database,
    settings: Settings,
    acme: Tenant,
    read: Callable[[Any], Awaitable[str]],
) -> None:
    """Negative control: the naive block believes for as long as it lasts what the registry once said."""
    async with trusting.tenant_connection(acme) as warm:
        await warm.fetch(LIST_ROWS)
    async with trusting.tenant_connection(acme) as connection:
        assert await connection.fetch(LIST_ROWS) == []
        await take_over(database, settings, acme)
        assert "of the next" in await read(connection)


async def test_tenant_that_was_kept_reads_nothing_of_the_next(
    database: Database, settings: Settings, acme: Tenant
) -> None:
    """A script may have kept a tenant for long, so the server is asked before the first transaction begins."""
    await take_over(database, settings, acme)
    async with await Database.open(settings, max_size=1, timings=WARM) as own:
        for _ in range(2):
            with pytest.raises(UnknownTenantError):
                async with own.tenant_connection(acme) as connection:
                    await connection.fetch(LIST_ROWS)
        async with own.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1

    # Negative control: a caller that says that the registry has just named the tenant is believed.
    async with database.tenant_connection(acme) as connection:
        assert await connection.fetchval(LIST_ROWS) == "of the next"


async def test_login_that_may_not_read_the_registry_is_told_so(
    server_url: str, direct_url: str, settings: Settings, acme: Tenant
) -> None:
    """Nobody is believed without an answer, and the connection is not taken for a dead one."""
    async with new_login(server_url, "") as login:
        url = name_database(login, direct_url.partition("?")[0].rpartition("/")[2])
        async with await Database.open(replace(settings, database_url=url), max_size=1) as own:
            for _ in range(2):
                with pytest.raises(RegistryNotReadyError, match="permission denied for schema quart_tenants"):
                    async with own.tenant_connection(acme) as connection:
                        await connection.fetch(LIST_ROWS)
            assert own.show_pool().opened == 1


async def test_name_rests_while_the_transaction_that_asked_is_open(
    database: Database, settings: Settings, acme: Tenant
) -> None:
    """Between the question and the end of its transaction nobody takes the name."""
    settings = replace(settings, registry_max_age=-1.0)
    async with await Database.open(settings, max_size=1) as own, own.tenant_connection(acme) as connection:
        async with connection.transaction():
            await connection.fetch(LIST_ROWS)
        await drop_tenant(database, acme.slug)
        with pytest.raises(RecentlyDroppedError):
            await create_tenant(database, NEWCO, "x", settings=settings, schema=acme.schema)


@pytest.mark.usefixtures("fast_driver_only")
async def test_block_that_is_cancelled_while_it_asks_leaves_its_connection_clean(
    forgetful: Database, direct_url: str, acme: Tenant, globex: Tenant
) -> None:
    """The registry may hang. The question is cancelled with the block, and the next block sees its own tables."""
    async with forgetful.tenant_connection(acme) as warm:
        await warm.fetch(LIST_ROWS)
    onlooker = await asyncpg.connect(direct_url)
    try:
        lock = onlooker.transaction()
        await lock.start()
        await onlooker.execute("LOCK TABLE quart_tenants.tenants IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(TimeoutError):
            async with forgetful.tenant_connection(acme) as connection, asyncio.timeout(0.05):
                await connection.fetch(LIST_ROWS)
        # The question itself has a limit.
        forgetful._settings = replace(forgetful._settings, acquire_timeout=0.05)
        with pytest.raises(DatabaseUnavailableError, match="did not say in time whether the tenant exists"):
            async with forgetful.tenant_connection(acme) as connection:
                await connection.fetch(LIST_ROWS)
        forgetful._settings = replace(forgetful._settings, acquire_timeout=DEADLINE)
        await lock.rollback()
    finally:
        await onlooker.close()

    async with forgetful.tenant_connection(globex) as connection:
        assert await connection.fetchval("SELECT current_schema()") == "globex"
        assert await connection.fetch(LIST_ROWS) == []


async def read_late(
    read: Callable[[Any], Awaitable[str]],
    known: float,
    url: str,
    settings: Settings,
    tenant: Tenant,
    do_meanwhile: Callable[[], Awaitable[object]],
) -> str:
    """Return what *read* sees in a block whose next message arrives after *do_meanwhile*, and after *known* seconds."""
    gate = asyncio.Event()
    async with TcpProxy(url) as proxy:
        far = replace(settings, database_url=proxy.url, acquire_timeout=DEADLINE, command_timeout=DEADLINE)
        async with await WebLender.open(far, max_size=1, timings=replace(WARM, known=known)) as own:
            async with own.tenant_connection(tenant) as warm:
                await warm.fetch(LIST_ROWS)

            async def work() -> str:
                async with own.tenant_connection(tenant) as connection:
                    return await read(connection)

            proxy.hold_until(gate)
            working = asyncio.create_task(work())
            try:
                await proxy.held.wait()
                is_late = asyncio.Event()
                asyncio.get_running_loop().call_later(min(known, 1), is_late.set)
                await do_meanwhile()
                await is_late.wait()
            finally:
                gate.set()
            return await working


@pytest.mark.parametrize("read", STATEMENTS)
async def test_statement_that_arrives_late_reads_nothing_of_the_next_tenant(
    direct_url: str, database: Database, settings: Settings, acme: Tenant, read: Callable[[Any], Awaitable[str]]
) -> None:
    """A message may wait for longer than a name rests: in a pooler's queue, or while the network is cut."""
    with pytest.raises(UnknownTenantError):
        await read_late(read, 0.05, direct_url, settings, acme, lambda: take_over(database, settings, acme))


@pytest.mark.parametrize("read", [fetch, write])
async def test_late_statement_that_is_believed_reads_the_next_tenants_rows(
    direct_url: str, database: Database, settings: Settings, acme: Tenant, read: Callable[[Any], Awaitable[str]]
) -> None:
    """Negative control: the naive block asks nobody when the answer comes."""
    seen = await read_late(read, 60, direct_url, settings, acme, lambda: take_over(database, settings, acme))

    assert "of the next" in seen


async def fail_at_a_row(connection: Any) -> str:
    """Read rows in a way that fails. PostgreSQL's error tells what is in the row."""
    return str(await connection.fetchval("SELECT description::int FROM company_data"))


@pytest.mark.parametrize("known", [0.05, 60], ids=["late", "negative control: believed"])
async def test_late_error_tells_nothing_of_the_next_tenant(
    direct_url: str, database: Database, settings: Settings, acme: Tenant, known: float
) -> None:
    """An error of PostgreSQL may quote a row, and is logged."""
    with pytest.raises(UnknownTenantError if known < 1 else asyncpg.DataError) as caught:
        await read_late(fail_at_a_row, known, direct_url, settings, acme, lambda: take_over(database, settings, acme))

    told = "".join(traceback.format_exception(caught.value))
    assert ("of the next" in told) is (known > 1)


@pytest.mark.parametrize("read", STATEMENTS)
async def test_late_statement_of_a_living_tenant_is_done(
    direct_url: str, database: Database, settings: Settings, acme: Tenant, read: Callable[[Any], Awaitable[str]]
) -> None:
    """A transaction that has begun twice is like any other: the level of its isolation can still be set."""

    async def read_serializable(connection: Any) -> str:
        if read is not fetch:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        return await read(connection)

    async with database.tenant_connection(acme) as connection:
        await connection.execute(ADD_ROW)
    seen = await read_late(read_serializable, 0.05, direct_url, settings, acme, lambda: asyncio.sleep(0))

    assert "of the next" in seen


@needs_pgbouncer
@pytest.mark.parametrize("mode", ["auto", "plain"])
@pytest.mark.parametrize("resets", [True, False], ids=["resets", "negative control: does not"])
async def test_role_that_somebody_left_behind_a_pooler_does_not_answer(
    direct_url: str, settings: Settings, acme: Tenant, monkeypatch: pytest.MonkeyPatch, mode: str, resets: bool
) -> None:
    """The question is asked as the login, whatever another client has left on the server process."""
    if not resets:
        monkeypatch.setattr(noting_connection, "RESET_AHEAD", ())
    await empty_default_path(direct_url)
    async with run_pgbouncer(direct_url, default_pool_size="1", **SWALLOWS_PATH) as bouncer:
        own = replace(settings, database_url=bouncer.url(direct_url), driver_mode=mode)
        async with await Database.open(own, max_size=1, timings=WARM) as behind:
            async with behind.connection() as warm:
                await warm.fetch("SELECT 1")
            other = await asyncpg.connect(bouncer.url(direct_url), statement_cache_size=0)
            try:
                await other.execute("SET ROLE pg_monitor")
                with contextlib.nullcontext() if resets else pytest.raises((TenantError, asyncpg.PostgresError)):
                    async with behind.tenant_connection(acme) as connection:
                        assert await connection.fetch(LIST_ROWS) == []
            finally:
                await other.close()
