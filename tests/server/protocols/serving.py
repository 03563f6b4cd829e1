"""Serve an app in this process, by our connections or by Hypercorn's own, and talk to it byte by byte."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.protocol.h2
import pytest
from hypercorn.asyncio.run import worker_serve
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.utils import wrap_app

from quart_tenants.server.protocols.connections import LimitedConnection, limit_connections

DEADLINE = 120.0  # seconds
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True)
class Served:
    """An app that is being served.

    Attributes:
        port: Where.
        end: Tells the server to end.
    """

    port: int
    end: asyncio.Event


def patch_hypercorn(patch: pytest.MonkeyPatch) -> None:
    """Let Hypercorn have its own classes again when *patch* ends, whatever replaces them meanwhile."""
    patch.setattr(hypercorn.asyncio.run, "TCPServer", TCPServer)
    patch.setattr(hypercorn.protocol, "H11Protocol", H11Protocol)
    patch.setattr(hypercorn.protocol, "H2Protocol", H2Protocol)
    patch.setattr(hypercorn.protocol.h2, "StreamBuffer", StreamBuffer)


@contextlib.asynccontextmanager
async def serving(app: App, connections: type[TCPServer] = LimitedConnection, **settings: Any) -> AsyncIterator[Served]:
    """Serve *app* by *connections*, with *settings* of Hypercorn."""
    config = Config.from_mapping({"bind": "127.0.0.1:0", "graceful_timeout": 60.0, "errorlog": None, **settings})
    sockets = config.create_sockets()
    (listener,) = sockets.insecure_sockets
    # Clients may come before the app is ready.
    listener.listen()
    served = Served(listener.getsockname()[1], asyncio.Event())
    wrapped = wrap_app(_with_lifespan(app), 0, "asgi")
    with pytest.MonkeyPatch.context() as patch:
        if connections is LimitedConnection:
            patch_hypercorn(patch)
            limit_connections()
        else:
            patch.setattr(hypercorn.asyncio.run, "TCPServer", connections)
        task = asyncio.create_task(worker_serve(wrapped, config, sockets=sockets, shutdown_trigger=served.end.wait))
        try:
            yield served
            served.end.set()
            async with asyncio.timeout(DEADLINE):
                await task
        finally:
            task.cancel()


class Client(asyncio.Protocol):
    """Keeps all that it is sent, also where the connection breaks in the end.

    Attributes:
        answer: What came until now.
        closed: Whether the server has closed, once it has.
    """

    def __init__(self) -> None:
        self.answer = b""
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Keep *data*."""
        self.answer += data

    def connection_lost(self, _error: Exception | None) -> None:
        """Know that nothing else comes."""
        self.closed.set()


async def send(port: int, *parts: bytes, eof: bool = False) -> bytes:
    """Send *parts*, each by itself; return all that is answered until the server closes."""
    transport, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    try:
        for part in parts:
            # The server may close in the middle of it.
            if not transport.is_closing():
                transport.write(part)
            await pause()
        if eof and not transport.is_closing():
            transport.write_eof()
        async with asyncio.timeout(DEADLINE):
            await client.closed.wait()
    finally:
        transport.abort()
    return client.answer


async def pause(turns: int = 20) -> None:
    """Let everybody else in this event loop do what can be done, such as read what was sent."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def start(send: Any, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    """Send an answer's beginning."""
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def end(send: Any, body: bytes = b"") -> None:
    """Send an answer's end."""
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def answer(send: Any, body: bytes = b"ok") -> None:
    """Send an answer of which the length is said."""
    await start(send, (b"content-length", b"%d" % len(body)))
    await end(send, body)


def _with_lifespan(app: App) -> Any:
    async def with_lifespan(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for _ in range(2):
            await send({"type": f"{(await receive())['type']}.complete"})

    return with_lifespan
