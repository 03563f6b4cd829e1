"""Answer everybody the same, in place of a server that is asked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def answering(body: bytes) -> AsyncIterator[str]:
    """Yield an address at which everybody gets *body*."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A browser opens connections by which it asks nothing.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(body)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def attackers() -> AsyncIterator[int]:
    """Serve an empty page at every host name; yield the port."""
    page = b"<!doctype html><title>free prizes</title><body>"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
    async with answering(head + page) as address:
        yield int(address.rpartition(":")[2])
