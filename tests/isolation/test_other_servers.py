"""Promise: under Uvicorn and under plain Hypercorn tenants are kept apart as they are under our own server."""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
import httpx
import pytest

from quart_tenants.testing.databases import new_database_between_loops
from tests.isolation.small_app import MOST_BYTES
from tests.support.processes import SECRET_KEY, make_environment
from tests.support.raw_requests import Wire

pytestmark = pytest.mark.slow

APP = "tests.isolation.small_app:create_app"
PROGRAMS = {
    "uvicorn": ["uvicorn", "--factory", APP, "--port", "0"],
    "hypercorn": ["hypercorn", "--workers", "0", "--bind", "127.0.0.1:0", f"{APP}()"],
}
PATIENCE = 60.0  # seconds
SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(120)%' AND pid <> pg_backend_pid()"


class Workers(NamedTuple):
    """Two processes that serve one database, as two workers do.

    Attributes:
        first: Its port. A request may take as long as it likes; the pool has one connection.
        second: Its port. A request may take three seconds.
        database_url: The URL of the database.
    """

    first: int
    second: int
    database_url: str


@contextlib.contextmanager
def run(program: list[str], log: Path, **environment: str) -> Iterator[int]:
    """Run *program*, which serves on any free port; yield the port."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *program],
            stdout=output,
            stderr=output,
            env=make_environment(**environment),
            cwd=Path(__file__).parents[2],
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while (told := re.search(r"unning on http://127\.0\.0\.1:(\d+)", log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{program[0]} does not serve: {log.read_text()}")
            time.sleep(0.02)
        yield int(told[1])
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


@pytest.fixture(scope="module", params=PROGRAMS)
def workers(
    request: pytest.FixtureRequest, server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Workers]:
    """Two workers under a server that is not ours, for all tests that leave nothing behind."""
    folder = tmp_path_factory.mktemp("other servers")
    program = PROGRAMS[request.param]
    with new_database_between_loops(server_url, template) as url:
        settings = {"QUART_TENANTS_DATABASE_URL": url, "QUART_SECRET_KEY": SECRET_KEY}
        first = settings | {
            "QUART_TENANTS_REQUEST_TIMEOUT": "600",
            "QUART_TENANTS_POOL_MAX_SIZE": "1",
            "QUART_TENANTS_ACQUIRE_TIMEOUT": "0.5",
        }
        second = settings | {"QUART_TENANTS_REQUEST_TIMEOUT": "3"}
        with run(program, folder / "first", **first) as one, run(program, folder / "second", **second) as two:
            yield Workers(one, two, url)


@asynccontextmanager
async def visiting(port: int, host: str) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client that names *host*."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Host": f"{host}:{port}"},
        timeout=PATIENCE,
        verify=False,  # noqa: S501  (http only, and reading the certificates takes longer than the test)
    ) as client:
        yield client


async def wait_until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Return when *is_so* says so."""
    async with asyncio.timeout(PATIENCE):
        while not await is_so():
            await asyncio.sleep(0.05)


async def show_user(port: int, host: str, cookie: str) -> tuple[int, object]:
    """Return the status of /me and who is logged in there, or the code of the problem."""
    async with visiting(port, host) as client:
        answer = await client.get("/me", headers={"Cookie": cookie})
        told = answer.json()
        return answer.status_code, told["user"] if answer.is_success else told["code"]


async def log_in(port: int, host: str, user: str) -> str:
    """Return the cookie of a new session."""
    async with visiting(port, host) as client:
        answer = await client.post(f"/login/{user}")
        assert answer.status_code == 200
        return answer.headers["Set-Cookie"].partition(";")[0]


async def test_tenants_see_their_own_rows(workers: Workers) -> None:
    """What one tenant writes another one does not read, from a connection that both had."""
    found = {}
    for host in ("acme", "globex"):
        async with visiting(workers.first, f"{host}.localhost") as client:
            assert (await client.post("/rows", content=f"of {host}")).status_code == 200
    for host in ("acme", "globex"):
        async with visiting(workers.first, f"{host}.localhost") as client:
            found[host] = (await client.get("/rows")).json()

    assert found == {host: {"tenant": host, "rows": [f"of {host}"]} for host in ("acme", "globex")}


async def test_session_is_its_tenants_alone(workers: Workers) -> None:
    """A login is known to both workers, and refused at another tenant."""
    cookie = await log_in(workers.first, "acme.localhost", "ann")

    assert await show_user(workers.second, "acme.localhost", cookie) == (200, "ann")
    assert await show_user(workers.first, "globex.localhost", cookie) == (400, "wrong_tenant")


async def test_logout_ends_a_session_everywhere(workers: Workers) -> None:
    """The other worker refuses the cookie soon; the session of somebody else goes on."""
    left, kept = [await log_in(workers.first, "acme.localhost", user) for user in ("ann", "bob")]
    async with visiting(workers.first, "acme.localhost") as client:
        assert (await client.post("/logout", headers={"Cookie": left})).status_code == 200

    async def is_over() -> bool:
        return await show_user(workers.second, "acme.localhost", left) == (200, None)

    assert await show_user(workers.first, "acme.localhost", left) == (200, None)
    await wait_until(is_over)
    assert await show_user(workers.second, "acme.localhost", kept) == (200, "bob")


async def test_client_that_leaves_gives_its_connection_back(workers: Workers) -> None:
    """Its block rolls back, and the only connection of the pool serves the next visitor; until then it does not."""
    watching = await asyncpg.connect(workers.database_url)
    wire = await Wire.open(workers.first)
    holding = asyncio.create_task(wire.ask(f"company1.localhost:{workers.first}", "/hold", method="POST"))

    async def is_held() -> bool:
        return bool(await watching.fetchval(SLEEPING) == 1)

    async def is_served() -> bool:
        return (await client.get("/rows")).status_code == 200

    async with visiting(workers.first, "company1.localhost") as client:
        await wait_until(is_held)
        meanwhile = await client.get("/rows")
        holding.cancel()
        wire.close()
        await wait_until(is_served)
        rows = (await client.get("/rows")).json()["rows"]

    assert (meanwhile.status_code, meanwhile.json()["code"]) == (503, "pool_exhausted")
    assert "of somebody who left" not in rows
    assert await watching.fetchval(SLEEPING) == 0
    await watching.close()


async def test_late_request_is_ended(workers: Workers) -> None:
    """What takes longer than the limit is answered 503."""
    async with visiting(workers.second, "acme.localhost") as client:
        answer = await client.get("/wait")

    assert (answer.status_code, answer.json()["code"]) == (503, "request_timeout")
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_late_block_is_rolled_back(workers: Workers) -> None:
    """A block that runs into the limit leaves nothing behind, neither rows nor a statement that goes on."""
    async with visiting(workers.second, "company2.localhost") as client:
        late = await client.post("/hold")
        rows = (await client.get("/rows")).json()["rows"]

    watching = await asyncpg.connect(workers.database_url)
    assert late.status_code == 503
    assert "of somebody who left" not in rows
    assert await watching.fetchval(SLEEPING) == 0
    await watching.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://acme.localhost:{port}"}, 200),
        ({"Origin": "http://globex.localhost:{port}"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
async def test_requests_from_elsewhere_are_refused(workers: Workers, headers: dict[str, str], status: int) -> None:
    """A page of another tenant cannot post here."""
    sent = {name: value.replace("{port}", str(workers.first)) for name, value in headers.items()}
    async with visiting(workers.first, "acme.localhost") as client:
        answer = await client.post("/login/ann", headers=sent)

    assert answer.status_code == status


async def test_unknown_hosts_are_told_nothing(workers: Workers) -> None:
    """A host that is nobody's is 404 with one body, a label that is no tenant 400, and a probe answers everywhere."""
    bodies = set()
    for host in ("evil.org", "a.b.localhost", "127.0.0.1", "a..b"):
        async with visiting(workers.first, host) as client:
            for path in ("/rows", "/login/ann", "/none"):
                answer = await client.get(path)
                bodies.add((answer.status_code, answer.text))
            assert (await client.get("/up")).json() == {"up": True}
    async with visiting(workers.first, "nobody.localhost") as client:
        unknown = await client.get("/rows")

    assert [status for status, _ in bodies] == [404]
    assert (unknown.status_code, unknown.json()["code"]) == (400, "unknown_tenant")


async def test_middleware_may_raise_while_the_app_receives(workers: Workers) -> None:
    """A published limit for bodies answers 413 itself, at once, and a smaller body is served."""
    async with visiting(workers.first, "company2.localhost") as client:
        large = await client.post("/rows", content=b"x" * (MOST_BYTES + 1))
        small = await client.post("/rows", content=b"x" * MOST_BYTES)

    assert (large.status_code, small.status_code) == (413, 200)
