"""A connection that knows about its block: what only reads is one message, and the rest is a transaction."""

import re
import secrets
from collections.abc import Awaitable, Callable
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
    Beginning,
)
from quart_tenants.postgres.driver import DRIVER_ERRORS
from quart_tenants.postgres.messages import write_closes, write_preparation, write_statements
from quart_tenants.postgres.plain_reads import PlainReads
from quart_tenants.postgres.pooled_connection import CLEANUP_TIMEOUT, PooledConnection
from quart_tenants.postgres.statement_cache import StatementCache

# Seconds. A connection that was well before answers BEGIN at once, or never.
_BEGIN_TIMEOUT = 1.0

_GET_MEMORY = """
SELECT pg_catalog.sum(total_bytes)::float8 / 1048576 FROM pg_catalog.pg_backend_memory_contexts
"""

_COMMIT_MESSAGE = write_statements(COMMIT)
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


class BlockConnection(PooledConnection):
    """A connection that runs one block after the other.

    asyncpg refuses `transaction()` in a transaction that it did not begin itself, and begins one by a
    message of its own; ours comes together with the path. So it is told that there is one (`_top_xact`).

    Attributes:
        proven: Whether a block began here before.
        direct: Whether this is the server's one client, with no pooler in between.
        unreset: Whose blocks have only read since everything was reset; None for nobody's.
    """

    __slots__ = (
        "_beginning",
        "_by_name",
        "_named",
        "_own_path",
        "_plain",
        "_plain_reads",
        "_replace",
        "_running",
        "_savepoints",
        "_statements",
        "_tame",
        "_waiting",
        "_whole",
        "direct",
        "proven",
        "unreset",
    )
    _top_xact: asyncpg.transaction.Transaction | None
    _drop_global_type_cache: Any
    _get_unique_id: Any
    _config: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.proven = False
        self.direct = False
        self.unreset: int | None = None
        # All that asyncpg asks about the outermost transaction is whether there is one.
        self._whole = super().transaction()
        # Those that were asked for before the first statement.
        self._savepoints: list[Any] = []
        self._statements: StatementCache | None = None
        self._plain_reads = PlainReads()
        self._replace: Replace = _has_no_other
        self._own_path: str | None = getattr(self._protocol.get_settings(), "search_path", None)
        # How the block begins, and what of it was not sent yet.
        self._beginning = Beginning(())
        self._waiting: tuple[str, ...] | None = None
        # Whether all statements of the block are known to have only read.
        self._plain = False
        # Whether all work on rows only, and nobody can have named a statement unseen.
        self._tame = False
        # How many run now. Handlers have tasks that outlive their block.
        self._running = 0
        # Whether the block may have prepared a statement by SQL, under a name that nobody knows.
        self._by_name = False
        # Statements that the driver has prepared for the block only.
        self._named: list[str] = []

    def use_directly(self, plain_reads: PlainReads, cache_size: int) -> None:
        """Be told that no pooler stands in between: messages may go ahead, and statements be kept."""
        self.direct = True
        self._plain_reads = plain_reads
        self._transport.write(write_preparation())
        if cache_size:
            self._statements = StatementCache(cache_size)

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
        status = await self._run("; ".join(statements), seconds)
        self.proven = True
        self.one_statement = beginning.one_statement
        self._top_xact = self._whole
        return status

    def leave_block(self) -> bool:
        """End the block if nothing is open; return whether it is ended.

        What only reads has its COMMIT with it.
        """
        if self._waiting is None or self._running:
            return False
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
        forgets = self._by_name or not self.direct or not (self._tame or self.may_look)
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
        self.unreset = None
        if looks and status == _FOUND:
            await self._run(FORGET_STATEMENTS, CLEANUP_TIMEOUT)
            forgets = True
            if self._statements is not None:
                self._statements.forget_all()
        if forgets and self.direct:
            self._transport.write(write_preparation())

    async def settle(self) -> None:
        """Reset what was left unreset. Raises the driver's errors."""
        await self._run("; ".join(RESET), CLEANUP_TIMEOUT)
        self.unreset = None

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

    def is_in_transaction(self) -> bool:
        """Return whether there is one, also before its first statement."""
        return self._waiting is not None or super().is_in_transaction()

    def _turn_to(self, beginning: Beginning) -> tuple[str, ...]:
        """Make ready for a block; return the statements that have to go before its own."""
        self._beginning = beginning
        tenant = beginning.tenant
        self._by_name = False
        self._plain = self._tame = self.direct
        self._savepoints.clear()
        self.tenants.add(tenant[0])
        if self._statements is not None:
            self._statements.turn_to(tenant)
        return () if self.unreset is None or self.unreset == tenant[0] else RESET_AHEAD

    def _close_named(self) -> bytes:
        """Return the messages that close what this block has prepared, and what is not kept any longer."""
        if self._statements is not None:
            self._named += self._statements.take_dropped()
        if not self._named:
            return b""
        names, self._named = self._named, []
        return write_closes(names)

    async def _begin_apart(self) -> "BlockConnection":
        """Begin the block by a message of its own, before what is not to be sent twice; return who has begun it.

        Raises:
            DatabaseUnavailableError: Nobody has.
        """
        if self._waiting is None:
            return self
        waiting, self._waiting = self._waiting, None
        try:
            await self._run("; ".join(waiting), _BEGIN_TIMEOUT)
        except (TimeoutError, *DRIVER_ERRORS):
            return await self._replace()
        return self

    async def _begin_here(self) -> None:
        """Begin the block by a message of its own, on this connection.

        Raises:
            DatabaseUnavailableError: It is dead.
        """
        if await self._begin_apart() is not self:
            raise DatabaseUnavailableError("the connection to the database was lost before the block began", lost=True)

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
        if self._waiting is None or not self._plain or self._query_loggers or query in self._plain_reads.slow:
            driver = await self._begin_apart()
            if driver is not self:
                return await driver._execute(query, args, limit, timeout, **options)  # noqa: SLF001  (of its own class)
            return await self._execute_prepared(query, args, limit, timeout, **options)
        # It only reads, so it may be run twice: if all at once was a bad idea, it begins elsewhere.
        limit_given = self._config.command_timeout if timeout is None else timeout
        patience = min(limit_given, _BEGIN_TIMEOUT)
        try:
            return await self._read_at_once(query, args, limit, patience, **options)
        except TimeoutError:
            if patience == limit_given:
                raise
            self._plain_reads.slow.add(query)
        except _OUTDATED_ERRORS:
            if self.is_closed():
                raise
        except DRIVER_ERRORS:
            if self._waiting is not None or (not self.is_closed() and self._protocol.is_in_transaction()):
                raise
            # Not even BEGIN was run: the server is lost.
        driver = await self._replace()
        return await driver._execute(query, args, limit, timeout, **options)  # noqa: SLF001  (of its own class)

    async def _read_at_once(
        self,
        query: str,
        args: Any,
        limit: int,
        timeout: float | None,  # noqa: ASYNC109  (asyncpg's)
        *,
        return_status: bool,
        **options: Any,
    ) -> Any:
        """Send BEGIN, the path, *query* and COMMIT together, or in two messages if it is not prepared yet."""
        gathering, waiting = self._gathering, self._waiting
        if gathering is None or waiting is None:
            raise RuntimeError("the block has begun")
        statement = None
        if self._statements is not None and not any(options.values()):
            statement = self._statements.find(query, args)
        gathering.put_ahead(self._close_named() + write_statements(*waiting))
        self._waiting = None
        try:
            if statement is None:
                statement = await self._get_statement(query, timeout, **options)
            gathering.put_before_sync(_COMMIT_MESSAGE)
            rows = await self._protocol.bind_execute(statement, args, "", limit, return_status, timeout)
        except BaseException as error:
            self._note_failure(query, error)
            if gathering.drop():
                # Nothing was sent: an argument was refused here.
                self._waiting = waiting
            raise
        if self._protocol.is_in_transaction():
            raise asyncpg.InternalClientError("COMMIT was not sent with the statement")
        self._check_path()
        self.unreset = self._beginning.tenant[0]
        self._waiting = self._beginning.statements
        return rows

    def _note_failure(self, query: str, error: BaseException) -> None:
        if isinstance(error, _OUTDATED_ERRORS):
            self._forget_outdated(error)
        elif self._statements is not None and isinstance(error, _MISFIT_ERRORS):
            self._statements.forget(query)

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
            self._note_failure(query, error)
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
        """Make sure that the path is the connection's own again. The server says so itself, from PostgreSQL 18 on.

        Raises:
            DatabaseUnavailableError: It is not. The connection is closed.
        """
        if self._own_path is None:
            return
        reported = self._protocol.get_settings().search_path
        if reported != self._own_path:
            self.terminate()
            raise DatabaseUnavailableError(f"a block that only read has left search_path at {reported!r}", lost=True)

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


async def _has_no_other() -> BlockConnection:
    raise DatabaseUnavailableError("the connection to the database was lost before the block began", lost=True)
