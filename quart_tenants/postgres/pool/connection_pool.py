"""Lend the connections of one asyncpg pool, and part with those that do not answer, or have seen too much."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Coroutine
from typing import Any, cast

import asyncpg

from quart_tenants.errors import DatabaseUnavailableError, PoolExhaustedError
from quart_tenants.measures.counts import Measures
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS, describe, find_poolers_remedy
from quart_tenants.postgres.driver.fast.fast_connection import FastConnection
from quart_tenants.postgres.driver.opening import BlockConnection, Opener, SetUp
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.postgres.pool.pooled_connection import PooledConnection
from quart_tenants.postgres.pool.slots import Slots
from quart_tenants.settings import Settings

_logger = logging.getLogger(__name__)

# Tenants. After so many new ones a connection is weighed.
_WEIGH_EVERY = 100
_PAUSE = 0.05  # seconds between two tries to connect
# Nobody answers, or somebody who is not ready.
_AWAY_ERRORS = (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError)
# Whether the server works for the backend of that number. The probe asks this after a long silence.
_WORKS = "SELECT count(*) > 0 FROM pg_catalog.pg_stat_activity WHERE pid = $1 AND state <> 'idle'"


class ConnectionPool:
    """An asyncpg pool that a dead network, or a server that was restarted, does not keep ill.

    Fast connections stay with us between two blocks, so that a tenant finds its own again. asyncpg's pool opens all
    connections, counts them, and has back the plain ones after each block, and those that were idle for long.
    """

    __slots__ = (
        "_away_since",
        "_closing",
        "_epoch",
        "_full",
        "_max_memory",
        "_max_queries",
        "_max_tenants",
        "_opener",
        "_options",
        "_patience",
        "_pool",
        "_slots",
        "_tidying",
        "_working",
        "clock",
        "max_size",
        "measures",
        "timings",
    )

    def __init__(
        self,
        settings: Settings,
        *,
        min_size: int,
        max_size: int,
        max_queries: int,
        defaults: dict[str, str],
        timings: Timings,
        measures: Measures,
        set_up: SetUp | None = None,
    ) -> None:
        """Prepare a pool. Connects to nothing yet.

        Args:
            settings: The address, and times.
            min_size: Connections that are opened at once, and again in the place of those that end.
            max_size: Connections at most.
            max_queries: Statements after which a connection is replaced.
            defaults: Settings of PostgreSQL for every connection.
            timings: How long to wait for what.
            measures: What is to be counted.
            set_up: Called with each new connection.
        """
        self.measures = measures
        self._epoch = 0
        # Since when nobody has answered, by the event loop's clock; None while somebody does.
        self._away_since: float | None = None
        # What the server said when it had no place for another connection, until it is asked for one again.
        self._full = ""
        self._slots: Slots[PooledConnection] = Slots(max_size)
        self._max_queries = max_queries
        self._max_tenants = settings.connection_max_tenants
        self._max_memory = settings.connection_max_memory
        self._patience = settings.acquire_timeout
        self._tidying: asyncio.Task[None] | None = None
        self._working: set[asyncio.Task[object]] = set()
        self._closing = asyncio.Event()
        self.max_size = max_size
        self.timings = timings
        # Asking which loop runs takes longer than asking it for the time.
        self.clock = asyncio.get_running_loop().time
        self._opener = Opener(
            plain=settings.driver_mode == "plain",
            with_roles=settings.role_per_tenant,
            cache_size=settings.statement_cache_size,
            seconds=settings.connect_timeout,
            timings=timings,
            ask_whether_alive=self._ask_whether_alive,
            set_up=set_up,
        )
        self._options: dict[str, Any] = {
            "dsn": settings.required_database_url,
            "timeout": settings.connect_timeout,
            "command_timeout": settings.command_timeout,
            # asyncpg's own cache knows no tenants. A fast connection has a `StatementCache`.
            "statement_cache_size": 0,
            "server_settings": defaults,
        }
        self._pool: asyncpg.Pool[asyncpg.Record] = asyncpg.create_pool(
            min_size=min_size,
            max_size=max_size,
            max_queries=max_queries,
            reset=_leave_as_is,
            connect=self._opener.open,
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
        connections = []
        for _ in range(self.max_size):
            # Each slot in turn, for then nobody has a connection.
            _, connection = self._slots.take(0) or await self._slots.wait(float("inf"))
            if connection is not None:
                connections.append(connection.driver)
        # asyncpg's pool first, for otherwise it would open others in their place.
        await asyncio.gather(self._pool.close(), *(connection.close() for connection in connections))

    def terminate(self) -> None:
        """Close all connections, whoever has them."""
        if self._tidying is not None:
            self._tidying.cancel()
        self._pool.terminate()

    async def acquire(self, preferred: int, deadline: float) -> PooledConnection:
        """Return a connection that no other block has.

        Args:
            preferred: Who asks; the same number gets the same few connections.
            deadline: On the event loop's clock.

        Raises:
            PoolExhaustedError: All are lent.
            DatabaseUnavailableError: There is no connection, and none can be opened.
        """
        while True:
            taken = self._slots.take(preferred)
            if taken is None:
                try:
                    taken = await self._slots.wait(deadline)
                except TimeoutError as error:
                    raise PoolExhaustedError(self._describe_exhaustion()) from error
            slot, connection = taken
            if connection is not None:
                if not connection.driver.is_closed() and connection.epoch == self._epoch:
                    return connection
                self._count_close(connection)
                _terminate(connection.driver)
            opened = await self._open_in(slot, deadline)
            if opened is not None:
                return opened

    async def replace(self, connection: PooledConnection, deadline: float) -> PooledConnection:
        """Close *connection*, and return another one in its slot, for which nobody has to queue anew.

        Only where the server has given the place to another program by then, this waits for another connection.

        Args:
            connection: From `acquire`.
            deadline: On the event loop's clock.

        Raises:
            PoolExhaustedError: The server has no place, and all others are lent.
            DatabaseUnavailableError: No connection can be opened. The slot is free.
        """
        self.measures.connections_closed["lost"] += 1
        _terminate(connection.driver)
        opened = await self._open_in(connection.slot, deadline)
        return opened or await self.acquire(connection.slot, deadline)

    def give_back(self, connection: PooledConnection, tenant: int, now: float) -> None:
        """Take *connection* back, clean as its block has left it. What it cannot be clean of closes it.

        Args:
            connection: From `acquire`.
            tenant: Who had it, by number.
            now: By the event loop's clock.
        """
        driver = connection.driver
        if driver.altered or connection.epoch != self._epoch or driver.is_closed():
            self._count_close(connection)
            self._discard(connection)
            return
        # asyncpg has every connection pass for an instance of every class of connections.
        if type(driver) is not FastConnection:
            self._spawn(self._release(driver), connection)
            return
        connection.used_at = now
        connection.tenants.add(tenant)
        driver.let_go()
        if driver.count_queries() > self._max_queries:
            self.measures.connections_closed["queries"] += 1
            self._spawn(driver.close(), connection)
        elif len(connection.tenants) >= connection.weigh_at:
            self._spawn(self._weigh(connection, driver), connection)
        else:
            self._slots.give_back(connection.slot, connection)

    def discard(self, connection: PooledConnection) -> None:
        """Close *connection*; another one is opened in its slot when it is needed. Never waits."""
        self.measures.connections_closed["lost"] += 1
        self._discard(connection)

    def count_connections(self) -> tuple[int, int]:
        """Return how many connections are open, and how many of them no block has."""
        size = self._pool.get_size()
        return size, max(size - len(self._slots) + self._slots.count_idle(), 0)

    def _discard(self, connection: PooledConnection) -> None:
        _terminate(connection.driver)
        self._slots.vacate(connection.slot)

    def _count_close(self, connection: PooledConnection) -> None:
        """Count that *connection* is not lent again, and why."""
        outdated = "lost" if connection.epoch == self._epoch else "outdated"
        self.measures.connections_closed["altered" if connection.driver.altered else outdated] += 1

    async def _open_in(self, slot: int, deadline: float) -> PooledConnection | None:
        """Return a new connection, or None where the server has no place for it, and there are others to wait for."""
        epoch = self._epoch
        try:
            proxy = await self._connect(deadline)
        except BaseException as error:
            if isinstance(error, asyncpg.TooManyConnectionsError) and self._pool.get_size():
                self._open_later(slot, describe(error))
                return None
            self._slots.vacate(slot)
            if isinstance(error, TimeoutError):
                raise DatabaseUnavailableError("the database did not accept a connection in time") from error
            if isinstance(error, DRIVER_ERRORS):
                raise DatabaseUnavailableError(f"cannot connect to the database: {describe(error)}") from error
            raise
        driver = cast("BlockConnection", proxy).itself
        # asyncpg's pool may have had it before.
        self.measures.connections_opened += driver.proxy is None
        driver.proxy = proxy
        # Behind a pooler the server process that is weighed would be anybody's.
        weigh_at = min(_WEIGH_EVERY, self._max_tenants + 1) if driver.is_alone else sys.maxsize
        # Behind a pooler the first read, too, is one message, which is sent again where a restart has lost it.
        # The first block of any other connection begins at once.
        ready_at = float("-inf") if driver.is_alone else driver.ready_at
        return PooledConnection(driver, slot, epoch, weigh_at, ready_at)

    async def _connect(self, deadline: float) -> Any:
        """Return what asyncpg's pool lends. In a restart of the server, or of a pooler, wait a moment for its end."""
        while True:
            try:
                proxy = await self._pool.acquire(timeout=max(deadline - self.clock(), 0.001))
            except _AWAY_ERRORS as error:
                now = self.clock()
                if self._away_since is None:
                    self._away_since = now
                next_try = now + _PAUSE
                is_over = next_try > min(self._away_since + self.timings.away, deadline)
                # Whoever does not answer in time is an OSError, too.
                if is_over or isinstance(error, TimeoutError) or find_poolers_remedy(error):
                    raise
            else:
                self._away_since = None
                return proxy
            await asyncio.sleep(_PAUSE)

    def _open_later(self, slot: int, reason: str) -> None:
        """Open no connection for a moment, neither in *slot* nor in others: the server has no place for it."""
        if not self._full:
            _logger.warning(
                "the database has no place for another connection (%s): requests wait for the %d that are open",
                reason,
                self._pool.get_size(),
            )
        self._full = reason
        empty = [slot, *self._slots.take_empty()]

        def try_again() -> None:
            self._full = ""
            for slot in empty:
                self._slots.vacate(slot)

        asyncio.get_running_loop().call_later(self.timings.full, try_again)

    def _describe_exhaustion(self) -> str:
        if not self._full:
            return f"all {self.max_size} connections stayed in use for TENANTS_ACQUIRE_TIMEOUT"
        return (
            f"all {self._pool.get_size()} connections stayed in use for TENANTS_ACQUIRE_TIMEOUT, "
            f"and the database has no place for another one: {self._full}"
        )

    def _spawn(self, work: Coroutine[Any, Any, object], connection: PooledConnection) -> None:
        """Do *work* beside, and then let the next have *connection* or its slot."""
        task = asyncio.create_task(work)
        self._working.add(task)

        def give_back(_: object) -> None:
            self._working.discard(task)
            if not connection.driver.is_fast and not task.cancelled() and task.exception() is None:
                # asyncpg's pool has it.
                self._slots.vacate(connection.slot)
            elif connection.driver.is_closed() or not connection.driver.is_fast:
                self._discard(connection)
            else:
                self._slots.give_back(connection.slot, connection)

        task.add_done_callback(give_back)

    async def _release(self, driver: BlockConnection) -> None:
        await self._pool.release(driver.proxy)

    async def _ask_whether_alive(self, silent: FastConnection) -> None:
        """Close *silent*, and let all connections be replaced, if the server is well and does not work for it.

        Nothing is concluded about a server that is slow. Where nobody answers, *silent* is closed when the time is over
        that a block has for connecting: its block then says so.
        """
        answers = works = False
        with contextlib.suppress(*DRIVER_ERRORS):
            async with asyncio.timeout(self._patience):
                try:
                    probe: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(**self._options)
                except asyncpg.TooManyConnectionsError:
                    # The server is there, but cannot be asked. The silent one has the whole time to answer.
                    await asyncio.sleep(self._patience)
                    raise
                try:
                    # Behind a pooler nobody knows which server process works for it.
                    works = not silent.is_alone or await probe.fetchval(_WORKS, silent.get_server_pid())
                    answers = True
                    if not works:
                        # Its answer may be on the way. Whoever waits for it ends this task when it is there.
                        await asyncio.sleep(self.timings.silence)
                finally:
                    probe.terminate()
        if answers and works:
            return
        _terminate(silent)
        if answers:
            self._epoch += 1
            await self._pool.expire_connections()

    async def _weigh(self, connection: PooledConnection, driver: FastConnection) -> None:
        """Close *connection* if its server process has become too large."""
        tenants = len(connection.tenants)
        try:
            weight = await driver.find_memory()
        except (TimeoutError, *DRIVER_ERRORS):
            driver.terminate()
            return
        if weight is None:
            too_large, connection.weigh_at = tenants > self._max_tenants, self._max_tenants + 1
        else:
            too_large, connection.weigh_at = weight > self._max_memory, tenants + _WEIGH_EVERY
        if too_large:
            self.measures.connections_closed["memory"] += 1
            await driver.close()

    async def _tidy(self) -> None:
        """Reset the connections that nobody uses, and give asyncpg's pool those back that nobody has used for long."""
        timings = self.timings
        while not await _is_set_within(self._closing, timings.tidy_every):
            now = self.clock()

            def is_due(connection: PooledConnection, now: float = now) -> bool:
                patience = timings.tidy_every if connection.driver.needs_reset else timings.give_up_after
                return now - connection.used_at > patience

            await asyncio.gather(*(self._tidy_one(connection, now) for connection in self._slots.take_idle(is_due)))

    async def _tidy_one(self, connection: PooledConnection, now: float) -> None:
        driver = cast("FastConnection", connection.driver)
        try:
            await driver.reset_between_blocks()
            if now - connection.used_at <= self.timings.give_up_after:
                self._slots.give_back(connection.slot, connection)
                return
            await self._pool.release(driver.proxy)
            self._slots.vacate(connection.slot)
        except BaseException as error:
            self.discard(connection)
            if not isinstance(error, DRIVER_ERRORS):
                raise


def _terminate(connection: BlockConnection) -> None:
    # Also one that is closed already: asyncpg closes it after an error of its own, such as text that is no Unicode,
    # without giving its place in asyncpg's pool back.
    with contextlib.suppress(asyncpg.InterfaceError):
        connection.terminate()


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            return await event.wait()
    return False


async def _leave_as_is(connection: object) -> None:
    """Reset nothing: a connection reaches asyncpg's pool only after its block has reset it."""
