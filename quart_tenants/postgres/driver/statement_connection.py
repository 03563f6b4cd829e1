"""A connection that keeps prepared statements, and knows which ones the server has."""

import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import asyncpg

from quart_tenants.postgres.driver.block_statements import FORGET_STATEMENTS, REPEATED
from quart_tenants.postgres.driver.messages import write_closes, write_preparation
from quart_tenants.postgres.driver.pooled_connection import CLEANUP_TIMEOUT, PooledConnection
from quart_tenants.postgres.driver.statement_cache import Statement, StatementCache

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

OUTDATED_ERRORS = (
    asyncpg.InvalidCachedStatementError,
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.OutdatedSchemaCacheError,
)
"""What PostgreSQL says about a prepared statement that fits no more, or that somebody has deallocated.

The last is asyncpg's: a type that it knows has changed.
"""
# What a kept statement may say where a column has another type now, and a new one would not.
_MISFIT_ERRORS = (asyncpg.DataError, asyncpg.SyntaxOrAccessError)


class Call(NamedTuple):
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


class StatementConnection(PooledConnection):
    """A connection that keeps statements for the tenants whose blocks run here, and closes all others.

    asyncpg's own cache is off: in it all tenants share a statement.

    Attributes:
        direct: Whether this is the server's one client, with no pooler in between.
    """

    __slots__ = ("_by_name", "_named", "_statements", "direct")
    _drop_global_type_cache: Any
    _get_unique_id: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.direct = False
        self._statements: StatementCache | None = None
        # Whether the block may have prepared a statement by SQL, under a name that nobody knows.
        self._by_name = False
        # Statements that the driver has prepared for the block only.
        self._named: list[str] = []

    def _keep_statements(self, size: int) -> None:
        """Keep at most *size* from now on, besides `REPEATED`: the connection is direct."""
        self.direct = True
        self._transport.write(write_preparation())
        if size:
            self._statements = StatementCache(size)

    def _note_names(self, query: str) -> None:
        """Take note of whether *query* may prepare a statement by SQL, or drop one."""
        if not self._by_name:
            self._by_name = _NAMES_STATEMENTS.search(query) is not None

    def _find_kept(self, call: Call) -> Statement | None:
        """Return the kept statement by which *call* may be done."""
        if self._statements is None or self._query_loggers or call.ignore_custom_codec or call.record_class is not None:
            return None
        return self._statements.find(call.query, call.args)

    async def _execute_prepared(self, call: Call) -> Any:
        """Do *call* by a kept statement, or else as asyncpg does it."""
        kept = self._find_kept(call)
        try:
            if kept is None:
                return await call.pass_to(super()._execute)
            return await self._protocol.bind_execute(kept, call.args, "", call.limit, call.return_status, call.timeout)
        except BaseException as error:
            self._note_failure(call.query, error)
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
        """Return *query* prepared anew, and keep it if that is safe. What is kept and fits is not asked for here."""
        options = {"ignore_custom_codec": ignore_custom_codec, "record_class": record_class}
        statements = self._statements
        keeps = use_cache and not named and record_class is None and not ignore_custom_codec
        if statements is None or not keeps or not statements.takes(query):
            name = named if isinstance(named, str) else self._get_unique_id("stmt") if named else ""
            if name:
                # Before it is there: it is closed also if the answer is never heard.
                self._named.append(name)
            return await super()._get_statement(query, timeout, named=name, use_cache=False, **options)
        # Ahead of what is prepared now, for a block may be long.
        self._send(write_closes(statements.take_dropped()))
        # A name that no other client has: should a pooler swap the server process, this one finds none.
        name = f"quart_tenants_{secrets.token_hex(8)}"
        try:
            statement = await super()._get_statement(query, timeout, named=name, use_cache=False, **options)
        except BaseException:
            self._named.append(name)
            raise
        statements.keep(query, statement)
        return statement

    def _take_closes(self) -> bytes:
        """Return the messages that close what this block has prepared, and what is not kept any longer."""
        if self._statements is not None:
            self._named += self._statements.take_dropped()
        if not self._named:
            return b""
        names, self._named = self._named, []
        return write_closes(names)

    def _send(self, messages: bytes) -> None:
        """Send *messages* ahead of the next statement."""
        # To write nothing would send what waits in the transport, as a packet of its own.
        if messages:
            self._transport.write(messages)

    async def _run_last(self, statements: tuple[str, ...], seconds: float | None, *, tame: bool) -> None:
        """Run *statements*, and leave the server no prepared ones but those that are known here.

        Args:
            statements: What ends the block.
            seconds: They may take.
            tame: Whether the block can have prepared or dropped nothing by SQL unseen.
        """
        if not self.is_closed():
            self._send(self._take_closes())
        forgets = self._by_name or not self.direct or not (tame or self.may_look)
        looks = not forgets and not tame
        if forgets:
            # No name of a handler's own may be left. Behind a pooler there is none of ours.
            statements += (FORGET_STATEMENTS,)
        elif looks:
            expected = len(REPEATED) + (0 if self._statements is None else len(self._statements))
            statements += (_FIND_STRANGE_STATEMENTS.format(expected=expected),)
        status = await self._run("; ".join(statements), seconds)
        if looks and status == _FOUND:
            await self._run(FORGET_STATEMENTS, CLEANUP_TIMEOUT)
            forgets = True
        if forgets and self._statements is not None:
            self._statements.forget_all()
        if forgets and self.direct:
            self._transport.write(write_preparation())

    def _note_failure(self, query: str, error: BaseException) -> None:
        """Drop what is not to be kept after *error*, which *query* has raised."""
        if self._statements is None:
            return
        if isinstance(error, asyncpg.OutdatedSchemaCacheError):
            self._drop_global_type_cache()
            self._statements.forget_tenant()
        elif isinstance(error, asyncpg.InvalidCachedStatementError):
            self._statements.forget_tenant()
        elif isinstance(error, asyncpg.InvalidSQLStatementNameError):
            # Somebody has deallocated it, and perhaps others.
            self._statements.forget_all()
            self._by_name = True
        elif isinstance(error, _MISFIT_ERRORS):
            self._statements.forget(query)

    def _drop_local_statement_cache(self) -> None:
        super()._drop_local_statement_cache()  # type: ignore[misc]
        if self._statements is not None:
            self._statements.forget_tenant()

    def _drop_global_statement_cache(self) -> None:
        # Those of other connections find out for themselves, and there is nothing wrong with those of other tenants.
        self._drop_local_statement_cache()
