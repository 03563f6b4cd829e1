"""A session is used where no app is the current one, as Quart's test client does from version 0.23 on."""

from collections.abc import AsyncIterator

import pytest
from quart import Quart, ResponseReturnValue, has_app_context, session

from quart_tenants import DatabaseUnavailableError, QuartTenants, get_session, start_session
from quart_tenants.errors import WrongTenantError
from quart_tenants.web.sessions.tenant_sessions import TenantSession
from tests.support.databases import REFERENCE_FILES

ACME = {"Host": "acme.localhost"}


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """An app with a login."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
        TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url, SECRET_KEY="a key of a decent length"
    )
    tenants = QuartTenants(app)

    @app.post("/login", host=tenants.host)
    async def login() -> ResponseReturnValue:
        await start_session("ann")
        return {}

    @app.get("/me", host=tenants.host)
    async def me() -> ResponseReturnValue:
        return {"user": get_session().user, "seen": session.get("seen")}

    @app.post("/leave", host=tenants.host)
    async def leave() -> ResponseReturnValue:
        session.clear()
        return {}, 200, {"X-Secret": "for somebody who has logged out"}

    async with app.test_app():
        yield app


async def open_session_outside(app: Quart, host: str, cookie: str) -> TenantSession:
    """Return the session of a request whose contexts are over."""
    async with app.test_request_context("/", headers={"Host": host, "Cookie": cookie}) as context:
        asked = context.request
    opened = await app.session_interface.open_session(app, asked)
    assert isinstance(opened, TenantSession)
    assert not has_app_context()
    return opened


async def log_in(app: Quart) -> str:
    """Return a cookie of acme's."""
    answer = await app.test_client().post("/login", headers=ACME)
    return answer.headers["Set-Cookie"].partition(";")[0]


async def test_session_needs_no_current_app(app: Quart) -> None:
    """It is read, changed, ended and refused by what it was made with."""
    cookie = await log_in(app)
    ours, foreign = [await open_session_outside(app, f"{slug}.localhost", cookie) for slug in ("acme", "globex")]

    ours["seen"] = True
    user = ours.user
    with pytest.raises(WrongTenantError):
        len(foreign)
    await ours.end()

    assert user == "ann"
    again = await open_session_outside(app, "acme.localhost", cookie)
    assert again.user is None


async def test_test_client_changes_a_session(app: Quart) -> None:
    """`session_transaction` opens the session that the client has, and saves what a test puts into it."""
    client = app.test_client()
    await client.post("/login", headers=ACME)

    async with client.session_transaction(headers=ACME) as opened:
        opened["seen"] = "in a test"

    answer = await client.get("/me", headers=ACME)
    assert await answer.get_json() == {"user": "ann", "seen": "in a test"}


async def test_logout_that_cannot_be_written_down_is_no_success(app: Quart, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer becomes the error's, nothing of the view's stays in it, and the visitor keeps the cookie."""
    cookie = await log_in(app)

    async def fail(_session: TenantSession) -> None:
        raise DatabaseUnavailableError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(TenantSession, "write_ends", fail)
        failed = await app.test_client().post("/leave", headers=ACME | {"Cookie": cookie})

    assert (failed.status_code, (await failed.get_json())["code"]) == (503, "database_unavailable")
    assert failed.headers["Retry-After"] == "2"
    assert not {"Set-Cookie", "X-Secret"} & set(failed.headers.keys())
    kept = await app.test_client().get("/me", headers=ACME | {"Cookie": cookie})
    assert await kept.get_json() == {"user": "ann", "seen": None}
