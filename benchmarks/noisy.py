"""Measure what one noisy tenant, or strangers who make up names, do to the others' p99: `python -m benchmarks.noisy`.

Exits 1 for a missed target.
"""

import argparse
import asyncio
import os
import platform
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg
from passlib.hash import pbkdf2_sha256

from benchmarks.fleet_parts import PROGRAM, Answers, Client, Cluster, running_cluster
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug

DATABASE = "noisy"
NOISY = "noisy"
QUIET = [f"quiet{number}" for number in range(10)]
ASKED_A_SECOND = 60.0
POOL_SIZE = 10
# Four times the pool and, by default, eight times the share: all of them wait for the database, none is refused.
SLOW_CLIENTS = 36
SLOW_FOR = 0.2  # seconds
FLOODING_CLIENTS = 16
TARGET = 5.0  # times the idle p99
STRANGERS = 64
MOST_READS = 5.0  # of the feed of changes, a second
# Of what one read of the feed touches. The feed is read once a second by itself.
COUNT_READS = "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'changes'"

ROWS = """
INSERT INTO app_user (username, password) VALUES ('user', '{1}');
INSERT INTO company_data (description) VALUES ('{0}');
"""
# Reading the tenant's data takes its time, as a report over many rows does.
SLOW_VIEW = f"""
ALTER TABLE {NOISY}.company_data RENAME TO all_data;
CREATE VIEW {NOISY}.company_data AS SELECT id, description FROM {NOISY}.all_data, pg_sleep({SLOW_FOR});
"""
FAST_TABLE = f"DROP VIEW {NOISY}.company_data; ALTER TABLE {NOISY}.all_data RENAME TO company_data;"


async def make_tenants(cluster: Cluster) -> None:
    """Make the registry and the tenants."""
    connection = await asyncpg.connect(cluster.server.url)
    await connection.execute(f"CREATE DATABASE {DATABASE}")
    await connection.close()
    settings = Settings(migrations_dir=get_resource_path("sql/tenant"), database_url=cluster.url(DATABASE))
    # One round, for the logins are not what is measured.
    password_hash = pbkdf2_sha256.using(rounds=1).hash("foo")
    async with await Database.open(settings, max_size=1) as database:
        await init_registry(database)
        for slug in (NOISY, *QUIET):
            first_rows = ROWS.format(slug, password_hash)
            await create_tenant(database, parse_slug(slug), slug, settings=settings, first_rows=first_rows)


@asynccontextmanager
async def serving(cluster: Cluster, share: int) -> AsyncIterator[int]:
    """Serve in one process, where a tenant may have *share* connections; yield the port."""
    config = cluster.folder / "hypercorn.toml"
    config.write_text('bind = "127.0.0.1:0"\nworkers = 0\n')
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "serve",
        "--config",
        config,
        env={
            name: text
            for name, text in cluster.environment(
                DATABASE,
                QUART_TENANTS_POOL_MAX_SIZE=str(POOL_SIZE),
                QUART_TENANTS_TENANT_POOL_SHARE=str(share),
            ).items()
            if name != "QUART_TENANTS_MIGRATIONS_DIR"
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        while not (line := await process.stdout.readline()).startswith(b"serving on"):
            if not line:
                raise RuntimeError("serve ended")
        port = int(line.decode().strip().rpartition(":")[2])
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.05)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def flood(port: int, clients: int, seconds: float) -> Answers:
    """Ask for the noisy tenant's data with *clients* clients, each as fast as it is answered."""
    client = Client(port, 1)
    await client.log_in([NOISY])
    answers = Answers()
    ended = time.monotonic() + seconds

    async def ask() -> None:
        while time.monotonic() < ended:
            await client._ask(NOISY, answers)  # noqa: SLF001

    await asyncio.gather(*(ask() for _ in range(clients)))
    return answers


async def ask_as_strangers(port: int, clients: int, seconds: float) -> int:
    """Ask at made-up hosts with *clients* clients, each as fast as it is answered. Return how many were refused."""
    ended = time.monotonic() + seconds
    refused = 0

    async def ask() -> None:
        nonlocal refused
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.monotonic() < ended:
            writer.write(f"GET /data HTTP/1.1\r\nHost: {secrets.token_hex(8)}.localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
            refused += head.split()[1] == b"400"
        writer.close()

    await asyncio.gather(*(ask() for _ in range(clients)))
    return refused


async def start_flood(kind: str, port: int, clients: int, seconds: float) -> asyncio.subprocess.Process:
    """Return a process that floods as soon as it is told to, and then says how many answers it got."""
    pipe = asyncio.subprocess.PIPE
    command = ["-m", "benchmarks.noisy", kind, str(port), str(clients), str(seconds)]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    await process.stdout.readline()
    return process


def wait_to_be_told() -> None:
    """Say that everything is loaded, and wait until the other process wants the flood."""
    print("ready", flush=True)
    sys.stdin.readline()


async def measure(
    port: int, clients: int, rounds: int, seconds: float, *, kind: str = "--flood"
) -> tuple[float, float, int]:
    """Return the others' p99 idle and beside the noisy tenant, in milliseconds, and how many noisy answers there were.

    Rounds of both kinds take turns, so that what else the machine does meets both.
    """
    quiet = Client(port, ASKED_A_SECOND)
    await quiet.log_in(QUIET)
    idle_times: list[float] = []
    noisy_times: list[float] = []
    noise = 0
    for number in range(2 * rounds):
        done = asyncio.Event()
        # A process of its own, so that it does not slow down the clock of the others, and ready before that runs.
        flooding = await start_flood(kind, port, clients, seconds) if number % 2 else None
        asking = asyncio.create_task(quiet.ask_until(done))
        if flooding is not None:
            output, _ = await flooding.communicate(b"go\n")
            noise += int(output)
        else:
            await asyncio.sleep(seconds)
        done.set()
        answers = await asking
        if set(answers.statuses) != {200} or answers.wrong:
            print(f"        answers of the quiet tenants: {answers.statuses}, {answers.codes}, {answers.wrong} wrong")
        (noisy_times if number % 2 else idle_times).extend(took for _, took in answers.milliseconds)
    p99 = [statistics.quantiles(times, n=100)[98] for times in (idle_times, noisy_times)]
    return p99[0], p99[1], noise


async def main(rounds: int, seconds: float) -> int:
    """Run everything; return the exit status."""
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    ratios = {}
    async with running_cluster() as cluster:
        await make_tenants(cluster)
        connection = await asyncpg.connect(cluster.url(DATABASE))
        for name, view, clients, share in (
            ("slow blocks", True, SLOW_CLIENTS, POOL_SIZE // 2),
            ("slow blocks, no share (control)", True, SLOW_CLIENTS, POOL_SIZE),
            ("a plain flood", False, FLOODING_CLIENTS, POOL_SIZE // 2),
            ("a plain flood, no share", False, FLOODING_CLIENTS, POOL_SIZE),
        ):
            if view:
                await connection.execute(SLOW_VIEW)
            async with serving(cluster, share) as port:
                idle, noisy, noise = await measure(port, clients, rounds, seconds)
            if view:
                await connection.execute(FAST_TABLE)
            ratios[name] = noisy / idle
            print(
                f"{name}: p99 of the others {noisy:.1f} ms, idle {idle:.1f} ms, {noisy / idle:.1f} times; "
                f"{noise / rounds / seconds:.0f} noisy answers a second",
                flush=True,
            )
        async with serving(cluster, POOL_SIZE // 2) as port:
            before = await connection.fetchval(COUNT_READS)
            await asyncio.sleep(10)
            # Each read touches the table some times, and the worker has made ten by itself.
            one_read = (await connection.fetchval(COUNT_READS) - before) / 10
            before, began = await connection.fetchval(COUNT_READS), time.monotonic()
            idle, noisy, refused = await measure(port, STRANGERS, rounds, seconds, kind="--strangers")
            reads = (await connection.fetchval(COUNT_READS) - before) / one_read - (time.monotonic() - began)
        ratios["made-up names"] = noisy / idle
        reads_a_second = reads / rounds / seconds
        print(
            f"made-up names: p99 of the others {noisy:.1f} ms, idle {idle:.1f} ms, {noisy / idle:.1f} times; "
            f"{refused / rounds / seconds:.0f} refused a second by {reads_a_second:.1f} more reads of the feed"
        )
        await connection.close()
    targets = {
        f"slow blocks at most {TARGET:g} times": ratios["slow blocks"] <= TARGET,
        f"made-up names at most {MOST_READS:g} reads a second": reads_a_second <= MOST_READS,
    }
    for target, met in targets.items():
        print(f"{'met' if met else 'MISSED'}: {target}")
    return 0 if all(targets.values()) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--flood", nargs=3, metavar=("PORT", "CLIENTS", "SECONDS"), help=argparse.SUPPRESS)
    parser.add_argument("--strangers", nargs=3, metavar=("PORT", "CLIENTS", "SECONDS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.strangers:
        port, clients, flood_seconds = given.strangers
        wait_to_be_told()
        print(asyncio.run(ask_as_strangers(int(port), int(clients), float(flood_seconds))))
    elif given.flood:
        port, clients, flood_seconds = given.flood
        wait_to_be_told()
        print(len(asyncio.run(flood(int(port), int(clients), float(flood_seconds))).milliseconds))
    else:
        sys.exit(asyncio.run(main(given.rounds, given.seconds)))
