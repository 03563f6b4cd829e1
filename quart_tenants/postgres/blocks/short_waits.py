"""Try a transaction again and again, each time with a short wait for locks.

Whoever waits for a strong lock on a table holds up everybody who comes later, readers included. So one long wait would
stop all tenants that use a shared table; between many short ones they are served.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import MigrationFailedError, TenantError
from quart_tenants.postgres.blocks.block import Block
from quart_tenants.postgres.blocks.blockers import watch_waits
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.citus.settings_of_citus import list_limits
from quart_tenants.postgres.driver.connection_types import DriverConnection

LONGEST_WAIT = 0.1
"""How many seconds a statement of a command waits for a lock. For so long others may have to wait behind it.

The server resolves deadlocks only after a second, so this also ends those.
"""

MOST_TRIES = 16
"""How often a command tries to get its locks, in some five seconds. Then the operator is told who has them."""

_LIMITS = list_limits(lock=LONGEST_WAIT)
_WAIT_AS_USUAL = "SET LOCAL lock_timeout TO DEFAULT"
_PAUSES = 0.1, 0.3  # seconds between two tries, in which others are served


class ShortWaits:
    """The tries of one transaction after the other, none of which waits long for a lock.

    ```python
    tries = ShortWaits(database, lambda reason: TenantBusyError(slug, reason))
    while True:
        async with tries.try_once() as connection:
            ...
            return done
    ```

    Attributes:
        block: The block of the try that runs.
        failed: How many tries have failed.
    """

    block: Block
    failed: int

    def __init__(self, database: Database, explain: Callable[[str], TenantError]) -> None:
        self._database = database
        self._explain = explain
        self.failed = 0
        self._seen = ""
        self._is_last = False

    @contextlib.asynccontextmanager
    async def try_once(self) -> AsyncIterator[Connection]:
        """Lend a connection for one try: a block without a tenant.

        If a lock is not free, the block is rolled back, and the `async with` ends without an error after a pause. After
        `MOST_TRIES` it raises instead what *explain* makes of the reason. A lock that COMMIT needs, for a deferred
        constraint, is not waited for again: the caller has left the loop by then. A block that succeeds begins a new
        count. A cancellation rolls the try back.
        """
        self.block = self._database.connection()
        left = False
        try:
            async with self.block as connection:
                await wait_shortly(connection)
                if self.failed == 0:
                    yield connection
                else:
                    # A second connection looks on only if there is something to see.
                    async with watch_waits(self._database, connection) as watch:
                        try:
                            yield connection
                        finally:
                            self._seen = watch.seen or self._seen
                left = True
        except (asyncpg.LockNotAvailableError, MigrationFailedError) as error:
            if self._is_last or not has_waited(error):
                raise
            self.failed += 1
            if left or self.failed >= MOST_TRIES:
                raise self._explain(self._seen or "a lock is not free") from error
            await pause()
        else:
            self.failed, self._seen = 0, ""

    async def make_last(self, connection: Connection) -> None:
        """Let the running try be the last one, with the usual waits, because what comes now must not run twice."""
        self._is_last = True
        await connection.execute(_WAIT_AS_USUAL)


async def pause() -> None:
    """Let others be served before the next try."""
    await asyncio.sleep(random.uniform(*_PAUSES))  # noqa: S311  (no secret)


async def wait_shortly(connection: Connection | DriverConnection) -> None:
    """Let the rest of the transaction wait no longer than `LONGEST_WAIT` for a lock, on each node of a cluster."""
    for limit in _LIMITS:
        await connection.execute(limit)


async def wait_long(connection: Connection, statement: str) -> None:
    """Run *statement* in a try, and let it wait as long as it takes, because nobody who is served waits behind it."""
    await connection.execute(_WAIT_AS_USUAL)
    await connection.execute(statement)
    await wait_shortly(connection)


def has_waited(error: BaseException) -> bool:
    """Return whether *error* says that a lock was not free in time."""
    cause = error.__cause__ if isinstance(error, MigrationFailedError) else error
    return isinstance(cause, asyncpg.LockNotAvailableError)
