"""Measure a block's CPU against asyncpg's own pool: `python -m benchmarks.blocks`. Exits 1 for a missed target.

Both lend a connection that sees one tenant's schema, run one query and take the connection back clean. asyncpg's own:
acquire, `set_config('search_path', …)`, fetch, and the pool's reset. Counted is the CPU of this process and of the
backends; rounds of both take turns, in the same process, and each row must be its tenant's.

With `--pooled` both go through a PgBouncer of eight connections, which must be installed, and asyncpg's own way is the
one that is right there: a transaction with SET LOCAL.
"""

import argparse
import asyncio
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import asyncpg
import uvloop

from benchmarks.load.cluster import OURS, Server, make_tenants, running_server
from benchmarks.load.usage import read_family
from quart_tenants import Row
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import read_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.support.pgbouncer import SWALLOWS_PATH, empty_default_path, run_pgbouncer

_QUERY = "SELECT id, description FROM company_data WHERE id > $1 ORDER BY id LIMIT $2"
_LIST_LIVING = """
SELECT id, slug, schema_name, display_name, version, suspended, role_name, settings
FROM quart_tenants.living_tenants ORDER BY slug
"""
CASES = ((1, 0.5), (200, 0.85), (1000, 0.85))
"""How many tenants take turns, and the most that ours may cost of asyncpg's."""

Read = Callable[[Tenant], Awaitable[Sequence[Row]]]


@dataclass
class Rounds:
    """What one way came to: microseconds a block in each round, in this process and in the backends."""

    client: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)

    @property
    def sums(self) -> list[float]:
        """Both, round by round."""
        return [client + server for client, server in zip(self.client, self.server, strict=True)]


async def run_round(
    server: Server, read: Read, tenants: Sequence[Tenant], blocks: int, tasks: int
) -> tuple[float, float]:
    """Run *blocks* with *tenants* in turn; return the microseconds of each here and in the backends."""
    left = iter(range(blocks))

    async def run_the_rest() -> None:
        for number in left:
            tenant = tenants[number % len(tenants)]
            rows = await read(tenant)
            if [row["description"] for row in rows] != [f"{tenant.slug} row 1"]:
                raise RuntimeError(f"a block of {tenant.slug} read {rows}")

    backends = read_family(server.pid).cpu
    client = time.process_time()
    await asyncio.gather(*(run_the_rest() for _ in range(tasks)))
    client = time.process_time() - client
    backends = read_family(server.pid).cpu - backends
    return client / blocks * 1e6, backends / blocks * 1e6


async def measure(
    server: Server, ours: Read, drivers: Read, tenants: Sequence[Tenant], given: argparse.Namespace
) -> tuple[Rounds, Rounds]:
    """Measure both ways in turn."""
    results = Rounds(), Rounds()
    for number in range(given.rounds + 1):
        for rounds, read in zip(results, (ours, drivers), strict=True):
            client, backends = await run_round(server, read, tenants, given.blocks, given.tasks)
            # The first warms up.
            if number:
                rounds.client.append(client)
                rounds.server.append(backends)
    return results


async def main(given: argparse.Namespace) -> int:
    """Measure; return the exit status."""
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load before {os.getloadavg()[0]:.1f}, {given.rounds} rounds of {given.blocks:,} blocks in turn, "
        f"{given.tasks} at a time\n"
    )
    print("| tenants in turn | ours µs | here + backend | asyncpg's own µs | here + backend | ratio | target |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    met = True
    async with running_server() as server, AsyncExitStack() as stack:
        await make_tenants(server, max(tenants for tenants, _ in CASES), 1)
        all_tenants = [read_tenant(row) for row in await server.fetch(OURS, _LIST_LIVING)]
        random.Random(1).shuffle(all_tenants)  # noqa: S311
        url = server.url(OURS)
        if given.pooled:
            await empty_default_path(url)
            bouncer = run_pgbouncer(url, default_pool_size="8", **SWALLOWS_PATH)
            url = (await stack.enter_async_context(bouncer)).url(url)
        for count, target in CASES:
            # New ones for each case, so that none knows the tenants of another.
            async with (
                await Database.open(Settings(database_url=url)) as database,
                asyncpg.create_pool(
                    url, min_size=1, max_size=Settings().pool_max_size, statement_cache_size=0 if given.pooled else 100
                ) as pool,
            ):

                async def read_ours(tenant: Tenant, database: Database = database) -> Sequence[Row]:
                    async with database.tenant_connection(tenant, is_known=True) as connection:
                        return await connection.fetch(_QUERY, 0, 1000)

                async def read_drivers(tenant: Tenant, pool: "asyncpg.Pool[asyncpg.Record]" = pool) -> Sequence[Row]:
                    async with pool.acquire() as connection:
                        await connection.execute("SELECT set_config('search_path', $1, false)", tenant.schema.quoted)
                        return await connection.fetch(_QUERY, 0, 1000)

                async def read_pooled(tenant: Tenant, pool: "asyncpg.Pool[asyncpg.Record]" = pool) -> Sequence[Row]:
                    async with pool.acquire() as connection, connection.transaction():
                        await connection.execute(f"SET LOCAL search_path TO {tenant.schema.quoted}")
                        return await connection.fetch(_QUERY, 0, 1000)

                other = read_pooled if given.pooled else read_drivers
                ours, drivers = await measure(server, read_ours, other, all_tenants[:count], given)
            ratio = statistics.median(own / other for own, other in zip(ours.sums, drivers.sums, strict=True))
            met = met and ratio <= target
            cells = [str(count)]
            for rounds in (ours, drivers):
                cells.append(f"{statistics.median(rounds.sums):.0f}")
                cells.append(f"{statistics.median(rounds.client):.0f} + {statistics.median(rounds.server):.0f}")
            verdict = "met" if ratio <= target else "**missed**"
            print(f"| {' | '.join(cells)} | {ratio:.2f} | ≤ {target:g}: {verdict} |", flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pooled", action="store_true", help="through PgBouncer in transaction mode")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=10_000, help="in each round")
    parser.add_argument("--tasks", type=int, default=8, help="blocks at a time")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main(arguments)))
