"""Start the program as its users do: as a process of its own."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.patience import DEADLINE, wait_in_thread_until
from tests.support.warm_programs import WarmProgram

PROGRAM = Path(sys.executable).with_name("quart-tenants")
SECRET_KEY = "only-for-the-tests-0123456789"
QUICK_PASSWORDS = {"QUART_TENANTS_PASSWORD_SCHEMES": "pbkdf2_sha256"}
"""For what does not depend on the scheme: a start and a login cost 8 ms of CPU in place of 42 and 65."""

Process = subprocess.Popen[str] | WarmProgram
"""A program that runs, started by Python's own means or by a warm start."""


@dataclass
class Server:
    """A running Hypercorn.

    Attributes:
        process: `quart-tenants serve`.
        port: On 127.0.0.1.
        log: What it writes on stderr.
    """

    process: Process
    port: int
    log: Path

    def client(self, host: str, **options: object) -> httpx.AsyncClient:
        """Return a client that says *host* in its Host header. Names need not resolve."""
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Host": host.replace("{port}", str(self.port))},
            timeout=DEADLINE,
            verify=False,  # noqa: S501  (http only, and reading the certificates takes longer than the test)
            **options,  # type: ignore[arg-type]
        )

    def tenant(self, slug: str) -> httpx.AsyncClient:
        """Return a client at the tenant's address on localhost."""
        return self.client(f"{slug}.localhost:{{port}}")

    @asynccontextmanager
    async def member(self, number: int = 1) -> AsyncIterator[httpx.AsyncClient]:
        """Yield a client that is logged in to company1 as user_1, or to company2 as user_2."""
        async with self.tenant(f"company{number}") as client:
            answer = await client.post("/login", data={"uname": f"user_{number}", "passwd": "foo"})
            answer.raise_for_status()
            yield client


def find_metrics_port(server: Server) -> int:
    """Return the port that the log names."""
    match = re.search(r"metrics at http://127\.0\.0\.1:(\d+)/metrics", server.log.read_text())
    assert match is not None
    return int(match[1])


def make_environment(**settings: str) -> dict[str, str]:
    """Return this process's environment with *settings*, and without anybody else's."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("QUART_", "PG"))}
    return kept | settings


@contextmanager
def run_program(
    *command: str | Path, log: Path, cwd: str | Path | None = None, **environment: str
) -> Iterator["subprocess.Popen[str]"]:
    """Start `quart-tenants` with *command*, and end it as Ctrl-C does. What it writes lies in *log* and beside it."""
    with log.open("w") as stderr, _get_output(log).open("w") as stdout:
        process = subprocess.Popen(
            [PROGRAM, *command], stdout=stdout, stderr=stderr, text=True, env=make_environment(**environment), cwd=cwd
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE)


@contextmanager
def run_warm_program(
    *command: str | Path, log: Path, cwd: str | Path | None = None, program: str | Path = PROGRAM, **environment: str
) -> Iterator[WarmProgram]:
    """Do as `run_program` does, by a warm start, perhaps with another *program* in Python."""
    with Path(os.devnull).open() as stdin, log.open("w") as stderr, _get_output(log).open("w") as stdout:
        files = (stdin.fileno(), stdout.fileno(), stderr.fileno())
        process = WarmProgram([program, *command], files=files, env=make_environment(**environment), cwd=cwd)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE)


def run_warm(
    *command: str | Path, env: dict[str, str], stdin: str = "", cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the script *command* to its end by a warm start, without a terminal, as `subprocess.run` would."""
    with tempfile.TemporaryFile() as its_input, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        its_input.write(stdin.encode())
        its_input.seek(0)
        process = WarmProgram(command, files=(its_input.fileno(), out.fileno(), err.fileno()), env=env, cwd=cwd)
        try:
            status = process.wait(DEADLINE)
        finally:
            process.kill()
            process.wait(DEADLINE)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, status, out.read().decode(), err.read().decode())


@contextmanager
def run_server(database_url: str, folder: Path, *options: str, **settings: str) -> Iterator[Server]:
    """Start `quart-tenants serve` on any free port, and end it afterwards.

    Args:
        database_url: Has a registry.
        folder: For what it writes.
        options: Of the command; by default those that make it serve in one process, which starts fastest.
        settings: More of them, in the environment.
    """
    if not options:
        config = folder / "hypercorn.toml"
        config.write_text('bind = "127.0.0.1:0"\nworkers = 0\nworker_class = "uvloop"\n')
        options = ("--config", str(config))
    environment = {
        "QUART_TENANTS_DATABASE_URL": database_url,
        "QUART_SECRET_KEY": SECRET_KEY,
        # Many tests log in wrongly from one address; those about that set a limit.
        "QUART_TENANTS_LOGIN_ATTEMPTS": "1000",
        "QUART_TENANTS_LOGIN_ATTEMPTS_PER_ADDRESS": "100000",
        # A busy machine may take long.
        "QUART_TENANTS_CONNECT_TIMEOUT": "60",
        "QUART_TENANTS_ACQUIRE_TIMEOUT": "60",
        "QUART_TENANTS_REQUEST_TIMEOUT": "120",
    } | settings
    log = folder / "log"
    with run_warm_program("serve", *options, log=log, **environment) as process:
        port = int(wait_for_line(process, "serving on", log).rpartition(":")[2])
        wait_for_answer(port)
        yield Server(process, port, log)


@contextmanager
def run_application(application: str, database_url: str, folder: Path, **settings: str) -> Iterator[Server]:
    """Serve *application*, such as `tests.app.counting_app:create_app()`, on Hypercorn, and end it afterwards."""
    log = folder / "log"
    environment = {"QUART_TENANTS_DATABASE_URL": database_url, "QUART_SECRET_KEY": SECRET_KEY} | settings
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("w") as stderr:
        number = listener.fileno()
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "hypercorn", "--workers", "0", "--bind", f"fd://{number}", application],
            stdout=stderr,
            stderr=stderr,
            text=True,
            env=make_environment(**environment),
            pass_fds=[number],
            cwd=Path(__file__).parents[2],
        )
    server = Server(process, port, log)
    try:
        wait_for_answer(port, server=server)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE)


def wait_for_answer(port: int, path: str = "/healthz", *, server: Server | None = None) -> None:
    """Return when something answers on *port*. If *server* ends before that, nobody waits longer."""

    def answers() -> bool:
        # A client of httpx reads the certificates each time, which takes longer than most of what is waited for.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        try:
            connection.request("GET", path)
            connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            if server is not None and server.process.poll() is not None:
                raise RuntimeError(f"the process has ended; its log: {server.log.read_text()}") from error
            return False
        finally:
            connection.close()
        return True

    wait_in_thread_until(answers)


def wait_for_line(process: Process, start: str, log: Path) -> str:
    """Return the line on stdout that begins with *start*, as soon as it is there."""

    def find_line() -> str | None:
        # Asked before the lines are read: the last of them may be what it says before it ends.
        ended = process.poll() is not None
        for line in _get_output(log).read_text().splitlines(keepends=True):
            if line.startswith(start) and line.endswith("\n"):
                return line.strip()
        if ended:
            raise RuntimeError(f"the process did not say {start!r}; its log: {log.read_text()}")
        return None

    return wait_in_thread_until(find_line)


def _get_output(log: Path) -> Path:
    return log.with_name(f"{log.name}.out")
