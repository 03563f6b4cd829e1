"""Promise: whatever a clock does, a session opens nothing that it should not, and nobody is locked out by it.

Failed logins are in tests/postgres/sessions/, backups in tests/postgres/backup_folders/, the trash in
tests/postgres/tenants/.
"""

import time

import pytest

from quart_tenants import Tenant, end_user_sessions
from quart_tenants.admin import suspend_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.sessions import session_ends
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.settings import Settings
from quart_tenants.web.sessions.session_cookies import SessionCookies
from tests.isolation.test_session_ends import Worker, ask_who, enter, get_tenants, post, worker
from tests.support.clocks import DAY, HOUR, Clocks
from tests.support.feeds import let_news_be_old
from tests.support.processes import SECRET_KEY

__all__ = ["worker"]

pytestmark = pytest.mark.slow

YEAR = 365 * DAY


@pytest.fixture
def clocks(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """The clocks of the workers and of their database."""
    return Clocks(database_url, monkeypatch)


async def test_session_outlives_a_small_jump_and_not_a_large_one(worker: Worker, clocks: Clocks) -> None:
    """A clock that goes an hour forward or a minute back logs nobody out; a year forward ends every session."""
    app = await worker()
    cookie = await enter(app)
    seen = []

    for seconds in (HOUR, -HOUR, -30.0, YEAR):
        await clocks.jump(seconds)
        await get_tenants(app).registry.refresh()
        seen.append(await ask_who(app, cookie))

    assert seen == [(200, "ada")] * 3 + [(200, "nobody")]


async def test_session_from_a_wrong_future_does_not_last(worker: Worker, clocks: Clocks) -> None:
    """Whoever logs in while the clock is a year ahead has no session for a year; they log in again."""
    app = await worker()
    await clocks.jump(YEAR)
    cookie = await enter(app)
    assert await ask_who(app, cookie) == (200, "ada")

    await clocks.jump(-YEAR)
    later = await enter(app)

    assert await ask_who(app, cookie) == (200, "nobody")
    assert await ask_who(app, later) == (200, "ada")


async def test_lifetime_alone_would_keep_a_session_from_the_future(worker: Worker, clocks: Clocks) -> None:
    """Negative control: by its end alone, that session is good for a year longer than any other."""
    app = await worker()
    await clocks.jump(YEAR)
    signed = SessionCookies(SECRET_KEY).list_signed([(await enter(app)).partition("=")[2]])
    await clocks.jump(-YEAR)

    (session,) = signed
    assert session.ends_at > time.time() + YEAR


@pytest.mark.parametrize("deaf", [False, True], ids=["by the news", "by asking the database"])
async def test_end_from_a_wrong_future_locks_nobody_out(
    worker: Worker, clocks: Clocks, database: Database, acme: Tenant, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    """Whoever is logged out everywhere while the clock is ahead can log in again when it is right."""
    app = await worker()
    before = await enter(app)
    await clocks.jump(YEAR)
    await end_user_sessions(database, acme, "ada")
    await clocks.jump(-YEAR)
    await get_tenants(app).registry.refresh()

    after = await enter(app)
    if deaf:
        let_news_be_old(app, monkeypatch)

    assert await ask_who(app, before) == (200, "nobody")
    assert await ask_who(app, after) == (200, "ada")


async def log_out_a_year_before_the_database(worker: Worker, clocks: Clocks) -> str:
    """Return a cookie that was logged out, by workers whose clock is right, before that of the database went ahead."""
    clocks.jump_here(-YEAR)
    app = await worker()
    cookie = await enter(app)
    await post(app, "/leave", cookie)
    await clocks.let_rows_age(YEAR)
    return cookie


async def test_logout_is_not_forgotten_by_a_database_whose_clock_is_ahead(
    worker: Worker, clocks: Clocks, database: Database, settings: Settings
) -> None:
    """A cookie that was logged out opens nothing at a worker that starts then, also not after a purge."""
    cookie = await log_out_a_year_before_the_database(worker, clocks)

    seen = [await ask_who(await worker(), cookie)]
    await purge_trash(database, settings=settings)
    seen.append(await ask_who(await worker(), cookie))

    assert seen == [(200, "nobody")] * 2


async def test_purge_by_the_clock_of_the_database_alone_would_bring_a_session_back(
    worker: Worker, clocks: Clocks, database: Database
) -> None:
    """Negative control: what ends the session is deleted while its cookie is still good."""
    cookie = await log_out_a_year_before_the_database(worker, clocks)

    async with database.connection() as connection:
        await connection.execute("DELETE FROM quart_tenants.ended_sessions WHERE forget_at < now()")

    assert await ask_who(await worker(), cookie) == (200, "ada")


@pytest.mark.parametrize("is_naive", [False, True], ids=["two clocks", "the database's alone (negative control)"])
async def test_logout_under_a_database_whose_clock_is_behind_lasts(
    worker: Worker, clocks: Clocks, database: Database, monkeypatch: pytest.MonkeyPatch, is_naive: bool
) -> None:
    """What ends a session is kept as long as its cookie is good, once the clock of the database is right again."""
    if is_naive:
        naive = session_ends._END_SESSION.replace("greatest(now(), to_timestamp($5))", "least(now(), to_timestamp($5))")
        monkeypatch.setattr(session_ends, "_END_SESSION", naive)
    clocks.jump_here(YEAR)
    app = await worker()
    cookie = await enter(app)
    await post(app, "/leave", cookie)

    # A purge, now that both clocks are what that of the workers is.
    async with database.connection() as connection:
        await connection.execute(
            "DELETE FROM quart_tenants.ended_sessions WHERE forget_at < to_timestamp($1)", time.time()
        )

    assert await ask_who(await worker(), cookie) == (200, "ada" if is_naive else "nobody")


async def test_worker_whose_clock_jumps_forgets_no_logout(worker: Worker, clocks: Clocks) -> None:
    """A worker counts how long it remembers a logout by the clock that nobody sets."""
    app, other = await worker(), await worker()
    cookie = await enter(app)
    await post(app, "/leave", cookie)
    await get_tenants(other).registry.refresh()

    clocks.jump_here(2 * YEAR)
    for each in (app, other):
        await get_tenants(each).registry.refresh()
    clocks.jump_here(-2 * YEAR)

    assert [await ask_who(each, cookie) for each in (app, other)] == [(200, "nobody")] * 2


@pytest.mark.parametrize("seconds", [YEAR, -YEAR], ids=["forward", "back"])
async def test_news_reach_a_worker_whatever_the_clock_does(
    worker: Worker, clocks: Clocks, database: Database, acme: Tenant, settings: Settings, seconds: float
) -> None:
    """The feed goes by transactions: a jump hides no change, also where it makes old rows due for deletion."""
    app = await worker()
    await clocks.jump(seconds)
    await get_tenants(app).registry.refresh()
    await purge_trash(database, settings=settings)
    before = await ask_who(app, "")

    await suspend_tenant(database, acme.slug)
    await get_tenants(app).registry.refresh()

    status, _ = await ask_who(app, "")
    assert (before, status) == ((200, "nobody"), 400)
