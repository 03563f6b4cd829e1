"""Forwarded headers: believed from our own proxies, ignored from everybody else."""

import pytest

from quart_tenants.settings import read_settings
from quart_tenants.web.proxies import TrustedProxies

HEADERS = [(b"host", b"inside"), (b"x-forwarded-host", b"acme.localhost"), (b"x-forwarded-proto", b"https")]


async def see_scope(networks: str, client: tuple[str, int] | None) -> dict[str, object]:
    """Return the scope that reaches the app for a request of *client*."""
    seen: dict[str, object] = {}

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        seen.update(scope)

    proxies = read_settings({"TENANTS_TRUSTED_PROXIES": networks}).trusted_proxies
    scope = {"type": "http", "scheme": "http", "headers": HEADERS, "client": client}
    await TrustedProxies(app, proxies)(scope, None, None)  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "::ffff:10.1.2.3", "::1"])
async def test_proxy_in_the_list_is_believed(address: str) -> None:
    """Also an IPv4 proxy on a socket that serves both families."""
    scope = await see_scope("127.0.0.1,10.0.0.0/8,::1", (address, 1234))

    assert scope["scheme"] == "https"
    assert (b"host", b"acme.localhost") in scope["headers"]  # type: ignore[operator]


@pytest.mark.parametrize("client", [("127.0.0.2", 1), ("::ffff:192.0.2.1", 1), ("unix:", 1), ("", 1), None])
async def test_stranger_is_not_believed(client: tuple[str, int] | None) -> None:
    """Whoever is not in the list changes neither the scheme nor the host."""
    scope = await see_scope("127.0.0.1,10.0.0.0/8,::1", client)

    assert scope["scheme"] == "http"
    assert scope["headers"] == HEADERS
