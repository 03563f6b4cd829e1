"""What Hypercorn lets a connection do for ever: say nothing, speak slowly, fold its headers, tunnel, read no answer.

Hypercorn has two timeouts. `keep_alive_timeout` is one for a proxy's idle connection, which should be
long, and for a stranger who sends no request, which should be short; and it stops for good when HTTP/2
begins without TLS. `read_timeout` also ends a connection whose handler is still working. So the time
in which a request has to arrive is measured here.
"""

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import hypercorn.asyncio.run
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol

from quart_tenants.server.protocols.http1 import Http1Protocol
from quart_tenants.server.protocols.http2 import speak_http2

if TYPE_CHECKING:
    from hypercorn.asyncio.worker_context import WorkerContext

REQUEST_ARRIVES_WITHIN = 8.0
"""Seconds. From the connection's begin, or from a later request's first byte, to the end of its headers."""

_ANSWER_IS_READ_WITHIN = 5.0
"""Seconds. How long what is left of an answer may wait in the buffer when the connection is closed."""


_open: "set[LimitedConnection]" = set()
_ends: "WeakKeyDictionary[WorkerContext, asyncio.Task[None]]" = WeakKeyDictionary()


def limit_connections() -> None:
    """Let Hypercorn's asyncio workers in this process serve with `LimitedConnection`."""
    hypercorn.asyncio.run.TCPServer = LimitedConnection  # type: ignore[assignment, attr-defined]
    speak_http2()


def abort_connections() -> None:
    """End all connections of this process, which cancels what is being served on them."""
    for connection in list(_open):
        connection.writer.transport.abort()
        # Who waits until it may read what came before an answer does not notice that.
        connection.close_soon()


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
        if hasattr(self, "protocol"):
            self._closing = self.loop.create_task(self._initiate_server_close())

    async def protocol_send(self, event: Event) -> None:
        """Send for the protocol, and follow whether it is busy."""
        if isinstance(event, RawData) and not event.data:
            # The end of a body whose length was said before; or a head that waits for its body.
            self.loop.call_soon(self._send_held)
            return
        if not isinstance(event, Updated):
            await super().protocol_send(event)
        elif event.idle:
            self.idle_task.begin()
            self._watch()
        else:
            self.idle_task.end()
            self._stop_watch()

    async def _read_data(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, H11Protocol):
            self.protocol.protocol = Http1Protocol(protocol)
        self._watch()
        while not self.reader.at_eof():
            try:
                data = await self.reader.read(MAX_RECV)
            except OSError:
                break
            before = self.protocol.protocol
            await self.protocol.handle(RawData(data))
            now = self.protocol.protocol
            if now is not before and isinstance(now, H2Protocol) and now.idle:
                # Hypercorn takes the preface for a request, after which nothing is idle.
                self.idle_task.begin()
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

    def _find_http1(self) -> Http1Protocol | None:
        # There is none where the client had gone before it was served.
        wrapper = getattr(self, "protocol", None)
        protocol = None if wrapper is None else wrapper.protocol
        return protocol if isinstance(protocol, Http1Protocol) else None

    def _send_held(self) -> None:
        protocol = self._find_http1()
        if protocol is not None and not self.writer.is_closing():
            data = protocol.release_held()
            if data:
                self.writer.write(data)

    async def _close(self) -> None:
        # Of an answer that breaks off.
        self._send_held()
        protocol = self._find_http1()
        if protocol is not None:
            await protocol.stop_reading()
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

    def begin(self) -> None:
        """Wait, from now on."""
        self.end()
        connection = self._connection
        if connection.context.terminated.is_set():
            connection.close_soon()
        else:
            self._timer = connection.loop.call_later(connection.config.keep_alive_timeout, connection.close_soon)

    def end(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def restart(self, _task_group: object, _action: object) -> None:
        """Wait, from now on, as Hypercorn asks for it."""
        self.begin()

    async def stop(self) -> None:
        """Wait no more, as Hypercorn asks for it."""
        self.end()


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


def _is_idle(protocol: H11Protocol | H2Protocol) -> bool:
    return protocol.idle if isinstance(protocol, H2Protocol) else protocol.stream is None


def _has_begun(protocol: H11Protocol | H2Protocol) -> bool:
    """Say whether the first part of a request is here that is not complete."""
    if isinstance(protocol, H2Protocol):
        # Attributes of h2's own; a test of half-sent frames fails should they change.
        frames = protocol.connection.incoming_buffer
        return bool(frames._data or frames._headers_buffer)  # noqa: SLF001
    return bool(protocol.connection.trailing_data[0])
