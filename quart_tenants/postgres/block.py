"""Run one transaction on one pooled connection, and give it back clean, whatever happens."""

import asyncio
import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias, cast

import asyncpg

from quart_tenants.errors import (
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    PoolExhaustedError,
    TenantError,
    TransactionLostError,
    UnknownTenantError,
)
from quart_tenants.tenant import Tenant

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection: TypeAlias = PoolConnectionProxy[asyncpg.Record]
    """What a block lends: an asyncpg connection inside a transaction."""
    DriverConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    DriverConnection = asyncpg.Connection

# The empty SELECT fails in a transaction that an error has already doomed. Without it COMMIT would
# answer "ROLLBACK" there without an error, and the caller would believe that its rows are saved.
_COMMIT = "SELECT; COMMIT"

_LIST_PATH = "SELECT pg_catalog.current_schemas(false)::text[]"
_SCHEMA_EXISTS = "SELECT pg_catalog.to_regnamespace(pg_catalog.quote_ident($1)) IS NOT NULL"

# What a lost server looks like depends on the moment it was lost.
DRIVER_ERRORS = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError)
_SERVER_GONE_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)


class BlockConnection(DriverConnection):
    """A connection that knows about its block, so that `transaction()` inside it makes a savepoint.

    asyncpg refuses `transaction()` in a transaction that it did not begin itself, and begins one by a
    message of its own; ours comes together with the path.
    """

    __slots__ = ()
    _top_xact: asyncpg.transaction.Transaction | None

    async def begin_block(self, statements: str, seconds: float) -> str:
        """Run *statements*, which begin the transaction; return the status of the last."""
        status = await self.execute(statements, timeout=seconds)
        self._top_xact = self.transaction()
        return status

    async def end_block(self, statements: str, seconds: float | None = None) -> None:
        """Run *statements*, which end it."""
        self._top_xact = None
        await self.execute(statements, timeout=seconds)


class Block:
    """One transaction on one connection. Made by `Database`, entered once by `async with`."""

    __slots__ = ("_begin", "_connection", "_entered", "_first", "_pool", "_reset", "_tenant", "_timeout", "status")

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        begin: str,
        reset: str,
        timeout: float,
        tenant: Tenant | None = None,
        first: str = "",
    ) -> None:
        self._pool = pool
        self._begin = begin
        self._reset = reset
        self._timeout = timeout
        self._tenant = tenant
        self._first = first
        # Of the last statement in the message that began the transaction, such as "INSERT 0 1".
        self.status = ""
        self._entered = False
        self._connection: Connection | None = None

    async def __aenter__(self) -> "Connection":
        if self._entered:
            raise RuntimeError("this block was entered before: ask for a new one")
        self._entered = True
        self._connection = await self._begin_on_live_connection()
        return self._connection

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection = self._connection
        if connection is None:
            raise RuntimeError("this block was never entered")
        if exc is None:
            await self._commit(connection)
            return
        # Asked before the rollback, which may close the connection for reasons of its own.
        translated = _translate(exc, connection)
        await self._roll_back(connection)
        if translated is not None:
            raise translated from exc
        if isinstance(exc, asyncpg.UndefinedTableError) and self._tenant is not None and await self._is_gone():
            raise UnknownTenantError(self._tenant.slug) from exc

    async def _begin_on_live_connection(self) -> "Connection":
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        # After a restart of the server every pooled connection is dead, and nothing was done on any
        # of them yet: it is safe to go on to the next, until one is fresh.
        attempts = self._pool.get_max_size() + 1
        while True:
            attempts -= 1
            connection = await self._acquire(deadline - loop.time())
            try:
                seconds = max(deadline - loop.time(), 0.001)
                statements = f"{self._begin}; {self._first}" if self._first else self._begin
                self.status = await _see_through(connection).begin_block(statements, seconds)
            except BaseException as error:
                if self._first and isinstance(error, asyncpg.PostgresError) and not _is_gone(error, connection):
                    # The server is well, and refuses what the caller sends with BEGIN.
                    await self._roll_back(connection)
                    raise
                # Also on cancellation: nobody knows how far BEGIN came.
                _discard(connection)
                if isinstance(error, TimeoutError):
                    raise DatabaseUnavailableError("the database did not answer BEGIN in time") from error
                if not isinstance(error, DRIVER_ERRORS):
                    raise
                if attempts == 0:
                    raise DatabaseUnavailableError(f"no transaction could begin: {describe(error)}") from error
            else:
                return connection

    async def _is_gone(self) -> bool:
        """Return whether the tenant was dropped, which this worker may not have heard of yet."""
        schema = "" if self._tenant is None else self._tenant.schema.name
        try:
            exists = await self._pool.fetchval(_SCHEMA_EXISTS, schema, timeout=self._timeout)
        except DRIVER_ERRORS:
            return False
        return not exists

    async def _acquire(self, seconds: float) -> "Connection":
        try:
            return await self._pool.acquire(timeout=max(seconds, 0.001))
        except TimeoutError as error:
            size = self._pool.get_max_size()
            if self._pool.get_size() == size and self._pool.get_idle_size() == 0:
                raise PoolExhaustedError(f"all {size} connections were in use for {self._timeout:g} s") from error
            raise DatabaseUnavailableError("the database did not accept a connection in time") from error
        except DRIVER_ERRORS as error:
            raise DatabaseUnavailableError(f"cannot connect to the database: {describe(error)}") from error

    async def _commit(self, connection: "Connection") -> None:
        if _is_lost(connection):
            _discard(connection)
            raise DatabaseUnavailableError("the connection to the database was lost before the block ended")
        if not connection.is_in_transaction():
            await self._roll_back(connection)
            raise TransactionLostError("the block's transaction was ended inside the block; leave that to the block")
        try:
            await _see_through(connection).end_block(f"{_COMMIT}; {self._reset}")
        except asyncpg.InFailedSQLTransactionError as error:
            await self._roll_back(connection)
            raise TransactionLostError(
                "a statement failed and its error was caught inside the block, so nothing was saved; "
                "catch it around the block, or put the statement into `async with connection.transaction()`"
            ) from error
        except BaseException as error:
            translated = _translate(error, connection)
            if translated is None and isinstance(error, asyncpg.PostgresError):
                # The server said no, such as by a deferred constraint, and is well.
                await self._roll_back(connection)
                raise
            # Also on cancellation: nobody knows how far COMMIT came, and the reset did not.
            _discard(connection)
            if translated is not None:
                raise translated from error
            raise
        await self._pool.release(connection)

    async def _roll_back(self, connection: "Connection") -> None:
        """Give *connection* back clean, or close it. Raises nothing but a cancellation."""
        if _is_lost(connection):
            _discard(connection)
            return
        try:
            # asyncpg first waits until the statement that was interrupted is cancelled.
            await _see_through(connection).end_block(f"ROLLBACK; {self._reset}", self._timeout)
        except DRIVER_ERRORS:
            # TimeoutError is an OSError.
            _discard(connection)
        except BaseException:
            _discard(connection)
            raise
        else:
            await self._pool.release(connection)


def _translate(error: BaseException, connection: "Connection") -> TenantError | None:
    """Return our error for a lost server and for a statement's timeout, or None for all else."""
    if isinstance(error, TenantError):
        return None
    # The second is the server's own statement_timeout.
    if isinstance(error, TimeoutError | asyncpg.QueryCanceledError):
        return DatabaseTimeoutError("a statement took too long and was cancelled")
    if isinstance(error, DRIVER_ERRORS) and _is_gone(error, connection):
        return DatabaseUnavailableError(f"the connection to the database was lost: {describe(error)}")
    return None


def _is_gone(error: BaseException, connection: "Connection") -> bool:
    """Return whether *error* means that the server, or the connection to it, is lost."""
    return isinstance(error, _SERVER_GONE_ERRORS) or _is_lost(connection)


def _see_through(connection: "Connection") -> BlockConnection:
    # The pool's proxy passes on what it does not know itself.
    return cast("BlockConnection", connection)


def _is_lost(connection: "Connection") -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        # asyncpg takes a connection back into the pool in the moment it dies.
        return True


def _discard(connection: "Connection") -> None:
    """Close *connection*; the pool opens another one in its place.

    Also one that is closed already: asyncpg closes it after an error of its own, such as text that is
    no Unicode, without giving its place in the pool back.
    """
    with contextlib.suppress(asyncpg.InterfaceError):
        connection.terminate()


async def list_path(connection: "Connection | DriverConnection") -> list[str]:
    """Return the schemas that *connection* sees, those that exist only."""
    schemas: list[str] = await connection.fetchval(_LIST_PATH)
    return schemas


def find_reported_path(connection: "Connection") -> str | None:
    """Return search_path as the server last told it without being asked, which it does from PostgreSQL 18 on."""
    path: str | None = getattr(connection.get_settings(), "search_path", None)
    return path


def describe(error: BaseException) -> str:
    """Return what a driver's error says, which is nothing at times."""
    return str(error) or type(error).__name__
