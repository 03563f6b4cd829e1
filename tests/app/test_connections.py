"""What connections do in `serve` that Hypercorn's own do otherwise: how they wait, and how an answer begins."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import hypercorn.asyncio.run
import pytest
from hypercorn.asyncio.run import worker_serve
from hypercorn.config import Config
from hypercorn.utils import wrap_app

from quart_tenants.app.connections import LimitedConnection

ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
JSON = (b"content-type", b"application/json")

App = Callable[..., Awaitable[None]]
Serve = Callable[..., AbstractAsyncContextManager[tuple[int, asyncio.Event]]]


async def answer(send: Any, *pieces: bytes, between: Callable[[], Awaitable[None]] | None = None) -> None:
    """Send a head and *pieces*, with *between* between the two."""
    headers = [JSON] if between else [JSON, (b"content-length", b"%d" % sum(map(len, pieces)))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if between:
        await between()
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def make_app(between: Callable[[], Awaitable[None]] | None = None) -> App:
    """Return an app that answers everything."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": f"{(await receive())['type']}.complete"})
            return
        await answer(send, b'{"a":', b"1}", between=between)

    return app


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serve an app by our connections in this process; yields the port, and what ends the server."""
    monkeypatch.setattr(hypercorn.asyncio.run, "TCPServer", LimitedConnection)

    @asynccontextmanager
    async def serving(app: App, **settings: float) -> AsyncIterator[tuple[int, asyncio.Event]]:
        config = Config.from_mapping({"bind": "127.0.0.1:0", "graceful_timeout": 60.0, "errorlog": None, **settings})
        sockets = config.create_sockets()
        (listener,) = sockets.insecure_sockets
        # Clients may come before the app is ready.
        listener.listen()
        port = listener.getsockname()[1]
        end = asyncio.Event()
        wrapped = wrap_app(app, 0, "asgi")
        serving = asyncio.create_task(worker_serve(wrapped, config, sockets=sockets, shutdown_trigger=end.wait))
        try:
            yield port, end
            end.set()
            async with asyncio.timeout(30):
                await serving
        finally:
            serving.cancel()

    return serving


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Ask once; return the answer."""
    writer.write(ASK)
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))


async def test_connection_serves_one_request_after_the_other(serve: Serve) -> None:
    """Head and body are whole each time, also of requests that come at once."""
    async with serve(make_app()) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = [await ask(reader, writer) for _ in range(3)]
        writer.write(ASK * 3)
        writer.write(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        rest = await reader.read()
        writer.close()

    assert all(one.startswith(b"HTTP/1.1 200") and one.endswith(b'\r\n\r\n{"a":1}') for one in answers)
    assert rest.count(b"HTTP/1.1 200") == 4
    assert rest.count(b'{"a":1}') == 3


async def test_answer_says_its_date_and_the_end_of_its_connection(serve: Serve) -> None:
    """As by Hypercorn itself, which closes a connection after `keep_alive_max_requests`."""
    async with serve(make_app(), keep_alive_max_requests=2) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        heads = [await ask(reader, writer) for _ in range(2)]
        rest = await reader.read()
        writer.close()

    assert all(head.count(b"\r\ndate: ") == 1 for head in heads)
    assert [b"\r\nconnection: close" in head.lower() for head in heads] == [False, True]
    assert rest == b""


async def test_head_does_not_wait_for_a_late_body(serve: Serve) -> None:
    """A stream's head is with the client before there is anything to stream."""
    released = asyncio.Event()

    async def wait() -> None:
        await released.wait()

    async with serve(make_app(wait)) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASK)
        async with asyncio.timeout(30):
            head = await reader.readuntil(b"\r\n\r\n")
        released.set()
        async with asyncio.timeout(30):
            body = await reader.readuntil(b"0\r\n\r\n")
        writer.close()

    assert head.startswith(b"HTTP/1.1 200")
    assert b'{"a":' in body


async def test_idle_connection_is_closed(serve: Serve) -> None:
    """After `keep_alive_timeout` without a request, and not while one is served, however long that takes."""

    async def think() -> None:
        await asyncio.sleep(0.5)

    async with serve(make_app(think), keep_alive_timeout=0.2) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASK)
        async with asyncio.timeout(30):
            served = await reader.read()
        writer.close()

    assert served.endswith(b"0\r\n\r\n")


async def test_idle_connections_end_with_the_server(serve: Serve) -> None:
    """A server that is told to end waits for what it serves, and not for who says nothing."""
    entered, released = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await released.wait()

    async with serve(make_app(wait), keep_alive_timeout=600) as (port, end):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        busy, busy_writer = await asyncio.open_connection("127.0.0.1", port)
        busy_writer.write(ASK)
        await entered.wait()
        end.set()
        async with asyncio.timeout(30):
            told = await idle.read()
            released.set()
            served = await busy.read()
        idle_writer.close()
        busy_writer.close()

    assert told == b""
    assert served.endswith(b"0\r\n\r\n")
