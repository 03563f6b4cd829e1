"""Look at start which sessions an app uses, so that a mistake is not found by its first visitor."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from itertools import permutations
from types import CodeType, FunctionType, ModuleType

from quart import Quart

from quart_tenants.errors import SettingError
from quart_tenants.tenant import SchemaName, Slug, Tenant
from quart_tenants.web.context import working_for
from quart_tenants.web.sessions.logins import login_attempt
from quart_tenants.web.sessions.secret_keys import check_secret_key
from quart_tenants.web.sessions.session_interface import TenantSessionInterface
from quart_tenants.web.sessions.tenant_sessions import end_session, get_session, start_session

# The domain itself, and two tenants that no database has.
_PLACES = (
    None,
    *(Tenant(number, Slug(name), SchemaName(name), name) for number, name in ((-1, "somebody"), (-2, "somebody-else"))),
)
_OURS = __name__.partition(".")[0]
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


async def refuse_foreign_tokens(app: Quart, domain: str) -> None:
    """Make sure that what Quart-Auth signs for a user of one tenant is nothing at another tenant.

    An object of Quart-Auth may say `checks_tenant = True` if it is for the domain itself only, or makes sure in a way
    that cannot be tried out.

    Raises:
        SettingError: It is the same user at every tenant.
    """
    for auth in app.extensions.get("QUART_AUTH", ()):
        if getattr(auth, "checks_tenant", False):
            continue
        check_secret_key(app)
        tokens = {}
        for place in _PLACES:
            async with _visiting(app, domain, place):
                tokens[place] = auth.dump_token("1", app)
        users = []
        for here, there in permutations(_PLACES, 2):
            async with _visiting(app, domain, there):
                users.append(auth.load_token(tokens[here], app))
        if users != [None] * len(users):
            raise SettingError(
                type(auth).__name__,
                "knows no tenants: its cookie of user 1 of one tenant would be user 1 of every tenant. "
                "docs/other-libraries.md has a class of ten lines that puts the tenant into the cookie",
            )


@asynccontextmanager
async def _visiting(app: Quart, domain: str, place: Tenant | None) -> AsyncIterator[None]:
    """Be a visitor at *place*, which no database has, or at the domain itself."""
    host = domain if place is None else f"{place.slug}.{domain}"
    async with app.test_request_context("/", headers={"Host": host}):
        with nullcontext() if place is None else working_for(place):
            yield


def uses_sessions(app: Quart) -> bool:
    """Return whether a view of *app* names one of the functions for sessions, or is wrapped by `login_required`.

    Functions of the app that a view names count, too, and so do names such as `quart_tenants.get_session`. What a view
    reaches by a method is not found.
    """
    seen: set[object] = set()
    return any(_reaches_session(view, seen) for view in app.view_functions.values())


def _reaches_session(function: object, seen: set[object]) -> bool:
    while isinstance(function, FunctionType) and function not in seen:
        seen.add(function)
        if any(
            any(value is use for use in _USES) or (_is_same_app(value, function) and _reaches_session(value, seen))
            for value in _list_named(function.__code__, function.__globals__)
        ):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _list_named(code: CodeType, names: Mapping[str, object]) -> Iterator[object]:
    """Yield what *code* and the functions inside it name: globals, and attributes of modules."""
    for name in code.co_names:
        value = names.get(name)
        if isinstance(value, ModuleType):
            yield from (getattr(value, attribute, None) for attribute in code.co_names)
        elif isinstance(value, FunctionType):
            yield value
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _list_named(constant, names)


def _is_same_app(value: object, function: FunctionType) -> bool:
    """Return whether *value* is a function of the app's own, as *function* is. Ours would lead everywhere."""
    package = function.__module__.partition(".")[0]
    return isinstance(value, FunctionType) and package != _OURS and value.__module__.partition(".")[0] == package
