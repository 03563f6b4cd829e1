"""Measure what a fleet beyond one machine meets first: `python -m benchmarks.scale`.

The registry of many tenants in the memory of a worker, and what tenants whose tables are locked do to the others.
Exits 1 for a missed target.
"""

import argparse
import asyncio
import contextlib
import platform
import resource
import sys
import time
from dataclasses import replace

import asyncpg

from benchmarks.fleet_parts import Cluster, running_cluster
from quart_tenants.errors import TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.registry.registry_tables import announce_changes, init_registry
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant, parse_slug

LOCKED = ("locked-a", "locked-b")
OTHER = "other"
KEPT = 0.8  # of their rate
SECONDS = 5.0
# Rows of the registry, with one migration for each tenant and no schema: only the registry is read.
ADD_TENANTS = """
WITH added AS (
    INSERT INTO quart_tenants.tenants (slug, schema_name, display_name)
    SELECT 'tenant-' || n, 'tenant-' || n, 'Tenant ' || n FROM generate_series(1, $1::bigint) AS n RETURNING schema_name
)
INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256)
SELECT schema_name, 1, '0001_users_and_data.sql', 'digest' FROM added
"""
SIZE = """
SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
WHERE relnamespace = 'quart_tenants'::regnamespace AND relkind = 'r'
"""
READ = "SELECT count(*), pg_catalog.pg_sleep(0.02) FROM company_data"


def get_megabytes() -> float:
    """Return the resident memory of this process at its highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def measure_registry(url: str, settings: Settings, tenants: int) -> None:
    """Print what a registry of so many tenants costs a worker."""
    connection = await asyncpg.connect(url)
    await connection.execute(ADD_TENANTS.replace("$1::bigint", str(tenants)))
    await connection.execute("VACUUM ANALYZE")
    size = await connection.fetchval(SIZE)
    async with await Database.open(settings, max_size=1) as database:
        registry = Registry(database, settings)
        before, cpu, began = get_megabytes(), time.process_time(), time.perf_counter()
        await registry.load()
        loaded, cpu = time.perf_counter() - began, time.process_time() - cpu
        grown = get_megabytes() - before
        began = time.perf_counter()
        for _ in range(20):
            async with database.connection() as block:
                await announce_changes(block, 7)
            await registry.refresh()
        refreshed = (time.perf_counter() - began) / 20
    print(
        f"{tenants:,} tenants: registry of {size / 2**20:.0f} MB; a worker reads it in {loaded:.2f} s ({cpu:.2f} s of "
        f"its CPU), keeps {grown:.0f} MB, and one change with its read of the feed takes {refreshed * 1000:.1f} ms"
    )
    await connection.close()


async def _visit(database: Database, tenant: Tenant, answers: list[str], errors: list[str]) -> None:
    while True:
        try:
            async with database.tenant_connection(tenant, is_known=True) as connection:
                await connection.fetchrow(READ)
        except TenantError as error:
            errors.append(error.code)
            await asyncio.sleep(0.05)
        else:
            answers.append(tenant.slug)


async def _rate(database: Database, tenants: list[Tenant], other: Tenant, seconds: float) -> tuple[float, int]:
    answers: list[str] = []
    errors: list[str] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for tenant in tenants:
                for _ in range(20):
                    group.create_task(_visit(database, tenant, [], []))
            for _ in range(10):
                group.create_task(_visit(database, other, answers, errors))
    return len(answers) / seconds, len(errors)


async def measure_stuck(url: str, settings: Settings) -> bool:
    """Print what two tenants whose tables are locked leave to another one, and return whether it is enough."""
    async with await Database.open(settings, max_size=1) as database:
        for slug in (*LOCKED, OTHER):
            await create_tenant(database, parse_slug(slug), slug, settings=settings)
    tenants = {}
    async with await Database.open(settings, max_size=1) as database:
        registry = Registry(database, settings)
        await registry.load()
        tenants = {slug: registry.get_tenant(parse_slug(slug)) for slug in (*LOCKED, OTHER)}
    connection = await asyncpg.connect(url)
    names = ", ".join(f'"{slug}".company_data' for slug in LOCKED)
    kept = 0.0
    for stuck_after in (0, settings.stuck_after):
        own = replace(settings, command_timeout=2.0, stuck_after=stuck_after)
        async with await Database.open(own) as database:
            locked = [tenants[slug] for slug in LOCKED]
            alone, _ = await _rate(database, [], tenants[OTHER], SECONDS)
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {names}")
                await _rate(database, locked, tenants[OTHER], 3 * own.command_timeout)
                beside, errors = await _rate(database, locked, tenants[OTHER], SECONDS)
        kept = beside / alone
        print(
            f"two locked tenants, TENANTS_STUCK_AFTER={stuck_after}: another tenant is answered {beside:.0f} times a "
            f"second, alone {alone:.0f}; that is {kept:.2f}, and it saw {errors} errors"
        )
    await connection.close()
    return kept >= KEPT


async def run(sizes: list[int]) -> bool:
    """Measure everything; return whether the targets are met."""
    async with running_cluster() as cluster:
        for tenants in sizes:
            await measure_registry(*await _prepare(cluster, f"registry_{tenants}"), tenants)
        return await measure_stuck(*await _prepare(cluster, "stuck"))


async def _prepare(cluster: Cluster, name: str) -> tuple[str, Settings]:
    """Make a database with a registry; return its URL and settings for it."""
    connection = await asyncpg.connect(cluster.server.url)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    url = cluster.url(name)
    settings = Settings(migrations_dir=get_resource_path("sql/tenant"), database_url=url, command_timeout=600.0)
    async with await Database.open(settings, max_size=1) as database:
        await init_registry(database)
    return url, settings


def main() -> None:
    """Read the arguments, measure, and exit 1 for a missed target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, nargs="*", default=[10_000, 100_000])
    arguments = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.system()}")
    if not asyncio.run(run(arguments.tenants)):
        print(f"MISSED: the others keep {KEPT:.0%} of their rate")
        sys.exit(1)


if __name__ == "__main__":
    main()
