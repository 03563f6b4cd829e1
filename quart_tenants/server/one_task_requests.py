"""Answer a request without a body in the task that our server has made for it, where Quart makes up to three more.

Quart answers in one task, reads the body in another, and on Python 3.11 sends the answer in a third. Where there is no
body, the second only waits for the client to go away, of which `RequestReceive` tells without a task. A request that
reaches the app in any other way, such as by another server or behind a middleware with a `receive` of its own, is
answered as Quart does it.
"""

import asyncio
import types
from collections.abc import Awaitable, Coroutine, Generator
from contextvars import copy_context
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Quart, asgi
from quart.asgi import ASGIHTTPConnection
from quart.utils import encode_headers
from quart.wrappers import Request
from quart.wrappers.response import DataBody

from quart_tenants.server.protocols.receiving import RequestReceive
from quart_tenants.server.quick_requests import quicken

# Quart has this error from 0.23 on.
_CLIENT_IS_GONE: type[Exception] | tuple[()] = getattr(asgi, "ClientDisconnectedError", ())


def serve_requests(app: Quart) -> None:
    """Let *app* answer requests the cheaper way: by `OneTaskRequest`, unless it has a class of its own for that."""
    quicken(app)
    if app.asgi_http_class is ASGIHTTPConnection:
        app.asgi_http_class = OneTaskRequest


class OneTaskRequest(ASGIHTTPConnection):
    """One request, whose handler is cancelled when its client goes away before the end of the answer."""

    _task: Any
    _is_answered: bool
    _is_broken_off: bool

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer the request."""
        if not isinstance(receive, RequestReceive) or receive.has_body:
            await super().__call__(receive, send)
            return
        request = self._create_request_from_scope(send)
        request.body.set_complete()
        self._task = asyncio.current_task()
        self._is_answered = self._is_broken_off = False
        receive.watch_client(self._leave)
        try:
            await _run_in_copied_context(self._answer(request, send))
        except asyncio.CancelledError:
            # Cancelled more than once: somebody else wants the server's task to end, too.
            if not self._is_broken_off or self._task.cancelling() > 1:
                raise
        finally:
            receive.watch_client(None)
            if self._is_broken_off:
                self._task.uncancel()

    def _leave(self) -> None:
        # After the answer, too, the server says that the client has gone, and goes on in this task.
        if not self._is_answered:
            self._break_off()

    def _break_off(self) -> None:
        if not self._is_broken_off:
            self._is_broken_off = True
            self._task.cancel()

    async def _answer(self, request: Request, send: ASGISendCallable) -> None:
        """Answer *request* as Quart's `handle_request` does, which on Python 3.11 sends the answer in another task."""
        try:
            response = await self.app.handle_request(request)
        except _CLIENT_IS_GONE:
            return
        except Exception as error:  # noqa: BLE001  (Quart's own way to raise it, or to show it while debugging)
            response = await asgi._handle_exception(self.app, error)  # noqa: SLF001
        seconds = getattr(response, "timeout", Ellipsis)
        if seconds is Ellipsis:
            seconds = self.app.config["RESPONSE_TIMEOUT"]
        if seconds is not None and seconds <= 0:
            return
        timer = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self._break_off)
        try:
            await self._send_response(send, response)
        finally:
            if timer is not None:
                timer.cancel()

    async def _send_response(self, send: ASGISendCallable, response: Any) -> None:
        """Send *response*, in one piece if it is in memory. Quart sends the end apart."""
        body = response.response
        if type(body) is not DataBody:

            def send_and_note(event: Any) -> Awaitable[None]:
                self._is_answered = event["type"] == "http.response.body" and not event.get("more_body")
                return send(event)

            await super()._send_response(send_and_note, response)
            return
        headers = encode_headers(response.headers)
        start: Any = {"type": "http.response.start", "status": response.status_code, "headers": headers}
        await send(start)
        self._is_answered = True
        await send({"type": "http.response.body", "body": body.data[body.begin : body.end], "more_body": False})


@types.coroutine
def _run_in_copied_context(work: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Run *work* in this task, and let what it sets in context variables reach nobody else, as in a task of its own."""
    context = copy_context()
    step: Any = work.send
    sent: Any = None
    while True:
        try:
            awaited = context.run(step, sent)
        except StopIteration:
            return
        try:
            sent = yield awaited
            step = work.send
        except BaseException as error:  # noqa: BLE001  (It is the work's, as is a cancellation.)
            step, sent = work.throw, error
