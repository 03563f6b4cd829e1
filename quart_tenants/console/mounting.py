"""Make the console a part of an app of one's own."""

import inspect
import shlex
from collections.abc import Awaitable, Callable

from quart import Blueprint, current_app, g
from werkzeug.exceptions import NotFound

from quart_tenants.console.blueprint import build_blueprint
from quart_tenants.console.console import Console
from quart_tenants.console.samples import Sample, sample_stats
from quart_tenants.web.commands.busy_tenants import Look, make_look
from quart_tenants.web.extension import QuartTenants
from quart_tenants.web.routing.host_routing import APEX_HOST
from quart_tenants.web.sessions.secret_keys import check_secret_key


def make_blueprint(
    tenants: QuartTenants,
    *,
    is_operator: Callable[[], Awaitable[str | None] | str | None],
    name: str = "console",
    url_prefix: str = "/console",
    program: str = "quart --app APP tenants",
) -> Blueprint:
    """Return the operator's console for an app: `app.register_blueprint(make_blueprint(tenants, is_operator=…))`.

    It is served at the domain itself and never at a tenant's host. Without an operator it answers 404. It has a few
    connections of its own to the database of *tenants*. It starts no commands that take long, because a worker may be
    replaced at any moment, and because its time belongs to the customers: it shows the command lines of those.

    Args:
        tenants: The extension of the app.
        is_operator: Called in each request, without arguments: a function of the app, async or not, that returns the
            operator's name, which the audit lines have, or None for everybody else. It may also raise or abort.
        name: Of the blueprint.
        url_prefix: Where it is.
        program: How the commands of the app are typed.

    Raises:
        SettingError: In a request: the app has no secret key, by which the forms are signed.

    Example:
        ```python
        async def find_operator() -> str | None:
            user = get_session().user
            return user if user in {"ann", "bob"} else None

        app.register_blueprint(make_blueprint(tenants, is_operator=find_operator))
        ```
    """

    async def take_sample() -> tuple[Sample, Look]:
        stats = tenants.get_stats()
        return sample_stats(stats), make_look(stats)

    console = Console(
        tenants.settings,
        program=shlex.split(program),
        get_key=_get_secret_key,
        run_hooks=tenants.run_hooks,
        take_sample=take_sample,
    )
    blueprint = build_blueprint(console, name=name, host=APEX_HOST, url_prefix=url_prefix)
    blueprint.before_app_serving(console.open)
    blueprint.after_app_serving(console.close)

    @blueprint.before_request
    async def let_in() -> None:
        found = is_operator()
        operator: object = await found if inspect.isawaitable(found) else found
        if operator is None:
            raise NotFound
        if not isinstance(operator, str) or not operator:
            raise TypeError(f"is_operator must return the operator's name or None, and not {operator!r}")
        g.operator = operator

    return blueprint


def _get_secret_key() -> str | bytes:
    check_secret_key(current_app)
    return current_app.secret_key or ""
