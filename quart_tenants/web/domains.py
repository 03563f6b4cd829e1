"""Tell a proxy for which hosts it may fetch a certificate."""

from quart import Quart, Response, request

from quart_tenants.domain import find_host_name
from quart_tenants.errors import InvalidRequestError, SchemaBehindError, UnknownHostError, UnknownTenantError
from quart_tenants.web.context import find_slug_at, get_extension
from quart_tenants.web.routing import APEX_HOST

ASK_PATH = "/.well-known/tenants/ask"
"""On the domain itself: 200 for a host that is served, for Caddy's `on_demand_tls`."""


def add_ask_route(app: Quart) -> None:
    """Let *app* answer at `ASK_PATH`."""
    app.add_url_rule(ASK_PATH, "quart_tenants_ask", _ask, host=APEX_HOST)


async def _ask() -> Response:
    """Answer 200 if the host in `?domain=` is served, in the memory of this worker, and 404 otherwise.

    Raises:
        InvalidRequestError: There is no domain, or it is none.
        UnknownHostError: Nothing is served there.
        RegistryStaleError: The worker cannot know. The proxy takes it for a no, and asks again.
    """
    asked_for = request.args.get("domain", "")
    name = find_host_name(asked_for)
    if name is None:
        raise InvalidRequestError(f"{asked_for!r} is no domain: ask like {ASK_PATH}?domain=shop.example.com")
    extension = get_extension()
    if name != extension.settings.domain and not _is_served(name):
        raise UnknownHostError(name)
    return Response(status=200)


def _is_served(name: str) -> bool:
    extension = get_extension()
    slug = find_slug_at(name, extension)
    if slug is None:
        return False
    try:
        extension.registry.get_tenant(slug)
    except UnknownTenantError:
        return extension.registry.find_new_slug(slug) is not None
    except SchemaBehindError:
        # It is there, and will be served again in a moment.
        return True
    return True
