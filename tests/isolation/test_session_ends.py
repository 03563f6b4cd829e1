"""Promise: a session that was ended opens nothing, at any worker, whatever the workers have heard."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
from quart import Quart, session, websocket
from quart.sessions import SecureCookieSessionInterface

from quart_tenants import (
    QuartTenants,
    Tenant,
    TenantError,
    end_session,
    end_user_sessions,
    get_session,
    login_attempt,
    start_session,
)
from quart_tenants.admin import parse_slug, suspend_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.sessions.session_ends import end_user_sessions_in, prune_ended_sessions
from tests.support.databases import REFERENCE_FILES
from tests.support.feeds import RARE_NEWS, let_news_be_old, stop_feeds
from tests.support.patience import DEADLINE
from tests.support.processes import SECRET_KEY

pytestmark = pytest.mark.slow

Worker = Callable[..., Awaitable[Quart]]
ACME = "acme.localhost"


@asynccontextmanager
async def serve_worker(url: str, **settings: object) -> AsyncIterator[Quart]:
    """Serve an app in which anybody logs in by their name."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
        SECRET_KEY=SECRET_KEY,
        TENANTS_MIGRATIONS_DIR=REFERENCE_FILES,
        TENANTS_DATABASE_URL=url,
        **(RARE_NEWS | settings),
    )
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

    @app.post("/slow-note", host=tenants.host)
    async def slow_note() -> str:
        session["note"] = "mine"
        app.extensions["meanwhile"]()
        return "noted"

    @app.websocket("/talk", host=tenants.host)
    async def talk() -> None:
        while True:
            try:
                if await websocket.receive() == "clear":
                    session.clear()
                said = get_session().user or "nobody"
            except (RuntimeError, TenantError) as error:
                said = str(error)
            await websocket.send(said)

    async with app.test_app():
        stop_feeds()
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


async def test_worker_without_news_asks_the_database(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `TENANTS_SESSION_ASK_AFTER` without news no session is served that the database was not asked about."""
    here, deaf = await worker(), await worker()
    cookie, other = await enter(here), await enter(here)
    await post(here, "/leave", cookie)
    let_news_be_old(deaf, monkeypatch)

    assert await ask_who(deaf, cookie) == (200, "nobody")
    assert await ask_who(deaf, other) == (200, "ada")


async def test_worker_that_trusts_its_memory_serves_an_ended_session(worker: Worker) -> None:
    """Negative control: without that question, and without news, the dead session lives."""
    here, deaf = await worker(), await worker()
    cookie = await enter(here)
    await post(here, "/leave", cookie)

    assert await ask_who(deaf, cookie) == (200, "ada")


async def test_worker_that_can_ask_nobody_refuses(
    worker: Worker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without news and without an answer a session is 503; a page without one is served."""
    deaf = await worker(TENANTS_COMMAND_TIMEOUT=0.2)
    cookie = await enter(deaf)
    blocker = await asyncpg.connect(database_url)
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE quart_tenants.ended_sessions")
            let_news_be_old(deaf, monkeypatch)
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


async def test_session_costs_no_query(worker: Worker, direct_url: str) -> None:
    """On the usual path a session is checked in memory: hundreds of requests, not one transaction."""
    app = await worker()
    cookie = await enter(app)
    watcher = await asyncpg.connect(direct_url)
    try:
        backends = (
            "SELECT max(query_start) FROM pg_stat_activity "
            "WHERE application_name = 'quart_tenants' AND datname = current_database()"
        )
        before = await watcher.fetchval(backends)
        for _ in range(200):
            assert await ask_who(app, cookie) == (200, "ada")
        after = await watcher.fetchval(backends)
    finally:
        await watcher.close()

    assert after == before


@pytest.mark.parametrize(("user", "error"), [(7, TypeError), (None, TypeError), ("", ValueError)])
async def test_user_of_a_session_is_text(database: Database, acme: Tenant, user: Any, error: type[Exception]) -> None:
    """A number would make a session that nobody can end."""
    with pytest.raises(error, match="user"):
        await end_user_sessions(database, acme, user)


async def test_ends_are_written_down(worker: Worker, acme: Tenant, caplog: pytest.LogCaptureFixture) -> None:
    """The audit of every app has who has logged out, and whose sessions were ended; a new login is no logout."""
    caplog.set_level("INFO", "quart_tenants.audit")
    app = await worker()
    again = await enter(app, cookie=await enter(app))
    await post(app, "/leave", again)
    await end_user_sessions(get_tenants(app).database, acme, "ada")

    events = [record.getMessage().partition(" ")[0] for record in caplog.records if record.name.endswith(".audit")]
    assert events == ["logout", "sessions_ended"]


@pytest.mark.parametrize("lifetime", ["TENANTS_SESSION_LIFETIME", "TENANTS_SESSION_IDLE_LIFETIME"])
async def test_open_websocket_loses_a_session_that_is_too_old(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, lifetime: str
) -> None:
    """Both lifetimes are looked at in each use; a use is what keeps a session from being idle."""
    app = await worker(**{"TENANTS_SESSION_IDLE_LIFETIME": 1000, lifetime: 1000})
    cookie = await enter(app)
    began = time.time()
    said = []
    async with app.test_client(use_cookies=False).websocket("/talk", headers={"Host": ACME, "Cookie": cookie}) as talk:
        for later in (0, 900, 1800):
            monkeypatch.setattr(time, "time", lambda later=later: began + later)
            await talk.send("who am I?")
            said.append(await talk.receive())
        monkeypatch.undo()

    assert said == ["ada", "ada", "ada" if lifetime.endswith("IDLE_LIFETIME") else "nobody"]


async def test_open_websocket_of_a_suspended_tenant_has_no_session(worker: Worker) -> None:
    """A websocket is older than the suspension of its tenant, and ends with it."""
    app = await worker()
    cookie = await enter(app)
    async with app.test_client(use_cookies=False).websocket("/talk", headers={"Host": ACME, "Cookie": cookie}) as talk:
        await suspend_tenant(get_tenants(app).database, parse_slug("acme"))
        await get_tenants(app).registry.refresh()
        await talk.send("who am I?")
        said = await talk.receive()

    assert said == "no tenant answers at 'acme'"


async def test_clearing_where_no_answer_is_to_come_is_an_error(worker: Worker) -> None:
    """In a websocket `session.clear()` would end nothing until it is closed, or never: it says what does."""
    app = await worker()
    cookie = await enter(app)
    async with app.test_client(use_cookies=False).websocket("/talk", headers={"Host": ACME, "Cookie": cookie}) as talk:
        await talk.send("clear")
        said = await talk.receive()

    assert "end_session()" in said


async def test_answer_is_saved_without_asking_again(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """News that become too old while a view works do not take its answer away."""
    app = await worker()
    cookie = await enter(app)
    app.extensions["meanwhile"] = lambda: let_news_be_old(app, monkeypatch)

    answer = await post(app, "/slow-note", cookie)

    assert answer.status_code == 200
    assert "Set-Cookie" in answer.headers


async def test_late_answer_leaves_the_cookie_of_a_new_login(worker: Worker) -> None:
    """What an old tab still asks with its dead cookie neither deletes nor replaces the new one."""
    app = await worker()
    old = await enter(app)
    await enter(app, cookie=old)

    for path in ("/who", "/note"):
        answer = await app.test_client(use_cookies=False).get(path, headers={"Host": ACME, "Cookie": old})
        assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/leave", "/clear", "/enter/bob"])
async def test_planted_second_cookie_keeps_no_session_alive(worker: Worker, path: str) -> None:
    """Of two sessions none counts, and a logout or a login ends both."""
    app = await worker()
    real, planted = await enter(app), await enter(app, "mallory")

    await post(app, path, f"{planted}; {real}")

    assert [await ask_who(app, cookie) for cookie in (real, planted)] == [(200, "nobody")] * 2


async def test_end_of_all_sessions_outlives_a_restored_database(
    worker: Worker, database: Database, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions from before the restore know of generations that are still to come: the time ends them."""
    app = await worker()
    for _ in range(3):
        await end_user_sessions(database, acme, "bob")
    with monkeypatch.context() as an_hour_ago:
        now = time.time()
        an_hour_ago.setattr(time, "time", lambda: now - 3600)
        cookie = await enter(app)
    async with database.connection() as connection:
        await connection.execute("TRUNCATE quart_tenants.ended_sessions RESTART IDENTITY")

    await end_user_sessions(database, acme, "ada")
    here, deaf = await worker(), await worker()
    let_news_be_old(deaf, monkeypatch)

    assert await ask_who(here, cookie) == await ask_who(deaf, cookie) == (200, "nobody")


async def test_pruning_waits_for_nobody(database: Database, acme: Tenant) -> None:
    """Two that end sessions and tidy up at once do not wait for each other's rows."""
    async with database.connection() as connection:
        for user in ("ada", "bob"):
            await end_user_sessions_in(connection, acme.id, user)
        await connection.execute("UPDATE quart_tenants.ended_sessions SET forget_at = now() - interval '1 day'")

    async with database.connection() as one, database.connection() as other:
        await one.execute("UPDATE quart_tenants.ended_sessions SET generation = DEFAULT WHERE username = 'ada'")
        await other.execute("UPDATE quart_tenants.ended_sessions SET generation = DEFAULT WHERE username = 'bob'")
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(prune_ended_sessions(one), prune_ended_sessions(other))


async def test_app_that_is_served_again_lets_many_log_in(database_url: str) -> None:
    """What logins wait for belongs to the event loop that serves, and not to the app."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(SECRET_KEY=SECRET_KEY, TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url)
    tenants = QuartTenants(app)

    @app.post("/enter", host=tenants.host)
    async def enter() -> str:
        async with login_attempt("ada") as attempt:
            await attempt.succeed("ada")
        return "entered"

    async def serve() -> list[int]:
        async with app.test_app():
            client = app.test_client(use_cookies=False)
            answers = await asyncio.gather(*(client.post("/enter", headers={"Host": ACME}) for _ in range(12)))
        return [answer.status_code for answer in answers]

    statuses = [await asyncio.to_thread(asyncio.run, serve()) for _ in range(2)]

    assert statuses == [[200] * 12] * 2
