"""Answer a plain request by one write, where the answer is plain, too: in one piece, whose length its head says."""

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

from hypercorn.events import RawData
from hypercorn.protocol.h11 import STREAM_ID
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.typing import ASGIFramework, ASGIReceiveEvent

from quart_tenants.server.one_task_requests import WATCH_CLIENT
from quart_tenants.server.protocols.answer_heads import PlainHead, find_plain_head
from quart_tenants.server.protocols.request_heads import PlainRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from quart_tenants.server.protocols.http1 import Http1Protocol


class PlainStream(HTTPStream):
    """A request of which h11 knows nothing, and never will if its answer is plain.

    h11 is told of it as soon as the answer is anything else: a stream, one that does not say its length, or has another
    one than it says, or none. So what could be framed wrongly is framed by h11.
    """

    def __init__(self, protocol: "Http1Protocol", request: PlainRequest) -> None:
        super().__init__(
            protocol.app,
            protocol.config,
            protocol.context,
            protocol.task_group,
            protocol.ssl,
            protocol.client,
            protocol.server,
            protocol.stream_send,
            STREAM_ID,
        )
        self._protocol = protocol
        # As it came; empty as soon as h11 knows it, or need not know it any more.
        self._request = request.data
        # The answer's beginning, of which nothing was sent yet.
        self._start: Any = None
        self._head: PlainHead | None = None
        self._body_received = False
        self._gone: asyncio.Future[None] | None = None
        self._watch = _Watch()
        path, _, query = request.target.partition(b"?")
        scope: Any = {
            "type": "http",
            "http_version": "1.1",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": "GET",
            "scheme": self.scheme,
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": self.config.root_path,
            "headers": request.headers,
            "client": self.client,
            "server": self.server,
            "state": protocol.connection_state.copy(),
            "extensions": {WATCH_CLIENT: self._watch},
        }
        self.scope = scope
        self.start_time = time.time()

    async def run(self, app: ASGIFramework) -> None:
        """Let *app* answer."""
        try:
            await app(self.scope, self._receive, self.app_send)
        except Exception:  # noqa: BLE001  (Hypercorn's own way)
            await self.config.log.exception("Error in ASGI Framework")
        finally:
            await self.app_send(None)

    async def app_put(self, event: object) -> None:
        """Be told that the connection is gone, or the answer sent: nothing else comes."""
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        self._watch.tell()

    @property
    def holds_start(self) -> bool:
        """Whether the answer has begun, and nothing of it is sent yet."""
        return self._start is not None and bool(self._request)

    async def app_send(self, message: Any) -> None:
        """Do with the app's *message* what Hypercorn does."""
        if self._request:
            kind = None if message is None else message["type"]
            if kind == "http.response.start" and self._start is None:
                # Perhaps they can be read only once, or the app changes them later.
                message = {**message, "headers": [*message.get("headers", ())]}
                if self._hold(message):
                    # Should nothing else come in this moment, `tell_h11` is called.
                    await self._protocol.send(RawData(b""))
                    return
            elif kind == "http.response.body" and self._head is not None and not message.get("more_body"):
                # Of what else has bytes, its length may count something else.
                body = bytes(message.get("body", b""))
                if len(body) == self._head.body_length:
                    await self._answer(self._head.data + body)
                    return
            self.tell_h11()
        await super().app_send(message)

    def tell_h11(self) -> None:
        """Let h11 know the request, and what of the answer there is."""
        request, self._request = self._request, b""
        self._protocol.tell_h11(request, self._start)
        if self._start is not None:
            self.response, self.state = self._start, ASGIHTTPState.RESPONSE

    def _hold(self, start: Any) -> bool:
        """Return whether *start*, which is kept then, begins a plain answer."""
        if not start.get("trailers"):
            self._head = find_plain_head(int(start["status"]), start["headers"], self.config)
        if self._head is not None:
            self._start = start
        return self._head is not None

    async def _answer(self, data: bytes) -> None:
        self._request = b""
        # Closed only when all is sent: a client that goes away before that is logged as one.
        self.response, self.state = self._start, ASGIHTTPState.RESPONSE
        await self._protocol.send(RawData(data))
        self.state = ASGIHTTPState.CLOSED
        await self.config.log.access(self.scope, self.response, time.time() - self.start_time)
        await self._protocol.end_plain_request()

    async def _receive(self) -> ASGIReceiveEvent:
        if not self._body_received:
            self._body_received = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if not self.closed:
            self._gone = self._gone or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._gone)
        return {"type": "http.disconnect"}


class _Watch:
    """Whom to call when the client goes away. Of its own: a scope that knew its stream would be garbage in a circle."""

    __slots__ = ("_gone", "_watcher")

    def __init__(self) -> None:
        self._gone = False
        self._watcher: Callable[[], None] | None = None

    def __call__(self, watcher: "Callable[[], None] | None") -> None:
        self._watcher = watcher
        # The client may have gone before the app's first step.
        if self._gone:
            self.tell()

    def __deepcopy__(self, _memo: object) -> Self:
        # Hypercorn's ProxyFixMiddleware copies whole scopes, and it is this one that is told.
        return self

    def tell(self) -> None:
        """Say, now or to who asks later, that the client has gone."""
        self._gone = True
        if self._watcher is not None:
            self._watcher()
