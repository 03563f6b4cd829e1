"""Bind the session to the tenant that it was issued to."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from itsdangerous import BadData
from quart import Quart, session
from quart.sessions import SecureCookieSessionInterface, SessionMixin
from quart.wrappers import Response
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.wrappers import Response as WerkzeugResponse

from quart_tenants.errors import SettingError, WrongTenantError
from quart_tenants.web.context import find_current_tenant, see_through

_OWNER = "_tenant"
_NO_TENANT = 0
_MIN_SECRET_LENGTH = 16


class TenantSession(SessionMixin):
    """What a visitor's cookie says, readable at the host of the tenant that issued it and nowhere else.

    The cookie is read at the first use, so a page without a session costs nothing. The domain itself
    has sessions too: they belong to no tenant and are refused on every tenant.

    Any use raises `WrongTenantError` when the cookie is another tenant's. `start_session` alone does
    not: a visitor with a foreign cookie must be able to log in.

    Attributes:
        secure: The request came by https.
        loaded: Somebody used the session, so the answer depends on the cookie.
        modified: The cookie has to be set anew.
    """

    def __init__(self, read_cookie: Callable[[], dict[str, Any]], *, secure: bool) -> None:
        self._read_cookie = read_cookie
        self._content: dict[str, Any] = {}
        self.secure = secure
        self.loaded = False
        self.modified = False

    def renew(self) -> None:
        """Begin a new, empty session, whatever the cookie said."""
        self._content = {}
        self.loaded = True
        self.modified = True

    def clear(self) -> None:
        """Forget everything; the visitor's cookie is deleted."""
        self._load()
        self.renew()

    def __getitem__(self, key: str) -> Any:
        return self._load()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._load()[key] = value
        self.modified = True

    def __delitem__(self, key: str) -> None:
        del self._load()[key]
        self.modified = True

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def __len__(self) -> int:
        return len(self._load())

    def _load(self) -> dict[str, Any]:
        if not self.loaded:
            content = self._read_cookie()
            owner = content.pop(_OWNER, None)
            # A cookie without an owner was not issued here: it counts as none at all.
            if owner is not None:
                if owner != find_session_owner():
                    raise WrongTenantError("this session belongs to another tenant; log in here")
                self._content = content
            self.loaded = True
        return self._content


class TenantSessionInterface(SecureCookieSessionInterface):
    """Quart's signed cookie, with the tenant inside what is signed, for one host only.

    Over https the cookie is named with the prefix `__Host-`, which browsers accept from this very
    host only: a sibling subdomain cannot plant one (draft-ietf-httpbis-rfc6265bis, section 4.1.3.2).
    """

    # Apart from Quart's own, so that a cookie of a plain Quart app with the same key is none of ours.
    salt = "quart-tenants-session"
    digest_method = staticmethod(hashlib.sha256)

    async def open_session(self, app: Quart, request: BaseRequestWebsocket) -> TenantSession | None:  # type: ignore[override]
        """Return the session of *request*, still unread, or None if the app has no secret key."""
        if not app.secret_key:
            return None
        secure = request.scheme in ("https", "wss")

        def read_cookie() -> dict[str, Any]:
            serializer = self.get_signing_serializer(app)
            cookie = request.cookies.get(_get_name(app, secure))
            if cookie is None or serializer is None:
                return {}
            try:
                content = serializer.loads(cookie, max_age=int(app.permanent_session_lifetime.total_seconds()))
            except BadData:
                return {}
            return content if isinstance(content, dict) else {}

        return TenantSession(read_cookie, secure=secure)

    async def save_session(
        self, app: Quart, session: SessionMixin, response: Response | WerkzeugResponse | None
    ) -> None:
        """Set or delete the cookie if the session was modified."""
        if response is None or not isinstance(session, TenantSession) or not session.loaded:
            return
        response.vary.add("Cookie")
        if not session.modified:
            return
        name = _get_name(app, session.secure)
        # Host-only and for the whole site: no Domain, Path=/. The prefix __Host- demands both.
        options: dict[str, Any] = {"path": "/", "secure": session.secure, "httponly": True, "samesite": "Lax"}
        serializer = self.get_signing_serializer(app)
        if session and serializer is not None:
            value = serializer.dumps({**session, _OWNER: find_session_owner()})
            response.set_cookie(name, str(value), expires=self.get_expiration_time(app, session), **options)
        else:
            response.delete_cookie(name, **options)


def start_session() -> TenantSession:
    """Return a new, empty session for the current request, whatever its cookie said.

    For a login: nothing from before it survives.

    Raises:
        SettingError: The app has no secret key.
    """
    current = see_through(session)
    if not isinstance(current, TenantSession):
        raise _no_secret_key()
    current.renew()
    return current


def find_session_owner() -> int:
    """Return the number of the tenant that this request's session belongs to; 0 on other hosts."""
    tenant = find_current_tenant()
    return _NO_TENANT if tenant is None else tenant.id


def check_secret_key(app: Quart) -> None:
    """Make sure that *app* can sign its sessions.

    Raises:
        SettingError: The secret key is missing or too short.
    """
    key: object = app.secret_key
    if not key:
        raise _no_secret_key()
    if not isinstance(key, str | bytes) or len(key) < _MIN_SECRET_LENGTH:
        raise SettingError(
            "SECRET_KEY", f"must be a text of at least {_MIN_SECRET_LENGTH} characters, and not a plain number"
        )


def _no_secret_key() -> SettingError:
    return SettingError(
        "SECRET_KEY",
        "is not set: put a long random text into the environment as QUART_SECRET_KEY, such as the output of "
        "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
    )


def _get_name(app: Quart, secure: bool) -> str:
    name: str = app.config["SESSION_COOKIE_NAME"]
    return f"__Host-{name}" if secure else name
