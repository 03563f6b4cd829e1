"""Say what a domain is. Pure: no I/O."""

import re
from typing import NewType

from quart_tenants.errors import InvalidDomainError

Domain = NewType("Domain", str)
"""A domain of a tenant's own, checked by `parse_domain`."""

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
# What ends in a number is an address to every browser (WHATWG URL, section 3.5), which has no subdomains.
_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*")


def find_host_name(text: object) -> str | None:
    """Return *text* as a host name in its one form, or None for what is none.

    Lower case, without the dot at its end. `localhost` is one; an address or a port is not.
    """
    # ASCII, because lower() makes a k of the Kelvin sign.
    name = text.lower().removesuffix(".") if isinstance(text, str) and text.isascii() else ""
    if _HOST_NAME.fullmatch(name) and not _NUMBER.fullmatch(name.rpartition(".")[2]):
        return name
    return None


def parse_domain(text: str) -> Domain:
    """Return *text* as a domain in its one form: lower case, without the dot at its end.

    Raises:
        InvalidDomainError: It is none, such as with a port, or has one label only.
    """
    name = find_host_name(text)
    if name is None or "." not in name:
        raise InvalidDomainError(text, "write it like shop.example.com, without port and scheme")
    return Domain(name)


def is_below(name: str, domain: str) -> bool:
    """Return whether *name* is *domain*, or a name below it. Both in their one form."""
    return f".{name}".endswith(f".{domain}")
