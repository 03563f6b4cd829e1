"""Domains: one form for each, and nothing that is an address, a pattern or a port."""

import pytest

from quart_tenants.domain import find_host_name, is_below, parse_domain
from quart_tenants.errors import InvalidDomainError


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("example.com", "example.com"),
        ("Shop.EXAMPLE.com.", "shop.example.com"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("a.b", "a.b"),
        (f"{'a' * 63}.com", f"{'a' * 63}.com"),
        (".".join(["a" * 49] * 5) + ".co", ".".join(["a" * 49] * 5) + ".co"),
    ],
)
def test_domain_has_one_form(text: str, domain: str) -> None:
    """However a domain is written, it is kept in lower case without the dot at its end."""
    assert parse_domain(text) == domain


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "localhost",
        "example.com..",
        ".example.com",
        "a..b",
        "example.com:443",
        "https://example.com",
        "example.com/",
        "user@example.com",
        "*.example.com",
        "a_b.example.com",
        "-a.example.com",
        "a-.example.com",
        f"{'a' * 64}.com",
        ".".join(["a" * 49] * 5) + ".comm",
        "127.0.0.1",
        "1.2.3",
        "a.1",
        "a.0x7f",
        "[::1]",
        "::1",
        "münchen.de",
        "\u212aelvin.de",
        "example\u3002com",
        "example.com\n",
        " example.com",
        "example.com\0",
    ],
)
def test_what_is_no_domain_is_refused(text: str) -> None:
    """Ports, addresses, patterns, single labels and other alphabets are no domains."""
    with pytest.raises(InvalidDomainError, match=r"shop\.example\.com"):
        parse_domain(text)


def test_host_name_may_be_one_label() -> None:
    """The domain of all tenants may be localhost; a tenant's own may not."""
    assert find_host_name("LocalHost.") == "localhost"
    assert find_host_name(None) is None


def test_name_below_a_domain_ends_in_whole_labels() -> None:
    """`xexample.com` only looks like a name below `example.com`."""
    assert is_below("example.com", "example.com")
    assert is_below("a.example.com", "example.com")
    assert not is_below("xexample.com", "example.com")
    assert not is_below("example.com", "a.example.com")
