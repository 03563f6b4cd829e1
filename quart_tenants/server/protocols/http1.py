"""Speak HTTP/1: a plain request at one go, all else by h11, without what that forgives."""

from typing import Any

import h11
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.utils import build_and_validate_headers

from quart_tenants.server.protocols.plain_stream import PlainStream
from quart_tenants.server.protocols.request_heads import PlainRequest, find_plain_request


class Http1Protocol(H11Protocol):
    """Hypercorn's, which leaves h11 out where both a request and its answer are plain.

    So h11 knows all of a request or nothing of it.
    """

    def __init__(self, replaced: H11Protocol) -> None:
        """Take the place of *replaced*, which has read nothing yet."""
        super().__init__(
            replaced.app,
            replaced.config,
            replaced.context,
            replaced.task_group,
            replaced.connection_state,
            replaced.ssl,
            replaced.client,
            replaced.server,
            replaced.send,
        )
        self._h11 = self.connection = StrictConnection(self.config)

    async def handle(self, event: Event) -> None:
        """Do with *event* of the connection what Hypercorn does."""
        if isinstance(event, RawData):
            if self.stream is None:
                request = self._find_plain_request(event.data)
                if request is not None and isinstance(self.app, ASGIWrapper):
                    await self._begin(PlainStream(self, request), self.app)
                    return
            elif isinstance(self.stream, PlainStream) and self._h11.is_fresh:
                if not event.data:
                    # The client has gone, which we are told next.
                    return
                # What comes before the answer waits, and nothing more is read. So it is with h11, too.
                await self.can_read.clear()
                await self.can_read.wait()
            if self._h11.is_closed:
                return
        else:
            await self.stop_reading()
        await super().handle(event)

    async def stop_reading(self) -> None:
        """Let nobody wait any more to read what came before an answer."""
        self._h11.is_closed = True
        await self.can_read.set()

    def release_held(self) -> bytes:
        """Return what is to be sent now of an answer of which the rest does not come in the same moment."""
        if isinstance(self.stream, PlainStream) and self.stream.holds_start:
            self.stream.tell_h11()
        return self._h11.release_head()

    def tell_h11(self, request: bytes, start: Any) -> None:
        """Let h11 read *request*, and write the answer's beginning if there is one."""
        self._h11.read_request(request)
        if start is not None:
            headers = build_and_validate_headers(start["headers"]) + self.config.response_headers("h11")
            self._h11.send(h11.Response(headers=headers, status_code=int(start["status"])))

    async def end_plain_request(self) -> None:
        """Make ready for the next request, as Hypercorn does where h11 has seen both ends."""
        await self._close_stream()
        await self.can_read.set()
        # h11 is not idle where the app has sent something else at the same time.
        is_last = self.context.terminated.is_set() or self._h11.is_closed or self._h11.our_state is not h11.IDLE
        await self.send(Closed() if is_last else Updated(idle=True))

    def _find_plain_request(self, data: bytes) -> PlainRequest | None:
        # The last one's answer says that it is the last.
        is_last = self.keep_alive_requests + 1 >= self.config.keep_alive_max_requests
        if is_last or self.config.server_names or self.config.h11_pass_raw_headers or not self._h11.is_fresh:
            return None
        return find_plain_request(data)

    async def _begin(self, stream: PlainStream, app: ASGIWrapper) -> None:
        # As H11Protocol does it.
        self.stream = stream
        await self.send(Updated(idle=False))
        self.task_group.spawn(stream.run, app.app)
        self.keep_alive_requests += 1
        await self.context.mark_request()


class StrictConnection(h11.Connection):
    """h11, without what it forgives in the lines of a request's head, and without a way to HTTP/2.

    Attributes:
        is_closed: Whether nobody waits for the next request any more.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=config.h11_max_incomplete_size)
        self.is_closed = False
        self._refused = False
        # Of an answer: it is sent together with what comes next, in one packet.
        self._held_head = b""

    @property
    def is_fresh(self) -> bool:
        """Whether the next request's first byte is still to come."""
        is_idle = self.their_state is h11.IDLE and self.our_state is h11.IDLE
        return is_idle and not self.is_closed and not self.trailing_data[0]

    def send(self, event: Any) -> Any:
        """Return what h11 returns, but the head of an answer only with what comes next."""
        data = super().send(event)
        if type(event) is h11.Response:
            self._held_head = data
            return b""
        return data if data is None else self.release_head() + data

    def release_head(self) -> bytes:
        """Return the head of an answer that was not sent yet, once."""
        head, self._held_head = self._held_head, b""
        return head

    def read_request(self, data: bytes) -> None:
        """Read the request without a body that *data* is, also where nobody waits for another one any more."""
        self.receive_data(data)
        # The request and its end.
        super().next_event()
        super().next_event()

    def next_event(self) -> Any:
        """Return what h11 returns.

        Raises:
            RemoteProtocolError: The head of the next request can be read in two ways, or breaks the protocol.
        """
        if self.is_closed:
            # h11 would wait for the end of an answer that nobody reads.
            return h11.ConnectionClosed()
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
