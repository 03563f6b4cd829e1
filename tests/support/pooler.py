"""A naive pooler: many clients take turns on one server connection, which nobody resets between transactions."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg

_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
_PARAMETERS = {
    "server_encoding": "UTF8",
    "client_encoding": "UTF8",
    "integer_datetimes": "on",
    "standard_conforming_strings": "on",
    "DateStyle": "ISO, MDY",
    "TimeZone": "UTC",
}


class NaivePooler(asyncio.Protocol):
    """One server connection. It opens it as it likes: what clients ask for when they connect is ignored."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._buffer = b""
        self._turn = asyncio.Lock()
        self._holder: asyncio.StreamWriter | None = None
        self._unanswered = 0
        self._clients: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Transport
        self._greeting = b""

    async def connect(self) -> None:
        """Let the driver log in, and take its socket over."""
        connection = await asyncpg.connect(self._url)
        version = await connection.fetchval("SHOW server_version")
        self._pid = connection.get_server_pid()
        self._server = cast("Any", connection)._transport
        self._server.set_protocol(self)
        self._driver = connection
        parameters = _PARAMETERS | {"server_version": version}
        self._greeting = (
            _message(b"R", struct.pack("!i", 0))
            + b"".join(_message(b"S", f"{name}\0{text}\0".encode()) for name, text in parameters.items())
            + _message(b"K", struct.pack("!ii", self._pid, 0))
            + _message(b"Z", b"I")
        )

    def close(self) -> None:
        """Close the server's connection, and those of clients that still wait for their turn."""
        self._driver.terminate()
        for client in self._clients:
            client.close()

    def data_received(self, data: bytes) -> None:
        """Pass the server's answers on to who has the turn."""
        self._buffer += data
        while len(self._buffer) >= 5:
            end = 1 + int(struct.unpack("!i", self._buffer[1:5])[0])
            if len(self._buffer) < end:
                return
            message, self._buffer = self._buffer[:end], self._buffer[end:]
            holder = self._holder
            if holder is not None and not holder.is_closing():
                holder.write(message)
            if message[:1] == b"Z":
                self._unanswered -= 1
                if message[5:6] == b"I" and self._unanswered == 0 and holder is not None:
                    self._holder = None
                    self._turn.release()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak with one client until it leaves."""
        self._clients.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if not await self._greet(reader, writer):
                return
            while True:
                header = await reader.readexactly(5)
                body = await reader.readexactly(int(struct.unpack("!i", header[1:])[0]) - 4)
                if header[:1] == b"X":
                    break
                if self._holder is not writer:
                    await self._turn.acquire()
                    self._holder = writer
                self._pass_on(header[:1], header[1:] + body)
        writer.close()
        if self._holder is writer:
            # Its transaction would have the turn for ever. The first message ends a statement that it has sent in part.
            self._pass_on(b"S", struct.pack("!i", 4))
            self._pass_on(b"Q", _message(b"", b"ROLLBACK\0"))

    def _pass_on(self, kind: bytes, rest: bytes) -> None:
        if kind in (b"Q", b"S"):
            self._unanswered += 1
        self._server.write(kind + rest)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            rest = await reader.readexactly(length - 8)
            if code in (_SSL_REQUEST, _GSS_REQUEST):
                writer.write(b"N")
            elif code == _CANCEL_REQUEST:
                connection = await asyncpg.connect(self._url)
                await connection.execute(f"SELECT pg_cancel_backend({struct.unpack('!i', rest[:4])[0]})")
                await connection.close()
                writer.close()
                return False
            else:
                writer.write(self._greeting)
                return True


@asynccontextmanager
async def naive_pooler(url: str) -> AsyncIterator[str]:
    """Pool connections to *url*, and yield the URL of the pooler."""
    pooler = NaivePooler(url)
    await pooler.connect()
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        parts = urlsplit(url)
        user = parts.username or "postgres"
        yield f"postgresql://{user}@127.0.0.1:{port}{parts.path}?sslmode=disable"
    finally:
        pooler.close()
        server.close()
        await server.wait_closed()


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body
