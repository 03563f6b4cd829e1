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

# Apart from Quart's own, so that a cookie of a plain Quart app with the same key is none of ours.
_SALT = "quart-tenants-session"
_ISSUED = "_session"
_ID_BYTES = 16
# A browser has one of a name, or two where a sibling subdomain has planted one.
_MAX_COOKIES = 4
_MAX_COOKIE_LENGTH = 4096  # characters; browsers keep no longer ones
_COOKIE = re.compile(r"[A-Za-z0-9_.-]+")
# Of cookies that were verified, and so by whom we have let in: nobody else can fill it.
_MAX_REMEMBERED = 4096
_LONGEST_REMEMBERED = 1024  # characters
_UNCHANGEABLE = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True, slots=True)
class SignedSession:
    """What a cookie of ours says.

    Attributes:
        issued: What names the session.
        ends_at: When it is over, however much it is used.
        signed_at: When the cookie was signed, which is done anew while the session is used.
        content: What the app has put into it.
    """

    issued: IssuedSession
    ends_at: int
    signed_at: float
    content: Mapping[str, Any] = field(default_factory=dict)


class SessionCookies:
    """Signs with the first key, and accepts cookies of the others, too."""

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
        self._verified: OrderedDict[str, _Verified] = OrderedDict()

    def sign(self, session: SignedSession) -> str:
        """Return the cookie that says *session*, signed now."""
        return str(self._serializer.dumps({**session.content, _ISSUED: [*session.issued, session.ends_at]}))

    def list_signed(self, cookies: Sequence[str]) -> list[SignedSession]:
        """Return what those of *cookies* say that we have signed. There is no need to say why others are none."""
        if len(cookies) > _MAX_COOKIES:
            return []
        return [session for cookie in cookies if (session := self._find_signed(cookie)) is not None]

    def _find_signed(self, cookie: str) -> SignedSession | None:
        try:
            verified = self._verified.get(cookie) or self._verify(cookie)
            if verified.changeable is None:
                return verified.session
            return replace(verified.session, content=self._parse(verified.changeable)[1])
        except (BadData, ValueError, KeyError, TypeError, AttributeError):
            # ValueError: also half a surrogate pair, as made of bytes that are no UTF-8. The last two: something
            # that is no session was signed by the same key.
            return None

    def _verify(self, cookie: str) -> "_Verified":
        # base64 is read without what is none of it: "x&" would be as good as "x".
        if len(cookie) > _MAX_COOKIE_LENGTH or not _COOKIE.fullmatch(cookie):
            raise BadData("no cookie of ours")
        payload, signed_at = self._signer.unsign(cookie, return_timestamp=True)
        (*issued, ends_at), content = self._parse(payload)
        session = SignedSession(IssuedSession(*issued), ends_at, signed_at.timestamp(), MappingProxyType(content))
        changeable = None if all(type(value) in _UNCHANGEABLE for value in content.values()) else payload
        verified = _Verified(session, changeable)
        if len(cookie) <= _LONGEST_REMEMBERED:
            self._verified[cookie] = verified
            if len(self._verified) > _MAX_REMEMBERED:
                self._verified.popitem(last=False)
        return verified

    def _parse(self, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
        content = self._serializer.load_payload(payload)
        return content.pop(_ISSUED), content


@dataclass(frozen=True, slots=True)
class _Verified:
    """A cookie whose signature is right.

    Attributes:
        session: What it says.
        changeable: What was signed, to be parsed anew each time because an app may change what is in it, such as a
            list; None where there is no such thing.
    """

    session: SignedSession
    changeable: bytes | None


def issue_session(tenant_id: int, username: str, generation: int, lifetime: float) -> SignedSession:
    """Return a new session that begins now.

    Args:
        tenant_id: Whose; 0 for the domain itself.
        username: Who has logged in; empty for nobody.
        generation: From `get_generation`.
        lifetime: Seconds.
    """
    now = int(time.time())
    issued = IssuedSession(tenant_id, username, secrets.token_urlsafe(_ID_BYTES), generation, now)
    return SignedSession(issued, now + int(lifetime), now)
