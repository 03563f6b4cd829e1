"""A connection that knows about its block: what only reads is one message, and the rest is a transaction."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import asyncpg

from quart_tenants.errors import DatabaseUnavailableError
from quart_tenants.postgres.driver.block_statements import (
    CHECKED_COMMIT,
    COMMIT,
    RESET,
    RESET_AHEAD,
    ROLLBACK,
    Beginning,
)
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS
from quart_tenants.postgres.driver.messages import write_statements
from quart_tenants.postgres.driver.plain_reads import PlainReads
from quart_tenants.postgres.driver.statement_connection import OUTDATED_ERRORS, Call, StatementConnection

# Seconds. A connection that was well before answers BEGIN at once, or never.
_BEGIN_TIMEOUT = 1.0

_GET_MEMORY = """
SELECT pg_catalog.sum(total_bytes)::float8 / 1048576 FROM pg_catalog.pg_backend_memory_contexts
"""

_COMMIT_MESSAGE = write_statements(COMMIT)

Replace: TypeAlias = Callable[[], Awaitable["BlockConnection"]]


class BlockConnection(StatementConnection):
    """A connection that runs one block after the other.

    asyncpg refuses `transaction()` in a transaction that it did not begin itself, and begins one by a
    message of its own; ours comes together with the path. So it is told that there is one (`_top_xact`).

    Attributes:
        proven: Whether a block began here before.
    """

    __slots__ = (
        "_beginning",
        "_plain",
        "_plain_reads",
        "_replace",
        "_running",
        "_savepoints",
        "_tame",
        "_waiting",
        "_whole",
        "proven",
    )
    _top_xact: asyncpg.transaction.Transaction | None
    _config: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.proven = False
        # All that asyncpg asks about the outermost transaction is whether there is one.
        self._whole = super().transaction()
        # Those that were asked for before the first statement.
        self._savepoints: list[Any] = []
        self._plain_reads = PlainReads()
        self._replace: Replace = _has_no_other
        # How the block begins, and what of it was not sent yet.
        self._beginning = Beginning(())
        self._waiting: tuple[str, ...] | None = None
        # Whether all statements of the block are known to have only read.
        self._plain = False
        # Whether all work on rows only, and nobody can have named a statement unseen.
        self._tame = False
        # How many run now. Handlers have tasks that outlive their block.
        self._running = 0

    def use_directly(self, plain_reads: PlainReads, cache_size: int) -> None:
        """Be told that no pooler stands in between: messages may go ahead, and statements be kept."""
        self._plain_reads = plain_reads
        self._keep_statements(cache_size)

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
        await self._run_last(statements, seconds, tame=self._tame)
        self.unreset = None

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109  (asyncpg's)
        """Execute *query*, as asyncpg does it."""
        if args:
            # asyncpg would first ask whether this is open, but the block may still begin on another one.
            _, status, _ = await self._execute(query, args, 0, timeout, return_status=True)
            return str(status.decode())
        self._look_at(query, reads=False)
        self._running += 1
        try:
            driver = await self._begin_apart()
            if driver is not self:
                return await driver.execute(query, timeout=timeout)
            return await super().execute(query, timeout=timeout)
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
            return await self._begin_elsewhere()
        return self

    async def _begin_elsewhere(self) -> "BlockConnection":
        """Begin the block on another connection; return that one.

        Raises:
            DatabaseUnavailableError: There is none.
        """
        driver = await self._replace()
        for savepoint in self._savepoints:
            # None was made yet, and each is to end where it begins.
            savepoint._connection = driver  # noqa: SLF001
            savepoint._con_release_ctr = driver._pool_release_ctr  # noqa: SLF001
        return driver

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
        self._running += 1
        try:
            return await self._execute_in_block(
                Call(query, args, limit, timeout, return_status, ignore_custom_codec, record_class)
            )
        finally:
            self._running -= 1

    async def _execute_in_block(self, call: Call) -> Any:
        if self._waiting is None or not self._plain or self._query_loggers or call.query in self._plain_reads.slow:
            driver = await self._begin_apart()
            if driver is not self:
                return await call.pass_to(driver._execute)  # noqa: SLF001  (of its own class)
            return await self._execute_prepared(call)
        # It only reads, so it may be run twice: if all at once was a bad idea, it begins elsewhere.
        limit_given = self._config.command_timeout if call.timeout is None else call.timeout
        patience = min(limit_given, _BEGIN_TIMEOUT)
        try:
            return await self._read_at_once(call, patience)
        except TimeoutError:
            if patience == limit_given:
                raise
            self._plain_reads.slow.add(call.query)
        except OUTDATED_ERRORS:
            if self.is_closed():
                raise
        except DRIVER_ERRORS:
            if self._waiting is not None or (not self.is_closed() and self._protocol.is_in_transaction()):
                raise
            # Not even BEGIN was run: the server is lost.
        driver = await self._begin_elsewhere()
        return await call.pass_to(driver._execute)  # noqa: SLF001  (of its own class)

    async def _read_at_once(self, call: Call, seconds: float) -> Any:
        """Send BEGIN, the path, *call* and COMMIT together, or in two messages if it is not prepared yet."""
        gathering, waiting = self._gathering, self._waiting
        if gathering is None or waiting is None:
            raise RuntimeError("the block has begun")
        statement = self._find_kept(call)
        gathering.put_ahead(self._take_closes() + write_statements(*waiting))
        self._waiting = None
        try:
            if statement is None:
                statement = await self._get_statement(
                    call.query, seconds, ignore_custom_codec=call.ignore_custom_codec, record_class=call.record_class
                )
            gathering.put_before_sync(_COMMIT_MESSAGE)
            rows = await self._protocol.bind_execute(statement, call.args, "", call.limit, call.return_status, seconds)
        except BaseException as error:
            self._note_failure(call.query, error)
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

    async def _get_statement(
        self,
        query: str,
        timeout: float | None,  # noqa: ASYNC109  (asyncpg's)
        *,
        named: str | bool = False,
        use_cache: bool = True,
        **options: Any,
    ) -> Any:
        """Return *query* prepared, in the block. All that is prepared comes by here."""
        if named or not use_cache or not self._running:
            # A cursor's, prepare()'s or copy's: what is done with it does not come by here.
            self._look_at(query, reads=False)
            self._tame = False
        await self._begin_here()
        return await super()._get_statement(query, timeout, named=named, use_cache=use_cache, **options)

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
        if not self._tame:
            self._note_names(query)


async def _has_no_other() -> BlockConnection:
    raise DatabaseUnavailableError("the connection to the database was lost before the block began", lost=True)
