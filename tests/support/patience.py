"""How long a test waits for what must happen: so long that no busy machine makes a test fail."""

import asyncio
import time
from collections.abc import Awaitable, Callable

DEADLINE = 120.0  # seconds; nothing that works takes as long, and a test that reaches it has failed

_PAUSE = 0.02  # seconds between two looks at what another process does


async def wait_until(condition: Callable[[], Awaitable[object]]) -> None:
    """Return when *condition* is true. It is asked again and again, for what another process does.

    Raises:
        TimeoutError: It was not true within `DEADLINE`.
    """
    async with asyncio.timeout(DEADLINE):
        while not await condition():
            await asyncio.sleep(_PAUSE)


def wait_until_blocking(condition: Callable[[], object]) -> None:
    """Return when *condition* is true. The thread waits, so no event loop may run in it.

    Raises:
        TimeoutError: It was not true within `DEADLINE`.
    """
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {DEADLINE:g} s")
        time.sleep(_PAUSE)
