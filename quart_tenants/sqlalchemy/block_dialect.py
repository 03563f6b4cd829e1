"""Let SQLAlchemy run its statements on the connection that a block lends."""

import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import Text, cast, type_coerce
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects import registry as dialects
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.types import JSON

from quart_tenants.connection import Connection

DRIVER = "postgresql+quart_tenants_block"
"""The beginning of the URL of an engine that uses `BlockDialect`."""


class BorrowedConnection:
    """The connection of a block, which SQLAlchemy may use and not close.

    Attributes:
        is_ending: Whether the block is about to save or undo everything, so that the savepoint need not be ended.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.is_ending = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class _TextJSON(postgresql.JSON):
    """JSON that comes and goes as text, whatever codec the app has set for its own statements.

    SQLAlchemy sets codecs for JSON on its connections. A connection of the pool serves other blocks, too.
    """

    # The server is to take the parameter for a text.
    render_bind_cast = False

    def bind_expression(self, bindvalue: BindParameter[Any]) -> ColumnElement[Any]:
        return cast(cast(bindvalue, Text), self._database_type())

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return type_coerce(cast(column, Text), self)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        return lambda text: None if text is None else json.loads(text)

    def _database_type(self) -> postgresql.JSON:
        return postgresql.JSON()


class _TextJSONB(postgresql.JSONB, _TextJSON):
    def _database_type(self) -> postgresql.JSON:
        return postgresql.JSONB()


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

    def do_commit(self, dbapi_connection: Any) -> None:
        """Keep what was done, unless the block is about to save everything."""
        if not dbapi_connection.driver_connection.is_ending:
            asked: Any = super()
            asked.do_commit(dbapi_connection)

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Undo what was done since the last commit, unless the block is about to undo everything."""
        if not dbapi_connection.driver_connection.is_ending:
            asked: Any = super()
            asked.do_rollback(dbapi_connection)

    def do_close(self, dbapi_connection: Any) -> None:
        """Leave the connection to its block."""

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Leave the connection to its block."""


dialects.register(DRIVER.replace("+", "."), __name__, BlockDialect.__name__)
