"""Let SQLAlchemy run its statements on the connection that a block lends."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import registry as dialects
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.types import JSON

from quart_tenants.connection import Connection

DRIVER = "postgresql+quart_tenants_block"
"""The beginning of the URL of an engine that uses `BlockDialect`."""

_INTERRUPTED = "a statement of this session was interrupted, so nothing of it can be saved: leave the block"


class BorrowedConnection:
    """The connection of a block, which SQLAlchemy may use and not close.

    Attributes:
        is_interrupted: Whether SQLAlchemy wanted to close it, as it does after a cancellation. What was done since the
            last commit is not undone then, and SQLAlchemy believes that it is.
        is_ending: Whether the block is about to undo everything, so that nothing has to be undone by itself.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection: Any = connection
        self.is_interrupted = False
        self.is_ending = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def prepare(self, query: str, **_: Any) -> Any:
        """Prepare *query*, for which JSON is text: SQLAlchemy's types read and write it."""
        statement = await self._connection.prepare(query)
        # The block has its connection for good now.
        return _JSONAsText(statement, self._connection.itself)

    async def executemany(self, query: str, args: Iterable[Sequence[object]]) -> None:
        """Run *query* for each of *args*."""
        statement = await self.prepare(query)
        await statement.executemany(args)

    def check_usable(self) -> None:
        """Make sure that everything which was rolled back is undone.

        Raises:
            InvalidRequestError: A statement was interrupted, and nothing is undone.
        """
        if self.is_interrupted:
            raise InvalidRequestError(_INTERRUPTED)


class _JSONAsText:
    """A prepared statement, or a cursor of it, that takes and returns JSON as text, whatever codec the app has set."""

    def __init__(self, wrapped: Any, driver: Any) -> None:
        self._wrapped = wrapped
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    async def fetch(self, *args: object) -> Any:
        with self._driver.json_as_text():
            return await self._wrapped.fetch(*args)

    async def executemany(self, args: Iterable[Sequence[object]]) -> None:
        with self._driver.json_as_text():
            await self._wrapped.executemany(args)

    async def cursor(self, *args: object) -> "_JSONAsText":
        with self._driver.json_as_text():
            return _JSONAsText(await self._wrapped.cursor(*args), self._driver)


class _TextJSON(postgresql.JSON):
    """JSON that the driver takes and returns as text.

    SQLAlchemy sets codecs for JSON on its own connections. A connection of the pool serves other blocks, too.
    """

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        return lambda text: None if text is None else json.loads(text)


class _TextJSONB(postgresql.JSONB, _TextJSON):
    """The same for jsonb."""


class BlockDialect(PGDialect_asyncpg):
    """SQLAlchemy's dialect for asyncpg, on a connection that belongs to a block.

    SQLAlchemy's transaction is a savepoint in the block's, because asyncpg makes it so.
    """

    supports_statement_cache = True
    colspecs = PGDialect_asyncpg.colspecs | {JSON: _TextJSON, postgresql.JSON: _TextJSON, postgresql.JSONB: _TextJSONB}

    def on_connect(self) -> None:
        """Set nothing on the connection: what a block sets there costs it its connection."""

    def initialize(self, connection: Any) -> None:
        """Find out what the server can do, and forget whose schema that was asked in."""
        asked: Any = super()
        asked.initialize(connection)
        self.default_schema_name = None

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Undo what was done since the last commit, unless the block is about to undo everything."""
        if not dbapi_connection.driver_connection.is_ending:
            asked: Any = super()
            asked.do_rollback(dbapi_connection)

    def do_close(self, dbapi_connection: Any) -> None:
        """Leave the connection to its block."""

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Leave the connection to its block, which cannot be saved any more."""
        dbapi_connection.driver_connection.is_interrupted = True

    def do_begin_twophase(self, connection: Any, xid: Any) -> NoReturn:
        """Refuse it: the transaction is the block's."""
        raise InvalidRequestError("the transaction is the block's, which has one phase")

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> NoReturn:
        """Refuse it: the transaction has begun."""
        raise InvalidRequestError("the block's transaction has begun: its isolation level cannot be changed")

    def set_readonly(self, connection: Any, value: Any) -> NoReturn:
        """Refuse it: the transaction has begun."""
        raise InvalidRequestError("the block's transaction has begun: use tenant_session(read_only=True)")

    def set_deferrable(self, connection: Any, value: Any) -> NoReturn:
        """Refuse it: the transaction has begun."""
        raise InvalidRequestError("the block's transaction has begun: it cannot be made deferrable")


dialects.register(DRIVER.replace("+", "."), __name__, BlockDialect.__name__)
