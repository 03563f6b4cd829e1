"""Measure a fleet of tenants: `python -m benchmarks.fleet`, some six minutes with 10,000 of them.

With `--schema erp` each tenant has 43 tables instead of two: see benchmarks/fleet_erp.py.

Everything runs on a private PostgreSQL with its default settings. Rates of psql are those of the same
statements in the same run, fed to four psql processes: what is left over is what this project costs.
"""

import argparse
import asyncio
import contextlib
import csv
import os
import platform
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from benchmarks.fleet_erp import measure_erps
from benchmarks.fleet_parts import Answers, Client, Cluster, Finished, running_cluster
from quart_tenants.resources import get_resource_path

OURS, PSQL = "ours", "psql"
JOBS = 4
ASKED_TENANTS = 40
ASKED_A_SECOND = 40.0

FIRST_TABLES = get_resource_path("sql/tenant/0001_users_and_data.sql")
# The password is foo; one round, for the logins are not what is measured.
ROWS = """
INSERT INTO "{0}".app_user (username, password) VALUES ('user', '{1}');
INSERT INTO "{0}".company_data (description) VALUES ('{0}');
"""


@dataclass(frozen=True)
class Figure:
    """One measured figure, with what it should be."""

    name: str
    value: str
    target: str
    met: bool

    def __str__(self) -> str:
        return f"{'met   ' if self.met else 'MISSED'}  {self.name}: {self.value}  (target: {self.target})"


class Figures:
    """The figures of a run, each printed as soon as it is there."""

    def __init__(self) -> None:
        self.all: list[Figure] = []

    def add(self, name: str, value: str, target: str, met: bool) -> None:
        """Print and keep one."""
        self.all.append(Figure(name, value, target, met))
        print(self.all[-1], flush=True)

    def note(self, text: str) -> None:
        """Print what is no figure with a target."""
        print(f"        {text}", flush=True)


def name_tenant(number: int) -> str:
    """Return the slug of a tenant."""
    return f"tenant{number:05}"


async def main(count: int, purged: int) -> int:
    """Run everything with *count* tenants; return the exit status."""
    figures = Figures()
    print(f"{count} tenants, {os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    async with running_cluster() as cluster:
        for database in (OURS, PSQL):
            connection = await asyncpg.connect(cluster.server.url)
            await connection.execute(f"CREATE DATABASE {database}")
            await connection.close()
        add_migration(cluster, "0001_users_and_data.sql", FIRST_TABLES.read_text())
        for database in (OURS, PSQL):
            await expect_success(cluster, database, "init")
        await create(cluster, figures, count)
        await do_nothing(cluster, figures)
        await add_column(cluster, figures, count)
        await find_drift(cluster, figures, count)
        await kill_in_the_middle(cluster, figures, count)
        await restart_in_the_middle(cluster, figures, count)
        await prepare_requests(cluster)
        await migrate_under_load(cluster, figures, count)
        await hold_a_lock(cluster, figures, count)
        await drop_and_purge(cluster, figures, purged)
    missed = [figure for figure in figures.all if not figure.met]
    print(f"{len(figures.all) - len(missed)} of {len(figures.all)} targets met")
    return 1 if missed else 0


async def create(cluster: Cluster, figures: Figures, count: int) -> None:
    """Create all tenants, by our program and by psql."""
    path = cluster.folder / "tenants.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slug", "name"])
        writer.writerows([name_tenant(number), f"Tenant {number}"] for number in range(count))
    ours = await expect_success(cluster, OURS, "create-many", str(path), "--jobs", str(JOBS))
    tables = FIRST_TABLES.read_text()
    scripts = ["SET search_path TO '';\n" for _ in range(JOBS)]
    for number in range(count):
        slug = name_tenant(number)
        scripts[number % JOBS] += f"""BEGIN;
INSERT INTO quart_tenants.tenants (slug, schema_name, display_name) VALUES ('{slug}', '{slug}', 'Tenant {number}')
ON CONFLICT DO NOTHING RETURNING id;
CREATE SCHEMA "{slug}";
SET LOCAL search_path TO "{slug}";
{tables}
INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256)
VALUES ('{slug}', 1, '0001_users_and_data.sql', '{number}');
INSERT INTO quart_tenants.changes (tenant_id) SELECT id FROM quart_tenants.tenants WHERE slug = '{slug}';
COMMIT;
"""
    theirs = await cluster.psql(PSQL, scripts)
    rate, ratio = count / ours.seconds, theirs / ours.seconds
    figures.add("create-many", f"{rate:.0f} tenants a second", "at least 150", rate >= 150)
    figures.add("create-many / psql", f"{ratio:.2f} ({count / theirs:.0f} a second)", "at least 0.6", ratio >= 0.6)
    figures.note(f"memory of the command: {ours.megabytes:.0f} MB")


async def do_nothing(cluster: Cluster, figures: Figures) -> None:
    """Migrate where there is nothing to do."""
    start_up = min([(await expect_success(cluster, OURS, "migrate", "--help")).seconds for _ in range(3)])
    runs = [await expect_success(cluster, OURS, "migrate") for _ in range(3)]
    seconds = min(run.seconds for run in runs) - start_up
    figures.add("migrate, nothing to do", f"{seconds:.2f} s after start-up", "under 1 s", seconds < 1)
    figures.note(f"start-up (migrate --help): {start_up:.2f} s; it said: {runs[0].stdout.strip()}")


async def add_column(cluster: Cluster, figures: Figures, count: int) -> None:
    """Add two columns for all tenants, one after the other, by our program and by psql.

    In turns, ours first and then psql first: the server vacuums behind both for a while.
    """
    ours, theirs = [], []
    for version, column, psql_first in ((2, "nickname", False), (3, "motto", True)):
        statement = f"ALTER TABLE app_user ADD COLUMN {column} text"
        add_migration(cluster, f"{version:04}_{column}.sql", f"{statement};\n")
        if psql_first:
            theirs.append(await add_column_by_psql(cluster, count, version, statement))
        ours.append(await expect_success(cluster, OURS, "migrate", "--jobs", str(JOBS)))
        if not psql_first:
            theirs.append(await add_column_by_psql(cluster, count, version, statement))
        figures.note(f"{ours[-1].stdout.strip()}; psql: {count / theirs[-1]:.0f} a second")
    seconds = sum(run.seconds for run in ours)
    rate, ratio = 2 * count / seconds, sum(theirs) / seconds
    figures.add("migrate, ADD COLUMN", f"{rate:.0f} tenants a second", "at least 250", rate >= 250)
    figures.add("migrate / psql", f"{ratio:.2f} ({2 * count / sum(theirs):.0f} a second)", "at least 0.6", ratio >= 0.6)
    megabytes = max(run.megabytes for run in ours)
    figures.add("memory of migrate", f"{megabytes:.0f} MB", "under 150 MB", megabytes < 150)


async def add_column_by_psql(cluster: Cluster, count: int, version: int, statement: str) -> float:
    """Do the same by psql, the version's row and the feed's included; return how many seconds it took."""
    scripts = ["SET search_path TO '';\n" for _ in range(JOBS)]
    for number in range(count):
        slug = name_tenant(number)
        scripts[number % JOBS] += f"""BEGIN;
SET LOCAL search_path TO "{slug}";
{statement};
INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256)
VALUES ('{slug}', {version}, '{version:04}.sql', '{number}');
INSERT INTO quart_tenants.changes (tenant_id) SELECT id FROM quart_tenants.tenants WHERE slug = '{slug}';
COMMIT;
"""
    return await cluster.psql(PSQL, scripts)


async def find_drift(cluster: Cluster, figures: Figures, count: int) -> None:
    """Ask for the status, where one tenant differs."""
    odd = name_tenant(count // 2)
    await cluster.fetch(OURS, f'ALTER TABLE "{odd}".app_user DROP COLUMN nickname')
    status = await expect_success(cluster, OURS, "status", "--json")
    found = odd in status.stdout and "nickname" in status.stdout
    figures.add("status with drift", f"{status.seconds:.2f} s, start-up included", "under 5 s", status.seconds < 5)
    figures.add("drift named", f"{odd}: {found}", "the one tenant and its column", found)
    await cluster.fetch(OURS, f'ALTER TABLE "{odd}".app_user ADD COLUMN nickname text')


async def kill_in_the_middle(cluster: Cluster, figures: Figures, count: int) -> None:
    """Kill the command, and run it again."""
    add_migration(cluster, "0004_colour.sql", "ALTER TABLE company_data ADD COLUMN colour text;\n")
    process = await cluster.start(OURS, "migrate", "--jobs", str(JOBS))
    killed_at = await wait_for_progress(cluster, 4, count // 3)
    process.kill()
    await process.communicate()
    # What was in flight is rolled back by the server in its own time.
    again = await expect_success(cluster, OURS, "migrate", "--jobs", str(JOBS))
    done, columns, half = await count_done(cluster, 4, "company_data", "colour")
    met = done == columns == count and half == 0
    figures.add(
        "kill -9 and again", f"killed at {killed_at}; {done} recorded, {columns} columns, {half} half", "all once", met
    )
    figures.note(f"the second run said: {again.stdout.strip()}")


async def restart_in_the_middle(cluster: Cluster, figures: Figures, count: int) -> None:
    """Restart the database under the command."""
    add_migration(cluster, "0005_shape.sql", "ALTER TABLE company_data ADD COLUMN shape text;\n")
    process = await cluster.start(OURS, "migrate", "--jobs", str(JOBS))
    stopped_at = await wait_for_progress(cluster, 5, count // 3)
    await cluster.server.stop()
    await asyncio.sleep(1)
    await cluster.server.start()
    stdout, stderr = await process.communicate()
    figures.note(f"the run that lost its database ended with {process.returncode}: {stdout.decode().strip()}")
    if process.returncode:
        figures.note(f"... and said {stderr.decode().strip()[-300:]}")
    await expect_success(cluster, OURS, "migrate", "--jobs", str(JOBS))
    done, columns, half = await count_done(cluster, 5, "company_data", "shape")
    met = done == columns == count and half == 0
    figures.add(
        "database restarted", f"at {stopped_at}; {done} recorded, {columns} columns, {half} half", "all once", met
    )


async def prepare_requests(cluster: Cluster) -> None:
    """Give the tenants that are asked a user and a row."""
    from passlib.hash import pbkdf2_sha256

    password = pbkdf2_sha256.using(rounds=1).hash("foo")
    connection = await asyncpg.connect(cluster.url(OURS))
    for number in range(ASKED_TENANTS):
        await connection.execute(ROWS.format(name_tenant(number), password))
    await connection.close()


async def migrate_under_load(cluster: Cluster, figures: Figures, count: int) -> None:
    """Migrate while an old and a new version of the app serve."""
    async with serving(cluster, TENANTS_MINIMUM_VERSION="5") as old_port:
        old = Client(old_port, ASKED_A_SECOND)
        await old.log_in([name_tenant(number) for number in range(ASKED_TENANTS)])
        idle = await ask_for(old, 10)
        add_migration(cluster, "0006_size.sql", "ALTER TABLE company_data ADD COLUMN size text;\n")
        async with serving(cluster, TENANTS_MINIMUM_VERSION="6") as new_port:
            new = old.at(new_port)
            done = asyncio.Event()
            asked = [asyncio.create_task(client.ask_until(done)) for client in (old, new)]
            # The new code is there before, during and after the migration.
            await asyncio.sleep(3)
            behind = await expect_success(cluster, OURS, "migrate", "--jobs", str(JOBS))
            await asyncio.sleep(3)
            done.set()
            by_old, by_new = [await task for task in asked]
    figures.note(f"under load: {behind.stdout.strip()}")
    figures.add(
        "5xx of the old version",
        f"{by_old.server_errors} of {len(by_old.milliseconds)} answers; {by_old.wrong} with wrong rows",
        "0 and 0",
        by_old.server_errors == by_old.wrong == 0 and by_old.statuses[200] > 0,
    )
    others = {code: number for code, number in by_new.codes.items() if code != "schema_behind"}
    figures.add(
        "the new version",
        f"{by_new.statuses.get(200, 0)} answers, {by_new.codes.get('schema_behind', 0)} times 503 schema_behind, "
        f"other errors {others}; {by_new.wrong} with wrong rows",
        "no other errors, and 0",
        not others and by_new.wrong == 0 and by_new.statuses.get(200, 0) > 0,
    )
    figures.note(f"p99 of the old version: {idle.p99():.0f} ms idle, {by_old.p99():.0f} ms during all of it")


async def hold_a_lock(cluster: Cluster, figures: Figures, count: int) -> None:
    """Migrate while somebody holds a lock on one tenant's table, and once more while nobody does, to compare."""
    # Nobody asks for this one: its own requests do queue behind the migration.
    locked = name_tenant(count - 1)
    async with serving(cluster, TENANTS_MINIMUM_VERSION="5") as port:
        client = Client(port, ASKED_A_SECOND)
        await client.log_in([name_tenant(number) for number in range(ASKED_TENANTS)])
        idle = await ask_for(client, 10)
        add_migration(cluster, "0007_weight.sql", "ALTER TABLE company_data ADD COLUMN weight text;\n")
        free, _, _ = await migrate_while_asking(cluster, client, version=7, but=0)
        add_migration(cluster, "0008_length.sql", "ALTER TABLE company_data ADD COLUMN length text;\n")
        holder = await asyncpg.connect(cluster.url(OURS))
        try:
            await holder.execute(f'BEGIN; LOCK TABLE "{locked}".company_data IN ACCESS SHARE MODE')
            held, others_done, migration = await migrate_while_asking(cluster, client, version=8, but=1)
        finally:
            await holder.close()
    rows = await cluster.fetch(OURS, "SELECT slug FROM quart_tenants.living_tenants WHERE version < 8")
    stayed = [row["slug"] for row in rows]
    named = locked in migration.stderr
    figures.add(
        "a lock on one table",
        f"exit status {migration.status}; {', '.join(stayed)} stayed behind, named: {named}",
        f"only {locked}, named, status 1",
        stayed == [locked] and named and migration.status == 1,
    )
    figures.note(f"it said: {migration.stderr.strip()[-400:]}")
    ratio = held.p99(until=others_done) / free.p99()
    figures.add(
        "p99 of the others, while they are migrated",
        f"{held.p99(until=others_done):.0f} ms; {free.p99():.0f} ms without the lock, {ratio:.2f} times",
        "at most 1.5 times",
        ratio <= 1.5,
    )
    ratio = held.p99(since=others_done) / idle.p99()
    figures.add(
        "p99 of the others, while the lock is waited for",
        f"{held.p99(since=others_done):.0f} ms; {idle.p99():.0f} ms idle, {ratio:.2f} times",
        "at most 1.5 times",
        ratio <= 1.5,
    )
    figures.add("5xx of the others", f"{held.server_errors}", "0", held.server_errors == 0)
    await expect_success(cluster, OURS, "migrate", "--jobs", str(JOBS))


async def drop_and_purge(cluster: Cluster, figures: Figures, purged: int) -> None:
    """Drop tenants into the trash and delete them for good."""
    (limit,) = await cluster.fetch(OURS, "SHOW max_locks_per_transaction")
    slugs = [name_tenant(number) for number in range(ASKED_TENANTS, ASKED_TENANTS + purged)]
    drop = await expect_success(cluster, OURS, "drop", "--yes", *slugs)
    purge = await expect_success(cluster, OURS, "purge", "--yes", *slugs)
    (left,) = await cluster.fetch(
        OURS,
        "SELECT (SELECT count(*) FROM quart_tenants.tenants WHERE dropped_at IS NOT NULL)"
        " + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'quart_tenants_trash%')",
    )
    figures.add(
        f"drop and purge {purged}",
        f"{drop.seconds:.1f} s and {purge.seconds:.1f} s, {left[0]} left, max_locks_per_transaction {limit[0]}",
        "none left, with 64",
        left[0] == 0 and limit[0] == "64",
    )


def add_migration(cluster: Cluster, name: str, sql: str) -> None:
    """Put one more file into the folder of migrations."""
    (cluster.migrations / name).write_text(sql)


async def expect_success(cluster: Cluster, database: str, *command: str) -> Finished:
    """Run our program, which must succeed."""
    finished = await cluster.run(database, *command)
    if finished.status:
        raise RuntimeError(f"{command[0]} ended with {finished.status}: {finished.stderr[-2000:]}")
    return finished


async def wait_for_progress(cluster: Cluster, version: int, enough: int) -> int:
    """Return how many tenants are at *version*, when they are *enough*."""
    while True:
        done = await count_at(cluster, version)
        if done >= enough:
            return done
        await asyncio.sleep(0.05)


async def count_at(cluster: Cluster, version: int) -> int:
    """Return how many tenants are recorded at *version*."""
    return len(await list_at(cluster, version))


async def list_at(cluster: Cluster, version: int) -> set[str]:
    """Return the schemas of the tenants that are recorded at *version*."""
    query = "SELECT schema_name FROM quart_tenants.applied_migrations WHERE schema_name <> 'quart_tenants'"
    return {row["schema_name"] for row in await cluster.fetch(OURS, f"{query} AND version = {version:d}")}


async def count_done(cluster: Cluster, version: int, table: str, column: str) -> tuple[int, int, int]:
    """Return how many tenants are recorded at *version*, how many have the column, and how many only one of both."""
    recorded = await list_at(cluster, version)
    changed = await cluster.fetch(
        OURS,
        "SELECT table_schema FROM information_schema.columns"
        f" WHERE table_name = '{table}' AND column_name = '{column}'",
    )
    with_column = {row["table_schema"] for row in changed}
    return len(recorded), len(with_column), len(recorded ^ with_column)


@asynccontextmanager
async def serving(cluster: Cluster, **settings: str) -> AsyncIterator[int]:
    """Serve the reference app in one process; yield its port."""
    config = cluster.folder / "hypercorn.toml"
    config.write_text('bind = "127.0.0.1:0"\nworkers = 0\nworker_class = "uvloop"\n')
    environment = {f"QUART_{name}": value for name, value in settings.items()}
    process = await cluster.start(OURS, "serve", "--config", str(config), **environment)
    try:
        line = await asyncio.wait_for(_read_line(process), 30)
        port = int(line.rpartition(":")[2])
        await wait_for_answer(port)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()


async def _read_line(process: asyncio.subprocess.Process) -> str:
    if process.stdout is None:
        raise RuntimeError("the server has no output")
    return (await process.stdout.readline()).decode().strip()


async def wait_for_answer(port: int) -> None:
    """Return when something listens on *port*."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)


async def ask_for(client: Client, seconds: float) -> Answers:
    """Return the answers of so many seconds."""
    done = asyncio.Event()
    asked = asyncio.create_task(client.ask_until(done))
    await asyncio.sleep(seconds)
    done.set()
    return await asked


async def migrate_while_asking(
    cluster: Cluster, client: Client, *, version: int, but: int
) -> tuple[Answers, float, Finished]:
    """Migrate under load; return the answers, when all tenants *but* so many were at *version*, and the command."""
    done = asyncio.Event()
    asked = asyncio.create_task(client.ask_until(done))
    migration = asyncio.create_task(cluster.run(OURS, "migrate", "--jobs", str(JOBS)))
    (all_tenants,) = await cluster.fetch(OURS, "SELECT count(*) FROM quart_tenants.living_tenants")
    while await count_at(cluster, version) < all_tenants[0] - but and not migration.done():
        await asyncio.sleep(0.5)
    others_done = time.monotonic()
    finished = await migration
    done.set()
    return await asked, others_done, finished


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, help="how many  [default: 10,000, or 500 with --schema erp]")
    parser.add_argument("--schema", choices=["small", "erp"], default="small", help="two tables for each, or 43")
    parser.add_argument("--purge", type=int, default=2_000, help="how many are dropped and purged in the end")
    parser.add_argument("--no-fsync", action="store_true", help="with --schema erp: do not wait for the disk")
    arguments = parser.parse_args()
    if arguments.schema == "erp":
        sys.exit(asyncio.run(measure_erps(arguments.tenants or 500, durable=not arguments.no_fsync)))
    arguments.tenants = arguments.tenants or 10_000
    if arguments.tenants < ASKED_TENANTS + arguments.purge:
        parser.error(f"--tenants: at least {ASKED_TENANTS} more than --purge, for those are asked all the time")
    sys.exit(asyncio.run(main(arguments.tenants, arguments.purge)))
