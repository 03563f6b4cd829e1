"""How long a test waits for what must happen: so long that no busy machine makes a test fail."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

DEADLINE = 120.0  # seconds; nothing that works takes as long, and a test that reaches it has failed

_PAUSE = 0.02  # seconds between two looks at what another process does

Found = TypeVar("Found")


async def wait_until(find: Callable[[], Awaitable[Found | None]]) -> Found:
    """Ask *find* again and again until it returns something true, and return that.

    For what another process does. Inside one process, wait for an event instead.

    Raises:
        TimeoutError: It returned nothing true within `DEADLINE`.
    """
    async with asyncio.timeout(DEADLINE):
        while not (found := await find()):
            await asyncio.sleep(_PAUSE)
    return found


def wait_in_thread_until(find: Callable[[], Found | None]) -> Found:
    """Ask *find* again and again until it returns something true, and return that; the thread sleeps meanwhile.

    Raises:
        TimeoutError: It returned nothing true within `DEADLINE`.
    """
    deadline = time.monotonic() + DEADLINE
    while not (found := find()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"what the test waits for did not happen within {DEADLINE:g} seconds")
        time.sleep(_PAUSE)
    return found
