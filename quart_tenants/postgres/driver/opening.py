"""Open connections: fast ones where asyncpg and the server let them work, plain ones everywhere else."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import asyncpg

from quart_tenants.postgres.driver.connection_types import DriverConnection, describe, find_poolers_remedy
from quart_tenants.postgres.driver.fast import driver_check
from quart_tenants.postgres.driver.fast.fast_connection import AskWhetherAlive, FastConnection
from quart_tenants.postgres.driver.fast.packets import PacketLoop
from quart_tenants.postgres.driver.fast.statement_cache import FoundTypes
from quart_tenants.postgres.driver.fast.statement_effects import StatementEffects
from quart_tenants.postgres.driver.plain_connection import PlainConnection
from quart_tenants.postgres.driver.timings import Timings

_logger = logging.getLogger(__name__)

BlockConnection: TypeAlias = FastConnection | PlainConnection
"""A connection on which blocks are run."""
SetUp: TypeAlias = Callable[[DriverConnection], Awaitable[object]]
"""What an app does to each new connection, such as to set type codecs."""

# Nobody is there, or does not let us in, or the URL is wrong.
_NOT_ASYNCPGS = (
    OSError,
    ValueError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.TooManyConnectionsError,
)
# The types of so many full caches are remembered for a pool.
_CONNECTIONS_WORTH = 20
# Reasons for the plain mode that were logged in this process.
_told: set[str] = set()


def _avoid_set_config(connection: PlainConnection) -> None:
    """Keep asyncpg from set_config() where it looks up a type: a tenant's role may not call it.

    Where asyncpg has no such switch, a type of the tenant's own is refused in a block with a role, and nothing else.
    """
    known: Any = getattr(connection, "_server_caps", None)
    if getattr(known, "jit", False) and hasattr(known, "_replace"):
        switched: Any = connection
        switched._server_caps = known._replace(jit=False)  # noqa: SLF001


class Opener:
    """Opens the connections of one pool. The first one shows in which mode."""

    def __init__(
        self,
        *,
        plain: bool,
        with_roles: bool,
        cache_size: int,
        seconds: float,
        timings: Timings,
        ask_whether_alive: AskWhetherAlive,
        set_up: SetUp | None,
    ) -> None:
        """Remember how to open connections.

        Args:
            plain: Whether all are to be plain ones.
            with_roles: Whether blocks act as their tenants' roles.
            cache_size: Prepared statements to keep by each fast one.
            seconds: Getting a new connection ready may take so long, after the login.
            timings: How long to wait for what.
            ask_whether_alive: Called when the server says nothing on a fast one.
            set_up: Called with each new connection.
        """
        self._plain = plain
        self._with_roles = with_roles
        self._tried = False
        self._cache_size = cache_size
        self._seconds = seconds
        self._timings = timings
        self._ask_whether_alive = ask_whether_alive
        self._set_up = set_up
        self._effects = StatementEffects()
        self._found_types = FoundTypes(cache_size * _CONNECTIONS_WORTH)

    async def open(self, *args: Any, **options: Any) -> BlockConnection:
        """Return a new connection. Takes what asyncpg.connect() takes; raises the driver's errors."""
        if not self._plain and not self._tried and (misfit := driver_check.find_misfit()) is not None:
            self._fall_back(misfit)
        if not self._plain:
            fast = await self._open_fast(*args, **options)
            if fast is not None:
                return fast
        plain: PlainConnection = await asyncpg.connect(*args, **{**options, "connection_class": PlainConnection})
        plain.set_timings(self._timings)
        if self._with_roles:
            _avoid_set_config(plain)
        await self._prepare(plain)
        return plain

    async def _open_fast(self, *args: Any, **options: Any) -> FastConnection | None:
        """Return a fast connection, or None where only plain ones can be used from now on."""
        try:
            return await self._open_fast_once(*args, **options)
        except Exception as error:
            # Once it was tried out, this is the network's or the server's doing. So is what no asyncpg could change.
            no_asyncpgs = isinstance(error, _NOT_ASYNCPGS) and not isinstance(error, TimeoutError)
            if self._tried or no_asyncpgs or find_poolers_remedy(error):
                raise
        try:
            return await self._open_fast_once(*args, **options)
        except Exception as error:  # noqa: BLE001  (nobody knows what an unknown asyncpg raises)
            reason = describe(error)
        # Where the server is ill, this raises, and nothing is concluded.
        connection = await asyncpg.connect(*args, **options)
        connection.terminate()
        self._fall_back(reason)
        return None

    async def _open_fast_once(self, *args: Any, **options: Any) -> FastConnection | None:
        opened_at = time.monotonic()
        own = {"connection_class": FastConnection, "loop": PacketLoop(asyncio.get_running_loop())}
        connection: FastConnection = await asyncpg.connect(*args, **{**options, **own})
        try:
            async with asyncio.timeout(self._seconds):
                if not await connection.may_work(opened_at, options["server_settings"]["search_path"]):
                    connection.terminate()
                    self._plain = True
                    return None
                connection.set_up(
                    self._timings, self._effects, self._cache_size, self._found_types, self._ask_whether_alive
                )
                if not self._tried:
                    await driver_check.try_out(connection)
                    self._tried = True
        except BaseException as error:
            lost = isinstance(error, asyncpg.InterfaceError) and connection.is_closed()
            connection.terminate()
            if lost:
                # The same as if it had been lost a moment later, in the middle of a statement.
                raise asyncpg.ConnectionDoesNotExistError(str(error)) from error
            raise
        await self._prepare(connection)
        return connection

    async def _prepare(self, connection: BlockConnection) -> None:
        try:
            if self._set_up is not None:
                # asyncpg's pool also connects by itself, where no block's deadline ends it.
                async with asyncio.timeout(self._seconds):
                    await self._set_up(connection)
        except BaseException:
            connection.terminate()
            raise
        connection.keep_as_it_is()

    def _fall_back(self, reason: str) -> None:
        self._plain = True
        if reason not in _told:
            _told.add(reason)
            _logger.warning(
                "asyncpg %s is not as expected (%s): every block takes a few messages more, and all else is as safe; "
                "TENANTS_DRIVER_MODE=plain says nothing about it",
                asyncpg.__version__,
                reason,
            )
