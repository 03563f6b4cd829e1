"""Let Quart open each request's session from its cookie, and save it into one."""

import re
from typing import Any

from quart import Quart
from quart.sessions import SessionInterface, SessionMixin
from quart.wrappers import Request, Response
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.wrappers import Response as WerkzeugResponse

from quart_tenants.web.sessions.session_cookies import SessionCookies
from quart_tenants.web.sessions.tenant_sessions import TenantSession
from quart_tenants.web.state import TenantState

# A header of one cookie, as ours looks: as it is, and without quotation marks.
_ONLY_COOKIE = re.compile(r"([A-Za-z0-9_-]+)=([A-Za-z0-9_.-]+)")


class TenantSessionInterface(SessionInterface):
    """A signed cookie with the tenant inside what is signed, for one host only.

    Over https the cookie is named with the prefix `__Host-`, which browsers accept from this very
    host only: a sibling subdomain cannot plant one (draft-ietf-httpbis-rfc6265bis, section 4.1.3.2).
    """

    def __init__(self, state: TenantState) -> None:
        self._state = state
        self._cookies: SessionCookies | None = None
        self._keys: tuple[object, ...] = ()

    async def open_session(self, app: Quart, request: BaseRequestWebsocket) -> TenantSession | None:
        """Return the session of *request*, still unread, or None if the app has no secret key."""
        if not app.secret_key:
            return None
        secure = request.scheme in ("https", "wss")

        def find_sent() -> list[str]:
            return _find_cookies(request, _get_name(app, secure))

        answered = not isinstance(request, Request)
        return TenantSession(self._state, request, self._get_cookies(app), find_sent, secure=secure, answered=answered)

    async def save_session(
        self, app: Quart, session: SessionMixin, response: Response | WerkzeugResponse | None
    ) -> None:
        """Set or delete the cookie if that is needed, and end what the request has left.

        Raises:
            DatabaseUnavailableError: What the request has left could not be ended.
        """
        if not isinstance(session, TenantSession) or not session.loaded:
            return
        await session.write_ends()
        session.answered = True
        if response is None:
            return
        headers = response.headers
        present = {header.lower() for header, _ in headers}
        if "vary" in present:
            response.vary.add("Cookie")
        else:
            headers.add("Vary", "Cookie")
        if "cache-control" not in present:
            headers.add("Cache-Control", "private, no-store")
        if not session.needs_cookie():
            return
        name = _get_name(app, session.secure)
        # Host-only and for the whole site: no Domain, Path=/. The prefix __Host- demands both.
        options: dict[str, Any] = {"path": "/", "secure": session.secure, "httponly": True, "samesite": "Lax"}
        cookie = session.find_cookie()
        if cookie is None:
            response.delete_cookie(name, **options)
        else:
            signed, expires = cookie
            response.set_cookie(name, signed, expires=expires, **options)

    def _get_cookies(self, app: Quart) -> SessionCookies:
        keys = (app.secret_key, *(app.config["SECRET_KEY_FALLBACKS"] or ()))
        if self._cookies is None or keys != self._keys:
            self._cookies, self._keys = SessionCookies(keys[0], keys[1:]), keys
        return self._cookies


def _find_cookies(request: BaseRequestWebsocket, name: str) -> list[str]:
    headers = request.headers.getlist("Cookie")
    only = _ONLY_COOKIE.fullmatch(headers[0]) if len(headers) == 1 else None
    # Parsing takes longer than all else that a session needs.
    return [only[2]] if only is not None and only[1] == name else request.cookies.getlist(name)


def _get_name(app: Quart, secure: bool) -> str:
    name: str = app.config["SESSION_COOKIE_NAME"]
    return f"__Host-{name}" if secure else name
