"""Tell a proxy for which hosts it may fetch a certificate."""

import ipaddress

from quart import Quart, Response, request
from werkzeug.exceptions import NotFound

from quart_tenants.domain import find_host_name
from quart_tenants.errors import InvalidRequestError, SchemaBehindError, UnknownHostError, UnknownTenantError
from quart_tenants.web.context import find_slug_of_host, may_be_tenants
from quart_tenants.web.routing.host_routing import APEX_HOST
from quart_tenants.web.routing.probes import LAST_HOST
from quart_tenants.web.state import get_state

ASK_PATH = "/.well-known/tenants/ask"
"""The path on the domain itself that Caddy's `on_demand_tls` asks."""

_UNKNOWN = ("unknown", 0)


def add_ask_route(app: Quart) -> None:
    """Let *app* answer at `ASK_PATH` on the domain itself, and to a proxy on this machine whatever host it names.

    Caddy asks at the address by which it reaches the worker, such as 127.0.0.1:8000, which is none of the app's hosts.
    """
    app.add_url_rule(ASK_PATH, "quart_tenants_ask", _ask, host=APEX_HOST)
    app.add_url_rule(ASK_PATH, "quart_tenants_ask_here", _ask_here, host=LAST_HOST)


async def _ask_here() -> Response:
    """Answer a client on this machine as `_ask` does it, and nobody else.

    Raises:
        NotFound: The client is elsewhere.
    """
    # As TrustedProxies has left it: the client of a proxy that we trust.
    client = request.scope.get("client", _UNKNOWN)
    if not _is_on_this_machine(client[0] if client else ""):
        raise NotFound
    return await _ask()


def _is_on_this_machine(address: str) -> bool:
    if not address or address.startswith("unix:"):
        # A unix socket has no address.
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


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
