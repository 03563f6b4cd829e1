"""Lend the connections of one asyncpg pool, and part with those that do not answer."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import asyncpg

from quart_tenants.errors import DatabaseUnavailableError, PoolExhaustedError
from quart_tenants.postgres.one_statement import OneStatementConnection
from quart_tenants.settings import Settings

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection: TypeAlias = PoolConnectionProxy[asyncpg.Record]
    """What a block lends: an asyncpg connection inside a transaction."""
    DriverConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    DriverConnection = asyncpg.Connection

SetUp: TypeAlias = Callable[["DriverConnection"], Awaitable[object]]
"""What an app does to each new connection, such as to set type codecs."""

CLEANUP_TIMEOUT = 0.4
"""Seconds. What is to be cleaned up and is not by then is closed instead: a request that was cancelled waits for it."""

# Seconds. A connection that was well before answers BEGIN at once, or never.
_BEGIN_TIMEOUT = 1.0
# Seconds. So long after one attempt to connect the next one begins beside it.
_NEXT_ATTEMPT_AFTER = 1.0

# What a lost server looks like depends on the moment it was lost.
DRIVER_ERRORS = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError)


class BlockConnection(OneStatementConnection):
    """A connection that knows about its block, so that `transaction()` inside it makes a savepoint.

    asyncpg refuses `transaction()` in a transaction that it did not begin itself, and begins one by a
    message of its own; ours comes together with the path.

    Attributes:
        generation: Of the pool, when this was opened.
        opened_in: Seconds that it took to open.
        proven: Whether a block began here before.
        altered: Whether a block has set what stays in the client, where no reset reaches it.
    """

    __slots__ = ("altered", "generation", "opened_in", "proven")
    _top_xact: asyncpg.transaction.Transaction | None
    _loop: asyncio.AbstractEventLoop

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.generation = 0
        self.opened_in = 0.0
        self.proven = False
        self.altered = False

    @property
    def itself(self) -> "BlockConnection":
        """This, also when it is asked of the pool's proxy, which forgets whom it stands for."""
        return self

    async def begin_block(self, statements: str, seconds: float, *, quick: bool, one_statement: bool = False) -> str:
        """Run *statements*, which begin the transaction; return the status of the last.

        Args:
            statements: BEGIN first.
            seconds: They may take.
            quick: Whether none of them waits for anything, so that they can be given up early and begun anew.
            one_statement: Whether a text inside the block may hold one statement only.
        """
        if quick and self.proven:
            seconds = min(_BEGIN_TIMEOUT, seconds / 2)
        status = await self.execute(statements, timeout=seconds)
        self.proven = True
        self.one_statement = one_statement
        self._top_xact = self.transaction()
        return status

    async def end_block(self, statements: str, seconds: float | None = None) -> None:
        """Run *statements*, which end it."""
        self._top_xact = None
        self.one_statement = False
        await self.execute(statements, timeout=seconds)

    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        """Set it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        await super().set_type_codec(*args, **options)

    async def reset_type_codec(self, *args: Any, **options: Any) -> None:
        """Reset it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        await super().reset_type_codec(*args, **options)

    async def set_builtin_type_codec(self, *args: Any, **options: Any) -> None:
        """Set it, as asyncpg does it: for this block, after which the connection is closed."""
        self.altered = True
        await super().set_builtin_type_codec(*args, **options)

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  (overrides asyncpg's)
        """Close it, politely if that is quick. Raises nothing but a cancellation: it is closed either way."""
        with contextlib.suppress(*DRIVER_ERRORS):
            await super().close(timeout=CLEANUP_TIMEOUT if timeout is None else min(timeout, CLEANUP_TIMEOUT))

    def _cancel_current_command(
        self, waiter: "asyncio.Future[None]", cancel_waiter: "asyncio.Future[None] | None" = None
    ) -> None:
        super()._cancel_current_command(waiter, cancel_waiter)  # type: ignore[misc]
        # asyncpg would wait as long as for a statement, such as in the rollback of a savepoint.
        if cancel_waiter is not None:
            self._loop.call_later(CLEANUP_TIMEOUT, self._give_up_unless, cancel_waiter)

    def _give_up_unless(self, cancelled: "asyncio.Future[None]") -> None:
        if not cancelled.done():
            self.terminate()


class ConnectionPool:
    """An asyncpg pool that a dead network, or a server that was restarted, does not keep ill."""

    __slots__ = ("_generation", "_options", "_pool", "_renewing", "_set_up", "max_size")

    def __init__(
        self,
        settings: Settings,
        *,
        max_size: int,
        max_queries: int,
        defaults: dict[str, str],
        set_up: SetUp | None = None,
    ) -> None:
        self._set_up = set_up
        self._generation = 0
        self._renewing = asyncio.Lock()
        self.max_size = max_size
        self._options: dict[str, Any] = {
            "dsn": settings.required_database_url,
            "timeout": settings.connect_timeout,
            "command_timeout": settings.command_timeout,
            "statement_cache_size": settings.statement_cache_size,
            "connection_class": BlockConnection,
            "server_settings": defaults,
        }
        self._pool: asyncpg.Pool[asyncpg.Record] = asyncpg.create_pool(
            min_size=min(settings.pool_min_size, max_size),
            max_size=max_size,
            max_queries=max_queries,
            reset=_leave_as_is,
            connect=self._connect,
            **self._options,
        )

    async def open(self, seconds: float) -> None:
        """Connect, at least once. Raises the driver's errors."""
        await self._pool
        try:
            # A pool that may start empty would find out about a wrong address only later.
            async with self._pool.acquire(timeout=seconds):
                pass
        except BaseException:
            self._pool.terminate()
            raise

    async def close(self) -> None:
        """Wait until all connections are given back, and close them."""
        await self._pool.close()

    def terminate(self) -> None:
        """Close all connections, whoever has them."""
        self._pool.terminate()

    async def acquire(self, deadline: float) -> "Connection":
        """Return a connection that no other block has.

        Args:
            deadline: On the event loop's clock.

        Raises:
            PoolExhaustedError: All are lent.
            DatabaseUnavailableError: No connection can be opened.
        """
        seconds = deadline - asyncio.get_running_loop().time()
        try:
            return await self._pool.acquire(timeout=max(seconds, 0.001))
        except TimeoutError as error:
            if self._pool.get_size() == self.max_size and self._pool.get_idle_size() == 0:
                raise PoolExhaustedError(
                    f"all {self.max_size} connections stayed in use for TENANTS_ACQUIRE_TIMEOUT"
                ) from error
            raise DatabaseUnavailableError("the database did not accept a connection in time") from error
        except DRIVER_ERRORS as error:
            raise DatabaseUnavailableError(f"cannot connect to the database: {describe(error)}") from error

    async def give_back(self, connection: "Connection", itself: BlockConnection) -> None:
        """Take *connection* back, clean as its block has left it. What it cannot be clean of closes it."""
        if itself.altered:
            self.discard(connection)
            return
        # Such as a pool that was closed meanwhile. What the block did is saved all the same.
        with contextlib.suppress(asyncpg.InterfaceError):
            await self._pool.release(connection)

    def discard(self, connection: "Connection") -> None:
        """Close *connection*; the pool opens another one in its place. Never waits.

        Also one that is closed already: asyncpg closes it after an error of its own, such as text that is
        no Unicode, without giving its place in the pool back.
        """
        with contextlib.suppress(asyncpg.InterfaceError):
            connection.terminate()

    async def renew(self, silent: BlockConnection, deadline: float) -> None:
        """Replace the connections that are as old as *silent*, which did not answer, if the server does answer.

        A new connection tells. Where that takes long, too, the server has much to do, and would have more to do
        if everybody came anew.

        Args:
            silent: It is not in the pool any more.
            deadline: On the event loop's clock.
        """
        with contextlib.suppress(*DRIVER_ERRORS):
            async with asyncio.timeout_at(deadline), self._renewing:
                if silent.generation != self._generation:
                    return
                connection = await self._connect(**self._options)
                connection.terminate()
                if connection.opened_in < _NEXT_ATTEMPT_AFTER:
                    self._generation += 1
                    await self._pool.expire_connections()

    async def _connect(self, *args: Any, **options: Any) -> BlockConnection:
        """Open a connection.

        One attempt has all the time that the settings give. Beside it another one begins anew each second: what
        began in a network that swallows everything does not hear that the network is well again.
        """
        generation = self._generation
        patient = asyncio.create_task(_open(*args, **options))
        attempts = {patient}
        try:
            while True:
                done, waiting = await asyncio.wait(
                    attempts, timeout=_NEXT_ATTEMPT_AFTER, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    connection = done.pop().result()
                    connection.generation = generation
                    attempts = done | waiting
                    break
                _drop(attempts - {patient})
                attempts = {patient, asyncio.create_task(_open(*args, **options))}
        finally:
            _drop(attempts)
        if self._set_up is not None:
            try:
                await self._set_up(connection)
            except BaseException:
                connection.terminate()
                raise
            connection.altered = False
        return connection


def see_through(connection: "Connection") -> BlockConnection:
    """Return *connection* as what it stands for: the pool's proxy passes on what it does not know itself."""
    return cast("BlockConnection", connection)


def describe(error: BaseException) -> str:
    """Return what a driver's error says, which is nothing at times."""
    return str(error) or type(error).__name__


async def _open(*args: Any, **options: Any) -> BlockConnection:
    began = time.monotonic()
    connection = cast("BlockConnection", await asyncpg.connect(*args, **options))
    connection.opened_in = time.monotonic() - began
    return connection


def _drop(attempts: "set[asyncio.Task[BlockConnection]]") -> None:
    for attempt in attempts:
        attempt.cancel()
        attempt.add_done_callback(_close_unwanted)


def _close_unwanted(attempt: "asyncio.Task[BlockConnection]") -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


async def _leave_as_is(connection: object) -> None:
    """Reset nothing: a connection reaches the pool only after a block has reset it."""
