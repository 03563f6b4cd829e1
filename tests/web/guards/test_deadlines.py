"""A request ends in time, and a view that only reads begins anew when its connection was lost."""

import asyncio
import functools
from collections.abc import AsyncIterator

import asyncpg
import pytest
from quart import Quart, Response, ResponseReturnValue

from quart_tenants import QuartTenants, retry_reads, tenant_connection
from quart_tenants.web.answers.problems import answer_all_errors

ADD = "INSERT INTO company_data (description) VALUES ('a row')"
COUNT = "SELECT count(*) FROM company_data"


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """An app whose views count how often they begin."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
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

    @app.get("/wait", host=tenants.host)
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


async def test_request_without_the_limit_goes_on(app: Quart, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: dispatched by Quart itself, a request still waits when the limit ends a later one."""
    with monkeypatch.context() as patch:
        patch.setattr(app, "full_dispatch_request", functools.partial(Quart.full_dispatch_request, app))
        endless = asyncio.create_task(ask(app, "/wait"))
        await app.extensions["waiting"].wait()
    limited = await ask(app, "/wait")

    assert limited == (503, "request_timeout")
    assert not endless.done()
    app.extensions["released"].set()
    assert await endless == (200, None)


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
