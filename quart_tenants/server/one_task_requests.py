"""Answer a request without a body in the task that our server has made for it, where Quart makes up to three more.

Quart answers in one task, reads the body in another, and on Python 3.11 sends the answer in a third. Where there is no
body, the second only waits for the client to go away, of which `RequestReceive` tells without a task. A request that
reaches the app in any other way, such as by another server or behind a middleware with a `receive` of its own, is
answered as Quart does it.
"""

import asyncio
import types
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from typing import Any, cast

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart import Quart
from quart.asgi import ASGIHTTPConnection

from quart_tenants.server.protocols.receiving import RequestReceive


def serve_requests(app: Quart) -> None:
    """Let *app* answer requests by `OneTaskRequest`, unless it has a class of its own for that."""
    if app.asgi_http_class is ASGIHTTPConnection:
        app.asgi_http_class = OneTaskRequest


class OneTaskRequest(ASGIHTTPConnection):
    """One request, whose handler is cancelled when its client goes away before the end of the answer."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer the request."""
        if not isinstance(receive, RequestReceive) or receive.has_body:
            await super().__call__(receive, send)
            return
        request = self._create_request_from_scope(send)
        request.body.set_complete()
        handling = cast("asyncio.Task[Any]", asyncio.current_task())
        is_answered = is_gone = False

        async def send_and_note(event: Any) -> None:
            nonlocal is_answered
            is_answered = event["type"] == "http.response.body" and not event.get("more_body")
            await send(event)

        def cancel() -> None:
            # After the answer, too, the server says that the client has gone, and goes on in this task.
            nonlocal is_gone
            if not is_answered:
                is_gone = True
                handling.cancel()

        receive.watch_client(cancel)
        try:
            await _run_in_copied_context(self.handle_request(request, send_and_note))
        except asyncio.CancelledError:
            # Cancelled more than once: somebody else wants the server's task to end, too.
            if not is_gone or handling.cancelling() > 1:
                raise
        finally:
            receive.watch_client(None)
            if is_gone:
                handling.uncancel()


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
