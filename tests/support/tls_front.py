"""TLS in front of a PostgreSQL that speaks none, as the embedded one."""

import asyncio
import contextlib
import itertools
import ssl
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

import trustme

from tests.support.tcp_proxy import connect_to

# The first message of a client that wants TLS: its length and a number.
# https://www.postgresql.org/docs/18/protocol-message-formats.html
_SSL_REQUEST = b"\0\0\0\x08" + (80877103).to_bytes(4, "big")


class TlsFront:
    """`async with TlsFront(url, folder) as front:` listens on 127.0.0.1; its own address is `front.url`.

    Attributes:
        sessions: How many clients spoke TLS; those that did not are sent away.
        url: Without `sslmode`.
        authority: The file with the certificate of who has signed this server's.
    """

    def __init__(self, url: str, folder: Path, *, name: str = "127.0.0.1", at_once: bool = False) -> None:
        """Make a certificate.

        Args:
            url: Of the PostgreSQL behind.
            folder: For the authority's certificate.
            name: Whom the certificate is for.
            at_once: Whether clients begin with TLS, instead of asking for it by a message of PostgreSQL's.
        """
        self._target = urlsplit(url)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority = trustme.CA()
        authority.issue_cert(name).configure_cert(self._context)
        self.authority = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self._at_once = at_once
        if at_once:
            self._context.set_alpn_protocols(["postgresql"])
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._spoke: list[Literal["client", "server"]] = []
        self.sessions = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        context = self._context if self._at_once else None
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        port = self._server.sockets[0].getsockname()[1]
        user = self._target.netloc.rpartition("@")[0]
        self.url = f"postgresql://{user}@127.0.0.1:{port}{self._target.path}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def count_answers(self) -> int:
        """Return how often the server answered since this was asked last."""
        count = [who for who, _ in itertools.groupby(self._spoke)].count("server")
        self._spoke.clear()
        return count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        # A client may leave at any time, and may not like the certificate. A cancelled task would be noise on 3.11.
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            if not self._at_once:
                if await reader.readexactly(len(_SSL_REQUEST)) != _SSL_REQUEST:
                    writer.transport.abort()
                    return
                writer.write(b"S")
                await writer.start_tls(self._context)
            self.sessions += 1
            await self._pass_on(reader, writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await connect_to(self._target)
        pumps = [
            asyncio.create_task(self._pump("client", reader, server_writer)),
            asyncio.create_task(self._pump("server", server_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, server_writer):
                end.close()

    async def _pump(
        self, who: Literal["client", "server"], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self._spoke.append(who)
                writer.write(data)
                await writer.drain()
