"""A request in the server's own task leaves an app's middlewares, and its neighbours, what Quart leaves them."""

import asyncio
import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from quart import Quart, request

from quart_tenants.server.one_task_requests import serve_requests
from tests.server.protocols.serving import GET, send, serving

POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 4\r\n\r\nmore"
LAST = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

set_by_view: ContextVar[str] = ContextVar("set_by_view", default="nothing")


class TooLargeError(Exception):
    """A body is longer than the middleware lets in."""


def make_app(middleware: Callable[[Any], Any], *, ours: bool = True) -> Quart:
    """Return an app behind *middleware* that answers with its request's body, and sets a context variable."""
    app = Quart(__name__, static_folder=None)
    if ours:
        serve_requests(app)

    @app.route("/", methods=["GET", "POST"])
    async def echo() -> str:
        before = set_by_view.get()
        set_by_view.set("something")
        body = str(await request.get_data(as_text=True))
        return f"{before} {body}"

    app.asgi_app = middleware(app.asgi_app)  # type: ignore[method-assign]
    return app


def limit_body(app: Any) -> Any:
    """Return a middleware that raises out of `receive`, as published limits of bodies do."""

    async def limited(scope: Any, receive: Any, send: Any) -> None:
        async def receive_little() -> Any:
            message = await receive()
            if len(message.get("body", b"")) > 1:
                raise TooLargeError
            return message

        try:
            await app(scope, receive_little, send)
        except* TooLargeError:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

    return limited


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "Quart's"])
async def test_error_of_a_middleware_that_receives_ends_the_request(ours: bool) -> None:
    """The middleware hears of its own error at once, and answers in place of the handler that waits for the body."""
    async with serving(make_app(limit_body, ours=ours)) as served, asyncio.timeout(30):
        answer = await send(served.port, POST)

    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_variable_that_a_view_sets_ends_with_its_request() -> None:
    """Neither a middleware nor the next request of the same connection sees it."""
    seen: list[str] = []

    def look(app: Any) -> Any:
        async def looking(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)
            if scope["type"] == "http":
                seen.append(set_by_view.get())

        return looking

    async with serving(make_app(look)) as served:
        answers = await send(served.port, GET, LAST)

    assert answers.count(b"nothing ") == 2
    assert seen == ["nothing", "nothing"]


async def test_request_that_a_middleware_makes_of_another_has_its_body() -> None:
    """A copied scope with a `receive` of its own is a request of its own, whatever the server knows of the first."""
    answered: list[bytes] = []

    def add_post(app: Any) -> Any:
        async def adding(scope: Any, receive: Any, send: Any) -> None:
            async def receive_more() -> Any:
                if not asked:
                    asked.append(True)
                    return {"type": "http.request", "body": b"more", "more_body": False}
                return await asyncio.Event().wait()

            async def take(message: Any) -> None:
                answered.append(message.get("body", b""))

            asked: list[bool] = []
            if scope["type"] == "http":
                await app({**scope, "method": "POST"}, receive_more, take)
            await app(scope, receive, send)

        return adding

    async with serving(make_app(add_post)) as served, asyncio.timeout(30):
        await send(served.port, LAST)

    assert b"".join(answered) == b"nothing more"


async def test_scope_holds_nothing_of_ours() -> None:
    """Its extensions are those that the server offers to every app, and can be written as JSON."""
    scopes: list[Any] = []

    def keep(app: Any) -> Any:
        async def keeping(scope: Any, receive: Any, send: Any) -> None:
            scopes.append(scope)
            await app(scope, receive, send)

        return keeping

    async with serving(make_app(keep)) as served:
        await send(served.port, LAST)

    (asked,) = (scope for scope in scopes if scope["type"] == "http")
    assert json.loads(json.dumps(asked["extensions"])) == {}


async def test_app_can_serve_by_a_class_of_its_own() -> None:
    """The server leaves an app alone that has its own class for requests."""
    app = Quart(__name__, static_folder=None)
    app.asgi_http_class = kept = type("Own", (app.asgi_http_class,), {})

    serve_requests(app)

    assert app.asgi_http_class is kept
