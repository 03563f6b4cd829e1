"""Believe forwarded headers only if they come from our own proxies."""

import functools
import ipaddress
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from quart_tenants.setting_checks import UNIX_SOCKET
from quart_tenants.settings import Settings
from quart_tenants.web.logs.log_fields import BEHIND_PROXY

_log = logging.getLogger(__name__)

_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
# An IPv4 address or one in brackets, as some proxies write it with the visitor's port.
_WITH_PORT = re.compile(r"(?:([0-9.]+)|\[([^]]+)\])(?::[0-9]{1,5})?")
_SCHEMES = {
    "http": {"http": "http", "https": "https", "ws": "http", "wss": "https"},
    "websocket": {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"},
}

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Headers = Iterable[tuple[bytes, bytes]]


class TrustedProxies:
    """ASGI middleware: proxies in `TENANTS_TRUSTED_PROXIES` may say the visitor's address, scheme and host.

    Each proxy appends the address of its client to the right end of X-Forwarded-For. So the list is read from the
    right, one entry for each of our proxies. The entries further left are only claims of a visitor.
    """

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app = app
        self._networks = [network for network in settings.trusted_proxies if not isinstance(network, str)]
        self._trusts_sockets = UNIX_SOCKET in settings.trusted_proxies
        self._hops = settings.trusted_proxy_hops
        self._warned = False

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Pass the request on, with the forwarded values if its peer is one of our proxies."""
        if scope["type"] == "http" or scope["type"] == "websocket":
            headers = scope["headers"]
            client = scope.get("client")
            # A unix socket has no peer address.
            peer = _find_peer(client[0]) if client else None
            if self._trusts_sockets if _is_socket(scope) else self._is_ours(peer):
                scope = self._follow(scope, headers, peer)
            elif not self._warned and b"x-forwarded-for" in dict(headers):
                self._warn(peer)
        await self._app(scope, receive, send)

    def _follow(self, scope: Any, headers: _Headers, peer: _Address | None) -> Any:
        """Return *scope* as the proxies saw the request."""
        visitor, steps = self._walk(_read_list(headers, b"x-forwarded-for"), peer)
        forwarded = dict(scope)
        forwarded[BEHIND_PROXY] = True
        if steps:
            forwarded["client"] = (str(visitor), 0)
        depth = max(steps, 1)
        scheme = _SCHEMES[scope["type"]].get(_read_at(headers, b"x-forwarded-proto", depth).lower())
        if scheme is not None:
            forwarded["scheme"] = scheme
        host = _read_at(headers, b"x-forwarded-host", depth)
        if _HOST.fullmatch(host):
            kept = [(name, value) for name, value in headers if name != b"host"]
            forwarded["headers"] = [*kept, (b"host", host.encode())]
        return forwarded

    def _walk(self, addresses: Sequence[str], peer: _Address | None) -> tuple[_Address | None, int]:
        """Return the visitor's address, and how many steps to the left of *peer* it stands."""
        visitor, steps = peer, 0
        for text in reversed(addresses[-self._hops :]):
            address = _find_address(text)
            if address is None:
                break
            visitor, steps = address, steps + 1
            if not self._is_ours(address):
                break
        return visitor, steps

    def _is_ours(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)

    def _warn(self, peer: _Address | None) -> None:
        # This is logged once, because a stranger who sends the header must not fill the log.
        self._warned = True
        _log.warning(
            "X-Forwarded-For from %s is ignored. If that is your proxy, list it in TENANTS_TRUSTED_PROXIES: "
            "until then all visitors share its address, and wrong passwords of one slow down the others; behind https "
            "what browsers send is refused, too (request_from_elsewhere)",
            peer or "a peer without an address",
        )


def _is_socket(scope: Any) -> bool:
    """Return whether the peer has connected by a unix socket. Servers say that in three ways."""
    client = scope.get("client")
    return client is None or not client[0] or client[0].startswith("unix:")


# The cache serves the same few proxies, and visitors whose connections stay open. The server makes the text, so it is
# always short.
@functools.lru_cache(maxsize=1024)
def _find_peer(text: str) -> _Address | None:
    return _find_address(text)


def _find_address(text: str) -> _Address | None:
    match = _WITH_PORT.fullmatch(text)
    if match is not None:
        text = match[1] or match[2]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # A socket that serves both families shows an IPv4 peer as ::ffff:127.0.0.1.
    return getattr(address, "ipv4_mapped", None) or address


def _read_list(headers: _Headers, name: bytes) -> list[str]:
    """Return the entries of all headers *name* in their order. Several headers of one name are one list."""
    values = [value for found, value in headers if found == name]
    return [entry.strip() for value in values for entry in value.decode("latin1").split(",")]


def _read_at(headers: _Headers, name: bytes, depth: int) -> str:
    """Return the entry *depth* from the right, the leftmost of a shorter list, or an empty text."""
    entries = _read_list(headers, name)
    return entries[max(len(entries) - depth, 0)] if entries else ""
