"""quart-rate-limiter: one tenant's visitors use up nobody else's limit."""

from datetime import timedelta

from quart import Quart, ResponseReturnValue, request
from quart_rate_limiter import RateLimiter, rate_limit

from quart_tenants import QuartTenants, find_tenant
from tests.other_libraries.support import make_app


async def get_limit_key() -> str:
    """Count each address at each tenant by itself."""
    tenant = find_tenant()
    return f"{'-' if tenant is None else tenant.id} {request.remote_addr}"


def add_route(app: Quart, tenants: QuartTenants) -> None:
    """Add a route that may be asked twice an hour."""

    @app.get("/limited", host=tenants.host)
    @rate_limit(2, timedelta(hours=1))
    async def limited() -> ResponseReturnValue:
        return {"served": True}


async def ask(app: Quart) -> list[int]:
    """Return the answers to three requests at acme and one at globex, all from one address."""
    async with app.test_app():
        client = app.test_client()
        return [
            (await client.get("/limited", headers={"Host": host})).status_code
            for host in ("acme.localhost", "acme.localhost", "acme.localhost", "globex.localhost")
        ]


async def test_limit_is_each_tenants_own(database_url: str) -> None:
    """The fourth request is the first one of globex."""
    app, tenants = make_app(database_url)
    RateLimiter(app, key_function=get_limit_key)
    add_route(app, tenants)

    assert await ask(app) == [200, 200, 429, 200]


async def test_limiter_itself_counts_all_tenants_together(database_url: str) -> None:
    """Negative control: its own key is the address."""
    app, tenants = make_app(database_url)
    RateLimiter(app)
    add_route(app, tenants)

    assert await ask(app) == [200, 200, 429, 429]
