"""Count how long things took, in the buckets of a histogram."""

from bisect import bisect_left

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. The upper ends of all buckets but the last one, which has no end."""


class Durations:
    """How many took how long.

    Attributes:
        counts: One number for each bucket. It is not the sum of those before it.
        seconds: All together.
    """

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one that took *seconds*."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
