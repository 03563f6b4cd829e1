"""Say what a domain is. Pure: no I/O."""

import re
from typing import NewType

from quart_tenants.errors import InvalidDomainError

Domain = NewType("Domain", str)
"""A domain of a tenant's own, checked by `parse_domain`.

Example:
    >>> from quart_tenants.admin import Domain, parse_domain
    >>> domain: Domain = parse_domain("shop.acme.test")
"""

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
# Every browser reads a name that ends in a number as an IP address (WHATWG URL, section 3.5).
_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")


def find_host_name(text: object) -> str | None:
    """Return *text* as a host name in lower case without a dot at its end, or None if it is no host name.

    `localhost` is a host name; an IP address is none, and a name with a port is none.
    """
    # ASCII only, because lower() turns the Kelvin sign into a k.
    name = text.lower().removesuffix(".") if isinstance(text, str) and text.isascii() else ""
    if _HOST_NAME.fullmatch(name) and not _NUMBER.fullmatch(name.rpartition(".")[2]):
        return name
    return None


def parse_domain(text: str) -> Domain:
    """Return *text* as a domain in lower case without a dot at its end.

    Raises:
        InvalidDomainError: It is no domain, for example because it has a port, or it has only one label.

    Example:
        >>> from quart_tenants.admin import parse_domain
        >>> parse_domain("Shop.Acme.TEST.")
        'shop.acme.test'
    """
    name = find_host_name(text)
    if name is None or "." not in name:
        raise InvalidDomainError(text, "write it like shop.example.com, without port and scheme")
    return Domain(name)


def is_below(name: str, domain: str) -> bool:
    """Return whether *name* is *domain*, or a name below it. Both must be in lower case."""
    return f".{name}".endswith(f".{domain}")
