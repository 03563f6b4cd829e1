"""Check the values of settings, and say what is wrong with one. Pure.

Each check returns the value in its type, or raises a `ValueError` whose text follows the name of the setting.
"""

import contextlib
import ipaddress
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from quart_tenants.domain import find_host_name
from quart_tenants.errors import InvalidSchemaNameError
from quart_tenants.tenant import SchemaName, parse_schema_name

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX_SOCKET = "unix"
"""In place of a network: whoever connects by a unix socket, which has no address."""

# An address. If it has colons and a port follows, it is in brackets.
_SERVER = re.compile(r"(?:\[(?P<bracketed>[^]]+)\]|(?P<plain>[^][:]+))(?::(?P<port>[0-9]{1,5}))?|(?P<bare>[^][]+)")
_DNS_PORT = 53
_BIND = re.compile(r"(?:(?:\[(?P<bracketed>[^]]+)\]|(?P<plain>[0-9.]+)):)?(?P<port>[0-9]{1,5})")


class DnsServer(NamedTuple):
    """A DNS server to ask."""

    address: str
    port: int


def check_url(value: object) -> str:
    """Return the URL of a PostgreSQL database."""
    # No message repeats the value or an error about it, because it has a password in it.
    parts = None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            parts = urlsplit(value)
    if parts is None or parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("must be a URL such as postgresql://user:password@host:5432/database")
    # A password with / ? or # would end the host early, and asyncpg would show the rest of it in an error.
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError("has an @ behind the host: in a password write / as %2F, ? as %3F, # as %23 and @ as %40")
    return str(value)


def check_public_url(value: object) -> str:
    """Return the address of the domain itself, without a slash at its end."""
    parts = None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            parts = urlsplit(value)
            _ = parts.port
    if (
        parts is None
        or parts.scheme not in ("http", "https")
        or find_host_name(parts.hostname) is None
        or parts.path not in ("", "/")
        or parts.query + parts.fragment
        or "@" in parts.netloc
    ):
        raise ValueError(f"is {value!r}: give the address of the domain itself, such as https://example.com")
    return f"{parts.scheme}://{parts.netloc.lower()}"


def check_domain(value: object) -> str:
    """Return a domain in lower case."""
    domain = find_host_name(value)
    if domain is not None:
        return domain
    raise ValueError(f"is {value!r}, which is no domain: give it like example.com, without port and scheme")


def check_names(value: object) -> frozenset[str]:
    """Return names, given with commas between them or as a collection."""
    names = value.split(",") if isinstance(value, str) else value
    if isinstance(names, Collection) and all(isinstance(name, str) for name in names):
        return frozenset(stripped for name in names if (stripped := name.strip()))
    raise ValueError(f"is {value!r}: give names, with commas between them")


def check_schemas(value: object) -> tuple[SchemaName, ...]:
    """Return schemas in the given order, each once."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"is {value!r}: give names of schemas, with commas between them")
    try:
        stripped = [name.strip() for name in names if name.strip()]
        # No tenant may have it, and all may share it.
        public = SchemaName("public")
        return tuple(dict.fromkeys(public if name == "public" else parse_schema_name(name) for name in stripped))
    except InvalidSchemaNameError as error:
        raise ValueError(f"is {value!r}: {error.text!r} cannot be shared: {error.reason}") from None


def check_proxies(value: object) -> tuple[Network | str, ...]:
    """Return networks, where a single address is a network, too, and the word `unix`."""
    try:
        return tuple(name if name == UNIX_SOCKET else ipaddress.ip_network(name) for name in sorted(check_names(value)))
    except ValueError as error:
        raise ValueError(f"is {value!r}: give networks such as 127.0.0.1 or 10.0.0.0/8, or unix ({error})") from None


def check_dns_servers(value: object) -> tuple[DnsServer, ...]:
    """Return DNS servers in the given order, in which they are asked."""
    texts = value.split(",") if isinstance(value, str) else value
    try:
        if isinstance(texts, tuple | list):
            return tuple(_parse_dns_server(text.strip()) for text in texts if text.strip())
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"is {value!r}: give addresses such as 127.0.0.1, 127.0.0.1:5353 or [::1]:53, with commas")


def _parse_dns_server(text: str) -> DnsServer:
    match = _SERVER.fullmatch(text)
    if match is None:
        raise ValueError(text)
    address = ipaddress.ip_address(match["bracketed"] or match["plain"] or match["bare"])
    port = int(match["port"] or _DNS_PORT)
    if not 0 < port < 2**16:
        raise ValueError(text)
    return DnsServer(str(address), port)


def check_bind(value: object) -> str:
    """Return an address to listen on, as host:port. The host is this machine alone, unless another one is named."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = _BIND.fullmatch(text) if isinstance(text, str) else None
    # Names are left out: what they mean may change, and with it who can read what is served there.
    with contextlib.suppress(ValueError):
        if match is not None and int(match["port"]) < 2**16:
            address = ipaddress.ip_address(match["bracketed"] or match["plain"] or "127.0.0.1")
            return f"[{address}]:{match['port']}" if address.version == 6 else f"{address}:{match['port']}"
    raise ValueError(f"is {value!r}: give a port such as 9464, or 10.0.0.5:9464, or [::1]:9464")


def check_folder(value: object) -> Path:
    """Return a folder that exists."""
    # An empty text does not mean the current folder: an empty environment variable is a mistake.
    if isinstance(value, str | Path) and value:
        # For example, a name that is too long, or a folder above it that we may not read.
        with contextlib.suppress(OSError):
            if Path(value).is_dir():
                return Path(value)
    raise ValueError(f"is {str(value)!r}, which is no folder")


def check_schemes(value: object) -> tuple[str, ...]:
    """Return the schemes of password hashes, each once."""
    schemes = tuple(name.strip() for name in value.split(",")) if isinstance(value, str) else value
    known = ("argon2", "pbkdf2_sha256")
    if isinstance(schemes, tuple | list) and schemes and all(name in known for name in schemes):
        # passlib refuses a scheme that is listed twice.
        return tuple(dict.fromkeys(schemes))
    raise ValueError(f"is {value!r}: give {' or '.join(known)}, or both, the one for new passwords first")


def between(low: float, high: float, number: type[int] | type[float]) -> Callable[[object], float]:
    """Return a check for numbers of the type *number* from *low* to *high*."""

    def check(value: object) -> float:
        # True is a number to Python, but "true" in the environment is none here.
        accepted = int if number is int else int | float
        if isinstance(value, accepted) and not isinstance(value, bool) and low <= value <= high:
            return number(value)
        kind = "whole number" if number is int else "number"
        raise ValueError(f"is {value!r}: give a {kind} from {low:.12g} to {high:.12g}")

    return check


def check_switch(value: object) -> bool:
    """Return whether something is on."""
    if isinstance(value, bool):
        return value
    # Python's `True` is no JSON, so it arrives from the environment as text.
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ValueError(f"is {value!r}: give true or false")


def one_of(*words: str) -> Callable[[object], str]:
    """Return a check for *words*, in any case."""

    def check(value: object) -> str:
        if isinstance(value, str) and value.lower() in words:
            return value.lower()
        raise ValueError(f"is {value!r}: give {' or '.join(words)}")

    return check
