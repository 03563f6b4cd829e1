"""Run 750,000 blocks of 1,000 tenants, disturbed in every way that is known: `python -m benchmarks.soak`.

Prints what was found and exits 1 for any finding. `--naive` runs a usual way to lend connections, which is caught.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from benchmarks.folders import temporary_folder
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import RoleName, SchemaName, Tenant, parse_slug
from tests.isolation.lenders import (
    Lender,
    Pool,
    open_naive_pool,
    remember_path,
    reset_like_the_driver,
    set_path_and_forget,
)
from tests.isolation.soak import Findings, Mix, Soak, count_misplaced_stamps, make_stamps
from tests.support.web_lender import WebLender

POOL_SIZE = 6  # connections of each process
CONCURRENCY = 16  # blocks at a time in each process
MINUTES = 10
# How the data is kept is not what is tried.
OPTIONS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "100"}

NAIVE: dict[str, Callable[[Pool], Lender]] = {
    "session-set": set_path_and_forget,
    "remembered-path": remember_path,
    "driver-reset": reset_like_the_driver,
}


def make_tenants(count: int, roles: bool) -> list[Tenant]:
    """Return the tenants."""
    slugs = [parse_slug(f"soak-{number:04}") for number in range(1, count + 1)]
    return [
        Tenant(number, slug, SchemaName(slug), slug, role=RoleName(f"role of {slug}") if roles else None)
        for number, slug in enumerate(slugs, start=1)
    ]


@asynccontextmanager
async def lending(url: str, naive: str | None, roles: bool, pooled: bool, plain: bool) -> AsyncIterator[Lender]:
    """Yield how connections are lent: as we do it, or naively."""
    if naive is None:
        settings = Settings(
            migrations_dir=get_resource_path("sql/tenant"),
            database_url=url,
            pool_max_size=POOL_SIZE,
            acquire_timeout=0.1,
            tenant_pool_queue=4,
            role_per_tenant=roles,
            driver_mode="plain" if plain else "auto",
        )
        async with AsyncExitStack() as stack:
            if pooled:
                settings = replace(settings, database_url=await stack.enter_async_context(pgbouncer(url)))
            yield (await stack.enter_async_context(await WebLender.open(settings))).tenant_connection
        return
    pool = await open_naive_pool(url, POOL_SIZE, reset=naive == "driver-reset")
    try:
        yield NAIVE[naive](pool)
    finally:
        pool.terminate()


@asynccontextmanager
async def pgbouncer(url: str) -> AsyncIterator[str]:
    """Run PgBouncer in transaction mode in front of *url*; yield its URL."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        sys.exit("--pooled needs PgBouncer: install the package pgbouncer")
    server = urlsplit(url)
    host = server.hostname or parse_qs(server.query)["host"][0]
    with tempfile.TemporaryDirectory(prefix="quart-tenants-pgbouncer-") as folder:
        # By a socket in a folder of its own: two processes that look for a free port at once may find the same.
        Path(folder).chmod(0o777)
        configuration = Path(folder) / "pgbouncer.ini"
        user = server.username or "postgres"
        configuration.write_text(
            f"[databases]\n* = host={host} port={server.port or 5432} user={user}\n"
            f"[pgbouncer]\nunix_socket_dir = {folder}\nlisten_port = 6432\nauth_type = any\npool_mode = transaction\n"
            f"default_pool_size = {POOL_SIZE}\nignore_startup_parameters = search_path\n"
        )
        as_nobody = ["--user", "nobody"] if os.geteuid() == 0 else []
        process = await asyncio.create_subprocess_exec(program, "-q", *as_nobody, str(configuration))
        pooled = f"postgresql://{user}@{server.path}?host={folder}&port=6432"
        try:
            while True:
                try:
                    await (await asyncpg.connect(pooled, statement_cache_size=0)).close()
                    break
                except OSError:
                    await asyncio.sleep(0.05)
            yield pooled
        finally:
            if process.returncode is not None:
                sys.exit(f"PgBouncer has ended by itself, with status {process.returncode}: this run says nothing")
            process.terminate()
            await process.wait()


async def work(
    url: str, tenants: Sequence[Tenant], blocks: int, seed: int, naive: str | None, pooled: bool, plain: bool
) -> Findings:
    """Run one process's part."""
    async with lending(url, naive, tenants[0].role is not None, pooled, plain) as lend:
        # Without careless handlers: what this one does to rows is what it is known for.
        mix = Mix(probe=0, careless=0) if naive == "remembered-path" else Mix()
        soak = Soak(lend, tenants, url=url, size=POOL_SIZE, seed=seed, mix=mix, naive=naive is not None)
        return await soak.run(blocks, concurrency=CONCURRENCY)


async def main(
    tenant_count: int, blocks: int, processes: int, naive: str | None, roles: bool, pooled: bool, plain: bool
) -> int:
    """Start a database and the processes; print the sum of what they saw; return the exit status."""
    print(
        f"{blocks} blocks, {tenant_count} tenants, {processes} processes, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}",
        flush=True,
    )
    tenants = make_tenants(tenant_count, roles)
    with temporary_folder() as folder:
        server = EmbeddedPostgres(folder / "postgres", options=OPTIONS)
        await server.start()
        try:
            async with await Database.open(Settings(database_url=server.url), max_size=1) as database:
                await init_registry(database)
            await make_stamps(server.url, tenants)
            began = time.monotonic()
            command = [sys.executable, "-m", "benchmarks.soak", "--worker", server.url, "--tenants", str(tenant_count)]
            command += ["--blocks", str(blocks // processes)] + (["--naive", naive] if naive else [])
            command += (
                (["--roles"] if roles else []) + (["--pooled"] if pooled else []) + (["--plain"] if plain else [])
            )
            workers = [
                await asyncio.create_subprocess_exec(*command, "--seed", str(seed), stdout=subprocess.PIPE)
                for seed in range(1, processes + 1)
            ]
            outputs = await asyncio.gather(*(worker.communicate() for worker in workers))
            seconds = time.monotonic() - began
            misplaced = await count_misplaced_stamps(server.url, tenants)
        finally:
            await server.stop()
    reports = [json.loads(output) for output, _ in outputs]
    return show(reports, seconds, misplaced)


def show(reports: Sequence[dict[str, Any]], seconds: float, misplaced: int) -> int:
    """Print the figures; return the exit status."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update({name: value for name, value in report.items() if isinstance(value, int)})
        for name in ("traces", "errors"):
            total.update({f"{name}: {what}": times for what, times in report[name].items()})
    for name, value in total.items():
        print(f"{name:14} {value:9,}")
    print(f"{'misplaced rows':14} {misplaced:9,}")
    # Of the processes, the server and its backends, all of which have ended.
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = spent.ru_utime + spent.ru_stime
    rate = total["blocks"] / seconds
    print(f"{seconds:.0f} s; {rate:,.0f} blocks a second; {cpu:.0f} s of CPU, {cpu / 2:.0f} on each of two cores")
    caught = [report["first"] for report in reports if report["first"]]
    for what, after in caught:
        print(f"CAUGHT after {after:.1f} s: {what}")
    if misplaced:
        print("CAUGHT in the end: rows in another tenant's table")
    if seconds > MINUTES * 60:
        print(f"MISSED: it took longer than {MINUTES} minutes")
    if caught or misplaced:
        return 1
    print("clean: 0 foreign rows, 0 dirty connections, 0 lost connections")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=750_000)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--naive", choices=sorted(NAIVE))
    parser.add_argument("--roles", action="store_true", help="each tenant with a role of its own")
    parser.add_argument(
        "--pooled", action="store_true", help="through a pooler that shares one connection, and resets nothing"
    )
    parser.add_argument("--plain", action="store_true", help="with nothing of asyncpg's inside")
    parser.add_argument("--worker", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        findings = asyncio.run(
            work(
                given.worker,
                make_tenants(given.tenants, given.roles),
                given.blocks,
                given.seed,
                given.naive,
                given.pooled,
                given.plain,
            )
        )
        print(json.dumps(findings.report()))
    else:
        sys.exit(
            asyncio.run(
                main(given.tenants, given.blocks, given.processes, given.naive, given.roles, given.pooled, given.plain)
            )
        )
