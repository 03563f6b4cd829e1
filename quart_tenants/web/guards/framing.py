"""Refuse a request of which a proxy and this server might see a different end or a different host.

Where the two disagree, the rest of one visitor's request becomes the beginning of the next visitor's request, perhaps
at another tenant (request smuggling, RFC 9112 section 11.2). The server's parser refuses most of these requests. This
module is for those that reach an app from Hypercorn, and for servers that are more lenient.
"""

import functools
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from quart_tenants.web.answers.problems import make_problem
from quart_tenants.web.guards.direct_answers import send_answer

_DETAIL = "It is not clear where this request ends, or which host it is for."
_WITHOUT_BODY = ("GET", "HEAD")


class RequestFraming:
    """ASGI middleware: a request with ambiguous framing or an ambiguous target gets 400 and ends its connection.

    A Host header that is no name at all, such as `a..b`, reaches the app as an empty one: Quart fails outside of its
    error handling where a host cannot be encoded (a 500 in Quart 0.22). Then only a route for every host matches.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> Awaitable[None]:
        """Pass the request on, if it is clear where it ends and which host it is for."""
        if scope["type"] == "lifespan":
            return self._app(scope, receive, send)  # type: ignore[no-any-return]
        hosts, unclear = _read_head(scope)
        if unclear:
            return _refuse(scope, receive, send)
        about: Any = scope
        if hosts and not _can_be_encoded(hosts[0]):
            headers = [(name, b"" if name == b"host" else value) for name, value in scope["headers"]]
            about = {**about, "headers": headers}
        return self._app(about, receive, send)  # type: ignore[no-any-return]


async def _refuse(scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1002, "reason": None})
        return
    problem = make_problem(HTTPStatus.BAD_REQUEST, _DETAIL, "bad_request")
    problem.headers["Cache-Control"] = "no-store"
    if scope["http_version"].startswith("1"):
        # What follows on the connection may be the body of the refused request.
        problem.headers["Connection"] = "close"
    await send_answer(problem, receive, send)


def has_body(scope: Any) -> bool:
    """Return whether a body may follow the head of the request of *scope*.

    In HTTP/1 the head says so (RFC 9112, section 6.3); in HTTP/2 only what comes next does. For methods that usually
    have a body the answer is always yes: test clients announce none.
    """
    if scope["method"] not in _WITHOUT_BODY or not scope["http_version"].startswith("1"):
        return True
    sent = dict(scope["headers"])
    return b"content-length" in sent or b"transfer-encoding" in sent


def _read_head(scope: Any) -> tuple[list[bytes], bool]:
    """Return the hosts of *scope*, and whether another program could read another host or another end out of it."""
    hosts: list[bytes] = []
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    # One pass, because every request comes by here.
    for name, value in scope["headers"]:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.add(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    if _has_two_targets(scope, hosts):
        return hosts, True
    # A websocket's handshake has no body.
    has_length = bool(lengths or codings) and scope["type"] == "http"
    return hosts, has_length and _is_ambiguous(scope, lengths, codings)


def _has_two_targets(scope: Any, hosts: list[bytes]) -> bool:
    """Return whether there are two hosts, equal ones included, or a request line that Quart cannot read.

    A proxy may follow the one host, and this server the other (RFC 9112, section 3.2.2).
    """
    if len(hosts) > 1:
        return True
    target = bytes(scope.get("raw_path") or scope["path"].encode())
    # The star is for OPTIONS about the server as a whole.
    if target.startswith(b"/") or target == b"*":
        return False
    try:
        named = urlsplit(target.decode("latin-1")).netloc
    except ValueError:
        return True
    return not named or [named.lower()] != [host.decode("latin-1").lower() for host in hosts]


def _is_ambiguous(scope: Any, lengths: set[bytes], codings: list[bytes]) -> bool:
    if codings:
        # HTTP/1.0 and proxies that speak it know no chunks, HTTP/2 has frames instead.
        chunked = [coding.strip().lower() for coding in codings] == [b"chunked"]
        return bool(lengths) or not chunked or scope["http_version"] != "1.1"
    return len(lengths) > 1 or not all(length.isdigit() for length in lengths)


@functools.lru_cache(maxsize=1024)
def _can_be_encoded(host: bytes) -> bool:
    """Return whether Werkzeug can bind its routes to *host*, which it encodes by IDNA."""
    try:
        host.decode("latin-1").lower().partition(":")[0].encode("idna")
    except UnicodeError:
        return False
    return True
