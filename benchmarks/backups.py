"""Measure `backup --all` against pg_dump by hand: `python -m benchmarks.backups`, some minutes with 1,000 tenants.

Then kill a run in the middle, and let the next one take up the rest.

By hand means two loops that start pg_dump for one tenant after the other, with the same options and nothing else: no
lock, no snapshot that fits the registry, no digest. They run before and after ours, over a sample of the tenants.
"""

import argparse
import asyncio
import csv
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from benchmarks.fleet import FIRST_TABLES, Figures, add_migration, expect_success, name_tenant
from benchmarks.fleet_parts import Cluster, running_cluster
from quart_tenants.postgres.embedded.embedded_server import find_postgres

DATABASE = "postgres"
JOBS = 2


async def main(count: int, sample: int, rows: int, *, dumped: bool) -> int:
    """Run everything with *count* tenants of *rows* rows each; return the exit status."""
    figures = Figures()
    print(f"{count} tenants, {os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    async with running_cluster() as cluster:
        add_migration(cluster, "0001_users_and_data.sql", FIRST_TABLES.read_text())
        await expect_success(cluster, DATABASE, "init")
        await fill(cluster, count, rows, 'CREATE TABLE "{}".made_by_hand (n integer);' if dumped else "")
        chosen = [name_tenant(number) for number in range(0, count, max(count // sample, 1))]
        before = await dump_by_hand(cluster, chosen)
        folder = cluster.folder / "backups"
        ours = await cluster.run(DATABASE, "backup", "--all", "-o", str(folder), "--jobs", str(JOBS), "--json")
        if ours.status != 0:
            raise RuntimeError(f"backup ended with {ours.status}: {ours.stderr}")
        after = await dump_by_hand(cluster, chosen)
        made = json.loads(ours.stdout)["made"]
        nothing_left = len(made) == count
        figures.add("files", f"{len(made)}", f"{count}", nothing_left)
        rate, by_hand = count / ours.seconds, 2 * len(chosen) / (before + after)
        figures.note(f"by hand: {len(chosen) / before:.2f} a second before, {len(chosen) / after:.2f} after")
        figures.add("backup --all", f"{rate:.2f} tenants a second", "", True)
        figures.add("backup --all / pg_dump by hand", f"{rate / by_hand:.2f}", "at least 0.8", rate / by_hand >= 0.8)
        figures.add("memory of the command", f"{ours.megabytes:.0f} MB", "under 200 MB", ours.megabytes < 200)
        resumed, missing = await kill_and_run_again(cluster, count)
        figures.add("killed in the middle and run again: tenants without a file", f"{missing}", "0", missing == 0)
        figures.note(f"of these the first run had written {resumed}")
    missed = [figure for figure in figures.all if not figure.met]
    print(f"{len(figures.all) - len(missed)} of {len(figures.all)} targets met")
    return 1 if missed else 0


async def kill_and_run_again(cluster: Cluster, count: int) -> tuple[int, int]:
    """Kill a run when half of its files are there; return how many the next one takes over, and how many it misses."""
    folder = cluster.folder / "killed"
    command = ("backup", "--all", "-o", str(folder), "--jobs", str(JOBS), "--json")
    running = await cluster.start(DATABASE, *command)
    while not folder.is_dir() or len(list(folder.glob("[0-9]*.tar"))) < count // 2:
        if running.returncode is not None:
            raise RuntimeError(f"backup ended with {running.returncode} before it was killed")
        await asyncio.sleep(0.01)
    running.kill()
    await running.communicate()
    again = await cluster.run(DATABASE, *command)
    if again.status != 0:
        raise RuntimeError(f"backup ended with {again.status}: {again.stderr}")
    tenants = {file.name.partition("_")[0] for file in folder.glob("[0-9]*.tar")}
    return json.loads(again.stdout)["done_before"], count - len(tenants)


async def fill(cluster: Cluster, count: int, rows: int, more: str) -> None:
    """Make the tenants, each with rows of its own, and *more* in it."""
    path = cluster.folder / "tenants.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slug", "name"])
        writer.writerows([name_tenant(number), f"Tenant {number}"] for number in range(count))
    await expect_success(cluster, DATABASE, "create-many", str(path), "--jobs", "4")
    await cluster.psql(
        DATABASE,
        [
            "".join(
                f'INSERT INTO "{name_tenant(number)}".company_data (description)'
                f" SELECT md5(n::text) FROM generate_series(1, {rows}) AS n;\n{more.format(name_tenant(number))}\n"
                for number in range(count)
            )
        ],
    )


async def dump_by_hand(cluster: Cluster, slugs: Sequence[str]) -> float:
    """Run pg_dump for each of *slugs*, two at a time; return how many seconds that took."""
    parts = urlsplit(cluster.server.url)
    pg_dump = find_postgres().with_name("pg_dump")
    place = ("-h", parse_qs(parts.query)["host"][0], "-p", parse_qs(parts.query)["port"][0], "-U", parts.username or "")
    folder = cluster.folder / "by_hand"
    folder.mkdir(exist_ok=True)
    queue = list(slugs)

    async def work() -> None:
        while queue:
            slug = queue.pop()
            process = await asyncio.create_subprocess_exec(
                *(pg_dump, *place, "-d", DATABASE, "--format=custom", "--encoding=UTF8", f'--schema="{slug}"'),
                *("-f", Path(folder) / f"{slug}.dump"),
            )
            if await process.wait() != 0:
                raise RuntimeError(f"pg_dump ended with {process.returncode}")

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(JOBS)))
    return time.monotonic() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--sample", type=int, default=100, help="how many are dumped by hand, before and after")
    parser.add_argument("--rows", type=int, default=100, help="rows of each tenant")
    parser.add_argument(
        "--dumped", action="store_true", help="with a table that no migration makes, so that ours needs pg_dump, too"
    )
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.tenants, arguments.sample, arguments.rows, dumped=arguments.dumped)))
