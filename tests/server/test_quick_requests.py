"""What our server's requests find by one look is what Quart and Werkzeug find."""

import functools
import inspect
import threading
from typing import Any

import pytest
from quart import Quart
from quart.routing import QuartMap, QuartRule
from quart.wrappers import Request, Websocket
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, NotFound, SecurityError
from werkzeug.routing import BaseConverter, ValidationError
from werkzeug.routing.exceptions import RoutingException

from quart_tenants.server import quick_requests
from quart_tenants.server.quick_requests import QuickRequest, quicken


async def never_push(path: str, headers: Headers) -> None:
    """Do nothing: HTTP/1 has no pushes."""


def make_requests(headers: list[tuple[str, str]], scheme: str = "http", method: str = "GET") -> list[Request]:
    """Return one request of ours, and the same of Quart's own class."""
    scope: Any = {"type": "http", "headers": [(name.lower().encode(), value.encode()) for name, value in headers]}
    return [
        kind(method, scheme, "/", b"", Headers(headers), "", "1.1", scope, send_push_promise=never_push)
        for kind in (QuickRequest, Request)
    ]


def test_blueprints_are_those_of_quart() -> None:
    """However deep they are nested, and without a rule."""
    ours, theirs = make_requests([])

    for endpoint in ("view", "shop.view", "shop.admin.orders.view"):
        ours.url_rule = theirs.url_rule = QuartRule("/", endpoint=endpoint)
        assert ours.blueprints == theirs.blueprints
    ours.url_rule = None
    assert ours.blueprints == []


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("name", ["acme.localhost", "Acme.LOCALHOST:8000", "a:80", "a:443", "[::1]:5", "x" * 300, None])
def test_host_is_the_one_of_werkzeug(name: str | None, scheme: str) -> None:
    """With its port but for the usual one, the first time and later, and among trusted hosts only."""
    for _ in range(2):
        ours, theirs = make_requests([] if name is None else [("Host", name)], scheme)
        assert ours.host == theirs.host
    ours, theirs = make_requests([("Host", name or "localhost")], scheme)
    ours.trusted_hosts = ["trusted.example"]
    with pytest.raises(SecurityError):
        _ = ours.host


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Content-Length", "5")],
        [("content-length", "0")],
        [("Content-Length", "x")],
        [("Transfer-Encoding", "chunked")],
        [("Content-Length", "5"), ("Transfer-Encoding", "chunked")],
    ],
)
def test_length_of_a_body_is_the_one_of_werkzeug(headers: list[tuple[str, str]], method: str) -> None:
    """Also where there is none."""
    ours, theirs = make_requests(headers, method=method)

    assert ours.content_length == theirs.content_length


class AsyncCallable:
    """An object that is called like a coroutine function."""

    async def __call__(self) -> str:
        """Answer."""
        return "object"

    async def method(self) -> str:
        """Answer."""
        return "method"


async def coroutine_function(answer: str = "function") -> str:
    """Answer."""
    return answer


@pytest.mark.parametrize(
    "function",
    [
        coroutine_function,
        AsyncCallable().method,
        functools.partial(coroutine_function, "partial"),
        lambda: "lambda",
        threading.get_ident,
        AsyncCallable(),
    ],
)
def test_functions_are_taken_for_what_quart_takes_them(function: Any) -> None:
    """A coroutine function runs as it is, any other one in a thread."""
    app = Quart(__name__, static_folder=None)
    quicken(app)

    ours, theirs = app.ensure_async(function), Quart.ensure_async(app, function)

    assert (ours is function) == (theirs is function)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


def test_app_keeps_what_it_has_of_its_own() -> None:
    """The server leaves an app's own class of requests, and its own `ensure_async`, alone."""

    class OwnRequest(Request):
        pass

    class OwnApp(Quart):
        request_class = OwnRequest

        def ensure_async(self, func: Any) -> Any:
            """Do as Quart does."""
            return super().ensure_async(func)

    app = OwnApp(__name__, static_folder=None)
    before = app.request_class

    quicken(app)

    assert app.request_class is before
    assert "ensure_async" not in vars(app)


# Routes


def make_routed_app(*, is_quick: bool) -> Quart:
    """Return an app with routes of every kind."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    for host in ("a.localhost", "<label>.localhost"):
        app.add_url_rule("/notes/<int:number>", f"{host}.note", methods=["GET", "PUT"], host=host)
        app.add_url_rule("/files/<path:name>", f"{host}.file", host=host, defaults={"kind": "file"})
        app.add_url_rule("/shop/", f"{host}.shop", host=host)
        app.add_websocket("/live", f"{host}.live", host=host)
    if is_quick:
        quicken(app)
    return app


def make_adapter(
    app: Quart,
    host: str,
    path: str,
    method: str,
    kind: type[BaseRequestWebsocket] = Request,
    query: bytes = b"",
    root_path: str = "",
) -> Any:
    """Return what *app* finds routes with and builds addresses with, in a request of that address."""
    headers = Headers({"Host": host})
    scope: Any = {"type": "http", "headers": [(b"host", host.encode())]}
    asked: Any = (
        Request(method, "http", path, query, headers, root_path, "1.1", scope, send_push_promise=never_push)
        if kind is Request
        else Websocket(path, query, "ws", headers, "", "1.1", [], None, None, None, None, scope)  # type: ignore[arg-type]
    )
    return app.create_url_adapter(asked)


def find_route(app: Quart, host: str, path: str, method: str, kind: type[BaseRequestWebsocket] = Request) -> Any:
    """Return the endpoint and the arguments of an address, or what is raised for it."""
    adapter = make_adapter(app, host, path, method, kind)
    try:
        rule, values = adapter.match(return_rule=True)
    except (HTTPException, RoutingException) as error:
        return type(error), getattr(error, "new_url", None), sorted(getattr(error, "valid_methods", None) or ())
    return rule.endpoint, values


@pytest.mark.parametrize("host", ["a.localhost", "b.localhost", "a.localhost:80", "elsewhere"])
def test_remembered_route_is_the_one_of_werkzeug(host: str) -> None:
    """Every address has the route it has in a plain app, the first time and later, whatever was asked before."""
    quick, plain = make_routed_app(is_quick=True), make_routed_app(is_quick=False)
    paths = ["/notes/7", "/notes/8", "/notes/x", "/files/a/b", "/files//", "/shop/", "/shop", "/live", "/none", "/"]
    paths.append("/files/" + "x" * 1000)

    for _ in range(3):
        for path in paths:
            for method in ("GET", "PUT", "POST", "OPTIONS"):
                assert find_route(quick, host, path, method) == find_route(plain, host, path, method)
            assert find_route(quick, host, path, "GET", Websocket) == find_route(plain, host, path, "GET", Websocket)


@pytest.mark.parametrize("host", ["a.localhost", "B.LocalHost:8000", "b.localhost:80", "bücher.localhost", "elsewhere"])
def test_request_at_a_remembered_host_builds_the_addresses_of_werkzeug(host: str) -> None:
    """What Werkzeug makes of a host is remembered; path, method and query are those of each request."""
    quick, plain = make_routed_app(is_quick=True), make_routed_app(is_quick=False)

    for path, method, query in (("/shop/", "GET", b""), ("/notes/7", "PUT", b"a=1"), ("/shop/", "POST", b"b=%20")):
        for kind in (Request, Websocket):
            ours, theirs = (vars(make_adapter(app, host, path, method, kind, query)) for app in (quick, plain))
            assert {name: value for name, value in ours.items() if name not in ("map", "known")} == {
                name: value for name, value in theirs.items() if name != "map"
            }
            assert ours["map"] is quick.url_map


def test_arguments_of_a_remembered_route_belong_to_one_request() -> None:
    """What a hook takes out of them is there again in the next request."""
    app = make_routed_app(is_quick=True)

    for _ in range(3):
        endpoint, values = find_route(app, "b.localhost", "/notes/7", "GET")
        assert (endpoint, values) == ("<label>.localhost.note", {"label": "b", "number": 7})
        values.clear()


def test_route_with_a_converter_of_the_apps_own_is_not_remembered() -> None:
    """Such a converter may answer otherwise the next time."""

    class Open(BaseConverter):
        are_open = True

        def to_python(self, value: str) -> str:
            """Take every value while the shop is open."""
            if not self.are_open:
                raise ValidationError
            return value

    app = Quart(__name__, static_folder=None)
    app.url_map.converters["open"] = Open
    app.add_url_rule("/shop/<open:name>", "shop")
    quicken(app)

    assert find_route(app, "localhost", "/shop/tea", "GET") == ("shop", {"name": "tea"})
    Open.are_open = False
    assert find_route(app, "localhost", "/shop/tea", "GET")[0] is NotFound


def test_strangers_cannot_make_an_app_remember_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many addresses are remembered as were set, and no long paths or hosts."""
    monkeypatch.setattr(quick_requests, "_MOST_ADDRESSES", 10)
    app = make_routed_app(is_quick=True)
    kept = inspect.getclosurevars(app.create_url_adapter).nonlocals
    known, hosts = kept["known"], kept["hosts"]

    for number in range(100):
        find_route(app, "b.localhost", f"/notes/{number}", "GET")
        find_route(app, "b.localhost", f"/files/{number}{'x' * 300}", "GET")
        find_route(app, f"{number}{('.' + 'x' * 60) * 5}.localhost", "/shop/", "GET")
        find_route(app, f"{number}.localhost", "/shop/", "GET")
        make_adapter(app, "b.localhost", "/shop/", "GET", root_path=f"/{number}{'x' * 300}")
        assert len(known) <= 10
        assert len(hosts) <= 10
    assert all(len(host) < 300 and len(root_path) < 300 for _, _, host, root_path in hosts)
    assert all(len(address[0]) < 300 and len(address[2]) < 300 for address in known)


def test_route_that_is_added_later_is_found() -> None:
    """Werkzeug's map may get a route at any time, also one that goes before another."""
    app = Quart(__name__, static_folder=None)
    app.add_url_rule("/<name>", "any")
    quicken(app)
    assert find_route(app, "localhost", "/about", "GET") == ("any", {"name": "about"})

    app.add_url_rule("/about", "about")

    assert find_route(app, "localhost", "/about", "GET") == ("about", {})


def test_app_that_binds_routes_in_a_way_of_its_own_is_left_alone() -> None:
    """It may look at more than the host, such as at a header, and would be given what another request had."""

    def give_label(adapter: Any, asked: Any) -> Any:
        adapter.server_name = asked.method
        return adapter

    class OwnMap(QuartMap):
        def bind_to_request(self, *arguments: Any) -> Any:
            """Bind to the method."""
            return give_label(super().bind_to_request(*arguments), arguments[0])

    class OwnApp(Quart):
        url_map_class = OwnMap

    mapped, wrapped = OwnApp(__name__, host_matching=True, static_folder=None), make_routed_app(is_quick=False)
    create: Any = wrapped.create_url_adapter
    wrapped.create_url_adapter = lambda asked: give_label(create(asked), asked)  # type: ignore[assignment, method-assign]

    for app in (mapped, wrapped):
        quicken(app)
        names = [make_adapter(app, "a.localhost", "/shop/", method).server_name for method in ("GET", "PUT", "GET")]
        assert names == ["GET", "PUT", "GET"]


def test_name_of_the_server_may_be_set_later() -> None:
    """A test may do so between two requests."""
    app = Quart(__name__, static_folder=None, subdomain_matching=True)
    app.add_url_rule("/", "customer", subdomain="<name>")
    app.add_url_rule("/", "root")
    quicken(app)
    assert find_route(app, "acme.localhost", "/", "GET")[0] == "root"

    app.config["SERVER_NAME"] = "localhost"

    assert find_route(app, "acme.localhost", "/", "GET") == ("customer", {"name": "acme"})


def test_subdomains_have_routes_of_their_own() -> None:
    """Where Werkzeug matches subdomains, the name of the server is the same for all of them."""
    app = Quart(__name__, static_folder=None, subdomain_matching=True)
    app.config["SERVER_NAME"] = "localhost"
    app.add_url_rule("/", "admin", subdomain="admin")
    app.add_url_rule("/", "customer", subdomain="<name>")
    quicken(app)

    for _ in range(2):
        assert find_route(app, "admin.localhost", "/", "GET") == ("admin", {})
        assert find_route(app, "acme.localhost", "/", "GET") == ("customer", {"name": "acme"})
