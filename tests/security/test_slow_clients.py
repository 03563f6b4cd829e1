"""Clients that say nothing, or speak one byte at a time, in HTTP/1.1 and HTTP/2."""

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import h2.connection
import pytest

from tests.support.patience import DEADLINE
from tests.support.processes import (
    PROGRAM,
    QUICK_PASSWORDS,
    SECRET_KEY,
    Server,
    make_environment,
    run_server,
    wait_for_answer,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GENEROUS = 10.0  # seconds: what the server promises, where its own limits are at eight
DRIP = 0.5  # seconds between two bytes

# What a client sends at once, what it sends again and again, and which port and Host it talks to.
Attack = Callable[[int], tuple[bytes, bytes]]

HEAD = "Host: company1.localhost:{port}\r\nContent-Type: application/json\r\n"


def start_http2(*, host: str | None = None, path: str = "/login", method: str = "POST", end: bool = False) -> bytes:
    """Return what begins an HTTP/2 connection, with a request to *host* if there is one."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    if host is not None:
        headers = [(":method", method), (":scheme", "http"), (":authority", host), (":path", path)]
        connection.send_headers(1, [*headers, ("content-type", "application/json")], end_stream=end)
    return bytes(connection.data_to_send())


def speak_http1(text: str, drip: str) -> Attack:
    """Return an attack of HTTP/1.1."""
    return lambda port: (text.replace("{port}", str(port)).encode(), drip.encode())


HEADERS_FRAME = b"\x00\x00\x10\x01\x04\x00\x00\x00\x03"  # 16 bytes of headers for stream 3 are announced
NEVER_ENDING_HEADERS = b"\x00\x00\x01\x01\x00\x00\x00\x00\x01\x82"  # ":method: GET", and more to come
PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8)
DATA = b"\x00\x00\x01\x00\x00\x00\x00\x00\x01 "

ATTACKS: dict[str, Attack] = {
    "nothing": speak_http1("", ""),
    "slow request line": speak_http1("G", "E"),
    "slow headers": speak_http1("GET / HTTP/1.1\r\n" + HEAD + "X: ", "y"),
    "slow second headers": speak_http1("GET /healthz HTTP/1.1\r\n" + HEAD + "\r\nGET / HTTP/1.1\r\nX: ", "y"),
    "stalled second headers": speak_http1("GET /healthz HTTP/1.1\r\n" + HEAD + "\r\nGET / HTTP/1.1\r\n", ""),
    "slow body": speak_http1("POST /login HTTP/1.1\r\n" + HEAD + "Content-Length: 999\r\n\r\n", " "),
    "stalled body": speak_http1("POST /login HTTP/1.1\r\n" + HEAD + "Content-Length: 999\r\n\r\n{", ""),
    "slow chunks": speak_http1("POST /login HTTP/1.1\r\n" + HEAD + "Transfer-Encoding: chunked\r\n\r\n", "1\r\n \r\n"),
    "silent HTTP/2": lambda _: (start_http2(), b""),
    "half of HTTP/2's preface": lambda _: (b"PRI * HTTP/2.0\r\n\r\nSM", b""),
    "HTTP/2 that only pings": lambda _: (start_http2(), PING),
    "half an HTTP/2 frame": lambda _: (start_http2() + HEADERS_FRAME + b"\x82", b""),
    "endless HTTP/2 headers": lambda _: (start_http2() + NEVER_ENDING_HEADERS, b""),
    "half a frame after a request": lambda port: (
        start_http2(host=f"127.0.0.1:{port}", path="/healthz", method="GET", end=True) + HEADERS_FRAME,
        b"",
    ),
    "slow HTTP/2 body": lambda port: (start_http2(host=f"company1.localhost:{port}"), DATA),
}
RESET = b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x00"  # of stream 1, without an error
# Other requests on the same connection go on; only the one with the slow body is ended.
ENDS = {"slow HTTP/2 body": RESET}
BODIES = ("slow body", "stalled body", "slow chunks")


async def attack(port: int, name: str) -> tuple[bytes, float]:
    """Return what the server answered until it closed the connection or the stream, and after how many seconds."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    first, again = ATTACKS[name](port)

    async def drip() -> None:
        writer.write(first)
        with contextlib.suppress(OSError):
            while again:
                await writer.drain()
                await asyncio.sleep(DRIP)
                writer.write(again)

    dripping = asyncio.create_task(drip())
    answer = b""
    try:
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionResetError):
                while name not in ENDS or ENDS[name] not in answer:
                    data = await reader.read(65536)
                    if not data:
                        break
                    answer += data
            return answer, time.monotonic() - began
    finally:
        dripping.cancel()
        writer.close()


@contextlib.contextmanager
def run_hypercorn(database_url: str, folder: Path, config: Path) -> Iterator[int]:
    """Serve the same app by Hypercorn's own program, with Quart's own patience for bodies; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings = {"QUART_TENANTS_DATABASE_URL": database_url, "QUART_SECRET_KEY": SECRET_KEY, "QUART_BODY_TIMEOUT": "60"}
    command: list[str | Path] = [
        *(PROGRAM.with_name("hypercorn"), "-c", config, "-b", f"127.0.0.1:{port}"),
        "quart_tenants.app:create_app()",
    ]
    with (folder / "hypercorn.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, cwd=folder, env=make_environment(**settings))
    try:
        wait_for_answer(port)
        yield port
    finally:
        process.terminate()
        process.wait(DEADLINE)


@contextlib.asynccontextmanager
async def locked_data(database_url: str) -> AsyncIterator[None]:
    """Keep every query of company1's data waiting."""
    blocker = await asyncpg.connect(database_url)
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE company1.company_data")
            yield
    finally:
        await blocker.close()


@contextlib.asynccontextmanager
async def kept_connection(port: int) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
    """Yield what asks a second time on a connection that has served one request, as a proxy's do."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask() -> bytes:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return await reader.readuntil(b"}\n")

    try:
        assert (await ask()).startswith(b"HTTP/1.1 200 ")
        yield ask
    finally:
        writer.close()


async def measure_lag(server: Server, meanwhile: "asyncio.Future[Any]") -> float:
    """Return how many seconds the slowest of many plain requests takes, until *meanwhile* is done."""
    lag = 0.0
    async with server.client("localhost") as client:
        while not meanwhile.done():
            asked = time.monotonic()
            await client.get("/healthz")
            lag = max(lag, time.monotonic() - asked)
            await asyncio.wait([meanwhile], timeout=0.1)
    return lag


async def ask_by_http2(port: int, cookie: str) -> bytes:
    """Return what the server sends for GET /data, up to the end of the stream."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    headers = {":method": "GET", ":scheme": "http", ":authority": f"company1.localhost:{port}", ":path": "/data"}
    connection.send_headers(1, [*headers.items(), ("cookie", f"session={cookie}")], end_stream=True)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(connection.data_to_send())
    body = b""
    while data := await reader.read(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                body += event.data
            if isinstance(event, h2.events.StreamEnded):
                writer.close()
                return body
    return body


async def test_slow_clients_are_closed_and_slow_handlers_are_not(database_url: str, tmp_path: Path) -> None:
    """Who sends no whole request in ten seconds is cut off; who waits for an answer, or between two, is not.

    The same clients keep their connections where Hypercorn serves alone.
    """
    config = tmp_path / "hypercorn.toml"
    shipped = (ROOT / "hypercorn.toml").read_text().replace("127.0.0.1:5000", "127.0.0.1:0")
    config.write_text(shipped.replace("workers = 2", "workers = 0"))
    with (
        run_server(database_url, tmp_path, "--config", str(config), **QUICK_PASSWORDS) as server,
        run_hypercorn(database_url, tmp_path, config) as naive_port,
    ):
        async with server.member() as waiting, kept_connection(server.port) as ask_again:
            async with locked_data(database_url):
                slow_handler = asyncio.create_task(waiting.get("/data"))
                slow_http2 = asyncio.create_task(ask_by_http2(server.port, waiting.cookies["session"]))
                naive = [asyncio.create_task(attack(naive_port, name)) for name in ATTACKS]
                ours = asyncio.gather(*(attack(server.port, name) for name in ATTACKS))
                lag = await measure_lag(server, ours)
                answers = dict(zip(ATTACKS, await ours, strict=True))
                still_open = {name for name, task in zip(ATTACKS, naive, strict=True) if not task.done()}
            served, served_by_http2 = await slow_handler, await slow_http2
            kept = await ask_again()
        for task in naive:
            task.cancel()
        await asyncio.wait(naive)

    # A busy machine makes everything slower.
    assert {name: seconds for name, (_, seconds) in answers.items() if seconds > GENEROUS + 4 * lag} == {}
    for name in BODIES:
        assert answers[name][0].startswith(b"HTTP/1.1 408 "), name
    assert served.status_code == 200
    assert b"company 1 data" in served_by_http2
    assert kept.startswith(b"HTTP/1.1 200 ")
    assert "Traceback" not in server.log.read_text()
    assert still_open == set(ATTACKS)
