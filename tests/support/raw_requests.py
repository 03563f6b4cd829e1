"""Requests that no client library would send: straight into an app, or as bytes on a connection."""

import asyncio
from collections.abc import Sequence
from typing import Any, Self, cast

from quart import Quart

Header = tuple[bytes, bytes]


async def call(
    app: Quart,
    host: str,
    path: str,
    *headers: Header,
    method: str = "GET",
    scheme: str = "http",
    body: bytes = b"",
) -> tuple[int, bytes]:
    """Ask *app* as a server does, with any bytes in the headers; return the status and the body."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.1"},
        "http_version": "1.1",
        "method": method,
        "scheme": scheme,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", host.encode()), *headers],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 80),
        "state": {},
        "extensions": {},
    }
    unread = [{"type": "http.request", "body": body, "more_body": False}]
    status, answer = 0, b""
    answered = asyncio.Event()

    async def receive() -> Any:
        if unread:
            return unread.pop()
        # The visitor waits for the answer. Servers tell its end so, and Quart 0.23 waits to be told.
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        nonlocal status, answer
        if event["type"] == "http.response.body" and not event.get("more_body"):
            answered.set()
        status = event.get("status", status)
        answer += event.get("body", b"")

    await app.asgi_app(cast("Any", scope), receive, send)
    return status, answer


class Wire:
    """One connection of HTTP/1.1 that is kept open, and so stays with one worker."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to 127.0.0.1."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @property
    def port(self) -> int:
        """Our end."""
        port: int = self._writer.get_extra_info("sockname")[1]
        return port

    async def ask(self, host: str, path: str, cookie: str = "", method: str = "GET") -> tuple[int, bytes]:
        """Return the status and the body of an answer."""
        head = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Cookie: session={cookie}", "Content-Length: 0"]
        return await self.send("\r\n".join([*head, "", ""]).encode())

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send the bytes of one request; return the status and the body of the answer."""
        self._writer.write(request)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
        return int(lines[0].split()[1]), await self._reader.readexactly(lengths[0] if lengths else 0)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


def close_all(wires: Sequence[Wire]) -> None:
    """Hang up all of them."""
    for wire in wires:
        wire.close()
