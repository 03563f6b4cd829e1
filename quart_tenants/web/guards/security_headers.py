"""Add the security headers to every answer, also to errors, redirects and static files."""

from collections.abc import Awaitable, Mapping
from http import HTTPStatus
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

from quart_tenants.web.logs.log_fields import get_request_id

_STARTS = ("http.response.start", "websocket.http.response.start")
_SECURE_SCHEMES = ("https", "wss")
# A look-up in an enum takes six times as long as a name of the module.
_FAILED = HTTPStatus.BAD_REQUEST

EVERYWHERE = {"x-content-type-options": "nosniff", "referrer-policy": "same-origin"}


class SecurityHeaders:
    """ASGI middleware: adds the headers that an answer lacks, and replaces no header that a view has set.

    Answers from 400 on also have an `X-Request-Id`, by which their lines in the log can be found.
    """

    def __init__(self, app: Any, hsts_seconds: int) -> None:
        self._app = app
        self._plain: list[tuple[bytes, bytes]] = []
        # Over http anybody could have sent the header, so browsers must ignore HSTS there (RFC 6797, section 8.1).
        self._secure: list[tuple[bytes, bytes]] = []
        if hsts_seconds:
            self._secure.append((b"strict-transport-security", f"max-age={hsts_seconds}".encode()))
        self.add(EVERYWHERE)

    def add(self, headers: Mapping[str, str]) -> None:
        """Add *headers* to every answer as well, beside those of the same names. Call this before the app serves."""
        more = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._plain += more
        self._secure += more

    def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> Awaitable[None]:
        """Pass the request on, and add the headers to its answer."""
        if scope["type"] == "lifespan":
            return self._app(scope, receive, send)  # type: ignore[no-any-return]
        wanted = self._secure if scope["scheme"] in _SECURE_SCHEMES else self._plain

        def send_completed(event: ASGISendEvent) -> Awaitable[None]:
            if event["type"] in _STARTS:
                start: Any = event
                start["headers"] = headers = list(start["headers"])
                present = dict(headers)
                headers += [header for header in wanted if header[0] not in present]
                if start["status"] >= _FAILED and b"x-request-id" not in present:
                    request_id = get_request_id(scope)  # type: ignore[arg-type]
                    headers.append((b"x-request-id", request_id.encode("ascii")))
            return send(event)

        return self._app(scope, receive, send_completed)  # type: ignore[no-any-return]
