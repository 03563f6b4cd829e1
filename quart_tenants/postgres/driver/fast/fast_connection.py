"""A connection that sends a plain read together with its BEGIN and COMMIT, and keeps prepared statements.

Behind a pooler it is not alone on a server process, which may be another one in each transaction. There the reset goes
with each read, too, and the read's statement is prepared in the same message.

This is the one class that uses and overrides names of asyncpg's which begin with an underscore. `driver_check` tries
out whether asyncpg still has them. Where it has not, `PlainConnection` serves.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeAlias

import asyncpg

from quart_tenants.errors import DatabaseUnavailableError
from quart_tenants.postgres.driver.block_statements import (
    CHECKED_COMMIT,
    COMMIT,
    FORGET_STATEMENTS,
    REPEATED,
    RESET,
    RESET_AHEAD,
    ROLLBACK,
    SAVEPOINT_TEXT,
    Beginning,
)
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS
from quart_tenants.postgres.driver.fast.block_states import BlockState, BlockStateMachine
from quart_tenants.postgres.driver.fast.described_statements import (
    DescribedStatements,
    DescriptionListener,
)
from quart_tenants.postgres.driver.fast.lent_connection import LentConnection
from quart_tenants.postgres.driver.fast.messages import (
    write_closes,
    write_description,
    write_preparation,
    write_statements,
)
from quart_tenants.postgres.driver.fast.packets import PacketTransport, find_packet_transport
from quart_tenants.postgres.driver.fast.silence import SilenceWatch
from quart_tenants.postgres.driver.fast.statement_cache import FoundTypes, StatementCache
from quart_tenants.postgres.driver.fast.statement_effects import Effect, StatementEffects
from quart_tenants.postgres.driver.noting_connection import NotingConnection, make_name
from quart_tenants.postgres.driver.schema_check import UNCHECKED, SchemaCheck
from quart_tenants.postgres.driver.server_process import GET_SERVER_PROCESS, has_to_itself
from quart_tenants.postgres.driver.timings import Timings

# A look-up in an enum takes six times as long as a name of the module.
_IDLE, _PLANNED, _READING, _INTERRUPTED, _BEGINNING, _OPEN, _ENDING = BlockState
_READS, _ROWS, _ANYTHING = Effect

_COMMIT_MESSAGE = write_statements(COMMIT)
_COMMIT_AND_RESET_MESSAGE = write_statements(COMMIT, *RESET, FORGET_STATEMENTS, prepared=False)

_GET_MEMORY = """
SELECT pg_catalog.sum(total_bytes)::float8 / 1048576 FROM pg_catalog.pg_backend_memory_contexts
"""
# One row if a block has prepared a statement by SQL, or deallocated one. It goes in the same message as the reset.
_FIND_STRANGE_STATEMENTS = """
SELECT FROM (
    SELECT pg_catalog.count(*) AS known, pg_catalog.count(*) FILTER (WHERE from_sql) AS strange
    FROM pg_catalog.pg_prepared_statement()
) AS statements WHERE strange > 0 OR known <> {expected}
"""
_FOUND = "SELECT 1"

_OUTDATED_ERRORS = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.OutdatedSchemaCacheError,
)
_CUT_OFF_ERRORS = (TimeoutError, asyncio.CancelledError, *_OUTDATED_ERRORS)
_SERVERS_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# A kept statement may raise these where a column has another type now, and a new statement would not.
_MISFIT_ERRORS = (asyncpg.DataError, asyncpg.SyntaxOrAccessError)

Replace: TypeAlias = Callable[[bool], Awaitable["FastConnection"]]
"""Returns another connection, on which the block has begun, or is planned where it is asked for a plain read."""
AskWhetherAlive: TypeAlias = Callable[["FastConnection"], Coroutine[Any, Any, None]]
"""Terminates the connection if its server process is gone, or never got our message."""


class _UnfitStatementError(Exception):
    """A kept statement does not fit the tables as they are now. It has done nothing."""


@dataclass(slots=True)
class _Call:
    """What fetch(), fetchrow(), fetchval(), and execute() with arguments, pass on inside asyncpg."""

    query: str
    args: Any
    limit: int
    timeout: float | None
    return_status: bool
    ignore_custom_codec: bool
    record_class: Any

    def pass_to(self, execute: Callable[..., Awaitable[Any]]) -> Awaitable[Any]:
        """Call *execute*, which takes what asyncpg's own `_execute` takes."""
        return execute(
            self.query,
            self.args,
            self.limit,
            self.timeout,
            return_status=self.return_status,
            ignore_custom_codec=self.ignore_custom_codec,
            record_class=self.record_class,
        )


class FastConnection(NotingConnection):
    """A connection that runs one block after the other. Its verbs are plan, begin, leave, end and reset.

    asyncpg refuses `transaction()` in a transaction that it did not begin itself, and would begin one by a message of
    its own. Here BEGIN goes together with the path, so asyncpg is told that there is a transaction (`_top_xact`).
    """

    __slots__ = (
        "_begin_within",
        "_beginning",
        "_cache",
        "_check",
        "_described",
        "_effect",
        "_effects",
        "_names",
        "_outermost",
        "_own_path",
        "_packets",
        "_replace",
        "_savepoints",
        "_state",
        "_unreset",
        "_watch",
    )
    is_fast = True
    _cancel: Any
    _cancellations: set[Any]
    _drop_global_type_cache: Any
    _drop_local_type_cache: Any
    _listeners: dict[str, Any]
    _log_listeners: set[Any]
    _loop: asyncio.AbstractEventLoop
    _pool_release_ctr: int
    _protocol: Any
    _proxy: Any
    _query_loggers: set[Any]
    _server_caps: Any
    _stmts_to_close: set[Any]
    _top_xact: asyncpg.transaction.Transaction | None
    _transport: asyncio.WriteTransport

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # All that asyncpg asks about the outermost transaction is whether there is one.
        self._outermost = super().transaction()
        self._packets: PacketTransport | None = find_packet_transport(self._protocol, self._transport)
        self._own_path: str | None = getattr(self._protocol.get_settings(), "search_path", None)
        self._effects = StatementEffects()
        self._cache = StatementCache(0, FoundTypes(0))
        # Behind a pooler, in place of the cache.
        self._described: DescribedStatements | None = None
        # Names of statements that the server is to forget at the block's end.
        self._names: list[str] = []
        # The tenant whose blocks have only read since the last reset; None after a reset.
        self._unreset: int | None = None
        self._watch = SilenceWatch(self._loop, self._timings.silence, _wait_on)
        # Of the present block.
        self._state = BlockStateMachine()
        self._beginning = Beginning(())
        self._begin_within: float = 0
        self._replace: Replace = has_no_other
        self._check = UNCHECKED
        self._effect = _READS
        # Savepoints that were asked for, and not made, before the first statement.
        self._savepoints: list[Any] = []

    # What the pool calls.

    @property
    def needs_reset(self) -> bool:
        """Whether blocks that only read were here since the last reset."""
        return self._unreset is not None

    async def may_work(self, opened_at: float, path: str) -> bool:
        """Find out whether a pooler stands between; return whether the server lets us work as this class does.

        It does not where transactions are to see one state of the tables, for statements that only read have a
        transaction each; nor, without a pooler, where the login may not see its own prepared statements.

        Args:
            opened_at: When it began to be opened, by the monotonic clock.
            path: The search_path with which it was opened.
        """
        if self._packets is None:
            return False
        await self._run("BEGIN", None)
        server = await self.fetchrow(GET_SERVER_PROCESS)
        await self._run("ROLLBACK", None)
        if server is None or not server["commits_are_seen"]:
            return False
        self.is_alone = has_to_itself(self, server, opened_at, path)
        return not self.is_alone or server["statements_are_seen"]

    def set_up(
        self,
        timings: Timings,
        effects: StatementEffects,
        cache_size: int,
        found_types: FoundTypes,
        ask_whether_alive: AskWhetherAlive,
    ) -> None:
        """Make ready for blocks.

        Args:
            timings: How long to wait for what.
            effects: Shared by all connections of a pool.
            cache_size: Prepared statements to keep at most, besides `REPEATED`; behind a pooler, what is known of them.
            found_types: Shared by all connections of a pool, too.
            ask_whether_alive: Called when the server has said nothing for long.
        """
        self._timings = timings
        self._effects = effects
        self._watch = SilenceWatch(self._loop, timings.silence, functools.partial(ask_whether_alive, self))
        if self.is_alone:
            self._cache = StatementCache(cache_size, found_types)
            self._transport.write(write_preparation())
            return
        self._described = DescribedStatements(cache_size, DescriptionListener(self._protocol, self._transport))
        # Server processes may begin with different paths, such as after an ALTER ROLE.
        self._own_path = None

    async def find_memory(self) -> float | None:
        """Return how many megabytes the server process has, or None where the login may not ask. Between two blocks.

        Raises the driver's errors.
        """
        await self.reset_between_blocks()
        self._turn_to(Beginning(()), 0)
        try:
            return float(await self.fetchval(_GET_MEMORY))
        except asyncpg.InsufficientPrivilegeError:
            return None

    async def reset_between_blocks(self) -> None:
        """Reset what blocks that only read have left. Raises the driver's errors."""
        await self._run("; ".join(RESET), self._timings.cleanup)
        self._unreset = None

    def let_go(self) -> None:
        """Take away from the last block's handler what it may have kept, and what it has made to be called."""
        # asyncpg's cursors, statements and transactions compare this with what it was when they were made.
        self._pool_release_ctr += 1
        # These statements were closed at the end of the block.
        self._stmts_to_close.clear()
        self._listeners.clear()
        self._log_listeners.clear()

    def count_queries(self) -> int:
        """Return how many statements were sent."""
        count: int = self._protocol.queries_count
        return count

    # What the block calls.

    def lend(self) -> LentConnection:
        """Return a handle for the present block."""
        return LentConnection(self)

    def plan_block(
        self,
        beginning: Beginning,
        within: float,
        replace: Replace,
        check: SchemaCheck = UNCHECKED,
    ) -> None:
        """Let a block begin when its first statement comes. Sends nothing.

        Args:
            beginning: How the block begins.
            within: Seconds that BEGIN may take.
            replace: Called if this connection turns out to be dead.
            check: Asked before a transaction of the block begins, and after BEGIN or a plain read was answered.
        """
        self._state.move(_PLANNED)
        self._turn_to(beginning, within)
        self._replace = replace
        self._check = check
        self._top_xact = self._outermost

    async def begin_block(self, beginning: Beginning, first: str, within: float) -> str:
        """Begin a block now; return the status of the last statement.

        Args:
            beginning: How the block begins.
            first: SQL that goes with it; may be empty.
            within: Seconds that it may take.
        """
        self.plan_block(beginning, within, has_no_other)
        if first:
            self._note(first, reads=False)
        return await self._begin(first)

    def go_on_as(self, beginning: Beginning) -> None:
        """Take the block for one with *beginning*, whose statements were run in it."""
        self._beginning = beginning
        self._cache.turn_to(beginning.tenant)

    def leave_block(self) -> bool:
        """End the block if the server has nothing open of it; return whether it is ended."""
        if self._state.current is not _PLANNED:
            return False
        self._state.move(_IDLE)
        self._top_xact = None
        return True

    async def end_block(self, *, commit: bool, within: float | None = None) -> None:
        """End the block, and reset everything. Raises the driver's errors; the connection is then to be closed.

        Args:
            commit: Whether to keep what the block did.
            within: Seconds that it may take; None for the command timeout.
        """
        # Where a read was interrupted, the block has done nothing that could be kept.
        commit = commit and self._state.current is not _INTERRUPTED
        self._state.move(_ENDING)
        self._top_xact = None
        statements = (*(CHECKED_COMMIT if commit else (ROLLBACK,)), *RESET)
        looks = self._effect is _ANYTHING and self.is_alone
        if not self.is_closed():
            self._send(write_closes(self._take_names()))
        if not self.is_alone:
            statements += (FORGET_STATEMENTS,)
        elif looks:
            statements += (_FIND_STRANGE_STATEMENTS.format(expected=len(REPEATED) + len(self._cache)),)
        began_at = monotonic()
        try:
            status = await self._run("; ".join(statements), within)
        finally:
            self.record.statement_seconds += monotonic() - began_at
        if looks and status == _FOUND:
            await self._run(FORGET_STATEMENTS, self._timings.cleanup)
            self._cache.forget_all()
            self._transport.write(write_preparation())
        self._unreset = None
        self._state.move(_IDLE)

    # What a handler calls.

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109  (asyncpg's)
        """Execute *query*, as asyncpg does it; in a block with a role it is one statement.

        PostgreSQL's simple protocol runs `SELECT …; RESET ROLE; SELECT …` as three statements, and asyncpg speaks it
        wherever there are no arguments. The extended protocol takes one statement, or none.
        """
        if args or (self._beginning.with_role and not SAVEPOINT_TEXT.fullmatch(query)):
            # asyncpg would first ask whether this is open, but the block may still begin on another one.
            _, status, _ = await self._execute(query, args, 0, timeout, return_status=True)
            return status.decode() if status else ""
        self._note(query, reads=False)
        driver = await self._begin_or_replace()
        if driver is not self:
            return await driver.execute(query, timeout=timeout)
        return await self._run_noted(query, super().execute(query, timeout=timeout))

    def transaction(self, **options: Any) -> Any:
        """Return a savepoint, as asyncpg does it in a transaction."""
        savepoint: Any = super().transaction(**options)
        if self._state.current is _PLANNED:
            self._savepoints.append(savepoint)
        return savepoint

    def is_in_transaction(self) -> bool:
        """Return whether there is a transaction, or the next statement begins one."""
        return self._state.current in (_PLANNED, _INTERRUPTED) or super().is_in_transaction()

    async def copy_records_to_table(self, table_name: str, *, where: str | None = None, **options: Any) -> str:
        """Copy records, as asyncpg does it, but in a block with a role without *where*: it may hold any statement.

        Raises:
            asyncpg.InterfaceError: *where* is given.
        """
        if where is not None and self._beginning.with_role:
            raise asyncpg.InterfaceError(
                "copy_records_to_table(where=…) is not taken where tenants have roles of their own"
            )
        status: str = await super().copy_records_to_table(table_name, where=where, **options)
        return status

    # How a block begins.

    def _turn_to(self, beginning: Beginning, within: float) -> None:
        self._beginning = beginning
        self._begin_within = within
        self._effect = _READS
        self._savepoints.clear()
        if self.note_versions(beginning.tenant):
            self._drop_local_type_cache()
        self._cache.turn_to(beginning.tenant)

    def _list_first_statements(self) -> tuple[str, ...]:
        """Return what begins the block: also a reset, if another tenant was here and its blocks only read.

        Behind a pooler it is always reset: others may have been on the server process.
        """
        if not self.is_alone:
            return RESET_AHEAD + self._beginning.statements
        if self._unreset is None or self._unreset == self._beginning.tenant.tenant:
            return self._beginning.statements
        return RESET_AHEAD + self._beginning.statements

    async def _begin(self, first: str = "") -> str:
        undo = (ROLLBACK,) if self._state.current is _INTERRUPTED else ()
        self._state.move(_BEGINNING)
        statements = (*undo, *self._list_first_statements(), *((first,) if first else ()))
        if not first:
            self._watch.start()
        began_at = monotonic()
        try:
            status = await self._run("; ".join(statements), self._begin_within)
        finally:
            self._watch.stop()
            self.record.statement_seconds += monotonic() - began_at
        self._state.move(_OPEN)
        await self._check.ask_if_due(self, self._begin_within, self._beginning)
        return status

    async def _begin_or_replace(self) -> "FastConnection":
        """Begin the block by a message of its own, if it is not begun; return the connection that has begun it.

        Raises:
            DatabaseUnavailableError: No connection has.
        """
        if self._state.current is _INTERRUPTED:
            await self._make_sure()
        if self._state.current is _INTERRUPTED:
            await self._begin()
        if self._state.current is not _PLANNED:
            return self
        try:
            await self._make_sure()
            await self._begin()
        except (TimeoutError, *DRIVER_ERRORS):
            return await self._go_elsewhere(reads=False)
        return self

    async def _make_sure(self) -> None:
        """Make sure that the tenant still has its schema. Call it before a transaction of a block, and after it.

        Raises the driver's errors, and what the block raises if the tenant has it no longer.
        """
        if not self._check.must_ask():
            return
        before = self._state.current
        self._state.move(_READING)
        self._watch.start()
        try:
            if before is _INTERRUPTED:
                await self._run(ROLLBACK, self._begin_within)
            await self._check.ask_if_due(self, self._begin_within)
        except BaseException as error:
            self._state.move(_INTERRUPTED)
            if isinstance(error, TimeoutError):
                # No statement of the handler's has taken too long.
                raise DatabaseUnavailableError("the database did not say in time whether the tenant exists") from error
            raise
        finally:
            self._watch.stop()
        self._state.move(_PLANNED)

    async def _begin_here(self) -> None:
        """Begin the block by a message of its own, on this connection, if it is not begun.

        Raises:
            DatabaseUnavailableError: The connection is dead.
        """
        if await self._begin_or_replace() is not self:
            raise DatabaseUnavailableError("the connection to the database was lost before the block began", lost=True)

    async def _go_elsewhere(self, *, reads: bool) -> "FastConnection":
        driver = await self._replace(reads)
        for savepoint in self._savepoints:
            # The server has none of these savepoints yet. Each belongs to the connection that will make it.
            savepoint._connection = driver  # noqa: SLF001
            savepoint._con_release_ctr = driver._pool_release_ctr  # noqa: SLF001
        return driver

    # How a statement is run.

    def _run(self, statements: str, seconds: float | None) -> Awaitable[str]:
        """Run *statements* by the simple protocol, as asyncpg's own execute() does; return the last one's status."""
        status: Awaitable[str] = self._protocol.query(statements, seconds)
        return status

    def _send(self, messages: bytes) -> None:
        """Send *messages* ahead of the next statement."""
        # To write nothing would send what waits in the transport, as a packet of its own.
        if messages:
            self._transport.write(messages)

    def _note(self, query: str, *, reads: bool) -> None:
        """Take note of what *query* may do. *reads* says whether it is run as one that only reads."""
        if self._effect is not _ANYTHING:
            effect = self._effects.find(query)
            if effect is _READS and not reads:
                effect = _ROWS
            if effect > self._effect:
                self._effect = effect

    def _execute(
        self,
        query: str,
        args: Any,
        limit: int,
        timeout: float | None,
        *,
        return_status: bool = False,
        ignore_custom_codec: bool = False,
        record_class: Any = None,
    ) -> Awaitable[Any]:
        """Run *query*, as asyncpg does it: what fetch(), fetchrow(), fetchval() and execute() with arguments call."""
        self._note(query, reads=not return_status)
        call = _Call(query, args, limit, timeout, return_status, ignore_custom_codec, record_class)
        if self._state.current is _PLANNED and self._effect is _READS and not self._query_loggers:
            return self._read(call)
        return self._begin_and_run(call)

    async def _begin_and_run(self, call: _Call) -> Any:
        """Do *call* in the transaction of the block, which begins with it if it has not begun."""
        driver = await self._begin_or_replace()
        if driver is not self:
            return await call.pass_to(driver._execute)  # noqa: SLF001  (of its own class)
        return await self._run_call(call)

    def _may_use_kept(self, call: _Call) -> bool:
        return not self._query_loggers and not call.ignore_custom_codec and call.record_class is None

    async def _run_call(self, call: _Call) -> Any:
        """Do *call* in the open transaction, by a kept statement or else as asyncpg does it."""
        kept = self._cache.find(call.query, call.args) if self._may_use_kept(call) else None
        began_at = monotonic()
        try:
            if kept is None:
                result = await call.pass_to(super()._execute)  # type: ignore[misc]
            else:
                result = await self._protocol.bind_execute(
                    kept, call.args, "", call.limit, call.return_status, call.timeout
                )
        except BaseException as error:
            self._note_failure(call.query, error)
            self.record.note(call.query, began_at, error=error)
            raise
        self.record.note(call.query, began_at, 0 if call.return_status else len(result))
        return result

    async def _read(self, call: _Call) -> Any:
        """Do *call*, which only reads, in a transaction of its own.

        It may be run twice: should the connection be dead, the block begins on another one.
        """
        try:
            try:
                return await self._read_at_once(call)
            except _UnfitStatementError as unfit:
                # What did not fit is forgotten, and has done nothing. The block keeps its connection.
                if not isinstance(unfit.__cause__, asyncpg.InvalidSQLStatementNameError):
                    return await self._read_at_once(call, again=True)
                # Perhaps all prepared statements are gone, those of BEGIN and ROLLBACK among them.
                await self._make_sure()
                await self._begin()
                return await self._run_call(call)
        except DRIVER_ERRORS:
            known = (_PLANNED, _INTERRUPTED)
            if not self.is_closed() and (self._state.current in known or self._protocol.is_in_transaction()):
                raise
            # Not even BEGIN was run: the server is lost.
        driver = await self._go_elsewhere(reads=True)
        return await call.pass_to(driver._execute)  # noqa: SLF001  (of its own class)

    async def _read_at_once(self, call: _Call, *, again: bool = False) -> Any:
        """Send BEGIN, the path, *call* and COMMIT together, or in two messages if *call* is not prepared yet.

        Args:
            call: It only reads.
            again: Whether a kept statement has failed before, so that none of another tenant is used.

        Raises:
            _UnfitStatementError: A kept statement does not fit what is there now. Never if it is done *again*.
        """
        packets = self._packets
        if packets is None:
            raise RuntimeError("a connection without a PacketTransport was taken for a fast one")
        await self._make_sure()
        statement = shared = None
        tenant, described = self._beginning.tenant, self._described
        if described is not None:
            statement = described.begin(tenant, call.query, keeps=self._may_use_kept(call))
        elif self._may_use_kept(call):
            statement = self._cache.find(call.query, call.args)
            # A codec that was set in this block is not in the statements of others.
            if statement is None and not again and not self.altered:
                statement = shared = self._cache.find_shared(call.query, call.args)
        closing = self._take_names()
        before = self._state.current
        undo = (ROLLBACK,) if before is _INTERRUPTED else ()
        first = write_statements(*undo, *self._list_first_statements(), prepared=self.is_alone)
        is_known = described is not None and statement is not None
        if closing:
            packets.put_ahead(write_closes(closing))
        packets.put_ahead(first + write_description(call.query) if is_known else first)
        self._state.move(_READING)
        self._watch.start()
        began_at = monotonic()
        try:
            if statement is None:
                statement = await self._get_statement(
                    call.query,
                    call.timeout,
                    ignore_custom_codec=call.ignore_custom_codec,
                    record_class=call.record_class,
                )
            packets.put_before_sync(_COMMIT_MESSAGE if self.is_alone else _COMMIT_AND_RESET_MESSAGE)
            rows = await self._protocol.bind_execute(
                statement, call.args, "", call.limit, call.return_status, call.timeout
            )
        except BaseException as error:
            self.record.note(call.query, began_at, error=error)
            # Where nothing was sent, an argument was refused here.
            unsent = packets.drop()
            if unsent:
                self._names += closing
            is_unfit = isinstance(error, _OUTDATED_ERRORS)
            if described is not None:
                described.forget()
                # What the driver makes of other types than it expects may be an error of any kind.
                is_unfit |= isinstance(error, _SERVERS_ERRORS) and described.is_changed()
            if shared is not None and isinstance(error, asyncpg.PostgresError):
                # A statement of the tenant's own might not have failed. It would have been cancelled all the same.
                is_unfit = not isinstance(error, asyncpg.QueryCanceledError)
            if shared is not None and isinstance(error, asyncpg.InvalidCachedStatementError):
                self._cache.stop_sharing(call.query)
            else:
                self._note_failure(call.query, error)
            if self._state.current is _READING:
                # Where an argument was refused here after BEGIN was sent, the server has not said that it has begun.
                is_begun = self.is_closed() or self._protocol.is_in_transaction()
                goes_on = is_unfit or not is_begun or isinstance(error, _CUT_OFF_ERRORS)
                self._state.move(before if unsent else _INTERRUPTED if goes_on else _OPEN)
                if is_unfit and not again and not self.is_closed():
                    raise _UnfitStatementError from error
            raise
        finally:
            self._watch.stop()
        fits = described is None or described.end(statement)
        self.record.note(call.query, began_at, len(rows) if fits else 0)
        if self._protocol.is_in_transaction():
            raise asyncpg.InternalClientError("COMMIT was not sent with the statement")
        self._state.move(_PLANNED)
        if self.is_alone:
            self._check_path()
            self._unreset = tenant.tenant
        elif not fits:
            raise _UnfitStatementError
        # The message may have waited on its way for longer than a name rests.
        await self._make_sure()
        return rows

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

    # How statements are prepared, kept and forgotten. asyncpg's own cache is off: in it all tenants share a statement.

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
        """Return *query* prepared anew, in the block, and keep it if that is safe. All statements come by here."""
        options = {"ignore_custom_codec": ignore_custom_codec, "record_class": record_class}
        if named or not use_cache:
            # For a cursor, prepare() or copy. What is done with it later does not come by here.
            self._effect = _ANYTHING
        await self._begin_here()
        self.record.round_trips += 1
        keeps = use_cache and not named and record_class is None and not ignore_custom_codec
        if not keeps or not self._cache.takes(query):
            name = named if isinstance(named, str) else make_name() if named else ""
            if name:
                # Noted before it is there: the server is told to forget it also if its answer is never heard.
                self._names.append(name)
            return await super()._get_statement(query, timeout, named=name, use_cache=False, **options)  # type: ignore[misc]
        # Closed ahead of what is prepared now, for a block may be long.
        self._send(write_closes(self._cache.take_dropped()))
        name = make_name()
        try:
            statement = await super()._get_statement(query, timeout, named=name, use_cache=False, **options)  # type: ignore[misc]
        except BaseException:
            self._names.append(name)
            raise
        self._cache.keep(query, statement)
        return statement

    def _take_names(self) -> list[str]:
        """Return the names of what this block has prepared, and of what is not kept any longer, once."""
        names, self._names = self._names + self._cache.take_dropped(), []
        return names

    def _note_failure(self, query: str, error: BaseException) -> None:
        """Drop the statements that *error*, which *query* has raised, shows to be wrong."""
        if isinstance(error, asyncpg.OutdatedSchemaCacheError):
            self._drop_global_type_cache()
            self._cache.forget_tenant()
        elif isinstance(error, asyncpg.InvalidCachedStatementError):
            self._cache.forget_tenant()
        elif isinstance(error, asyncpg.InvalidSQLStatementNameError):
            # A block has deallocated it, and perhaps others. The block's end counts those that are left.
            self._cache.forget_all()
            self._effect = _ANYTHING
        elif isinstance(error, _MISFIT_ERRORS):
            self._cache.forget(query)

    def _drop_local_statement_cache(self) -> None:
        super()._drop_local_statement_cache()  # type: ignore[misc]
        self._cache.forget_tenant()
        if self._described is not None:
            self._described.forget_all()

    def _drop_global_statement_cache(self) -> None:
        # Other connections find out for themselves, and nothing is wrong with the statements of other tenants.
        self._drop_local_statement_cache()

    # What else asyncpg does by itself.

    async def _executemany(self, query: str, *args: Any, **options: Any) -> Any:
        self._note(query, reads=False)
        return await self._run_noted(query, super()._executemany(query, *args, **options))  # type: ignore[misc]

    async def _copy_out(self, copy_stmt: str, output: Any, timeout: float | None) -> str:  # noqa: ASYNC109
        await self._prepare_copy(copy_stmt, timeout)
        running = super()._copy_out(copy_stmt, output, timeout)  # type: ignore[misc]
        return await self._run_noted(copy_stmt, running)

    async def _copy_in(self, copy_stmt: str, source: Any, timeout: float | None) -> str:  # noqa: ASYNC109
        await self._prepare_copy(copy_stmt, timeout)
        running = super()._copy_in(copy_stmt, source, timeout)  # type: ignore[misc]
        return await self._run_noted(copy_stmt, running)

    async def _prepare_copy(self, statement: str, seconds: float | None) -> None:
        self._note(statement, reads=False)
        await self._begin_here()
        if self._beginning.with_role:
            # The server parses it, and refuses it if it is two statements.
            await self._get_statement(statement, seconds, use_cache=False)

    async def _introspect_types(self, typeoids: Any, timeout: float | None) -> Any:  # noqa: ASYNC109
        # asyncpg switches jit off by set_config(), which a tenant's role may not run.
        if self._beginning.with_role:
            if self._server_caps.jit:
                self._server_caps = self._server_caps._replace(jit=False)
            await super().execute("SET LOCAL jit TO off")
        return await super()._introspect_types(typeoids, timeout)  # type: ignore[misc]

    def _cancel_current_command(self, sent: "asyncio.Future[None]", cancelled: "asyncio.Future[None]") -> None:
        """Cancel the statement, and close the connection if that takes long: asyncpg has more patience."""
        self._loop.call_later(self._timings.cancel, self._give_up_unless, cancelled)
        if not self.is_alone:
            # PgBouncer knows whom a request is meant for. Until 1.24 many of them may make it end.
            super()._cancel_current_command(sent, cancelled)  # type: ignore[misc]
            return
        self._cancellations.add(self._loop.create_task(self._cancel_until_heard(sent, cancelled)))

    async def _cancel_until_heard(self, sent: "asyncio.Future[None]", cancelled: "asyncio.Future[None]") -> None:
        """Ask the server to cancel the statement, and again: a request that overtakes its statement does nothing.

        asyncpg sends nothing else before *sent* is set. So no request meets a later statement.
        """
        try:
            while not cancelled.done():
                await self._cancel(self._loop.create_future())
                await asyncio.wait([cancelled], timeout=self._timings.cancel / 4)
        finally:
            if not sent.done():
                sent.set_result(None)

    def _give_up_unless(self, cancelled: "asyncio.Future[None]") -> None:
        if not cancelled.done():
            self.terminate()


async def has_no_other(reads: bool) -> FastConnection:
    """Give no other connection to a block.

    Raises:
        DatabaseUnavailableError: Always.
    """
    raise DatabaseUnavailableError("the connection to the database was lost before the block began", lost=True)


async def _wait_on() -> None:
    """Believe that the server will answer."""
