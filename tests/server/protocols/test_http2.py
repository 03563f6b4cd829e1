"""Streams of one HTTP/2 connection: none makes the server remember much, and none that fails is waited for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.run import worker_serve
from hypercorn.config import Config
from quart import Quart, Response

from quart_tenants.server.one_task_requests import serve_requests
from quart_tenants.server.protocols.connections import limit_connections
from tests.server.protocols.serving import patch_hypercorn
from tests.support.patience import DEADLINE

PIECE = 32 * 1024
PIECES = 100


class Pieces:
    """An app that answers in pieces: `/long` in many, `/fails` in one and never to the end."""

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer."""
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": f"{(await receive())['type']}.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(PIECES if scope["path"] == "/long" else 1):
            await send({"type": "http.response.body", "body": b"x" * PIECE, "more_body": True})
            self.sent += 1
        if scope["path"] == "/fails":
            raise LookupError
        await send({"type": "http.response.body", "body": b""})


class Client:
    """One connection, which takes of each answer as much as it has granted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._h2.initiate_connection()
        self.received: dict[int, int] = {}
        self._found = False
        self.ends: dict[int, h2.errors.ErrorCodes | int | None] = {}

    def ask(self, path: str) -> int:
        """Send a request; return the stream's number."""
        stream = self._h2.get_next_available_stream_id()
        fields = {":method": "GET", ":path": path, ":scheme": "http", ":authority": "localhost"}
        self._h2.send_headers(stream, list(fields.items()), end_stream=True)
        self._writer.write(self._h2.data_to_send())
        return stream

    def reset(self, stream: int) -> None:
        """Want no answer to *stream* any more."""
        self._h2.reset_stream(stream)
        self._writer.write(self._h2.data_to_send())

    def abort(self) -> None:
        """Be gone."""
        self._writer.transport.abort()

    def grant(self, size: int, stream: int | None = None) -> None:
        """Let *size* more bytes come, of *stream* or of the whole connection."""
        self._h2.increment_flow_control_window(size, stream)
        self._writer.write(self._h2.data_to_send())

    async def read(self, event_type: type[h2.events.Event], stream: int | None = None) -> None:
        """Read until there is such an event, of *stream* if it is given."""
        while True:
            for event in self._h2.receive_data(await self._reader.read(65536)):
                number = getattr(event, "stream_id", None)
                if isinstance(event, h2.events.DataReceived):
                    self.received[event.stream_id] = self.received.get(event.stream_id, 0) + len(event.data or b"")
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    self.ends[event.stream_id] = getattr(event, "error_code", None)
                self._found = self._found or (isinstance(event, event_type) and (stream is None or number == stream))
            self._writer.write(self._h2.data_to_send())
            if self._found:
                self._found = False
                return

    async def ping(self, times: int) -> None:
        """Let the server do as much as it can meanwhile."""
        for _ in range(times):
            self._h2.ping(b"12345678")
            self._writer.write(self._h2.data_to_send())
            await self.read(h2.events.PingAckReceived)


class Counted:
    """A Quart app that answers in one piece, and how many of its requests are under way."""

    def __init__(self) -> None:
        self._app = Quart(__name__, static_folder=None)
        serve_requests(self._app)
        self.running = 0

        @self._app.get("/<int:size>")
        async def answer(size: int) -> Response:
            return Response(b"x" * size)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer."""
        self.running += scope["type"] == "http"
        try:
            await self._app(scope, receive, send)
        finally:
            self.running -= scope["type"] == "http"


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[Client]:
    """Serve *app* in this process; yields a connection to it."""
    config = Config.from_mapping({"bind": "127.0.0.1:0", "graceful_timeout": 0.1, "errorlog": None})
    sockets = config.create_sockets()
    (listener,) = sockets.insecure_sockets
    listener.listen()
    end = asyncio.Event()
    server = asyncio.create_task(worker_serve(ASGIWrapper(app), config, sockets=sockets, shutdown_trigger=end.wait))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        async with asyncio.timeout(DEADLINE):
            yield Client(reader, writer)
    finally:
        writer.close()
        end.set()
        await server


@pytest.fixture(params=["ours", "Hypercorn's"])
def ours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether our connections serve; Hypercorn's own are the negative control."""
    patch_hypercorn(monkeypatch)
    if request.param == "ours":
        limit_connections()
    return bool(request.param == "ours")


async def test_client_that_takes_nothing_is_sent_no_more(ours: bool) -> None:
    """A long answer is made as far as its client takes it, so that a worker need not remember the rest."""
    app = Pieces()
    async with serving(app) as client:
        stream = client.ask("/long")
        await client.ping(PIECES)
        held = app.sent
        client.grant(PIECE * PIECES)
        client.grant(PIECE * PIECES, stream)
        await client.read(h2.events.StreamEnded, stream)

    assert held <= 5 if ours else held == PIECES
    assert client.received == {stream: PIECE * PIECES}


async def test_answer_that_fails_halfway_is_broken_off(ours: bool) -> None:
    """A client hears at once that the rest does not come, and other answers of its connection are whole."""
    app = Pieces()
    async with serving(app) as client:
        client.grant(2 * PIECE * PIECES)
        long, fails, short = client.ask("/long"), client.ask("/fails"), client.ask("/")
        await client.read(h2.events.StreamEnded, short)
        await client.ping(PIECES)
        client.grant(PIECE * PIECES, long)
        await client.read(h2.events.StreamEnded, long)
        last = client.ask("/")
        await client.read(h2.events.StreamEnded, last)

    # Hypercorn's own lets the client wait for ever.
    failed = {fails: h2.errors.ErrorCodes.INTERNAL_ERROR} if ours else {}
    assert client.ends == {long: None, short: None, last: None} | failed
    assert client.received[long] == PIECE * PIECES


async def test_no_request_waits_for_room_that_never_comes(ours: bool) -> None:
    """What a client resets ends at once, although the connection's window is full, and all of it when it goes away.

    Quart sees to that by itself, where one task answers and another one listens for the end of the client.
    """
    app = Counted()
    async with serving(app) as client:
        client.ask("/70000")
        await client.ping(5)
        streams = [client.ask("/8") for _ in range(20)]
        await client.ping(5)
        waiting = app.running
        for stream in streams:
            client.reset(stream)
        await client.ping(5)
        left = app.running
        client.abort()
        while app.running:
            await asyncio.sleep(0)

    assert waiting == 21
    assert left == 1
