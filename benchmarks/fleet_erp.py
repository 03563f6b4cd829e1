"""Measure a fleet of large tenants, an ERP each: `python -m benchmarks.fleet --schema erp --tenants 2000`.

Every figure is for one tenant: milliseconds that passed, and milliseconds of CPU of the program and of the server's
processes, which is what to believe on a machine that is not quiet. Beside them psql, pg_dump and pg_restore do the same
by hand in the same database, with the same number of processes. The start of our program is taken off.
"""

import asyncio
import contextlib
import csv
import os
import platform
import resource
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg

from benchmarks.erp import SHARED_SCHEMA, write_erp_files
from benchmarks.fleet_parts import Cluster, Finished, running_cluster
from quart_tenants.admin import Database, create_tenant, parse_slug, prepare_tenants, read_settings
from quart_tenants.postgres.embedded.embedded_server import find_postgres

# A name that no other benchmark uses: its backends are found by it.
DATABASE = "fleet_of_erps"
JOBS = 4
SAMPLE = 40  # tenants for what is done by hand, too
SIGN_UPS = 100
ROUNDS = 3

_COUNT_ENTRIES = "SELECT count(*) FROM pg_class"
_MEASURE_CATALOGUE = """
SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r'
"""


@dataclass(frozen=True)
class Cost:
    """What something took, in seconds.

    Attributes:
        passed: By the clock.
        cpu: Of the programs and of the server's processes that have ended.
    """

    passed: float
    cpu: float

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(max(0.0, self.passed - other.passed), max(0.0, self.cpu - other.cpu))

    def __truediv__(self, number: int) -> "Cost":
        return Cost(self.passed / number, self.cpu / number)

    def __str__(self) -> str:
        return f"{self.passed * 1000:.0f} ms, {self.cpu * 1000:.1f} ms of CPU"


class Fleet:
    """A fleet of ERPs on a private PostgreSQL, and schemas beside it that were made by hand."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.shared = cluster.folder / "shared"
        self.shared.mkdir()
        write_erp_files(cluster.migrations, self.shared)
        self.tables = "\n".join(path.read_text() for path in sorted(cluster.migrations.iterdir()))
        self.start_up = Cost(0, 0)

    @property
    def settings(self) -> dict[str, str]:
        """What our program needs beside what the cluster says."""
        return {
            "QUART_TENANTS_SHARED_SCHEMAS": SHARED_SCHEMA,
            "QUART_TENANTS_SHARED_MIGRATIONS_DIR": str(self.shared),
            "QUART_TENANTS_AUDIT": "false",
            # On a busy machine a statement may take a minute. It is the CPU that is measured.
            "QUART_TENANTS_COMMAND_TIMEOUT": "600",
        }

    async def cost(self, act: Awaitable[object]) -> Cost:
        """Return what *act* cost. It runs programs, and no others run meanwhile."""
        before, began = self._count_cpu(), time.monotonic()
        await act
        passed = time.monotonic() - began
        # The server has counted a process when it has ended, which is a little after its client.
        while find_backends():
            await asyncio.sleep(0.05)
        return Cost(passed, self._count_cpu() - before)

    def _count_cpu(self) -> float:
        mine = resource.getrusage(resource.RUSAGE_CHILDREN)
        pid = (self.cluster.folder / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0]
        # Of its children that have ended: cutime and cstime of proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return mine.ru_utime + mine.ru_stime + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    async def run(self, *command: str) -> Finished:
        """Run our program, which must succeed."""
        finished = await self.cluster.run(DATABASE, *command, **self.settings)
        if finished.status:
            raise RuntimeError(f"{command[0]} ended with {finished.status}: {finished.stderr[-2000:]}")
        return finished

    async def time(self, *command: str) -> Cost:
        """Return what our program cost, without its start."""
        return await self.cost(self.run(*command)) - self.start_up

    async def create_many(self, names: list[str]) -> Cost:
        """Create tenants; return the cost."""
        path = self.cluster.folder / "tenants.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["slug", "name"], *([name, name] for name in names)])
        return await self.time("create-many", str(path), "--jobs", str(JOBS))

    async def by_hand(self, names: list[str], write: Callable[[str], str], jobs: int = JOBS) -> Cost:
        """Let *jobs* psql processes run what *write* returns for each of *names*; return the cost."""
        scripts = ["SET client_min_messages TO warning;\n" for _ in range(jobs)]
        for number, name in enumerate(names):
            scripts[number % jobs] += write(name)
        return await self.cost(self.cluster.psql(DATABASE, scripts))

    async def programs(self, script: str, **values: object) -> Cost:
        """Run a shell script with PostgreSQL's programs; return the cost."""
        server = urlsplit(self.cluster.server.url)
        environment = {
            **os.environ,
            "PATH": f"{find_postgres().parent}:{os.environ['PATH']}",
            "PGHOST": parse_qs(server.query)["host"][0],
            "PGUSER": server.username or "postgres",
            "PGDATABASE": DATABASE,
            **{name: str(value) for name, value in values.items()},
        }

        async def run() -> None:
            process = await asyncio.create_subprocess_exec(
                "bash", "-euo", "pipefail", "-c", script, env=environment, stdout=asyncio.subprocess.DEVNULL
            )
            if await process.wait():
                raise RuntimeError(f"this failed: {script}")

        return await self.cost(run())


def tell(what: str, ours: Cost, hand: Cost | None = None) -> None:
    """Print one figure: the cost for one tenant."""
    beside = "" if hand is None else f"; by hand {hand}: {ours.cpu / hand.cpu:.2f} times the CPU"
    print(f"        {what}: {ours}{beside}", flush=True)


async def measure_erps(count: int, *, durable: bool) -> int:
    """Measure everything with *count* tenants; return the exit status."""
    print(f"{count} ERPs, {os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    async with running_cluster(durable=durable) as cluster:
        fleet = Fleet(cluster)
        connection = await asyncpg.connect(cluster.server.url)
        await connection.execute(f"CREATE DATABASE {DATABASE}")
        await connection.close()
        await fleet.run("init")
        starts = [await fleet.cost(fleet.run("migrate", "--help")) for _ in range(ROUNDS)]
        fleet.start_up = min(starts, key=lambda cost: cost.cpu)
        names = [f"erp{number:05}" for number in range(count)]
        hand = [f"hand{number:05}" for number in range(SAMPLE)]
        await fleet.create_many(names[:-SAMPLE])
        await measure_making(fleet, names[-SAMPLE:], hand)
        await measure_migrations(fleet, names, hand)
        await measure_status(fleet, count)
        await measure_moves(fleet, names[0], hand[0])
        await measure_purge(fleet, names[-SAMPLE:], hand)
        await measure_sign_ups(fleet)
        await measure_disk(fleet)
    return 0


async def measure_making(fleet: Fleet, names: list[str], hand: list[str]) -> None:
    """Create the last tenants of the fleet, and as many schemas by hand."""
    ours = await fleet.create_many(names)

    def make(name: str) -> str:
        path = f"SET LOCAL search_path TO {name}, {SHARED_SCHEMA}"
        return f"BEGIN; CREATE SCHEMA {name}; {path};\n{fleet.tables}\nCOMMIT;\n"

    theirs = await fleet.by_hand(hand, make)
    tell("create-many", ours / len(names), theirs / len(hand))


async def measure_migrations(fleet: Fleet, names: list[str], hand: list[str]) -> None:
    """Add a column, and then an index without a lock."""
    files = {
        "0005_column.sql": ("", "ALTER TABLE sales_orders ADD COLUMN colour text"),
        "0006_index.sql": (
            "-- quart-tenants: no transaction\n",
            "CREATE INDEX CONCURRENTLY invoices_by_amount ON invoices (amount)",
        ),
    }
    for what, (file, (directive, statement)) in zip(("migrate", "index CONCURRENTLY"), files.items(), strict=True):
        (fleet.cluster.migrations / file).write_text(f"{directive}{statement};\n")
        ours = await fleet.time("migrate", "--jobs", str(JOBS))
        enter = f"SET search_path TO {{}}, {SHARED_SCHEMA}; {statement};\n"
        theirs = await fleet.by_hand(hand, enter.format)
        tell(what, ours / len(names), theirs / len(hand))


async def measure_status(fleet: Fleet, count: int) -> None:
    """Ask for the status, without and with drift, and look at the memory of the server's processes meanwhile."""
    tell("status --no-drift", await fleet.time("status", "--no-drift") / count)
    running = asyncio.create_task(fleet.time("status"))
    largest = 0
    while not running.done():
        largest = max(largest, await asyncio.to_thread(find_largest_backend))
        await asyncio.sleep(0.1)
    tell("status", await running / count)
    print(f"        largest server process meanwhile: {largest / 1024:.0f} MB of its own", flush=True)


def find_backends() -> list[Path]:
    """Return the folders in /proc of the server's processes that work on our database."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f" {DATABASE} [local]".encode() in (process / "cmdline").read_bytes():
                found.append(process)
    return found


def find_largest_backend() -> int:
    """Return the private memory of the largest server process of our database, in kB."""
    largest = 0
    for process in find_backends():
        # It may have ended.
        with contextlib.suppress(OSError, IndexError):
            status = (process / "status").read_text()
            largest = max(largest, int(status.partition("RssAnon:")[2].split()[0]))
    return largest


async def measure_moves(fleet: Fleet, slug: str, schema: str) -> None:
    """Back up, restore and copy one tenant, each several times."""
    dump = fleet.cluster.folder / "by_hand.dump"

    async def median(act: Callable[[int], Awaitable[Cost]]) -> Cost:
        return sorted([await act(number) for number in range(ROUNDS)], key=lambda cost: cost.cpu)[ROUNDS // 2]

    file = fleet.cluster.folder / "backup"

    async def back_up(_: int) -> Cost:
        return await fleet.time("backup", slug, "-o", str(file), "--force")

    async def dump_by_hand(_: int) -> Cost:
        return await fleet.programs('pg_dump -Fc -n "$schema" -f "$file"', schema=schema, file=dump)

    tell("backup", await median(back_up), await median(dump_by_hand))

    async def restore(number: int) -> Cost:
        return await fleet.time("restore", str(file), "--as", f"restored{number}")

    async def restore_by_hand(_: int) -> Cost:
        await fleet.programs('psql -qc "DROP SCHEMA $schema CASCADE" 2>"$out"', schema=schema, out=os.devnull)
        return await fleet.programs('pg_restore -1 -d "$PGDATABASE" "$file"', file=dump)

    tell("restore", await median(restore), await median(restore_by_hand))

    async def copy(number: int) -> Cost:
        return await fleet.time("create", f"copied{number}", "--from", slug)

    async def copy_by_hand(number: int) -> Cost:
        script = 'pg_dump -n "$schema" | sed "s/$schema/$copy/g" | psql -qX1 -v ON_ERROR_STOP=1'
        return await fleet.programs(script, schema=schema, copy=f"copy{number}")

    tell("copy", await median(copy), await median(copy_by_hand))


async def measure_purge(fleet: Fleet, names: list[str], hand: list[str]) -> None:
    """Drop tenants into the trash and delete them for good."""
    tell("drop", await fleet.time("drop", "--yes", *names) / len(names))
    ours = await fleet.time("purge", "--yes", *names)
    theirs = await fleet.by_hand(hand, lambda name: f"DROP SCHEMA {name} CASCADE;\n", jobs=1)
    tell("purge", ours / len(names), theirs / len(hand))


async def measure_sign_ups(fleet: Fleet) -> None:
    """Create tenants one after the other as a sign-up does, with ready tenants and without."""
    environment = fleet.cluster.environment(DATABASE, **fleet.settings)
    prefix = "QUART_TENANTS_"
    found = {name.removeprefix("QUART_"): text for name, text in environment.items() if name.startswith(prefix)}
    for name in ("TENANTS_AUDIT", "TENANTS_COMMAND_TIMEOUT"):
        found.pop(name)
    for ready in (SIGN_UPS, 0):
        settings = read_settings(found | {"TENANTS_SHARED_SCHEMAS": SHARED_SCHEMA, "TENANTS_READY_TENANTS": ready})
        async with await Database.open(settings, max_size=1) as database:
            began = time.monotonic()
            report = await prepare_tenants(database, settings=settings)
            if report.made:
                print(f"        prepare: {(time.monotonic() - began) / report.made * 1000:.0f} ms", flush=True)
        async with await Database.open(settings, max_size=1) as database:
            seconds = []
            for number in range(SIGN_UPS if ready else SAMPLE):
                began = time.monotonic()
                await create_tenant(database, parse_slug(f"new{ready}x{number}"), "New", settings=settings)
                seconds.append(time.monotonic() - began)
        p99 = statistics.quantiles(seconds, n=100)[98]
        what = "sign-up with a ready tenant" if ready else "sign-up without"
        median = statistics.median(seconds) * 1000
        print(f"        {what}, of {len(seconds)}: median {median:.1f} ms, p99 {p99 * 1000:.1f} ms", flush=True)


async def measure_disk(fleet: Fleet) -> None:
    """Count files and catalogue for each schema."""
    schemas = "SELECT count(*) FROM pg_namespace WHERE nspname !~ '^(pg_|quart_tenants|information_schema)'"
    (number,) = await fleet.cluster.fetch(DATABASE, schemas)
    (entries,) = await fleet.cluster.fetch(DATABASE, _COUNT_ENTRIES)
    (size,) = await fleet.cluster.fetch(DATABASE, _MEASURE_CATALOGUE)
    (folder,) = await fleet.cluster.fetch(
        DATABASE, "SELECT pg_relation_filepath('pg_class') AS path, current_setting('data_directory') AS data"
    )
    files = len(list((Path(folder["data"]) / folder["path"]).parent.iterdir()))
    print(
        f"        for each of {number[0]} schemas: {files / number[0]:.0f} files, {entries[0] / number[0]:.0f} rows in "
        f"pg_class, {size[0] / number[0] / 1e6:.2f} MB of catalogue",
        flush=True,
    )
