"""A console on a database of the test's own, by itself and as a part of an app."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from quart import Quart
from quart.typing import TestClientProtocol as Browser

from quart_tenants import QuartTenants, get_session, start_session
from quart_tenants.console import make_blueprint
from quart_tenants.console.door import Door
from quart_tenants.console.own_program import make_console, make_console_app
from quart_tenants.settings import Settings
from tests.support.databases import REFERENCE_FILES
from tests.support.processes import SECRET_KEY


class OwnConsole:
    """A console by itself, as `quart-tenants console` makes it, and the addresses that it has told."""

    def __init__(self, settings: Settings) -> None:
        self.told: list[str] = []
        self.console = make_console(settings, None, None)
        self.app = make_console_app(self.console, Door("ann", self.told.append))

    def client(self) -> Browser:
        """Return a browser that has no cookie yet."""
        return self.app.test_client()

    async def open(self) -> Browser:
        """Return a browser that has opened the newest address."""
        client = self.client()
        assert (await client.get(self.told[-1])).status_code == 200
        return client


@pytest.fixture
async def own(settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[OwnConsole]:
    """A console by itself, which serves."""
    # For the commands that it starts.
    monkeypatch.setenv("QUART_TENANTS_DATABASE_URL", database_url)
    own = OwnConsole(settings)
    await own.console.open()
    async with own.app.test_app():
        yield own
    await own.console.close()


@pytest.fixture
async def client(own: OwnConsole) -> Browser:
    """A browser in which that console is open."""
    return await own.open()


def make_app(database_url: str, is_operator: Callable[[], Awaitable[str | None]]) -> Quart:
    """Return an app in which everybody may log in by any name, at a tenant's host and at the apex, with the console."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config |= {
        "SECRET_KEY": SECRET_KEY,
        "TENANTS_DATABASE_URL": database_url,
        "TENANTS_MIGRATIONS_DIR": REFERENCE_FILES,
        "TENANTS_ACQUIRE_TIMEOUT": 60,
        "TENANTS_CONNECT_TIMEOUT": 60,
    }
    tenants = QuartTenants(app)

    @app.post("/login/<user>", host=tenants.apex_host)
    @app.post("/login/<user>", host=tenants.host)
    async def log_in(user: str) -> str:
        await start_session(user)
        return user

    app.register_blueprint(make_blueprint(tenants, is_operator=is_operator))
    return app


async def find_operator() -> str | None:
    """Return the user's name if that is ann or bob."""
    user = get_session().user
    return user if user in ("ann", "bob") else None


@pytest.fixture
async def mounted(database_url: str) -> AsyncIterator[Quart]:
    """An app whose users ann and bob are operators when they are logged in at the apex, with the console in it."""
    app = make_app(database_url, find_operator)
    async with app.test_app():
        yield app
