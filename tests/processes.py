"""Start the program as its users do: as a process of its own."""

import os
import select
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

PROGRAM = Path(sys.executable).with_name("quart-tenants")
SECRET_KEY = "only-for-the-tests-0123456789"
_DEADLINE = 30.0  # seconds


@dataclass
class Server:
    """A running Hypercorn.

    Attributes:
        process: `quart-tenants serve`.
        port: On 127.0.0.1.
        log: What it writes on stderr.
    """

    process: "subprocess.Popen[str]"
    port: int
    log: Path

    def client(self, host: str, **options: object) -> httpx.AsyncClient:
        """Return a client that says *host* in its Host header. Names need not resolve."""
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Host": host.replace("{port}", str(self.port))},
            timeout=_DEADLINE,
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


def make_environment(**settings: str) -> dict[str, str]:
    """Return this process's environment with *settings*, and without anybody else's."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("QUART_", "PG"))}
    return kept | settings


@contextmanager
def run_server(
    database_url: str, log: Path, *, command: tuple[str, ...] = ("serve", "--port", "0"), **settings: str
) -> Iterator[Server]:
    """Start `quart-tenants serve` on any free port, and end it afterwards."""
    environment = {"QUART_TENANTS_DATABASE_URL": database_url, "QUART_SECRET_KEY": SECRET_KEY} | settings
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [PROGRAM, *command],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=make_environment(**environment),
        )
    try:
        yield Server(process, _wait_until_up(process, log), log)
    finally:
        process.terminate()
        process.wait(_DEADLINE)
        if process.stdout is not None:
            process.stdout.close()


def write_server_config(path: Path, **lines: str) -> Path:
    """Write a Hypercorn configuration of one worker, with *lines* in place of or beside the usual ones."""
    settings = {"bind": '["127.0.0.1:0"]', "workers": "1", "worker_class": '"uvloop"'} | lines
    path.write_text("\n".join(f"{name} = {text}" for name, text in settings.items()))
    return path


def wait_for_answer(port: int, path: str = "/healthz") -> None:
    """Return when something answers on *port*."""
    deadline = time.monotonic() + _DEADLINE
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}{path}", timeout=_DEADLINE)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def read_line(process: "subprocess.Popen[str]", start: str, log: Path) -> str:
    """Return the next line on stdout that begins with *start*."""
    stdout = process.stdout
    if stdout is None:
        raise RuntimeError("the process was started without a pipe")
    deadline = time.monotonic() + _DEADLINE
    while select.select([stdout], [], [], max(0, deadline - time.monotonic()))[0]:
        line = stdout.readline()
        if line.startswith(start):
            return line
        if not line:
            break
    raise RuntimeError(f"the process did not say {start!r}; its log: {log.read_text()}")


def _wait_until_up(process: "subprocess.Popen[str]", log: Path) -> int:
    port = int(read_line(process, "serving on", log).rpartition(":")[2])
    wait_for_answer(port)
    return port
