"""Decide which tenants are named: the busiest ones, by what one worker has counted, or several."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nlargest
from time import monotonic

ELECT_EVERY = 10.0
"""Seconds. Whoever has become busy is named after this time at the latest."""


class Election:
    """Remembers who is named. It names others after some seconds, or at once while there is room for more.

    Attributes:
        held_at: When it last named others, by its clock.
    """

    def __init__(
        self,
        size: int,
        clock: Callable[[], float] = monotonic,
        named: Sequence[str] = (),
        held_at: float | None = None,
    ) -> None:
        """Begin with the slugs in *named*.

        Args:
            size: How many tenants are named at most.
            clock: Returns seconds.
            named: Who was named by an election before this one.
            held_at: When that was held, by the same clock. Default: now.
        """
        self._size = size
        self._clock = clock
        self._named = list(named)
        self.held_at = clock() if held_at is None else held_at

    def hold(self, votes: Iterable[Mapping[str, float]]) -> list[str]:
        """Return the slugs of those who are named now.

        Args:
            votes: How busy the busiest tenants of each worker are, by slug.
        """
        # Whoever is named stays so while there is room: a series that ends and begins again tells less.
        busy = defaultdict(float, dict.fromkeys(self._named, 0.0))
        for vote in votes:
            for slug, weight in vote.items():
                busy[slug] += weight
        now = self._clock()
        if now - self.held_at >= ELECT_EVERY or len(self._named) < min(self._size, len(busy)):
            self._named = nlargest(self._size, busy, key=busy.__getitem__)
            self.held_at = now
        return self._named
