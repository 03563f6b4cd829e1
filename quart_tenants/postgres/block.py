"""Run one transaction on one pooled connection, and give it back clean, whatever happens."""

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING

import asyncpg

from quart_tenants.errors import (
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    RolesNotReadyError,
    TenantError,
    TransactionLostError,
    UnknownTenantError,
)
from quart_tenants.postgres.pool import (
    CLEANUP_TIMEOUT,
    DRIVER_ERRORS,
    BlockConnection,
    ConnectionPool,
    describe,
    see_through,
)
from quart_tenants.postgres.shares import Shares
from quart_tenants.tenant import Tenant

if TYPE_CHECKING:
    from quart_tenants.postgres.pool import Connection, DriverConnection

# The empty SELECT fails in a transaction that an error has already doomed. Without it COMMIT would
# answer "ROLLBACK" there without an error, and the caller would believe that its rows are saved.
_COMMIT = "SELECT; COMMIT"

_LIST_PATH = "SELECT pg_catalog.current_schemas(false)::text[]"
_SCHEMA_EXISTS = "SELECT pg_catalog.to_regnamespace(pg_catalog.quote_ident($1)) IS NOT NULL"

# A role that is missing, and one that is not ours to enter.
_NO_ROLE_ERRORS = (asyncpg.InvalidParameterValueError, asyncpg.InsufficientPrivilegeError)
_SERVER_GONE_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)


class Block:
    """One transaction on one connection. Made by `Database`, entered once by `async with`."""

    __slots__ = (
        "_begin",
        "_connection",
        "_driver",
        "_entered",
        "_first",
        "_pool",
        "_reset",
        "_shares",
        "_tenant",
        "_timeout",
        "_walled",
        "status",
    )
    _driver: BlockConnection

    def __init__(
        self,
        pool: ConnectionPool,
        begin: str,
        reset: str,
        timeout: float,
        tenant: Tenant | None = None,
        first: str = "",
        shares: Shares | None = None,
        *,
        walled: bool = False,
    ) -> None:
        self._pool = pool
        self._begin = begin
        self._reset = reset
        self._timeout = timeout
        self._tenant = tenant
        self._first = first
        self._shares = shares
        # Whether it runs as the tenant's role, which no text of two statements may leave.
        self._walled = walled
        # Of the last statement in the message that began the transaction, such as "INSERT 0 1".
        self.status = ""
        self._entered = False
        self._connection: Connection | None = None

    async def __aenter__(self) -> "Connection":
        if self._entered:
            raise RuntimeError("this block was entered before: ask for a new one")
        self._entered = True
        deadline = asyncio.get_running_loop().time() + self._timeout
        if self._shares is not None and self._tenant is not None:
            await self._shares.take(self._tenant, deadline)
        try:
            self._connection = await self._begin_on_live_connection(deadline)
        except BaseException:
            self._leave_share()
            raise
        return self._connection

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            raise RuntimeError("this block was never entered, or was left before")
        try:
            if exc is None:
                await self._commit(connection)
                return
            # Asked before the rollback, which may close the connection for reasons of its own.
            translated = _translate(exc, connection)
            await self._roll_back(connection)
            if translated is not None:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # The rollback of a savepoint failed, and its error took the cancellation's place.
                    raise asyncio.CancelledError from translated
                raise translated from exc
            if isinstance(exc, asyncpg.UndefinedTableError) and self._tenant is not None and await self._is_gone():
                raise UnknownTenantError(self._tenant.slug) from exc
        finally:
            self._leave_share()

    def _leave_share(self) -> None:
        if self._shares is not None and self._tenant is not None:
            self._shares.give_back(self._tenant)

    async def _begin_on_live_connection(self, deadline: float) -> "Connection":
        loop = asyncio.get_running_loop()
        statements = f"{self._begin}; {self._first}" if self._first else self._begin
        # After a restart of the server every pooled connection is dead, and nothing was done on any
        # of them yet: it is safe to go on to the next, until one is fresh.
        attempts = self._pool.max_size + 1
        quick = not self._first
        while True:
            attempts -= 1
            connection = await self._pool.acquire(deadline)
            self._driver = see_through(connection).itself
            proven = self._driver.proven
            try:
                seconds = max(deadline - loop.time(), 0.001)
                self.status = await self._driver.begin_block(
                    statements, seconds, quick=quick, one_statement=self._walled
                )
            except BaseException as error:
                if self._first and isinstance(error, asyncpg.PostgresError) and not _is_gone(error, connection):
                    # The server is well, and refuses what the caller sends with BEGIN.
                    await self._roll_back(connection)
                    raise
                if self._walled and isinstance(error, _NO_ROLE_ERRORS) and not _is_gone(error, connection):
                    await self._roll_back(connection)
                    raise await self._explain_role(error) from error
                # Also on cancellation: nobody knows how far BEGIN came.
                self._pool.discard(connection)
                if isinstance(error, TimeoutError):
                    if proven and quick and loop.time() < deadline:
                        # Once: if that was no dead connection but a slow server, it needs patience.
                        quick = False
                        await self._pool.renew(self._driver, deadline)
                        continue
                    raise DatabaseUnavailableError("the database did not answer BEGIN in time") from error
                if not isinstance(error, DRIVER_ERRORS):
                    raise
                if attempts == 0:
                    raise DatabaseUnavailableError(f"no transaction could begin: {describe(error)}") from error
            else:
                return connection

    async def _explain_role(self, error: asyncpg.PostgresError) -> TenantError:
        """Return why the tenant's role cannot be entered: it goes with a tenant that is deleted for good."""
        if self._tenant is not None and await self._is_gone():
            return UnknownTenantError(self._tenant.slug)
        return RolesNotReadyError(
            f"the role of tenant {self._tenant and self._tenant.slug!r} cannot be entered: {describe(error)}; "
            "run quart-tenants init with TENANTS_ROLE_PER_TENANT on"
        )

    async def _is_gone(self) -> bool:
        """Return whether the tenant was dropped, which this worker may not have heard of yet."""
        schema = "" if self._tenant is None else self._tenant.schema.name
        try:
            async with Block(self._pool, "BEGIN READ ONLY", self._reset, self._timeout) as connection:
                exists = await connection.fetchval(_SCHEMA_EXISTS, schema)
        except TenantError:
            return False
        return not exists

    async def _commit(self, connection: "Connection") -> None:
        if _is_lost(connection):
            self._pool.discard(connection)
            raise DatabaseUnavailableError("the connection to the database was lost before the block ended", lost=True)
        if not connection.is_in_transaction():
            await self._roll_back(connection)
            raise TransactionLostError("the block's transaction was ended inside the block; leave that to the block")
        try:
            await self._driver.end_block(f"{_COMMIT}; {self._reset}")
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
            self._pool.discard(connection)
            if translated is not None:
                raise translated from error
            raise
        await self._pool.give_back(connection, self._driver)

    async def _roll_back(self, connection: "Connection") -> None:
        """Give *connection* back clean, or close it, within half a second. Raises nothing but a cancellation."""
        if _is_lost(connection):
            self._pool.discard(connection)
            return
        try:
            # asyncpg first waits until the statement that was interrupted is cancelled.
            await self._driver.end_block(f"ROLLBACK; {self._reset}", CLEANUP_TIMEOUT)
        except BaseException as error:
            self._pool.discard(connection)
            if not isinstance(error, DRIVER_ERRORS):
                raise
        else:
            await self._pool.give_back(connection, self._driver)


def _translate(error: BaseException, connection: "Connection") -> TenantError | None:
    """Return our error for a lost server and for a statement's timeout, or None for all else."""
    if isinstance(error, TenantError):
        return None
    # The second is the server's own statement_timeout.
    if isinstance(error, TimeoutError | asyncpg.QueryCanceledError):
        return DatabaseTimeoutError("a statement took too long and was cancelled")
    if isinstance(error, DRIVER_ERRORS) and _is_gone(error, connection):
        return DatabaseUnavailableError(f"the connection to the database was lost: {describe(error)}", lost=True)
    return None


def _is_gone(error: BaseException, connection: "Connection") -> bool:
    """Return whether *error* means that the server, or the connection to it, is lost."""
    return isinstance(error, _SERVER_GONE_ERRORS) or _is_lost(connection)


def _is_lost(connection: "Connection") -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:
        # asyncpg takes a connection back into the pool in the moment it dies.
        return True


async def list_path(connection: "Connection | DriverConnection") -> list[str]:
    """Return the schemas that *connection* sees, those that exist only."""
    schemas: list[str] = await connection.fetchval(_LIST_PATH)
    return schemas


def find_reported_path(connection: "Connection") -> str | None:
    """Return search_path as the server last told it without being asked, which it does from PostgreSQL 18 on."""
    path: str | None = getattr(connection.get_settings(), "search_path", None)
    return path
