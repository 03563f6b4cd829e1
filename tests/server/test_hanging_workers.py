"""A worker whose event loop stands still is killed and replaced, and no other one is."""

import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.server.notes_app import NOTES, serving, write_notes_app
from tests.server.test_supervision import find_workers
from tests.support.patience import wait_in_thread_until
from tests.support.processes import SECRET_KEY, make_environment, run_warm, run_warm_program, wait_for_answer

pytestmark = pytest.mark.slow

PATIENCE = 2.0  # seconds

# The first life of the worker is what a test says. The second one ends the supervisor.
LIVES = """
import os, pathlib, signal, sys, time
from quart_tenants.server import supervisor

supervisor.KILL_MARGIN = 0.1
lives = pathlib.Path(sys.argv[1])

def serve(link):
    if lives.exists():
        link.say_ready()
        os.kill(os.getppid(), signal.SIGTERM)
        os.read(link.lifeline, 1)
        return 0
    lives.write_text(str(os.getpid()))
    %s

sys.exit(supervisor.Supervisor(lambda: supervisor.Plan(1, serve, 60.0, 5.0)).run())
"""
BLOCKED = "link.say_ready(0.2); time.sleep(600)"
STOPPED = "link.say_ready(0.2); os.kill(os.getpid(), signal.SIGSTOP)"
STARTING = "time.sleep(0.5); os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
ENDING = """link.say_ready(1.0); link.say_ending(); time.sleep(2)
    return 0"""
UNWATCHED = """link.say_ready(0.0); time.sleep(0.5)
    return 0"""


def live(folder: Path, first_life: str) -> str:
    """Run the supervisor until its end; return what it writes on stderr."""
    script = folder / "script.py"
    script.write_text(LIVES % first_life)
    return run_warm(script, folder / "lives", env=make_environment()).stderr


@pytest.mark.parametrize(("first_life", "killer"), [(BLOCKED, "SIGABRT"), (STOPPED, "SIGKILL")])
def test_worker_that_hangs_is_replaced(tmp_path: Path, first_life: str, killer: str) -> None:
    """One line says of what the worker died, and why; another worker serves in its place."""
    log = live(tmp_path, first_life)

    pid = (tmp_path / "lives").read_text()
    assert f"worker {pid} was killed by {killer}: it hung: something has held up its event loop for 0.2 s" in log
    assert log.count("its replacement starts") == 1
    assert log.count("its event loop") == 2  # Once more in the last line, about the crashes.


def test_log_shows_where_a_worker_hung(tmp_path: Path) -> None:
    """A worker that is held up by Python writes the lines that it is in before it dies."""
    log = live(tmp_path, BLOCKED)

    assert "Fatal Python error: Aborted" in log
    assert "in serve" in log


@pytest.mark.parametrize("first_life", [STARTING, ENDING, UNWATCHED])
def test_silence_of_others_means_nothing(tmp_path: Path, first_life: str) -> None:
    """A worker that starts, ends, or is not watched may be silent for as long as it likes."""
    log = live(tmp_path, first_life)

    assert "it hung" not in log
    assert "SIGABRT" not in log


BLOCKING_ROUTE = """
    @app.get("/block", host=tenants.host)
    async def block():
        import time
        time.sleep(600)

    return app
"""

# The worker says that it is alive all the time, and writes so into a file.
BEATING = """
import os, pathlib, signal, sys, time
from quart_tenants.server import supervisor

%s
beats = pathlib.Path(sys.argv[1])

def serve(link):
    link.say_ready(float(sys.argv[2]))
    while True:
        link.say_alive()
        with beats.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(0.02)

sys.exit(supervisor.Supervisor(lambda: supervisor.Plan(1, serve, 60.0, 0.1)).run())
"""


@pytest.mark.parametrize(
    ("change", "killed"),
    [
        ("", False),
        # Control: a supervisor that holds the whole time against its workers kills one that could not run. On a busy
        # machine it kills the next one, too.
        ("supervisor.Supervisor._count_silence_anew = lambda *_: None", True),
    ],
)
def test_time_in_which_nobody_ran_does_not_count(tmp_path: Path, change: str, killed: bool) -> None:
    """If the supervisor was stopped together with its workers, no worker is killed for that when they go on."""
    beats, script = tmp_path / "beats", tmp_path / "script.py"
    script.write_text(BEATING % change)

    def count() -> int:
        return len(beats.read_text().splitlines()) if beats.exists() else 0

    with run_warm_program(beats, str(PATIENCE), program=script, log=tmp_path / "log") as supervisor:
        wait_in_thread_until(lambda: count() > 10)
        worker = int(beats.read_text().split()[0])
        # The supervisor is the first that goes on: it must not judge before the worker could say anything.
        for pid in (worker, supervisor.pid):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5 * PATIENCE)
        os.kill(supervisor.pid, signal.SIGCONT)
        seen = count()
        if not killed:
            os.kill(worker, signal.SIGCONT)
        wait_in_thread_until(lambda: count() > seen + 50)

    assert (len(set(beats.read_text().split())) > 1) is killed


async def test_blocked_handler_costs_one_worker(tmp_path: Path, empty_database_url: str) -> None:
    """An app whose handler blocks the event loop is served again after TENANTS_WORKER_TIMEOUT."""
    await write_notes_app(tmp_path, empty_database_url)
    (tmp_path / "notes.py").write_text(NOTES.replace("\n    return app\n", BLOCKING_ROUTE, 1))
    (tmp_path / "hypercorn.toml").write_text('bind = "127.0.0.1:0"\nworkers = 1\ngraceful_timeout = 0\n')
    environment = {
        "QUART_TENANTS_DATABASE_URL": empty_database_url,
        "QUART_SECRET_KEY": SECRET_KEY,
        "QUART_TENANTS_WORKER_TIMEOUT": str(PATIENCE),
    }
    with serving(tmp_path, environment) as server:
        wait_for_answer(server.port)
        first = find_workers(server.process.pid)
        async with server.tenant("acme") as client:
            with pytest.raises(httpx.TransportError):
                await client.get("/block")
        wait_for_answer(server.port)
        second = find_workers(server.process.pid)

    assert first.isdisjoint(second)
    assert "it hung" in server.log.read_text()
    assert "in block" in server.log.read_text()
