"""A listening socket that `serve` was given outlives it: over a restart no client is refused."""

import asyncio
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.patience import DEADLINE
from tests.support.processes import PROGRAM, SECRET_KEY, make_environment, run_warm, wait_for_answer, wait_for_line

pytestmark = pytest.mark.slow

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
# As systemd starts a service: the socket is number 3.
AS_SYSTEMD = "exec 3<&{descriptor}; exec {descriptor}<&-; exec '{program}' serve --config hypercorn.toml"


@contextmanager
def serving(folder: Path, database_url: str, listener: socket.socket) -> Iterator["subprocess.Popen[str]"]:
    """Run `serve` on *listener*, and end it by SIGTERM."""
    log = folder / "log"
    environment = make_environment(QUART_TENANTS_DATABASE_URL=database_url, QUART_SECRET_KEY=SECRET_KEY)
    command = AS_SYSTEMD.format(descriptor=listener.fileno(), program=PROGRAM)
    with log.open("w") as stderr, log.with_name("log.out").open("w") as stdout:
        process = subprocess.Popen(
            ["/bin/bash", "-c", command],
            cwd=folder,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            text=True,
            pass_fds=[listener.fileno()],
        )
    try:
        wait_for_line(process, "serving on", log)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0


async def test_restart_refuses_nobody(database_url: str, tmp_path: Path) -> None:
    """Clients that connect before, between and while two servers run are all answered; without the socket all fail."""
    (tmp_path / "hypercorn.toml").write_text('bind = ["fd://3"]\nworkers = 2\n')
    outcomes: list[bytes | OSError] = []
    ending = asyncio.Event()

    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        port = listener.getsockname()[1]

        async def visit() -> None:
            while not ending.is_set():
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(REQUEST)
                    outcomes.append((await reader.read()).partition(b"\r\n")[0])
                    writer.close()
                except OSError as error:
                    outcomes.append(error)

        def restart() -> int:
            with serving(tmp_path, database_url, listener):
                wait_for_answer(port)
            between = len(outcomes)
            with serving(tmp_path, database_url, listener):
                wait_for_answer(port)
                ending.set()
            return between

        # Before the first server.
        visitors = [asyncio.create_task(visit()) for _ in range(8)]
        await asyncio.sleep(0)
        between = await asyncio.to_thread(restart)
        await asyncio.wait_for(asyncio.gather(*visitors), DEADLINE)

    assert {outcome[:12] if isinstance(outcome, bytes) else outcome for outcome in outcomes} == {b"HTTP/1.1 200"}
    assert 0 < between < len(outcomes)
    # Control.
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize("bind", ["fd://3", "fd://x", "fd://1"])
def test_socket_that_nobody_gave_is_named(database_url: str, tmp_path: Path, bind: str) -> None:
    """A number that is no listening socket is one clear line, and nothing is served."""
    (tmp_path / "hypercorn.toml").write_text(f'bind = ["{bind}"]\n')

    environment = make_environment(QUART_TENANTS_DATABASE_URL=database_url, QUART_SECRET_KEY=SECRET_KEY)
    done = run_warm(PROGRAM, "serve", "--config", tmp_path / "hypercorn.toml", env=environment)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: bind is '{bind}'")
    assert "no listening socket" in done.stderr
    assert done.stderr.count("\n") == 1
