"""Draw the course of a number as a line in SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 300, 60
"""Of a plot, in its own units: the page stretches it."""


@dataclass(frozen=True)
class Plot:
    """A line, and what it says in words.

    Attributes:
        title: What it shows.
        now: The newest value.
        most: The largest one, which is at the top.
        points: Of the line, as SVG has them.
    """

    title: str
    now: str
    most: str
    points: str


def find_points(values: Sequence[float], at: Sequence[float] = ()) -> str:
    """Return the points of a line from 0 at the bottom to the largest of *values* at the top.

    Args:
        values: At least one.
        at: When each was so, in any unit, the oldest first; by default at equal distances.
    """
    if len(values) == 1:
        # It is a line, too.
        values, at = [*values, *values], ()
    times = at or range(len(values))
    most, began, lasted = max(values), times[0], times[-1] - times[0]
    return " ".join(
        f"{(time - began) / lasted * WIDTH:.1f},{HEIGHT - (value / most if most else 0) * HEIGHT:.1f}"
        for time, value in zip(times, values, strict=True)
    )
