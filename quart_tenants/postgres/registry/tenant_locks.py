"""Let only one process at a time change a tenant or its tables, by an advisory lock."""

import asyncio
import functools

from quart_tenants.connection import Connection
from quart_tenants.errors import TenantBusyError, TenantInTrashError, UnknownTenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.short_waits import ShortWaits
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.registry.registry_tables import SELECT_TENANTS, check_registry, read_tenant
from quart_tenants.tenant import Slug, Tenant

LOCK_KEY = "pg_catalog.hashtextextended('quart_tenants ' || {}::text, 0)"
"""The key of a tenant's advisory lock, for SQL; {} stands for the tenant's number."""

# These are tried again and again. A statement that waits for the lock would hold a snapshot. CREATE INDEX CONCURRENTLY
# waits for all snapshots, and it may run under this lock: neither would end.
_TRY_UNTIL_COMMIT = f"SELECT pg_catalog.pg_try_advisory_xact_lock({LOCK_KEY.format('$1')})"
_TRY_FOR_SESSION = f"SELECT pg_catalog.pg_try_advisory_lock({LOCK_KEY.format('$1')})"
_PAUSE = 0.1  # seconds between two tries

PATIENCE = 5.0
"""How many seconds a command waits for a tenant's lock.

It is long enough for a transaction like ours to end. A migration may take longer; then the operator is told.
"""

FIND_ID = "SELECT id FROM quart_tenants.tenants WHERE slug = $1"
_IS_IN_TRASH = """
SELECT EXISTS (SELECT FROM quart_tenants.tenants WHERE id = $1 AND slug = $2 AND dropped_at IS NOT NULL)
"""


def tries_on(database: Database, slug: str) -> ShortWaits:
    """Return tries of a transaction that changes the tenant *slug*. They end with a `TenantBusyError`."""
    return ShortWaits(database, functools.partial(TenantBusyError, slug))


async def lock_tenant(connection: Connection, slug: Slug) -> Tenant:
    """Lock the tenant until the block on *connection* ends, and return it. No other process can change or migrate it.

    Raises:
        UnknownTenantError: There is no such tenant.
        TenantInTrashError: The tenant is in the trash.
        TenantBusyError: Another process has the lock.
        RegistryNotReadyError: There is no registry yet.
    """
    await check_registry(connection)
    tenant_id = await connection.fetchval(FIND_ID, slug)
    if tenant_id is None:
        raise UnknownTenantError(slug)
    await lock_until_commit(connection, tenant_id, slug)
    # Read after the lock was taken: until then another process may have changed it.
    try:
        return await get_living_tenant(connection, tenant_id, slug)
    except UnknownTenantError:
        if await connection.fetchval(_IS_IN_TRASH, tenant_id, slug):
            raise TenantInTrashError(slug) from None
        raise


async def get_living_tenant(connection: Connection, tenant_id: int, slug: Slug) -> Tenant:
    """Return the tenant with this number, if it still has this slug.

    Raises:
        UnknownTenantError: It has another slug, or it is in the trash.
    """
    row = await connection.fetchrow(f"{SELECT_TENANTS} WHERE id = $1 AND slug = $2", tenant_id, slug)
    if row is None:
        raise UnknownTenantError(slug)
    return read_tenant(row)


async def lock_until_commit(connection: Connection | DriverConnection, tenant_id: int, slug: Slug) -> None:
    """Wait up to `PATIENCE` for the lock, and hold it until the transaction on *connection* ends.

    Raises:
        TenantBusyError: Another process holds it.
    """
    await _try_for(connection, _TRY_UNTIL_COMMIT, tenant_id, slug, PATIENCE)


async def lock_session(connection: DriverConnection, tenant_id: int, slug: Slug, seconds: float) -> None:
    """Wait up to *seconds* for the lock, and hold it until *connection* is closed.

    Raises:
        TenantBusyError: Another process holds it.
    """
    await _try_for(connection, _TRY_FOR_SESSION, tenant_id, slug, seconds)


async def _try_for(
    connection: Connection | DriverConnection, try_to_lock: str, tenant_id: int, slug: Slug, seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not await connection.fetchval(try_to_lock, str(tenant_id)):
        if loop.time() > deadline:
            raise TenantBusyError(slug)
        # This closes the driver's last statement, which would keep its snapshot.
        await connection.execute("SELECT")
        await asyncio.sleep(_PAUSE)
