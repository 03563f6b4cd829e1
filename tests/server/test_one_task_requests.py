"""A request is served in the server's own task, with all that Quart promises."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from quart import Quart, Response, ResponseReturnValue, request
from quart.asgi import ASGIHTTPConnection

from quart_tenants import QuartTenants
from quart_tenants.server.one_task_requests import serve_requests
from quart_tenants.server.protocols.receiving import RequestReceive
from quart_tenants.web.context import find_request
from tests.support.databases import REFERENCE_FILES
from tests.support.patience import DEADLINE

pytestmark = pytest.mark.slow

GET: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "asgi": {},
    "method": "GET",
    "scheme": "http",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"acme.localhost")],
    "client": ("127.0.0.1", 1),
    "server": ("127.0.0.1", 2),
    "extensions": {},
}


class Connection:
    """What a server gives an app for one request."""

    def __init__(self, path: str, **scope: Any) -> None:
        self.scope = GET | {"path": path, "raw_path": path.encode()} | scope
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> Any:
        """Give the next event."""
        return await self.received.get()

    async def send(self, event: Any) -> None:
        """Take what the app sends; tell it about the end as Hypercorn does, and go on with work of one's own."""
        self.sent.append(event)
        if event["type"] == "http.response.body" and not event["more_body"]:
            self.received.put_nowait({"type": "http.disconnect"})
            for _ in range(5):
                await asyncio.sleep(0)
            self.sent.append({"type": "done"})

    def serve(self, app: Quart) -> "asyncio.Task[None]":
        """Let *app* answer in a task of its own."""
        return asyncio.create_task(app(self.scope, self.receive, self.send))  # type: ignore[arg-type]


class OwnConnection(Connection):
    """What our own server gives an app for a request without a body."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.own_receive = RequestReceive(10, has_body=False)

    async def send(self, event: Any) -> None:
        """Take what the app sends; say after the end that the client has gone, as our server does."""
        self.sent.append(event)
        if event["type"] == "http.response.body" and not event["more_body"]:
            await self.own_receive.put({"type": "http.disconnect"})

    def serve(self, app: Quart) -> "asyncio.Task[None]":
        """Let *app* answer in a task of its own."""
        return asyncio.create_task(app(self.scope, self.own_receive, self.send))  # type: ignore[arg-type]


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """An app that says what becomes of its handlers."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url, RESPONSE_TIMEOUT=0.2)
    tenants = QuartTenants(app)
    serve_requests(app)
    app.extensions.update(waiting=asyncio.Event(), ended=[])

    @app.get("/wait", host=tenants.host)
    async def wait() -> ResponseReturnValue:
        app.extensions["waiting"].set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            app.extensions["ended"].append("cancelled")
            raise
        return {}

    @app.route("/echo", methods=["GET", "POST"], host=tenants.host)
    async def echo() -> ResponseReturnValue:
        app.extensions["handled_in"] = asyncio.current_task()
        return {"body": await request.get_data(as_text=True), "same": find_request() is not None}

    async with app.test_app():
        yield app


async def test_request_is_handled_in_the_servers_task(app: Quart) -> None:
    """The task of the server runs the view, and is not disturbed after the answer."""
    connection = OwnConnection("/echo")
    serving = connection.serve(app)

    await serving

    start, *bodies = connection.sent
    assert start["status"] == 200
    assert [body["more_body"] for body in bodies[-1:]] == [False]
    assert app.extensions["handled_in"] is serving
    assert not serving.cancelling()


async def test_handler_ends_when_the_client_of_our_server_goes_away(app: Quart) -> None:
    """Our server tells it without a task of its own, and its task ends as if the handler had answered."""
    connection = OwnConnection("/wait")
    serving = connection.serve(app)
    await app.extensions["waiting"].wait()

    await connection.own_receive.put({"type": "http.disconnect"})
    await serving

    assert app.extensions["ended"] == ["cancelled"]
    assert connection.sent == []
    assert not serving.cancelling()


@pytest.mark.parametrize("connection_class", [None, ASGIHTTPConnection])
async def test_handler_ends_when_its_client_goes_away(
    app: Quart, connection_class: type[ASGIHTTPConnection] | None
) -> None:
    """It is cancelled, as by Quart itself, and the server's task ends as if it had answered."""
    if connection_class is not None:
        app.asgi_http_class = connection_class
    connection = Connection("/wait")
    serving = connection.serve(app)
    await app.extensions["waiting"].wait()

    connection.received.put_nowait({"type": "http.disconnect"})
    await serving

    assert app.extensions["ended"] == ["cancelled"]
    assert connection.sent == []
    assert not serving.cancelling()


async def test_server_can_end_a_request(app: Quart) -> None:
    """When the server cancels its task the handler ends, and the server hears of it."""
    connection = OwnConnection("/wait")
    serving = connection.serve(app)
    await app.extensions["waiting"].wait()

    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving

    assert app.extensions["ended"] == ["cancelled"]


async def test_body_is_read_meanwhile(app: Quart) -> None:
    """A view has its request's body, piece by piece as it comes, also one that was not announced, as in HTTP/2."""
    announced = Connection("/echo", method="POST", headers=[*GET["headers"], (b"content-length", b"4")])
    unannounced = Connection("/echo", method="POST", http_version="2")

    for connection in (announced, unannounced):
        serving = connection.serve(app)
        for piece, more in ((b"mo", True), (b"re", False)):
            connection.received.put_nowait({"type": "http.request", "body": piece, "more_body": more})
        await serving
        assert connection.sent[1]["body"] == b'{"body":"more","same":true}\n'


@pytest.mark.parametrize("connection_class", [None, ASGIHTTPConnection])
async def test_client_may_go_away_in_the_middle_of_its_body(
    app: Quart, connection_class: type[ASGIHTTPConnection] | None
) -> None:
    """A view that waits for the rest ends, and nobody is told of an error."""
    if connection_class is not None:
        app.asgi_http_class = connection_class
    connection = Connection("/echo", method="POST", headers=[*GET["headers"], (b"content-length", b"4")])
    connection.received.put_nowait({"type": "http.request", "body": b"mo", "more_body": True})
    connection.received.put_nowait({"type": "http.disconnect"})

    await connection.serve(app)

    assert connection.sent == []


async def test_client_that_takes_no_answer_is_given_up(app: Quart) -> None:
    """What cannot be sent within RESPONSE_TIMEOUT breaks off."""
    connection = Connection("/echo")
    connection.received.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    async def block(event: Any) -> None:
        connection.sent.append(event)
        if event["type"] == "http.response.body":
            await asyncio.Event().wait()

    connection.send = block  # type: ignore[method-assign]
    async with asyncio.timeout(DEADLINE):
        await connection.serve(app)

    assert [event["type"] for event in connection.sent] == ["http.response.start", "http.response.body"]


async def test_request_is_forgotten_with_its_end(app: Quart) -> None:
    """A server that serves one request after the other in one task carries nothing into the next."""
    connection = Connection("/echo")
    connection.received.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    await app(connection.scope, connection.receive, connection.send)  # type: ignore[arg-type]

    assert connection.sent[0]["status"] == 200
    assert find_request() is None


async def write_slowly(ended: list[str]) -> AsyncIterator[bytes]:
    """Send pieces without an end; take a moment to clean up."""
    try:
        while True:
            yield b"x"
            await asyncio.sleep(0.01)
    finally:
        await asyncio.sleep(0.2)
        ended.append("cleaned up")


@pytest.mark.parametrize("leaves_after", [0.1, 0.2, 0.3])
async def test_answer_that_is_late_and_whose_client_leaves_is_cleaned_up(app: Quart, leaves_after: float) -> None:
    """The limit of 0.2 s and the client's leaving are one end: what the answer does at its end is not cut off."""

    @app.get("/slow", host="<tenant_host:tenant>")
    async def slow() -> Response:
        return Response(write_slowly(app.extensions["ended"]))

    connection = OwnConnection("/slow")
    serving = connection.serve(app)
    await asyncio.sleep(leaves_after)
    await connection.own_receive.put({"type": "http.disconnect"})
    await asyncio.wait([serving])

    assert app.extensions["ended"] == ["cleaned up"]
    assert not serving.cancelled()
    assert serving.cancelling() == 0


async def test_answer_without_any_time_is_not_begun(app: Quart) -> None:
    """`RESPONSE_TIMEOUT` of zero sends nothing, as it does in Quart."""
    app.config["RESPONSE_TIMEOUT"] = 0
    connection = OwnConnection("/echo")

    await connection.serve(app)

    assert connection.sent == []


async def count_garbage(app: Quart) -> int:
    """Return how many objects ten requests leave that only the garbage collector can free."""
    for _ in range(3):
        await OwnConnection("/echo").serve(app)
    # What earlier tests have left may need several turns: what one frees lets go of more.
    while gc.collect():
        pass
    gc.disable()
    try:
        for _ in range(10):
            connection = OwnConnection("/echo")
            await connection.serve(app)
            assert connection.sent[0]["status"] == 200
        del connection
        return gc.collect()
    finally:
        gc.enable()


async def test_request_leaves_nothing_for_the_garbage_collector(app: Quart) -> None:
    """What a request has made goes with its end: a circle of objects would stay, and cost every later request time."""
    assert await count_garbage(app) < 10


async def test_circle_in_a_request_is_garbage(app: Quart) -> None:
    """Negative control: one circle in each request is seen."""

    @app.before_request
    async def make_circle() -> None:
        circle: list[Any] = []
        circle.append(circle)

    assert await count_garbage(app) >= 10
