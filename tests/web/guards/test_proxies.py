"""Forwarded headers: believed from our own proxies, ignored from everybody else."""

import logging
from typing import Any

import pytest

from quart_tenants.settings import read_settings
from quart_tenants.web.guards.proxies import TrustedProxies

OURS = "127.0.0.1,10.0.0.0/8,::1"
HEADERS = [(b"host", b"inside"), (b"x-forwarded-host", b"acme.localhost"), (b"x-forwarded-proto", b"https")]
PROXY = ("10.0.0.1", 1234)
VISITOR = "203.0.113.9"


async def see_scope(
    client: tuple[str, int] | None,
    headers: list[tuple[bytes, bytes]],
    *,
    networks: str = OURS,
    hops: int = 1,
    kind: str = "http",
) -> dict[str, Any]:
    """Return the scope that reaches the app for a request of *client*."""
    seen: dict[str, Any] = {}

    async def app(scope: dict[str, Any], receive: object, send: object) -> None:
        seen.update(scope)

    settings = read_settings({"TENANTS_TRUSTED_PROXIES": networks, "TENANTS_TRUSTED_PROXY_HOPS": hops})
    scope = {"type": kind, "scheme": "http" if kind == "http" else "ws", "headers": headers, "client": client}
    await TrustedProxies(app, settings)(scope, None, None)  # type: ignore[arg-type]
    return seen


def forwarded_for(*values: str) -> list[tuple[bytes, bytes]]:
    """Return these X-Forwarded-For headers."""
    return [(b"host", b"inside"), *((b"x-forwarded-for", value.encode()) for value in values)]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "::ffff:10.1.2.3", "::1"])
async def test_proxy_in_the_list_is_believed(address: str) -> None:
    """Also an IPv4 proxy on a socket that serves both families."""
    scope = await see_scope((address, 1234), HEADERS)

    assert scope["scheme"] == "https"
    assert [value for name, value in scope["headers"] if name == b"host"] == [b"acme.localhost"]


@pytest.mark.parametrize("client", [None, ("", 0), ("unix:", 1), ("unix:/run/app.sock", None)])
async def test_proxy_at_a_unix_socket_is_believed_if_the_setting_says_so(client: Any) -> None:
    """Such a peer has no address. Visitors by other ways are believed as before, which is not at all."""
    headers = [*HEADERS, (b"x-forwarded-for", VISITOR.encode())]

    trusted = await see_scope(client, headers, networks="unix")
    assert (trusted["client"], trusted["scheme"]) == ((VISITOR, 0), "https")
    assert (await see_scope(client, headers, networks="unix,10.0.0.0/8"))["client"] == (VISITOR, 0)
    assert (await see_scope(client, headers))["client"] == client
    assert (await see_scope(("10.0.0.1", 1), headers, networks="unix"))["client"] == ("10.0.0.1", 1)


@pytest.mark.parametrize("client", [("127.0.0.2", 1), ("::ffff:192.0.2.1", 1), ("unix:", 1), ("", 1), None])
async def test_stranger_is_not_believed(client: tuple[str, int] | None) -> None:
    """Whoever is not in the list changes neither the address nor the scheme nor the host."""
    headers = [*HEADERS, (b"x-forwarded-for", b"127.0.0.1")]
    scope = await see_scope(client, headers)

    assert (scope["client"], scope["scheme"], scope["headers"]) == (client, "http", headers)


@pytest.mark.parametrize(
    ("hops", "headers", "visitor"),
    [
        # One proxy: whoever asked it, whatever that one had claimed.
        (1, [VISITOR], VISITOR),
        (1, [f"198.51.100.1, {VISITOR}"], VISITOR),
        (1, ["198.51.100.1", VISITOR], VISITOR),
        (1, ["198.51.100.1,10.0.0.2", f"10.0.0.3 ,  {VISITOR}  "], VISITOR),
        (1, [f"{VISITOR}, 10.0.0.2"], "10.0.0.2"),
        # Two: the first that is none of ours, at most two to the left.
        (2, [f"{VISITOR}, 10.0.0.2"], VISITOR),
        (2, [f"198.51.100.1, {VISITOR}"], VISITOR),
        (2, [f"198.51.100.1, {VISITOR}, 10.0.0.2"], VISITOR),
        (2, [f"{VISITOR}, 10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (2, ["10.0.0.2"], "10.0.0.2"),
        (16, [f"198.51.100.1, {VISITOR}, 10.0.0.4, 10.0.0.3, 10.0.0.2"], VISITOR),
        # What is no address ends the walk, and the last good one is the visitor.
        (2, ["nonsense, 10.0.0.2"], "10.0.0.2"),
        (2, [f"{VISITOR}, nonsense, 10.0.0.2"], "10.0.0.2"),
        (2, [f"{VISITOR}, nonsense"], "10.0.0.1"),
        (1, ["nonsense"], "10.0.0.1"),
        (1, [""], "10.0.0.1"),
        (1, [f"{VISITOR},"], "10.0.0.1"),
        (1, ["unknown"], "10.0.0.1"),
        (1, ["203.0.113.9.1"], "10.0.0.1"),
        (1, ["' OR 1=1 --"], "10.0.0.1"),
        (1, [], "10.0.0.1"),
        # Other ways of writing one.
        (1, ["203.0.113.9:4711"], VISITOR),
        (1, ["2001:DB8::9"], "2001:db8::9"),
        (1, ["[2001:db8::9]"], "2001:db8::9"),
        (1, ["[2001:db8::9]:4711"], "2001:db8::9"),
        (1, ["::ffff:203.0.113.9"], VISITOR),
        (2, [f"{VISITOR}, ::ffff:10.0.0.2"], VISITOR),
    ],
)
async def test_visitor_is_found_from_the_right(hops: int, headers: list[str], visitor: str) -> None:
    """Each trusted proxy is one step to the left; the first address that is not ours is the visitor's."""
    scope = await see_scope(PROXY, forwarded_for(*headers), hops=hops)

    assert scope["client"][0] == visitor


async def test_leftmost_address_is_the_strangers_choice() -> None:
    """What the naive reading takes, the first address of the list, is what the visitor sent: it is not taken."""
    claimed = "127.0.0.1"
    headers = forwarded_for(f"{claimed}, {VISITOR}")
    naive = headers[1][1].decode().split(",")[0]

    scope = await see_scope(PROXY, headers)

    assert naive == claimed
    assert scope["client"] == (VISITOR, 0)


@pytest.mark.parametrize(
    ("addresses", "values", "taken"),
    [
        # As deep as the visitor: what the outer proxy said.
        (f"{VISITOR}, 10.0.0.2", "outer.org, inner.org", "outer.org"),
        (f"{VISITOR}, 10.0.0.2", "evil.org, outer.org, inner.org", "outer.org"),
        # The inner proxy was asked by the visitor itself.
        (f"evil, {VISITOR}", "evil.org, inner.org", "inner.org"),
        # A proxy that replaces instead of adding leaves one value.
        (f"{VISITOR}, 10.0.0.2", "outer.org", "outer.org"),
        ("", "evil.org, inner.org", "inner.org"),
    ],
)
async def test_host_and_scheme_stand_as_deep_as_the_visitor(addresses: str, values: str, taken: str) -> None:
    """The value at the depth of the visitor's address is taken, or the leftmost of a shorter list."""
    schemes = ", ".join("https" if value == taken else "http" for value in values.split(", "))
    headers = forwarded_for(addresses) if addresses else forwarded_for()
    headers += [(b"x-forwarded-host", values.encode()), (b"x-forwarded-proto", schemes.encode())]

    scope = await see_scope(PROXY, headers, hops=2)

    assert (b"host", taken.encode()) in scope["headers"]
    assert scope["scheme"] == "https"


@pytest.mark.parametrize("host", ["", "a b", "acme.localhost/x", "a@b", "a:b", "a:123456", "acmé.org", "[::1", "a\tb"])
async def test_malformed_host_is_ignored(host: str) -> None:
    """What is no host leaves the Host header as it was."""
    scope = await see_scope(PROXY, [(b"host", b"inside"), (b"x-forwarded-host", host.encode())])

    assert [value for name, value in scope["headers"] if name == b"host"] == [b"inside"]


@pytest.mark.parametrize(
    ("kind", "proto", "scheme"),
    [
        ("http", "https", "https"),
        ("http", "HTTPS", "https"),
        ("http", "wss", "https"),
        ("http", "javascript", "http"),
        ("http", "", "http"),
        ("websocket", "https", "wss"),
        ("websocket", "wss", "wss"),
        ("websocket", "http", "ws"),
        ("websocket", "ftp", "ws"),
    ],
)
async def test_scheme_is_one_that_we_speak(kind: str, proto: str, scheme: str) -> None:
    """The schemes are http and https, or ws and wss in a websocket."""
    scope = await see_scope(PROXY, [(b"host", b"inside"), (b"x-forwarded-proto", proto.encode())], kind=kind)

    assert scope["scheme"] == scheme


async def test_unlisted_proxy_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """The first header from a stranger is logged with the setting's name, the next ones are not."""

    async def app(scope: object, receive: object, send: object) -> None:
        pass

    proxies = TrustedProxies(app, read_settings({}))
    scope: Any = {"type": "http", "scheme": "http", "headers": forwarded_for(VISITOR), "client": ("192.0.2.1", 1)}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await proxies(scope, None, None)  # type: ignore[arg-type]

    (record,) = caplog.records
    assert "TENANTS_TRUSTED_PROXIES" in record.getMessage()
    assert "192.0.2.1" in record.getMessage()


async def test_listed_proxy_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A proxy in the list says nothing new, and neither does a visitor without the header."""
    with caplog.at_level(logging.WARNING):
        await see_scope(PROXY, forwarded_for(VISITOR))
        await see_scope(("192.0.2.1", 1), HEADERS)

    assert caplog.records == []
