"""An app as an adopter writes it, for other servers than ours."""

import asyncio
from typing import Any

from quart import Quart, ResponseReturnValue, request

from quart_tenants import QuartTenants, current_tenant, end_session, get_session, start_session, tenant_connection
from quart_tenants.resources import get_resource_path

MOST_BYTES = 10_000
"""What `BodyLimit` lets through."""


class TooLargeError(Exception):
    """The body is too large."""


class BodyLimit:
    """ASGI middleware, written as published ones are: its `receive` raises, and it answers itself."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, and answer 413 when its body becomes too large."""
        received = 0

        async def receive_and_count() -> Any:
            nonlocal received
            event = await receive()
            received += len(event.get("body", b""))
            if received > MOST_BYTES:
                raise TooLargeError
            return event

        try:
            await self._app(scope, receive_and_count, send)
        except BaseException as error:
            # Quart 0.23 reports it in a group.
            if not isinstance(error, TooLargeError) and not (
                isinstance(error, BaseExceptionGroup) and error.subgroup(TooLargeError)
            ):
                raise
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def create_app() -> Quart:
    """Return the app. Its settings are in the environment."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config["TENANTS_MIGRATIONS_DIR"] = get_resource_path("sql/tenant")
    app.config.from_prefixed_env()
    tenants = QuartTenants(app)
    app.asgi_app = BodyLimit(app.asgi_app)  # type: ignore[method-assign]

    @app.get("/up", host=tenants.any_host)
    async def up() -> ResponseReturnValue:
        return {"up": True}

    @app.get("/rows", host=tenants.host)
    async def rows() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            found = await connection.fetch("SELECT description FROM company_data ORDER BY id")
        return {"tenant": current_tenant.slug, "rows": [row["description"] for row in found]}

    @app.post("/rows", host=tenants.host)
    async def add_row() -> ResponseReturnValue:
        text = (await request.get_data(as_text=True))[:100]
        async with tenant_connection() as connection:
            await connection.execute("INSERT INTO company_data (description) VALUES ($1)", text)
        return {}

    @app.post("/hold", host=tenants.host)
    async def hold() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            await connection.execute("INSERT INTO company_data (description) VALUES ('of somebody who left')")
            await connection.execute("SELECT pg_sleep(120)")
        return {}

    @app.get("/wait", host=tenants.host)
    async def wait() -> ResponseReturnValue:
        await asyncio.Event().wait()
        return {}

    @app.post("/login/<user>", host=tenants.host)
    async def login(user: str) -> ResponseReturnValue:
        await start_session(user)
        return {}

    @app.get("/me", host=tenants.host)
    async def me() -> ResponseReturnValue:
        return {"user": get_session().user}

    @app.post("/logout", host=tenants.host)
    async def logout() -> ResponseReturnValue:
        await end_session()
        return {}

    return app
