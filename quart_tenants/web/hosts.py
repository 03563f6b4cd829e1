"""Find which tenant an HTTP host belongs to. Pure: no I/O, no Quart."""

import functools
import re
from dataclasses import dataclass

from quart_tenants.domain import Domain, is_below, parse_domain
from quart_tenants.errors import InvalidDomainError
from quart_tenants.tenant import SLUG_PATTERN, Slug

_PORT = ":[0-9]{1,5}"
# At most one trailing dot, and any port.
_END = rf"\.?(?:{_PORT})?"
# Size of the parse cache. A stranger can fill it with junk; real hosts are then merely parsed again.
_CACHE_SIZE = 8192
LONGEST_HOST = 270
"""Characters. No DNS name with a port is longer. Longer hosts are not cached."""


@dataclass(frozen=True, slots=True)
class HostPatterns:
    """Regular expressions for hosts in lower case, without groups.

    Attributes:
        tenant: Subdomains that can be a tenant's.
        apex: The domain itself.
        elsewhere: Names outside the domain, of which some may be tenants' own domains.
    """

    tenant: str
    apex: str
    elsewhere: str

    @classmethod
    def of(cls, domain: str) -> "HostPatterns":
        """Return the patterns for *domain*, given in lower case and without port."""
        apex = re.escape(domain) + _END
        # No top-level domain begins with a digit, so this leaves out IP addresses.
        elsewhere = rf"(?!(?:.*\.)?{apex}\Z)(?:[a-z0-9-]+\.)+[a-z][a-z0-9-]*{_END}"
        return cls(tenant=rf"{SLUG_PATTERN}\.{apex}", apex=apex, elsewhere=elsewhere)


@dataclass(frozen=True, slots=True)
class NamedHost:
    """What a host names, whether or not there is such a tenant. At most one of the three is set.

    Attributes:
        slug: The slug of a subdomain of our domain.
        domain: A domain that may be a tenant's own.
        is_apex: Whether it is our domain itself.
    """

    slug: Slug | None = None
    domain: Domain | None = None
    is_apex: bool = False


def read_host(host: str, domain: str) -> NamedHost:
    """Return what *host* names. Nothing is set for an IP address, one label, a host too deep or a malformed one.

    Args:
        host: The Host header as sent: any case, may end in a port or a dot.
        domain: Lower case, without port, for example `example.com`.
    """
    return _read_host_cached(host, domain) if len(host) <= LONGEST_HOST else _read_host(host, domain)


def _read_host(host: str, domain: str) -> NamedHost:
    patterns = HostPatterns.of(domain)
    # Not lower() first: it makes a k of the Kelvin sign.
    if re.fullmatch(patterns.tenant, host, re.ASCII | re.IGNORECASE):
        return NamedHost(slug=Slug(host.partition(".")[0].lower()))
    if re.fullmatch(patterns.apex, host, re.ASCII | re.IGNORECASE):
        return NamedHost(is_apex=True)
    try:
        named = parse_domain(host.removesuffix(get_port(host)))
    except InvalidDomainError:
        return NamedHost()
    return NamedHost(domain=None if is_below(named, domain) else named)


# The cache holds how a text is read, which never changes. Which tenant has the name is looked up each time.
_read_host_cached = functools.lru_cache(maxsize=_CACHE_SIZE)(_read_host)


def get_port(host: str) -> str:
    """Return the port of *host* with its colon, or an empty text."""
    port = re.search(rf"{_PORT}\Z", host)
    return port[0] if port else ""
