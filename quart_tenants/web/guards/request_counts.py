"""Count requests and answers, for the app and for each tenant."""

from collections.abc import Awaitable
from http import HTTPStatus
from time import monotonic
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

from quart_tenants.measures.counts import STATUS_CLASSES, Measures
from quart_tenants.web.context import TENANT_OF_SCOPE

_LAST_CLASS = len(STATUS_CLASSES) - 1
# A look-up in an enum takes six times as long as a name of the module.
_REFUSED, _FAILED = HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INTERNAL_SERVER_ERROR


class RequestCounts:
    """ASGI middleware: counts each request once, when it is over."""

    def __init__(self, app: Any, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        measures = self._measures
        began_at = monotonic()
        status = size = 0

        def send_counted(event: ASGISendEvent) -> Awaitable[None]:
            nonlocal status, size
            kind = event["type"]
            if kind == "http.response.body":
                # A message may come without it (ASGI's specification of HTTP).
                size += len(event.get("body", b""))  # type: ignore[arg-type]
            elif kind == "http.response.start":
                status = event["status"]  # type: ignore[typeddict-item]
                measures.until_answer.add(monotonic() - began_at)
            return send(event)

        measures.requests_in_progress += 1
        try:
            await self._app(scope, receive, send_counted)
        finally:
            measures.requests_in_progress -= 1
            measures.answers[min(status // 100, _LAST_CLASS)] += 1
            about: Any = scope
            counts = measures.tenants.get(about.get(TENANT_OF_SCOPE))
            counts.requests += 1
            counts.bytes += size
            if status == _REFUSED:
                counts.refused += 1
            elif status >= _FAILED:
                counts.errors += 1
