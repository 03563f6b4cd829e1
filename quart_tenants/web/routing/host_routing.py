"""Let the routes of an app say whether they belong to tenants, to the domain itself, or to every host.

A route names the whole host by one converter. Werkzeug matches hosts together with their port, so a rule made of text
and a label would fix the port.
"""

import contextlib
import re
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from quart import Quart, current_app, session
from quart.wrappers import Request, Response, Websocket
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter, Map

from quart_tenants.errors import NoTenantError, RegistryStaleError, SchemaBehindError, SettingError, UnknownTenantError
from quart_tenants.settings import PREFIX
from quart_tenants.tenant import Tenant
from quart_tenants.web.context import (
    find_request,
    find_requested_slug,
    find_tenant,
    find_tenant_of,
    get_sent_target,
    look_again,
    may_be_tenants,
    remember_request,
)
from quart_tenants.web.hosts import HostPatterns, get_port, read_host
from quart_tenants.web.sessions.tenant_sessions import TenantSession
from quart_tenants.web.state import TenantState, get_state, see_through

# How the names of the extension's own endpoints begin.
_OUR_ENDPOINT = "quart_tenants_"
_TENANT_ARGUMENT = "tenant"
_APEX_ARGUMENT = "_apex"
_ANY_ARGUMENT = "_host"
_RESERVED_ARGUMENT = "_reserved"
_WWW = "www"

STATIC_ENDING = ".static"
"""How the endpoint of a blueprint's static files ends, as Quart names it."""

TENANT_HOST: Final = f"<tenant_host:{_TENANT_ARGUMENT}>"
"""For `host=` of a route: `<tenant>.<domain>` on any port, and the tenant's own domains."""

APEX_HOST: Final = f"<apex_host:{_APEX_ARGUMENT}>"
"""For `host=` of a route: the domain itself, on any port."""

ANY_HOST: Final = f"<any_host:{_ANY_ARGUMENT}>"
"""For `host=` of a route: every host. An IP address counts, and so does no host at all. For probes."""


class ForeignHostError(NotFound):
    """The host belongs to nobody here.

    Attributes:
        host: As the visitor sent it.
    """

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host


def name_reserved_host(label: str) -> str:
    """Return for `host=` of a route: `<label>.<domain>` on any port, where *label* is one that no tenant may take."""
    return f'<reserved_host("{label}"):{_RESERVED_ARGUMENT}>'


def add_host_routing(app: Quart, state: TenantState) -> None:
    """Let the routes of *app* use `TENANT_HOST`, `APEX_HOST` and `ANY_HOST`, and let `url_for` build them."""
    domain = state.settings.domain
    patterns = HostPatterns.of(domain)

    class TenantHost(BaseConverter):
        # A converter sees the text of the host only. Whether a tenant has that domain is checked by `enter_tenant`.
        regex = f"{patterns.tenant}|{patterns.elsewhere}"

    class ApexHost(BaseConverter):
        regex = patterns.apex

    class AnyHost(BaseConverter):
        # After those that say more about the host.
        weight = 200
        regex = ".*"

    class ReservedHost(BaseConverter):
        # Before those of tenants.
        weight = 50

        def __init__(self, url_map: Map, label: str) -> None:
            super().__init__(url_map)
            self.label = label
            self.regex = rf"{re.escape(label)}\.{patterns.apex}"

    app.url_map.converters.update(
        tenant_host=TenantHost, apex_host=ApexHost, any_host=AnyHost, reserved_host=ReservedHost
    )

    @app.url_defaults
    def add_host(endpoint: str, values: dict[str, Any]) -> None:
        asked = find_request()
        if asked is None:
            raise RuntimeError(
                "url_for() knows the host and the port in a request only: elsewhere use tenant_url(tenant, endpoint)"
            )
        here = asked.host.lower()
        if app.url_map.is_endpoint_expecting(endpoint, _TENANT_ARGUMENT):
            tenant = values.get(_TENANT_ARGUMENT)
            slug = tenant.slug if isinstance(tenant, Tenant) else tenant
            values[_TENANT_ARGUMENT] = here if slug is None else f"{slug}.{_get_apex(here, domain)}"
        if app.url_map.is_endpoint_expecting(endpoint, _APEX_ARGUMENT):
            values[_APEX_ARGUMENT] = _get_apex(here, domain)
        if app.url_map.is_endpoint_expecting(endpoint, _ANY_ARGUMENT):
            values[_ANY_ARGUMENT] = here
        if app.url_map.is_endpoint_expecting(endpoint, _RESERVED_ARGUMENT):
            # As `name_reserved_host` has written it.
            label = str(next(app.url_map.iter_rules(endpoint)).host).split('"')[1]
            values[_RESERVED_ARGUMENT] = f"{label}.{_get_apex(here, domain)}"


async def enter_tenant() -> Response | None:
    """Make sure that the request's host is one of ours, and that the tenant of the route exists.

    This hook runs before every view. It removes the arguments that only routing needs, so that no view sees them. It
    redirects a request at the old address of a renamed tenant.

    Raises:
        ForeignHostError: The host belongs to nobody here, and the route is not one for every host.
        UnknownTenantError: No tenant has this subdomain.
        SchemaBehindError: The tenant's tables are older than the app needs.
        RegistryStaleError: The worker cannot know whether a tenant has this subdomain.
    """
    asked = remember_request()
    if asked is None:
        return None
    state = get_state()
    arguments = asked.view_args or {}
    for_tenant = _TENANT_ARGUMENT in arguments
    if for_tenant or asked.routing_exception is not None:
        try:
            redirect = _enter(asked, state, for_tenant=for_tenant)
        except (NotFound, UnknownTenantError, SchemaBehindError):
            # Another worker may have created the tenant a moment ago, or migrated it, or given it this domain.
            if not may_be_tenants(asked.host):
                raise
            await look_again(asked)
            redirect = _enter(asked, state, for_tenant=for_tenant)
        if redirect is not None:
            return redirect
    elif _ANY_ARGUMENT in arguments and _is_apps_own(asked) and may_be_tenants(asked.host) and find_tenant() is None:
        # A page of every host may ask who is here, and is served also if that cannot be known.
        with contextlib.suppress(RegistryStaleError):
            await look_again(asked)
    current = see_through(session)
    if isinstance(current, TenantSession):
        await current.ask_if_needed()
    for argument in (_TENANT_ARGUMENT, _APEX_ARGUMENT, _ANY_ARGUMENT, _RESERVED_ARGUMENT):
        arguments.pop(argument, None)
    return None


def _enter(asked: Request | Websocket, state: TenantState, *, for_tenant: bool) -> Response | None:
    """Check the host of *asked*, and its tenant if the route is *for_tenant*. Return the redirect of a renamed tenant.

    Raises the errors of `enter_tenant`.
    """
    if not _is_our_host(asked, state):
        # Always the same answer. A wrong method (405) or a missing slash (308) would tell which paths there are.
        raise ForeignHostError(asked.host)
    if for_tenant or _is_www(asked, state):
        try:
            tenant = find_tenant_of(asked, state)
        except UnknownTenantError:
            # A websocket is not redirected: no browser would follow.
            redirect = _find_redirect(asked, state) if isinstance(asked, Request) else None
            if redirect is None:
                raise
            return redirect
        if tenant is None:
            raise NoTenantError(f"the route has an argument {_TENANT_ARGUMENT!r}, which only TENANT_HOST may have")
    return None


def _is_www(asked: Request | Websocket, state: TenantState) -> bool:
    """Return whether the host is `www` of the domain, where the routes of the domain itself are not found."""
    return find_requested_slug(asked, state) == _WWW and _WWW in state.settings.reserved_slugs


def _is_apps_own(asked: Request | Websocket) -> bool:
    """Return whether the route is the app's, and no probe of ours or a static file: those need no database."""
    endpoint = asked.endpoint
    return endpoint is not None and not endpoint.startswith(_OUR_ENDPOINT) and not endpoint.endswith(STATIC_ENDING)


def _is_our_host(asked: BaseRequestWebsocket, state: TenantState) -> bool:
    """Return whether the host of *asked* is a tenant's address, used or not, or the domain itself."""
    return find_requested_slug(asked, state) is not None or read_host(asked.host, state.settings.domain).is_apex


def _find_redirect(asked: Request, state: TenantState) -> Response | None:
    """Return the redirect from `www` to the domain itself, or to the tenant that was renamed from this address."""
    slug = find_requested_slug(asked, state)
    if _is_www(asked, state) and (asked.path == "/" or _TENANT_ARGUMENT not in (asked.view_args or {})):
        # People type it from habit. A page of tenants is none of the domain's, and www is no tenant.
        prefix = ""
    else:
        new_slug = None if slug is None else state.registry.find_new_slug(slug)
        if new_slug is None:
            return None
        prefix = f"{new_slug}."
    # The visitor chooses only the port, the path and the query; the whole host stands before them.
    target = get_sent_target(asked)
    host = f"{prefix}{state.settings.domain}{get_port(asked.host)}"
    # 308 keeps the method and the body. No browser may store it: the old name may belong to another tenant one day.
    headers = {"Location": f"{asked.scheme}://{host}{target}", "Cache-Control": "no-store"}
    return Response(status=HTTPStatus.PERMANENT_REDIRECT, headers=headers)


def tenant_url(tenant: Tenant | str | None, endpoint: str, **values: Any) -> str:
    """Return the whole address of a page at a tenant, also in a script or a job.

    `tenant_url("acme", "invitation", token=token)` is `https://acme.example.com/invitations/…`. In a request, scheme
    and port are those of the request; elsewhere `TENANTS_PUBLIC_URL` says them.

    Args:
        tenant: A tenant or its slug; None for a page of the domain itself.
        endpoint: The name of a view, as for `url_for`.
        values: What stands in its path, and in the query.

    Raises:
        SettingError: There is no request, and `TENANTS_PUBLIC_URL` is not set.
        werkzeug.routing.BuildError: There is no such endpoint at such a host, or a value is missing.
        NoTenantError: There is no current app, or it has no tenants.
        TypeError: *tenant* is something else, such as a coroutine that was not awaited.

    Example:
        ```python
        link = tenant_url("acme", "invitation", token="a1b2")
        ```
    """
    state = get_state()
    asked = find_request()
    if isinstance(asked, Request):
        scheme, port = asked.scheme, get_port(asked.host)
    elif state.settings.public_url is not None:
        base = urlsplit(state.settings.public_url)
        scheme, port = base.scheme, get_port(base.netloc)
    else:
        raise SettingError(f"{PREFIX}PUBLIC_URL", "is not set: outside of requests no scheme and no port are known")
    slug = tenant.slug if isinstance(tenant, Tenant) else tenant
    if slug is not None and not isinstance(slug, str):
        # A forgotten await would otherwise be part of the address, and no error.
        raise TypeError(f"tenant_url: tenant is of type {type(tenant).__name__}; give a Tenant, its slug or None")
    apex = f"{state.settings.domain}{port}"
    host, argument = (apex, _APEX_ARGUMENT) if slug is None else (f"{slug}.{apex}", _TENANT_ARGUMENT)
    url_map = current_app.url_map
    # For an unknown endpoint Werkzeug raises this here, and says more below.
    with contextlib.suppress(KeyError):
        values |= {place: host for place in (argument, _ANY_ARGUMENT) if url_map.is_endpoint_expecting(endpoint, place)}
    return url_map.bind(host, url_scheme=scheme).build(endpoint, values, force_external=True)


def _get_apex(here: str, domain: str) -> str:
    """Return the domain itself as a visitor of the host *here* reaches it, with the same port."""
    named = read_host(here, domain)
    if named.slug is not None:
        return here.partition(".")[2]
    return here if named.is_apex else domain + get_port(here)
