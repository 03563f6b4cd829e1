"""Start a contender as its users would, and end it."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.load.cluster import Server
from benchmarks.load.contenders import PEERS_FOLDER, Contender
from benchmarks.load.environments import make_environment
from quart_tenants.resources import get_resource_path

SECRET_KEY = "only-for-the-benchmark-0123456789"  # noqa: S105
_START_TIMEOUT = 60.0
_POLL_INTERVAL = 0.01


class Probe(NamedTuple):
    """A question, and the status of the answer from a server that is up."""

    host: str
    path: str
    status: int


def make_environments(contenders: Sequence[Contender], folder: Path) -> dict[str, Path]:
    """Make each peer's environment; return where their programs are."""
    return {
        contender.name: make_environment(folder, PEERS_FOLDER / contender.name / "requirements.txt")
        for contender in contenders
        if not contender.is_ours
    }


async def prepare_database(contender: Contender, server: Server, programs: Path) -> None:
    """Run what makes the peer's own tables, if it has any."""
    home = PEERS_FOLDER / contender.name
    if (home / "prepare.py").exists():
        process = await asyncio.create_subprocess_exec(
            programs / "python", "prepare.py", cwd=home, env=_get_environment(server.url(contender.database))
        )
        if await process.wait():
            raise RuntimeError(f"the tables of {contender.name} could not be made")


@dataclass
class Running:
    """A server that is up.

    Attributes:
        contender: Who.
        pid: Of its first process.
        port: On 127.0.0.1.
        started_in: Seconds until it gave the answer that was waited for.
    """

    contender: Contender
    pid: int
    port: int
    started_in: float


@asynccontextmanager
async def serving(
    contender: Contender, url: str, folder: Path, programs: Path | None, *, workers: int, probe: Probe
) -> AsyncIterator[Running]:
    """Run *contender* on the database at *url*, until the block ends.

    Args:
        contender: Who.
        url: Of the database.
        folder: For its log.
        programs: Of its environment, if it is a peer.
        workers: Processes.
        probe: What it must answer to be up.
    """
    port = _find_free_port()
    command = [part.format(port=port, workers=workers) for part in contender.command]
    environment = _get_environment(url)
    home = folder
    if programs is not None:
        command[0] = str(programs / command[0])
        home = PEERS_FOLDER / contender.name
    else:
        # Ours as it is, but for the number of workers.
        text = get_resource_path("hypercorn.toml").read_text(encoding="utf-8")
        config = folder / f"{contender.name}.toml"
        config.write_text(re.sub(r"(?m)^workers = \d+$", f"workers = {workers}", text))
        command += ["--config", str(config), "--port", str(port)]
    log = folder / f"{contender.name}.log"
    began = time.monotonic()
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=home, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        try:
            await _wait_until_up(process, port, probe)
        except RuntimeError as error:
            raise RuntimeError(f"{contender.name}: {error}; it said:\n{log.read_text()[-3000:]}") from None
        yield Running(contender, process.pid, port, time.monotonic() - began)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            # Its own session: nobody else is in that group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _get_environment(url: str) -> dict[str, str]:
    kept = {
        name: text for name, text in os.environ.items() if not name.startswith(("QUART_", "PG", "PYTHON", "TENANCY_"))
    }
    return kept | {
        "DATABASE_URL": url,
        "SECRET_KEY": SECRET_KEY,
        "QUART_TENANTS_DATABASE_URL": url,
        "QUART_SECRET_KEY": SECRET_KEY,
    }


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _wait_until_up(process: asyncio.subprocess.Process, port: int, probe: Probe) -> None:
    request = f"GET {probe.path} HTTP/1.1\r\nHost: {probe.host}\r\nConnection: close\r\n\r\n"
    status: int | str = "nothing"
    try:
        async with asyncio.timeout(_START_TIMEOUT):
            while status != probe.status:
                if process.returncode is not None:
                    raise RuntimeError(f"ended with {process.returncode}")
                with contextlib.suppress(OSError, IndexError):
                    status, _ = await ask(port, request)
                await asyncio.sleep(_POLL_INTERVAL)
    except TimeoutError:
        raise RuntimeError(f"answers {status} instead of {probe.status}") from None


async def ask(port: int, request: str) -> tuple[int, str]:
    """Return the status and the head of the answer to a request that closes its connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request.encode())
        answer = await reader.read()
    finally:
        writer.close()
    head = answer.partition(b"\r\n\r\n")[0].decode()
    return int(head.split()[1]), head
