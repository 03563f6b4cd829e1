"""Promise: whatever the database does, each request ends in time, no write happens twice, and the pool recovers."""

import asyncio
import contextlib
import functools
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
import pytest

from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres
from quart_tenants.testing.databases import FAST_AND_FORGETFUL
from tests.support.databases import REFERENCE_FILES, fill_template
from tests.support.patience import wait_until
from tests.support.processes import Server, run_application
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.slow

REQUEST_TIMEOUT = 1.5  # seconds
GRACE = 1.0
RECOVERY = 2.0
# How many times as long as a request without a database something may take on a busy machine, beyond its own time.
SLOWER = 4
SIZE = 4

SETTINGS = {
    "QUART_TENANTS_MIGRATIONS_DIR": str(REFERENCE_FILES),
    "QUART_TENANTS_REQUEST_TIMEOUT": str(REQUEST_TIMEOUT),
    "QUART_TENANTS_ACQUIRE_TIMEOUT": "1.4",
    "QUART_TENANTS_POOL_MAX_SIZE": str(SIZE),
    "QUART_TENANTS_TENANT_POOL_SHARE": str(SIZE),
    "QUART_TENANTS_REGISTRY_POLL_INTERVAL": "0.2",
}


@dataclass
class Seen:
    """What the clients were told.

    Attributes:
        slowest: The longest request, in seconds.
        lag: The longest request that needs no database, in seconds: so slow is the machine itself.
        statuses: Of all answers; 0 where the connection to the server broke.
        sent: Each row that was sent, with whether its answer was 200.
        recovery: Seconds from the end of the fault until the whole pool was there again.
    """

    slowest: float = 0.0
    lag: float = 0.0
    statuses: set[int] = field(default_factory=set)
    sent: dict[str, bool] = field(default_factory=dict)
    recovery: float = 0.0

    def hears_refusal(self) -> bool:
        """Say whether a client has been told to come back later."""
        return 503 in self.statuses

    def goes_on(self, rows: int) -> bool:
        """Say whether more than so many *rows* have been sent."""
        return len(self.sent) > rows


@contextlib.asynccontextmanager
async def serving(url: str, folder: Path, **settings: str) -> AsyncIterator[Server]:
    """Serve the counting app, started in a thread: the proxy that it connects to lives in this loop."""
    manager = run_application("tests.app.counting_app:create_app()", url, folder, **SETTINGS | settings)
    server = await asyncio.to_thread(manager.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


async def load_during(server: Server, fault: Callable[[Seen], Awaitable[None]]) -> Seen:
    """Read and write all the time, from before *fault* begins until the pool is whole again after its end."""
    seen = Seen()
    stamps = (f"row {number}" for number in itertools.count())
    going_on = True

    async def ask(client: httpx.AsyncClient, method: str, path: str) -> int:
        started = time.monotonic()
        answer = await client.request(method, path)
        seen.slowest = max(seen.slowest, time.monotonic() - started)
        seen.statuses.add(answer.status_code)
        return answer.status_code

    async def work(client: httpx.AsyncClient) -> None:
        while going_on:
            await ask(client, "GET", "/count")
            stamp = next(stamps)
            seen.sent[stamp] = False
            seen.sent[stamp] = await ask(client, "POST", f"/rows/{stamp}") == 200

    async def probe(client: httpx.AsyncClient) -> None:
        while going_on:
            started = time.monotonic()
            await client.get("/healthz")
            seen.lag = max(seen.lag, time.monotonic() - started)

    async with server.tenant("acme") as client:
        workers = [asyncio.create_task(work(client)) for _ in range(2 * SIZE)]
        probing = asyncio.create_task(probe(client))
        # Until there is something to break.
        await wait_for(functools.partial(seen.goes_on, 50))
        await fault(seen)
        ended = time.monotonic()
        going_on = False
        await asyncio.gather(*workers, probing)
        while {await task for task in [asyncio.create_task(ask(client, "GET", "/together")) for _ in range(SIZE)]} != {
            200
        }:
            pass
        seen.recovery = time.monotonic() - ended
    return seen


async def wait_for(condition: Callable[[], bool]) -> None:
    """Return when the clients have been told so much that *condition* is true."""

    async def ask() -> bool:
        return condition()

    await wait_until(ask)


async def assert_promises(seen: Seen, database_url: str) -> None:
    """Assert what holds whatever the fault was."""
    # A busy machine makes everything slower, also what needs no database.
    slack = SLOWER * seen.lag
    print(seen.slowest, seen.recovery, slack)  # noqa: T201  (for "pytest -n 0 -s")
    assert seen.slowest < REQUEST_TIMEOUT + GRACE + slack
    assert seen.statuses <= {200, 503}
    assert seen.recovery < RECOVERY + slack
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT description, count(*) AS times FROM acme.company_data GROUP BY description")
    await connection.close()
    times = {row["description"]: row["times"] for row in rows}
    assert set(times.values()) == {1}
    assert {stamp for stamp, added in seen.sent.items() if added} <= set(times)


async def test_black_hole_ends_no_promise(database_url: str, tmp_path: Path) -> None:
    """Nothing is passed on until the clients have been told so, and the connections of then stay dead for ever."""
    async with TcpProxy(database_url) as proxy, serving(proxy.url, tmp_path) as server:

        async def swallow(seen: Seen) -> None:
            proxy.open_black_hole()
            await wait_for(seen.hears_refusal)
            proxy.close_black_hole()

        seen = await load_during(server, swallow)

    await assert_promises(seen, database_url)
    assert 503 in seen.statuses


async def test_killed_backends_end_no_promise(database_url: str, tmp_path: Path) -> None:
    """Somebody ends one backend after the other."""
    async with serving(database_url, tmp_path) as server:
        killer = await asyncpg.connect(database_url)

        async def kill(seen: Seen) -> None:
            for _ in range(60):
                before = len(seen.sent)
                await killer.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'quart_tenants'"
                    " AND datname = current_database() ORDER BY random() LIMIT 1"
                )
                await wait_for(functools.partial(seen.goes_on, before))

        seen = await load_during(server, kill)
        await killer.close()
        log = server.log.read_text()

    await assert_promises(seen, database_url)
    assert "count begins anew" in log


async def test_restarted_database_ends_no_promise(tmp_path: Path) -> None:
    """The database goes away, and comes back."""
    postgres = EmbeddedPostgres(tmp_path / "postgres", options=FAST_AND_FORGETFUL)
    await postgres.start()
    try:
        await fill_template(postgres.url)
        async with serving(postgres.url, tmp_path) as server:

            async def restart(seen: Seen) -> None:
                await postgres.stop()
                await wait_for(seen.hears_refusal)
                await postgres.start()

            seen = await load_during(server, restart)
        await assert_promises(seen, postgres.url)
    finally:
        await postgres.stop()


def list_processes(postgres: EmbeddedPostgres) -> list[int]:
    """Return the server's process and all of its children."""
    assert postgres._server is not None
    parent = postgres._server.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [parent, *map(int, children)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux lists the children of a process there")
async def test_stopped_database_ends_no_promise(tmp_path: Path) -> None:
    """All of the server's processes stand still until the clients have been told so, and then go on."""
    postgres = EmbeddedPostgres(tmp_path / "postgres", options=FAST_AND_FORGETFUL)
    await postgres.start()
    try:
        await fill_template(postgres.url)
        async with serving(postgres.url, tmp_path) as server:

            async def stand_still(seen: Seen) -> None:
                processes = list_processes(postgres)
                for pid in processes:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                await wait_for(seen.hears_refusal)
                for pid in processes:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)

            seen = await load_during(server, stand_still)
        await assert_promises(seen, postgres.url)
        assert 503 in seen.statuses
    finally:
        await postgres.stop()


async def test_killed_database_ends_no_promise(tmp_path: Path) -> None:
    """The server is killed by SIGKILL, and another one recovers from its log."""
    # What was answered must be there after the crash.
    postgres = EmbeddedPostgres(tmp_path / "postgres", options={"max_connections": "200"})
    await postgres.start()
    try:
        await fill_template(postgres.url)
        async with serving(postgres.url, tmp_path) as server:

            async def kill(seen: Seen) -> None:
                assert postgres._server is not None
                postgres._server.kill()
                postgres._server.wait()
                await wait_for(seen.hears_refusal)
                await postgres.start()

            seen = await load_during(server, kill)
        await assert_promises(seen, postgres.url)
    finally:
        await postgres.stop()
