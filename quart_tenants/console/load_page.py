"""Show how busy the workers are, by plots that are drawn here, and which tenants keep them busy."""

from collections.abc import Sequence
from dataclasses import dataclass

from quart import Blueprint
from quart.typing import ResponseReturnValue

from quart_tenants.console.console import Console
from quart_tenants.console.samples import EVERY, Course
from quart_tenants.console.showing import show
from quart_tenants.postgres.registry.activity import list_activity
from quart_tenants.web.commands.busy_tenants import describe_workers, list_busy

_WIDTH, _HEIGHT = 300, 60
"""Of a plot, in its own units: the page stretches it."""

_MOST = 50
"""Rows: the port tells of no more tenants than `TENANTS_METRICS_TENANTS`, but PostgreSQL may work for many."""


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


def draw(course: Course) -> Plot:
    """Return the plot of a course, from 0 at the bottom to its largest value at the top."""
    most = max(course.values)
    return Plot(
        course.title,
        f"{course.values[-1]:.3g} {course.unit}".strip(),
        f"{most:.3g} {course.unit}".strip(),
        _find_points(course.values, most),
    )


def add_load_page(blueprint: Blueprint, console: Console, host: str | None) -> None:
    """Let *blueprint* show the load at *host*."""

    @blueprint.get("/load", host=host)
    async def load() -> ResponseReturnValue:
        plots = [draw(course) for course in console.samples.list_courses()]
        before, now = console.samples.looks[0], console.samples.looks[-1]
        return await show(
            console,
            "load.html",
            plots=plots,
            busy=list_busy(before, now, await list_activity(console.database))[:_MOST],
            workers=describe_workers(now.workers) if now.workers else None,
            problem=console.samples.problem,
            every=EVERY,
            width=_WIDTH,
            height=_HEIGHT,
        )


def _find_points(values: Sequence[float], most: float) -> str:
    # A single value is a line, too.
    across = [*values, values[-1]] if len(values) == 1 else values
    step = _WIDTH / (len(across) - 1)
    return " ".join(
        f"{number * step:.1f},{_HEIGHT - (value / most if most else 0) * _HEIGHT:.1f}"
        for number, value in enumerate(across)
    )
