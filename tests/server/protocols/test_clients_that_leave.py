"""What becomes of a request whose client goes away, and what stays of it: nothing."""

import asyncio
import socket
import struct
from typing import Any

import pytest
from hypercorn.middleware import ProxyFixMiddleware
from quart import Quart

from quart_tenants.server.one_task_requests import serve_requests
from quart_tenants.server.protocols import connections
from tests.server.protocols.serving import DEADLINE, GET, answer, pause, send, serving
from tests.server.protocols.waiting import (
    HEAD,
    POST,
    Waiting,
    answer_plainly,
    ask,
    connected,
    wait_until,
)


@pytest.mark.parametrize("request_", [GET, POST], ids=["plain", "POST"])
@pytest.mark.parametrize("how", ["closes", "breaks off", "has gone before"])
async def test_handler_is_cancelled_when_its_client_goes_away(request_: bytes, how: str) -> None:
    """However the client does that, and be it before the handler's first step."""
    waiting = Waiting()

    async with serving(waiting.make_quart()) as served, connected(served.port) as (_, writer):
        if how == "has gone before":
            await wait_until(lambda: bool(connections._open))
            (connection,) = connections._open
            # At once, as uvloop reads them.
            connection.reader.feed_data(request_)
            connection.reader.feed_eof()
        else:
            writer.write(request_)
            await waiting.entered.wait()
        if how == "breaks off":
            writer.transport.abort()
        else:
            writer.close()
        await wait_until(lambda: not connections._open)

    assert waiting.ended in (["cancelled"], [])
    assert waiting.entered.is_set() is bool(waiting.ended)
    assert waiting.plain is (request_ == GET)


@pytest.mark.parametrize("request_", [GET, POST], ids=["plain", "POST"])
async def test_handler_is_not_cancelled_after_its_answer(request_: bytes) -> None:
    """What a server's task does then goes on, whether the client stays or not."""
    waiting, quart_waiting = Waiting(), Waiting()
    quart_waiting.released.set()
    quart = quart_waiting.make_quart()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await quart(scope, receive, send)
        await waiting.wait()

    async with serving(app) as served, connected(served.port) as (reader, writer):
        writer.write(request_)
        answered = await reader.readuntil(b"{}\n")
        await waiting.entered.wait()
        writer.close()
        await pause()
        waiting.released.set()
        await wait_until(lambda: bool(waiting.ended))

    assert answered.startswith(b"HTTP/1.1 200")
    assert waiting.ended == ["answered"]


@pytest.mark.parametrize("request_", [GET, POST], ids=["plain", "POST"])
async def test_app_is_told_that_its_client_has_gone(request_: bytes) -> None:
    """By `http.disconnect`, after the body's end, each of those who ask."""
    received: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        received.append(await receive())
        received.append(await receive())
        await answer(send)

    async with serving(app) as served, connected(served.port) as (_, writer):
        writer.write(request_)
        await wait_until(lambda: len(received) == 1)
        writer.close()
        await wait_until(lambda: len(received) == 2)

    assert received == [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]


@pytest.mark.parametrize("cancelled", [True, False])
async def test_task_that_receives_ends_with_the_answer(cancelled: bool) -> None:
    """A task of the app's own that waits for the client is told of the end, and one that was cancelled hurts nobody."""
    received: list[Any] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        async def watch() -> None:
            while not received or received[-1]["type"] != "http.disconnect":
                received.append(await receive())

        others = [asyncio.create_task(receive()) for _ in range(2)]
        await pause()
        watching = asyncio.create_task(watch())
        await pause()
        if cancelled:
            others[1].cancel()
        await answer(send)
        await asyncio.wait([watching, *others])

    async with serving(app) as served, connected(served.port) as (reader, writer):
        await ask(reader, writer)
        await wait_until(lambda: bool(received))
        again = await ask(reader, writer)

    assert received[0] == {"type": "http.disconnect"}
    assert again.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("more", [GET, GET[:9], GET * 1000, POST], ids=["whole", "half", "many", "POST"])
@pytest.mark.parametrize("how", ["closes", "breaks off"])
async def test_nothing_stays_of_a_client_that_sends_more_and_goes_away(more: bytes, how: str) -> None:
    """No task and no connection, once what it had asked for first is done."""
    waiting = Waiting()

    async with serving(waiting.app) as served:
        # Its own tasks are there once it has served somebody.
        await send(served.port, HEAD.replace(b" / ", b" /nothing "))
        before = asyncio.all_tasks()
        async with connected(served.port) as (_, writer):
            writer.write(GET)
            await waiting.entered.wait()
            writer.write(more)
            await pause()
            if how == "breaks off":
                writer.transport.abort()
            else:
                writer.close()
            await pause()
            waiting.released.set()
            await wait_until(lambda: not connections._open)
        await wait_until(lambda: asyncio.all_tasks() <= before)

    assert waiting.ended[0] == "answered"


async def test_client_may_go_away_in_the_middle_of_an_answer() -> None:
    """The app's send returns, and nothing stays."""
    sent = asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await answer(send, b"x" * 16_000_000)
        sent.set()

    async with serving(app) as served:
        async with connected(served.port) as (reader, writer):
            writer.write(GET)
            await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(DEADLINE):
            await sent.wait()
        await wait_until(lambda: not connections._open)


async def test_client_that_has_gone_before_it_is_served_hurts_nobody() -> None:
    """Of its connection nothing stays, and nobody is told of an error."""
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))

    async with serving(answer_plainly) as served:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", served.port)) as client:
                # Its end is a reset: the server does not find out any more who that was.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        answered = await send(served.port, HEAD)
        await wait_until(lambda: not connections._open)

    assert answered.startswith(b"HTTP/1.1 200")
    assert errors == []


async def test_client_is_watched_behind_a_copied_scope() -> None:
    """A middleware that copies the scope deeply, as Hypercorn's for proxies does, has its handlers cancelled, too."""
    app = Quart(__name__, static_folder=None)
    serve_requests(app)
    entered, ended = asyncio.Event(), asyncio.Event()

    @app.get("/")
    async def wait() -> str:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    async with serving(ProxyFixMiddleware(app)) as served, connected(served.port) as (_, writer):
        writer.write(GET)
        await entered.wait()
        writer.close()
        async with asyncio.timeout(DEADLINE):
            await ended.wait()
