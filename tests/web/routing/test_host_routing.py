"""Routes are found at the hosts that they are for, and a stranger's host is told nothing about them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quart import Blueprint, Quart, url_for
from quart.routing import QuartRule
from werkzeug.exceptions import BadHost
from werkzeug.routing import BaseConverter

from quart_tenants import QuartTenants
from quart_tenants.web.routing.host_routing import enter_tenant
from tests.support.databases import REFERENCE_FILES

PATHS = ["/data", "/data/", "/folder", "/folder/", "//data", "/orders/7", "/orders/x", "/socket", "/none"]
METHODS = ["GET", "HEAD", "POST", "DELETE", "OPTIONS"]
STRANGERS = [
    "elsewhere.example",
    "ELSEWHERE.example:8000",
    "two.deep.localhost",
    "acme.localhost.example",
    "127.0.0.1:5000",
    "[::1]:5000",
    "host",
    "",
]
MALFORMED = ["a..localhost", ".acme.localhost", f"{'x' * 64}.localhost", "a..b", "acme.localhost..", "\xe4.localhost"]


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
    app.add_websocket("/socket", "socket", view, host=tenants.host)
    return app


async def ask_everything(app: Quart, host: str) -> set[tuple[object, ...]]:
    """Return the different answers that *host* gets, whatever it asks for."""
    answers: set[tuple[object, ...]] = set()
    client: Any = app.test_client()
    for path in PATHS:
        for method in METHODS:
            answer = await client.open(path, method=method, headers={"Host": host})
            body = b"" if method == "HEAD" else await answer.get_data(as_text=False)
            answers.add((answer.status_code, answer.headers.get("Allow"), answer.headers.get("Location"), body))
    return answers


@pytest.mark.parametrize("host", [*STRANGERS, *MALFORMED])
async def test_unknown_host_always_gets_the_same_answer(host: str) -> None:
    """Whatever a stranger's host asks for is 404, so that nobody learns which paths and methods there are."""
    answers = await ask_everything(make_app(), host)

    assert {status for status, *_ in answers} == {404}
    assert len({body for *_, body in answers} - {b""}) == 1


async def test_unknown_host_would_learn_of_methods_and_slashes() -> None:
    """Negative control: without our hook the same requests tell which paths, methods and websockets there are."""
    app = make_app()
    app.before_request_funcs[None].remove(enter_tenant)

    assert {status for status, *_ in await ask_everything(app, "elsewhere.example")} > {308, 400, 404, 405}


@pytest.mark.parametrize("host", ["acme.localhost", "localhost:80", *STRANGERS, *MALFORMED])
async def test_route_for_every_host_answers_whatever_the_host_says(host: str) -> None:
    """A probe names an IP address, a name of the machine, or nonsense."""
    answer = await make_app().test_client().get("/probe", headers={"Host": host})

    assert (answer.status_code, await answer.get_json()) == (200, {})


async def test_quart_fails_at_a_malformed_host() -> None:
    """Negative control: without our middleware a host that cannot be encoded is an error before any error handler."""
    app = make_app()

    with pytest.raises(BadHost):
        async with app.test_request_context("/probe", headers={"Host": "a..b"}) as context:
            # Quart 0.23 keeps it for the dispatch, where it becomes a 400.
            raise context.request.routing_exception or AssertionError("it is served")


async def find_endpoint(app: Quart, host: str, path: str) -> str | None:
    """Return the endpoint that Quart finds."""
    async with app.test_request_context(path, headers={"Host": host}) as context:
        return context.request.endpoint


async def test_app_may_have_a_converter_of_its_own_for_one_tenant() -> None:
    """A route for one tenant's host goes before the routes for all of them, if its weight says so."""
    app = make_app()

    class Acme(BaseConverter):
        regex = r"acme\.localhost"
        weight = 1

    app.url_map.converters["acme"] = Acme
    app.add_url_rule("/data", "only acme's", view, host="<acme:tenant>")

    found = [await find_endpoint(app, host, "/data") for host in ("beta.localhost", "acme.localhost")]

    assert found == [f"/data {QuartTenants.host}", "only acme's"]


# Routes that name no host


@pytest.mark.parametrize("host", ["acme.localhost", "localhost:5000", "elsewhere.example"])
async def test_static_files_of_a_blueprint_are_at_every_host(host: str, tmp_path: Path) -> None:
    """Quart lets a blueprint name no host for them. The address is one of the same host."""
    (tmp_path / "style.css").write_text("p {}")
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_DATABASE_URL="postgresql://localhost/unused")
    QuartTenants(app)
    app.register_blueprint(Blueprint("notes", __name__, static_folder=str(tmp_path), static_url_path="/files"))

    answer = await app.test_client().get("/files/style.css", headers={"Host": host})
    async with app.test_request_context("/", headers={"Host": host}):
        address = url_for("notes.static", filename="style.css")

    assert (answer.status_code, await answer.get_data(as_text=True)) == (200, "p {}")
    assert address == "/files/style.css"


async def test_static_files_stand_behind_the_pages_of_tenants(tmp_path: Path) -> None:
    """Also those of a blueprint that has every path, and was registered first."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_DATABASE_URL="postgresql://localhost/unused")
    tenants = QuartTenants(app)
    app.register_blueprint(Blueprint("site", __name__, static_folder=str(tmp_path), static_url_path="/"))
    app.add_url_rule("/data", "data", view, host=tenants.host)

    assert await find_endpoint(app, "acme.localhost", "/data") == "data"
    assert await find_endpoint(app, "acme.localhost", "/style.css") == "site.static"


async def test_view_that_is_called_static_is_at_no_host(tmp_path: Path) -> None:
    """Only what Quart itself adds for a folder is the same for everybody."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_DATABASE_URL="postgresql://localhost/unused")
    QuartTenants(app)
    for name, folder in (("with", str(tmp_path)), ("without", None)):
        blueprint = Blueprint(name, __name__, static_folder=folder, url_prefix=f"/{name}")
        blueprint.add_url_rule("/secret", "own_static", view)
        if folder is None:
            blueprint.add_url_rule("/secret/<path:filename>", "static", view)
        app.register_blueprint(blueprint)

    assert await find_endpoint(app, "evil.example", "/with/secret") is None
    assert await find_endpoint(app, "evil.example", "/without/secret/x") is None


async def test_routes_that_name_no_host_get_that_of_their_context() -> None:
    """Those of other extensions name none. A host of their own stays."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_DATABASE_URL="postgresql://localhost/unused")
    tenants = QuartTenants(app)
    with tenants.routes_at(tenants.apex_host):
        app.add_url_rule("/docs", "docs", view)
        app.add_url_rule("/own", "own", view, host=tenants.host)
        app.add_websocket("/live", "live", view)

    assert await find_endpoint(app, "localhost", "/docs") == "docs"
    assert await find_endpoint(app, "acme.localhost", "/docs") is None
    assert await find_endpoint(app, "localhost", "/own") is None
    assert {rule.host for rule in app.url_map.iter_rules("live")} == {tenants.apex_host}


async def test_route_that_nobody_can_reach_is_named_at_start(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no error, because the visitors of the other routes are served."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_DATABASE_URL=database_url, TENANTS_MIGRATIONS_DIR=REFERENCE_FILES)
    QuartTenants(app)
    app.add_url_rule("/docs", "docs", view)

    async with app.test_app():
        assert await find_endpoint(app, "acme.localhost", "/docs") is None

    assert "nobody can reach the route /docs (endpoint docs)" in caplog.text


async def test_route_that_is_added_later_is_found() -> None:
    """Nothing is remembered of the routes that there were before."""
    app = make_app()
    before = await find_endpoint(app, "acme.localhost", "/later")

    app.url_map.add(QuartRule("/later", endpoint="later", host=QuartTenants.host))

    assert (before, await find_endpoint(app, "acme.localhost", "/later")) == (None, "later")


@pytest.mark.parametrize(
    "name",
    [
        "full_dispatch_request",
        "create_url_adapter",
        "ensure_async",
        "handle_request",
        "make_response",
        "process_response",
    ],
)
def test_methods_of_quart_stay_as_they_are(name: str) -> None:
    """The extension replaces no method of the app, only what Quart documents as replaceable."""
    app = make_app()

    assert name not in vars(app)


@pytest.mark.parametrize("get", [lambda app: app.url_map, lambda app: app], ids=["url_map", "app"])
def test_no_inner_function_is_replaced(get: Callable[[Quart], object]) -> None:
    """Beside `asgi_app` and `url_rule_class`, which Quart documents for this, no callable of a class is covered."""
    made = get(make_app())

    covered = {name for name in vars(made) if callable(getattr(type(made), name, None))}

    assert covered <= {"asgi_app", "url_rule_class"}


async def test_argument_of_tenants_in_a_path_is_an_error_that_names_it(caplog: pytest.LogCaptureFixture) -> None:
    """A route of the domain itself with `<tenant>` in its path is a slip of the app, and no page that is not there."""
    app = make_app()
    tenants = app.extensions["quart_tenants"]
    app.add_url_rule("/customers/<tenant>", "customers", view, host=tenants.apex_host)

    answer = await app.test_client().get("/customers/acme", headers={"Host": "localhost"})

    assert answer.status_code == 500
    assert "the route has an argument 'tenant', which only TENANT_HOST may have" in caplog.text
