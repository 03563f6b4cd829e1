"""End every request in time, whatever it waits for."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent, Scope

from quart_tenants.errors import RequestTimeoutError
from quart_tenants.web.answers.error_pages import make_plain_page
from quart_tenants.web.answers.problems import make_tenant_problem
from quart_tenants.web.context import likes_html
from quart_tenants.web.guards.direct_answers import send_answer
from quart_tenants.web.logs.log_fields import get_request_id

logger = logging.getLogger(__name__)


class RequestDeadlines:
    """ASGI middleware: a request whose answer has not begun after *seconds* is ended, and answered 503.

    The app is told that the client has gone away. Every version of Quart then cancels the handler and waits for its
    end, so its blocks roll back. (Before version 0.23 a handler runs on where the server's own task is cancelled.)
    Neither an answer that has begun nor a websocket is cut off.
    """

    def __init__(self, app: Any, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Pass the request on, and answer it if it takes too long."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _LimitedRequest(receive, send, self._seconds)
        try:
            if request.disconnect is not None:
                # The server's own object is passed on, by which the server may know that it needs no task to receive.
                await self._app(scope, receive, request.send)
            else:
                await self._app(scope, request.receive, request.send)
        finally:
            request.end_limit()
        if request.is_late and not request.has_begun:
            error = RequestTimeoutError(f"the request took longer than TENANTS_REQUEST_TIMEOUT, {self._seconds:g} s")
            # The middleware stands outside of Quart's request, where no filter can add these facts to the line.
            about: Any = scope
            logger.warning(
                "request %s, %s %s: %s: %s", get_request_id(about), about["method"], about["path"], error.code, error
            )
            answer = make_tenant_problem(error)
            # The app's own template needs the app's request, which is over.
            if likes_html(",".join(value.decode("latin-1") for name, value in about["headers"] if name == b"accept")):
                answer = make_plain_page(answer, error.visitor_text)
            await send_answer(answer, receive, send)


class _LimitedRequest:
    """One request with its deadline.

    Attributes:
        disconnect: A method that the *receive* of our own server has: it lets the app believe that its client has gone.
            None for other servers.
        has_begun: Whether the answer has begun.
        is_late: Whether the request was ended because it took too long.
    """

    def __init__(self, receive: ASGIReceiveCallable, send: ASGISendCallable, seconds: float) -> None:
        self._receive = receive
        self._send = send
        self.disconnect: Callable[[], None] | None = getattr(receive, "disconnect", None)
        loop = asyncio.get_running_loop()
        self._ends_at = loop.time() + seconds
        self._timer = loop.call_at(self._ends_at, self._end)
        # Those in which the app waits for an event.
        self._limits: set[asyncio.Timeout] = set()
        self.has_begun = False
        self.is_late = False

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next event. When the time is over the app is told that the client has gone away."""
        if self.has_begun:
            return await self._receive()
        limit = asyncio.timeout_at(self._ends_at)
        self._limits.add(limit)
        try:
            async with limit:
                return await self._receive()
        except TimeoutError:
            if not limit.expired():
                raise
            return {"type": "http.disconnect"}
        finally:
            self._limits.discard(limit)

    def send(self, event: ASGISendEvent) -> Awaitable[None]:
        """Pass *event* on. The time limit ends with the beginning of the answer."""
        if event["type"] == "http.response.start":
            self.has_begun = True
            self.end_limit()
        return self._send(event)

    def end_limit(self) -> None:
        """Let the request take as long as it likes from now on."""
        self._timer.cancel()
        for limit in self._limits:
            limit.reschedule(None)

    def _end(self) -> None:
        self.is_late = True
        if self.disconnect is not None:
            self.disconnect()
