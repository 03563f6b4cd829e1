"""Let in whoever has the address that the console has printed, and nobody else."""

import hmac
import secrets
from collections.abc import Callable
from urllib.parse import urlsplit

from quart import Response, g, request

from quart_tenants.web.guards.origins import is_from_elsewhere

_KEY = "key"
"""The argument of the address."""

# A page of another site can get its own name resolved to 127.0.0.1, but cannot change what the browser sends as Host.
_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
_SHUT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Closed</title>
<h1>Closed</h1>
<p>This address opens nothing. An address with a key opens a console once; after that, the terminal of the console has
a new one. The addresses and the cookies of a console end with it.</p>
</html>
"""
# No redirect: a browser that came by a link would send no strict cookie along.
_OPEN = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="refresh" content="0; url=/">
<title>Open</title>
<p><a href="/">Open the console</a></p>
</html>
"""


class Door:
    """Guards a console on loopback, which every program and every browser of the machine can reach.

    The key is in the first address and is good for one browser, which gets a cookie for it. So an address in a
    browser's history, or in what somebody has copied, opens nothing.
    """

    def __init__(self, operator: str, announce: Callable[[str], object]) -> None:
        """Guard for *operator*; *announce* is called with the end of each new address."""
        self._operator = operator
        self._announce = announce
        self._key = ""
        self._cookies: set[str] = set()
        # Browsers send a cookie to all ports of a host, so each console has a name of its own.
        self._cookie_name = f"quart_tenants_console_{secrets.token_hex(4)}"

    def announce(self) -> None:
        """Make a new key, and tell the address with it."""
        self._key = secrets.token_urlsafe(32)
        self._announce(f"/?{_KEY}={self._key}")

    async def let_in(self) -> Response | None:
        """Answer who comes without a cookie of ours, from another site, or under another name. This runs before all."""
        if _find_name(request.host) not in _HOSTS:
            return Response(_SHUT, 403, mimetype="text/html")
        key = request.args.get(_KEY)
        if key is not None:
            return self._exchange(key)
        if is_from_elsewhere(request) or not self._knows(request.cookies.get(self._cookie_name, "")):
            return Response(_SHUT, 403, mimetype="text/html")
        g.operator = self._operator
        return None

    def _exchange(self, key: str) -> Response:
        """Return a cookie for the key, and make a new key."""
        if not hmac.compare_digest(key.encode("utf-8", "replace"), self._key.encode()):
            return Response(_SHUT, 403, mimetype="text/html")
        cookie = secrets.token_urlsafe(32)
        self._cookies.add(cookie)
        answer = Response(_OPEN, mimetype="text/html")
        # Without `secure`, because loopback is plain http.
        answer.set_cookie(self._cookie_name, cookie, httponly=True, samesite="Strict", path="/")
        self.announce()
        return answer

    def _knows(self, cookie: str) -> bool:
        given = cookie.encode("utf-8", "replace")
        return any(hmac.compare_digest(given, known.encode()) for known in self._cookies)


def _find_name(host: str) -> str | None:
    """Return the name in a Host header without its port, or None if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
