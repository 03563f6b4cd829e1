"""Remember how busy the workers were in the last minutes, while a console is open."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from quart_tenants.errors import TenantError
from quart_tenants.measures import metric_names as names
from quart_tenants.measures.durations import BOUNDS
from quart_tenants.measures.stats import Stats
from quart_tenants.web.commands.busy_tenants import Look

EVERY = 5.0  # seconds
_KEPT = 121
"""Ten minutes."""

_P99 = 0.99


@dataclass(frozen=True, slots=True)
class Sample:
    """What the workers have counted until one moment.

    Attributes:
        requests: Since they started.
        delays: Of these, how many had an answer within each of `BOUNDS`, and how many had one at all.
        connections: That are open now.
        lent: Of these, how many a block has.
        behind: Tenants that are not served, because their tables are older than the app needs.
    """

    requests: float
    delays: tuple[float, ...]
    connections: float
    lent: float
    behind: float


TakeSample = Callable[[], Awaitable[tuple[Sample, Look]]]
"""Asks the workers. It raises a `TenantError` that says why they cannot be asked."""


@dataclass(frozen=True, slots=True)
class Course:
    """How one figure went, the oldest first."""

    title: str
    unit: str
    values: tuple[float, ...]


class Samples:
    """Takes a sample every few seconds, and keeps those of the last ten minutes."""

    def __init__(self, take: TakeSample) -> None:
        self.problem: str | None = None
        """Why the workers could not be asked the last time."""
        self._take = take
        self.looks: deque[Look] = deque([Look()], maxlen=2)
        """The last one, and the one before it: what `top` compares."""
        self._kept: deque[tuple[float, Sample]] = deque(maxlen=_KEPT)
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._go_on(), name="quart_tenants console samples")

    async def close(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def add(self) -> None:
        """Take a sample now."""
        try:
            sample, look = await self._take()
            self._kept.append((look.at, sample))
            self.looks.append(look)
            self.problem = None
        except TenantError as error:
            self.problem = str(error)

    def list_courses(self) -> list[Course]:
        """Return how each figure went; empty before there are two samples."""
        pairs = list(pairwise(self._kept))
        if not pairs:
            return []
        newer = [sample for _, (_, sample) in pairs]
        return [
            Course("Requests", "a second", tuple(_find_rate(*pair) for pair in pairs)),
            Course(
                "99 of 100 answers begin within",
                "ms",
                tuple(_find_p99(before.delays, after.delays) * 1000 for (_, before), (_, after) in pairs),
            ),
            Course("Connections that are lent", "", tuple(sample.lent for sample in newer)),
            Course("Tenants that wait for a migration", "", tuple(sample.behind for sample in newer)),
        ]

    async def _go_on(self) -> None:
        while True:
            await self.add()
            await asyncio.sleep(EVERY)


def sample_stats(stats: Stats) -> Sample:
    """Return the sample of one worker."""
    requests = stats.requests
    return Sample(
        sum(requests.by_status.values()),
        tuple(accumulate(requests.until_answer.counts)),
        stats.pool.size,
        stats.pool.size - stats.pool.idle,
        stats.registry.behind,
    )


def sample_metrics(samples: Iterable[tuple[str, dict[str, str], float]]) -> Sample:
    """Return the sample of all workers, from what their metrics port has told: names, labels and values."""
    ends = {f"{bound:g}": place for place, bound in enumerate(BOUNDS)} | {"+Inf": len(BOUNDS)}
    delays = [0.0] * len(ends)
    requests = connections = lent = behind = 0.0
    for name, labels, value in samples:
        if name == names.REQUESTS + names.TOTAL:
            requests += value
        elif name == f"{names.ANSWER_DELAY}_bucket":
            # The client writes 1.0 for what we call 1.
            end = labels["le"]
            delays[ends[end if end == "+Inf" else f"{float(end):g}"]] = value
        elif name == names.CONNECTIONS:
            connections += value
            lent += value if labels["state"] == "lent" else 0
        elif name == names.BEHIND_TENANTS:
            behind = value
    return Sample(requests, tuple(delays), connections, lent, behind)


def _find_rate(before: tuple[float, Sample], after: tuple[float, Sample]) -> float:
    # `serve` that was started anew counts from 0 on.
    return max(after[1].requests - before[1].requests, 0) / max(after[0] - before[0], 0.001)


def _find_p99(before: tuple[float, ...], after: tuple[float, ...]) -> float:
    """Return within which time, in seconds, 99 of 100 answers began; 0 for none. Within a bucket it is a guess."""
    counts = [max(late - early, 0) for early, late in zip(before, after, strict=True)]
    wanted = counts[-1] * _P99
    if not wanted:
        return 0.0
    below, start = 0.0, 0.0
    for bound, count in zip(BOUNDS, counts, strict=False):
        if count >= wanted:
            return start + (bound - start) * (wanted - below) / max(count - below, 1e-9)
        below, start = count, bound
    return BOUNDS[-1]
