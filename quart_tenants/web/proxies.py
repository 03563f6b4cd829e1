"""Believe forwarded headers from our own proxies only."""

import ipaddress
from collections.abc import Sequence
from typing import Any

from hypercorn.middleware import ProxyFixMiddleware
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

from quart_tenants.settings import Network


class TrustedProxies:
    """ASGI middleware: one proxy in *networks* may say the visitor's address, scheme and host."""

    def __init__(self, app: Any, networks: Sequence[Network]) -> None:
        self._app = app
        self._behind_proxy = ProxyFixMiddleware(app, mode="legacy", trusted_hops=1)
        self._networks = networks

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Pass the request on, with the forwarded values if its peer may forward any."""
        app = self._behind_proxy if self._is_proxy(scope) else self._app
        await app(scope, receive, send)

    def _is_proxy(self, scope: Scope) -> bool:
        # A unix socket has no peer address; list none, and nobody is believed there either.
        client: Any = scope.get("client")
        if not client:
            return False
        try:
            address = ipaddress.ip_address(client[0])
        except ValueError:
            return False
        # A socket that serves both families shows an IPv4 peer as ::ffff:127.0.0.1.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)
