"""Promise: at the end of a worker, or of all, each request that reaches an open connection is answered."""

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from quart_tenants.server.worker import _serve_accepted, _stop_accepting
from tests.server.notes_app import write_notes_app
from tests.server.test_supervision import find_workers
from tests.support.patience import DEADLINE, wait_until
from tests.support.processes import SECRET_KEY, Server, run_warm_program, wait_for_answer, wait_for_line

CLIENTS = 16
# What `serve` did before: it closed its sockets, whoever had connected to them.
NAIVE = """
from quart_tenants.server import worker
async def close(server):
    server.close()
    return []
worker._stop_accepting = close
"""
SERVE = "from quart_tenants.app.cli import main\nmain()\n"


async def _close(server: asyncio.Server) -> list[socket.socket]:
    server.close()
    return []


@pytest.mark.parametrize(("stop", "answered"), [(_stop_accepting, CLIENTS), (_close, 0)])
async def test_connections_that_wait_are_accepted_at_the_end(
    stop: Callable[[asyncio.Server], Awaitable[list[socket.socket]]], answered: int
) -> None:
    """Whoever is connected before the socket is closed is served; with a mere close, the control, nobody is."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    listener = socket.create_server(("127.0.0.1", 0), backlog=2 * CLIENTS)
    address = listener.getsockname()
    server = await asyncio.start_server(greet, sock=listener)
    clients = []
    for _ in range(CLIENTS):
        # Without a turn of the event loop in between, so the server does not know of it.
        client = socket.create_connection(address)
        client.sendall(b"hello\n")
        client.setblocking(False)
        clients.append(client)

    accepted = await stop(server)

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    await asyncio.gather(*(_serve_accepted(connection, greet, {}) for connection in accepted))
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE):
        heard = await asyncio.gather(*(loop.sock_recv(client, 100) for client in clients), return_exceptions=True)
    for client in clients:
        client.close()
    assert heard.count(b"hello\n") == answered
    assert sum(isinstance(answer, ConnectionResetError) for answer in heard) == CLIENTS - answered


@contextmanager
def serving(folder: Path, database_url: str, change: str = "") -> Iterator[Server]:
    """Serve the app `notes` by two workers, with a *change* to the program."""
    (folder / "hypercorn.toml").write_text('bind = "127.0.0.1:0"\nworkers = 2\ngraceful_timeout = 60\n')
    log = folder / "log"
    environment = {"QUART_TENANTS_DATABASE_URL": database_url, "QUART_SECRET_KEY": SECRET_KEY}
    (folder / "serve.py").write_text(change + SERVE)
    command = ("serve", "--app", "notes", "--config", "hypercorn.toml")
    with run_warm_program(*command, program=folder / "serve.py", log=log, cwd=folder, **environment) as process:
        port = int(wait_for_line(process, "serving on", log).rpartition(":")[2])
        wait_for_answer(port)
        yield Server(process, port, log)


class Clients:
    """Clients that send one request after the other, until nobody listens any more or they are told to end.

    Attributes:
        seen: How many requests were answered or lost, and how many answers said that they are the last ones.
        ending: Whether the clients are to end.
    """

    def __init__(self, port: int) -> None:
        self.seen: Counter[str] = Counter()
        self.ending = False
        self._port = port

    async def work(self, *, keep_alive: bool) -> None:
        """Send requests, each on the connection of the one before if that was not the last one there."""
        asks = "keep-alive" if keep_alive else "close"
        request = f"GET /healthz HTTP/1.1\r\nHost: acme.localhost\r\nConnection: {asks}\r\n\r\n".encode()
        while not self.ending:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except ConnectionError:
                # Refused, or reset before it was one.
                return
            try:
                is_last = False
                while not is_last and not self.ending:
                    writer.write(request)
                    head = await reader.readuntil(b"\r\n\r\n")
                    await reader.readexactly(len(b'{"status":"ok"}\n'))
                    self.seen["answered"] += 1
                    is_last = b"connection: close" in head.lower()
                self.seen["last"] += is_last
            except (OSError, asyncio.IncompleteReadError):
                self.seen["lost"] += 1
            finally:
                writer.close()

    async def until_more(self, number: int) -> None:
        """Return when so many more requests were answered."""
        goal = self.seen["answered"] + number

        async def is_there() -> bool:
            return self.seen["answered"] >= goal

        await wait_until(is_there)


async def end_under_load(folder: Path, url: str, change: str, *, keep_alive: bool) -> Counter[str]:
    """Send SIGTERM to a server that is asked by many clients; return what became of their requests."""
    with serving(folder, url, change) as server:
        clients = Clients(server.port)
        tasks = [asyncio.create_task(clients.work(keep_alive=keep_alive)) for _ in range(3 * CLIENTS)]
        await clients.until_more(200)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.gather(*tasks), DEADLINE)
    return clients.seen


@pytest.mark.slow
@pytest.mark.parametrize("keep_alive", [True, False])
async def test_end_of_serve_loses_no_request(tmp_path: Path, empty_database_url: str, keep_alive: bool) -> None:
    """At SIGTERM each request on an open connection is answered."""
    await write_notes_app(tmp_path, empty_database_url)

    seen = await end_under_load(tmp_path, empty_database_url, "", keep_alive=keep_alive)

    assert seen["lost"] == 0, seen
    if keep_alive:
        assert seen["last"] >= 3 * CLIENTS


@pytest.mark.slow
async def test_end_of_serve_without_a_last_look_loses_requests(tmp_path: Path, empty_database_url: str) -> None:
    """Negative control: connections that were accepted just then are reset. Of five ends at least one meets some."""
    await write_notes_app(tmp_path, empty_database_url)
    for _ in range(5):
        if (await end_under_load(tmp_path, empty_database_url, NAIVE, keep_alive=False))["lost"]:
            return
    pytest.fail("no request was lost")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_change_of_workers_loses_no_request(
    tmp_path: Path, empty_database_url: str, number: signal.Signals
) -> None:
    """At SIGTERM to a worker, and at SIGHUP, each connection of an old worker hears of its end in an answer."""
    await write_notes_app(tmp_path, empty_database_url)
    with serving(tmp_path, empty_database_url) as server:
        clients = Clients(server.port)
        tasks = [asyncio.create_task(clients.work(keep_alive=True)) for _ in range(CLIENTS)]
        await clients.until_more(200)
        old = find_workers(server.process.pid)
        for pid in old if number == signal.SIGTERM else [server.process.pid]:
            os.kill(pid, number)

        async def are_gone() -> bool:
            return old.isdisjoint(find_workers(server.process.pid))

        await wait_until(are_gone)
        await clients.until_more(200)
        clients.ending = True
        await asyncio.gather(*tasks)

    assert clients.seen["lost"] == 0
    assert clients.seen["last"] >= CLIENTS
