"""Find which tenant an HTTP host belongs to. Pure: no I/O, no Quart."""

import functools
import re
from dataclasses import dataclass

from quart_tenants.domain import Domain, parse_domain
from quart_tenants.errors import InvalidDomainError, UnknownHostError
from quart_tenants.tenant import SLUG_PATTERN, Slug

_PORT = ":[0-9]{1,5}"
# At most one trailing dot, and any port.
_END = rf"\.?(?:{_PORT})?"
# Of hosts that were read before. Anybody can make up others, which costs the next ones their reading and no more.
_MOST_REMEMBERED = 8192
LONGEST_HOST = 270
"""Characters. No name of DNS with a port is longer; others are not remembered."""


@dataclass(frozen=True, slots=True)
class HostPatterns:
    """What hosts look like below one domain, as regular expressions without groups, for lower case."""

    tenant: str
    apex: str

    @classmethod
    def of(cls, domain: str) -> "HostPatterns":
        """Return the patterns for *domain*, given in lower case and without port."""
        apex = re.escape(domain) + _END
        return cls(tenant=rf"{SLUG_PATTERN}\.{apex}", apex=apex)


def parse_host(host: str, domain: str) -> Slug | None:
    """Return the tenant address named by *host*, or None for the domain itself.

    Args:
        host: The Host header as sent: any case, may end in a port or a dot.
        domain: Lower case, without port, for example `example.com`.

    Raises:
        UnknownHostError: *host* is outside *domain*, more than one label deep, or malformed.
    """
    patterns = HostPatterns.of(domain)
    # Not lower() first: it makes a k of the Kelvin sign.
    if re.fullmatch(patterns.tenant, host, re.ASCII | re.IGNORECASE):
        return Slug(host.partition(".")[0].lower())
    if re.fullmatch(patterns.apex, host, re.ASCII | re.IGNORECASE):
        return None
    raise UnknownHostError(host)


@dataclass(frozen=True, slots=True)
class NamedHost:
    """What a host says, whether or not there is such a tenant. At most one of the two.

    Attributes:
        slug: The tenant's, below our domain.
        domain: A domain that may be a tenant's own.
    """

    slug: Slug | None = None
    domain: Domain | None = None


def read_host(host: str, domain: str) -> NamedHost:
    """Return what *host* names, as `parse_host` and `find_domain` read it; neither for the domain itself."""
    return _read_host_again(host, domain) if len(host) <= LONGEST_HOST else _read_host(host, domain)


def _read_host(host: str, domain: str) -> NamedHost:
    try:
        return NamedHost(slug=parse_host(host, domain))
    except UnknownHostError:
        return NamedHost(domain=find_domain(host))


# What is remembered is how a text reads, which never changes. Who has that name is asked each time.
_read_host_again = functools.lru_cache(maxsize=_MOST_REMEMBERED)(_read_host)


def find_domain(host: str) -> Domain | None:
    """Return the domain that *host* names without its port, or None for an address, one label or what is malformed."""
    try:
        return parse_domain(host.removesuffix(get_port(host)))
    except InvalidDomainError:
        return None


def get_port(host: str) -> str:
    """Return the port of *host* with its colon, or nothing."""
    port = re.search(rf"{_PORT}\Z", host)
    return port[0] if port else ""
