"""Serve each request in the server's own task, where Quart takes three more.

Quart handles a request in one task, reads its body in another, sends the answer in a third before Python 3.12, and
waits for them in the server's own. Here the server's task handles it. One beside it reads the body and notices when the
client goes away, where the server does not say that by itself.
"""

import asyncio
import contextlib
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, cast

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPResponseStartEvent, HTTPScope
from quart import Quart, asgi
from quart.asgi import ASGIHTTPConnection
from quart.utils import encode_headers
from quart.wrappers import Request, Response
from quart.wrappers.response import DataBody
from werkzeug.sansio.utils import get_host
from werkzeug.utils import cached_property

from quart_tenants.web.context import forgetting_request
from quart_tenants.web.guards.deadlines import DeadlineError, Deadlines
from quart_tenants.web.guards.framing import has_body
from quart_tenants.web.hosts import LONGEST_HOST

WATCH_CLIENT = "quart_tenants.watch_client"
"""Among a scope's extensions: a function by which a server, in place of a task that receives, calls when the client of
a request without a body goes away. Its argument is what to call, or None for nothing any more."""

# From Quart 0.23 on, which cancels the handler's task itself.
_QUART_CANCELS = "request_task" in inspect.signature(ASGIHTTPConnection.handle_messages).parameters
_CLIENT_IS_GONE: type[Exception] | tuple[()] = getattr(asgi, "ClientDisconnectedError", ())


def serve_requests(app: Quart) -> None:
    """Let *app* serve requests by `OneTaskRequest` as `TenantRequest`, unless it has classes of its own for that."""
    if app.asgi_http_class is ASGIHTTPConnection:
        deadlines = Deadlines(app.config["RESPONSE_TIMEOUT"] or math.inf)
        app.asgi_http_class = functools.partial(OneTaskRequest, deadlines=deadlines)  # type: ignore[assignment]
    if app.request_class is Request:
        app.request_class = TenantRequest
    if type(app).ensure_async is Quart.ensure_async:
        _know_coroutines(app)


class TenantRequest(Request):
    """A request that finds out at one go what Quart and Werkzeug ask again and again, or by way of exceptions."""

    @property
    def blueprints(self) -> list[str]:
        """The blueprint of the view, and those around it."""
        return [] if self.url_rule is None else list(_list_blueprints(self.url_rule.endpoint))

    @cached_property
    def content_length(self) -> int | None:
        """How many bytes the body has, or None if that was not said, or there is none."""
        return super().content_length if has_body(self.scope) else None

    @cached_property
    def host(self) -> str:
        """The host that was asked for, with its port if that is none of the usual ones."""
        name = self.headers.get("host")
        if self.trusted_hosts is not None or name is None or len(name) > LONGEST_HOST:
            return super().host
        return _get_host(self.scheme, name)


class OneTaskRequest(ASGIHTTPConnection):
    """One request.

    Attributes:
        answered: Whether the end of the answer was given to the server.
    """

    def __init__(self, app: Quart, scope: HTTPScope, deadlines: Deadlines) -> None:
        super().__init__(app, scope)
        self._deadlines = deadlines
        self.answered = False

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer the request. When the client goes away before that, its handler is cancelled."""
        request = self._create_request_from_scope(send)
        client = _Client(self, cast("asyncio.Task[Any]", asyncio.current_task()))
        end_watch = self._begin_watch(request, receive, client)
        try:
            # Not every server has a task for each request.
            with forgetting_request():
                await self.handle_request(request, send)
        except asyncio.CancelledError:
            # By more than one: somebody wants the server's task to end, too.
            if not client.gone or client.handling.cancelling() > 1:
                raise
        finally:
            end_watch()
            if client.gone:
                client.handling.uncancel()

    async def handle_request(self, request: Request, send: ASGISendCallable) -> None:
        """Answer *request*, as Quart does it."""
        try:
            response = await self.app.handle_request(request)
        except _CLIENT_IS_GONE:
            return
        except Exception as error:  # noqa: BLE001  (Quart's own way to raise it, or to show it while debugging)
            response = await asgi._handle_exception(self.app, error)  # noqa: SLF001
        seconds = getattr(response, "timeout", Ellipsis)
        if seconds is Ellipsis:
            seconds = self.app.config["RESPONSE_TIMEOUT"]
        # What is not sent by then breaks off.
        with contextlib.suppress(TimeoutError, DeadlineError):
            if seconds == self._deadlines.seconds:
                await self._deadlines.keep(self._send_response(send, response))
            else:
                async with asyncio.timeout(seconds):
                    await self._send_response(send, response)

    def _begin_watch(self, request: Request, receive: ASGIReceiveCallable, client: "_Client") -> Callable[[], object]:
        """Notice when *client* goes away; return what ends that."""
        extensions: Any = self.scope.get("extensions") or {}
        watch = extensions.get(WATCH_CLIENT)
        if watch is None:
            return asyncio.create_task(self._watch(request, receive, client)).cancel
        request.body.set_complete()
        watch(client.cancel)
        return functools.partial(watch, None)

    async def _watch(self, request: Request, receive: ASGIReceiveCallable, client: "_Client") -> None:
        """Read the body, and wait for the client to go away."""
        handle_messages: Any = self.handle_messages
        if _QUART_CANCELS:
            await handle_messages(request, receive, client)
        else:
            await handle_messages(request, receive)
            client.cancel()

    async def _send_response(self, send: ASGISendCallable, response: Any) -> None:
        body = response.response
        if not isinstance(response, Response) or type(body) is not DataBody:

            async def send_and_note(event: Any) -> None:
                self.answered = event["type"] == "http.response.body" and not event["more_body"]
                await send(event)

            await super()._send_response(send_and_note, response)
            return
        headers = encode_headers(response.headers)
        start = {"type": "http.response.start", "status": response.status_code, "headers": headers}
        await send(cast("HTTPResponseStartEvent", start))
        self.answered = True
        # What is in memory is the answer's end, too: Quart sends that apart.
        await send({"type": "http.response.body", "body": body.data[body.begin : body.end], "more_body": False})


class _Client:
    """Whose request is handled, and by which task."""

    __slots__ = ("_request", "gone", "handling")

    def __init__(self, request: OneTaskRequest, handling: "asyncio.Task[Any]") -> None:
        self._request = request
        self.handling = handling
        self.gone = False

    def cancel(self) -> None:
        """End what is done for a client that has gone away."""
        # After an answer the server says that, too, and has work of its own to do in this task.
        if not self._request.answered:
            self.gone = True
            self.handling.cancel()


def _know_coroutines(app: Quart) -> None:
    """Let *app* see by one look that a function is a coroutine function: it asks for each hook in each request."""
    ensure: Any = app.ensure_async

    def ensure_async(function: Any) -> Any:
        code = getattr(function, "__code__", None)
        return function if code is not None and code.co_flags & inspect.CO_COROUTINE else ensure(function)

    app.ensure_async = ensure_async  # type: ignore[method-assign, assignment]


@functools.lru_cache(maxsize=1024)
def _get_host(scheme: str, name: str) -> str:
    return get_host(scheme, name)


@functools.lru_cache(maxsize=1024)
def _list_blueprints(endpoint: str) -> tuple[str, ...]:
    # "shop.admin.list" is a view of "shop.admin", which is in "shop".
    *names, _ = endpoint.split(".")
    return tuple(".".join(names[:end]) for end in range(len(names), 0, -1))
