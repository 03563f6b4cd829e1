"""Refuse what another site's page sends in a visitor's name.

Sibling subdomains are the same site to a browser: `SameSite` cookies go along with what another
tenant's page posts here. So a tenant's neighbours count as elsewhere, like everybody else.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from quart import current_app
from quart.wrappers import Request
from quart.wrappers.base import BaseRequestWebsocket

from quart_tenants.errors import RequestFromElsewhereError
from quart_tenants.web.context import find_request

_logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

_HARMLESS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
# "none": the visitor typed the address or took a bookmark.
_OWN_SITES = frozenset({"same-origin", "none"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# A page's origin is http or https, also where it opens a websocket.
_ORIGIN_SCHEMES = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_MOST_SHOWN = 100  # characters of a header
_EXEMPT = "_quart_tenants_from_elsewhere"


def allow_from_elsewhere(view: F) -> F:
    """Let other sites' pages post to *view*, or open this websocket.

    For what a visitor's browser brings from elsewhere on purpose, such as the answer of a SAML
    identity provider. Such a view must not trust the session: it checks what it is sent. Callers
    that are no browsers (webhooks from a server) need none of this.
    """
    setattr(view, _EXEMPT, True)
    return view


async def refuse_from_elsewhere() -> None:
    """Make sure that a request which may change something comes from a page of this very origin, or no page.

    A hook that runs before every view. A websocket's handshake counts as such a request: it carries
    cookies, and no browser lets the page's own site have a say.

    Raises:
        RequestFromElsewhereError: It comes from elsewhere, or nobody can tell.
    """
    asked = find_request()
    # Without a rule it ends as 404 or 405.
    if asked is None or asked.url_rule is None or asked.routing_exception is not None:
        return
    if isinstance(asked, Request) and asked.method in _HARMLESS:
        return
    if is_from_elsewhere(asked) and not _is_exempt(asked):
        said = ", ".join(
            f"{name} {value[:_MOST_SHOWN]!r}"
            for name in ("Sec-Fetch-Site", "Origin")
            for value in asked.headers.getlist(name)[:2]
        )
        _logger.info("refused a request from elsewhere to %s://%s: %s", asked.scheme, asked.host, said)
        raise RequestFromElsewhereError(
            f"this came from a page of another site ({said}); open {asked.scheme}://{asked.host}/ and do it there"
        )


def is_from_elsewhere(asked: BaseRequestWebsocket) -> bool:
    """Return whether *asked* comes from another origin's page, by what the browser says about it.

    Of the two headers the first that is there decides. Pages can set neither. Scripts and curl send none.
    """
    sites = asked.headers.getlist("Sec-Fetch-Site")
    if sites:
        return len(sites) > 1 or sites[0] not in _OWN_SITES
    # Browsers leave Sec-Fetch-Site out where the address is plain http.
    origins = asked.headers.getlist("Origin")
    if origins:
        return len(origins) > 1 or not is_same_origin(origins[0], asked.scheme, asked.host)
    return False


def is_same_origin(origin: str, scheme: str, host: str) -> bool:
    """Return whether the header *origin* names scheme, host and port of a request, as its visitor sees them.

    Args:
        origin: Such as `https://acme.example.com`; anything else, `null` included, is no origin.
        scheme: Of the request: http, https, ws or wss.
        host: Its Host header, perhaps with a port.
    """
    origin_scheme, separator, origin_host = origin.partition("://")
    own_scheme = _ORIGIN_SCHEMES.get(scheme)
    if not separator or own_scheme is None or origin_scheme.lower() != own_scheme:
        return False
    theirs = _split_host(own_scheme, origin_host)
    return theirs is not None and theirs == _split_host(own_scheme, host)


def _split_host(scheme: str, host: str) -> tuple[str, str] | None:
    """Return the host in lower case and the port, or None for what is neither a host nor a host with a port."""
    try:
        parts = urlsplit(f"//{host}")
        port = parts.port
    except ValueError:
        return None
    # As a whole: no user, path or query beside it, and nothing that was stripped on the way.
    if not parts.hostname or parts.netloc != host or "@" in host:
        return None
    name = parts.hostname if host.isascii() else host
    return name, _DEFAULT_PORTS[scheme] if port is None else str(port)


def _is_exempt(asked: BaseRequestWebsocket) -> bool:
    view = current_app.view_functions.get(asked.endpoint or "")
    return getattr(view, _EXEMPT, False) is True
