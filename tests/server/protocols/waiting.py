"""Apps that wait, and clients that stay connected."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from quart import Quart, ResponseReturnValue

from quart_tenants.server.one_task_requests import serve_requests
from quart_tenants.server.protocols.receiving import RequestReceive
from tests.server.protocols.serving import DEADLINE, GET, App, answer, end, start

JSON = (b"content-type", b"application/json")
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def make_app(between: Callable[[], Awaitable[None]] | None = None) -> App:
    """Return an app that answers everything, in pieces; with *between* between the head and what follows."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await start(send, *([JSON] if between else [JSON, (b"content-length", b"7")]))
        if between:
            await between()
        for piece in (b'{"a":', b"1}"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await end(send)

    return app


async def answer_plainly(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer in one piece."""
    await answer(send, b'{"a":1}')


def is_watched(receive: Any) -> bool:
    """Say whether *receive* tells that the client has gone, without a task that waits for that."""
    return isinstance(receive, RequestReceive) and not receive.has_body


class Waiting:
    """A handler that waits, as an app and as a view of Quart.

    Attributes:
        entered: Set when it begins.
        released: What it waits for.
        ended: How it ended.
        plain: Whether its last request needs no task that receives.
    """

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.released = asyncio.Event()
        self.ended: list[str] = []
        self.plain = False

    async def wait(self) -> None:
        """Wait, and note how that ended."""
        self.entered.set()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("answered")

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer after that."""
        self.plain = is_watched(receive)
        if scope["path"] != "/nothing":
            await self.wait()
        await answer(send)

    def make_quart(self) -> App:
        """Return an app of Quart whose view waits."""
        quart = Quart(__name__, static_folder=None)
        serve_requests(quart)

        @quart.route("/", methods=["GET", "POST"])
        async def view() -> ResponseReturnValue:
            await self.wait()
            return {}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.plain = is_watched(receive)
            await quart(scope, receive, send)

        return app


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect; nothing is waited for longer than the tests' patience."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE):
            yield reader, writer
    finally:
        writer.transport.abort()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Ask once; return the answer."""
    writer.write(GET)
    head = await reader.readuntil(b"\r\n\r\n")
    return head + await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))


async def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until *is_so* returns true."""
    async with asyncio.timeout(DEADLINE):
        while not is_so():
            await asyncio.sleep(0.001)
