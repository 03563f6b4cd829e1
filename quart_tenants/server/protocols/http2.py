"""Speak HTTP/2 with Hypercorn's parser, without what one client could do there to our memory or to other requests.

Each part of this module mends something that a test shows of Hypercorn's own protocol (tests/server/protocols and
tests/security): a client that reads nothing must not fill our memory; an answer that comes before the end of its
request, such as 413, must not end the other requests of its connection; and a client must not wait for an answer whose
handler has failed.
"""

import contextlib
from types import SimpleNamespace
from typing import Any, cast

import h2.errors
import h2.exceptions
from hypercorn.protocol.events import Body, Event, StreamClosed
from hypercorn.protocol.h2 import BUFFER_LOW_WATER, H2Protocol, StreamBuffer
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.protocol.ws_stream import WSStream


class Http2Protocol(H2Protocol):
    """HTTP/2 in which each answer has an end, also one that comes early or breaks off."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.streams = _Streams(self)

    async def stream_send(self, event: Event) -> None:
        """Send for a stream. Reset the stream of an answer whose handler has failed halfway.

        Hypercorn forgets such a stream, and the client would wait for the rest as long as the connection lasts.
        """
        if isinstance(event, StreamClosed):
            # A WebSocket has said its end already, in what is still to be sent.
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer._complete and type(self.streams.get(event.stream_id)) is HTTPStream:  # noqa: SLF001
                with contextlib.suppress(h2.exceptions.ProtocolError):
                    self.connection.reset_stream(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
                # The task that sends the pieces finds the stream closed, and forgets it.
                await buffer.close()
                await self._window_updated(event.stream_id)
                await self._flush()
        await super().stream_send(event)


class PatientBuffer(StreamBuffer):
    """What of an answer waits for its client. The handler waits until the client has taken most of it.

    Hypercorn's buffer lets the handler go on whenever a small piece was taken out, or nothing at all. A client that
    takes nothing would so have all of a long answer in our memory.
    https://github.com/davidbrochart/anycorn/pull/61
    """

    async def pop(self, max_length: int) -> bytes:
        """Take out at most *max_length* bytes."""
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class _Streams(dict[int, HTTPStream | WSStream]):
    """The open streams of a connection. A stream that was answered before the end of its body has a substitute.

    Hypercorn looks up the stream for each piece of a body. Where the answer came before the end of the body there is no
    stream any more, and a `KeyError` would end the connection with all other requests on it.
    """

    def __init__(self, protocol: H2Protocol) -> None:
        super().__init__()
        self._protocol = protocol

    def __missing__(self, stream_id: int) -> HTTPStream | WSStream:
        async def handle(event: object) -> None:
            # Tell a client that still sends its body that nobody wants the rest (RFC 9113, section 8.1).
            if isinstance(event, Body):
                with contextlib.suppress(h2.exceptions.ProtocolError):
                    self._protocol.connection.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)

        return cast("HTTPStream", SimpleNamespace(handle=handle))
