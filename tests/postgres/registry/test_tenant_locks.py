"""A transaction that holds a tenant's lock while something is done beside it."""

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.registry.tenant_locks import stay_open

_GET_LIMITS = """
SELECT name, setting FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')
"""


async def read_limits(connection: DriverConnection) -> dict[str, str]:
    """Return the limits that this version of PostgreSQL has, in milliseconds."""
    return {row["name"]: row["setting"] for row in await connection.fetch(_GET_LIMITS)}


async def test_stay_open_lifts_the_limits_of_its_transaction(database: Database) -> None:
    """Neither of the server's limits for a whole transaction ends it, and the next one has them again."""
    async with database.plain_session() as connection:
        limits = await read_limits(connection)
        for name in limits:
            await connection.execute(f"SET {name} TO '1h'")
        async with connection.transaction():
            await stay_open(connection)
            inside = await read_limits(connection)
        after = await read_limits(connection)

    assert "idle_in_transaction_session_timeout" in limits
    assert inside == dict.fromkeys(limits, "0")
    assert after == dict.fromkeys(limits, "3600000")
