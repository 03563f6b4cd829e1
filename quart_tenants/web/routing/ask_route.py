"""Tell a proxy for which hosts it may fetch a certificate."""

from quart import Quart, Response, request

from quart_tenants.domain import find_host_name
from quart_tenants.errors import InvalidRequestError, SchemaBehindError, UnknownHostError, UnknownTenantError
from quart_tenants.web.context import find_slug_of_host, may_be_tenants
from quart_tenants.web.routing.host_routing import APEX_HOST
from quart_tenants.web.state import get_state

ASK_PATH = "/.well-known/tenants/ask"
"""The path on the domain itself that Caddy's `on_demand_tls` asks."""


def add_ask_route(app: Quart) -> None:
    """Let *app* answer at `ASK_PATH`."""
    app.add_url_rule(ASK_PATH, "quart_tenants_ask", _ask, host=APEX_HOST)


async def _ask() -> Response:
    """Answer 200 if the host in `?domain=` is served, and 404 otherwise.

    Raises:
        InvalidRequestError: `?domain=` is missing, or its value is not a domain.
        UnknownHostError: Nothing is served at this host.
        RegistryStaleError: The worker cannot know. The proxy takes this for a no, and asks again.
    """
    asked_for = request.args.get("domain", "")
    name = find_host_name(asked_for)
    if name is None:
        raise InvalidRequestError(f"{asked_for!r} is no domain: ask like {ASK_PATH}?domain=shop.example.com")
    state = get_state()
    if name != state.settings.domain and not _is_served(name):
        if may_be_tenants(name):
            await state.catch_up()
        if not _is_served(name):
            raise UnknownHostError(name)
    return Response(status=200)


def _is_served(name: str) -> bool:
    state = get_state()
    slug = find_slug_of_host(name, state)
    if slug is None:
        return False
    try:
        state.registry.get_tenant(slug)
    except UnknownTenantError:
        return state.registry.find_new_slug(slug) is not None
    except SchemaBehindError:
        # The tenant exists, and will be served again when it is migrated.
        return True
    return True
