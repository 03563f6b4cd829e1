"""Blocks: one transaction, one tenant, on one connection that comes back clean."""

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from quart_tenants.errors import (
    DatabaseFullError,
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    PoolExhaustedError,
    SettingError,
    TenantError,
    TransactionLostError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.support.patience import DEADLINE, wait_until
from tests.support.web_lender import WebLender

INSERT = "INSERT INTO company_data (description) VALUES ('a row')"
COUNT = "SELECT count(*) FROM company_data"


async def count_rows(database: Database, tenant: Tenant) -> int:
    """Return how many rows of data *tenant* has."""
    async with database.tenant_connection(tenant) as connection:
        return int(await connection.fetchval(COUNT))


async def test_block_commits_when_it_is_left(database: Database, acme: Tenant) -> None:
    """Leaving a block saves what was done in it."""
    async with database.tenant_connection(acme) as connection:
        await connection.execute(INSERT)

    assert await count_rows(database, acme) == 1


async def test_block_rolls_back_on_an_exception(database: Database, acme: Tenant) -> None:
    """An exception undoes the block and goes on its way."""
    with pytest.raises(LookupError):
        async with database.tenant_connection(acme) as connection:
            await connection.execute(INSERT)
            raise LookupError

    assert await count_rows(database, acme) == 0


async def test_block_rolls_back_on_cancellation(one_connection_database: Database, acme: Tenant) -> None:
    """A cancelled block saves nothing, and its connection serves the next block."""
    inserted = asyncio.Event()

    async def insert_and_wait() -> None:
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.execute(INSERT)
            inserted.set()
            await connection.execute("SELECT pg_sleep(60)")

    task = asyncio.create_task(insert_and_wait())
    await inserted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await count_rows(one_connection_database, acme) == 0


async def test_lazy_block_takes_no_connection(one_connection_database: Database, acme: Tenant) -> None:
    """Asking for a block costs nothing until it is entered."""
    unused = [one_connection_database.tenant_connection(acme) for _ in range(10)]

    assert await count_rows(one_connection_database, acme) == 0
    assert len(unused) == 10


async def test_block_cannot_be_entered_again(database: Database, acme: Tenant) -> None:
    """A block is one transaction; a second needs a second block."""
    block = database.tenant_connection(acme)
    async with block:
        pass

    with pytest.raises(RuntimeError, match="entered before"):
        async with block:
            pass


async def test_caught_sql_error_does_not_pass_for_success(database: Database, acme: Tenant) -> None:
    """A transaction doomed by an error that the block swallowed raises: its rows are not saved."""
    with pytest.raises(TransactionLostError, match="nothing was saved"):
        async with database.tenant_connection(acme) as connection:
            await connection.execute(INSERT)
            with pytest.raises(asyncpg.UndefinedTableError):
                await connection.execute("SELECT 1 FROM no_such_table")

    assert await count_rows(database, acme) == 0


async def test_sql_error_in_a_savepoint_leaves_the_block_alive(database: Database, acme: Tenant) -> None:
    """What is meant to fail goes into a savepoint."""
    async with database.tenant_connection(acme) as connection:
        await connection.execute(INSERT)
        with pytest.raises(asyncpg.UndefinedTableError):
            async with connection.transaction():
                await connection.execute("SELECT 1 FROM no_such_table")

    assert await count_rows(database, acme) == 1


async def test_commit_inside_the_block_is_an_error(database: Database, acme: Tenant) -> None:
    """After a commit of the handler's own there is no tenant any more, and the block says so."""
    with pytest.raises(TransactionLostError, match="ended inside the block"):
        async with database.tenant_connection(acme) as connection:
            await connection.execute("COMMIT")
            with pytest.raises(asyncpg.UndefinedTableError):
                await connection.fetchval(COUNT)


async def test_deferred_constraint_fails_the_block(one_connection_database: Database, acme: Tenant) -> None:
    """An error of COMMIT itself reaches the caller, and the connection stays usable."""
    async with one_connection_database.tenant_connection(acme) as connection:
        await connection.execute("CREATE TABLE once (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    with pytest.raises(asyncpg.UniqueViolationError):
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.execute("INSERT INTO once VALUES (1), (1)")

    assert await count_rows(one_connection_database, acme) == 0


async def test_cancelled_commit_keeps_the_connection(settings: Settings, database: Database, acme: Tenant) -> None:
    """The server is told to stop, and the same server process serves the next block, which sees nothing of this one."""
    # A busy machine may need more than the usual time.
    async with await WebLender.open(settings, max_size=1, timings=Timings(known=60, cleanup=DEADLINE)) as one:
        await cancel_commit(one, database, acme)


async def cancel_commit(one_connection_database: Database, database: Database, acme: Tenant) -> None:
    """Cancel a block on *one_connection_database* while it commits, and look at the next one."""
    async with one_connection_database.tenant_connection(acme) as connection:
        pid = connection.get_server_pid()
        await connection.execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql"
            " AS $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON company_data DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION wait()"
        )

    async def insert() -> None:
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.execute(INSERT)

    async def is_waiting() -> bool | None:
        async with database.connection() as connection:
            waits: bool | None = await connection.fetchval(
                "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1", pid
            )
        return waits

    task = asyncio.create_task(insert())
    await wait_until(is_waiting)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with one_connection_database.tenant_connection(acme) as connection:
        assert await connection.fetchval(COUNT) == 0
        assert connection.get_server_pid() == pid


async def test_exhausted_pool_is_told_apart(settings: Settings, acme: Tenant) -> None:
    """Waiting in vain for a connection is PoolExhaustedError, and the waiter costs the pool nothing."""
    impatient = Settings(database_url=settings.database_url, acquire_timeout=0.05)
    async with await WebLender.open(impatient, max_size=1) as database:
        async with database.tenant_connection(acme):
            with pytest.raises(PoolExhaustedError, match="all 1 connections"):
                async with database.tenant_connection(acme):
                    pass

        assert await count_rows(database, acme) == 0


async def test_slow_statement_is_ended(settings: Settings, acme: Tenant) -> None:
    """A statement longer than the command timeout is cancelled, also for who catches TimeoutError."""
    impatient = Settings(database_url=settings.database_url, command_timeout=0.05)
    async with await WebLender.open(impatient, max_size=1) as database:
        with pytest.raises(DatabaseTimeoutError) as caught:
            async with database.tenant_connection(acme) as connection:
                await connection.execute("SELECT pg_sleep(60)")

        assert isinstance(caught.value, TimeoutError)
        assert await count_rows(database, acme) == 0


async def test_backend_killed_between_blocks_is_not_noticed(
    one_connection_database: Database, database: Database, acme: Tenant
) -> None:
    """A pooled connection that died while idle is replaced: nothing had been done on it."""
    async with one_connection_database.tenant_connection(acme) as connection:
        pid = connection.get_server_pid()
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)

    assert await count_rows(one_connection_database, acme) == 0


async def test_backend_killed_inside_a_block_is_an_error(
    one_connection_database: Database, database: Database, acme: Tenant
) -> None:
    """A connection lost inside a block raises DatabaseUnavailableError; the pool is whole again."""
    with pytest.raises(DatabaseUnavailableError):
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.execute(INSERT)
            pid = connection.get_server_pid()
            async with database.connection() as killer:
                assert await killer.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
            await connection.execute(INSERT)

    assert await count_rows(one_connection_database, acme) == 0


async def test_backend_killed_before_the_commit_is_an_error(
    one_connection_database: Database, database: Database, acme: Tenant
) -> None:
    """A block that cannot commit never ends as if it had."""
    with pytest.raises(DatabaseUnavailableError):
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.execute(INSERT)
            async with database.connection() as killer:
                assert await killer.fetchval("SELECT pg_terminate_backend($1, 5000)", connection.get_server_pid())

    assert await count_rows(one_connection_database, acme) == 0


@pytest.mark.parametrize("kind", ["raised", "around a wait", "around a statement"])
async def test_apps_own_time_limit_is_not_the_databases(database: Database, acme: Tenant, kind: str) -> None:
    """It is the app's error and goes on its way: nobody is told that the database is slow."""
    with pytest.raises(TimeoutError) as caught:
        async with database.tenant_connection(acme) as connection:
            await connection.execute(INSERT)
            if kind == "raised":
                raise TimeoutError("the mail server did not answer")
            async with asyncio.timeout(0.01):
                await (asyncio.sleep(60) if kind == "around a wait" else connection.execute("SELECT pg_sleep(60)"))

    assert not isinstance(caught.value, TenantError)
    assert await count_rows(database, acme) == 0


async def test_users_error_keeps_its_type(database: Database, acme: Tenant) -> None:
    """Only a lost server is translated: a wrong argument stays asyncpg's own error."""
    with pytest.raises(asyncpg.DataError):
        async with database.tenant_connection(acme) as connection:
            await connection.fetchval("SELECT $1::int", "not a number")


async def test_missing_url_names_the_setting() -> None:
    """Without an address the error says which setting to give."""
    with pytest.raises(SettingError, match="QUART_TENANTS_DATABASE_URL"):
        await WebLender.open(Settings())


async def test_unreachable_server_is_unavailable(settings: Settings) -> None:
    """An address where nobody answers is DatabaseUnavailableError, with the setting to look at."""
    nowhere = Settings(database_url="postgresql://nobody@/nothing?host=/nonexistent")

    with pytest.raises(DatabaseUnavailableError, match="TENANTS_DATABASE_URL"):
        await WebLender.open(nowhere)


@pytest.mark.parametrize("act", ["execute", "fetch"])
async def test_error_inside_the_driver_costs_no_connection(
    one_connection_database: Database, acme: Tenant, act: str
) -> None:
    """Asyncpg closes a connection over text that is no Unicode; its place in the pool is not lost."""
    for _ in range(3):
        with pytest.raises((UnicodeEncodeError, DatabaseUnavailableError)):
            async with one_connection_database.tenant_connection(acme) as connection:
                await getattr(connection, act)("SELECT '\udcff'")

    assert await count_rows(one_connection_database, acme) == 0


async def test_block_entered_twice_at_once_takes_one_connection(
    one_connection_database: Database, acme: Tenant
) -> None:
    """Two tasks cannot enter one block: the second is refused, and no connection is lost."""
    block = one_connection_database.tenant_connection(acme)

    entered = await asyncio.gather(block.__aenter__(), block.__aenter__(), return_exceptions=True)
    await block.__aexit__(None, None, None)

    assert [type(result) for result in entered].count(RuntimeError) == 1
    assert await count_rows(one_connection_database, acme) == 0


async def test_servers_own_timeout_is_a_timeout(database: Database, acme: Tenant) -> None:
    """A statement that the server's statement_timeout ends is DatabaseTimeoutError, too."""
    with pytest.raises(DatabaseTimeoutError):
        async with database.tenant_connection(acme) as connection:
            await connection.execute("SET LOCAL statement_timeout TO 1")
            await connection.execute("SELECT pg_sleep(60)")


async def test_connection_without_a_tenant_sets_an_empty_path(database: Database) -> None:
    """The block itself empties the path, and does not rely on the connection's default, which a pooler may drop."""
    async with database.connection() as connection:
        await connection.execute("CREATE TABLE public.shared (id int)")
        source = await connection.fetchval("SELECT source FROM pg_settings WHERE name = 'search_path'")
        with pytest.raises(asyncpg.UndefinedTableError):
            async with connection.transaction():
                await connection.fetch("SELECT id FROM shared")

    assert source == "session"


async def test_missing_table_of_a_living_tenant_keeps_its_error(database: Database, acme: Tenant) -> None:
    """Only where the whole schema is gone the tenant is unknown; a wrong query stays the app's own bug."""
    with pytest.raises(asyncpg.UndefinedTableError):
        async with database.tenant_connection(acme) as connection:
            await connection.fetch("SELECT 1 FROM nowhere")


async def test_read_only_block_cannot_write(database: Database, acme: Tenant) -> None:
    """PostgreSQL refuses a write in a block that was asked for as read-only; the next block may write."""
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with database.tenant_connection(acme, read_only=True) as connection:
            await connection.execute("INSERT INTO company_data (description) VALUES ('x')")

    async with database.tenant_connection(acme) as connection:
        await connection.execute("INSERT INTO company_data (description) VALUES ('x')")


RUN_OUT = "DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '{}'; END $$"


@pytest.mark.parametrize("code", ["53000", "53100", "53200", "53400"])
async def test_server_without_room_is_no_bug(one_connection_database: Database, acme: Tenant, code: str) -> None:
    """A full disk, memory or table of the server is 503 with a code of its own; nothing is saved, and all goes on."""
    with pytest.raises(DatabaseFullError, match="no room left: no room") as caught:
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.execute(INSERT)
            await connection.execute(RUN_OUT.format(code))

    assert (caught.value.status, caught.value.code) == (503, "database_full")
    assert isinstance(caught.value.__cause__, asyncpg.InsufficientResourcesError)
    assert await count_rows(one_connection_database, acme) == 0


async def test_disk_that_is_full_at_the_end_saves_nothing(one_connection_database: Database, acme: Tenant) -> None:
    """The same holds for COMMIT, and the connection serves on."""
    async with one_connection_database.tenant_connection(acme) as connection:
        backend = await connection.fetchval("SELECT pg_backend_pid()")
        await connection.execute(
            "CREATE FUNCTION run_out() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END $$"
        )
        await connection.execute(
            "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON company_data DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION run_out()"
        )

    with pytest.raises(DatabaseFullError):
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.execute(INSERT)

    assert await count_rows(one_connection_database, acme) == 0
    async with one_connection_database.tenant_connection(acme) as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") == backend


async def test_other_refusals_stay_what_they_are(database: Database, acme: Tenant) -> None:
    """Control: an error that says nothing about the server's room is the driver's own, and a bug."""
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with database.tenant_connection(acme) as connection:
            await connection.execute("SELECT 1 / 0")


async def test_unknown_database_is_asked_for_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal that no other try could change is one try to connect."""
    connect = asyncpg.connect
    tries = []

    def count(*arguments: Any, **options: Any) -> Any:
        tries.append(1)
        return connect(*arguments, **options)

    monkeypatch.setattr(asyncpg, "connect", count)
    url = settings.required_database_url.replace("/qt_", "/missing_", 1)

    with pytest.raises(DatabaseUnavailableError, match="does not exist"):
        await WebLender.open(replace(settings, database_url=url))

    assert len(tries) == 1
