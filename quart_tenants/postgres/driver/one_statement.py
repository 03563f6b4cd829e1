"""A connection that takes one statement at a time when told to, so that nothing can be stacked behind it."""

import re
from typing import TYPE_CHECKING, Any, NoReturn

import asyncpg

if TYPE_CHECKING:
    _AsyncpgConnection = asyncpg.Connection[asyncpg.Record]
else:
    _AsyncpgConnection = asyncpg.Connection

# What asyncpg's own transaction() sends; nothing of the caller's is in it. A prepared statement would cost a message.
_SAVEPOINT = re.compile(r"(?:SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO) \w+;")


class OneStatementConnection(_AsyncpgConnection):
    """A connection whose `execute` and `copy_…` refuse two statements in one text while `one_statement` is set.

    PostgreSQL's simple protocol runs `SELECT …; RESET ROLE; SELECT …` as three statements, and asyncpg speaks it
    wherever there are no arguments. The extended protocol takes one statement, or none.
    """

    __slots__ = ("one_statement",)
    _server_caps: Any
    _check_open: Any
    _execute: Any
    _get_statement: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.one_statement = False

    async def execute(self, query: str, *args: object, timeout: float | None = None) -> str:  # noqa: ASYNC109  (asyncpg's)
        """Execute *query*, as asyncpg does it; without *args*, too, it is one statement."""
        if args or not self.one_statement or _SAVEPOINT.fullmatch(query):
            return await super().execute(query, *args, timeout=timeout)
        self._check_open()
        _, status, _ = await self._execute(query, (), 0, timeout, return_status=True)
        return status.decode() if status else ""

    async def copy_records_to_table(self, table_name: str, *, where: str | None = None, **options: Any) -> str:
        """Copy records, as asyncpg does it, but without its *where*, which is text for the simple protocol.

        Raises:
            asyncpg.InterfaceError: *where* is given.
        """
        if where is not None and self.one_statement:
            _refuse("copy_records_to_table(where=…) is not taken where tenants have roles of their own")
        status: str = await super().copy_records_to_table(table_name, where=where, **options)
        return status

    async def _copy_out(self, copy_stmt: str, output: Any, timeout: float | None) -> str:  # noqa: ASYNC109
        await self._check_single(copy_stmt, timeout)
        status: str = await super()._copy_out(copy_stmt, output, timeout)  # type: ignore[misc]
        return status

    async def _copy_in(self, copy_stmt: str, source: Any, timeout: float | None) -> str:  # noqa: ASYNC109
        await self._check_single(copy_stmt, timeout)
        status: str = await super()._copy_in(copy_stmt, source, timeout)  # type: ignore[misc]
        return status

    async def _check_single(self, statement: str, seconds: float | None) -> None:
        """Let the server parse *statement*, which it refuses if there are two."""
        if self.one_statement:
            await self._get_statement(statement, seconds, use_cache=False)

    async def _introspect_types(self, typeoids: Any, timeout: float | None) -> Any:  # noqa: ASYNC109
        # asyncpg switches jit off by set_config(), which a tenant's role may not run.
        if self.one_statement and self._server_caps.jit:
            self._server_caps = self._server_caps._replace(jit=False)
        if self.one_statement:
            await super().execute("SET LOCAL jit TO off")
        return await super()._introspect_types(typeoids, timeout)  # type: ignore[misc]


def _refuse(reason: str) -> NoReturn:
    raise asyncpg.InterfaceError(reason)
