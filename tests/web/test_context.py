"""What belongs to one request does not reach the next, nor whoever asks."""

from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import httpx
import pytest
from quart import Quart, ResponseReturnValue, current_app

from quart_tenants import QuartTenants, current_tenant
from quart_tenants.web.context import find_request
from tests.support.databases import REFERENCE_FILES

mark: ContextVar[str] = ContextVar("mark", default="none")


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """An app whose view sets a context variable."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url)
    tenants = QuartTenants(app)

    @app.get("/mark", host=tenants.host)
    async def set_mark() -> ResponseReturnValue:
        before = mark.get()
        mark.set(current_tenant.slug)
        return {"before": before}

    @app.get("/inside", host=tenants.host)
    async def open_app_context() -> ResponseReturnValue:
        async with app.app_context():
            return {"app": current_app.name, "tenant": current_tenant.slug}

    async with app.test_app():
        yield app


async def test_context_variables_of_a_view_stay_there(app: Quart) -> None:
    """An ASGI client in the same task hears nothing of them, and neither does its next request."""
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport) as client:
        first = await client.get("http://acme.localhost/mark")
        second = await client.get("http://globex.localhost/mark")

    assert [first.json(), second.json()] == [{"before": "none"}] * 2
    assert mark.get() == "none"
    assert find_request() is None


async def test_tenant_is_known_in_an_app_context_of_a_views_own(app: Quart) -> None:
    """From Quart 0.23 on such a context hides the request; the tenant stays."""
    answer = await app.test_client().get("/inside", headers={"Host": "acme.localhost"})

    assert (await answer.get_json())["tenant"] == "acme"


async def test_nothing_is_put_into_the_extensions_of_a_scope(app: Quart) -> None:
    """They belong to the server, which says there what it can do."""
    seen: list[Any] = []
    inner = app.asgi_app

    async def look(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)
        seen.append(scope["extensions"])

    app.asgi_app = look  # type: ignore[method-assign]
    await app.test_client().get("/mark", headers={"Host": "acme.localhost"}, scope_base={"extensions": {"x": {}}})

    assert seen == [{"x": {}}]
