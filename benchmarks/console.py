"""Measure the operators' console in a large fleet: `python -m benchmarks.console`. Exits 1 for a missed target.

It makes tenants with the tables of the reference app, some minutes for 10,000, starts `quart-tenants console` on them,
and asks for its pages, one after the other, as a browser does. A figure is the median of twenty, from the request to
the last byte, on loopback.
"""

import argparse
import asyncio
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from benchmarks.fleet import Figures, name_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.tenants.provisioning import create_tenants
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from quart_tenants.testing.databases import new_database_between_loops, serve_postgres

JOBS = 4
TIMES = 20
MAX_SECONDS = 0.3
SAYS = "the console is at "


async def measure_console(url: str, count: int) -> int:
    """Measure with *count* tenants; return the exit status."""
    figures = Figures()
    await make_fleet(url, count)
    async with running_console(url) as client:
        began = time.monotonic()
        await read(client, "/")
        add(figures, "the first page after the start", time.monotonic() - began)
        began = time.monotonic()
        while "is being looked for" in await read(client, "/"):
            await asyncio.sleep(0.1)
        figures.note(f"what needs doing was known {time.monotonic() - began:.1f} s later")
        middle = name_tenant(count // 2)
        for name, path in (
            ("the first page", "/"),
            ("a page from the middle", f"/?after={middle}"),
            ("a search that finds nobody", "/?q=nobody-has-this"),
            ("those who are behind, where nobody is", "/?state=behind"),
            ("one tenant", f"/tenants/{middle}"),
            ("the trash", "/trash"),
        ):
            add(figures, name, await measure(client, path))
    return 0 if all(figure.met for figure in figures.all) else 1


async def make_fleet(url: str, count: int) -> None:
    """Make the tenants."""
    settings = Settings(migrations_dir=get_resource_path("sql/tenant"), database_url=url)
    began = time.monotonic()
    async with await Database.open(settings, max_size=JOBS, for_many_tenants=True) as database:
        await init_registry(database)
        names = {parse_slug(name_tenant(number)): f"Tenant {number}" for number in range(count)}
        await create_tenants(database, names, settings=settings, jobs=JOBS)
    print(f"        made in {time.monotonic() - began:.0f} s", flush=True)


@asynccontextmanager
async def running_console(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Start the program, and yield a client that has opened its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quart_tenants", "console"),
        env=os.environ | {"QUART_TENANTS_DATABASE_URL": url},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        address = (await process.stdout.readline()).decode().strip().removeprefix(SAYS)
        async with httpx.AsyncClient(base_url=address.partition("/?")[0], timeout=60) as client:
            (await client.get(address)).raise_for_status()
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


async def read(client: httpx.AsyncClient, path: str) -> str:
    """Return a page."""
    answer = await client.get(path)
    answer.raise_for_status()
    return answer.text


async def measure(client: httpx.AsyncClient, path: str) -> float:
    """Return the median of the seconds that a page takes."""
    taken = []
    for _ in range(TIMES):
        began = time.monotonic()
        await read(client, path)
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def add(figures: Figures, name: str, seconds: float) -> None:
    """Print and keep one figure."""
    figures.add(name, f"{seconds * 1000:.0f} ms", f"below {MAX_SECONDS * 1000:.0f} ms", seconds < MAX_SECONDS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=10_000, metavar="N", help="default: 10,000")
    tenants = parser.parse_args().tenants
    print(f"{tenants} tenants, {os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    with serve_postgres() as server, new_database_between_loops(server) as database_url:
        status = asyncio.run(measure_console(database_url, tenants))
    sys.exit(status)
