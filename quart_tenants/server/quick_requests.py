"""Let an app find by one look what Quart and Werkzeug find by many steps in every request."""

import functools
from inspect import CO_COROUTINE
from typing import TYPE_CHECKING, Any

from quart import Quart
from quart.routing import QuartMap
from quart.wrappers import Request
from werkzeug.routing import MapAdapter, Rule
from werkzeug.sansio.utils import get_host
from werkzeug.utils import cached_property

from quart_tenants.web.hosts import LONGEST_HOST

if TYPE_CHECKING:
    from collections.abc import Mapping

# Addresses whose routes are remembered, and hosts; and the characters that an address may have. A stranger can ask for
# any.
_MOST_ADDRESSES = 4096
_LONGEST_PATH = 256
_AS_QUART_ASKS = {"return_rule": True}
# A converter from elsewhere may answer otherwise the next time.
_KNOWN_CONVERTERS = ("werkzeug.", "quart_tenants.")


def quicken(app: Quart) -> None:
    """Let *app* serve requests as `QuickRequest` and remember routes, except where it has something of its own."""
    if app.request_class is Request:
        app.request_class = QuickRequest
    if type(app).ensure_async is Quart.ensure_async:
        _know_coroutines(app)
    is_plain = type(app).create_url_adapter is Quart.create_url_adapter and "create_url_adapter" not in vars(app)
    if is_plain and type(app.url_map) is QuartMap:
        _remember_routes(app)


class QuickRequest(Request):
    """A request that finds by one look what Quart and Werkzeug find by several steps, each time they need it."""

    @property
    def blueprints(self) -> list[str]:
        """The blueprint of the view, and those around it."""
        return [] if self.url_rule is None else _list_blueprints(self.url_rule.endpoint)

    @cached_property
    def content_length(self) -> int | None:
        """How many bytes the body has, or None if that was not said."""
        return super().content_length if b"content-length" in dict(self.scope["headers"]) else None

    @cached_property
    def host(self) -> str:
        """The host that was asked for, with its port if that is none of the usual ones."""
        name = self.headers.get("host")
        if self.trusted_hosts is not None or name is None or len(name) > LONGEST_HOST:
            return super().host
        return _get_host(self.scheme, name)


def _know_coroutines(app: Quart) -> None:
    """Let *app* see by one look that a function is a coroutine function: it asks for each hook in each request."""
    ensure: Any = app.ensure_async

    def ensure_async(function: Any) -> Any:
        code = getattr(function, "__code__", None)
        return function if code is not None and code.co_flags & CO_COROUTINE else ensure(function)

    app.ensure_async = ensure_async  # type: ignore[method-assign, assignment]


class _QuickAdapter(MapAdapter):
    """What finds the route of one request: at once, where the address was asked for before."""

    known: "dict[tuple[str, str | None, str, str, bool], tuple[Rule, Mapping[str, Any]]]"

    def match(self, *arguments: Any, **options: Any) -> Any:
        """Return the route and its arguments, as Werkzeug does it."""
        is_long = len(self.server_name) > LONGEST_HOST or len(self.path_info) > _LONGEST_PATH
        if is_long or arguments or options != _AS_QUART_ASKS:
            return super().match(*arguments, **options)
        address = (self.server_name, self.subdomain, self.path_info, self.default_method, self.websocket)
        known = self.known
        found = known.get(address)
        if found is None:
            # Redirects and errors are raised, and not remembered.
            found = super().match(return_rule=True)
            if all(kind.__module__.startswith(_KNOWN_CONVERTERS) for kind in self.map.converters.values()):
                if len(known) >= _MOST_ADDRESSES:
                    known.clear()
                known[address] = found
        rule, values = found
        return rule, dict(values)


def _remember_routes(app: Quart) -> None:
    """Let *app* remember which route an address has, until it gets another route, and what Werkzeug makes of a host."""
    create: Any = app.create_url_adapter
    add: Any = app.url_map.add
    known: dict[Any, Any] = {}
    hosts: dict[Any, dict[str, Any]] = {}

    def add_rule(rule: Any) -> None:
        add(rule)
        known.clear()

    def create_url_adapter(request: Any) -> MapAdapter | None:
        if request is None:
            return create(None)  # type: ignore[no-any-return]
        # All that Quart looks at, but for the path, the method and the query.
        host = app.config["SERVER_NAME"], request.scheme, request.host, request.root_path
        bound = hosts.get(host)
        if bound is None:
            adapter: Any = create(request)
            if type(adapter) is not MapAdapter:
                return adapter  # type: ignore[no-any-return]
            bound = {**vars(adapter), "known": known}
            if len(hosts) >= _MOST_ADDRESSES:
                hosts.clear()
            if len(request.host) <= LONGEST_HOST and len(request.root_path) <= _LONGEST_PATH:
                hosts[host] = bound
        adapter = _QuickAdapter.__new__(_QuickAdapter)
        vars(adapter).update(
            bound, path_info=request.path, default_method=request.method, query_args=request.query_string.decode()
        )
        return adapter  # type: ignore[no-any-return]

    app.url_map.add = add_rule  # type: ignore[method-assign, assignment]
    app.create_url_adapter = create_url_adapter  # type: ignore[method-assign]


@functools.lru_cache(maxsize=1024)
def _list_blueprints(endpoint: str) -> list[str]:
    names = endpoint.split(".")[:-1]
    return [".".join(names[:count]) for count in range(len(names), 0, -1)]


_get_host = functools.lru_cache(maxsize=1024)(get_host)
