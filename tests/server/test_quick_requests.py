"""What our server's requests find by one look is what Quart and Werkzeug find."""

import functools
import inspect
import threading
from typing import Any

import pytest
from quart import Quart
from quart.routing import QuartRule
from quart.wrappers import Request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import SecurityError

from quart_tenants.server.one_task_requests import QuickRequest, serve_requests


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
    serve_requests(app)

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

    serve_requests(app)

    assert app.request_class is before
    assert "ensure_async" not in vars(app)
