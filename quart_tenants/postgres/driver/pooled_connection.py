"""A connection between two blocks: what the pool knows of it, and what the last handler must not leave in it."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from typing import Any, Self

from quart_tenants.errors import DatabaseUnavailableError
from quart_tenants.postgres.driver.block_statements import RESET
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS
from quart_tenants.postgres.driver.gathering import find_gathering
from quart_tenants.postgres.driver.one_statement import OneStatementConnection

CLEANUP_TIMEOUT = 0.4
"""Seconds. What is to be cleaned up and is not by then is closed instead: a request that was cancelled waits for it."""

# Its number, its age in seconds, and whether it may be asked for its prepared statements.
_GET_SERVER_PROCESS = """
SELECT pid AS number, EXTRACT(epoch FROM pg_catalog.clock_timestamp() - backend_start)::float8 AS age,
    pg_catalog.has_function_privilege('pg_catalog.pg_prepared_statement()', 'EXECUTE') AS may_look
FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()
    AND pg_catalog.current_setting('default_transaction_isolation') = 'read committed'
"""


class PooledConnection(OneStatementConnection):
    """A connection that knows its place in the pool, and is closed rather than waited for.

    Attributes:
        generation: Of the pool, when this was opened.
        opened_in: Seconds that it took to open.
        altered: Whether a block has set what stays in the client, where no reset reaches it.
        tenants: The tenants that were here.
        weigh_at: How many they are to be when the server process is weighed next.
        place: In the pool.
        pool_proxy: As which asyncpg's pool knows it.
        used_at: When the last block ended, by the event loop's clock.
        may_look: Whether the login may see its prepared statements.
        unreset: Whose blocks have only read since everything was reset; None for nobody's.
    """

    __slots__ = (
        "_gathering",
        "_lasting",
        "_own_path",
        "altered",
        "generation",
        "may_look",
        "opened_in",
        "place",
        "pool_proxy",
        "tenants",
        "unreset",
        "used_at",
        "weigh_at",
    )
    _loop: asyncio.AbstractEventLoop
    _protocol: Any
    _transport: asyncio.WriteTransport
    _query_loggers: set[Any]
    _termination_listeners: set[Any]
    _listeners: dict[str, Any]
    _log_listeners: set[Any]
    _stmts_to_close: set[Any]
    _pool_release_ctr: int
    _proxy: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.generation = 0
        self.opened_in = 0.0
        self.altered = False
        self.tenants: set[int] = set()
        self.weigh_at = 0
        self.used_at = float("-inf")
        self.place = 0
        self.pool_proxy: Any = None
        self.may_look = False
        self.unreset: int | None = None
        self._own_path: str | None = getattr(self._protocol.get_settings(), "search_path", None)
        self._gathering = find_gathering(self._protocol, self._transport)
        self._lasting: tuple[frozenset[Any], frozenset[Any]] = frozenset(), frozenset()

    @property
    def itself(self) -> Self:
        """This, also when it is asked of the pool's proxy, which forgets whom it stands for."""
        return self

    async def is_direct(self, opened_at: float) -> bool:
        """Return whether this is the server's one client, with no pooler in between.

        A pooler makes up the number of a server process, or lends one that is older than our connection. Should one
        get through: it would be held longer than it likes, and nobody would see a foreign row. Nor is one direct whose
        transactions are to see one state of the tables: statements that only read have a transaction each.

        Args:
            opened_at: When it began to be opened, by the monotonic clock.
        """
        if self._gathering is None:
            return False
        await self._run("BEGIN", None)
        try:
            server = await self.fetchrow(_GET_SERVER_PROCESS)
        finally:
            await self._run("ROLLBACK", None)
        if server is None:
            return False
        self.may_look = server["may_look"]
        is_ours: bool = server["number"] == self.get_server_pid() and server["age"] <= time.monotonic() - opened_at
        return is_ours

    def keep_as_it_is(self) -> None:
        """Take what was set so far for what every block is to have."""
        self.altered = False
        self._lasting = frozenset(self._query_loggers), frozenset(self._termination_listeners)

    def let_go(self) -> None:
        """Take away from the last block's handler what it may have kept, and what it has made to be called."""
        # What asyncpg's cursors, statements and transactions compare with when they were made.
        self._pool_release_ctr += 1
        # Those were closed at the end of the block.
        self._stmts_to_close.clear()
        self._listeners.clear()
        self._log_listeners.clear()
        loggers, listeners = self._lasting
        if self._query_loggers != loggers or self._termination_listeners != listeners:
            self._query_loggers, self._termination_listeners = set(loggers), set(listeners)

    def count_queries(self) -> int:
        """Return how many statements were sent."""
        count: int = self._protocol.queries_count
        return count

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

    async def settle(self) -> None:
        """Reset what was left unreset. Raises the driver's errors."""
        await self._run("; ".join(RESET), CLEANUP_TIMEOUT)
        self.unreset = None

    def _check_path(self) -> None:
        """Make sure that the path is the connection's own again. The server says so itself, from PostgreSQL 18 on.

        Raises:
            DatabaseUnavailableError: It is not. The connection is closed.
        """
        if self._own_path is None:
            return
        reported = self._protocol.get_settings().search_path
        if reported != self._own_path:
            self.terminate()
            raise DatabaseUnavailableError(f"a block that only read has left search_path at {reported!r}", lost=True)

    def _run(self, statements: str, seconds: float | None) -> Awaitable[str]:
        """Run *statements* by the simple protocol, as asyncpg's own execute() does; return the last one's status."""
        status: Awaitable[str] = self._protocol.query(statements, seconds)
        return status

    def _cancel_current_command(self, waiter: "asyncio.Future[None]", cancel_waiter: "asyncio.Future[None]") -> None:
        super()._cancel_current_command(waiter, cancel_waiter)  # type: ignore[misc]
        # asyncpg would wait as long as for a statement, such as in the rollback of a savepoint.
        self._loop.call_later(CLEANUP_TIMEOUT, self._give_up_unless, cancel_waiter)

    def _give_up_unless(self, cancelled: "asyncio.Future[None]") -> None:
        if not cancelled.done():
            self.terminate()
