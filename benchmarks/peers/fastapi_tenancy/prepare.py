"""Make the store's table, with all tenants."""

import asyncio

from app import manager
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

_FILL = text(
    "INSERT INTO tenants (id, identifier, name, status, schema_name, tenant_metadata)"
    " SELECT tenant, tenant, tenant, 'active', tenant, '{}' FROM (SELECT DISTINCT tenant FROM all_data) AS every"
)


async def main() -> None:
    """Do it."""
    await manager.store.initialize()
    engine = create_async_engine(manager.config.database_url)
    async with engine.begin() as connection:
        await connection.execute(_FILL)
    await engine.dispose()


asyncio.run(main())
