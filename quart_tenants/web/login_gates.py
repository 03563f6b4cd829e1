"""Let only a few login attempts for one account run at a time in one worker."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

logger = logging.getLogger(__name__)

_CONNECTIONS = 2
"""Of a worker's pool, that logins may have at a time for counting."""


class LoginGates:
    """In one worker, lets a few tries for one account run at a time, so that a burst is counted, too.

    What fails is counted when it has failed. Without a gate a thousand tries at once would all look before that.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._gates: dict[tuple[int, str], tuple[asyncio.Semaphore, int]] = {}
        self._counting: set[asyncio.Task[None]] = set()
        # Logins come in storms, such as at nine in the morning, and are slow anyway: they must not stand in front of
        # everybody else in the queue for a connection.
        self.connections = asyncio.Semaphore(_CONNECTIONS)

    @asynccontextmanager
    async def pass_through(self, tenant_id: int, account: str) -> AsyncIterator[None]:
        """Wait until a try for this account may run, and let it."""
        key = tenant_id, account
        gate, inside = self._gates.get(key) or (asyncio.Semaphore(self._width), 0)
        self._gates[key] = gate, inside + 1
        try:
            async with gate:
                yield
        finally:
            gate, inside = self._gates.pop(key)
            if inside > 1:
                self._gates[key] = gate, inside - 1

    def keep(self, count: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run *count*, whether or not anybody waits for it."""
        task = asyncio.create_task(count)
        # The event loop itself keeps no task alive.
        self._counting.add(task)
        task.add_done_callback(self._drop)
        return task

    def _drop(self, task: "asyncio.Task[None]") -> None:
        self._counting.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("a failed login was not counted: %s", task.exception())
