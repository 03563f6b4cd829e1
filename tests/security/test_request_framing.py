"""Requests of which a proxy may see another end than we do: what follows them must never be answered."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hypercorn.asyncio
import pytest
from hypercorn.config import Config

from quart_tenants.testing.databases import new_database_between_loops
from tests.support.patience import DEADLINE
from tests.support.processes import QUICK_PASSWORDS, Server, run_server

pytestmark = pytest.mark.slow

NEXT = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\n"

# What Hypercorn alone lets through.
LET_THROUGH_BY_HYPERCORN = {
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "no length and chunks": POST + b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "folded by a tab": POST + b"X: y\r\n\tContent-Length: 50\r\n\r\n",
    "bare LF between headers": POST + b"X: y\nContent-Length: 0\r\n\r\n",
    "bare LF at the end": POST + b"\n",
    "bare LF everywhere": b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
}
REFUSED_BY_HYPERCORN = {
    "chunks in HTTP/1.0": b"POST /healthz HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 0\r\n\r\n",
    "list of lengths": POST + b"Content-Length: 5, 0\r\n\r\n",
    "signed length": POST + b"Content-Length: +5\r\n\r\n",
    "negative length": POST + b"Content-Length: -5\r\n\r\n",
    "hexadecimal length": POST + b"Content-Length: 0x5\r\n\r\n",
    "empty length": POST + b"Content-Length:\r\n\r\n",
    "other coding": POST + b"Transfer-Encoding: gzip\r\n\r\n",
    "coding before chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding after chunks": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "misspelt chunks": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "control character in the coding": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "blank before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "blank before the first header": b"GET /healthz HTTP/1.1\r\n Host: localhost\r\n\r\n",
    "header without a colon": POST + b"Content-Length\r\n\r\n",
    "nul in a header": POST + b"X: \x00\r\n\r\n",
    "bare CR in a header": POST + b"X: y\rContent-Length: 5\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: acme.localhost\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two blanks in the first line": b"GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "unknown version": b"GET /healthz HTTP/3.7x\r\nHost: localhost\r\n\r\n",
}
AMBIGUOUS = LET_THROUGH_BY_HYPERCORN | REFUSED_BY_HYPERCORN
UPGRADES = {
    "by the book": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "alone": b"Upgrade: h2c\r\n",
    "in capitals, with a blank of latin-1": b"UPGRADE: \xa0H2C\x85\r\n",
    "the last of two": b"Upgrade: websocket\r\nUpgrade: h2c\r\n",
    "the first of two": b"Upgrade: h2c\r\nUpgrade: websocket\r\n",
}
BROKEN_CHUNKS = {
    "hexadecimal chunk": b"0x1\r\na\r\n0\r\n\r\n",
    "negative chunk": b"-1\r\na\r\n0\r\n\r\n",
    "chunk longer than it says": b"1\r\nabc\r\n0\r\n\r\n",
    "bare LF after the size": b"1\na\r\n0\r\n\r\n",
    "bare LF in an extension": b"1;x\ny\r\na\r\n0\r\n\r\n",
}


@pytest.fixture(scope="module")
def server(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The reference app."""
    with (
        new_database_between_loops(server_url, template) as url,
        run_server(url, tmp_path_factory.mktemp("server"), **QUICK_PASSWORDS) as server,
    ):
        yield server


async def send(port: int, *parts: bytes) -> bytes:
    """Return all that the server answers to *parts*, each sent by itself, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answer = b""
    try:
        async with asyncio.timeout(DEADLINE):
            # The server may close in the middle of it.
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    answer += data
    finally:
        writer.close()
    return answer


@contextlib.asynccontextmanager
async def plain_hypercorn() -> AsyncIterator[int]:
    """Serve an app that answers everything with 200; yield the port."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

    listener = socket.create_server(("127.0.0.1", 0))
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.errorlog = None
    config.keep_alive_timeout = 0.2
    stop = asyncio.Event()
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        await serving
        listener.detach()


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_ambiguous_request_is_refused_and_nothing_after_it_is_answered(server: Server, name: str) -> None:
    """One refusal, and the end of the connection: the second request on it reaches nobody."""
    answer = await send(server.port, AMBIGUOUS[name] + NEXT)

    # 501 for a coding that we do not know (RFC 9112 section 6.1).
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()


async def test_ambiguous_request_is_refused_however_it_arrives(server: Server) -> None:
    """Cut into single bytes the same requests are refused."""
    answers = await asyncio.gather(
        *(send(server.port, *(bytes([byte]) for byte in text + NEXT)) for text in AMBIGUOUS.values())
    )

    assert [name for name, answer in zip(AMBIGUOUS, answers, strict=True) if b" 200 " in answer] == []


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
async def test_nothing_after_broken_chunks_is_answered(server: Server, name: str) -> None:
    """A body whose end cannot be found ends the connection."""
    head = b"POST /login HTTP/1.1\r\nHost: company1.localhost\r\nContent-Type: application/json\r\n"
    answer = await send(server.port, head + b"Transfer-Encoding: chunked\r\n\r\n" + BROKEN_CHUNKS[name] + NEXT)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_clear_requests_are_answered_one_after_the_other(server: Server) -> None:
    """Clear ones in one packet are each answered, or the tests above would mean nothing."""
    last = NEXT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    chunked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    counted = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\na"

    answer = await send(server.port, NEXT + chunked + counted + last)

    assert answer.count(b"HTTP/1.1 200 ") == 4


async def test_length_that_is_said_twice_is_refused(server: Server) -> None:
    """A repeated Content-Length is refused even where both agree, as RFC 9110, section 8.6, allows."""
    twice = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na"

    answer = await send(server.port, twice + NEXT)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_hypercorn_alone_answers_what_follows() -> None:
    """Without our checks the second request is answered after each of these: the corpus bites."""
    async with plain_hypercorn() as port:
        answers = await asyncio.gather(*(send(port, text + NEXT) for text in LET_THROUGH_BY_HYPERCORN.values()))

    counts = {
        name: answer.count(b"HTTP/1.1 200 ") for name, answer in zip(LET_THROUGH_BY_HYPERCORN, answers, strict=True)
    }
    assert counts == dict.fromkeys(LET_THROUGH_BY_HYPERCORN, 2)


async def test_upgrade_to_http2_is_ignored(server: Server) -> None:
    """A proxy that passes `Upgrade: h2c` on gets an answer, never the 101 after which it would be a mere tunnel."""
    last = NEXT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    first = NEXT.removesuffix(b"\r\n")

    answers = await asyncio.gather(
        *(send(server.port, first + upgrade + b"\r\n" + last) for upgrade in UPGRADES.values())
    )

    for answer in answers:
        assert b"HTTP/1.1 101 " not in answer
        assert answer.count(b"HTTP/1.1 200 ") == 2


async def test_hypercorn_alone_upgrades_to_http2() -> None:
    """Without our check the same requests get the tunnel, but for the one whose last `Upgrade` says something else."""
    async with plain_hypercorn() as port:
        answers = await asyncio.gather(
            *(send(port, NEXT.removesuffix(b"\r\n") + upgrade + b"\r\n") for upgrade in UPGRADES.values())
        )

    tunnels = {name for name, answer in zip(UPGRADES, answers, strict=True) if answer.startswith(b"HTTP/1.1 101 ")}
    assert tunnels == set(UPGRADES) - {"the first of two"}


@pytest.mark.parametrize(
    "more",
    [
        [("content-length", "1"), ("content-length", "2")],
        [("content-length", "2")],
        [("transfer-encoding", "chunked")],
        [("content-length", "1"), ("transfer-encoding", "chunked")],
        [("connection", "close"), ("content-length", "1")],
    ],
    ids=str,
)
async def test_ambiguous_http2_request_is_refused(server: Server, more: list[tuple[str, str]]) -> None:
    """In HTTP/2, too, where a proxy may make HTTP/1.1 of it: lengths that differ, or headers of HTTP/1.1."""
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False)
    )
    connection.initiate_connection()
    pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/healthz")]
    connection.send_headers(1, [*pseudo, *more])
    connection.send_data(1, b"a", end_stream=True)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(connection.data_to_send())

    statuses = []
    ended = False
    async with asyncio.timeout(DEADLINE):
        while not ended and (data := await reader.read(65536)):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    statuses.append(dict(event.headers or [])[b":status"])
                ended = ended or isinstance(
                    event, h2.events.StreamEnded | h2.events.StreamReset | h2.events.ConnectionTerminated
                )
    writer.close()

    assert statuses in ([], [b"400"])
