"""Find out who is in the way of a session that waits for a lock."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from quart_tenants.connection import Connection
from quart_tenants.errors import DatabaseUnavailableError
from quart_tenants.long_lists import name_some
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS, DriverConnection, describe

# $1 the waiting session. The server shows what other roles do only to members of pg_read_all_stats. A transaction that
# was prepared for two phases has the number 0.
_FIND_BLOCKERS = """
SELECT
    blocking.pid,
    CASE
        WHEN w.locktype IN ('relation', 'extend', 'page')
            THEN pg_catalog.format('table %I.%I is in use', n.nspname, c.relname)
        WHEN w.locktype = 'tuple' THEN pg_catalog.format('a row of table %I.%I is locked', n.nspname, c.relname)
        WHEN w.locktype = 'transactionid' THEN 'a row, or a name, is being changed'
        WHEN w.locktype = 'virtualxid' THEN 'an older transaction is open'
        WHEN w.locktype = 'advisory' THEN 'an advisory lock is held'
        ELSE pg_catalog.format('something (%s) is in use', w.locktype)
    END AS what,
    a.usename::text AS role,
    a.application_name AS application,
    a.state,
    extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)::float8 AS seconds,
    a.query
FROM pg_catalog.pg_locks AS w
LEFT JOIN pg_catalog.pg_class AS c ON c.oid = w.relation
LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN (SELECT DISTINCT pid FROM unnest(pg_catalog.pg_blocking_pids($1)) AS u (pid)) AS blocking
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = blocking.pid
WHERE w.pid = $1 AND NOT w.granted
ORDER BY a.xact_start NULLS LAST, blocking.pid
"""
_GET_PID = "SELECT pg_catalog.pg_backend_pid()"
_FIND_PROGRAM = """
SELECT pid FROM pg_catalog.pg_stat_activity
WHERE application_name = $1 AND datname = pg_catalog.current_database() AND state <> 'idle'
"""
_LOOK_EVERY = 0.02  # seconds; each look stops the server's lock manager for a moment
_LOOK_AT_PROGRAM_EVERY = 0.1  # seconds; a program waits longer, and may run for hours
_LONGEST_QUERY = 80  # characters


@dataclass(frozen=True, slots=True)
class Blocker:
    """A session that holds what another one waits for, or waits for it in front of it.

    Attributes:
        pid: The process of the session in the server; 0 for a prepared transaction.
        what: What is waited for, such as `table common.plans is in use`.
        role: The role of the session; None if the session is gone or there is none.
        application: What the program of the session calls itself; None if this role may not see that.
        state: What it does, such as `idle in transaction`; None if this role may not see that.
        seconds: For how long its transaction is open; None if this role may not see that.
        query: Its last statement as the server shows it, which may hold values.
    """

    pid: int
    what: str
    role: str | None
    application: str | None
    state: str | None
    seconds: float | None
    query: str | None

    def __str__(self) -> str:
        if self.pid == 0:
            return f"{self.what} by a prepared transaction (see pg_prepared_xacts)"
        told = f"{self.what} by pid {self.pid}"
        if self.role is not None:
            told += f" of role {self.role}"
        if self.application:
            told += f" in {self.application}"
        if self.seconds is None or self.state is None:
            return told
        return f"{told} for {self.seconds:.1f} s ({self.state}: {_shorten(self.query or '')})"


def describe_blockers(blockers: list[Blocker]) -> str:
    """Return a sentence about *blockers*, without the values in their statements."""
    return name_some([str(blocker) for blocker in blockers], most=3)


async def find_blockers(connection: Connection | DriverConnection, pid: int) -> list[Blocker]:
    """Return who is in the way of the session *pid*, the oldest transaction first; nobody if it does not wait now.

    Args:
        connection: Any other connection to the same server.
        pid: From `pg_backend_pid()` of the session that waits.
    """
    return [Blocker(**dict(row)) for row in await connection.fetch(_FIND_BLOCKERS, pid)]


class Watch:
    """What an onlooker has seen: `seen` is a sentence about who was last in the way; empty if nobody was."""

    seen = ""


@contextlib.asynccontextmanager
async def watch_waits(database: Database, connection: Connection | DriverConnection) -> AsyncIterator[Watch]:
    """Look again and again, on a connection of its own, for what the statements on *connection* wait for.

    An error cannot say that: when it arrives, the wait is over. If the database gives no further connection, `seen`
    says so, and the block goes on. The connection is closed with the block, also after a cancellation.
    """
    pid: int = await connection.fetchval(_GET_PID)
    async with _watch(database, _LOOK_EVERY, pid) as watch:
        yield watch


def watch_program(database: Database, application: str) -> AbstractAsyncContextManager[Watch]:
    """Do what `watch_waits` does for the session of another program.

    Args:
        database: The database that both are connected to.
        application: What that program, and no other one, calls itself.
    """
    return _watch(database, _LOOK_AT_PROGRAM_EVERY, application)


@contextlib.asynccontextmanager
async def _watch(database: Database, every: float, whom: int | str) -> AsyncIterator[Watch]:
    """Look again after *every* seconds for whom the session *whom* waits, by its number or by its program's name."""
    watch, ended = Watch(), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        looking = None
        try:
            # Opened before the block runs: a wait may be shorter than it takes to connect.
            onlooker = await stack.enter_async_context(database.plain_session())
        except DatabaseUnavailableError as error:
            watch.seen = f"whoever is in the way cannot be seen: {error}"
        else:
            looking = asyncio.create_task(_look(onlooker, whom, watch, ended, every))
        try:
            yield watch
        finally:
            ended.set()
            if looking is not None:
                await looking


async def _look(onlooker: DriverConnection, whom: int | str, watch: Watch, ended: asyncio.Event, every: float) -> None:
    try:
        while not ended.is_set():
            pid = whom if isinstance(whom, int) else await onlooker.fetchval(_FIND_PROGRAM, whom)
            blockers = [] if pid is None else await find_blockers(onlooker, pid)
            if blockers:
                watch.seen = describe_blockers(blockers)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), every)
    except DRIVER_ERRORS as error:
        watch.seen = watch.seen or f"whoever is in the way cannot be seen: {describe(error)}"


def _shorten(query: str) -> str:
    # Imported here, because loading the parser takes a tenth of a second.
    from quart_tenants.sql_parser import hide_literals

    shown = hide_literals(query)
    return shown if len(shown) <= _LONGEST_QUERY else f"{shown[:_LONGEST_QUERY]}…"
