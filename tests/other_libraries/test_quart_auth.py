"""Quart-Auth: a user of one tenant is nobody at another's."""

from typing import Any

import pytest
from quart import Quart, ResponseReturnValue, request
from quart_auth import AuthUser, QuartAuth, current_user, login_user

from quart_tenants import QuartTenants, find_tenant
from quart_tenants.errors import SettingError
from tests.other_libraries.support import make_app


class TenantAuth(QuartAuth):
    """Cookies and tokens that name their tenant: user 7 of one tenant is nobody at another's."""

    def dump_token(self, auth_id: str, app: Quart | None = None) -> str:
        """Sign *auth_id* together with the tenant."""
        return super().dump_token(f"{name_place()}/{auth_id}", app)

    def load_token(self, token: str, app: Quart | None = None) -> str | None:
        """Return the user, if *token* was signed at this tenant."""
        place, _, auth_id = (super().load_token(token, app) or "").partition("/")
        return auth_id if place == name_place() else None


def name_place() -> str:
    """Return the number of the tenant, or a dash on the domain itself."""
    tenant = find_tenant()
    return "-" if tenant is None else str(tenant.id)


def add_pages(app: Quart, tenants: QuartTenants) -> None:
    """Let user 7 log in, and say who is here."""

    @app.post("/sign-in", host=tenants.any_host)
    async def sign_in() -> ResponseReturnValue:
        login_user(AuthUser("7"))
        return "", 204

    @app.get("/who", host=tenants.any_host)
    async def who() -> ResponseReturnValue:
        return {"user": current_user.auth_id}


async def find_users(app: Quart) -> dict[str, str | None]:
    """Return whom acme's cookie of user 7 names at each host."""
    async with app.test_app():
        client = app.test_client(use_cookies=False)
        answer = await client.post("/sign-in", headers={"Host": "acme.localhost"})
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        users = {}
        for host in ("acme.localhost", "globex.localhost", "localhost"):
            answer = await client.get("/who", headers={"Host": host, "Cookie": cookie})
            users[host] = (await answer.get_json())["user"]
    return users


async def test_cookie_of_one_tenant_is_nobodys_at_another(database_url: str) -> None:
    """Nor at the domain itself."""
    app, tenants = make_app(database_url)
    TenantAuth(app, cookie_secure=False)
    add_pages(app, tenants)

    assert await find_users(app) == {"acme.localhost": "7", "globex.localhost": None, "localhost": None}


async def test_quart_auth_itself_is_refused_at_start(database_url: str) -> None:
    """Whichever way it is made to name the tenant, a token of one tenant must be none of another."""
    app, _ = make_app(database_url)
    QuartAuth(app)

    with pytest.raises(SettingError, match=r"QuartAuth .* every tenant"):
        await app.startup()


class HostAuth(QuartAuth):
    """Another way: the token names the host."""

    def dump_token(self, auth_id: str, app: Quart | None = None) -> str:
        """Sign *auth_id* together with the host."""
        return super().dump_token(f"{request.host}/{auth_id}", app)

    def load_token(self, token: str, app: Quart | None = None) -> str | None:
        """Return the user, if *token* was signed at this host."""
        host, _, auth_id = (super().load_token(token, app) or "").partition("/")
        return auth_id if host == request.host else None


class LeakyAuth(TenantAuth):
    """One that asks for the tenant at tenants only."""

    def load_token(self, token: str, app: Quart | None = None) -> str | None:
        """Return the user, on the domain itself whoever has signed *token*."""
        if find_tenant() is not None:
            return super().load_token(token, app)
        return (QuartAuth.load_token(self, token, app) or "").partition("/")[2]


async def test_class_that_looks_at_the_host_is_taken(database_url: str) -> None:
    """It is tried out as in a request."""
    app, tenants = make_app(database_url)
    HostAuth(app, cookie_secure=False)
    add_pages(app, tenants)

    assert await find_users(app) == {"acme.localhost": "7", "globex.localhost": None, "localhost": None}


async def test_class_that_looks_away_on_the_domain_itself_is_refused(database_url: str) -> None:
    """There, too, acme's user 7 is nobody."""
    app, _ = make_app(database_url)
    LeakyAuth(app)

    with pytest.raises(SettingError, match="LeakyAuth"):
        await app.startup()


async def test_quart_auth_itself_takes_the_cookie_everywhere(database_url: str) -> None:
    """Negative control: without the refusal, which an app may switch off, user 7 is user 7 everywhere."""
    app, tenants = make_app(database_url)
    auth: Any = QuartAuth(app, cookie_secure=False)
    auth.checks_tenant = True
    add_pages(app, tenants)

    assert set((await find_users(app)).values()) == {"7"}
