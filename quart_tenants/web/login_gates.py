"""Let only a few login attempts for one account run at a time in one worker."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from quart_tenants.measures.counts import Measures

logger = logging.getLogger(__name__)

_CONNECTIONS = 2
"""How many connections of a worker's pool logins may use at a time for counting."""


class LoginGates:
    """Lets a few login attempts for one account run at a time in this worker.

    An attempt is counted when it has failed. Without this limit, a thousand attempts at once would all look at the
    count before any of them is counted.

    Attributes:
        connections: To be held while a connection is used for counting.
    """

    def __init__(self, width: int, measures: Measures) -> None:
        self._width = width
        self._measures = measures
        # Each lives as long as somebody is inside, or waits.
        self._gates: WeakValueDictionary[tuple[int, str], asyncio.Semaphore] = WeakValueDictionary()
        self._counting: set[asyncio.Task[None]] = set()
        # Many logins come at once, such as at nine in the morning, and they are slow anyway. They must not fill the
        # queue for connections in which all other requests wait.
        self.connections = asyncio.Semaphore(_CONNECTIONS)

    @asynccontextmanager
    async def pass_through(self, tenant_id: int, account: str) -> AsyncIterator[None]:
        """Hold one of the slots of this account, after waiting for one."""
        measures = self._measures
        measures.login_attempts += 1
        measures.logins_in_progress += 1
        gate = self._gates.setdefault((tenant_id, account), asyncio.Semaphore(self._width))
        try:
            async with gate:
                yield
        finally:
            measures.logins_in_progress -= 1

    def keep(self, count: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run *count* in a task that goes on when nobody waits for it."""
        task = asyncio.create_task(count)
        # The event loop itself keeps no task alive.
        self._counting.add(task)
        task.add_done_callback(self._drop)
        return task

    def _drop(self, task: "asyncio.Task[None]") -> None:
        self._counting.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("a failed login was not counted: %s", task.exception())
