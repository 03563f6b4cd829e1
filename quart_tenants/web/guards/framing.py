"""Refuse a request of which a proxy and we might see a different end.

Where the two disagree, the rest of one visitor's request becomes the beginning of the next visitor's,
on another tenant perhaps (request smuggling, RFC 9112 section 11.2). The server's parser refuses most
of it; this is for what reaches an app from Hypercorn, and from servers that are more lenient.
"""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

_PROBLEM = {
    "type": "about:blank",
    "title": "Bad Request",
    "status": 400,
    "detail": "It is not clear where this request ends, or which host it is for.",
    "code": "bad_request",
}
_BODY = json.dumps(_PROBLEM).encode()
_WITHOUT_BODY = ("GET", "HEAD")


class RequestFraming:
    """ASGI middleware: a request with ambiguous framing or an ambiguous target gets 400 and ends its connection."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Pass the request on, if it is clear where it ends and which host it is for."""
        if scope["type"] == "lifespan" or not _is_unclear(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1002, "reason": None})
            return
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(_BODY)),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if scope["http_version"].startswith("1"):
            # What follows on the connection may be the body of what was refused.
            headers.append((b"connection", b"close"))
        # As Quart does, or `LingeringClose` would wait for the request's end in vain.
        draining = asyncio.create_task(_drain(receive))
        try:
            await send({"type": "http.response.start", "status": 400, "headers": headers, "trailers": False})
            await send({"type": "http.response.body", "body": _BODY, "more_body": False})
        finally:
            draining.cancel()


def has_body(scope: Any) -> bool:
    """Return whether a body may follow the head of the request of *scope*.

    In HTTP/1 the head says so (RFC 9112, section 6.3); in HTTP/2 only what comes next does. Where a body would be
    usual it is expected anyway: clients of tests announce none.
    """
    if scope["method"] not in _WITHOUT_BODY or not scope["http_version"].startswith("1"):
        return True
    return any(name == b"content-length" or name == b"transfer-encoding" for name, _ in scope["headers"])


async def _drain(receive: ASGIReceiveCallable) -> None:
    event = await receive()
    while event["type"] == "http.request" and event["more_body"]:
        event = await receive()


def _is_unclear(scope: Any) -> bool:
    """Return whether another program could read another host, or another end, out of the head."""
    hosts: list[bytes] = []
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    # One pass, for every request comes by here.
    for name, value in scope["headers"]:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.add(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    if _has_two_targets(scope, hosts):
        return True
    # A websocket's handshake has no body.
    return bool(lengths or codings) and scope["type"] == "http" and _is_ambiguous(scope, lengths, codings)


def _has_two_targets(scope: Any, hosts: list[bytes]) -> bool:
    """Return whether two hosts are named, or one twice, or the request line is nothing that Quart can read.

    A proxy may go by the one, and we by the other (RFC 9112, section 3.2.2).
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
