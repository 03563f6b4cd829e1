"""Show what was measured: a table in Markdown, and a chart."""

import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.load.contenders import BARE, THIS_PROJECT
from benchmarks.load.environments import make_environment
from benchmarks.load.rounds import Measured, Plan

_CHARTS = Path(__file__).parents[1] / "charts"
MOST_OF_BARE = 2.2
"""How many times the bare limit's CPU this project's may be."""


def describe_run(plan: Plan) -> str:
    """Return what a reader has to know of the machine and the load."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, "
        f"Python {platform.python_version()}, load before {os.getloadavg()[0]:.1f}; tenants drawn by Zipf's law "
        f"({plan.exponent:g}), {plan.connections} keep-alive connections, "
        f"{plan.workers} worker{'s' * (plan.workers > 1)}, {plan.rounds} rounds of {plan.seconds:g} s in turn"
        + (f" for each of {plan.starts} starts" if plan.starts > 1 else "")
    )


def compare(measured: Measured, ours: Measured) -> float:
    """Return how many times our CPU per request its is: the median of the ratios within each round."""
    return statistics.median(theirs.cpu / own.cpu for theirs, own in zip(measured.rounds, ours.rounds, strict=True))


def write_table(results: Sequence[Measured], starts: int = 1) -> str:
    """Return the table, with the targets where there are any."""
    ours = next((measured for measured in results if measured.contender is THIS_PROJECT), None)
    lines = [
        "| who | CPU µs / request | server | PostgreSQL | requests / s | p50 ms | p99 ms | memory MB "
        "| largest backend MB | round trips | CPU ÷ ours | target |",
        "| --- |" + " --- |" * 11,
    ]
    for measured in results:
        ratio, target = "", ""
        if ours is not None and measured is not ours:
            ratio, target = _judge(measured, ours)
            ratio += _describe_starts(measured, ours, starts)
        trips = "" if math.isnan(measured.round_trips) else f"{measured.round_trips:.1f}"
        cells = [
            measured.contender.title,
            f"{measured.median(lambda figures: figures.cpu):,.0f}",
            f"{measured.median(lambda figures: figures.server_cpu):,.0f}",
            f"{measured.median(lambda figures: figures.database_cpu):,.0f}",
            f"{measured.median(lambda figures: figures.load.requests / figures.load.seconds):,.0f}",
            f"{measured.median(lambda figures: figures.load.p50):.1f}",
            f"{measured.median(lambda figures: figures.load.p99):.1f}",
            f"{measured.median(lambda figures: figures.memory):.0f}",
            f"{measured.median(lambda figures: figures.largest_backend):.0f}",
            trips,
            ratio,
            target,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _describe_starts(measured: Measured, ours: Measured, starts: int) -> str:
    """Return from where to where the ratio goes between the starts, for it says how much to believe of it."""
    if starts == 1:
        return ""
    count = len(ours.rounds) // starts
    ratios = sorted(
        compare(
            replace(measured, rounds=measured.rounds[begin:][:count]), replace(ours, rounds=ours.rounds[begin:][:count])
        )
        for begin in range(0, len(ours.rounds), count)
    )
    return f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def _judge(measured: Measured, ours: Measured) -> tuple[str, str]:
    ratio = compare(measured, ours)
    if measured.contender is BARE:
        times = 1 / ratio
        return f"{ratio:.2f}", f"ours ≤ {MOST_OF_BARE:g} times: {times:.2f}, {_word(met=times <= MOST_OF_BARE)}"
    wanted = measured.contender.target
    return f"{ratio:.2f}", "" if wanted is None else f"≥ {wanted:g}: {_word(met=ratio >= wanted)}"


def _word(*, met: bool) -> str:
    return "met" if met else "**missed**"


def draw(results: Sequence[Measured], title: str, path: Path, folder: Path) -> None:
    """Draw the chart into *path*, by a matplotlib in an environment of its own.

    Raises:
        RuntimeError: It cannot be drawn.
    """
    facts = {
        "title": title,
        "bars": [
            {
                "title": measured.contender.title,
                "server": measured.median(lambda figures: figures.server_cpu),
                "database": measured.median(lambda figures: figures.database_cpu),
                "rate": measured.median(lambda figures: figures.load.requests / figures.load.seconds),
                "p50": measured.median(lambda figures: figures.load.p50),
                "p99": measured.median(lambda figures: figures.load.p99),
            }
            for measured in results
        ],
    }
    python = make_environment(folder, _CHARTS / "requirements.txt") / "python"
    drawn = subprocess.run(
        [python, _CHARTS / "draw.py", path], input=json.dumps(facts), capture_output=True, text=True, check=False
    )
    if drawn.returncode:
        raise RuntimeError(f"the chart could not be drawn: {drawn.stderr}")
