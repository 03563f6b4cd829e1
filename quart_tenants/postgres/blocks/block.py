"""Run one transaction on one pooled connection, and give it back clean, whatever happens."""

import asyncio
from types import TracebackType
from typing import Any

import asyncpg

from quart_tenants.errors import (
    DatabaseFullError,
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    RegistryNotReadyError,
    RolesNotReadyError,
    TenantError,
    TransactionLostError,
    UnknownTenantError,
)
from quart_tenants.measures.block_record import BlockRecord
from quart_tenants.postgres.blocks.shares import Shares
from quart_tenants.postgres.driver.block_statements import BEGIN_READ_ONLY, Beginning
from quart_tenants.postgres.driver.connection_types import (
    DRIVER_ERRORS,
    Connection,
    DriverConnection,
    describe,
    is_drivers,
)
from quart_tenants.postgres.driver.fast.fast_connection import FastConnection, has_no_other
from quart_tenants.postgres.driver.fast.lent_connection import LentConnection
from quart_tenants.postgres.driver.opening import BlockConnection
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.driver.schema_check import NO_REGISTRY_ERRORS, SchemaCheck
from quart_tenants.postgres.pool.connection_pool import ConnectionPool
from quart_tenants.postgres.pool.pooled_connection import PooledConnection
from quart_tenants.tenant import Tenant

_LIST_PATH = "SELECT pg_catalog.current_schemas(false)::text[]"
# What is missing where the path leads to no schema any more.
_MISSING_ERRORS = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedObjectError,
    asyncpg.InvalidSchemaNameError,
)
# A role that is missing, and one that is not ours to enter.
_NO_ROLE_ERRORS = (asyncpg.InvalidParameterValueError, asyncpg.InsufficientPrivilegeError)
SERVER_GONE_ERRORS = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)


class Block:
    """One transaction on one connection. Made by `Database`, entered once by `async with`."""

    _pooled: PooledConnection
    _record: BlockRecord

    def __init__(
        self,
        pool: ConnectionPool,
        beginning: Beginning,
        timeout: float,
        tenant: Tenant | None = None,
        first: str = "",
        shares: Shares | None = None,
        *,
        is_known: bool = False,
    ) -> None:
        self._pool = pool
        self._beginning = beginning
        self._timeout = timeout
        self._tenant = tenant
        self._first = first
        self._shares = shares
        self._check = SchemaCheck(tenant, pool.clock, pool.timings.known, is_known=is_known)
        # Of the last statement in the message that began the transaction, such as "INSERT 0 1".
        self.status = ""
        self._entered = False
        # What ends this block early, because the tenant's last blocks timed out; None in any other block.
        self._fuse: asyncio.Timeout | None = None
        self._lent: LentConnection | Connection | None = None
        # Whether there is no connection any more, and nothing to end.
        self._lost = False

    async def __aenter__(self) -> Connection:
        if self._entered:
            raise RuntimeError("this block was entered before: ask for a new one")
        self._entered = True
        record = self._record = BlockRecord(self._pool.measures, self._tenant)
        now = self._pool.clock()
        deadline = now + self._timeout
        try:
            shares, tenant = self._shares, self._tenant
            if shares is not None and tenant is not None and await shares.take(tenant, deadline):
                self._fuse = asyncio.timeout(self._pool.timings.fuse)
        except BaseException as error:
            record.end(error)
            raise
        record.has_share()
        try:
            if self._fuse is not None:
                await self._fuse.__aenter__()
            pooled = await self._pool.acquire(self._beginning.tenant.tenant, deadline)
            self._take(pooled)
            record.has_connection()
            driver = pooled.driver
            # asyncpg has every connection pass for an instance of every class of connections.
            if type(driver) is FastConnection and not self._first and now - pooled.used_at < self._pool.timings.fresh:
                # It has answered a moment ago. The block begins with the first statement.
                driver.plan_block(self._beginning, self._timeout, self._replace_connection, self._check)
            else:
                await self._begin(deadline)
        except BaseException as error:
            late = None if self._fuse is None else await self._end_fuse(self._fuse, error)
            self._leave(late or error)
            if late is not None:
                raise late from error
            raise
        lent: Any = self._pooled.driver.lend()
        self._lent = lent
        return lent  # type: ignore[no-any-return]

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lent, self._lent = self._lent, None
        if lent is None:
            raise RuntimeError("this block was never entered, or was left before")
        try:
            if isinstance(lent, LentConnection):
                lent.take_back()
            late = None if self._fuse is None else await self._end_fuse(self._fuse, exc)
            if self._lost:
                # An error has said so, which the handler may have caught.
                if exc is None:
                    raise DatabaseUnavailableError("the connection to the database was lost", lost=True)
            elif exc is not None:
                await self._fail(exc)
            elif self._pooled.driver.leave_block():
                self._give_back()
            else:
                await self._commit()
            if late is not None:
                raise late from exc
        except BaseException as error:
            self._leave(error)
            raise
        self._leave(exc)

    async def _end_fuse(self, fuse: asyncio.Timeout, error: BaseException | None) -> DatabaseTimeoutError | None:
        """Return what to raise in place of *error* if *fuse* has ended this block of a stuck tenant early."""
        try:
            await fuse.__aexit__(None if error is None else type(error), error, None)
        except TimeoutError:
            slug = self._tenant and self._tenant.slug
            return DatabaseTimeoutError(f"the database still gives tenant {slug!r} no answer")
        return None

    async def go_on_as(self, beginning: Beginning) -> None:
        """Let the rest of the block, which has no tenant, be as one with *beginning*."""
        driver = self._pooled.driver
        for statement in beginning.statements[1:]:
            await driver.execute(statement)
        driver.go_on_as(beginning)

    async def _fail(self, exc: BaseException) -> None:
        """End the block after *exc*; raise what explains it better."""
        # Asked before the rollback, which may close the connection for reasons of its own.
        translated = _translate(exc, self._pooled.driver)
        await self._roll_back()
        if translated is not None:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # The rollback of a savepoint failed, and its error took the cancellation's place.
                raise asyncio.CancelledError from translated
            raise translated from exc
        # What was said late may be about the rows of another tenant, which has the schema now.
        is_late = isinstance(exc, asyncpg.PostgresError) and self._check.must_ask()
        if (is_late or isinstance(exc, _MISSING_ERRORS)) and self._tenant is not None and await self._is_gone():
            raise UnknownTenantError(self._tenant.slug) from (None if is_late else exc)
        if isinstance(exc, _NO_ROLE_ERRORS) and self._beginning.with_role:
            await self._check_role()

    def _is_fresh(self, pooled: PooledConnection) -> bool:
        return self._pool.clock() - pooled.used_at < self._pool.timings.fresh

    def _give_back(self) -> None:
        self._pool.give_back(self._pooled, self._beginning.tenant.tenant, self._pool.clock())

    def _take(self, pooled: PooledConnection) -> None:
        """Go on with *pooled*, and let it write into the block's record."""
        self._pooled = pooled
        driver, record = pooled.driver, self._record
        driver.record = record
        self._queries = driver.count_queries()
        record.backend = driver.get_server_pid()

    def _leave(self, error: BaseException | None) -> None:
        """Count the block, which has ended by *error* or well, and give its share back."""
        record = self._record
        if record.backend and not self._pooled.driver.is_closed():
            record.round_trips += self._pooled.driver.count_queries() - self._queries
        record.end(error)
        if self._shares is not None and self._tenant is not None:
            apart = self._fuse is not None
            self._shares.give_back(self._tenant, timed_out=self._has_timed_out(error), apart=apart)

    def _has_timed_out(self, error: BaseException | None) -> bool | None:
        """Return whether the server gave no answer in time, or None if nobody knows."""
        if isinstance(error, DatabaseTimeoutError):
            return True
        if isinstance(error, asyncio.CancelledError):
            # A request that took too long is cancelled. So is one whose client has left, which says nothing.
            return True if self._record.longest >= self._pool.timings.fuse else None
        if isinstance(error, TenantError) or not self._record.statements:
            return None
        return False

    async def _replace_connection(self, reads: bool) -> FastConnection:
        """Begin the block on another connection in the same slot: this one is dead, and nothing was done on it.

        Args:
            reads: Whether a plain read comes next. On a new connection it then begins the block itself, in one message:
                where a pooler is restarted, that one may be lost, too. It is not run a third time.

        Raises:
            DatabaseUnavailableError: There is none, or the block was left meanwhile.
        """
        lent = self._lent
        if lent is None or self._lost:
            raise DatabaseUnavailableError("the connection to the database was lost", lost=True)
        self._lost = True
        deadline = self._pool.clock() + self._timeout
        self._take(await self._pool.replace(self._pooled, deadline))
        driver = self._pooled.driver
        if reads and type(driver) is FastConnection and self._is_fresh(self._pooled):
            driver.plan_block(self._beginning, self._timeout, has_no_other, self._check)
        else:
            await self._begin(deadline)
            driver = self._pooled.driver
        if self._lent is not lent or not isinstance(lent, LentConnection) or type(driver) is not FastConnection:
            await self._roll_back()
            raise DatabaseUnavailableError("the connection to the database was lost", lost=True)
        self._lost = False
        lent.change_to(driver)
        return driver

    async def _begin(self, deadline: float) -> None:
        """Begin the block now, on another connection if its own is dead. After an error the block has none."""
        # After a restart of the server every pooled connection is dead, and nothing was done on any
        # of them yet: it is safe to go on to the next, until one is fresh.
        attempts = self._pool.max_size + 1
        # Without a pooler a fast connection asks by itself whether it is dead. Any other is replaced early, once.
        quick = not self._first and not self._pooled.driver.is_alone
        while True:
            attempts -= 1
            driver = self._pooled.driver
            seconds = max(deadline - self._pool.clock(), 0.001)
            try:
                within = min(self._pool.timings.silence, seconds / 2) if quick else seconds
                await self._check.ask_if_due(driver, within)
                self.status = await driver.begin_block(self._beginning, self._first, within)
                if not self._first:
                    await self._check.ask_if_due(driver, within, self._beginning)
            except BaseException as error:
                if self._first and isinstance(error, asyncpg.PostgresError) and not _is_gone(error, driver):
                    # The server is well, and refuses what the caller sends with BEGIN.
                    await self._roll_back()
                    raise
                if self._beginning.with_role and isinstance(error, _NO_ROLE_ERRORS) and not _is_gone(error, driver):
                    await self._roll_back()
                    raise await self._explain_role(error) from error
                if isinstance(error, DRIVER_ERRORS) and (quick or not isinstance(error, TimeoutError)) and attempts:
                    quick = quick and not isinstance(error, TimeoutError)
                    self._take(await self._pool.replace(self._pooled, deadline))
                    continue
                if isinstance(error, UnknownTenantError | RegistryNotReadyError):
                    if driver.is_in_transaction():
                        await self._roll_back()
                    else:
                        self._give_back()
                    raise
                # Also on cancellation: nobody knows how far BEGIN came.
                self._pool.discard(self._pooled)
                if isinstance(error, TimeoutError):
                    raise DatabaseUnavailableError("the database did not answer BEGIN in time") from error
                if isinstance(error, DRIVER_ERRORS):
                    raise DatabaseUnavailableError(f"no transaction could begin: {describe(error)}") from error
                raise
            else:
                return

    async def _check_role(self) -> None:
        """Raise if it was the tenant's role that could not be entered, where that went ahead of a statement."""
        deadline = self._pool.clock() + self._timeout
        block = Block(self._pool, self._beginning, self._timeout, self._tenant)
        block._record = self._record
        block._take(await self._pool.acquire(self._beginning.tenant.tenant, deadline))
        await block._begin(deadline)
        await block._roll_back()

    async def _explain_role(self, error: BaseException) -> TenantError:
        """Return why the tenant's role cannot be entered: it goes with a tenant that is deleted for good."""
        if self._tenant is not None and await self._is_gone():
            return UnknownTenantError(self._tenant.slug)
        return RolesNotReadyError(
            f"the role of tenant {self._tenant and self._tenant.slug!r} cannot be entered: {describe(error)}; "
            "run quart-tenants init with TENANTS_ROLE_PER_TENANT on"
        )

    async def _is_gone(self) -> bool:
        """Return whether the tenant was dropped, which this worker may not have heard of yet."""
        question = self._check.question
        if not question:
            return False
        try:
            async with Block(self._pool, Beginning((BEGIN_READ_ONLY,)), self._timeout) as connection:
                return await connection.fetchrow(question) is None
        except (TenantError, *NO_REGISTRY_ERRORS):
            return False

    async def _commit(self) -> None:
        driver = self._pooled.driver
        if driver.is_closed():
            self._pool.discard(self._pooled)
            raise DatabaseUnavailableError("the connection to the database was lost before the block ended", lost=True)
        if not driver.is_in_transaction():
            await self._roll_back()
            raise TransactionLostError("the block's transaction was ended inside the block; leave that to the block")
        try:
            await driver.end_block(commit=True)
        except asyncpg.InFailedSQLTransactionError as error:
            await self._roll_back()
            raise TransactionLostError(
                "a statement failed and its error was caught inside the block, so nothing was saved; "
                "catch it around the block, or put the statement into `async with connection.transaction()`"
            ) from error
        except BaseException as error:
            translated = _translate(error, driver)
            if isinstance(translated, DatabaseFullError) or (
                translated is None and isinstance(error, asyncpg.PostgresError | asyncio.CancelledError)
            ):
                # The server said no, such as by a deferred constraint, and is well. Or the block was cancelled: nobody
                # knows how far COMMIT came, and the transaction is over after this either way.
                await self._roll_back()
            else:
                self._pool.discard(self._pooled)
            if translated is not None:
                raise translated from error
            raise
        self._give_back()

    async def _roll_back(self) -> None:
        """Give the connection back clean, or close it, within half a second. Raises nothing but a cancellation."""
        driver = self._pooled.driver
        if driver.is_closed():
            self._pool.discard(self._pooled)
            return
        try:
            if not driver.leave_block():
                # asyncpg first waits until the statement that was interrupted is cancelled.
                await driver.end_block(commit=False, within=self._pool.timings.cleanup)
        except BaseException as error:
            self._pool.discard(self._pooled)
            if not isinstance(error, DRIVER_ERRORS):
                raise
        else:
            self._give_back()


def _translate(error: BaseException, driver: BlockConnection) -> TenantError | None:
    """Return our error for a server that is lost or full, and for a statement's timeout, or None for all else."""
    if isinstance(error, TenantError):
        return None
    # The second is the server's own statement_timeout.
    if (isinstance(error, TimeoutError) and is_drivers(error)) or isinstance(error, asyncpg.QueryCanceledError):
        return DatabaseTimeoutError("a statement took too long and was cancelled")
    if isinstance(error, DRIVER_ERRORS) and _is_gone(error, driver):
        return DatabaseUnavailableError(f"the connection to the database was lost: {describe(error)}", lost=True)
    if isinstance(error, asyncpg.InsufficientResourcesError):
        return DatabaseFullError(f"the database has no room left: {describe_refusal(error)}")
    return None


def _is_gone(error: BaseException, driver: BlockConnection) -> bool:
    """Return whether *error* means that the server, or the connection to it, is lost."""
    return isinstance(error, SERVER_GONE_ERRORS) or driver.is_closed()


async def list_path(connection: Connection | DriverConnection) -> list[str]:
    """Return the schemas that *connection* sees. A schema that does not exist is not among them."""
    schemas: list[str] = await connection.fetchval(_LIST_PATH)
    return schemas


def find_reported_path(connection: Connection) -> str | None:
    """Return search_path as the server last told it without being asked, which it does from PostgreSQL 18 on."""
    path: str | None = getattr(connection.get_settings(), "search_path", None)
    return path
