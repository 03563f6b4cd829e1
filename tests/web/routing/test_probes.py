"""The probes come with the extension, and stay out of the way of the app's own routes."""

from typing import Any

import pytest
from quart import Quart

from quart_tenants import QuartTenants
from tests.support.databases import BREAKING_REGISTRY, NEWER_REGISTRY, REFERENCE_FILES, execute

HOSTS = ("acme.localhost", "localhost", "127.0.0.1:5000", "[::1]", "nobody.localhost", "evil.example.org")


def make_app(database_url: str, **config: Any) -> tuple[Quart, QuartTenants]:
    """Return an app without routes of its own."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url, **config)
    return app, QuartTenants(app)


async def ask(app: Quart, path: str, host: str) -> tuple[int, Any]:
    """Return the status and the JSON of an answer."""
    answer = await app.test_client().get(path, headers={"Host": host})
    return answer.status_code, await answer.get_json()


@pytest.mark.parametrize("host", HOSTS)
async def test_probes_answer_on_every_host(database_url: str, host: str) -> None:
    """A proxy asks by address, by the domain or by a tenant's host: all the same."""
    app, _ = make_app(database_url)

    async with app.test_app():
        assert await ask(app, "/healthz", host) == (200, {"status": "ok"})
        assert await ask(app, "/readyz", host) == (200, {"status": "ready"})


async def test_probes_can_be_turned_off(database_url: str) -> None:
    """With TENANTS_PROBES=false both are unknown paths."""
    app, _ = make_app(database_url, TENANTS_PROBES=False)

    async with app.test_app():
        for path in ("/healthz", "/readyz"):
            status, _ = await ask(app, path, "127.0.0.1")
            assert status == 404


@pytest.mark.parametrize("host", ["tenant", "apex", "any"])
async def test_routes_of_the_app_go_first(database_url: str, host: str) -> None:
    """What the app says at its hosts is what it means, although its routes come later."""
    app, tenants = make_app(database_url)
    rule, asked = {
        "tenant": (tenants.host, "acme.localhost"),
        "apex": (tenants.apex_host, "localhost"),
        "any": (tenants.any_host, "127.0.0.1"),
    }[host]

    @app.get("/healthz", host=rule)
    async def healthz() -> dict[str, str]:
        return {"status": "mine"}

    async with app.test_app():
        assert await ask(app, "/healthz", asked) == (200, {"status": "mine"})
        assert await ask(app, "/readyz", asked) == (200, {"status": "ready"})


async def test_worker_that_is_too_old_is_not_ready(database_url: str) -> None:
    """A worker that runs says 503 as soon as the registry is that of a newer program, but it is alive."""
    app, _ = make_app(database_url)

    async with app.test_app():
        before = await ask(app, "/readyz", "127.0.0.1")
        await execute(database_url, NEWER_REGISTRY, BREAKING_REGISTRY)
        status, problem = await ask(app, "/readyz", "127.0.0.1")
        alive, _ = await ask(app, "/healthz", "127.0.0.1")

    assert before == (200, {"status": "ready"})
    assert (status, problem["code"]) == (503, "registry_not_ready")
    assert alive == 200
