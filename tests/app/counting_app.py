"""An app that reads, writes and holds connections, for tests that break its database meanwhile."""

import asyncio

from quart import Quart

from quart_tenants import QuartTenants, retry_reads, tenant_connection


def create_app() -> Quart:
    """Return it. Settings are in the environment."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    tenants = QuartTenants(app)
    size = tenants.settings.pool_max_size
    together = asyncio.Barrier(size)

    @app.get("/count", host=tenants.host)
    @retry_reads
    async def count() -> dict[str, int]:
        async with tenant_connection() as connection:
            # Two: what happens before the second is not for the block itself to repeat.
            await connection.execute("SELECT")
            return {"rows": await connection.fetchval("SELECT count(*) FROM company_data")}

    @app.post("/rows/<stamp>", host=tenants.host)
    async def add(stamp: str) -> dict[str, str]:
        async with tenant_connection() as connection:
            await connection.execute("INSERT INTO company_data (description) VALUES ($1)", stamp)
        return {"added": stamp}

    @app.get("/together", host=tenants.host)
    async def meet() -> dict[str, int]:
        async with tenant_connection() as connection:
            # Passed only when all the connections of the pool are lent at the same time.
            await together.wait()
            return {"backend": await connection.fetchval("SELECT pg_backend_pid()")}

    return app
