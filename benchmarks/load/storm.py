"""Measure what a storm of logins does to those who are logged in."""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.load.cluster import PASSWORD, Server
from benchmarks.load.contenders import THIS_PROJECT
from benchmarks.load.rounds import Bench, Plan
from benchmarks.load.serving import ask
from quart_tenants.app.passwords import PasswordHasher
from quart_tenants.settings import Settings

_CLIENTS = 16
_LEAST_RATE = 0.5
_MOST_P99 = 4.0


async def measure_storm(server: Server, plan: Plan, database: str, slugs: Sequence[str]) -> int:
    """Compare `/data` with and without logins, round by round; return how many answers had other tenants' rows."""
    settings = Settings(database_url=server.url(database))
    stored, alone = await _time_hashes(settings, plan.seconds)
    # Users of one tenant that the load hardly asks for, with today's hashes.
    busy = slugs[-1]
    users = ", ".join(f"('storm{number}', '{stored}')" for number in range(_CLIENTS))
    await server.execute(database, f"INSERT INTO {busy}.app_user (username, password) VALUES {users}")
    bench = Bench(server, plan, slugs, {})
    contender = replace(THIS_PROJECT, name="storm", database=database)
    idle, busy_rounds, logins, only_logins = [], [], [], []
    statuses: Counter[int] = Counter()
    async with bench.serving(contender) as running:
        await bench.prepare(running)
        for _ in range(plan.rounds):
            idle.append(await bench.load(running))
            done = asyncio.Event()
            storm = asyncio.create_task(_keep_logging_in(running.port, busy, done, statuses))
            busy_rounds.append(await bench.load(running))
            done.set()
            logins.append(await storm)
            done.clear()
            storm = asyncio.create_task(_keep_logging_in(running.port, busy, done, statuses))
            await asyncio.sleep(plan.seconds)
            done.set()
            only_logins.append(await storm)
    rates = statistics.median(
        (late.requests / late.seconds) / (early.requests / early.seconds)
        for early, late in zip(idle, busy_rounds, strict=True)
    )
    p99 = statistics.median(late.p99 / early.p99 for early, late in zip(idle, busy_rounds, strict=True))
    print(f"\n### A storm of logins, {_CLIENTS} at a time\n")
    print("| what | measured | target |\n| --- | --- | --- |")
    print(f"| password checks a second, by two threads and nothing else | {alone:.1f} | |")
    print(f"| logins a second, without `/data` | {statistics.median(only_logins):.1f} | |")
    print(f"| logins a second, beside `/data` | {statistics.median(logins):.1f} | |")
    for name, loads in (("without logins", idle), ("beside logins", busy_rounds)):
        rate = statistics.median(load.requests / load.seconds for load in loads)
        print(
            f"| `/data` {name} | {rate:,.0f} a second, p99 {statistics.median(load.p99 for load in loads):.1f} ms | |"
        )
    print(f"| … rate beside logins, of that without | {rates:.2f} | ≥ {_LEAST_RATE:g}: {_word(rates >= _LEAST_RATE)} |")
    print(f"| … p99 beside logins, of that without | {p99:.1f} | ≤ {_MOST_P99:g}: {_word(p99 <= _MOST_P99)} |")
    print(f"| statuses of the logins | {dict(statuses)} | |", flush=True)
    return sum(load.wrong for load in (*idle, *busy_rounds))


def _word(met: bool) -> str:
    return "met" if met else "**missed**"


async def _time_hashes(settings: Settings, seconds: float) -> tuple[str, float]:
    """Return a hash, and how many checks a second all the cores can do."""
    hasher = PasswordHasher(settings)
    await hasher.warm()
    stored = await hasher.hash(PASSWORD)
    ended = time.monotonic() + seconds
    checks = 0

    async def keep_checking() -> None:
        nonlocal checks
        while time.monotonic() < ended:
            await hasher.check(PASSWORD, stored)
            checks += 1

    await asyncio.gather(*(keep_checking() for _ in range(settings.password_hash_concurrency)))
    await hasher.close()
    return stored, checks / seconds


async def _keep_logging_in(port: int, slug: str, done: asyncio.Event, statuses: Counter[int]) -> float:
    """Log users in until *done*; return how many logins a second succeeded."""
    began = time.monotonic()
    succeeded = 0

    async def repeat(number: int) -> None:
        nonlocal succeeded
        body = f"uname=storm{number}&passwd={PASSWORD}"
        request = (
            f"POST /login HTTP/1.1\r\nHost: {slug}.localhost\r\nContent-Length: {len(body)}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n\r\n{body}"
        )
        while not done.is_set():
            status, _ = await ask(port, request)
            statuses[status] += 1
            succeeded += status == 200

    await asyncio.gather(*(repeat(number) for number in range(_CLIENTS)))
    return succeeded / (time.monotonic() - began)
