"""Refuse requests that a page of another site sends with a visitor's cookies.

To a browser sibling subdomains are the same site: it sends `SameSite` cookies along when a page of another tenant posts
here. So other tenants' pages are refused like the pages of all other sites.
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
# "none" means that the visitor typed the address or followed a bookmark.
_OWN_SITES = frozenset({"same-origin", "none"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# A page's origin is http or https, also where it opens a websocket.
_ORIGIN_SCHEMES = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
_MOST_SHOWN = 100  # characters of a header
_EXEMPT = "_quart_tenants_from_elsewhere"


def allow_from_elsewhere(view: F) -> F:
    """Let pages of other sites post to *view*, or open this websocket.

    This is for requests that come from another site on purpose, such as the answer of a SAML identity provider. Such a
    view must not trust the session; it has to check what it is sent. Callers that are no browsers, such as webhooks,
    do not need this.

    This raises no error.

    Example:
        ```python
        @app.post("/saml/acs", host=tenants.host)
        @allow_from_elsewhere
        async def saml() -> str:
            return "checked by its signature, not by a session"
        ```
    """
    setattr(view, _EXEMPT, True)
    return view


async def refuse_from_elsewhere() -> None:
    """Make sure that a request which may change something comes from a page of this very origin, or from no page.

    This hook runs before every view. The handshake of a websocket counts as such a request: it carries cookies, and
    browsers let every page open a websocket to every site.

    Raises:
        RequestFromElsewhereError: The request comes from another origin, or its origin is unclear.
    """
    asked = find_request()
    # A request without a rule gets 404 or 405.
    if asked is None or asked.url_rule is None or asked.routing_exception is not None:
        return
    if isinstance(asked, Request) and asked.method in _HARMLESS:
        return
    view = current_app.view_functions.get(asked.endpoint or "")
    if is_from_elsewhere(asked) and getattr(view, _EXEMPT, False) is not True:
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
    """Return whether *asked* comes from a page of another origin, according to the browser.

    `Sec-Fetch-Site` decides, or else `Origin`. Pages can set neither of them. Scripts and curl send neither.
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
    """Return whether the header *origin* names the scheme, host and port that the visitor sees.

    Args:
        origin: Such as `https://acme.example.com`. Everything else, `null` included, is no origin.
        scheme: The scheme of the request: http, https, ws or wss.
        host: The Host header of the request, perhaps with a port.
    """
    origin_scheme, separator, origin_host = origin.partition("://")
    own_scheme = _ORIGIN_SCHEMES.get(scheme)
    if not separator or own_scheme is None or origin_scheme.lower() != own_scheme:
        return False
    theirs = _split_host(own_scheme, origin_host)
    return theirs is not None and theirs == _split_host(own_scheme, host)


def _split_host(scheme: str, host: str) -> tuple[str, str] | None:
    """Return the host in lower case and the port, or None if *host* is not a host with or without a port."""
    try:
        parts = urlsplit(f"//{host}")
        port = parts.port
    except ValueError:
        return None
    # The text must be the host alone: no user, path or query, and no characters that urlsplit has removed.
    if not parts.hostname or parts.netloc != host or "@" in host:
        return None
    name = parts.hostname if host.isascii() else host
    return name, _DEFAULT_PORTS[scheme] if port is None else str(port)
