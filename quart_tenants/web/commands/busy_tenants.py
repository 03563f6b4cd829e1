"""Put together who is busy now: what the workers have counted between two looks, and what PostgreSQL does."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quart_tenants.measures import metric_names as names
from quart_tenants.measures.stats import Stats
from quart_tenants.postgres.registry.activity import TenantActivity
from quart_tenants.web.commands.worker_figures import Told, list_workers, sort_by_tenant

# The counters of tenants that are shown as rates, by their names in `TenantStats`.
_RATES = ("requests", "refused", "failed_logins", "rows", "bytes", "blocks", "block_seconds")


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker of `serve`.

    Attributes:
        worker: Its label.
        up: Whether it gives figures.
        starts: How often one was started in its place.
    """

    worker: str
    up: bool
    starts: int


@dataclass(frozen=True, slots=True)
class Look:
    """What the workers had counted at one moment.

    Attributes:
        counts: By figure and tenant.
        behind: Slugs of tenants that wait for a migration.
        workers: All of them; empty if one has told of itself only.
        at: By the monotonic clock.
    """

    counts: Mapping[tuple[str, str], float] = field(default_factory=dict)
    behind: frozenset[str] = frozenset()
    workers: tuple[WorkerState, ...] = ()
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class BusyTenant:
    """One tenant.

    Attributes:
        tenant: Its slug.
        blocks: Blocks a second that have ended.
        block_seconds: How many of its blocks were open on average.
        block_takes: How many seconds a block took on average, with its waiting.
        requests: Answers a second.
        refused: Of these, answers 429.
        failed_logins: Wrong passwords a second.
        rows: Rows a second that its blocks read.
        bytes: Bytes a second of its answers.
        behind: Whether it waits for a migration.
        connections: Server processes that work for it now.
        waiting: How many of them wait for a lock.
        longest: How many seconds the longest of their statements takes.
        statement: That one, without its literals.
    """

    tenant: str
    blocks: float = 0.0
    block_seconds: float = 0.0
    block_takes: float = 0.0
    requests: float = 0.0
    refused: float = 0.0
    failed_logins: float = 0.0
    rows: float = 0.0
    bytes: float = 0.0
    behind: bool = False
    connections: int = 0
    waiting: int = 0
    longest: float = 0.0
    statement: str = ""


def read_look(told: Iterable[Told]) -> Look:
    """Return what all workers tell by their port."""
    samples = sort_by_tenant(told)
    figures = {names.OF_TENANTS[figure] + names.TOTAL: figure for figure in _RATES}
    return Look(
        {(figures[name], tenant): value for (name, _, tenant), value in samples.items() if name in figures},
        frozenset(tenant for name, _, tenant in samples if name == names.TENANT_BEHIND),
        tuple(
            WorkerState(name, is_up, int(samples.get((names.WORKER_STARTS + names.TOTAL, name, ""), 1)))
            for name, is_up in list_workers(samples).items()
        ),
    )


def make_look(stats: Stats) -> Look:
    """Return what one worker knows of itself."""
    return Look(
        {(figure, one.slug): getattr(one, figure) for one in stats.tenants for figure in _RATES},
        frozenset(stats.registry.behind_slugs),
    )


def list_busy(before: Look, now: Look, activity: Sequence[TenantActivity]) -> list[BusyTenant]:
    """Return one line for each tenant that does anything, or is behind; the busiest first."""
    seconds = max(now.at - before.at, 0.001)
    rates: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_RATES, 0.0))
    for key, value in now.counts.items():
        figure, tenant = key
        # A tenant that was not named before begins here.
        rates[tenant][figure] += max(value - before.counts.get(key, value), 0.0) / seconds
    known = {one.slug: one for one in activity}
    lines = []
    for tenant in rates.keys() | known.keys() | now.behind:
        rate = rates[tenant]
        told: dict[str, Any] = {name: round(value, 3) for name, value in rate.items()}
        if rate["blocks"]:
            told["block_takes"] = round(rate["block_seconds"] / rate["blocks"], 3)
        if (doing := known.get(tenant)) is not None:
            told |= {"connections": doing.connections, "waiting": doing.waiting}
            told |= {"longest": round(doing.seconds, 3), "statement": doing.statement}
        line = BusyTenant(tenant, behind=tenant in now.behind, **told)
        if line != BusyTenant(tenant):
            lines.append(line)
    return sorted(lines, key=lambda one: (-one.block_seconds, -one.connections, -one.requests, one.tenant))


def describe_workers(workers: Sequence[WorkerState]) -> str:
    """Return how many are up, and how many were started again."""
    up = sum(worker.up for worker in workers)
    return f"{up} of {len(workers)} workers up, {sum(worker.starts - 1 for worker in workers)} started again"
