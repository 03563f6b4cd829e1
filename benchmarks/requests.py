"""Measure requests, this project beside its peers: `python -m benchmarks.requests`. Exits 1 for any wrong answer.

Sets everything up by itself: PostgreSQL, tenants, an environment for each peer. See benchmarks/README.md.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from benchmarks.load.cluster import copy_for_peers, make_tenants, running_server
from benchmarks.load.contenders import CONTENDERS, TRACED, Contender, get_other_version
from benchmarks.load.environments import get_cache_folder
from benchmarks.load.generator import find_wrk
from benchmarks.load.growth import measure_growth
from benchmarks.load.report import describe_run, draw, write_table
from benchmarks.load.rounds import Bench, Plan, measure_all
from benchmarks.load.serving import make_environments, prepare_database


async def main(contenders: list[Contender], plan: Plan, tenants: int, folder: Path, chart: Path | None) -> int:
    """Measure; return the exit status."""
    description = (
        f"`GET {plan.path}`, {tenants:,} tenants of {plan.rows:,} row{'s' * (plan.rows > 1)}; {describe_run(plan)}"
    )
    programs = make_environments(contenders, folder)
    async with running_server() as server:
        slugs = await make_tenants(server, tenants, plan.rows)
        peers = [contender for contender in contenders if not contender.is_ours]
        if peers:
            await copy_for_peers(server, slugs)
        for peer in peers:
            await prepare_database(peer, server, programs[peer.name])
        bench = Bench(server, plan, slugs, programs)
        results = await measure_all([(bench, contender) for contender in contenders], plan.rounds, plan.starts)
        for measured in results:
            measured.round_trips = await bench.count_round_trips(measured.contender)
    print(f"{description}.\n\n{write_table(results, plan.starts)}")
    if chart is not None:
        draw(results, description, chart, folder)
        print(f"\nchart: {chart}", file=sys.stderr)
    mistakes = {measured.contender.name: measured.mistakes for measured in results if measured.mistakes}
    requests = sum(figures.load.requests for measured in results for figures in measured.rounds)
    print(f"\n{requests:,} answers checked; wrong, refused or failed: {mistakes or 0}")
    return 1 if mistakes else 0


def read_arguments() -> argparse.Namespace:
    """Return what the command line says."""
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of {','.join(names)}")
    parser.add_argument(
        "--starts", type=int, default=Plan.starts, help="of each server, to see differences under 10 %%"
    )
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of each round, whole ones")
    parser.add_argument("--connections", type=int, default=Plan.connections)
    parser.add_argument("--workers", type=int, default=Plan.workers)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=Plan.rows, help="of each tenant")
    parser.add_argument("--path", default=Plan.path, help="such as /data/export")
    parser.add_argument("--growth", action="store_true", help="this project with more and more of everything, instead")
    parser.add_argument("--other", type=Path, metavar="PROGRAM", help="another version's quart-tenants, measured, too")
    parser.add_argument("--traced", action="store_true", help="this project with OpenTelemetry's spans, measured, too")
    parser.add_argument("--folder", type=Path, default=get_cache_folder(), help="where environments are kept")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="a PNG to draw")
    given = parser.parse_args()
    chosen = given.only.split(",") if given.only else names
    for name in chosen:
        if name not in names:
            parser.error(f"there is no {name!r}: choose from {', '.join(names)}")
    given.contenders = [contender for contender in CONTENDERS if contender.name in chosen]
    if given.other is not None:
        given.contenders.append(get_other_version(given.other.absolute()))
    if given.traced:
        given.contenders.append(TRACED)
    if find_wrk() is None:
        parser.error("there is no wrk on PATH: install it, such as with `apt-get install wrk` or `brew install wrk`")
    return given


if __name__ == "__main__":
    given = read_arguments()
    plan = Plan(
        starts=given.starts,
        rounds=given.rounds,
        seconds=given.seconds,
        connections=given.connections,
        workers=given.workers,
        rows=given.rows,
        path=given.path,
    )
    if given.growth:
        sys.exit(asyncio.run(measure_growth(plan, given.folder)))
    sys.exit(asyncio.run(main(given.contenders, plan, given.tenants, given.folder, given.chart)))
