"""Measure servers in turn, round by round, each under the same load while the others are idle."""

import statistics
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load.cluster import Server
from benchmarks.load.contenders import Contender
from benchmarks.load.generator import EXPONENT, Load, run_wrk, write_tenants
from benchmarks.load.round_trips import CountingProxy
from benchmarks.load.serving import Probe, Running, serving
from benchmarks.load.sessions import log_in
from benchmarks.load.usage import read_family, read_memory, read_own_memory, read_peak

_COUNTED_SECONDS = 2.0


@dataclass(frozen=True)
class Figures:
    """What one round with one server came to.

    Attributes:
        load: What wrk saw.
        server_cpu: Microseconds for each request, of all processes of the server.
        database_cpu: The same of PostgreSQL.
        memory: Megabytes of the server's processes.
        peak: The most megabytes that one of these ever had.
        largest_backend: Megabytes that the largest of its backends in PostgreSQL has for itself.
    """

    load: Load
    server_cpu: float
    database_cpu: float
    memory: float
    peak: float
    largest_backend: float

    @property
    def cpu(self) -> float:
        """Microseconds for each request, of both."""
        return self.server_cpu + self.database_cpu


@dataclass
class Measured:
    """All rounds with one server."""

    contender: Contender
    rounds: list[Figures] = field(default_factory=list)
    round_trips: float = float("nan")
    warm_up_mistakes: int = 0

    def median(self, read: Callable[[Figures], float]) -> float:
        """Return the median over the rounds of what *read* reads."""
        return statistics.median(read(figures) for figures in self.rounds)

    @property
    def wrong(self) -> int:
        """How many answers of status 200 had not the tenant's rows, the warm-up's left out."""
        return sum(figures.load.wrong for figures in self.rounds)

    @property
    def mistakes(self) -> int:
        """How many answers were not what they had to be, the warm-up's included."""
        return self.warm_up_mistakes + sum(figures.load.mistakes for figures in self.rounds)


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        starts: How often each server is started anew. Where a process happens to lie in memory makes it up to a
            tenth dearer or cheaper for its whole life, so a difference below that shows only over several starts.
        rounds: So many of each server, for each of its starts.
        seconds: Of a round, and before the first of each server.
        connections: Keep-alive ones of the generator.
        workers: Of each server.
        rows: Of each tenant.
        path: What is asked for.
        pause: Milliseconds from an answer until its connection asks again.
        exponent: Of Zipf's law, by which tenants are drawn; 0 draws all of them equally often.
    """

    starts: int = 1
    rounds: int = 5
    seconds: float = 6.0
    connections: int = 32
    workers: int = 2
    rows: int = 1
    path: str = "/data"
    pause: int = 0
    exponent: float = EXPONENT


class Bench:
    """Servers that are up, with the sessions to ask them."""

    def __init__(self, server: Server, plan: Plan, slugs: Sequence[str], programs: Mapping[str, Path]) -> None:
        self._server = server
        self._plan = plan
        self._slugs = slugs
        self._programs = programs
        self._seed = 0

    @asynccontextmanager
    async def serving(
        self, contender: Contender, url: str | None = None, probe: Probe | None = None
    ) -> AsyncIterator[Running]:
        """Run one of them; by default it is up when it refuses a visitor without a session."""
        await self._server.add_user(contender.name)
        async with serving(
            contender,
            url or self._server.url(contender.database, contender.name),
            self._server.folder,
            self._programs.get(contender.name),
            workers=self._plan.workers,
            probe=probe or Probe(f"{self._slugs[0]}.localhost", "/data", 401 if contender.session else 200),
        ) as running:
            yield running

    async def prepare(self, running: Running) -> int:
        """Log in everywhere, and warm up; return how many answers were wrong."""
        cookies = await log_in(running, self._slugs, self._server)
        write_tenants(self._get_file(running), cookies, self._plan.rows)
        return (await self.load(running)).mistakes

    async def load(self, running: Running, connections: int | None = None, seconds: float | None = None) -> Load:
        """Ask a server, with other random tenants each time."""
        self._seed += 1
        return await run_wrk(
            running.port,
            self._get_file(running),
            connections=connections or self._plan.connections,
            seconds=seconds or self._plan.seconds,
            seed=self._seed,
            path=self._plan.path,
            pause=self._plan.pause,
            exponent=self._plan.exponent,
        )

    async def measure(self, running: Running, connections: int | None = None) -> Figures:
        """Run one round.

        Raises:
            RuntimeError: Nothing was answered, or one of the server's processes was replaced.
        """
        before = read_family(running.pid), read_family(self._server.pid)
        load = await self.load(running, connections)
        after = read_family(running.pid), read_family(self._server.pid)
        if not load.requests:
            raise RuntimeError(f"{running.contender.name} answered nothing")
        if before[0].pids != after[0].pids:
            raise RuntimeError(f"processes of {running.contender.name} were replaced during a round")
        server, database = (
            (end.cpu - begin.cpu) / load.requests * 1e6 for begin, end in zip(before, after, strict=True)
        )
        backends = await self._server.list_backends(running.contender.name)
        largest = max((read_own_memory(pid) for pid in backends), default=0.0)
        pids = after[0].pids
        return Figures(load, server, database, read_memory(pids), read_peak(pids), largest)

    async def count_round_trips(self, contender: Contender) -> float:
        """Return how often *contender* waits for PostgreSQL in each request, when they come one by one."""
        async with (
            CountingProxy(self._server.url(contender.database, contender.name)) as proxy,
            self.serving(contender, proxy.url) as running,
        ):
            # With many connections caches in memory are soon full.
            await self.load(running)
            before = proxy.round_trips
            load = await self.load(running, 1, _COUNTED_SECONDS)
            return (proxy.round_trips - before) / load.requests

    def _get_file(self, running: Running) -> Path:
        return self._server.folder / f"{running.contender.name}.tenants"


async def measure_all(entries: Sequence[tuple[Bench, Contender]], rounds: int, starts: int = 1) -> list[Measured]:
    """Measure contenders in turn, round by round; all of them are up all the time. Names must differ.

    Args:
        entries: Who, and where.
        rounds: For each start.
        starts: How often all are ended and started again. Who comes first changes each time.
    """
    results = [Measured(contender) for _, contender in entries]
    measured_by = list(zip(results, (bench for bench, _ in entries), strict=True))
    for start in range(starts):
        first = start % len(measured_by)
        await _measure_one_start(measured_by[first:] + measured_by[:first], rounds)
    return results


async def _measure_one_start(entries: Sequence[tuple[Measured, Bench]], rounds: int) -> None:
    async with AsyncExitStack() as stack:
        servers = []
        for measured, bench in entries:
            print(f"warming up: {measured.contender.title}", file=sys.stderr)
            running = await stack.enter_async_context(bench.serving(measured.contender))
            measured.warm_up_mistakes += await bench.prepare(running)
            servers.append((measured, bench, running))
        for number in range(1, rounds + 1):
            for measured, bench, running in servers:
                figures = await bench.measure(running)
                measured.rounds.append(figures)
                print(
                    f"round {number}: {measured.contender.name}: {figures.cpu:.0f} µs "
                    f"({figures.server_cpu:.0f} + {figures.database_cpu:.0f}), "
                    f"{figures.load.requests / figures.load.seconds:.0f} a second"
                    + (f"; MISTAKES: {figures.load}" if figures.load.mistakes else ""),
                    file=sys.stderr,
                )
