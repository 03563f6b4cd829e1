"""Sessions as an app without this library has them, for negative controls."""

from quart.sessions import SecureCookieSessionInterface


class PlainSessions(SecureCookieSessionInterface):
    """Quart's own sessions, in an app that says without reason that they check the tenant."""

    checks_tenant = True
