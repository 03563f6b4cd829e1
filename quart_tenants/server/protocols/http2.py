"""Speak HTTP/2 with Hypercorn's parser, and let clients neither make us remember much nor wait in vain."""

import contextlib
from typing import Any, cast

import h2.errors
import h2.events
import h2.exceptions
import hypercorn.protocol
import hypercorn.protocol.h2
from hypercorn.events import Closed
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol.events import Body, Event, StreamClosed
from hypercorn.protocol.h2 import BUFFER_LOW_WATER, H2Protocol, StreamBuffer
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream


def speak_http2() -> None:
    """Let Hypercorn in this process speak HTTP/2 by `Http2Protocol` and `PatientBuffer`."""
    hypercorn.protocol.H2Protocol = Http2Protocol  # type: ignore[assignment, attr-defined]
    hypercorn.protocol.h2.StreamBuffer = PatientBuffer  # type: ignore[misc]


class Http2Protocol(H2Protocol):
    """HTTP/2, with an end for what is answered early, or never to the end."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.streams = _Streams(self)

    async def handle(self, event: ConnectionEvent) -> None:
        """Do with *event* of the connection what Hypercorn does, and let no handler wait for a client that is gone."""
        await super().handle(event)
        if isinstance(event, Closed):
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()

    async def stream_send(self, event: Event) -> None:
        """Send for a stream; break off an answer whose handler has failed halfway.

        Hypercorn forgets the stream, and the client would wait for the rest as long as the connection lasts.
        """
        if isinstance(event, StreamClosed):
            # A WebSocket has said its end already, in what is still to be sent.
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer._complete and type(self.streams.get(event.stream_id)) is HTTPStream:  # noqa: SLF001
                with contextlib.suppress(h2.exceptions.ProtocolError):
                    self.connection.reset_stream(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
                # What sends the pieces finds the stream closed, and forgets it.
                await buffer.close()
                await self._window_updated(event.stream_id)
                await self._flush()
        await super().stream_send(event)

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            # Its answer waits for room that never comes. Streams that are reset do not count against any limit.
            if isinstance(event, h2.events.StreamReset) and event.stream_id in self.stream_buffers:
                await self.stream_buffers[event.stream_id].close()
        await super()._handle_events(events)


class PatientBuffer(StreamBuffer):
    """What of an answer waits for its client, with no more until that is taken.

    Hypercorn's lets the handler go on whenever a small piece was taken out, also none at all. A client that takes
    nothing would so have all of a long answer in our memory.
    https://github.com/davidbrochart/anycorn/pull/61
    """

    async def pop(self, max_length: int) -> bytes:
        """Take out *max_length* bytes at most."""
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class _Streams(dict[int, HTTPStream | WSStream]):
    """The open streams of a connection, and an end for the body of one that was answered early.

    Hypercorn looks for the stream of each piece of a body. Where the answer, such as 413, came before the end of the
    body, there is none, and a `KeyError` would end the connection with all other requests on it.
    """

    def __init__(self, protocol: H2Protocol) -> None:
        super().__init__()
        self._protocol = protocol

    def __missing__(self, stream_id: int) -> HTTPStream | WSStream:
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
