"""Promise: a session that was ended opens nothing, at any worker, whatever the workers have heard."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
from quart import Quart, session, websocket
from quart.sessions import SecureCookieSessionInterface

from quart_tenants import QuartTenants, Tenant, end_session, end_user_sessions, get_session, start_session
from quart_tenants.postgres.database import Database
from quart_tenants.postgres.session_ends import end_user_sessions_in
from tests.processes import SECRET_KEY

Worker = Callable[..., Awaitable[Quart]]
ACME = "acme.localhost"
# The feed is read at the start, and then by the tests themselves.
NO_FEED = {"TENANTS_REGISTRY_POLL_INTERVAL": 60, "TENANTS_REGISTRY_MAX_AGE": 3600, "TENANTS_SESSION_ASK_AFTER": 60}


@asynccontextmanager
async def serve_worker(url: str, **settings: object) -> AsyncIterator[Quart]:
    """Serve an app in which anybody logs in by their name."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(SECRET_KEY=SECRET_KEY, TENANTS_DATABASE_URL=url, **(NO_FEED | settings))
    tenants = QuartTenants(app)

    @app.post("/enter/<user>", host=tenants.host)
    async def enter(user: str) -> str:
        await start_session(user)
        return "entered"

    @app.post("/leave", host=tenants.host)
    async def leave() -> str:
        await end_session()
        return "left"

    @app.post("/clear", host=tenants.host)
    async def clear() -> str:
        session.clear()
        return "cleared"

    @app.post("/note", host=tenants.host)
    async def note() -> str:
        session["note"] = "mine"
        return "noted"

    @app.get("/who", host=tenants.host)
    async def who() -> str:
        return get_session().user or "nobody"

    @app.get("/note", host=tenants.host)
    async def read_note() -> str:
        return str(session.get("note", "nothing"))

    @app.get("/file", host=tenants.host)
    async def file() -> str:
        return "for everybody"

    @app.websocket("/talk", host=tenants.host)
    async def talk() -> None:
        while True:
            await websocket.receive()
            await websocket.send(get_session().user or "nobody")

    async with app.test_app():
        yield app


@pytest.fixture
async def worker(database_url: str) -> AsyncIterator[Worker]:
    """Start a worker with some settings."""
    async with AsyncExitStack() as stack:

        async def start(**settings: object) -> Quart:
            return await stack.enter_async_context(serve_worker(database_url, **settings))

        yield start


async def post(app: Quart, path: str, cookie: str = "") -> Any:
    """Return the answer to a POST at acme."""
    return await app.test_client(use_cookies=False).post(path, headers={"Host": ACME, "Cookie": cookie})


async def enter(app: Quart, user: str = "ada", cookie: str = "") -> str:
    """Log *user* in, and return the cookie."""
    answer = await post(app, f"/enter/{user}", cookie)
    return str(answer.headers["Set-Cookie"].partition(";")[0])


async def ask_who(app: Quart, cookie: str, path: str = "/who") -> tuple[int, str]:
    """Return the status and the text that acme answers to *cookie*."""
    answer = await app.test_client(use_cookies=False).get(path, headers={"Host": ACME, "Cookie": cookie})
    return answer.status_code, await answer.get_data(as_text=True)


def get_tenants(app: Quart) -> QuartTenants:
    """Return the extension of *app*."""
    extension: QuartTenants = app.extensions["quart_tenants"]
    return extension


async def wait_for_silence(app: Quart) -> None:
    """Return when the worker has had no news for longer than it may trust its memory."""
    tenants = get_tenants(app)
    while tenants.registry.get_age() <= tenants.settings.session_ask_after:
        async with tenants.database.connection():
            pass


async def test_logout_reaches_every_worker_with_the_news(worker: Worker) -> None:
    """The worker that ends a session knows it at once, the others when they read the feed, a new one from its start."""
    here, there = await worker(), await worker()
    cookie, other = await enter(here), await enter(here)
    assert await ask_who(there, cookie) == (200, "ada")

    await post(here, "/leave", cookie)
    assert await ask_who(here, cookie) == (200, "nobody")

    await get_tenants(there).registry.refresh()
    for app in (there, await worker()):
        assert await ask_who(app, cookie) == (200, "nobody")
        assert await ask_who(app, other) == (200, "ada")


async def test_plain_session_lives_on_after_a_logout(database_url: str) -> None:
    """Negative control: Quart's own session only asks the browser to forget the cookie."""
    async with serve_worker(database_url) as app:
        app.session_interface = SecureCookieSessionInterface()
        cookie = (await post(app, "/note")).headers["Set-Cookie"].partition(";")[0]
        await post(app, "/clear", cookie)

        assert await ask_who(app, cookie, "/note") == (200, "mine")


async def test_worker_without_news_asks_the_database(worker: Worker) -> None:
    """After `TENANTS_SESSION_ASK_AFTER` without news no session is served that the database was not asked about."""
    here, deaf = await worker(), await worker(TENANTS_SESSION_ASK_AFTER=0.05)
    cookie, other = await enter(here), await enter(here)
    await post(here, "/leave", cookie)
    await wait_for_silence(deaf)

    assert await ask_who(deaf, cookie) == (200, "nobody")
    assert await ask_who(deaf, other) == (200, "ada")


async def test_worker_that_trusts_its_memory_serves_an_ended_session(worker: Worker) -> None:
    """Negative control: without that question, and without news, the dead session lives."""
    here, deaf = await worker(), await worker()
    cookie = await enter(here)
    await post(here, "/leave", cookie)

    assert await ask_who(deaf, cookie) == (200, "ada")


async def test_worker_that_can_ask_nobody_refuses(worker: Worker, database_url: str) -> None:
    """Without news and without an answer a session is 503; a page without one is served."""
    deaf = await worker(TENANTS_SESSION_ASK_AFTER=0.05, TENANTS_COMMAND_TIMEOUT=0.2)
    cookie = await enter(deaf)
    blocker = await asyncpg.connect(database_url)
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE quart_tenants.ended_sessions")
            await wait_for_silence(deaf)
            status, text = await ask_who(deaf, cookie)
            served = await ask_who(deaf, cookie, "/file")
    finally:
        await blocker.close()

    assert status == 503
    assert "session_unchecked" in text
    assert served == (200, "for everybody")
    assert await ask_who(deaf, cookie) == (200, "ada")


async def test_user_is_logged_out_everywhere(worker: Worker, acme: Tenant, globex: Tenant) -> None:
    """All sessions of one user at one tenant end; those of others, and those that begin afterwards, do not."""
    here, there = await worker(), await worker()
    first, second, other = await enter(here), await enter(there), await enter(here, "bob")

    await end_user_sessions(get_tenants(here).database, globex, "ada")
    await end_user_sessions(get_tenants(here).database, acme, "ada")
    later = await enter(here)
    for app in (here, there):
        await get_tenants(app).registry.refresh()

        assert [await ask_who(app, cookie) for cookie in (first, second)] == [(200, "nobody")] * 2
        assert await ask_who(app, other) == (200, "bob")
        assert await ask_who(app, later) == (200, "ada")

    await end_user_sessions(get_tenants(here).database, acme, "ada")
    await get_tenants(there).registry.refresh()
    assert await ask_who(there, later) == (200, "nobody")


async def test_login_that_was_under_way_is_ended_too(worker: Worker, database: Database, acme: Tenant) -> None:
    """A login that began before all sessions of its user ended may have read the old password: it is dead at once."""
    app = await worker()
    async with database.connection() as connection:
        await end_user_sessions_in(connection, acme.id, "ada")
        # Not committed yet, so this login knows nothing of it.
        cookie = await enter(app)
    await get_tenants(app).registry.refresh()

    assert await ask_who(app, cookie) == (200, "nobody")


async def test_login_begins_a_new_session_and_ends_the_old_one(worker: Worker) -> None:
    """Nobody can plant a session that its victim then logs in to, and what was in it is gone."""
    app = await worker()
    planted = (await post(app, "/note")).headers["Set-Cookie"].partition(";")[0]

    cookie = await enter(app, cookie=planted)
    again = await enter(app, cookie=cookie)

    assert await ask_who(app, planted, "/note") == (200, "nothing")
    assert await ask_who(app, cookie) == (200, "nobody")
    assert await ask_who(app, again) == (200, "ada")


async def test_cleared_session_ends_with_the_answer(worker: Worker) -> None:
    """`session.clear()` is a logout, too: the cookie is worth nothing afterwards."""
    here, there = await worker(), await worker()
    cookie = await enter(here)

    answer = await post(here, "/clear", cookie)
    await get_tenants(there).registry.refresh()

    assert answer.status_code == 200
    assert await ask_who(here, cookie) == await ask_who(there, cookie) == (200, "nobody")


@pytest.mark.parametrize("path", ["/leave", "/clear"])
async def test_logout_that_cannot_be_written_down_is_no_logout(worker: Worker, database_url: str, path: str) -> None:
    """While the database cannot be told, a logout answers 503, deletes no cookie, and the session lives."""
    app = await worker(TENANTS_COMMAND_TIMEOUT=0.2)
    cookie = await enter(app)
    blocker = await asyncpg.connect(database_url)
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE quart_tenants.ended_sessions")
            answer = await post(app, path, cookie)
    finally:
        await blocker.close()

    assert answer.status_code == 503
    assert "Set-Cookie" not in answer.headers
    assert await ask_who(app, cookie) == (200, "ada")


async def test_open_websocket_loses_its_session(worker: Worker) -> None:
    """Each use of the session asks anew, also in a websocket that was opened long before."""
    app = await worker()
    cookie = await enter(app)
    async with app.test_client(use_cookies=False).websocket("/talk", headers={"Host": ACME, "Cookie": cookie}) as talk:
        await talk.send("who am I?")
        before = await talk.receive()

        await post(app, "/leave", cookie)
        await talk.send("and now?")
        after = await talk.receive()

    assert (before, after) == ("ada", "nobody")


async def test_session_costs_no_query(worker: Worker, database_url: str) -> None:
    """On the usual path a session is checked in memory: hundreds of requests, not one transaction."""
    app = await worker()
    cookie = await enter(app)
    watcher = await asyncpg.connect(database_url)
    try:
        backends = "SELECT max(query_start) FROM pg_stat_activity WHERE application_name = 'quart_tenants'"
        before = await watcher.fetchval(backends)
        for _ in range(200):
            assert await ask_who(app, cookie) == (200, "ada")
        after = await watcher.fetchval(backends)
    finally:
        await watcher.close()

    assert after == before
