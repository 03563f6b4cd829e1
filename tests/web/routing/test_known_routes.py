"""A route that was found once is found again at every tenant, and nothing is found that Werkzeug would not find."""

from collections.abc import Mapping
from typing import Any

import pytest
from quart import Quart
from quart.routing import QuartRule
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter, MapAdapter

from quart_tenants import QuartTenants
from quart_tenants.web.routing import host_routing as routing

PATHS = [
    "/data",
    "/data/",
    "/folder",
    "/folder/",
    "//data",
    "/orders/7",
    "/orders/x",
    "/with-default",
    "/probe",
    "/none",
]
METHODS = ["GET", "HEAD", "POST", "OPTIONS"]
HOSTS = ["acme.localhost", "beta.localhost", "ACME.localhost:8000", "localhost", "elsewhere.example"]


class NaiveRoutes(routing._KnownRoutes):
    """Knows by the path alone, and takes for known whatever was found."""

    def find(self, adapter: MapAdapter) -> Any:
        """Return the route of that path."""
        return self._known.get((adapter.path_info, "", False))

    def remember(self, adapter: MapAdapter, rule: Any, arguments: Mapping[str, Any], host: str) -> None:
        """Know it."""
        self._known[adapter.path_info, "", False] = rule, next(iter(arguments))


class ForgetfulRoutes(routing._KnownRoutes):
    """Never knows a route."""

    def find(self, adapter: MapAdapter) -> None:
        """Return None."""


async def view(**arguments: object) -> dict[str, object]:
    """Answer."""
    return arguments


def make_app() -> Quart:
    """Return an app with one route of each kind."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_DATABASE_URL="postgresql://localhost/unused")
    tenants = QuartTenants(app)
    for path, host in (
        ("/data", tenants.host),
        ("/folder/", tenants.host),
        ("/orders/<int:order>", tenants.host),
        ("/probe", tenants.any_host),
        ("/data", tenants.apex_host),
    ):
        app.add_url_rule(path, f"{path} {host}", view, host=host)
    app.add_url_rule("/data", "write", view, methods=["POST"], host=tenants.host)
    app.add_url_rule("/with-default", "default", view, host=tenants.host, defaults={"page": 1})
    app.add_websocket("/data", "socket", view, host=tenants.host)
    return app


async def find_route(app: Quart, host: str, path: str, method: str) -> tuple[object, ...]:
    """Return what a request finds: its endpoint and arguments, or its error and where that leads."""
    async with app.test_request_context(path, method=method, headers={"host": host}) as context:
        asked = context.request
        error = asked.routing_exception
        if isinstance(error, HTTPException):
            return type(error), getattr(error, "new_url", None), sorted(getattr(error, "valid_methods", None) or ())
        return asked.endpoint, asked.view_args


async def find_all(routes: type[routing._KnownRoutes], monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Return what all requests find, each asked for twice, and between them others."""
    monkeypatch.setattr(routing, "_KnownRoutes", routes)
    app = make_app()
    every = [(host, path, method) for host in HOSTS for path in PATHS for method in METHODS]
    return [await find_route(app, *one) for one in (*every, *reversed(every))]


async def test_known_routes_are_those_of_werkzeug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was asked before, at whichever tenant. A naive memory finds others."""
    known = await find_all(routing._KnownRoutes, monkeypatch)
    expected = await find_all(ForgetfulRoutes, monkeypatch)
    naive = await find_all(NaiveRoutes, monkeypatch)

    assert known == expected
    assert naive != expected
    assert ("/data <tenant_host:tenant>", {"tenant": "beta.localhost:0"}) in known


async def test_route_is_matched_once_for_all_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second tenant's request is not matched by Werkzeug again; one with something of its own in the path is."""
    app = make_app()
    for path in ("/data", "/orders/7", "/with-default"):
        await find_route(app, "acme.localhost", path, "GET")
    matched = []
    match = MapAdapter.match

    def match_and_count(adapter: MapAdapter, *args: Any, **options: Any) -> Any:
        matched.append(adapter.path_info)
        return match(adapter, *args, **options)

    monkeypatch.setattr(MapAdapter, "match", match_and_count)
    for path in ("/data", "/orders/7", "/with-default"):
        await find_route(app, "beta.localhost", path, "GET")

    assert matched == ["/orders/7", "/with-default"]


async def test_routes_for_some_tenants_only_are_found() -> None:
    """An app may match hosts by a converter of its own: nothing is known then by what another tenant has found."""
    app = make_app()

    class Acme(BaseConverter):
        regex = r"acme\.localhost:0"
        weight = 1

    app.url_map.converters["acme"] = Acme
    app.add_url_rule("/data", "only acme's", view, host="<acme:tenant>")

    found = [(await find_route(app, host, "/data", "GET"))[0] for host in ("beta.localhost", "acme.localhost")]

    assert found == ["/data <tenant_host:tenant>", "only acme's"]


async def test_route_that_is_added_later_is_found() -> None:
    """What was known before is forgotten."""
    app = make_app()
    await find_route(app, "acme.localhost", "/probe", "GET")
    app.url_map.add(QuartRule("/probe", endpoint="nearer", host=QuartTenants.host))

    found, _ = await find_route(app, "acme.localhost", "/probe", "GET")

    assert found == "nearer"


async def test_invented_methods_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule without methods has every method that anybody makes up: nothing is known of it."""
    made: list[routing._KnownRoutes] = []

    class RecordedRoutes(routing._KnownRoutes):
        def __init__(self, url_map: Any) -> None:
            super().__init__(url_map)
            made.append(self)

    monkeypatch.setattr(routing, "_KnownRoutes", RecordedRoutes)
    app = make_app()
    app.url_map.add(QuartRule("/any", endpoint="any", methods=None, host=QuartTenants.host))

    found = [await find_route(app, "acme.localhost", "/any", f"M{number}") for number in range(10)]

    assert found == [("any", {"tenant": "acme.localhost:0"})] * 10
    assert [routes._known for routes in made] == [{}]
