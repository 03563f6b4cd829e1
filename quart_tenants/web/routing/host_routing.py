"""Teach Quart's host matching which hosts are tenants, the domain itself, or any.

A route names the whole host by one converter: Werkzeug matches hosts with their port, and a rule
made of text and a label would fix the port.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

from quart import Quart
from quart.wrappers import Request, Response
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import BadHost
from werkzeug.routing import BaseConverter, MapAdapter, Rule, RuleFactory

from quart_tenants.errors import UnknownHostError, UnknownTenantError
from quart_tenants.tenant import Tenant
from quart_tenants.web.context import find_request, find_requested_slug, get_current_tenant, remember_request
from quart_tenants.web.hosts import HostPatterns, get_port, parse_host
from quart_tenants.web.sessions.tenant_sessions import ask_about_session
from quart_tenants.web.state import TenantState, get_state

if TYPE_CHECKING:
    from quart.routing import QuartMap


# What a path may have in it beside letters and digits, the escapes included (RFC 3986, section 3.3).
_AS_SENT = "%!$&'()*+,/:;=@-._~"

_TENANT_ARGUMENT = "tenant"
_APEX_ARGUMENT = "_apex"
_ANY_ARGUMENT = "_host"

TENANT_HOST: Final = f"<tenant_host:{_TENANT_ARGUMENT}>"
"""For `host=` of a route: `<tenant>.<domain>` on any port, and the tenant's own domains."""

APEX_HOST: Final = f"<apex_host:{_APEX_ARGUMENT}>"
"""For `host=` of a route: the domain itself, on any port."""

ANY_HOST: Final = f"<any_host:{_ANY_ARGUMENT}>"
"""For `host=` of a route: every host, an address or none included."""

_OUR_HOSTS = (TENANT_HOST, APEX_HOST, ANY_HOST, ANY_HOST.replace("any", "probe"))
_AS_QUART_ASKS = {"return_rule": True}


class _KnownRoutes:
    """Which route a request has, for paths that have the same one at every tenant and from which it takes nothing.

    They are known by having been matched once. Where an app has hosts of its own making in its routes nothing is known,
    for such a route could be for one tenant only.
    """

    def __init__(self, url_map: "QuartMap") -> None:
        self._url_map = url_map
        self._alike: bool | None = None
        # By path, method and whether it is a websocket; with the name of the argument that is the host.
        self._known: dict[tuple[str, str, bool], tuple[Rule, str]] = {}

    def find(self, adapter: MapAdapter) -> tuple[Rule, str] | None:
        """Return the route of the request of *adapter*, and its argument for the host, or None for nothing known."""
        return self._known.get((adapter.path_info, adapter.default_method, adapter.websocket))

    def remember(self, adapter: MapAdapter, rule: Rule, arguments: Mapping[str, Any], host: str) -> None:
        """Know from now on that the request of *adapter*, at *host*, has *rule* with *arguments*."""
        if self._alike is None:
            hosts = {rule.host or "" for rule in self._url_map.iter_rules()}
            self._alike = all(host in _OUR_HOSTS for host in hosts if "<" in host)
        # A rule without methods has all that somebody may make up.
        if self._alike and rule.methods is not None and list(arguments.values()) == [host]:
            self._known[adapter.path_info, adapter.default_method, adapter.websocket] = rule, next(iter(arguments))

    def forget(self) -> None:
        """Know nothing any more, when there are other routes."""
        self._alike = None
        self._known.clear()


class _TenantAdapter(MapAdapter):
    """Matches the routes of a tenant as its subdomain, and builds addresses at the host that was asked for."""

    def __init__(
        self, url_map: "QuartMap", request: BaseRequestWebsocket, subdomain_host: str, routes: _KnownRoutes
    ) -> None:
        # As QuartMap binds a request, but for the host's way through IDNA: a tenant's host is ASCII.
        super().__init__(
            url_map,
            _drop_default_port(request.scheme, request.host.lower()),
            request.root_path,
            None,
            request.scheme,
            request.path,
            request.method,
            request.query_string.decode(),
        )
        self._asked_host = self.server_name
        self._subdomain_host = subdomain_host
        self._routes = routes

    def match(self, *args: Any, **options: Any) -> Any:
        """Match as the subdomain."""
        as_quart_asks = not args and options == _AS_QUART_ASKS
        known = self._routes.find(self) if as_quart_asks else None
        if known is not None:
            rule, argument = known
            return rule, {argument: self._subdomain_host}
        self.server_name = self._subdomain_host
        try:
            matched: Any = super().match(*args, **options)
        finally:
            self.server_name = self._asked_host
        if as_quart_asks:
            rule, arguments = matched
            self._routes.remember(self, rule, arguments, self._subdomain_host)
        return matched

    def get_host(self, domain_part: str | None) -> str:
        """Return the host of an address: of a redirect found by matching, too."""
        return self._asked_host if domain_part in (None, self._subdomain_host) else super().get_host(domain_part)


def add_host_routing(app: Quart, state: TenantState) -> None:
    """Let the routes of *app* use `TENANT_HOST`, `APEX_HOST` and `ANY_HOST`, and `url_for` build them."""
    domain = state.settings.domain
    patterns = HostPatterns.of(domain)

    class TenantHost(BaseConverter):
        regex = patterns.tenant

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
    bind, add = url_map.bind_to_request, url_map.add
    routes = _KnownRoutes(url_map)

    def add_and_forget(rulefactory: RuleFactory) -> None:
        routes.forget()
        add(rulefactory)

    def bind_to_any(request: BaseRequestWebsocket, subdomain: str | None, server_name: str | None) -> MapAdapter:
        slug = find_requested_slug(request, state)
        if slug is not None:
            # On port 0, which no request has: told apart from the subdomain's address that somebody builds.
            return _TenantAdapter(url_map, request, f"{slug}.{domain}:0", routes)
        try:
            return bind(request, subdomain, server_name)
        except BadHost:
            # Such as "a..b". Raised before Quart can answer an error, so it would be a 500: no host instead.
            return bind(request, subdomain, "")

    url_map.add = add_and_forget  # type: ignore[method-assign]
    url_map.bind_to_request = bind_to_any  # type: ignore[method-assign]


async def enter_tenant() -> Response | None:
    """Make sure that the route's tenant exists, and take what only routing needs out of the view's arguments.

    A hook that runs before every view. Answers a request at the old address of a renamed tenant itself.

    Raises:
        UnknownTenantError: No tenant answers at this host.
        RegistryStaleError: The worker cannot know whether one does.
    """
    remember_request()
    asked = find_request()
    await ask_about_session()
    if asked is None or not asked.view_args:
        return None
    if _TENANT_ARGUMENT in asked.view_args:
        try:
            get_current_tenant()
        except UnknownTenantError:
            # A websocket is not redirected: no browser would follow.
            redirect = _find_redirect(asked) if isinstance(asked, Request) else None
            if redirect is None:
                raise
            return redirect
    for argument in (_TENANT_ARGUMENT, _APEX_ARGUMENT, _ANY_ARGUMENT):
        asked.view_args.pop(argument, None)
    return None


def _find_redirect(asked: Request) -> Response | None:
    """Return the way to the tenant that had this address before it was renamed, or None."""
    state = get_state()
    slug = find_requested_slug(asked, state)
    new_slug = None if slug is None else state.registry.find_new_slug(slug)
    if new_slug is None:
        return None
    # Of what the visitor sent only the port, the path and the query; the whole host goes before them.
    # As sent: asked.path is decoded, and a %2F in it would lead elsewhere.
    path = bytes(asked.scope.get("raw_path") or b"")
    if not path.startswith(b"/"):
        # Such as of "GET http://host/path".
        path = quote(asked.root_path + asked.path).encode()
    target = quote(path, safe=_AS_SENT)
    if asked.query_string:
        target += "?" + quote(asked.query_string, safe=_AS_SENT + "?")
    host = f"{new_slug}.{state.settings.domain}{get_port(asked.host)}"
    # 308 keeps the method and the body. Not to be remembered: the name may be somebody else's one day.
    headers = {"Location": f"{asked.scheme}://{host}{target}", "Cache-Control": "no-store"}
    return Response(status=HTTPStatus.PERMANENT_REDIRECT, headers=headers)


def _drop_default_port(scheme: str, host: str) -> str:
    port = ":80" if scheme in ("http", "ws") else ":443"
    return host.removesuffix(port)


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
        return domain + get_port(here)
    return here.partition(".")[2] if at_tenant else here
