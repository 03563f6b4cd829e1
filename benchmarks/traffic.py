"""Watch the memory of workers in an hour of traffic of 10,000 tenants: `python -m benchmarks.traffic`.

Exits 1 if it grows, or if an answer was wrong. Each tenant is a real one, with a schema. Tenants are drawn by Zipf's
law, as in `benchmarks.requests`. `--even --pause 50` finds in minutes what is kept for tenants at most.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.load.cluster import make_tenants, running_server
from benchmarks.load.contenders import THIS_PROJECT
from benchmarks.load.generator import find_wrk
from benchmarks.load.report import describe_run
from benchmarks.load.rounds import Bench, Plan
from benchmarks.load.usage import read_family, read_own_memory

_MOST_GROWTH = 0.02
"""Of the memory. So much the last quarter of the time may have more than the second one; the first one warms up."""


async def main(plan: Plan, tenants: int, minutes: float) -> int:
    """Watch; return the exit status."""
    print(f"`GET {plan.path}`, {tenants:,} tenants, {minutes:g} minutes; {describe_run(plan)}\n", flush=True)
    async with running_server() as server:
        bench = Bench(server, plan, await make_tenants(server, tenants, plan.rows), {})
        async with bench.serving(THIS_PROJECT) as running:
            mistakes = Counter({"while it was prepared": await bench.prepare(running)})
            workers = read_family(running.pid).pids[1:]
            seen: dict[int, list[float]] = {worker: [] for worker in workers}
            requests, largest = 0, 0.0
            began = time.monotonic()
            print("| minute | requests | " + " | ".join(f"worker {n}, MB" for n in range(len(workers))) + " |")
            print("| --- | --- |" + " --- |" * len(workers))
            while time.monotonic() - began < minutes * 60:
                load = await bench.load(running)
                requests += load.requests
                mistakes.update({"wrong": load.wrong, "failed": load.failed, **load.refused})
                if read_family(running.pid).pids[1:] != workers:
                    raise RuntimeError("a worker was replaced: this run says nothing")
                for worker, megabytes in seen.items():
                    megabytes.append(read_own_memory(worker))
                backends = await server.list_backends(THIS_PROJECT.name)
                largest = max([largest, *(read_own_memory(pid) for pid in backends)])
                now = " | ".join(f"{megabytes[-1]:.1f}" for megabytes in seen.values())
                print(f"| {(time.monotonic() - began) / 60:.1f} | {requests:,} | {now} |", flush=True)
    growth = [measure_growth(megabytes) for megabytes in seen.values()]
    told = ", ".join(f"{share:+.1%}" for share in growth)
    print(f"\nfrom the second quarter to the last one: {told}; at most {_MOST_GROWTH:+.0%} is flat")
    kinds = ", ".join(f"{kind} {count}" for kind, count in mistakes.items())
    print(f"largest backend: {largest:.0f} MB; answers that were not right, by status: {kinds}")
    return 1 if mistakes.total() or max(growth) > _MOST_GROWTH else 0


def measure_growth(megabytes: Sequence[float]) -> float:
    """Return by which share the median of the last quarter is more than that of the second one."""
    quarter = len(megabytes) // 4
    if not quarter:
        raise ValueError("four measurements are needed: more minutes, or fewer seconds between them")
    return statistics.median(megabytes[-quarter:]) / statistics.median(megabytes[quarter : 2 * quarter]) - 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--tenants", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20, help="between two looks at the memory, whole ones")
    parser.add_argument("--connections", type=int, default=Plan.connections)
    parser.add_argument("--workers", type=int, default=Plan.workers)
    parser.add_argument("--pause", type=int, default=0, help="milliseconds from an answer to the next question")
    parser.add_argument("--even", action="store_true", help="all tenants equally often, which soon fills what is kept")
    given = parser.parse_args()
    if find_wrk() is None:
        parser.error("there is no wrk on PATH: install it, such as with `apt-get install wrk` or `brew install wrk`")
    plan = Plan(
        rounds=1, seconds=given.seconds, connections=given.connections, workers=given.workers, pause=given.pause
    )
    if given.even:
        plan = replace(plan, exponent=0.0)
    sys.exit(asyncio.run(main(plan, given.tenants, given.minutes)))
