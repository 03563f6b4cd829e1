"""Let Quart open each request's session from its cookie, and save it into one."""

from collections.abc import Awaitable, Callable
from typing import Any

from quart import Quart
from quart.sessions import SessionInterface, SessionMixin
from quart.wrappers import Request, Response
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.wrappers import Response as WerkzeugResponse

from quart_tenants.errors import TenantError
from quart_tenants.web.sessions.session_cookies import SessionCookies
from quart_tenants.web.sessions.tenant_sessions import TenantSession
from quart_tenants.web.state import TenantState


class TenantSessionInterface(SessionInterface):
    """A signed cookie with the tenant inside what is signed, for one host only.

    Over https the cookie is named with the prefix `__Host-`, which browsers accept from this very
    host only: a sibling subdomain cannot plant one (draft-ietf-httpbis-rfc6265bis, section 4.1.3.2).
    """

    def __init__(self, state: TenantState, answer_error: Callable[[TenantError], Awaitable[Response]]) -> None:
        self._state = state
        self._answer_error = answer_error
        self._cookies: SessionCookies | None = None
        self._keys: tuple[object, ...] = ()

    async def open_session(self, app: Quart, request: BaseRequestWebsocket) -> TenantSession | None:
        """Return the session of *request*, still unread, or None if the app has no secret key."""
        if not app.secret_key:
            return None
        secure = request.scheme in ("https", "wss")
        cookies = self._get_cookies(app)

        def find_sent() -> list[str]:
            return _find_sent(request, get_cookie_name(app, secure=secure), cookies)

        answered = not isinstance(request, Request)
        return TenantSession(self._state, request, cookies, find_sent, secure=secure, answered=answered)

    async def save_session(
        self, app: Quart, session: SessionMixin, response: Response | WerkzeugResponse | None
    ) -> None:
        """Set or delete the cookie if that is needed, and end the sessions that the request has left.

        If they cannot be ended, *response* becomes the answer to that error: no error handler runs any more at this
        point, and Quart would answer 500.

        Raises:
            TenantError: They cannot be ended, and *response* is None, as at the end of a websocket.
        """
        if not isinstance(session, TenantSession) or not session.loaded:
            return
        try:
            await session.write_ends()
            if response is not None:
                self._set_cookie(app, session, response)
        except TenantError as error:
            if response is None:
                raise
            problem = await self._answer_error(error)
            response.status_code = problem.status_code
            response.headers = problem.headers
            response.set_data(await problem.get_data(as_text=False))
        finally:
            session.answered = True

    def _set_cookie(self, app: Quart, session: TenantSession, response: Response | WerkzeugResponse) -> None:
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
        name = get_cookie_name(app, secure=session.secure)
        # The cookie is for this host only (no Domain) and for the whole site (Path=/). The prefix __Host- demands both.
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


def _find_sent(request: BaseRequestWebsocket, name: str, cookies: SessionCookies) -> list[str]:
    """Return the cookies that are called *name*."""
    headers = request.headers.getlist("Cookie")
    if len(headers) == 1:
        only, _, cookie = headers[0].partition("=")
        # Parsing takes longer than everything else that a session needs.
        if only == name and cookies.remembers(cookie):
            return [cookie]
    return request.cookies.getlist(name)


def get_cookie_name(app: Quart, *, secure: bool) -> str:
    """Return the name of the cookie of sessions. *secure*: whether the visitor comes by https."""
    name: str = app.config["SESSION_COOKIE_NAME"]
    return f"__Host-{name}" if secure else name
