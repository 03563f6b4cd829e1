"""A connection that uses nothing of asyncpg's but what its documentation promises.

It serves wherever asyncpg is another one than the fast connection knows. A block costs four messages here, where a fast
connection needs one for a block that only reads.
"""

from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg

from quart_tenants.errors import DatabaseUnavailableError
from quart_tenants.postgres.driver.block_statements import (
    CHECKED_COMMIT,
    FORGET_STATEMENTS,
    RESET,
    RESET_AHEAD,
    ROLLBACK,
    SAVEPOINT_TEXT,
    Beginning,
)
from quart_tenants.postgres.driver.noting_connection import NotingConnection
from quart_tenants.postgres.driver.timings import Timings

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

# asyncpg writes these options of COPY as they are.
_UNQUOTED = ("oids", "freeze", "header")


class PlainConnection(NotingConnection):
    """A connection that asyncpg's pool gets back after each block.

    asyncpg's pool takes its handle back then, and whatever the block's handler has kept is of no use any more.
    """

    __slots__ = (
        "_loggers",
        "_one_statement",
        "_outermost",
        "_replacement",
        "_seconds",
        "_status",
    )
    is_fast = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loggers: list[Any] = []
        self._outermost: Any = None
        self._one_statement = False
        # What is sent in place of the next BEGIN, COMMIT or ROLLBACK of asyncpg's transaction().
        self._replacement = ""
        self._seconds: float | None = None
        self._status = ""

    def keep_as_it_is(self) -> None:
        """Take what was set so far for what every block is to have."""
        super().keep_as_it_is()
        self._loggers.clear()

    def set_timings(self, timings: Timings) -> None:
        """Wait as long as *timings* say."""
        self._timings = timings

    @property
    def needs_reset(self) -> bool:
        """Whether the connection is not reset, which it is after every block."""
        return False

    def lend(self) -> "Connection":
        """Return the handle for the present block."""
        proxy: Connection = self.proxy
        return proxy

    async def begin_block(self, beginning: Beginning, first: str, within: float) -> str:
        """Begin a block; return the status of the last statement.

        Args:
            beginning: How the block begins.
            first: SQL that goes with it; may be empty.
            within: Seconds that it may take.
        """
        self._one_statement = False
        if self.note_versions(beginning.tenant):
            await self.reload_schema_state()
        self._outermost = self.transaction()
        # The reset once more: whoever kept a handle may have used it until asyncpg's pool took it back.
        statements = (*RESET_AHEAD, *beginning.statements, *((first,) if first else ()))
        await self._send_instead("; ".join(statements), within, self._outermost.start)
        self._one_statement = beginning.with_role
        return self._status

    def go_on_as(self, beginning: Beginning) -> None:
        """Take the block for one with *beginning*, whose statements were run in it."""
        self._one_statement = beginning.with_role

    def leave_block(self) -> bool:
        """Return False: a block always has to be ended."""
        return False

    async def end_block(self, *, commit: bool, within: float | None = None) -> None:
        """End the block, and reset everything. Raises the driver's errors; the connection is then to be closed.

        Args:
            commit: Whether to keep what the block did.
            within: Seconds that it may take; None for the command timeout.
        """
        self._one_statement = False
        while self._loggers:
            # They hear of the handler's statements only.
            self.remove_query_logger(self._loggers.pop())
        outermost, self._outermost = self._outermost, None
        text = "; ".join((*(CHECKED_COMMIT if commit else (ROLLBACK,)), *RESET, FORGET_STATEMENTS))
        if outermost is None:
            # COMMIT was refused before.
            await super().execute(text, timeout=within)
        else:
            await self._send_instead(text, within, outermost.commit if commit else outermost.rollback)

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109  (asyncpg's)
        """Execute *query*, as asyncpg does it; in a block with a role it is one statement."""
        if self._replacement:
            query, self._replacement = self._replacement, ""
            self._status = await super().execute(query, timeout=self._seconds)
            return self._status
        if args or not self._one_statement or SAVEPOINT_TEXT.fullmatch(query):
            return await self._run_noted(query, super().execute(query, *args, timeout=timeout))
        return await self._run_noted(query, self._execute_one(query, timeout))

    async def _execute_one(self, query: str, seconds: float | None) -> str:
        statement = await self.prepare(query, timeout=seconds)
        await statement.fetch(timeout=seconds)
        return statement.get_statusmsg() or ""

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        """Return rows, as asyncpg does it."""
        return await self._run_noted(query, super().fetch(query, *args, **options), len)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        """Return a row, as asyncpg does it."""
        return await self._run_noted(query, super().fetchrow(query, *args, **options), lambda row: row is not None)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        """Return a value of a row, as asyncpg does it."""
        return await self._run_noted(query, super().fetchval(query, *args, **options))

    async def executemany(self, command: str, *args: Any, **options: Any) -> Any:
        """Execute *command* for many arguments, as asyncpg does it."""
        return await self._run_noted(command, super().executemany(command, *args, **options))

    def count_queries(self) -> int:
        """Return 0: only asyncpg's inside knows how many messages were sent."""
        return 0

    async def copy_from_query(self, query: str, *args: Any, **options: Any) -> str:
        """Copy the rows of *query*, as asyncpg does it; in a block with a role it is one statement."""
        # The line's end closes a comment, in which what follows would be lost.
        query += "\n"
        await self._check_copy(options, query)
        return await super().copy_from_query(query, *args, **options)

    async def copy_from_table(self, table_name: str, **options: Any) -> str:
        """Copy rows from a table, as asyncpg does it."""
        await self._check_copy(options)
        return await super().copy_from_table(table_name, **options)

    async def copy_to_table(self, table_name: str, **options: Any) -> str:
        """Copy rows to a table, as asyncpg does it; in a block with a role without *where*: it may hold any statement.

        Raises:
            asyncpg.InterfaceError: *where* is given.
        """
        await self._check_copy(options)
        return await super().copy_to_table(table_name, **options)

    async def copy_records_to_table(self, table_name: str, **options: Any) -> str:
        """Copy records, as asyncpg does it; in a block with a role without *where*: it may hold any statement.

        Raises:
            asyncpg.InterfaceError: *where* is given.
        """
        await self._check_copy(options)
        return await super().copy_records_to_table(table_name, **options)

    def add_log_listener(self, *args: Any) -> None:
        """Add it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        super().add_log_listener(*args)

    def add_query_logger(self, callback: Any) -> None:
        """Add it, as asyncpg does it: for this block, after which the connection is closed."""
        self._loggers.append(callback)
        super().add_query_logger(callback)

    async def _send_instead(self, text: str, seconds: float | None, step: Any) -> None:
        """Let *step* of asyncpg's transaction() send *text* in place of its own statement."""
        self._replacement, self._seconds = text, seconds
        began_at = monotonic()
        try:
            await step()
        finally:
            self.record.statement_seconds += monotonic() - began_at
            unsent, self._replacement = self._replacement, ""
        if unsent:
            self.terminate()
            raise DatabaseUnavailableError(
                "this asyncpg sends the begin and the end of a transaction in an unknown way"
            )

    async def _check_copy(self, options: dict[str, Any], query: str = "") -> None:
        if not self._one_statement:
            return
        if options.get("where") is not None:
            raise asyncpg.InterfaceError("where=… of a copy is not taken where tenants have roles of their own")
        for name in _UNQUOTED:
            if not isinstance(options.get(name), bool | None):
                raise asyncpg.InterfaceError(f"{name}=… of a copy is True or False")
        if query:
            # The server parses it, and refuses it if it is two statements.
            await self.prepare(query)
