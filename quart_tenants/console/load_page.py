"""Show how busy the workers are, by plots that are drawn here, and which tenants keep them busy."""

from quart import Blueprint
from quart.typing import ResponseReturnValue

from quart_tenants.console.console import Console
from quart_tenants.console.plots import Plot, find_points
from quart_tenants.console.samples import EVERY, Course
from quart_tenants.console.showing import show
from quart_tenants.postgres.registry.activity import list_activity
from quart_tenants.web.commands.busy_tenants import describe_workers, list_busy

_MOST = 50
"""Rows: the port tells of no more tenants than `TENANTS_METRICS_TENANTS`, but PostgreSQL may work for many."""


def draw(course: Course) -> Plot:
    """Return the plot of a course, from 0 at the bottom to its largest value at the top."""
    now, most = (f"{value:.3g} {course.unit}".strip() for value in (course.values[-1], max(course.values)))
    return Plot(course.title, now, most, find_points(course.values))


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
        )
