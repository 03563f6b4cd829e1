"""Bind the session to the tenant that it was issued to, and let it end on every worker."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from quart import session
from quart.sessions import SessionMixin
from quart.wrappers.base import BaseRequestWebsocket

from quart_tenants.audit import audit
from quart_tenants.errors import SessionUncheckedError, TenantError, WrongTenantError
from quart_tenants.postgres.sessions.session_ends import (
    CLOCK_SLACK,
    check_username,
    end_session_in,
    get_generation,
    is_ended,
)
from quart_tenants.web.context import find_request, find_tenant_of
from quart_tenants.web.sessions.secret_keys import explain_missing_key
from quart_tenants.web.sessions.session_cookies import SessionCookies, SignedSession, issue_session
from quart_tenants.web.state import TenantState, get_state, see_through

_NO_TENANT = 0
_NOBODY = ""
# A part of the idle lifetime. After it the cookie is signed again; doing so at each request would be a waste.
_RENEWAL = 0.1
# A part of the longest time without news. The view uses the session somewhat later, and cannot ask any more then.
_ASK_EARLY = 0.75


class TenantSession(SessionMixin):
    """The session in a visitor's cookie. It can be read only at the tenant that issued it.

    The cookie is read at the first use, so a page that uses no session costs nothing. The domain itself has sessions,
    too. They belong to no tenant, and every tenant refuses them.

    Each use checks in the memory of this worker whether the session was ended, has lived too long, or belongs to a
    tenant that is not served any more. A websocket that uses the session after each message notices all that.

    Any use raises `WrongTenantError` when the cookie belongs to another tenant, and `SessionUncheckedError` when this
    worker cannot know whether the session was ended. `start_session` raises neither of them: a visitor with another
    tenant's cookie must be able to log in.

    No method needs Quart's current app, because Quart's test client uses sessions outside of it.

    Attributes:
        secure: Whether the request came by https.
        answered: Whether it is too late to set a cookie, because the answer has been made, or in a websocket.
        loaded: Whether the session was used, so that the answer depends on the cookie.
        modified: Whether the cookie has to be set again.

    Example:
        ```python
        session = get_session()
        session["theme"] = "dark"
        print(session.user)
        ```
    """

    def __init__(
        self,
        state: TenantState,
        asked: BaseRequestWebsocket,
        cookies: SessionCookies,
        find_sent: Callable[[], list[str]],
        *,
        secure: bool,
        answered: bool,
    ) -> None:
        self._state = state
        self._asked = asked
        self._cookies = cookies
        self._find_sent = find_sent
        self._read = False
        self._signed: SignedSession | None = None
        self._content: dict[str, Any] = {}
        # All sessions of this host that the visitor sent, even if none of them is accepted.
        self._ours: list[SignedSession] = []
        # When the session ends unless it is used before, in seconds since 1970.
        self._idle_until = 0.0
        # Sessions that were left in this request. They have to be ended on every worker.
        self._left: list[SignedSession] = []
        # When the database was asked whether the session was ended, in the time of the event loop.
        self._asked_at = float("-inf")
        self.secure = secure
        self.answered = answered
        self.loaded = False
        self.modified = False

    @property
    def user(self) -> str | None:
        """The user who has logged in, as given to `start_session`; None for nobody."""
        self._load()
        return None if self._signed is None else self._signed.issued.username or None

    def clear(self) -> None:
        """Forget everything. The answer deletes the cookie, and the session ends on every worker when it is sent.

        Raises:
            RuntimeError: It is too late, in a websocket or a stream. There `end_session` ends the session.
        """
        if self.answered:
            raise RuntimeError("session.clear() acts with the answer, which is over; say await end_session()")
        self._load()
        self._leave()

    async def end(self) -> None:
        """End the session on every worker, now.

        Raises:
            WrongTenantError: It belongs to another tenant.
            DatabaseUnavailableError: The database cannot be told. The session goes on.
        """
        self._load()
        self._leave()
        await self.write_ends()

    async def start(self, user: str, generation: int) -> None:
        """Begin a new session for *user*, and end the session of the cookie, whichever it is.

        Args:
            user: Whoever has logged in.
            generation: The counter that "log out everywhere" raises: a session of an earlier one is over.
        """
        if not self._read:
            try:
                self._read_cookies()
            except WrongTenantError:
                # Another tenant's session is not ended here.
                self._read = True
        self._leave()
        await self.write_ends(replaced=True)
        self._issue(user, generation)

    async def ask_if_needed(self) -> None:
        """Ask the database whether the session was ended, if this worker has had no news for too long.

        If the database does not answer, this raises nothing. A view that uses the session gets the error, and a page
        that uses none is served.
        """
        state = self._state
        if state.registry.get_age() <= _ASK_EARLY * state.settings.session_ask_after:
            return
        state.measures.sessions_asked += 1
        # The state that the database tells may be as old as the question.
        asked_at = time.monotonic()
        try:
            signed = self._find_ours()
            if signed is not None and await is_ended(state.database, signed.issued):
                state.registry.ended_sessions.add(signed.issued)
        except TenantError:
            return
        self._asked_at = asked_at

    async def write_ends(self, *, replaced: bool = False) -> None:
        """Write down for every worker that the sessions which this request has left are over.

        Args:
            replaced: Whether a new login replaces them, which is no logout.

        Raises:
            DatabaseUnavailableError: The database cannot be told. The sessions go on.
        """
        state = self._state
        left, self._left = self._left, []
        try:
            for signed in left:
                async with state.database.connection() as connection:
                    await end_session_in(connection, signed.issued, max(signed.ends_at - time.time(), 0))
                state.registry.ended_sessions.add(signed.issued)
                state.measures.sessions_ended += 1
                if signed.issued.username and not replaced:
                    audit("logout", user=signed.issued.username, address=self._asked.remote_addr)
        except BaseException:
            # The sessions are not over, so the visitor keeps the cookie and may try again.
            self.modified = False
            raise

    def find_cookie(self) -> tuple[str, datetime | None] | None:
        """Return the cookie to be set, with the time when the browser may delete it; None to delete the cookie.

        The time is None for a cookie that ends with the browser. This does not check again whether the session was
        ended, because each use has checked it.
        """
        if self._signed is None and self._content:
            self._issue(_NOBODY, 0)
        if self._signed is None:
            return None
        expires = datetime.fromtimestamp(self._signed.ends_at, UTC) if self._content.get("_permanent") else None
        return self._cookies.sign(replace(self._signed, content=self._content)), expires

    def needs_cookie(self) -> bool:
        """Return whether the cookie has to be set or deleted."""
        if self._signed is None:
            return self.modified
        idle = time.time() - self._signed.signed_at
        is_due = self.modified or idle > _RENEWAL * self._state.settings.session_idle_lifetime
        # Another request may have ended it meanwhile, and its answer may have set a new cookie.
        return is_due and self._signed.issued not in self._state.registry.ended_sessions

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
        self.loaded = True
        if not self._read:
            self._read_cookies()
        if self._signed is not None and self._is_over(self._signed):
            # The cookie is not deleted: it is worthless, and the browser may have a new one by now.
            self._signed = None
            self._content = {}
        return self._content

    def _read_cookies(self) -> None:
        self._signed = self._find_ours()
        self._content = {} if self._signed is None else dict(self._signed.content)
        self._read = True

    def _find_ours(self) -> SignedSession | None:
        """Return the one session of this host among the cookies, however old. Keep all sessions of this host."""
        sent = self._find_sent()
        self._ours = []
        if not sent:
            return None
        measures = self._state.measures
        measures.sessions_checked += 1
        owner = self._find_owner()
        signed = self._cookies.list_signed(sent)
        ours = {one.issued: one for one in signed if one.issued.tenant_id == owner}
        if signed and not ours:
            measures.sessions_refused += 1
            raise WrongTenantError("this session belongs to another tenant; log in here")
        self._ours = list(ours.values())
        if len(self._ours) != 1:
            # If there are two, one of them was planted, and nobody can tell which.
            return None
        (found,) = self._ours
        self._idle_until = found.signed_at + self._state.settings.session_idle_lifetime
        return found

    def _is_over(self, signed: SignedSession) -> bool:
        registry, settings = self._state.registry, self._state.settings
        if signed.issued in registry.ended_sessions:
            return True
        now = time.time()
        if now >= min(signed.ends_at, signed.issued.began_at + settings.session_lifetime, self._idle_until):
            return True
        if signed.issued.began_at > now + CLOCK_SLACK:
            # It began before a clock was set back, and would last longer than any session by as much.
            return True
        self._idle_until = now + settings.session_idle_lifetime
        tenant = find_tenant_of(self._asked, self._state)
        if tenant is not None:
            # In a websocket the tenant may have been suspended or dropped since the handshake.
            registry.get_present(tenant)
        age = min(registry.get_age(), time.monotonic() - self._asked_at)
        if age > settings.session_ask_after:
            raise SessionUncheckedError(f"no news of ended sessions for {age:.1f} s, and no answer from the database")
        return False

    def _issue(self, user: str, generation: int) -> None:
        lifetime = self._state.settings.session_lifetime
        self._signed = issue_session(self._find_owner(), user, generation, lifetime)
        self._idle_until = time.time() + lifetime
        # It cannot have been ended before it began.
        self._asked_at = time.monotonic()

    def _find_owner(self) -> int:
        """Return the number of the tenant that sessions belong to here; 0 on other hosts."""
        tenant = find_tenant_of(self._asked, self._state)
        return _NO_TENANT if tenant is None else tenant.id

    def _leave(self) -> None:
        left = {one.issued: one for one in (*self._ours, self._signed) if one is not None}
        self._left += left.values()
        self._ours = []
        self._signed = None
        self._content = {}
        self._read = self.loaded = self.modified = True


async def start_session(user: str, *, generation: int | None = None) -> TenantSession:
    """Begin a new session for *user* in the current request, and end the one before; return it, empty.

    For a login. Nothing of the earlier session is kept, and the new one has a new random name, so nobody can have
    planted it.

    Args:
        user: The text by which `end_user_sessions` finds the user. It must not change while the user exists.
        generation: The session counter from before the password was read, as `login_attempt` knows it. Default: the
            present one.

    Raises:
        TypeError: *user* is no text, such as a number.
        ValueError: It is empty.
        SettingError: The app has no secret key.
        DatabaseUnavailableError: The database cannot be asked.

    Example:
        ```python
        session = await start_session("7")
        session["theme"] = "dark"
        ```
    """
    check_username(user)
    current = get_session()
    if generation is None:
        async with get_state().database.connection() as connection:
            generation = await get_generation(connection)
    await current.start(user, generation)
    return current


async def end_session() -> None:
    """End the session of the current request, if there is one. All workers know it within two seconds. For a logout.

    `session.clear()` ends the session when the answer is sent. This function does it now, and raises an error if it
    cannot.

    Raises:
        WrongTenantError: The session belongs to another tenant.
        SettingError: The app has no secret key.
        DatabaseUnavailableError: The database cannot be told. The session goes on.

    Example:
        ```python
        @app.post("/logout", host=tenants.host)
        async def logout() -> ResponseReturnValue:
            await end_session()
            return {}
        ```
    """
    await get_session().end()


def get_session() -> TenantSession:
    """Return `quart.session` with the type that it has here.

    Raises:
        SettingError: The app has no secret key.

    Example:
        ```python
        user = get_session().user
        if user is None:
            raise NotLoggedInError
        ```
    """
    current = see_through(session)
    if not isinstance(current, TenantSession):
        raise explain_missing_key()
    return current


def find_session() -> TenantSession | None:
    """Return the session of the current request or websocket; None if there is no request, or no secret key."""
    if find_request() is None:
        return None
    current = see_through(session)
    return current if isinstance(current, TenantSession) else None
