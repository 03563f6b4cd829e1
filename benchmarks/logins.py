"""Measure what 50 logins at once do to everybody else: `python -m benchmarks.logins`. Exits 1 for a missed target.

50 users begin in the same moment, and each logs in again as soon as it has its answer, for some seconds: so 50 logins
are under way all the time. The first second, in which 50 requests arrive at once, is shown apart, too. Two servers in
turn, round by round: one as it is, and one that checks passwords in its event loop, which shows what the threads are
for. Others ask for their data at a fixed rate, before the logins and during them.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
from passlib.hash import pbkdf2_sha256

from benchmarks.fleet_parts import Client, Cluster, running_cluster
from benchmarks.load.serving import SECRET_KEY
from quart_tenants.app.passwords import PasswordHasher
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug

DATABASE = "logins"
BUSY = "busy"
QUIET = [f"quiet{number}" for number in range(10)]
LOGINS = 50
ASKED_A_SECOND = 60.0
MAX_LAG = 20.0  # milliseconds
MAX_RATIO = 3.0  # of the idle p99
AS_IT_IS, INLINE = "threads", "inline"

ROWS = """
INSERT INTO app_user (username, password) VALUES ('user', '{1}');
INSERT INTO company_data (description) VALUES ('{0}');
"""


@dataclass
class Seen:
    """What the rounds with one server came to; milliseconds, one figure a round."""

    idle: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    burst: list[float] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)
    longest_lag: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    errors: int = 0

    @property
    def ratios(self) -> list[float]:
        """How many times the idle p99 the p99 was."""
        return [busy / idle for busy, idle in zip(self.busy, self.idle, strict=True)]


async def make_tenants(cluster: Cluster) -> None:
    """Make a tenant with 50 users whose hashes are today's, and ten others."""
    connection = await asyncpg.connect(cluster.server.url)
    await connection.execute(f"CREATE DATABASE {DATABASE}")
    await connection.close()
    settings = Settings(migrations_dir=get_resource_path("sql/tenant"), database_url=cluster.url(DATABASE))
    hasher = PasswordHasher(settings)
    password_hash = await hasher.hash("foo")
    await hasher.close()
    async with await Database.open(settings, max_size=1) as database:
        await init_registry(database)
        for slug in QUIET:
            # One round: their logins are not what is measured.
            first_rows = ROWS.format(slug, pbkdf2_sha256.using(rounds=1).hash("foo"))
            await create_tenant(database, parse_slug(slug), slug, settings=settings, first_rows=first_rows)
        users = ", ".join(f"('user{number}', '{password_hash}')" for number in range(LOGINS))
        first_rows = f"INSERT INTO app_user (username, password) VALUES {users}"
        await create_tenant(database, parse_slug(BUSY), BUSY, settings=settings, first_rows=first_rows)


@asynccontextmanager
async def serving(cluster: Cluster, hashing: str, workers: int) -> AsyncIterator[int]:
    """Run the measured server; yield its port."""
    config = cluster.folder / "hypercorn.toml"
    config.write_text(f'bind = "127.0.0.1:0"\nworkers = {workers}\nworker_class = "uvloop"\nbacklog = 512\n')
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("QUART_", "PG"))} | {
        "QUART_TENANTS_DATABASE_URL": cluster.url(DATABASE),
        "QUART_SECRET_KEY": SECRET_KEY,
        # All 50 are let in, more than by default.
        "QUART_TENANTS_PASSWORD_HASH_QUEUE": str(LOGINS),
        "QUART_TENANTS_TENANT_POOL_QUEUE": str(LOGINS),
        "QUART_TENANTS_LOG_LEVEL": "error",
        "QUART_TENANTS_AUDIT": "false",
        "MEASURED_HASHING": hashing,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.measured_server", "serve", "--config", str(config),
        env=environment, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = b""
        while not line.startswith(b"serving on"):
            line = await process.stdout.readline()
            if not line:
                raise RuntimeError("the server has ended")
        yield int(line.rpartition(b":")[2])
    finally:
        process.terminate()
        await process.wait()


async def send(port: int, request: str) -> tuple[int, bytes]:
    """Return the status and the body of the answer to a request that closes its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    return int(head.split()[1]), body


async def read_lag(port: int, workers: int) -> list[float]:
    """Return how late the timers of all workers were since the last time, in milliseconds."""
    late: list[float] = []
    # Which worker answers is chance.
    for _ in range(1 if workers == 1 else 8):
        _, body = await send(port, "GET /lag HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        late += json.loads(body)
    return late


async def log_in(port: int, number: int) -> int:
    """Log a user in; return the status."""
    body = f"uname=user{number}&passwd=foo"
    status, _ = await send(
        port,
        f"POST /login HTTP/1.1\r\nHost: {BUSY}.localhost\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n\r\n{body}",
    )
    return status


async def keep_logging_in(port: int, number: int, until: float, statuses: Counter[int]) -> None:
    """Log a user in again and again."""
    while time.monotonic() < until:
        statuses[await log_in(port, number)] += 1


async def run_round(port: int, client: Client, workers: int, seconds: float, seen: Seen) -> None:
    """Ask for data for *seconds* without logins, then as long while 50 users log in."""
    done = asyncio.Event()
    asking = asyncio.create_task(client.at(port).ask_until(done))
    await asyncio.sleep(seconds)
    await read_lag(port, workers)
    began = time.monotonic()
    await asyncio.gather(*(keep_logging_in(port, number, began + seconds, seen.statuses) for number in range(LOGINS)))
    ended = time.monotonic()
    late = await read_lag(port, workers)
    done.set()
    answers = await asking
    seen.idle.append(answers.p99(until=began))
    seen.busy.append(answers.p99(since=began, until=ended))
    seen.burst.append(answers.p99(since=began, until=began + 1))
    seen.lag.append(statistics.quantiles(late, n=100)[98])
    seen.longest_lag.append(max(late))
    seen.errors += sum(count for status, count in answers.statuses.items() if status != 200) + answers.wrong


def show(name: str, values: list[float], unit: str) -> None:
    """Print the median and the spread."""
    print(f"  {name:<44} {statistics.median(values):8.1f} {unit}  ({min(values):.1f} to {max(values):.1f})")


async def main(rounds: int, seconds: float, workers: int) -> int:
    """Measure; return the exit status."""
    print(f"{os.cpu_count()} cores, {workers} workers, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    print(f"load before: {os.getloadavg()[0]:.1f}", flush=True)
    all_seen = {AS_IT_IS: Seen(), INLINE: Seen()}
    async with running_cluster() as cluster:
        await make_tenants(cluster)
        async with serving(cluster, AS_IT_IS, workers) as ours, serving(cluster, INLINE, workers) as naive:
            client = Client(ours, ASKED_A_SECOND)
            await client.log_in(QUIET)
            for number in range(rounds + 1):
                for name, port in ((AS_IT_IS, ours), (INLINE, naive)):
                    # The first round warms up.
                    seen = all_seen[name] if number else Seen()
                    await run_round(port, client, workers, seconds, seen)
    for name, seen in all_seen.items():
        print(f"hashes in {'threads, as it is' if name == AS_IT_IS else 'the event loop (negative control)'}")
        show("p99 of the loop's lag during the logins", seen.lag, "ms")
        show("longest lag", seen.longest_lag, "ms")
        show("p99 of /data without logins", seen.idle, "ms")
        show("p99 of /data during the logins", seen.busy, "ms")
        show("… times that without", seen.ratios, "  ")
        show("p99 of /data in the first second", seen.burst, "ms")
        print(f"  logins: {dict(seen.statuses)}, failed requests of others: {seen.errors}")
    ours_seen = all_seen[AS_IT_IS]
    met = statistics.median(ours_seen.lag) <= MAX_LAG and statistics.median(ours_seen.ratios) <= MAX_RATIO
    print(f"{'met' if met else 'MISSED'}: lag at most {MAX_LAG:g} ms, p99 of /data at most {MAX_RATIO:g} times idle")
    return 0 if met else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0, help="without logins, and with them, in each round")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.rounds, given.seconds, given.workers)))
