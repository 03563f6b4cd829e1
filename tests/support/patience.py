"""How long a test waits for what must happen: so long that no busy machine makes a test fail."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Waited:
    """How long something took to become true.

    Attributes:
        seconds: Until then.
        longest_look: Of the looks at whether it is true yet, the longest, in seconds: so slow is the machine itself.
    """

    seconds: float
    longest_look: float

    def is_within(self, seconds: float) -> bool:
        """Say whether it took no longer than *seconds*, on a machine that is not busy."""
        return self.seconds < seconds + 4 * self.longest_look


async def measure_until(find: Callable[[], Awaitable[object]]) -> Waited:
    """Wait as `wait_until` does, and return how long that took."""
    began = time.monotonic()
    longest = 0.0

    async def look() -> bool:
        nonlocal longest
        asked = time.monotonic()
        found = await find()
        longest = max(longest, time.monotonic() - asked)
        return bool(found)

    await wait_until(look)
    return Waited(time.monotonic() - began, longest)
