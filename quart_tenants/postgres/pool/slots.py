"""Give each tenant the same few connections, so that the server finds ready there what it knows of the tenant.

A server process keeps what it knows of the tables of every tenant that it has served, and the plans of its statements.
If the tenants were spread over all connections, each would know all tenants; here each knows its part of them.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from quart_tenants.postgres.pool.waiters import Waiters

T = TypeVar("T")


class Slots(Generic[T]):
    """A fixed number of slots, each with a connection or none, for which blocks queue.

    A tenant's preferred slot is one of them by its number. Where that is taken it gets the next one: a busy tenant has
    several connections, which are the same ones each time.
    """

    __slots__ = ("_free", "_idle", "_waiters", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._idle: list[T | None] = [None] * size
        # Whether a slot has neither a connection nor anybody who opens one.
        self._free = [True] * size
        self._waiters: Waiters[tuple[int, T | None]] = Waiters()

    def __len__(self) -> int:
        """Return how many slots are taken: by an idle connection, a lent one, or one that is being opened."""
        return self.size - sum(self._free)

    def count_idle(self) -> int:
        """Return how many connections nobody has."""
        return sum(found is not None for found in self._idle)

    def take(self, preferred: int) -> tuple[int, T | None] | None:
        """Return a slot and its connection, or a slot for which one is to be opened; None if all are taken."""
        size = self.size
        for number in range(preferred, preferred + size):
            slot = number % size
            found = self._idle[slot]
            if found is not None:
                self._idle[slot] = None
                return slot, found
            if self._free[slot]:
                self._free[slot] = False
                return slot, None
        return None

    async def wait(self, deadline: float) -> tuple[int, T | None]:
        """Return what `take` returns as soon as there is something, first come, first served.

        Args:
            deadline: On the event loop's clock.

        Raises:
            TimeoutError: Nothing came free.
        """
        return await self._waiters.wait(deadline, self._take_back)

    def give_back(self, slot: int, connection: T) -> None:
        """Let the next have *connection*."""
        if not self._waiters.hand_over((slot, connection)):
            self._idle[slot] = connection

    def vacate(self, slot: int) -> None:
        """Let the next open a connection in *slot*, where there is none any more."""
        if not self._waiters.hand_over((slot, None)):
            self._free[slot] = True

    def take_empty(self) -> list[int]:
        """Return the slots for which nobody opens a connection. They stay taken until `vacate`."""
        empty = [slot for slot, free in enumerate(self._free) if free]
        for slot in empty:
            self._free[slot] = False
        return empty

    def take_idle(self, is_wanted: Callable[[T], bool]) -> list[T]:
        """Return the wanted ones of the connections that nobody uses. Their slots stay taken."""
        taken = []
        for slot, found in enumerate(self._idle):
            if found is not None and is_wanted(found):
                self._idle[slot] = None
                taken.append(found)
        return taken

    def _take_back(self, taken: tuple[int, T | None]) -> None:
        slot, connection = taken
        if connection is None:
            self.vacate(slot)
        else:
            self.give_back(slot, connection)
