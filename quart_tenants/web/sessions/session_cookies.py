"""Sign sessions into cookies, and read them back. Each cookie's signature is checked once by each worker."""

import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

from itsdangerous import BadData, TimestampSigner, URLSafeTimedSerializer
from quart.sessions import session_json_serializer

from quart_tenants.postgres.sessions.session_ends import IssuedSession

# This differs from Quart's salt, so that a cookie of a plain Quart app with the same key is not accepted here.
_SALT = "quart-tenants-session"
_ISSUED = "_session"
_ID_BYTES = 16
# A browser has one of a name, or two where a sibling subdomain has planted one.
_MAX_COOKIES = 4
_MAX_COOKIE_LENGTH = 4096  # characters; browsers keep no longer ones
_COOKIE = re.compile(r"[A-Za-z0-9_.-]+")
# Size of the cache of verified cookies. Only visitors with a session can fill it.
_MAX_REMEMBERED = 4096
_LONGEST_REMEMBERED = 1024  # characters
_UNCHANGEABLE = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True, slots=True)
class SignedSession:
    """What one of our cookies says. Times are in seconds since 1970.

    Attributes:
        issued: The facts by which the session is known.
        ends_at: When the session is over, however much it is used.
        signed_at: When the cookie was signed. It is signed again while the session is used.
        content: What the app has put into the session.
    """

    issued: IssuedSession
    ends_at: int
    signed_at: float
    content: Mapping[str, Any] = field(default_factory=dict)


class SessionCookies:
    """Signs cookies with the secret key, and also reads cookies that were signed with an older key."""

    def __init__(self, secret_key: str | bytes, fallbacks: Sequence[str | bytes] = ()) -> None:
        # itsdangerous wants the key that signs last.
        keys = [key.encode() if isinstance(key, str) else key for key in (*fallbacks, secret_key)]
        self._serializer = URLSafeTimedSerializer(
            keys,
            salt=_SALT,
            serializer=session_json_serializer,
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )
        self._signer = cast("TimestampSigner", self._serializer.make_signer(_SALT))
        # What each cookie says whose signature is right. If the session holds a value that an app may change, such as a
        # list, also the signed text, which is then parsed again at each request.
        self._verified: OrderedDict[str, tuple[SignedSession, bytes | None]] = OrderedDict()

    def sign(self, session: SignedSession) -> str:
        """Return a cookie for *session*, signed now."""
        return str(self._serializer.dumps({**session.content, _ISSUED: [*session.issued, session.ends_at]}))

    def remembers(self, cookie: str) -> bool:
        """Return whether *cookie* was verified lately. Then it is one cookie, without quotation marks or blanks."""
        return cookie in self._verified

    def list_signed(self, cookies: Sequence[str]) -> list[SignedSession]:
        """Return what our own cookies among *cookies* say. All other cookies are ignored."""
        if len(cookies) > _MAX_COOKIES:
            return []
        return [session for cookie in cookies if (session := self._find_signed(cookie)) is not None]

    def _find_signed(self, cookie: str) -> SignedSession | None:
        try:
            session, changeable = self._verified.get(cookie) or self._verify(cookie)
            return session if changeable is None else replace(session, content=self._parse(changeable)[1])
        except (BadData, ValueError, KeyError, TypeError, AttributeError):
            # A ValueError can also be half a surrogate pair, from bytes that are not UTF-8. The last two errors mean
            # that something else than a session was signed with the same key.
            return None

    def _verify(self, cookie: str) -> tuple[SignedSession, bytes | None]:
        # Reading base64 skips characters that do not belong to it: "x&" would be read like "x".
        if len(cookie) > _MAX_COOKIE_LENGTH or not _COOKIE.fullmatch(cookie):
            raise BadData("not one of our cookies")
        payload, signed_at = self._signer.unsign(cookie, return_timestamp=True)
        (*issued, ends_at), content = self._parse(payload)
        session = SignedSession(IssuedSession(*issued), ends_at, signed_at.timestamp(), MappingProxyType(content))
        changeable = None if all(type(value) in _UNCHANGEABLE for value in content.values()) else payload
        if len(cookie) <= _LONGEST_REMEMBERED:
            self._verified[cookie] = session, changeable
            if len(self._verified) > _MAX_REMEMBERED:
                self._verified.popitem(last=False)
        return session, changeable

    def _parse(self, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
        content = self._serializer.load_payload(payload)
        return content.pop(_ISSUED), content


def issue_session(tenant_id: int, username: str, generation: int, lifetime: float) -> SignedSession:
    """Return a new session that begins now.

    Args:
        tenant_id: The number of the tenant; 0 for the domain itself.
        username: The user who has logged in; empty for nobody.
        generation: The session counter, from `get_generation`.
        lifetime: Seconds.
    """
    now = int(time.time())
    issued = IssuedSession(tenant_id, username, secrets.token_urlsafe(_ID_BYTES), generation, now)
    return SignedSession(issued, now + int(lifetime), now)
