"""What Hypercorn lets a connection do for ever: say nothing, speak slowly, fold its headers, tunnel, read no answer.

Hypercorn has two timeouts. `keep_alive_timeout` is one for a proxy's idle connection, which should be
long, and for a stranger who sends no request, which should be short; and it stops for good when HTTP/2
begins without TLS. `read_timeout` also ends a connection whose handler is still working. So the time
in which a request has to arrive is measured here.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import h2.errors
import h2.exceptions
import h11
import hypercorn.asyncio.run
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol

from quart_tenants.app.answer_heads import remember_headers

if TYPE_CHECKING:
    from hypercorn.asyncio.worker_context import WorkerContext
    from hypercorn.config import Config
    from hypercorn.protocol.http_stream import HTTPStream
    from hypercorn.protocol.ws_stream import WSStream

REQUEST_ARRIVES_WITHIN = 8.0
"""Seconds. From the connection's begin, or from a later request's first byte, to the end of its headers."""

_ANSWER_IS_READ_WITHIN = 5.0
"""Seconds. How long what is left of an answer may wait in the buffer when the connection is closed."""


_open: "set[LimitedConnection]" = set()
_ends: "WeakKeyDictionary[WorkerContext, asyncio.Task[None]]" = WeakKeyDictionary()


def limit_connections() -> None:
    """Let Hypercorn's asyncio workers in this process serve with `LimitedConnection`."""
    hypercorn.asyncio.run.TCPServer = LimitedConnection  # type: ignore[assignment, attr-defined]


def abort_connections() -> None:
    """End all connections of this process, which cancels what is being served on them."""
    for connection in list(_open):
        connection.writer.transport.abort()


class LimitedConnection(TCPServer):
    """A connection of which each request must arrive in time; how long its handler takes is not looked at."""

    idle_task: "_IdleTimer"  # type: ignore[assignment]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.idle_task = _IdleTimer(self)
        self._connected_at = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until either side closes."""
        _open.add(self)
        _close_idle_at_the_end(self.context)
        try:
            await super().run()
        finally:
            _open.discard(self)
            self._stop_watch()

    def close_soon(self) -> None:
        """End it, and what is being served on it."""
        self._closing = self.loop.create_task(self._initiate_server_close())

    async def protocol_send(self, event: Event) -> None:
        """Send for the protocol, and follow whether it is busy."""
        if isinstance(event, RawData) and not event.data:
            # The end of a body whose length was said before; or a head that waits for its body.
            if self._get_held_head():
                self.loop.call_soon(self._send_held_head)
            return
        await super().protocol_send(event)
        if isinstance(event, Updated):
            if event.idle:
                self._watch()
            else:
                self._stop_watch()

    async def _read_data(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, H11Protocol):
            protocol.connection = _StrictConnection(self.config)
            remember_headers(protocol)
        else:
            protocol.streams = _Streams(protocol)
        self._watch()
        while not self.reader.at_eof():
            try:
                data = await self.reader.read(MAX_RECV)
            except OSError:
                break
            before = self.protocol.protocol
            await self.protocol.handle(RawData(data))
            now = self.protocol.protocol
            if now is not before and isinstance(now, H2Protocol):
                now.streams = _Streams(now, now.streams)
                if now.idle:
                    # Hypercorn takes the preface for a request, after which nothing is idle.
                    await self.idle_task.restart(self._task_group, self._idle_timeout)
            self._watch()
        await self.protocol.handle(Closed())

    def _watch(self) -> None:
        """Set, keep or take away the moment by which the next request must be here."""
        protocol = self.protocol.protocol
        if not _is_idle(protocol):
            self._stop_watch()
        elif self._deadline is None:
            if protocol.keep_alive_requests == 0:
                self._deadline = self.loop.call_at(self._connected_at + REQUEST_ARRIVES_WITHIN, self._close_late)
            elif _has_begun(protocol):
                self._deadline = self.loop.call_later(REQUEST_ARRIVES_WITHIN, self._close_late)
        elif protocol.keep_alive_requests > 0 and not _has_begun(protocol):
            # Such as a whole PING of HTTP/2.
            self._stop_watch()

    def _stop_watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_late(self) -> None:
        self._deadline = None
        self.close_soon()

    def _get_held_head(self) -> bytes:
        connection = getattr(self.protocol.protocol, "connection", None)
        return connection.held_head if isinstance(connection, _StrictConnection) else b""

    def _send_held_head(self) -> None:
        """Send the head of an answer whose body does not come in the same moment."""
        head = self._get_held_head()
        if head and not self.writer.is_closing():
            cast("_StrictConnection", self.protocol.protocol.connection).held_head = b""
            self.writer.write(head)

    async def _close(self) -> None:
        # A peer that reads nothing would keep the rest of its answer, and the socket, for ever.
        abort = self.loop.call_later(_ANSWER_IS_READ_WITHIN, self.writer.transport.abort)
        try:
            await super()._close()
        finally:
            abort.cancel()


class _IdleTimer:
    """Closes a connection that nobody uses for `keep_alive_timeout`. In place of Hypercorn's task for each request."""

    def __init__(self, connection: LimitedConnection) -> None:
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        """Whether nobody uses it now."""
        return self._timer is not None

    async def restart(self, _task_group: object, _action: object) -> None:
        """Begin to wait."""
        await self.stop()
        connection = self._connection
        if connection.context.terminated.is_set():
            connection.close_soon()
        else:
            self._timer = connection.loop.call_later(connection.config.keep_alive_timeout, connection.close_soon)

    async def stop(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _close_idle_at_the_end(context: "WorkerContext") -> None:
    """Let the idle connections of this process be closed as soon as it is told to end."""
    if context in _ends:
        return

    async def close_idle() -> None:
        await context.terminated.wait()
        for connection in list(_open):
            if connection.idle_task.is_running:
                connection.close_soon()

    _ends[context] = asyncio.get_running_loop().create_task(close_idle())


class _Streams(dict[int, "HTTPStream | WSStream"]):
    """The open streams of an HTTP/2 connection, and an end for the body of one that was answered early.

    Hypercorn looks for the stream of each piece of a body. Where the answer, such as 413, came before the end of the
    body, there is none, and a `KeyError` would end the connection with all other requests on it.
    """

    def __init__(self, protocol: H2Protocol, streams: Mapping[int, "HTTPStream | WSStream"] = MappingProxyType({})):
        super().__init__(streams)
        self._protocol = protocol

    def __missing__(self, stream_id: int) -> "HTTPStream | WSStream":
        return cast("HTTPStream", _AnsweredStream(self._protocol, stream_id))


class _AnsweredStream:
    """Stands for a stream that is gone."""

    def __init__(self, protocol: H2Protocol, stream_id: int) -> None:
        self._connection = protocol.connection
        self._stream_id = stream_id

    async def handle(self, event: object) -> None:
        """Tell a client that still sends its body that nobody wants it (RFC 9113 section 8.1)."""
        if isinstance(event, Body):
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._connection.reset_stream(self._stream_id, h2.errors.ErrorCodes.NO_ERROR)


class _StrictConnection(h11.Connection):
    """h11, without what it forgives in the lines of a request's head, and without a way to HTTP/2."""

    def __init__(self, config: "Config") -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=config.h11_max_incomplete_size)
        self._refused = False
        # Of an answer: it is sent together with what comes next, in one packet.
        self.held_head = b""

    def send(self, event: Any) -> Any:
        """Return what h11 returns, but the head of an answer only with what comes next."""
        data = super().send(event)
        if type(event) is h11.Response:
            self.held_head = data
            return b""
        if self.held_head and data is not None:
            data, self.held_head = self.held_head + data, b""
        return data

    def next_event(self) -> Any:
        """Return what h11 returns.

        Raises:
            RemoteProtocolError: The head of the next request can be read in two ways, or breaks the protocol.
        """
        if self.their_state is h11.IDLE and not self._refused:
            head, _, _ = self.trailing_data[0].partition(b"\r\n\r\n")
            self._refused = _has_ambiguous_line(head)
        if self._refused:
            # From now on always: what follows in the buffer must not become a request.
            raise h11.RemoteProtocolError("ambiguous line in the request's head", error_status_hint=400)
        event = super().next_event()
        return _ignore_http2_upgrade(event) if type(event) is h11.Request else event


def _ignore_http2_upgrade(request: h11.Request) -> h11.Request:
    """Return *request* without `Upgrade: h2c`, which a server may ignore (RFC 9110 section 7.8).

    A proxy that passes it on becomes a mere tunnel after our 101, through which a visitor speaks to us as the proxy
    that we trust: with any X-Forwarded-For.
    """
    headers = request.headers.raw_items()
    if not any(name.lower() == b"upgrade" for name, _ in headers):
        return request
    kept = [(name, value) for name, value in headers if not _asks_for_http2(name, value)]
    if len(kept) == len(headers):
        return request
    return h11.Request(method=request.method, headers=kept, target=request.target, http_version=request.http_version)


def _asks_for_http2(name: bytes, value: bytes) -> bool:
    # Hypercorn reads them so; latin-1 has more blanks than ASCII.
    return name.lower() == b"upgrade" and value.decode("latin-1").strip().lower() == "h2c"


def _has_ambiguous_line(head: bytes) -> bool:
    # A line that begins with a blank continues the one before (obs-fold): a proxy that does not know that reads
    # another header than we do. One that ends without CR is a line to some and none to others.
    if b"\n " in head or b"\n\t" in head:
        return True
    # The last byte may be half of a line's end.
    head = head.removesuffix(b"\r")
    return not head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n")


def _is_idle(protocol: H11Protocol | H2Protocol) -> bool:
    return protocol.idle if isinstance(protocol, H2Protocol) else protocol.stream is None


def _has_begun(protocol: H11Protocol | H2Protocol) -> bool:
    """Say whether the first part of a request is here that is not complete."""
    if isinstance(protocol, H2Protocol):
        # Attributes of h2's own; a test of half-sent frames fails should they change.
        frames = protocol.connection.incoming_buffer
        return bool(frames._data or frames._headers_buffer)  # noqa: SLF001
    return bool(protocol.connection.trailing_data[0])
