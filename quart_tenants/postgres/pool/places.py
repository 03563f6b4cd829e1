"""Give each tenant the same few connections, so that the server finds ready there what it knows of the tenant.

A server process keeps for every tenant that it has served what it knows of its tables, and the plans of its statements.
With the tenants spread over all connections each would know all tenants; here each knows its part of them.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from quart_tenants.postgres.pool.waiters import Waiters

T = TypeVar("T")


class Places(Generic[T]):
    """A fixed number of places, each with a connection or none, for which blocks queue.

    A tenant's home is one of them by its number. Where that is taken it goes to the next: a busy tenant has several
    connections, which are the same ones each time.
    """

    __slots__ = ("_free", "_idle", "_waiters", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._idle: list[T | None] = [None] * size
        # Whether there is neither a connection nor anybody who opens one.
        self._free = [True] * size
        self._waiters: Waiters[tuple[int, T | None]] = Waiters()

    def __len__(self) -> int:
        """Return how many places are taken: by an idle connection, a lent one, or one that is being opened."""
        return self.size - sum(self._free)

    def take(self, home: int) -> tuple[int, T | None] | None:
        """Return a place and its connection, or a place for which one is to be opened; None if all are taken."""
        size = self.size
        for number in range(home, home + size):
            place = number % size
            found = self._idle[place]
            if found is not None:
                self._idle[place] = None
                return place, found
            if self._free[place]:
                self._free[place] = False
                return place, None
        return None

    async def wait(self, deadline: float) -> tuple[int, T | None]:
        """Return what `take` returns as soon as there is something, first come, first served.

        Args:
            deadline: On the event loop's clock.

        Raises:
            TimeoutError: Nothing came free.
        """
        return await self._waiters.wait(deadline, self._take_back)

    def give_back(self, place: int, connection: T) -> None:
        """Let the next have *connection*."""
        if not self._waiters.hand_over((place, connection)):
            self._idle[place] = connection

    def vacate(self, place: int) -> None:
        """Let the next open a connection at *place*, where there is none any more."""
        if not self._waiters.hand_over((place, None)):
            self._free[place] = True

    def take_idle(self, is_wanted: Callable[[T], bool]) -> list[T]:
        """Return the connections that nobody uses, of those that are wanted. Their places stay taken."""
        taken = []
        for place, found in enumerate(self._idle):
            if found is not None and is_wanted(found):
                self._idle[place] = None
                taken.append(found)
        return taken

    def _take_back(self, taken: tuple[int, T | None]) -> None:
        place, connection = taken
        if connection is None:
            self.vacate(place)
        else:
            self.give_back(place, connection)
