"""A network between a test and its PostgreSQL, which can break at any message.

Knows where messages begin and end: from the client one without a type at first, then type and length; from
the server type and length from the start. https://www.postgresql.org/docs/18/protocol-message-formats.html
"""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Literal, Self, TypeAlias
from urllib.parse import SplitResult, parse_qs, urlsplit

Direction: TypeAlias = Literal["client", "server"]
"""Who sends a message."""

_ENCRYPTION_REQUESTS = (80877103, 80877104)


async def connect_to(target: SplitResult) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the PostgreSQL that the URL *target* names, by TCP or by a socket in a folder."""
    query = parse_qs(target.query)
    host = query.get("host", [target.hostname or "localhost"])[0]
    port = int(query.get("port", [str(target.port or 5432)])[0])
    if host.startswith("/"):
        return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    return await asyncio.open_connection(host, port)


class Link:
    """One connection through the proxy: to a client, and to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        # What is sent here is read and thrown away, for ever.
        self.swallowed = False

    def swallow(self) -> None:
        """Pass on nothing more."""
        self.swallowed = True

    def reset(self) -> None:
        """Break both ends at once, as a router does that has forgotten them."""
        for writer in (self.client, self.server):
            end = writer.get_extra_info("socket")
            if end is not None and end.family != socket.AF_UNIX:
                # Closed so, the other end is told by RST instead of a polite FIN.
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class TcpProxy:
    """`async with TcpProxy(url) as proxy:` listens on 127.0.0.1; its own address is `proxy.url`.

    Attributes:
        counts: Messages since `watch`, by who sent them.
        held: Set when a message has met the gate of `hold_until`.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._links: set[Link] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._counting = False
        self._hole = False
        self._connection_delay = self._message_delay = 0.0
        self._gate: asyncio.Event | None = None
        self.held = asyncio.Event()
        self._plan: tuple[Direction, int, Callable[[Link], object]] | None = None
        self.counts: Counter[Direction] = Counter()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user = self._target.netloc.rpartition("@")[0]
        self.url = f"postgresql://{user}@127.0.0.1:{port}{self._target.path}?sslmode=disable"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        self.reset_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def watch(self) -> None:
        """Begin to count messages at 0, and plan nothing."""
        self.counts.clear()
        self._plan = None
        self._counting = True

    def unwatch(self) -> None:
        """Count nothing, and plan nothing."""
        self._plan = None
        self._counting = False

    def reset_at(self, direction: Direction, number: int) -> None:
        """Break the connection instead of passing on message *number*, counted from 1."""
        self._plan = direction, number, Link.reset

    def call_at(self, direction: Direction, number: int, act: Callable[[], object]) -> None:
        """Call *act* just before message *number* is passed on."""
        self._plan = direction, number, lambda _: act()

    def swallow_at(self, direction: Direction, number: int) -> None:
        """Pass on nothing more on that connection, from message *number* on."""
        self._plan = direction, number, Link.swallow

    def delay_connections(self, seconds: float) -> None:
        """Let each new connection take so long until it reaches the server."""
        self._connection_delay = seconds

    def hold_back(self, seconds: float) -> None:
        """Let the next message of a client take so long until it reaches the server."""
        self._message_delay = seconds

    def hold_until(self, gate: asyncio.Event) -> None:
        """Let the next message of a client, and all that it sends after that, wait for *gate*."""
        self._gate = gate

    def open_black_hole(self) -> None:
        """Swallow everything, on the connections of now for ever and on new ones until `close_black_hole`."""
        self._hole = True
        for link in self._links:
            link.swallow()

    def close_black_hole(self) -> None:
        """Serve new connections again; those of before stay where they are."""
        self._hole = False

    def reset_all(self) -> None:
        """Break every connection."""
        for link in list(self._links):
            link.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(self._connection_delay)
        try:
            server_reader, server_writer = await connect_to(self._target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, server_writer)
        link.swallowed = self._hole
        self._links.add(link)
        pumps = [
            asyncio.create_task(self._pump(link, "client", reader, server_writer)),
            asyncio.create_task(self._pump(link, "server", server_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            # Through a hole nobody hears that the other end has gone.
            if link.swallowed:
                await asyncio.Event().wait()
        finally:
            for pump in pumps:
                pump.cancel()
            self._links.discard(link)
            # What was written is still sent.
            for end in (writer, server_writer):
                end.close()

    async def _pump(
        self, link: Link, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        # IncompleteReadError is how a stream that ends ends.
        with contextlib.suppress(OSError, EOFError):
            if direction == "client":
                await self._pass_start(link, reader, writer)
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(head[1:], "big") - 4)
                self._look_at(link, direction, head[:1], body)
                await self._meet(link, direction)
                if direction == "client" and self._message_delay:
                    delay, self._message_delay = self._message_delay, 0.0
                    await asyncio.sleep(delay)
                if direction == "client" and self._gate is not None:
                    gate, self._gate = self._gate, None
                    self.held.set()
                    await gate.wait()
                if not link.swallowed:
                    writer.write(head + body)
                    await writer.drain()

    async def _pass_start(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(8)
            length, code = struct.unpack("!ii", head)
            body = await reader.readexactly(length - 8)
            if link.swallowed:
                continue
            if code not in _ENCRYPTION_REQUESTS:
                self._look_at(link, "client", b"", body)
                writer.write(head + body)
                return
            link.client.write(b"N")

    def _look_at(self, link: Link, direction: Direction, kind: bytes, body: bytes) -> None:
        """Do nothing with a message before it is passed on. *kind* is empty for the first one of a connection."""

    async def _meet(self, link: Link, direction: Direction) -> None:
        if not self._counting or link.swallowed:
            return
        self.counts[direction] += 1
        if self._plan is not None and self._plan[:2] == (direction, self.counts[direction]):
            self._plan[2](link)
            # The client hears of it before the message arrives.
            await asyncio.sleep(0)
