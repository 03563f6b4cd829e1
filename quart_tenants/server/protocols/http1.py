"""Speak HTTP/1 with one client: read its requests one after the other, and write the answers of the app."""

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import unquote

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Data, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup, WorkerContext
from hypercorn.utils import suppress_body, valid_server_name

from quart_tenants.server.protocols.answers import Answer
from quart_tenants.server.protocols.receiving import RequestReceive
from quart_tenants.server.protocols.requests import Head, RequestError, RequestReader

_STREAM_ID = 1
# A look-up in an enum takes six times as long as a name of the module.
_BEFORE, _WITHIN, _AFTER = ASGIHTTPState.REQUEST, ASGIHTTPState.RESPONSE, ASGIHTTPState.CLOSED
# Events without content, which are made once.
_BUSY, _IDLE, _END = Updated(idle=False), Updated(idle=True), StreamClosed(_STREAM_ID)
# What a client says first that speaks HTTP/2 without having asked for it (RFC 9113, section 3.4).
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"


# The date among these headers is that of a second.
@functools.lru_cache(maxsize=8)
def _list_server_headers(config: Config, _second: int) -> list[tuple[bytes, bytes]]:
    return config.response_headers("h11")


class HeadOfAnswer(Event):
    """Bytes that may wait until the end of this turn of the event loop, so that they go out with what comes next.

    Hypercorn's own events are frozen dataclasses, which take several times as long to make.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data


class Http1Protocol:
    """HTTP/1 on one connection, in place of Hypercorn's `H11Protocol`.

    Attributes:
        stream: The request that is being answered, or None between two requests.
        keep_alive_requests: How many requests have begun on this connection.
    """

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        task_group: TaskGroup,
        connection_state: ConnectionState,
        ssl: bool,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        send: Callable[[Event], Awaitable[None]],
    ) -> None:
        self.stream: HTTPStream | WSStream | None = None
        self.keep_alive_requests = 0
        self._arguments = (app, config, context, task_group, ssl, client, server, self.stream_send, _STREAM_ID)
        self._app = app
        self._config = config
        self._context = context
        self._state = connection_state
        self._send = send
        # Set when the answer is done that the next request waits for.
        self._can_read = asyncio.Event()
        self._reader = RequestReader(config.h11_max_incomplete_size)
        self._answer = Answer("GET", "1.1", closes=False)
        self._reads_body = False
        self._is_last = False
        self._is_websocket = False
        # Whether nothing that the client says from now on is read.
        self._is_over = False
        # Whether we have answered in place of the app, because the request cannot be read to its end.
        self._is_refused = False

    @property
    def has_begun(self) -> bool:
        """Whether a part of the next request is here."""
        return bool(self._reader.unread)

    async def initiate(self) -> None:
        """Do nothing: the client speaks first."""

    async def handle(self, event: Event) -> None:
        """Take what the connection tells.

        Raises:
            H2ProtocolAssumedError: The client speaks HTTP/2.
        """
        if isinstance(event, RawData):
            self._reader.unread += event.data
            if not event.data and not self._is_over and (self._reads_body or (self.has_begun and self.stream is None)):
                # The client says no more, in the middle of a request.
                await self._refuse(400)
            else:
                await self._read()
        elif isinstance(event, Closed):
            await self.stop_reading()
            await self._close_stream()

    async def stop_reading(self) -> None:
        """Begin no other request, also where one waits for the answer before it."""
        self._is_over = True
        self._can_read.set()

    async def stream_send(self, event: StreamEvent) -> None:
        """Write what the app answers.

        Raises:
            AnswerError: It is no answer.
        """
        if isinstance(event, StreamClosed):
            await self.end_request()
        elif isinstance(event, Data):
            # Of a websocket.
            await self._send(RawData(event.data))
        elif isinstance(event, Response):
            await self.begin_answer(event.status_code, event.headers)
        elif isinstance(event, Body):
            if not self._is_refused:
                await self._send(RawData(self._answer.write(event.data)))
        elif isinstance(event, EndBody):
            await self.end_answer(b"")

    async def begin_answer(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Write the head of the answer, or of one before it.

        Raises:
            AnswerError: The status or a header is none.
        """
        if self._is_refused:
            return
        lines = [*headers, *_list_server_headers(self._config, int(time.time()))]
        if status < 200:
            await self._send(RawData(self._answer.hint(status, lines)))
            return
        if self.keep_alive_requests >= self._config.keep_alive_max_requests or self._context.terminated.is_set():
            lines.append((b"connection", b"close"))
        await self._send(HeadOfAnswer(self._answer.begin(status, lines)))

    async def end_answer(self, data: bytes) -> None:
        """Write the last piece of the body, and its end.

        Raises:
            AnswerError: The body is longer or shorter than the head says.
        """
        if self._is_refused:
            return
        written = self._answer.write(data) if data else b""
        try:
            written += self._answer.end()
        finally:
            # A piece that is too short is sent, too.
            await self._send(RawData(written))

    async def end_request(self) -> None:
        """Make ready for the next request, or end the connection."""
        await self._close_stream()
        is_last = self._answer.closes or self._is_websocket or self._is_over or self._context.terminated.is_set()
        if self._answer.is_done and not self._reads_body and not is_last:
            self._can_read.set()
            await self._send(_IDLE)
        else:
            await self.stop_reading()
            await self._send(Closed())

    async def _read(self) -> None:
        unread = self._reader.unread
        while unread and not self._is_over:
            if self._is_websocket:
                data = bytes(unread)
                unread.clear()
                if self.stream is not None:
                    await self.stream.handle(Data(_STREAM_ID, data))
            elif self._reads_body:
                await self._read_body()
            elif self.stream is not None:
                # The next request waits, and nothing more is read from the socket.
                self._can_read.clear()
                await self._can_read.wait()
            elif not await self._read_head():
                return
        if self._is_over:
            unread.clear()

    async def _read_head(self) -> bool:
        """Begin the next request, and return whether its head is here."""
        unread = self._reader.unread
        if self.keep_alive_requests == 0 and unread.startswith(_HTTP2_PREFACE):
            raise H2ProtocolAssumedError(bytes(unread))
        try:
            head = self._reader.read_head()
        except RequestError as error:
            await self._refuse(error.status)
            return False
        if head is None:
            return False
        await self._send(_BUSY)
        await self._begin_request(head)
        return True

    async def _begin_request(self, head: Head) -> None:
        self._answer = Answer(head.method, head.version, closes=head.is_last)
        self._is_last, self._is_websocket = head.is_last, head.is_websocket
        self._reads_body = not head.is_websocket
        headers = head.raw_headers if self._config.h11_pass_raw_headers else head.headers
        if head.is_websocket or not isinstance(self._app, ASGIWrapper):
            self.stream = (WSStream if head.is_websocket else HTTPStream)(*self._arguments)
            await self.stream.handle(Request(_STREAM_ID, headers, head.version, head.method, head.target, self._state))
        else:
            # A `RequestStream` knows from the beginning whether there is a body.
            self._reads_body = head.has_body
            self._is_over = self._is_over or (head.is_last and not head.has_body)
            self.stream = stream = RequestStream(self, *self._arguments)
            await stream.begin(head, headers, self._state, self._app.app)
        self.keep_alive_requests += 1
        await self._context.mark_request()
        if head.awaits_continue and not self._answer.has_begun:
            await self._send(RawData(self._answer.hint(100, _list_server_headers(self._config, int(time.time())))))
        if self._reads_body:
            # A body of nothing ends here.
            await self._read_body()

    async def _read_body(self) -> None:
        try:
            data, ends = self._reader.read_body()
        except RequestError as error:
            await self._refuse(error.status)
            return
        self._reads_body = not ends
        # Behind its last request a client has nothing to say (RFC 9112, section 9.6).
        self._is_over = self._is_over or (ends and self._is_last)
        if data and self.stream is not None:
            await self.stream.handle(Body(_STREAM_ID, data))
        if ends and self.stream is not None:
            await self.stream.handle(EndBody(_STREAM_ID))

    async def _refuse(self, status: int) -> None:
        """Answer *status* if nothing else was answered, and end the connection."""
        if self.stream is None:
            self._answer = Answer("GET", "1.1", closes=False)
        self._is_over = self._is_refused = True
        self._reads_body = False
        self._reader.unread.clear()
        if not self._answer.has_begun:
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            headers += _list_server_headers(self._config, int(time.time()))
            await self._send(RawData(self._answer.begin(status, headers)))
        await self._send(Closed())

    async def _close_stream(self) -> None:
        if self.stream is not None:
            await self.stream.handle(_END)
            self.stream = None


class RequestStream(HTTPStream):
    """One request and its answer. The steps of nearly every answer go without Hypercorn's events."""

    def __init__(self, protocol: Http1Protocol, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._protocol = protocol

    async def begin(self, head: Head, headers: list[tuple[bytes, bytes]], state: ConnectionState, app: Any) -> None:
        """Let *app* answer the request of *head* in a task, if the server has the name that it asks for."""
        self.start_time = time.time()
        path, _, query = head.target.partition(b"?")
        scope: Any = {
            "type": "http",
            "http_version": head.version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": head.method,
            "scheme": self.scheme,
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": self.config.root_path,
            "headers": headers,
            "client": self.client,
            "server": self.server,
            "state": state.copy(),
            "extensions": {},
        }
        self.scope = scope
        # Only the headers are looked at.
        named: Any = head
        if not valid_server_name(self.config, named):
            await self._send_error_response(404)
            self.closed = True
            return
        receive = RequestReceive(self.config.max_app_queue_size, has_body=head.has_body)
        self.app_put = receive.put
        self.task_group.spawn(self._run, app, receive)

    async def handle(self, event: StreamEvent) -> None:
        """Take what the client has sent, or the end of a request that was answered."""
        if self.state is not _AFTER or type(event) is not StreamClosed:
            await super().handle(event)
        elif not self.closed:
            # Hypercorn would first compare its abstract classes one by one.
            self.closed = True
            if self.app_put is not None:
                await self.app_put({"type": "http.disconnect"})

    async def app_send(self, message: Any) -> None:
        """Do with the app's *message* what Hypercorn does."""
        kind = message and message["type"]
        if kind == "http.response.start" and self.state is _BEFORE:
            self.response = message
            await self._protocol.begin_answer(int(message["status"]), message.get("headers", []))
            self.state = _WITHIN
        elif (
            kind == "http.response.body"
            and self.state is _WITHIN
            and not message.get("more_body")
            and not self.response.get("trailers")
        ):
            is_suppressed = suppress_body(self.scope["method"], int(self.response["status"]))
            await self._protocol.end_answer(b"" if is_suppressed else bytes(message.get("body", b"")))
            self.state = _AFTER
            await self.config.log.access(self.scope, self.response, time.time() - self.start_time)
            await self._protocol.end_request()
        else:
            await super().app_send(message)

    async def _run(self, app: Any, receive: RequestReceive) -> None:
        try:
            await app(self.scope, receive, self.app_send)
        except Exception:  # noqa: BLE001  (As Hypercorn does: an error of the app ends its request, not the server.)
            await self.config.log.exception("Error in ASGI Framework")
        finally:
            if not self.closed:
                await self.app_send(None)
