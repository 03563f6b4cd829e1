"""Measure how this project grows: with tenants, rows, connections and workers; how it starts, and what logins do."""

import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.load.cluster import Server, get_slug, make_tenants, running_server
from benchmarks.load.contenders import CONTENDERS, THIS_PROJECT, Contender
from benchmarks.load.report import compare, describe_run
from benchmarks.load.rounds import Bench, Figures, Measured, Plan, measure_all
from benchmarks.load.serving import Probe, ask, make_environments
from benchmarks.load.storm import measure_storm

_TENANTS = (10, 1_000, 10_000)
_ROWS = (1, 100, 10_000)
_CONNECTIONS = (1, 4, 16, 32, 64, 256)
_WORKERS = (1, 2)
_STARTS = 5
_TENANTS_WITH_ROWS = 10
_EXPORT = "/data/export"
_MOST_AT_ONCE = 1_000
"""Rows of `/data`; more are asked of the export."""
_FASTAPI = next(contender for contender in CONTENDERS if contender.name == "fastapi")
_MOST_GROWTH = 1.1
_MOST_START_GROWTH = 1.0
_LEAST_ROWS = 3.0
_MOST_BACKEND = 64.0

_HEAD = (
    "| what | CPU µs / request | server | PostgreSQL | requests / s | rows / s | p50 ms | p99 ms | memory MB "
    "| largest process MB | largest backend MB | other than 200 |\n| --- |" + " --- |" * 11
)


async def measure_growth(plan: Plan, folder: Path) -> int:
    """Measure all of it; return the exit status, 1 if any answer had another tenant's rows."""
    print(describe_run(plan))
    async with running_server() as server:
        results = await _measure_tenants(server, plan)
        results += await _measure_rows(server, plan, folder)
        results += await _measure_workers(server, plan)
        wrong = await _measure_connections(server, plan)
        wrong += await measure_storm(server, plan, "tenants_1000", _list_slugs(1_000))
    wrong += sum(measured.wrong for measured in results)
    print(f"\nanswers with another tenant's rows: {wrong}")
    return 1 if wrong else 0


def _list_slugs(count: int) -> list[str]:
    return [get_slug(number) for number in range(count)]


async def _measure_tenants(server: Server, plan: Plan) -> list[Measured]:
    entries = []
    for count in _TENANTS:
        database = f"tenants_{count}"
        slugs = await make_tenants(server, count, 1, database)
        contender = replace(THIS_PROJECT, name=database, title=_count(count, "tenant"), database=database)
        entries.append((Bench(server, plan, slugs, {}), contender))
    results = await measure_all(entries, plan.rounds)
    _show("Tenants", results, [1] * len(results))
    few, many = results[0], results[-1]
    ratio = statistics.median(late.cpu / early.cpu for early, late in zip(few.rounds, many.rounds, strict=True))
    _judge(f"CPU of a request with {_TENANTS[-1]:,} tenants over that with {_TENANTS[0]}", ratio, _MOST_GROWTH)
    largest = max(figures.largest_backend for figures in many.rounds)
    _judge(f"largest backend with {_TENANTS[-1]:,} tenants, MB", largest, _MOST_BACKEND)
    await _measure_starts([entries[0], entries[-1]])
    return results


async def _measure_starts(entries: Sequence[tuple[Bench, Contender]]) -> None:
    seconds: list[list[float]] = [[] for _ in entries]
    for _ in range(_STARTS):
        for (bench, contender), times in zip(entries, seconds, strict=True):
            async with bench.serving(contender, probe=Probe("localhost", "/readyz", 200)) as running:
                times.append(running.started_in)
    for (_, contender), times in zip(entries, seconds, strict=True):
        print(f"start until /readyz answers 200, {contender.title}: {statistics.median(times):.2f} s")
    longer = statistics.median(seconds[-1]) - statistics.median(seconds[0])
    _judge("… longer with many, seconds", longer, _MOST_START_GROWTH)


async def _measure_rows(server: Server, plan: Plan, folder: Path) -> list[Measured]:
    programs = make_environments([_FASTAPI], folder)
    results, rows_of = [], []
    for rows in _ROWS:
        database = f"rows_{rows}"
        slugs = await make_tenants(server, _TENANTS_WITH_ROWS, rows, database)
        path = _EXPORT if rows > _MOST_AT_ONCE else "/data"
        bench = Bench(server, replace(plan, rows=rows, path=path), slugs, programs)
        pair = [
            replace(contender, title=f"{contender.title}, {_count(rows, 'row')}", database=database)
            for contender in (THIS_PROJECT, _FASTAPI)
        ]
        measured = await measure_all([(bench, one) for one in pair if await _has_path(bench, one, path)], plan.rounds)
        results += measured
        rows_of += [rows] * len(measured)
    _show("Rows", results, rows_of)
    if rows_of.count(_ROWS[-1]) == 2:
        ours, theirs = results[-2], results[-1]
        ratio = statistics.median(
            (own.load.requests / own.load.seconds) / (other.load.requests / other.load.seconds)
            for own, other in zip(ours.rounds, theirs.rounds, strict=True)
        )
        _judge(f"rows a second over hand-written FastAPI's, {_ROWS[-1]:,} rows", ratio, _LEAST_ROWS, least=True)
        print(f"… and its CPU per request over ours: {compare(theirs, ours):.2f}", flush=True)
    return results


async def _has_path(bench: Bench, contender: Contender, path: str) -> bool:
    async with bench.serving(contender) as running:
        status, _ = await ask(
            running.port, f"GET {path} HTTP/1.1\r\nHost: {get_slug(0)}.localhost\r\nConnection: close\r\n\r\n"
        )
    if status == 404:
        print(f"{contender.title}: there is no {path}", file=sys.stderr)
    return status != 404


async def _measure_workers(server: Server, plan: Plan) -> list[Measured]:
    entries = []
    for workers in _WORKERS:
        contender = replace(
            THIS_PROJECT, name=f"workers_{workers}", title=_count(workers, "worker"), database="tenants_1000"
        )
        entries.append((Bench(server, replace(plan, workers=workers), _list_slugs(1_000), {}), contender))
    results = await measure_all(entries, plan.rounds)
    _show("Workers", results, [1] * len(results))
    return results


async def _measure_connections(server: Server, plan: Plan) -> int:
    bench = Bench(server, plan, _list_slugs(1_000), {})
    contender = replace(THIS_PROJECT, name="connections", database="tenants_1000")
    results = [Measured(replace(contender, title=_count(count, "connection"))) for count in _CONNECTIONS]
    async with bench.serving(contender) as running:
        await bench.prepare(running)
        for _ in range(plan.rounds):
            for count, measured in zip(_CONNECTIONS, results, strict=True):
                measured.rounds.append(await bench.measure(running, count))
    _show("Connections", results, [1] * len(results))
    return sum(measured.wrong for measured in results)


def _show(title: str, results: Sequence[Measured], rows_of: Sequence[int]) -> None:
    print(f"\n### {title}\n\n{_HEAD}")
    for measured, rows in zip(results, rows_of, strict=True):
        print(f"| {measured.contender.title} | {' | '.join(_list_cells(measured, rows))} |")
    print(flush=True)


def _list_cells(measured: Measured, rows: int) -> list[str]:
    def get_rate(figures: Figures) -> float:
        return figures.load.requests / figures.load.seconds

    return [
        f"{measured.median(lambda figures: figures.cpu):,.0f}",
        f"{measured.median(lambda figures: figures.server_cpu):,.0f}",
        f"{measured.median(lambda figures: figures.database_cpu):,.0f}",
        f"{measured.median(get_rate):,.0f}",
        f"{measured.median(get_rate) * rows:,.0f}",
        f"{measured.median(lambda figures: figures.load.p50):.1f}",
        f"{measured.median(lambda figures: figures.load.p99):.1f}",
        f"{measured.median(lambda figures: figures.memory):.0f}",
        f"{measured.median(lambda figures: figures.peak):.0f}",
        f"{measured.median(lambda figures: figures.largest_backend):.0f}",
        _describe_refusals(measured),
    ]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _describe_refusals(measured: Measured) -> str:
    """Name them: with 256 connections a tenant may have more than its share."""
    statuses: Counter[str] = Counter()
    for figures in measured.rounds:
        statuses.update(figures.load.refused)
    return ", ".join(f"{count} of {status}" for status, count in statuses.items()) or "0"


def _judge(what: str, value: float, limit: float, *, least: bool = False) -> None:
    met = value >= limit if least else value <= limit
    print(f"{'met' if met else 'MISSED'}: {what}: {value:.2f} (target {'≥' if least else '≤'} {limit:g})", flush=True)
