"""Limit what Hypercorn lets a connection do for ever: be silent, speak slowly, or not read its answers.

Hypercorn has two timeouts. `keep_alive_timeout` is one for a proxy's idle connection, which should be long, and for a
stranger who sends no request, which should be short; and it stops for good when HTTP/2 begins without TLS.
`read_timeout` also ends a connection whose handler is still working. So the time in which a request has to arrive is
measured here.
"""

from typing import TYPE_CHECKING, Any

import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.protocol.h2
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol

from quart_tenants.server.protocols.http1 import HeadOfAnswer, Http1Protocol
from quart_tenants.server.protocols.http2 import Http2Protocol, PatientBuffer

if TYPE_CHECKING:
    import asyncio

REQUEST_ARRIVES_WITHIN = 8.0
"""Seconds. From the begin of the connection, or from the first byte of a later request, to the end of the headers."""

LAST_REQUEST_ARRIVES_WITHIN = 0.2
"""Seconds. How long an idle connection stays open when the server ends: a request may be on its way."""

_ANSWER_IS_READ_WITHIN = 5.0
"""Seconds. How long what is left of an answer may wait in the buffer when the connection is closed."""


_open: "set[LimitedConnection]" = set()


def limit_connections() -> None:
    """Let Hypercorn in this process serve with our connections and protocols in place of its own."""
    hypercorn.asyncio.run.TCPServer = LimitedConnection  # type: ignore[assignment, attr-defined]
    hypercorn.protocol.H11Protocol = Http1Protocol  # type: ignore[assignment, attr-defined]
    hypercorn.protocol.H2Protocol = Http2Protocol  # type: ignore[assignment, attr-defined]
    hypercorn.protocol.h2.StreamBuffer = PatientBuffer  # type: ignore[misc]


async def close_idle_connections() -> None:
    """Close the idle connections of this process soon, because it is told to end."""
    for connection in list(_open):
        if connection.idle_task.is_running:
            await connection.idle_task.restart()


def abort_connections() -> None:
    """End all connections of this process. The requests that are served on them are cancelled."""
    for connection in list(_open):
        connection.writer.transport.abort()
        # A connection that waits for an answer before it reads on does not notice the abort.
        connection.close_soon()


class LimitedConnection(TCPServer):
    """A connection on which each request must arrive in time. How long its handler takes is not limited here."""

    idle_task: "_IdleTimer"  # type: ignore[assignment]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.idle_task = _IdleTimer(self)
        self._connected_at = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        # The head of an answer, which waits for the first of its body for one turn of the event loop: they go out in
        # one packet.
        self._held = b""

    async def run(self) -> None:
        """Serve until either side closes."""
        _open.add(self)
        try:
            await super().run()
        finally:
            _open.discard(self)
            self._stop_watch()

    def close_soon(self) -> None:
        """End the connection and the request that is served on it."""
        if hasattr(self, "protocol"):
            self._closing = self.loop.create_task(self._initiate_server_close())

    async def protocol_send(self, event: Any) -> None:
        """Send for the protocol, and follow whether it is busy."""
        # Hypercorn's events are abstract classes, of which `isinstance` is slow.
        kind = type(event)
        if kind is RawData:
            if self._held and event.data:
                await self._send_with_held(event.data)
            elif event.data:
                # The end of a body whose length was said before is no byte at all.
                await super().protocol_send(event)
        elif kind is HeadOfAnswer:
            self._held = event.data
            self.loop.call_soon(self._send_held)
        elif kind is not Updated:
            await super().protocol_send(event)
        elif event.idle:
            await self.idle_task.restart()
            self._watch()
        else:
            self.idle_task.note_use()
            self._stop_watch()

    async def _read_data(self) -> None:
        self._watch()
        while not self.reader.at_eof():
            try:
                data = await self.reader.read(MAX_RECV)
            except OSError:
                break
            await self.protocol.handle(RawData(data))
            self._watch()
        await self.protocol.handle(Closed())

    def _watch(self) -> None:
        """Set, keep or take away the moment by which the next request must be here."""
        protocol: Any = self.protocol.protocol
        if not (protocol.idle if isinstance(protocol, H2Protocol) else protocol.stream is None):
            self._stop_watch()
        elif self._deadline is None:
            if protocol.keep_alive_requests == 0:
                self._deadline = self.loop.call_at(self._connected_at + REQUEST_ARRIVES_WITHIN, self._close_late)
            elif _has_begun(protocol):
                self._deadline = self.loop.call_later(REQUEST_ARRIVES_WITHIN, self._close_late)
        elif protocol.keep_alive_requests > 0 and not _has_begun(protocol):
            # What had begun was a whole PING of HTTP/2, for example.
            self._stop_watch()

    def _stop_watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_late(self) -> None:
        self._deadline = None
        self.close_soon()

    async def _send_with_held(self, data: bytes) -> None:
        """Send the head of an answer with the first of its body. Nothing else is sent meanwhile: this is HTTP/1."""
        data, self._held = self._held + data, b""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except (ConnectionError, RuntimeError):
            await self.protocol.handle(Closed())

    def _send_held(self) -> None:
        if self._held and not self.writer.is_closing():
            self.writer.write(self._held)
        self._held = b""

    async def _close(self) -> None:
        # An answer that breaks off may have been no more than its head.
        self._send_held()
        # There is no protocol where the client had gone before it was served.
        wrapper = getattr(self, "protocol", None)
        if wrapper is not None and isinstance(wrapper.protocol, Http1Protocol):
            await wrapper.protocol.stop_reading()
        # A peer that reads nothing would keep the rest of its answer, and the socket, for ever.
        abort = self.loop.call_later(_ANSWER_IS_READ_WITHIN, self.writer.transport.abort)
        try:
            await super()._close()
        finally:
            abort.cancel()


class _IdleTimer:
    """Closes a connection that nobody uses for `keep_alive_timeout`.

    It has the methods of what Hypercorn has here, which starts a task for each request. The timer is armed anew only
    after it went off.
    """

    def __init__(self, connection: LimitedConnection) -> None:
        self._connection = connection
        # Since when nobody uses the connection, by the event loop's clock; None while somebody does.
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Whether nobody uses the connection now."""
        return self._since is not None

    async def restart(self, *_: object) -> None:
        """Start to wait."""
        self._since = self._connection.loop.time()
        is_ending = self._connection.context.terminated.is_set()
        if is_ending or self._timer is None:
            self._arm(self._get_patience(is_ending))

    def note_use(self) -> None:
        """Note that somebody uses the connection again."""
        self._since = None

    async def stop(self) -> None:
        """Stop to wait, for good."""
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._connection.loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        patience = self._get_patience(self._connection.context.terminated.is_set())
        rest = self._since + patience - self._connection.loop.time()
        if rest > 0:
            self._arm(rest)
        else:
            self._connection.close_soon()

    def _get_patience(self, is_ending: bool) -> float:
        return LAST_REQUEST_ARRIVES_WITHIN if is_ending else self._connection.config.keep_alive_timeout


def _has_begun(protocol: Http1Protocol | H2Protocol) -> bool:
    """Say whether the first part of a request is here that is not complete."""
    if isinstance(protocol, H2Protocol):
        # These are private attributes of h2. A test that sends half a frame fails if they change.
        frames = protocol.connection.incoming_buffer
        return bool(frames._data or frames._headers_buffer)  # noqa: SLF001
    return protocol.has_begun
