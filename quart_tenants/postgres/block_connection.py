"""A connection that knows about its block: BEGIN goes ahead of the first statement, and nobody waits for its answer."""

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg

from quart_tenants.errors import DatabaseUnavailableError
from quart_tenants.postgres.block_statements import (
    CHECKED_COMMIT,
    COMMIT,
    FORGET_STATEMENTS,
    REPEATED,
    RESET,
    RESET_AHEAD,
    ROLLBACK,
)
from quart_tenants.postgres.driver import DRIVER_ERRORS
from quart_tenants.postgres.messages import write_closes, write_preparation, write_statements
from quart_tenants.postgres.one_statement import OneStatementConnection
from quart_tenants.postgres.plain_reads import PlainReads
from quart_tenants.postgres.statement_cache import StatementCache, TenantKey

CLEANUP_TIMEOUT = 0.4
"""Seconds. What is to be cleaned up and is not by then is closed instead: a request that was cancelled waits for it."""

# Seconds. A connection that was well before answers BEGIN at once, or never.
_BEGIN_TIMEOUT = 1.0

# Its number, its age in seconds, and whether `_FIND_STRANGE_STATEMENTS` may be asked.
_GET_SERVER_PROCESS = """
SELECT pid AS number, EXTRACT(epoch FROM pg_catalog.clock_timestamp() - backend_start)::float8 AS age,
    pg_catalog.has_function_privilege('pg_catalog.pg_prepared_statement()', 'EXECUTE') AS may_look
FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()
    AND pg_catalog.current_setting('default_transaction_isolation') <> 'serializable'
"""

_GET_MEMORY = """
SELECT pg_catalog.sum(total_bytes)::float8 / 1048576 FROM pg_catalog.pg_backend_memory_contexts
"""

# What makes or drops prepared statements by SQL.
_NAMES_STATEMENTS = re.compile("prepare|deallocate|discard", re.IGNORECASE)
# One row if anybody else has prepared a statement by SQL, or deallocated one. In the same message as the reset.
_FIND_STRANGE_STATEMENTS = """
SELECT FROM (
    SELECT pg_catalog.count(*) AS known, pg_catalog.count(*) FILTER (WHERE from_sql) AS strange
    FROM pg_catalog.pg_prepared_statement()
) AS statements WHERE strange > 0 OR known <> {expected}
"""
_FOUND = "SELECT 1"

# What PostgreSQL says about a prepared statement that fits no more, or that somebody has deallocated. The last is
# asyncpg's: a type that it knows has changed.
_OUTDATED_ERRORS = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.OutdatedSchemaCacheError,
)
# What a kept statement may say where a column has another type now, and a new one would not.
_MISFIT_ERRORS = (asyncpg.DataError, asyncpg.SyntaxOrAccessError)

Replace: TypeAlias = Callable[[], Awaitable["BlockConnection"]]

NOBODY: TenantKey = (0, 0)
"""No tenant's, for blocks that write every name in full."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a block begins.

    Attributes:
        statements: BEGIN first.
        paths: What the server may say of search_path then; empty if it is not to be asked.
        read_only: Whether the server refuses every write.
        one_statement: Whether a text inside the block may hold one statement only.
        tenant: Whose; `NOBODY` for none.
    """

    statements: tuple[str, ...]
    paths: tuple[str, ...] = ()
    read_only: bool = False
    one_statement: bool = False
    tenant: TenantKey = NOBODY


class BlockConnection(OneStatementConnection):
    """A connection that runs one block after the other.

    asyncpg refuses `transaction()` in a transaction that it did not begin itself, and begins one by a
    message of its own; ours comes together with the path. So it is told that there is one (`_top_xact`).

    Attributes:
        generation: Of the pool, when this was opened.
        opened_in: Seconds that it took to open.
        proven: Whether a block began here before.
        altered: Whether a block has set what stays in the client, where no reset reaches it.
        direct: Whether this is the server's one client, with no pooler in between.
        unreset: Whose blocks have only read since everything was reset; None for nobody's.
        unsettled: Whether the answer to what was sent last is still to come.
        begun: Whether anything of the block was sent.
        tenants: The tenants that were here.
        weigh_at: How many they are to be when the server process is weighed next.
        place: In the pool.
        pool_proxy: As which asyncpg's pool knows it.
        used_at: When the last block ended, by the event loop's clock.
    """

    __slots__ = (
        "_beginning",
        "_by_name",
        "_failed",
        "_lasting",
        "_may_look",
        "_named",
        "_plain",
        "_plain_reads",
        "_replace",
        "_reports_path",
        "_running",
        "_savepoints",
        "_statements",
        "_tame",
        "_waiting",
        "_whole",
        "altered",
        "begun",
        "direct",
        "generation",
        "opened_in",
        "place",
        "pool_proxy",
        "proven",
        "tenants",
        "unreset",
        "unsettled",
        "used_at",
        "weigh_at",
    )
    _top_xact: asyncpg.transaction.Transaction | None
    _loop: asyncio.AbstractEventLoop
    _protocol: Any
    _transport: asyncio.WriteTransport
    _query_loggers: set[Any]
    _termination_listeners: set[Any]
    _listeners: dict[str, Any]
    _log_listeners: set[Any]
    _stmts_to_close: set[Any]
    _drop_global_type_cache: Any
    _pool_release_ctr: int
    _get_unique_id: Any
    _config: Any
    _proxy: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.generation = 0
        self.opened_in = 0.0
        self.proven = False
        self.altered = False
        self.direct = False
        self.unreset: int | None = None
        self.begun = False
        self.tenants: set[int] = set()
        self.weigh_at = 0
        self.used_at = float("-inf")
        self.place = 0
        self.pool_proxy: Any = None
        self.unsettled = False
        # All that asyncpg asks about the outermost transaction is whether there is one.
        self._whole = super().transaction()
        # Those that were asked for before the first statement.
        self._savepoints: list[Any] = []
        self._lasting: tuple[frozenset[Any], frozenset[Any]] = frozenset(), frozenset()
        self._statements: StatementCache | None = None
        self._plain_reads = PlainReads()
        self._replace: Replace = _has_no_other
        self._reports_path = hasattr(self._protocol.get_settings(), "search_path")
        # How the block begins, and what of it was not sent yet.
        self._beginning = Beginning(())
        self._waiting: tuple[str, ...] | None = None
        # Whether all statements of the block are known to have only read.
        self._plain = False
        # Whether all work on rows only, and nobody can have named a statement unseen.
        self._tame = False
        # Whether the login may see its prepared statements.
        self._may_look = False
        # How many run now. Handlers have tasks that outlive their block.
        self._running = 0
        # Whether one has failed.
        self._failed = False
        # Whether the block may have prepared a statement by SQL, under a name that nobody knows.
        self._by_name = False
        # Statements that the driver has prepared for the block only.
        self._named: list[str] = []

    @property
    def itself(self) -> "BlockConnection":
        """This, also when it is asked of the pool's proxy, which forgets whom it stands for."""
        return self

    def use_directly(self, plain_reads: PlainReads, cache_size: int) -> None:
        """Be told that no pooler stands in between: messages may go ahead, and statements be kept."""
        self.direct = True
        self._plain_reads = plain_reads
        self._transport.write(write_preparation())
        if cache_size:
            self._statements = StatementCache(cache_size)

    async def is_direct(self, opened_at: float) -> bool:
        """Return whether this is the server's one client, with no pooler in between.

        A pooler makes up the number of a server process, or lends one that is older than our connection. Should one
        get through: it would be held longer than it likes, and nobody would see a foreign row. Nor is one direct whose
        transactions are serializable: what was read there is true only if COMMIT says so.

        Args:
            opened_at: When it began to be opened, by the monotonic clock.
        """
        await self._run("BEGIN", None)
        try:
            server = await self.fetchrow(_GET_SERVER_PROCESS)
        finally:
            await self._run("ROLLBACK", None)
        if server is None:
            return False
        self._may_look = server["may_look"]
        is_ours: bool = server["number"] == self.get_server_pid() and server["age"] <= time.monotonic() - opened_at
        return is_ours

    def keep_as_it_is(self) -> None:
        """Take what was set so far for what every block is to have."""
        self.altered = False
        self._lasting = frozenset(self._query_loggers), frozenset(self._termination_listeners)

    def let_go(self) -> None:
        """Take away from the last block's handler what it may have kept, and what it has made to be called."""
        # What asyncpg's cursors, statements and transactions compare with when they were made.
        self._pool_release_ctr += 1
        if not self._plain:
            # Those were closed at the end of the block.
            self._stmts_to_close.clear()
            self._listeners.clear()
        if self._log_listeners:
            self._log_listeners.clear()
        loggers, listeners = self._lasting
        if self._query_loggers != loggers or self._termination_listeners != listeners:
            self._query_loggers, self._termination_listeners = set(loggers), set(listeners)

    async def find_memory(self) -> float | None:
        """Return how many megabytes the server process has, or None where the login may not ask. Outside a block.

        Raises the driver's errors.
        """
        await self.settle()
        self._turn_to(Beginning(()))
        try:
            return float(await self.fetchval(_GET_MEMORY))
        except asyncpg.InsufficientPrivilegeError:
            return None

    def count_queries(self) -> int:
        """Return how many statements were sent."""
        count: int = self._protocol.queries_count
        return count

    def plan_block(self, beginning: Beginning, replace: Replace) -> None:
        """Let a block begin as *beginning* says when its first statement comes. Sends nothing.

        Args:
            beginning: How.
            replace: Called if this connection turns out to be dead; returns another one, on which the block has begun.
        """
        self._replace = replace
        self._waiting = self._turn_to(beginning) + beginning.statements
        self.one_statement = beginning.one_statement
        self._top_xact = self._whole

    async def begin_block(self, beginning: Beginning, first: str, seconds: float, *, quick: bool) -> str:
        """Begin a block now; return the status of the last statement.

        Args:
            beginning: How.
            first: SQL that goes with it; may be empty.
            seconds: It may take.
            quick: Whether nothing waits for anything, so that it can be given up early and begun anew.
        """
        if quick and self.proven:
            seconds = min(_BEGIN_TIMEOUT, seconds / 2)
        statements = self._turn_to(beginning) + beginning.statements
        if first:
            statements += (first,)
            self._plain = False
        self._note_begin()
        status = await self._run("; ".join(statements), seconds)
        self.proven = True
        self.one_statement = beginning.one_statement
        self._top_xact = self._whole
        return status

    def leave_block(self, *, commit: bool) -> bool:
        """End the block without waiting, if nothing can be lost by that; return whether it is ended.

        Where it only read, nobody needs the answer to COMMIT, which comes with that of the next statement.
        """
        if self.begun:
            only_read = self._plain or (self._beginning.read_only and self._tame)
            if not self.direct or not only_read or self._failed or self._running:
                return False
            if self.is_closed() or not self._protocol.is_in_transaction():
                return False
            end: tuple[str, ...] = (COMMIT,) if commit else (ROLLBACK,)
            if not self._plain:
                end += RESET_AHEAD
            self.unreset = self._beginning.tenant[0] if self._plain else None
            self.unsettled = True
            self._transport.write(self._close_named() + write_statements(*end))
        self._top_xact = None
        self._waiting = None
        self.one_statement = False
        return True

    async def end_block(self, *, commit: bool, seconds: float | None = None) -> None:
        """End the block, and reset everything."""
        self._top_xact = None
        self._waiting = None
        self.one_statement = False
        statements = (*(CHECKED_COMMIT if commit else (ROLLBACK,)), *RESET)
        forgets = self._by_name or not self.direct or not (self._tame or self._may_look)
        if forgets:
            # No name of a handler's own may be left. Behind a pooler there is none of ours.
            statements += (FORGET_STATEMENTS,)
            if self._statements is not None:
                self._statements.forget_all()
        if not self.is_closed():
            self._transport.write(self._close_named())
        looks = not forgets and not self._tame
        if looks:
            expected = len(REPEATED) + (0 if self._statements is None else len(self._statements))
            statements += (_FIND_STRANGE_STATEMENTS.format(expected=expected),)
        status = await self._run("; ".join(statements), seconds)
        self.unreset, self.unsettled = None, False
        if looks and status == _FOUND:
            await self._run(FORGET_STATEMENTS, CLEANUP_TIMEOUT)
            forgets = True
            if self._statements is not None:
                self._statements.forget_all()
        if forgets and self.direct:
            self._transport.write(write_preparation())

    async def settle(self) -> None:
        """Reset what was left unreset, and hear of what was sent last. Raises the driver's errors.

        PostgreSQL shows the connection as active until then.
        """
        await self._run("; ".join(RESET), CLEANUP_TIMEOUT)
        self.unreset, self.unsettled = None, False

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109  (asyncpg's)
        """Execute *query*, as asyncpg does it."""
        self._look_at(query, reads=False)
        self._running += 1
        try:
            driver = await self._begin_apart()
            if driver is not self:
                for savepoint in self._savepoints:
                    # The one that is being made is to end where it begins.
                    savepoint._connection = driver  # noqa: SLF001
                    savepoint._con_release_ctr = driver._pool_release_ctr  # noqa: SLF001
                return await driver.execute(query, *args, timeout=timeout)
            return await super().execute(query, *args, timeout=timeout)
        finally:
            self._running -= 1

    def transaction(self, **options: Any) -> Any:
        """Return a savepoint, as asyncpg does it in a transaction."""
        savepoint: Any = super().transaction(**options)
        if self._waiting is not None:
            self._savepoints.append(savepoint)
        return savepoint

    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        """Set it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        await super().set_type_codec(*args, **options)

    async def reset_type_codec(self, *args: Any, **options: Any) -> None:
        """Reset it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        await super().reset_type_codec(*args, **options)

    async def set_builtin_type_codec(self, *args: Any, **options: Any) -> None:
        """Set it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        await super().set_builtin_type_codec(*args, **options)

    def is_in_transaction(self) -> bool:
        """Return whether there is one, also before its first statement."""
        return self._waiting is not None or super().is_in_transaction()

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  (overrides asyncpg's)
        """Close it, politely if that is quick. Raises nothing but a cancellation: it is closed either way."""
        with contextlib.suppress(*DRIVER_ERRORS):
            await super().close(timeout=CLEANUP_TIMEOUT if timeout is None else min(timeout, CLEANUP_TIMEOUT))

    def _turn_to(self, beginning: Beginning) -> tuple[str, ...]:
        """Make ready for a block; return the statements that have to go before its own."""
        self._beginning = beginning
        tenant = beginning.tenant
        self.begun = self._failed = self._by_name = False
        self._plain = self._tame = self.direct
        self._savepoints.clear()
        self.tenants.add(tenant[0])
        if self._statements is not None:
            self._statements.turn_to(tenant)
        return () if self.unreset is None or self.unreset == tenant[0] else RESET_AHEAD

    def _note_begin(self) -> None:
        """Note that what `_turn_to` has said is sent now."""
        self.begun = True
        if self.unreset != self._beginning.tenant[0]:
            self.unreset = None

    def _close_named(self) -> bytes:
        """Return the messages that close what this block has prepared, and what is not kept any longer."""
        if self._statements is not None:
            self._named += self._statements.take_dropped()
        if not self._named:
            return b""
        names, self._named = self._named, []
        return write_closes(names)

    def _begin_ahead(self) -> None:
        """Send what begins the block ahead of a statement that follows at once, and is answered with it."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self._note_begin()
            self._transport.write(write_statements(*waiting))

    async def _begin_apart(self) -> "BlockConnection":
        """Begin the block by a message of its own, before what is not to be sent twice; return who has begun it.

        Raises:
            DatabaseUnavailableError: Nobody has.
        """
        if self._waiting is None:
            return self
        waiting, self._waiting = self._waiting, None
        self._note_begin()
        try:
            await self._run("; ".join(waiting), _BEGIN_TIMEOUT)
        except (TimeoutError, *DRIVER_ERRORS):
            self._failed = True
            return await self._replace()
        return self

    async def _begin_here(self) -> None:
        """Begin the block by a message of its own, on this connection.

        Raises:
            DatabaseUnavailableError: It is dead.
        """
        if await self._begin_apart() is not self:
            raise DatabaseUnavailableError("the connection to the database was lost before the block began", lost=True)

    async def _run(self, statements: str, seconds: float | None) -> str:
        """Run *statements* by the simple protocol, as asyncpg's own execute() does."""
        status: str = await self._protocol.query(statements, seconds)
        return status

    async def _execute(
        self,
        query: str,
        args: Any,
        limit: int,
        timeout: float | None,  # noqa: ASYNC109  (asyncpg's)
        *,
        return_status: bool = False,
        ignore_custom_codec: bool = False,
        record_class: Any = None,
    ) -> Any:
        """Run *query*, as asyncpg does it: what fetch(), fetchrow(), fetchval() and execute() with arguments call."""
        self._look_at(query, reads=not return_status)
        options = {
            "return_status": return_status,
            "ignore_custom_codec": ignore_custom_codec,
            "record_class": record_class,
        }
        self._running += 1
        try:
            return await self._execute_in_block(query, args, limit, timeout, **options)
        finally:
            self._running -= 1

    async def _execute_in_block(
        self,
        query: str,
        args: Any,
        limit: int,
        timeout: float | None,  # noqa: ASYNC109  (asyncpg's)
        **options: Any,
    ) -> Any:
        if self._waiting is None or not self._plain or query in self._plain_reads.slow:
            driver = await self._begin_apart()
            if driver is not self:
                return await driver._execute(query, args, limit, timeout, **options)  # noqa: SLF001  (of its own class)
            return await self._execute_prepared(query, args, limit, timeout, **options)
        # It only reads, so it may be run twice: BEGIN goes with it, and if that was a bad idea all begins elsewhere.
        limit_given = self._config.command_timeout if timeout is None else timeout
        patience = min(limit_given, _BEGIN_TIMEOUT)
        try:
            self._begin_ahead()
            rows = await self._execute_prepared(query, args, limit, patience, **options)
            if self._reports_path:
                self._check_path()
            return rows
        except TimeoutError:
            if patience == limit_given:
                raise
            self._plain_reads.slow.add(query)
        except _OUTDATED_ERRORS:
            if self.is_closed():
                raise
        except DRIVER_ERRORS:
            if not self.is_closed() and self._protocol.is_in_transaction():
                raise
            # Not even BEGIN was run: the server is lost, or the end of the block before has failed.
        driver = await self._replace()
        return await driver._execute(query, args, limit, timeout, **options)  # noqa: SLF001  (of its own class)

    async def _execute_prepared(
        self,
        query: str,
        args: Any,
        limit: int,
        timeout: float | None,  # noqa: ASYNC109  (asyncpg's)
        *,
        return_status: bool,
        **options: Any,
    ) -> Any:
        kept = None
        if self._statements is not None and not (any(options.values()) or self._query_loggers):
            kept = self._statements.find(query, args)
        try:
            if kept is None:
                return await super()._execute(query, args, limit, timeout, return_status=return_status, **options)
            return await self._protocol.bind_execute(kept, args, "", limit, return_status, timeout)
        except BaseException as error:
            self._failed = True
            if isinstance(error, _OUTDATED_ERRORS):
                self._forget_outdated(error)
            elif self._statements is not None and isinstance(error, _MISFIT_ERRORS):
                self._statements.forget(query)
            raise

    async def _get_statement(
        self,
        query: str,
        timeout: float | None,  # noqa: ASYNC109  (asyncpg's)
        *,
        named: str | bool = False,
        use_cache: bool = True,
        ignore_custom_codec: bool = False,
        record_class: Any = None,
    ) -> Any:
        """Return *query* prepared: kept from before for this tenant, or new. All that is prepared comes by here."""
        if named or not use_cache or not self._running:
            # A cursor's, prepare()'s or copy's: what is done with it does not come by here.
            self._look_at(query, reads=False)
            self._tame = False
        await self._begin_here()
        options = {"ignore_custom_codec": ignore_custom_codec, "record_class": record_class}
        statements = self._statements
        keeps = use_cache and not named and record_class is None and not ignore_custom_codec
        if statements is None or not keeps or not statements.takes(query):
            # What is kept and fits is not asked for here.
            name = named if isinstance(named, str) else self._get_unique_id("stmt") if named else ""
            if name:
                # Before it is there: it is closed also if the answer is never heard.
                self._named.append(name)
            return await super()._get_statement(query, timeout, named=name, use_cache=False, **options)
        # Ahead of what is prepared now, for a block may be long.
        self._transport.write(write_closes(statements.take_dropped()))
        # A name that no other client has: should a pooler swap the server process, this one finds none.
        name = f"quart_tenants_{secrets.token_hex(8)}"
        try:
            statement = await super()._get_statement(query, timeout, named=name, use_cache=False, **options)
        except BaseException:
            self._named.append(name)
            raise
        statements.keep(query, statement)
        return statement

    async def _executemany(self, query: str, *args: Any, **options: Any) -> Any:
        self._look_at(query, reads=False)
        return await super()._executemany(query, *args, **options)  # type: ignore[misc]

    async def _copy_out(self, copy_stmt: str, output: Any, timeout: float | None) -> str:  # noqa: ASYNC109
        self._look_at(copy_stmt, reads=False)
        await self._begin_here()
        return await super()._copy_out(copy_stmt, output, timeout)

    async def _copy_in(self, copy_stmt: str, source: Any, timeout: float | None) -> str:  # noqa: ASYNC109
        self._look_at(copy_stmt, reads=False)
        await self._begin_here()
        return await super()._copy_in(copy_stmt, source, timeout)

    def _look_at(self, query: str, *, reads: bool) -> None:
        """Take note of what *query* may do."""
        if self._plain and not (reads and query in self._plain_reads):
            self._plain = False
        if self._tame and not self._plain and not self._plain_reads.is_tame(query):
            self._tame = False
        if not self._tame and not self._by_name:
            self._by_name = _NAMES_STATEMENTS.search(query) is not None

    def _check_path(self) -> None:
        """Make sure that the server saw the path that was sent. It says so itself, from PostgreSQL 18 on.

        Raises:
            DatabaseUnavailableError: It did not. The connection is closed.
        """
        reported = self._protocol.get_settings().search_path
        if self._beginning.paths and reported not in self._beginning.paths:
            self.terminate()
            raise DatabaseUnavailableError(
                f"the server says that search_path is {reported!r}, where {self._beginning.paths[-1]} was set",
                lost=True,
            )

    def _forget_outdated(self, error: Exception) -> None:
        if self._statements is None:
            return
        if isinstance(error, asyncpg.OutdatedSchemaCacheError):
            self._drop_global_type_cache()
            self._statements.forget_tenant()
        elif isinstance(error, asyncpg.InvalidCachedStatementError):
            self._statements.forget_tenant()
        else:
            # Somebody has deallocated it, and perhaps others.
            self._statements.forget_all()
            self._by_name = True

    def _drop_local_statement_cache(self) -> None:
        super()._drop_local_statement_cache()  # type: ignore[misc]
        if self._statements is not None:
            self._statements.forget_tenant()

    def _drop_global_statement_cache(self) -> None:
        # Those of other connections find out for themselves, and there is nothing wrong with those of other tenants.
        self._drop_local_statement_cache()

    def _cancel_current_command(
        self, waiter: "asyncio.Future[None]", cancel_waiter: "asyncio.Future[None] | None" = None
    ) -> None:
        super()._cancel_current_command(waiter, cancel_waiter)  # type: ignore[misc]
        # asyncpg would wait as long as for a statement, such as in the rollback of a savepoint.
        if cancel_waiter is not None:
            self._loop.call_later(CLEANUP_TIMEOUT, self._give_up_unless, cancel_waiter)

    def _give_up_unless(self, cancelled: "asyncio.Future[None]") -> None:
        if not cancelled.done():
            self.terminate()


async def _has_no_other() -> BlockConnection:
    raise DatabaseUnavailableError("the connection to the database was lost before the block began", lost=True)
