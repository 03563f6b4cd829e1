"""Look at start which sessions an app uses, so that a mistake is not found by its first visitor."""

from quart import Quart

from quart_tenants.errors import SettingError
from quart_tenants.web.sessions.logins import login_attempt
from quart_tenants.web.sessions.session_interface import TenantSessionInterface
from quart_tenants.web.sessions.tenant_sessions import end_session, get_session, start_session

_USES = (end_session, get_session, login_attempt, start_session)


def refuse_foreign_sessions(app: Quart) -> None:
    """Make sure that a session of one tenant is worth nothing at another tenant.

    An interface of the app's own may say `checks_tenant = True` if it makes sure of that itself.

    Raises:
        SettingError: *app* has a session interface that knows nothing of tenants.
    """
    interface: object = app.session_interface
    if not isinstance(interface, TenantSessionInterface) and not getattr(interface, "checks_tenant", False):
        raise SettingError(
            "session_interface",
            f"is {type(interface).__name__}, which knows no tenants: a session of one tenant would be one of every "
            "tenant. Leave it out, or give it checks_tenant = True if it makes sure of that itself",
        )


def uses_sessions(app: Quart) -> bool:
    """Return whether a view of *app* names one of the functions for sessions, or is wrapped by `login_required`.

    A view that reaches them by another function, or by the name of a module, is not found.
    """
    return any(_names_session(view) for view in app.view_functions.values())


def _names_session(view: object) -> bool:
    while view is not None:
        code, names = getattr(view, "__code__", None), getattr(view, "__globals__", {})
        if code is not None and any(names.get(name) is use for name in code.co_names for use in _USES):
            return True
        view = getattr(view, "__wrapped__", None)
    return False
