"""Make a span of each request, in which its blocks and the app's own spans are."""

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from quart import request

from quart_tenants.web.context import TENANT_OF_SCOPE
from quart_tenants.web.logs.log_fields import BEHIND_PROXY, REQUEST_ID
from quart_tenants.web.state import see_through

if TYPE_CHECKING:
    from quart_tenants.measures.spans import Spans

_ROUTE = "quart_tenants.route"
"""A key in the scope of a request that has a route."""


class RequestSpans:
    """ASGI middleware: makes a span of each request. It continues the trace of a trusted proxy, and of nobody else."""

    def __init__(self, app: Any, spans: "Spans") -> None:
        self._app = app
        self._spans = spans

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        about: Any = scope
        # A stranger could put all requests into one trace, or have each of them recorded.
        parent = self._spans.find_parent(scope["headers"]) if BEHIND_PROXY in about else None
        span = self._spans.begin_request(scope["method"], scope["scheme"], parent)
        status = 0
        raised: BaseException | None = None

        def send_and_note(event: ASGISendEvent) -> Awaitable[None]:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
            return send(event)

        try:
            await self._app(scope, receive, send_and_note)
        except BaseException as error:
            raised = error
            raise
        finally:
            span.end(status, about.get(_ROUTE), about.get(TENANT_OF_SCOPE), about.get(REQUEST_ID), raised)


async def note_route() -> None:
    """Note the pattern of the route for the span. A hook for `before_request`."""
    asked: Any = see_through(request)
    if asked.url_rule is not None:
        asked.scope[_ROUTE] = asked.url_rule.rule
