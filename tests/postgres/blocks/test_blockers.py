"""Whoever waits for a lock is told who has it, and lets others pass between two short tries."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from quart_tenants.errors import DatabaseTimeoutError, MigrationFailedError
from quart_tenants.postgres.blocks import short_waits
from quart_tenants.postgres.blocks.blockers import Blocker, find_blockers, watch_waits
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.short_waits import ShortWaits
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.sql_parser import hide_literals
from tests.postgres.conftest import Role
from tests.support.patience import wait_until

ENDLESS = 10**6  # tries
LOCK = "LOCK TABLE public.plans IN ACCESS EXCLUSIVE MODE"
READ = "SELECT count(*) FROM public.plans WHERE name <> 'a secret'"


@pytest.fixture
async def reader(database: Database, database_url: str) -> AsyncIterator[DriverConnection]:
    """A session that has read the table `plans`, and keeps its transaction open."""
    async with database.connection() as connection:
        await connection.execute("CREATE TABLE public.plans (name text)")
    reader = await asyncpg.connect(database_url)
    await reader.execute("BEGIN")
    await reader.execute(READ)
    try:
        yield reader
    finally:
        await reader.close()


def explain(reason: str) -> DatabaseTimeoutError:
    """Return an error with *reason*."""
    return DatabaseTimeoutError(reason)


async def test_blocker_is_named_with_its_time_and_its_statement(
    database: Database, database_url: str, reader: DriverConnection
) -> None:
    """The answer has the table, the process, the age of its transaction and its last statement without values."""
    waiting = await asyncpg.connect(database_url)
    pid = await waiting.fetchval("SELECT pg_backend_pid()")
    await waiting.execute("BEGIN")
    lock = asyncio.create_task(waiting.execute(LOCK))

    async def find() -> list[Blocker]:
        async with database.connection() as connection:
            return await find_blockers(connection, pid)

    (blocker,) = await wait_until(find)
    await reader.execute("COMMIT")
    await lock

    assert blocker.pid == reader.get_server_pid()
    assert blocker.what == "table public.plans is in use"
    assert blocker.seconds is not None
    assert "(idle in transaction: SELECT count(*) FROM public.plans WHERE name <> …)" in str(blocker)
    assert "secret" not in str(blocker)
    assert await find() == []
    await waiting.close()


async def test_blocker_of_another_role_is_named_by_its_process(
    database: Database, database_url: str, reader: DriverConnection, role: Role
) -> None:
    """A role that may not see what others do is told which process of which role it is, and nothing that is wrong."""
    async with database.connection() as connection:
        await connection.execute(f"GRANT ALL ON public.plans TO {role.name}")
    waiting = await asyncpg.connect(role.put_into(database_url))
    pid = await waiting.fetchval("SELECT pg_backend_pid()")
    await waiting.execute("BEGIN")
    lock = asyncio.create_task(waiting.execute(LOCK))
    looking = await asyncpg.connect(role.put_into(database_url))

    (blocker,) = await wait_until(lambda: find_blockers(looking, pid))
    await reader.execute("COMMIT")
    await lock

    assert (blocker.pid, blocker.state, blocker.seconds) == (reader.get_server_pid(), None, None)
    assert str(blocker).startswith(f"table public.plans is in use by pid {blocker.pid} of role ")
    await waiting.close()
    await looking.close()


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT 'a', 1.5, $$b$$, e'c', x'ff', $1 FROM t -- d", "SELECT …, …, …, …, …, $1 FROM t"),
        ("EXECUTE login('a secret')", "EXECUTE login(…)"),
        ("CREATE SUBSCRIPTION s CONNECTION 'password=x'", "CREATE SUBSCRIPTION s CONNECTION …"),
        ('SELECT "ä" /* ö */ FROM\n t', 'SELECT "ä" FROM t'),
        ("UPDATE t SET password = 'cut of", "UPDATE …"),
        ("", ""),
    ],
)
def test_statement_is_shown_without_its_values(statement: str, shown: str) -> None:
    """A literal may be a secret, also in a text that was cut off."""
    assert hide_literals(statement) == (shown or "")


async def test_others_read_between_two_tries(
    database: Database,
    database_url: str,
    reader: DriverConnection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a transaction cannot get its lock, new readers are served; when the old one has ended, it gets it."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", ENDLESS)
    tries = ShortWaits(database, explain)
    begun = 0
    second = asyncio.Event()

    async def lock() -> str:
        nonlocal begun
        while True:
            async with tries.try_once() as connection:
                begun += 1
                if begun == 2:
                    second.set()
                await connection.execute(LOCK)
                return "locked"

    locking = asyncio.create_task(lock())
    await second.wait()
    other = await asyncpg.connect(database_url)
    # Each of them begins at another moment of a try or a pause, and the old reader is still there.
    for _ in range(5):
        assert await other.fetchval(READ) == 0
    assert not locking.done()
    await reader.execute("COMMIT")

    assert await locking == "locked"
    await other.close()


async def test_one_long_wait_lets_no_other_reader_pass(database_url: str, reader: DriverConnection) -> None:
    """Negative control: a new reader waits behind whoever waits for a strong lock, until the old reader has ended."""
    waiting, other, looking = [await asyncpg.connect(database_url) for _ in range(3)]
    await waiting.execute("BEGIN")
    lock = asyncio.create_task(waiting.execute(LOCK))
    await wait_until(lambda: find_blockers(looking, waiting.get_server_pid()))

    reading = asyncio.create_task(other.fetchval(READ))
    (blocker,) = await wait_until(lambda: find_blockers(looking, other.get_server_pid()))

    assert blocker.pid == waiting.get_server_pid()
    assert not reading.done()
    await reader.execute("COMMIT")
    await lock
    await waiting.execute("COMMIT")
    assert await reading == 0
    for connection in (waiting, other, looking):
        await connection.close()


async def test_end_of_patience_says_who_was_in_the_way(
    database: Database, reader: DriverConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's error has the reason, and nothing of the transaction is done."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", 5)
    tries = ShortWaits(database, explain)

    with pytest.raises(DatabaseTimeoutError, match=rf"table public\.plans is in use by pid {reader.get_server_pid()} "):
        while True:
            async with tries.try_once() as connection:
                await connection.execute("CREATE TABLE public.half ()")
                await connection.execute(LOCK)

    async with database.connection() as connection:
        assert await connection.fetchval("SELECT to_regclass('public.half')") is None


async def test_last_try_raises_its_own_error(database: Database, reader: DriverConnection) -> None:
    """What must not run twice is not tried again."""
    tries = ShortWaits(database, explain)
    runs = 0

    with pytest.raises(asyncpg.LockNotAvailableError):
        while True:
            async with tries.try_once() as connection:
                await tries.make_last(connection)
                assert await connection.fetchval("SHOW lock_timeout") == "0"
                runs += 1
                await connection.execute(f"{LOCK} NOWAIT")

    assert runs == 1


async def test_lock_that_the_commit_needs_is_an_error(
    database: Database, reader: DriverConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that was left and could not be committed is never taken for done."""
    tries = ShortWaits(database, explain)
    await reader.execute("COMMIT")
    async with database.connection() as connection:
        await connection.execute("CREATE TABLE public.kinds (id int PRIMARY KEY); INSERT INTO public.kinds VALUES (1)")
        await connection.execute(
            "CREATE TABLE public.things (kind int REFERENCES public.kinds DEFERRABLE INITIALLY DEFERRED)"
        )
    await reader.execute("BEGIN; UPDATE public.kinds SET id = 2")

    async def insert() -> str:
        while True:
            async with tries.try_once() as connection:
                await connection.execute("INSERT INTO public.things VALUES (1)")
                return "inserted"

    with pytest.raises(DatabaseTimeoutError):
        await insert()

    async with database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM public.things") == 0


async def test_other_errors_are_not_tried_again(database: Database) -> None:
    """An error that is no lock's ends the tries at once."""
    tries = ShortWaits(database, explain)

    with pytest.raises(MigrationFailedError, match="no such thing"):
        while True:
            async with tries.try_once():
                raise MigrationFailedError("acme", "0001_a.sql", "no such thing")


async def test_watch_says_so_where_it_cannot_look(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that gives no further connection does not end what is watched."""
    monkeypatch.setattr(asyncpg, "connect", _refuse)

    async with database.connection() as connection, watch_waits(database, connection) as watch:
        assert await connection.fetchval("SELECT 1") == 1

    assert watch.seen.startswith("whoever is in the way cannot be seen: ")
    assert "too many" in watch.seen


async def _refuse(*_: object, **__: object) -> None:
    raise asyncpg.TooManyConnectionsError("too many clients already")
