"""Bodies that are too large: refused before they are here."""

import asyncio
from collections.abc import Iterator

import h2.connection
import h2.events
import pytest

from quart_tenants.testing.databases import new_database_between_loops
from tests.support.patience import DEADLINE
from tests.support.processes import QUICK_PASSWORDS, Server, run_server

pytestmark = pytest.mark.slow

HEAD = b"POST /login HTTP/1.1\r\nHost: company1.localhost\r\nContent-Type: application/json\r\n"
LIMIT = 64 * 1024  # bytes


@pytest.fixture(scope="module")
def server(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The reference app."""
    folder = tmp_path_factory.mktemp("server")
    with new_database_between_loops(server_url, template) as url, run_server(url, folder, **QUICK_PASSWORDS) as server:
        yield server


@pytest.mark.parametrize(
    ("request_so_far", "status"),
    [
        (HEAD + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1), b"413"),
        (HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % (LIMIT + 1), b"413"),
        (
            HEAD
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"8000\r\n"
            + b" " * 0x8000
            + b"\r\n"
            + b"8001\r\n"
            + b" " * 0x8001,
            b"413",
        ),
        # Not larger, so somebody reads it: no JSON.
        (HEAD + b"Content-Length: %d\r\n\r\n" % LIMIT + b" " * LIMIT, b"400"),
    ],
    ids=["announced", "announced, and asked for first", "in chunks", "at the limit"],
)
async def test_too_large_body_is_refused_while_it_is_sent(server: Server, request_so_far: bytes, status: bytes) -> None:
    """413 comes as soon as it is clear that the body is too large, and waits for no further byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request_so_far)

    async with asyncio.timeout(DEADLINE):
        answer = await reader.readuntil(b"\r\n\r\n")
        while answer.startswith(b"HTTP/1.1 100 "):
            answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()

    assert answer.startswith(b"HTTP/1.1 " + status)


async def test_refused_http2_body_leaves_the_others_on_its_connection(server: Server) -> None:
    """The stream is ended while its client still sends, and the next request on the connection is answered."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    host = f"company1.localhost:{server.port}"
    common = [(":scheme", "http"), (":authority", host), ("content-type", "application/json")]
    too_long = [(":method", "POST"), (":path", "/login"), *common, ("content-length", str(20_000_000))]
    connection.send_headers(1, too_long)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    statuses: dict[int, bytes] = {}

    async def exchange() -> list[h2.events.Event]:
        writer.write(connection.data_to_send())
        events = connection.receive_data(await reader.read(65536))
        for event in events:
            if isinstance(event, h2.events.ResponseReceived):
                statuses[event.stream_id] = dict(event.headers or [])[b":status"]
        return events

    async with asyncio.timeout(DEADLINE):
        while 1 not in statuses:
            await exchange()
        ended = reset = False
        while not ended:
            ended = any(isinstance(event, h2.events.StreamEnded) for event in await exchange())
        # The answer is whole, and the client does not mind.
        connection.send_data(1, b" ")
        while not reset:
            reset = any(isinstance(event, h2.events.StreamReset) for event in await exchange())
        connection.send_headers(3, [(":method", "GET"), (":path", "/healthz"), *common], end_stream=True)
        while 3 not in statuses:
            await exchange()
    writer.close()

    assert statuses == {1: b"413", 3: b"200"}
