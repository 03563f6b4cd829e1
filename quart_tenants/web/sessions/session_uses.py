"""Look at start which sessions an app uses, so that a mistake is not found by its first visitor."""

from quart import Quart

from quart_tenants.errors import SettingError
from quart_tenants.tenant import SchemaName, Slug, Tenant
from quart_tenants.web.context import working_for
from quart_tenants.web.sessions.logins import login_attempt
from quart_tenants.web.sessions.secret_keys import check_secret_key
from quart_tenants.web.sessions.session_interface import TenantSessionInterface
from quart_tenants.web.sessions.tenant_sessions import end_session, get_session, start_session

# Two tenants that no database has.
_SOMEBODY, _SOMEBODY_ELSE = (
    Tenant(number, Slug(name), SchemaName(name), name) for number, name in ((-1, "somebody"), (-2, "somebody-else"))
)
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


def refuse_foreign_tokens(app: Quart) -> None:
    """Make sure that what Quart-Auth signs for a user of one tenant is nothing at another tenant.

    Raises:
        SettingError: It is the same user at every tenant.
    """
    for auth in app.extensions.get("QUART_AUTH", ()):
        check_secret_key(app)
        with working_for(_SOMEBODY):
            token = auth.dump_token("1", app)
        with working_for(_SOMEBODY_ELSE):
            user = auth.load_token(token, app)
        if user is not None:
            raise SettingError(
                type(auth).__name__,
                "knows no tenants: its cookie of user 1 of one tenant would be user 1 of every tenant. "
                "docs/other-libraries.md has a class of ten lines that puts the tenant into the cookie",
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
