"""What is wrong with an app's sessions is said at start, and not to its first visitor."""

import pytest
from quart import Quart, ResponseReturnValue
from quart.sessions import SecureCookieSessionInterface, SessionInterface

import quart_tenants
from quart_tenants import QuartTenants, current_tenant, get_session, login_required, start_session
from quart_tenants.errors import SettingError
from tests.support.databases import REFERENCE_FILES


class PlainSessions(SecureCookieSessionInterface):
    """Sessions that know nothing of tenants."""


class CheckedSessions(PlainSessions):
    """Sessions that make sure themselves whose they are."""

    checks_tenant = True


def make_app(database_url: str, sessions: SessionInterface | None = None) -> tuple[Quart, QuartTenants]:
    """Return an app without a secret key, with one view that needs no session."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url)
    if sessions is not None:
        app.session_interface = sessions  # type: ignore[assignment]
    tenants = QuartTenants(app)

    @app.get("/", host=tenants.host)
    async def index() -> ResponseReturnValue:
        return {"tenant": current_tenant.slug}

    return app, tenants


async def test_app_without_sessions_needs_no_key(database_url: str) -> None:
    """It starts and serves."""
    app, _ = make_app(database_url)

    async with app.test_app():
        answer = await app.test_client().get("/", headers={"Host": "acme.localhost"})
        assert await answer.get_json() == {"tenant": "acme"}


async def test_login_without_a_key_fails_at_start(database_url: str) -> None:
    """The first login would be a 500."""
    app, tenants = make_app(database_url)

    @app.post("/login", host=tenants.host)
    async def login() -> ResponseReturnValue:
        await start_session("ada")
        return {}

    with pytest.raises(SettingError, match="SECRET_KEY is not set"):
        await app.startup()


async def test_login_required_without_a_key_fails_at_start(database_url: str) -> None:
    """The decorator counts as the view's own use."""
    app, tenants = make_app(database_url)

    @app.get("/notes", host=tenants.host)
    @login_required
    async def notes() -> ResponseReturnValue:
        return {}

    with pytest.raises(SettingError, match="SECRET_KEY is not set"):
        await app.startup()


def find_user() -> str | None:
    """Return who is logged in."""
    return str(quart_tenants.get_session().user)


async def test_helper_that_names_the_module_needs_a_key_too(database_url: str) -> None:
    """A view that calls it is found, also where the call is in a function inside the view."""
    app, tenants = make_app(database_url)

    @app.get("/me", host=tenants.host)
    async def me() -> ResponseReturnValue:
        return {"users": [found for found in (find_user() for _ in range(1))]}  # noqa: C416

    with pytest.raises(SettingError, match="SECRET_KEY is not set"):
        await app.startup()


async def test_key_that_is_too_short_fails_at_start(database_url: str) -> None:
    """Nobody may guess it."""
    app, tenants = make_app(database_url)
    app.secret_key = "short"

    @app.get("/me", host=tenants.host)
    async def me() -> ResponseReturnValue:
        return {"user": get_session().user}

    with pytest.raises(SettingError, match="SECRET_KEY must be a text of at least 16"):
        await app.startup()


async def test_session_interface_that_knows_no_tenants_is_refused(database_url: str) -> None:
    """Its cookie of one tenant's user 7 would be another tenant's user 7: before the extension and after it."""
    with pytest.raises(SettingError, match="session_interface is PlainSessions, which knows no tenants"):
        make_app(database_url, PlainSessions())
    app, _ = make_app(database_url)
    app.session_interface = PlainSessions()

    with pytest.raises(SettingError, match="session_interface is PlainSessions"):
        await app.startup()


async def test_session_interface_that_checks_tenants_is_kept(database_url: str) -> None:
    """An app may bring its own, if it says that it makes sure."""
    sessions = CheckedSessions()
    app, _ = make_app(database_url, sessions)

    async with app.test_app():
        assert app.session_interface is sessions
