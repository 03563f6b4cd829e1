"""Promise: the Host header chooses among the tenants that exist, and nothing else."""

import pytest
from quart import Quart

from quart_tenants import QuartTenants
from quart_tenants.errors import SettingError


def test_server_name_is_refused() -> None:
    """With SERVER_NAME every host would be served as that one; the app does not start."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config["SERVER_NAME"] = "acme.localhost"

    with pytest.raises(SettingError, match="TENANTS_DOMAIN"):
        QuartTenants(app)


async def test_server_name_serves_strangers() -> None:
    """Negative control: Quart with SERVER_NAME and host matching serves evil.org as that tenant."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config["SERVER_NAME"] = "acme.localhost"

    @app.get("/", host="acme.localhost")
    async def index() -> str:
        return "acme's page"

    answer = await app.test_client().get("/", headers={"Host": "evil.org"})

    assert (answer.status_code, await answer.get_data(as_text=True)) == (200, "acme's page")


def test_shared_session_cookie_is_refused() -> None:
    """A cookie for the whole domain would be sent to every tenant; the app does not start."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config["SESSION_COOKIE_DOMAIN"] = "localhost"

    with pytest.raises(SettingError, match="SESSION_COOKIE_DOMAIN"):
        QuartTenants(app)


def test_app_without_host_matching_is_refused() -> None:
    """Without host matching the routes of one tenant would answer on every host."""
    with pytest.raises(SettingError, match="host_matching=True"):
        QuartTenants(Quart(__name__))
