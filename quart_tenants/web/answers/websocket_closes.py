"""Close a websocket that an error has ended by a code that says which kind of error it was."""

from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from quart.wrappers import Websocket

from quart_tenants.web.context import find_request

_CLOSE = "quart_tenants.close"
# RFC 6455, section 7.4.1, and the list that it begins.
_NORMAL, _REFUSED, _BUG, _TRY_LATER = 1000, 1008, 1011, 1013


def name_close(status: int, code: str) -> None:
    """Let the websocket that is being served here, if it is one, be closed as an answer of *status* would say.

    A websocket that is not open yet is answered by HTTP, so this changes nothing then.
    """
    asked = find_request()
    if isinstance(asked, Websocket):
        number = _REFUSED if status < HTTPStatus.INTERNAL_SERVER_ERROR else _TRY_LATER
        scope: Any = asked.scope
        scope[_CLOSE] = (_BUG if status == HTTPStatus.INTERNAL_SERVER_ERROR else number, code)


class WebsocketCloses:
    """ASGI middleware: closes websockets as `name_close` has said. Quart closes all by 1000, as after a success."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> Awaitable[None]:
        """Pass the request on."""
        if scope["type"] != "websocket":
            return self._app(scope, receive, send)  # type: ignore[no-any-return]
        about: Any = scope

        def send_close(event: ASGISendEvent) -> Awaitable[None]:
            if event["type"] == "websocket.close" and event["code"] == _NORMAL and _CLOSE in about:
                event["code"], event["reason"] = about[_CLOSE]
            return send(event)

        return self._app(scope, receive, send_close)  # type: ignore[no-any-return]
