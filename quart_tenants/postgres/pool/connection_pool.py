"""Lend the connections of one asyncpg pool, and part with those that do not answer, or have seen too much."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import asyncpg

from quart_tenants.errors import DatabaseUnavailableError, PoolExhaustedError
from quart_tenants.postgres.driver.block_connection import BlockConnection
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS, describe
from quart_tenants.postgres.driver.gathering import GatheringLoop
from quart_tenants.postgres.driver.plain_reads import PlainReads
from quart_tenants.postgres.pool.places import Places
from quart_tenants.settings import Settings

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import DriverConnection

SetUp: TypeAlias = Callable[["DriverConnection"], Awaitable[object]]
"""What an app does to each new connection, such as to set type codecs."""

# Seconds. So long after one attempt to connect the next one begins beside it.
_NEXT_ATTEMPT_AFTER = 1.0
# Seconds. A connection that nobody has used for the first is told to reset what was left; after the second asyncpg's
# pool gets it back.
_TIDY_AFTER = 1.0
_GIVE_UP_AFTER = 300.0
# Tenants. After so many new ones a connection is weighed.
_WEIGH_EVERY = 100


class ConnectionPool:
    """An asyncpg pool that a dead network, or a server that was restarted, does not keep ill.

    Connections stay with us between two blocks, so that a tenant finds its own again; asyncpg's pool opens them,
    counts them, and has them back when they were idle for long.
    """

    __slots__ = (
        "_closing",
        "_generation",
        "_max_memory",
        "_max_queries",
        "_max_tenants",
        "_options",
        "_places",
        "_plain_reads",
        "_pool",
        "_renewing",
        "_set_up",
        "_statement_cache_size",
        "_tidying",
        "_working",
        "max_size",
    )

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
        self._places: Places[BlockConnection] = Places(max_size)
        self._plain_reads = PlainReads()
        self._statement_cache_size = settings.statement_cache_size
        self._max_queries = max_queries
        self._max_tenants = settings.connection_max_tenants
        self._max_memory = settings.connection_max_memory
        self._tidying: asyncio.Task[None] | None = None
        self._working: set[asyncio.Task[object]] = set()
        self._closing = asyncio.Event()
        self.max_size = max_size
        self._options: dict[str, Any] = {
            "dsn": settings.required_database_url,
            "timeout": settings.connect_timeout,
            "command_timeout": settings.command_timeout,
            # asyncpg's own, which knows no tenants. Ours is a `StatementCache`.
            "statement_cache_size": 0,
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
        self._tidying = asyncio.create_task(self._tidy(), name="quart_tenants idle connections")

    async def close(self) -> None:
        """Wait until all connections are given back, and close them. Does nothing when called again."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._tidying is not None:
            # It has connections that it gives back.
            await self._tidying
        loop = asyncio.get_running_loop()
        connections = []
        for _ in range(self.max_size):
            # Each place in turn, for then nobody has a connection.
            _, connection = self._places.take(0) or await self._places.wait(loop.time() + _GIVE_UP_AFTER)
            if connection is not None:
                connections.append(connection)
        # asyncpg's pool first, for otherwise it would open others in their place.
        await asyncio.gather(self._pool.close(), *(connection.close() for connection in connections))

    def terminate(self) -> None:
        """Close all connections, whoever has them."""
        if self._tidying is not None:
            self._tidying.cancel()
        self._pool.terminate()

    async def acquire(self, home: int, deadline: float) -> BlockConnection:
        """Return a connection that no other block has.

        Args:
            home: Who asks; the same number gets the same few connections.
            deadline: On the event loop's clock.

        Raises:
            PoolExhaustedError: All are lent.
            DatabaseUnavailableError: No connection can be opened.
        """
        while True:
            taken = self._places.take(home)
            if taken is None:
                try:
                    taken = await self._places.wait(deadline)
                except TimeoutError as error:
                    raise PoolExhaustedError(
                        f"all {self.max_size} connections stayed in use for TENANTS_ACQUIRE_TIMEOUT"
                    ) from error
            place, connection = taken
            if connection is None:
                return await self._open_at(place, deadline)
            if connection.is_closed() or connection.generation != self._generation:
                self.discard(connection)
                continue
            return connection

    def give_back(self, connection: BlockConnection, now: float) -> None:
        """Take *connection* back, clean as its block has left it. What it cannot be clean of closes it.

        Args:
            connection: From `acquire`.
            now: By the event loop's clock.
        """
        if connection.altered or connection.generation != self._generation or connection.is_closed():
            self.discard(connection)
            return
        connection.used_at = now
        connection.let_go()
        if connection.count_queries() > self._max_queries:
            self._spawn(connection.close(), connection)
        elif len(connection.tenants) >= connection.weigh_at:
            self._spawn(self._weigh(connection), connection)
        else:
            self._places.give_back(connection.place, connection)

    def discard(self, connection: BlockConnection) -> None:
        """Close *connection*; another one is opened in its place when it is needed. Never waits.

        Also one that is closed already: asyncpg closes it after an error of its own, such as text that is
        no Unicode, without giving its place in the pool back.
        """
        with contextlib.suppress(asyncpg.InterfaceError):
            connection.terminate()
        self._places.vacate(connection.place)

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
        generation, opened_at = self._generation, time.monotonic()
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
        try:
            # asyncpg's pool also connects by itself, where no block's deadline ends it.
            async with asyncio.timeout(self._options["timeout"]):
                direct = await connection.is_direct(opened_at)
                if self._set_up is not None:
                    await self._set_up(connection)
            if direct:
                connection.use_directly(self._plain_reads, self._statement_cache_size)
        except BaseException:
            connection.terminate()
            raise
        connection.keep_as_it_is()
        return connection

    async def _open_at(self, place: int, deadline: float) -> BlockConnection:
        try:
            seconds = deadline - asyncio.get_running_loop().time()
            proxy = await self._pool.acquire(timeout=max(seconds, 0.001))
        except BaseException as error:
            self._places.vacate(place)
            if isinstance(error, TimeoutError):
                raise DatabaseUnavailableError("the database did not accept a connection in time") from error
            if isinstance(error, DRIVER_ERRORS):
                raise DatabaseUnavailableError(f"cannot connect to the database: {describe(error)}") from error
            raise
        connection = cast("BlockConnection", proxy).itself
        connection.place, connection.pool_proxy = place, proxy
        connection.weigh_at = min(_WEIGH_EVERY, self._max_tenants + 1)
        return connection

    def _spawn(self, work: Coroutine[Any, Any, object], connection: BlockConnection) -> None:
        """Do *work* beside, and then let the next have *connection* or its place."""
        task = asyncio.create_task(work)
        self._working.add(task)

        def give_back(_: object) -> None:
            self._working.discard(task)
            if connection.is_closed():
                self.discard(connection)
            else:
                self._places.give_back(connection.place, connection)

        task.add_done_callback(give_back)

    async def _weigh(self, connection: BlockConnection) -> None:
        """Close *connection* if its server process has become too large."""
        tenants = len(connection.tenants)
        try:
            weight = await connection.find_memory()
        except (TimeoutError, *DRIVER_ERRORS):
            connection.terminate()
            return
        if weight is None:
            too_large, connection.weigh_at = tenants > self._max_tenants, self._max_tenants + 1
        else:
            too_large, connection.weigh_at = weight > self._max_memory, tenants + _WEIGH_EVERY
        if too_large:
            await connection.close()

    async def _tidy(self) -> None:
        """Reset the connections that nobody uses, and give asyncpg's pool those back that nobody has used for long."""
        loop = asyncio.get_running_loop()
        while not await _is_set_within(self._closing, _TIDY_AFTER):
            now = loop.time()

            def is_due(connection: BlockConnection, now: float = now) -> bool:
                return now - connection.used_at > (_GIVE_UP_AFTER if connection.unreset is None else _TIDY_AFTER)

            await asyncio.gather(*(self._tidy_one(connection, now) for connection in self._places.take_idle(is_due)))

    async def _tidy_one(self, connection: BlockConnection, now: float) -> None:
        try:
            await connection.settle()
            if now - connection.used_at <= _GIVE_UP_AFTER:
                self._places.give_back(connection.place, connection)
                return
            await self._pool.release(connection.pool_proxy)
            self._places.vacate(connection.place)
        except BaseException as error:
            self.discard(connection)
            if not isinstance(error, DRIVER_ERRORS):
                raise


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await event.wait()
    return False


async def _open(*args: Any, **options: Any) -> BlockConnection:
    began = time.monotonic()
    options["loop"] = GatheringLoop(asyncio.get_running_loop())
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
