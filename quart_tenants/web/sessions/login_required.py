"""Let only visitors who have logged in see a view."""

import functools
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import ParamSpec, TypeVar

from quart import Response, current_app, redirect, request, url_for
from quart.wrappers import Request
from werkzeug.wrappers import Response as WerkzeugResponse

from quart_tenants.errors import NotLoggedInError
from quart_tenants.web.context import find_request, get_sent_target, prefers_html
from quart_tenants.web.sessions.tenant_sessions import get_session
from quart_tenants.web.state import get_state

P = ParamSpec("P")
T = TypeVar("T")

_SAFE_METHODS = ("GET", "HEAD")


def login_required(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T | Response | WerkzeugResponse]]:
    """Let *view* be seen only by a visitor who is logged in to this tenant. The check comes before any SQL of *view*.

    A browser is sent to the app's sign-in page, if `QuartTenants.sign_in_endpoint` names one. After a GET the address
    of that page has `?next=/path`, which `get_next_path` reads. Everybody else is answered 401.

    Raises:
        NotLoggedInError: Nobody is logged in, and there is no sign-in page, or this is no browser.
        WrongTenantError: The session belongs to another tenant.
        SettingError: The app has no secret key.

    Example:
        ```python
        tenants.sign_in_endpoint = "sign_in"

        @app.get("/notes", host=tenants.host)
        @login_required
        async def notes() -> str:
            return "only for users of this tenant"
        ```
    """

    @functools.wraps(view)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T | Response | WerkzeugResponse:
        if get_session().user is not None:
            return await current_app.ensure_async(view)(*args, **kwargs)
        asked, endpoint = find_request(), get_state().sign_in_endpoint
        if endpoint is None or not isinstance(asked, Request) or not prefers_html(asked):
            raise NotLoggedInError
        if asked.method not in _SAFE_METHODS:
            # Nobody can go back to what was sent.
            return redirect(url_for(endpoint), HTTPStatus.SEE_OTHER)
        return redirect(url_for(endpoint, next=get_sent_target(asked)), HTTPStatus.SEE_OTHER)

    return guarded


def get_next_path(default: str = "/") -> str:
    """Return the path in `?next=` of this request, to which the sign-in page redirects after a login.

    Anybody can make a link to the sign-in page. So what would lead to another host is ignored.

    Args:
        default: For a request without such a path.

    Raises:
        RuntimeError: There is no request here.

    Example:
        ```python
        @app.post("/sign-in", host=tenants.host)
        async def sign_in() -> ResponseReturnValue:
            await start_session("7")
            return redirect(get_next_path(), 303)
        ```
    """
    path = request.args.get("next", "")
    # Browsers read a backslash as a slash, and leave out control characters.
    is_ours = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if is_ours else default
