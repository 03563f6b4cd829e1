"""Teach Quart's host matching which hosts are tenants, the domain itself, or any.

A route names the whole host by one converter: Werkzeug matches hosts with their port, and a rule
made of text and a label would fix the port.
"""

from typing import TYPE_CHECKING, Any, Final, cast

from quart import Quart
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import BadHost
from werkzeug.routing import BaseConverter, MapAdapter

from quart_tenants.errors import UnknownHostError
from quart_tenants.tenant import Slug, Tenant
from quart_tenants.web.context import find_request, get_current_tenant, remember_request
from quart_tenants.web.hosts import HostPatterns, parse_host

if TYPE_CHECKING:
    from quart.routing import QuartMap

_TENANT_ARGUMENT = "tenant"
_APEX_ARGUMENT = "_apex"
_ANY_ARGUMENT = "_host"

TENANT_HOST: Final = f"<tenant_host:{_TENANT_ARGUMENT}>"
"""For `host=` of a route: `<tenant>.<domain>` on any port."""

APEX_HOST: Final = f"<apex_host:{_APEX_ARGUMENT}>"
"""For `host=` of a route: the domain itself, on any port."""

ANY_HOST: Final = f"<any_host:{_ANY_ARGUMENT}>"
"""For `host=` of a route: every host, an address or none included. For probes."""


def add_host_routing(app: Quart, domain: str) -> None:
    """Let the routes of *app* use `TENANT_HOST`, `APEX_HOST` and `ANY_HOST`, and `url_for` build them."""
    patterns = HostPatterns.of(domain)

    class TenantHost(BaseConverter):
        regex = patterns.tenant

        def to_python(self, value: str) -> Slug | None:
            return parse_host(value, domain)

    class ApexHost(BaseConverter):
        regex = patterns.apex

    class AnyHost(BaseConverter):
        regex = ".*"

    app.url_map.converters.update(tenant_host=TenantHost, apex_host=ApexHost, any_host=AnyHost)

    def add_host(endpoint: str, values: dict[str, Any]) -> None:
        here = _get_host_and_port()
        if app.url_map.is_endpoint_expecting(endpoint, _TENANT_ARGUMENT):
            values[_TENANT_ARGUMENT] = _get_tenant_host(here, domain, values.get(_TENANT_ARGUMENT))
        if app.url_map.is_endpoint_expecting(endpoint, _APEX_ARGUMENT):
            values[_APEX_ARGUMENT] = _get_apex(here, domain)
        if app.url_map.is_endpoint_expecting(endpoint, _ANY_ARGUMENT):
            values[_ANY_ARGUMENT] = here

    app.url_defaults(add_host)

    url_map = cast("QuartMap", app.url_map)
    bind = url_map.bind_to_request

    def bind_to_any(request: BaseRequestWebsocket, subdomain: str | None, server_name: str | None) -> MapAdapter:
        try:
            return bind(request, subdomain, server_name)
        except BadHost:
            # Such as "a..b". Raised before Quart can answer an error, so it would be a 500: no host instead.
            return bind(request, subdomain, "")

    url_map.bind_to_request = bind_to_any  # type: ignore[method-assign]


async def enter_tenant() -> None:
    """Make sure that the route's tenant exists, and take what only routing needs out of the view's arguments.

    A hook that runs before every view.

    Raises:
        UnknownTenantError: No tenant answers at this host.
        RegistryStaleError: The worker cannot know whether one does.
    """
    remember_request()
    asked = find_request()
    if asked is None or not asked.view_args:
        return
    if _TENANT_ARGUMENT in asked.view_args:
        get_current_tenant()
    for argument in (_TENANT_ARGUMENT, _APEX_ARGUMENT, _ANY_ARGUMENT):
        asked.view_args.pop(argument, None)


def _get_host_and_port() -> str:
    asked = find_request()
    if asked is None:
        raise RuntimeError("an address can be built in a request only: elsewhere the host and the port are unknown")
    return asked.host.lower()


def _get_tenant_host(here: str, domain: str, tenant: Tenant | str | None) -> str:
    if tenant is None:
        return here
    return f"{tenant.slug if isinstance(tenant, Tenant) else tenant}.{_get_apex(here, domain)}"


def _get_apex(here: str, domain: str) -> str:
    try:
        at_tenant = parse_host(here, domain) is not None
    except UnknownHostError:
        return domain
    return here.partition(".")[2] if at_tenant else here
