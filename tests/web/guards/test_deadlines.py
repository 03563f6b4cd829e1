"""A request ends in time, and a view that only reads begins anew when its connection was lost."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from quart import Quart, Response, ResponseReturnValue

from quart_tenants import QuartTenants, retry_reads, tenant_connection
from quart_tenants.web.answers.problems import answer_all_errors
from quart_tenants.web.guards.deadlines import RequestDeadlines
from tests.support.databases import REFERENCE_FILES

pytestmark = pytest.mark.slow

ADD = "INSERT INTO company_data (description) VALUES ('a row')"
COUNT = "SELECT count(*) FROM company_data"


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """An app whose views count how often they begin."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
        TENANTS_MIGRATIONS_DIR=REFERENCE_FILES,
        TENANTS_DATABASE_URL=database_url,
        TENANTS_REQUEST_TIMEOUT=0.3,
        TENANTS_POOL_MAX_SIZE=1,
        TENANTS_ACQUIRE_TIMEOUT=0.1,
    )
    tenants = QuartTenants(app)
    answer_all_errors(app)
    app.extensions.update(begun=0, waiting=asyncio.Event(), released=asyncio.Event())

    async def lose_connection(times: int) -> ResponseReturnValue:
        app.extensions["begun"] += 1
        async with tenant_connection() as connection:
            if app.extensions["begun"] <= times:
                await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            return {"rows": await connection.fetchval(COUNT)}

    @app.get("/read/<int:times>", host=tenants.host)
    @retry_reads
    async def read(times: int) -> ResponseReturnValue:
        return await lose_connection(times)

    @app.get("/plain/<int:times>", host=tenants.host)
    async def plain(times: int) -> ResponseReturnValue:
        return await lose_connection(times)

    @app.get("/exhausted", host=tenants.host)
    @retry_reads
    async def exhaust() -> ResponseReturnValue:
        app.extensions["begun"] += 1
        async with tenant_connection(), tenant_connection():
            return {}

    @app.get("/write", host=tenants.host)
    @retry_reads
    async def write() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            await connection.execute(ADD)
        return {}

    @app.post("/slow", host=tenants.host)
    async def wait() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            await connection.execute(ADD)
            async with connection.transaction():
                await connection.execute("SELECT pg_sleep(60)")
        return {}

    @app.route("/wait", methods=["GET", "POST"], host=tenants.host)
    async def wait_for_release() -> ResponseReturnValue:
        app.extensions["waiting"].set()
        await app.extensions["released"].wait()
        return {}

    @app.get("/stream", host=tenants.host)
    async def stream() -> Response:
        async def dawdle() -> AsyncIterator[str]:
            yield "begun, "
            # Longer than the time for a request.
            await asyncio.sleep(0.4)
            yield "ended"

        return Response(dawdle())

    async with app.test_app():
        yield app


async def ask(app: Quart, path: str, method: str = "GET") -> tuple[int, str | None]:
    """Return the status of an answer, and its code if it is a problem."""
    client = app.test_client()
    answer = await (client.post if method == "POST" else client.get)(path, headers={"Host": "acme.localhost"})
    return answer.status_code, ((await answer.get_json(force=True)) or {}).get("code")


async def test_request_ends_in_time_and_its_block_rolls_back(app: Quart, database_url: str) -> None:
    """What takes too long is cancelled and answered 503; the only connection serves the next request."""
    slow = await ask(app, "/slow", "POST")
    read = await ask(app, "/read/0")

    assert slow == (503, "request_timeout")
    assert read == (200, None)
    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT count(*) FROM acme.company_data") == 0
    await connection.close()


async def pass_on(limit: RequestDeadlines, *event_ways: Any) -> None:
    """Serve a request without any limit."""
    await limit._app(*event_ways)


async def test_request_without_the_limit_goes_on(app: Quart, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the middleware a request still waits when the limit ends a later one."""
    with monkeypatch.context() as patch:
        patch.setattr(RequestDeadlines, "__call__", pass_on)
        endless = asyncio.create_task(ask(app, "/wait"))
        await app.extensions["waiting"].wait()
    limited = await ask(app, "/wait")

    assert limited == (503, "request_timeout")
    assert not endless.done()
    app.extensions["released"].set()
    assert await endless == (200, None)


async def test_late_answer_to_a_browser_is_a_page(app: Quart) -> None:
    """The same status and the same headers, in words; a program gets the problem document."""
    accepted = ("text/html,*/*;q=0.8", "*/*")
    page, problem = [
        await app.test_client().get("/wait", headers={"Host": "acme.localhost", "Accept": accept})
        for accept in accepted
    ]

    assert (page.status_code, page.mimetype) == (503, "text/html")
    assert "<p>The request took too long and was cancelled; try again shortly.</p>" in await page.get_data(as_text=True)
    assert (problem.status_code, problem.mimetype) == (503, "application/problem+json")
    for name in ("Vary", "Retry-After"):
        assert page.headers[name] == problem.headers[name]


async def test_late_answer_and_its_line_in_the_log_have_one_id(app: Quart, caplog: pytest.LogCaptureFixture) -> None:
    """The answer has the headers of every answer, and its id leads to the line that says what took too long."""
    answer = await app.test_client().get("/wait", headers={"Host": "acme.localhost"})

    assert answer.headers["Retry-After"] == "2"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert f"request {answer.headers['X-Request-Id']}, GET /wait: request_timeout" in caplog.text


async def test_body_that_nobody_reads_does_not_keep_a_request(app: Quart) -> None:
    """A handler ends in time as well when its client is still sending."""
    async with app.test_client().request("/wait", method="POST", headers={"Host": "acme.localhost"}) as connection:
        await connection.send(b"more and more")
    answer = await connection.as_response()

    assert (answer.status_code, (await answer.get_json())["code"]) == (503, "request_timeout")


SCOPE: Any = {"type": "http", "method": "GET", "path": "/", "headers": []}


class OwnReceive:
    """What our own server gives an app to receive by."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def __call__(self) -> Any:
        """Wait until the client goes away."""
        await self.gone.wait()
        return {"type": "http.disconnect"}

    def disconnect(self) -> None:
        """Let the app believe that the client has gone away."""
        self.gone.set()


async def receive_nothing() -> Any:
    """Wait for ever, as any other server lets an app do."""
    await asyncio.Event().wait()


async def wait_for_the_client(_scope: Any, receive: Any, _send: Any) -> None:
    """End when the client goes away."""
    assert await receive() == {"type": "http.disconnect"}


@pytest.mark.parametrize("own", [False, True])
async def test_late_handler_is_told_that_its_client_has_gone(own: bool) -> None:
    """That is what every ASGI app understands, under our own server and under others."""
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    await RequestDeadlines(wait_for_the_client, 0.05)(SCOPE | {}, OwnReceive() if own else receive_nothing, send)

    start, body = sent
    assert (start["status"], json.loads(body["body"])["code"]) == (503, "request_timeout")


async def test_receive_of_our_own_server_is_passed_on_as_it_is() -> None:
    """The server knows its own object again, and then needs no task that receives."""
    receive, seen = OwnReceive(), []

    async def look(_scope: Any, receive: Any, _send: Any) -> None:
        seen.append(receive)

    await RequestDeadlines(look, 5)(SCOPE | {}, receive, receive_nothing)  # type: ignore[arg-type]

    assert seen == [receive]


@pytest.mark.parametrize("receive_class", [OwnReceive, object])
async def test_time_out_of_somebody_else_is_not_taken_for_ours(receive_class: type) -> None:
    """What a middleware or a handler raises goes its way, a TimeoutError of its own included."""

    async def fail(_scope: Any, _receive: Any, _send: Any) -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await RequestDeadlines(fail, 5)(SCOPE | {}, receive_class(), receive_nothing)  # type: ignore[arg-type]


async def test_answer_that_has_begun_is_not_cut_off(app: Quart) -> None:
    """A body may take longer than the time for a request."""
    answer = await app.test_client().get("/stream", headers={"Host": "acme.localhost"})

    assert await answer.get_data() == b"begun, ended"


async def test_reading_view_begins_anew_once(app: Quart) -> None:
    """A lost connection is nobody's business when the view only reads: once, and not for ever."""
    assert await ask(app, "/read/1") == (200, None)
    assert app.extensions["begun"] == 2

    app.extensions["begun"] = 0
    assert await ask(app, "/read/2") == (503, "database_unavailable")
    assert app.extensions["begun"] == 2


async def test_other_views_and_other_errors_are_not_retried(app: Quart) -> None:
    """Negative control: without the decorator the same loss is 503; with it an exhausted pool still is, at once."""
    assert await ask(app, "/plain/1") == (503, "database_unavailable")
    assert app.extensions["begun"] == 1

    app.extensions["begun"] = 0
    assert await ask(app, "/exhausted") == (503, "pool_exhausted")
    assert app.extensions["begun"] == 1


async def test_retried_view_cannot_write(app: Quart, database_url: str) -> None:
    """PostgreSQL itself refuses a write in a view that may run twice."""
    assert (await ask(app, "/write"))[0] == 500

    connection = await asyncpg.connect(database_url)
    assert await connection.fetchval("SELECT count(*) FROM acme.company_data") == 0
    await connection.close()
