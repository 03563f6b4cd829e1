"""Lend connections that see one tenant. The only place that sets search_path.

One block is one transaction: `BEGIN; SET LOCAL search_path TO "acme"` in one message, and the
commit together with a full reset in another. `SET LOCAL` ends with its transaction whatever
happens, which is why this is safe under cancellation and behind a pooler where a session-level
`SET` is not. The connection's own default path is empty: outside a block there are no tables.
"""

import asyncio
import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias, cast

import asyncpg

from quart_tenants.errors import (
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    PoolExhaustedError,
    SettingError,
    TenantError,
    TransactionLostError,
)
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Tenant

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection: TypeAlias = PoolConnectionProxy[asyncpg.Record]
    """What a block lends: an asyncpg connection inside a transaction."""
    DriverConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    DriverConnection = asyncpg.Connection

# asyncpg's own reset, and three things it leaves behind that reached the next user of a connection:
# the role, temporary tables and the state of sequences. Never DISCARD ALL: it would also drop the
# statements that asyncpg believes to be prepared.
_RESET = (
    "SELECT pg_catalog.pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; SET SESSION AUTHORIZATION DEFAULT;"
    " RESET ALL; DISCARD TEMP; DISCARD SEQUENCES"
)
# The empty SELECT fails in a transaction that an error has already doomed. Without it COMMIT would
# answer "ROLLBACK" there without an error, and the caller would believe that its rows are saved.
_COMMIT = "SELECT; COMMIT"

# What a lost server looks like depends on the moment it was lost.
_DRIVER_ERRORS = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError)
_SERVER_GONE_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)


class _BlockConnection(DriverConnection):
    """A connection that knows about its block, so that `transaction()` inside it makes a savepoint.

    asyncpg refuses `transaction()` in a transaction that it did not begin itself, and begins one by a
    message of its own; ours comes together with the path.
    """

    __slots__ = ()
    _top_xact: asyncpg.transaction.Transaction | None

    async def begin_block(self, statements: str, seconds: float) -> None:
        await self.execute(statements, timeout=seconds)
        self._top_xact = self.transaction()

    async def end_block(self, statements: str, seconds: float | None = None) -> None:
        self._top_xact = None
        await self.execute(statements, timeout=seconds)


class Database:
    """One asyncpg pool, lent block by block."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        # With the cache off asyncpg names no statement, so those left are a handler's own.
        self._reset = _RESET if settings.statement_cache_size else f"{_RESET}; DEALLOCATE ALL"

    @classmethod
    async def open(cls, settings: Settings, *, max_size: int | None = None) -> Self:
        """Connect to the database that *settings* name.

        Args:
            settings: Timeouts, sizes and the address.
            max_size: Connections at most; default: the setting. A command needs one or two.

        Raises:
            SettingError: The address is missing or malformed.
            DatabaseUnavailableError: Nobody answers there, or not to us.
        """
        max_size = max_size or settings.pool_max_size
        try:
            pool = asyncpg.create_pool(
                settings.required_database_url,
                min_size=min(settings.pool_min_size, max_size),
                max_size=max_size,
                timeout=settings.connect_timeout,
                command_timeout=settings.command_timeout,
                statement_cache_size=settings.statement_cache_size,
                reset=_leave_as_is,
                connection_class=_BlockConnection,
                server_settings={"search_path": "", "application_name": "quart_tenants"},
            )
            await pool
            try:
                # A pool that may start empty would find out about a wrong address only later.
                async with pool.acquire(timeout=settings.connect_timeout):
                    pass
            except BaseException:
                pool.terminate()
                raise
        except (ValueError, asyncpg.ClientConfigurationError) as error:
            # Without asyncpg's words: they repeat a part of the URL, which holds a password.
            raise SettingError(
                "TENANTS_DATABASE_URL", "cannot be understood; check its port and its options"
            ) from error
        except _DRIVER_ERRORS as error:
            raise DatabaseUnavailableError(
                f"cannot connect to the database: {_describe(error)}; is it running, and is TENANTS_DATABASE_URL right?"
            ) from error
        return cls(pool, settings)

    async def close(self) -> None:
        """Close the pool: wait up to the command timeout for blocks that are open, then cut them off."""
        try:
            async with asyncio.timeout(self._settings.command_timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def tenant_connection(self, tenant: Tenant) -> "Block":
        """Return a block that lends a connection which sees *tenant*'s tables and no others.

        `async with` begins a transaction; leaving the block commits it, leaving it by an exception
        or a cancellation rolls it back. Blocks do not nest: an inner one is a transaction of its own
        on a connection of its own.

        Raises:
            PoolExhaustedError: No connection came free within `TENANTS_ACQUIRE_TIMEOUT`.
            DatabaseUnavailableError: The database cannot be reached, or was lost inside the block.
            DatabaseTimeoutError: A statement took longer than `TENANTS_COMMAND_TIMEOUT`.
            TransactionLostError: The block ended without an error, but nothing could be saved.
        """
        return Block(self._pool, f"BEGIN; {_set_path(tenant.schema)}", self._reset, self._settings.acquire_timeout)

    def connection(self) -> "Block":
        """Return a block with an empty path, for statements that write every name in full.

        Raises the same errors as `tenant_connection`.
        """
        # Also where a pooler has dropped the connection's own empty path.
        begin = "BEGIN; SET LOCAL search_path TO ''"
        return Block(self._pool, begin, self._reset, self._settings.acquire_timeout)


class Block:
    """One transaction on one connection. Made by `Database`, entered once by `async with`."""

    __slots__ = ("_begin", "_connection", "_entered", "_pool", "_reset", "_timeout")

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", begin: str, reset: str, timeout: float) -> None:
        self._pool = pool
        self._begin = begin
        self._reset = reset
        self._timeout = timeout
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
                await _see_through(connection).begin_block(self._begin, max(deadline - loop.time(), 0.001))
            except BaseException as error:
                # Also on cancellation: nobody knows how far BEGIN came.
                _discard(connection)
                if isinstance(error, TimeoutError):
                    raise DatabaseUnavailableError("the database did not answer BEGIN in time") from error
                if not isinstance(error, _DRIVER_ERRORS):
                    raise
                if attempts == 0:
                    raise DatabaseUnavailableError(f"no transaction could begin: {_describe(error)}") from error
            else:
                return connection

    async def _acquire(self, seconds: float) -> "Connection":
        try:
            return await self._pool.acquire(timeout=max(seconds, 0.001))
        except TimeoutError as error:
            size = self._pool.get_max_size()
            if self._pool.get_size() == size and self._pool.get_idle_size() == 0:
                raise PoolExhaustedError(f"all {size} connections were in use for {self._timeout:g} s") from error
            raise DatabaseUnavailableError("the database did not accept a connection in time") from error
        except _DRIVER_ERRORS as error:
            raise DatabaseUnavailableError(f"cannot connect to the database: {_describe(error)}") from error

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
        except _DRIVER_ERRORS:
            # TimeoutError is an OSError.
            _discard(connection)
        except BaseException:
            _discard(connection)
            raise
        else:
            await self._pool.release(connection)


async def enter_schema(connection: "Connection", schema: SchemaName) -> None:
    """Let the rest of the transaction on *connection* see *schema* alone. For making a tenant's tables."""
    await connection.execute(_set_path(schema))


def _set_path(schema: SchemaName) -> str:
    # PostgreSQL accepts a path whose schema is missing, so a dropped tenant fails with "relation does
    # not exist". `public` is left off on purpose: with it the same query would read shared rows.
    return f"SET LOCAL search_path TO {schema.quoted}"


async def _leave_as_is(connection: object) -> None:
    """Reset nothing: a connection reaches the pool only after a block has reset it."""


def _translate(error: BaseException, connection: "Connection") -> TenantError | None:
    """Return our error for a lost server and for a statement's timeout, or None for all else."""
    if isinstance(error, TenantError):
        return None
    # The second is the server's own statement_timeout.
    if isinstance(error, TimeoutError | asyncpg.QueryCanceledError):
        return DatabaseTimeoutError("a statement took too long and was cancelled")
    if isinstance(error, _DRIVER_ERRORS) and (_is_lost(connection) or isinstance(error, _SERVER_GONE_ERRORS)):
        return DatabaseUnavailableError(f"the connection to the database was lost: {_describe(error)}")
    return None


def _see_through(connection: "Connection") -> _BlockConnection:
    # The pool's proxy passes on what it does not know itself.
    return cast("_BlockConnection", connection)


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


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
