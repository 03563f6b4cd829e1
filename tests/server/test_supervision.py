"""Workers that die, are asked to end, or lose their parent."""

import asyncio
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.support.patience import DEADLINE, wait_in_thread_until, wait_until
from tests.support.processes import (
    PROGRAM,
    QUICK_PASSWORDS,
    SECRET_KEY,
    Server,
    make_environment,
    run_server,
    run_warm,
    wait_for_answer,
)

pytestmark = pytest.mark.slow

CONFIG = 'bind = "127.0.0.1:0"\nworkers = 2\nworker_class = "uvloop"\ngraceful_timeout = 60\n'


@contextmanager
def run_workers(database_url: str, folder: Path, text: str = CONFIG) -> Iterator[Server]:
    """Run `quart-tenants serve` with two workers."""
    config = folder / "hypercorn.toml"
    config.write_text(text)
    with run_server(database_url, folder, "--config", str(config), **QUICK_PASSWORDS) as server:
        yield server


def find_workers(parent: int) -> set[int]:
    """Return the living children of *parent*."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return {int(pid) for pid, above, state in rows if int(above) == parent and not state.startswith("Z")}


def is_alive(pid: int) -> bool:
    """Say whether *pid* runs; a process that only waits to be counted does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(found.strip()) and not found.startswith("Z")


async def wait_until_refused(port: int) -> None:
    """Return when nobody listens on *port* any more."""

    async def is_refused() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return True
        writer.close()
        return False

    await wait_until(is_refused)


@asynccontextmanager
async def slow_request(server: Server, database_url: str) -> AsyncIterator["asyncio.Task[httpx.Response]"]:
    """Yield a request that is being served, and lasts until the block is left."""
    blocker = await asyncpg.connect(database_url)
    try:
        async with server.member() as client:
            lock = blocker.transaction()
            await lock.start()
            await blocker.execute("LOCK TABLE company1.company_data")
            request = asyncio.create_task(client.get("/data"))

            async def find_waiter() -> bool:
                assert not request.done()
                return bool(await blocker.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

            await wait_until(find_waiter)
            yield request
            await lock.rollback()
            await asyncio.wait([request])
    finally:
        await blocker.close()


async def test_killed_worker_is_replaced(database_url: str, tmp_path: Path) -> None:
    """After kill -9 of every worker others answer on the same port; the end is status 1, and says why."""
    with run_workers(database_url, tmp_path) as server:
        first = find_workers(server.process.pid)
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        wait_for_answer(server.port)

        def find_others() -> set[int] | None:
            assert server.process.poll() is None
            others = find_workers(server.process.pid) - first
            return others if len(others) == 2 else None

        wait_in_thread_until(find_others)
        async with server.member() as client:
            answer = await client.get("/data")
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(DEADLINE)

    log = (tmp_path / "log").read_text()
    assert len(first) == 2
    assert answer.status_code == 200
    assert status == 1
    for pid in first:
        assert f"worker {pid} was killed by SIGKILL" in log
    assert "status 1: 2 worker(s) crashed" in log


async def test_sigterm_waits_for_what_is_in_flight(database_url: str, tmp_path: Path) -> None:
    """A request that is being served at SIGTERM is answered, nobody new is let in, and the status is 0."""
    with run_workers(database_url, tmp_path) as server:
        async with slow_request(server, database_url) as request:
            server.process.send_signal(signal.SIGTERM)
            await wait_until_refused(server.port)
            in_flight = not request.done()
        status = server.process.wait(DEADLINE)

    assert in_flight
    assert request.result().status_code == 200
    assert status == 0


async def test_sigterm_does_not_wait_for_ever(database_url: str, tmp_path: Path) -> None:
    """What is still in flight after the graceful timeout is cut off, and that is no crash: the status is 0."""
    with run_workers(
        database_url, tmp_path, CONFIG.replace("graceful_timeout = 60", "graceful_timeout = 0.5")
    ) as server:
        async with slow_request(server, database_url) as request:
            server.process.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(server.process.wait, DEADLINE)
            await asyncio.wait([request])

    assert isinstance(request.exception(), httpx.TransportError)
    assert status == 0


async def test_hypercorn_alone_ends_with_a_worker(database_url: str, tmp_path: Path) -> None:
    """Without our parent the whole server ends when one worker is killed: the kill bites."""
    config = tmp_path / "hypercorn.toml"
    config.write_text(CONFIG.replace("127.0.0.1:0", f"unix:{tmp_path}/socket"))
    environment = make_environment(QUART_TENANTS_DATABASE_URL=database_url, QUART_SECRET_KEY=SECRET_KEY)
    program = PROGRAM.with_name("hypercorn")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "-c", config, "quart_tenants.app:create_app()"], stderr=log, cwd=tmp_path, env=environment
        )
    try:
        wait_in_thread_until(lambda: (tmp_path / "log").read_text().count("Running on") == 2)
        # The first is Python's, which looks after what the workers share.
        os.kill(max(find_workers(process.pid)), signal.SIGKILL)
        # Its status is 0 or not, depending on who is faster.
        process.wait(DEADLINE)

        assert find_workers(process.pid) == set()
    finally:
        process.kill()


async def test_hypercorn_alone_cuts_off_requests_at_sigterm(database_url: str, tmp_path: Path) -> None:
    """With two workers Hypercorn's parent kills the busy one when the idle one has ended, whatever the time limit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = tmp_path / "hypercorn.toml"
    config.write_text(CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
    environment = make_environment(QUART_TENANTS_DATABASE_URL=database_url, QUART_SECRET_KEY=SECRET_KEY)
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [PROGRAM.with_name("hypercorn"), "-c", config, "quart_tenants.app:create_app()"],
            stderr=stderr,
            cwd=tmp_path,
            env=environment,
            text=True,
        )
    try:
        wait_in_thread_until(lambda: log.read_text().count("Running on") == 2)
        async with slow_request(Server(process, port, log), database_url) as request:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait([request], timeout=DEADLINE)
    finally:
        process.kill()
        process.wait()

    assert isinstance(request.exception(), httpx.TransportError)


async def test_killed_parent_leaves_no_worker(database_url: str, tmp_path: Path) -> None:
    """After kill -9 of the parent each worker finishes what is in flight, and ends."""
    with run_workers(database_url, tmp_path) as server:
        workers = find_workers(server.process.pid)
        async with slow_request(server, database_url) as request:
            server.process.kill()
            await wait_until_refused(server.port)
        wait_in_thread_until(lambda: not any(is_alive(pid) for pid in workers))

    assert len(workers) == 2
    assert request.result().status_code == 200


def test_crash_loop_is_slowed_but_replaced_within_two_seconds(tmp_path: Path) -> None:
    """Each pause before a replacement is longer than the last, up to half a second: the rest is for starting."""
    script = """
import os, pathlib, signal, sys
from quart_tenants.server.supervisor import Plan, Supervisor

deaths = pathlib.Path(sys.argv[1])
heard, tell = os.pipe()

def crash(link):
    link.say_ready()
    # One that dies before the supervisor has heard that it is ready was never started.
    os.read(heard, 1)
    with deaths.open("a") as file:
        file.write("x")
    if len(deaths.read_text()) > 6:
        os.kill(os.getppid(), signal.SIGTERM)
        os.read(link.lifeline, 1)
        return 0
    return 3

sys.exit(Supervisor(lambda: Plan(1, crash, 60.0, 5.0), lambda: os.write(tell, b"x" * 7)).run())
"""

    (tmp_path / "script.py").write_text(script)
    done = run_warm(tmp_path / "script.py", tmp_path / "deaths", env=make_environment())

    pauses = [
        float(text) for text in re.findall(r"ended with status 3; its replacement starts in ([0-9.]+) s", done.stderr)
    ]
    assert done.returncode == 1
    assert pauses == sorted(pauses)
    assert len(pauses) == 6
    assert (pauses[0] < 0.1, pauses[-1]) == (True, 0.5)


def test_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """Beyond the graceful timeout a worker that hears nothing is killed, and the status is 1."""
    script = """
import os, signal, sys, time
from quart_tenants.server import supervisor

supervisor.KILL_MARGIN = 0.1

def hang(link):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)

sys.exit(supervisor.Supervisor(lambda: supervisor.Plan(1, hang, 60.0, 0.1)).run())
"""

    (tmp_path / "script.py").write_text(script)
    done = run_warm(tmp_path / "script.py", env=make_environment(), cwd=tmp_path)

    assert done.returncode == 1
    assert "was killed by SIGKILL" in done.stderr
