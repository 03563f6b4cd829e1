"""Let one at a time change a tenant or its tables: an advisory lock by the tenant's number."""

import asyncio
from typing import TYPE_CHECKING

from quart_tenants.errors import TenantBusyError, TenantInTrashError, UnknownTenantError
from quart_tenants.postgres.registry.registry_tables import read_tenant
from quart_tenants.tenant import Slug, Tenant

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection, DriverConnection

LOCK_KEY = "pg_catalog.hashtextextended('quart_tenants ' || {}::text, 0)"
"""The key of a tenant's advisory lock, for SQL; for {} comes its number."""

# Tried, and tried again: a statement that waits for a lock has a snapshot, for which CREATE INDEX CONCURRENTLY waits,
# which has the lock.
_TRY_UNTIL_COMMIT = f"SELECT pg_catalog.pg_try_advisory_xact_lock({LOCK_KEY.format('$1')})"
_TRY_FOR_SESSION = f"SELECT pg_catalog.pg_try_advisory_lock({LOCK_KEY.format('$1')})"
_PAUSE = 0.1  # seconds between two tries

PATIENCE = 5.0
"""How many seconds a command waits for a tenant's lock, and for a lock on one of its tables.

It is long enough for a transaction like ours to end. A migration may take longer; then the operator is told.
"""

_FIND_ID = "SELECT id FROM quart_tenants.tenants WHERE slug = $1"
_GET_LIVING = """
SELECT id, slug, schema_name, display_name, version, suspended, role_name FROM quart_tenants.living_tenants
WHERE id = $1 AND slug = $2
"""
_IS_IN_TRASH = """
SELECT EXISTS (SELECT FROM quart_tenants.tenants WHERE id = $1 AND slug = $2 AND dropped_at IS NOT NULL)
"""


async def lock_tenant(connection: "Connection", slug: Slug) -> Tenant:
    """Keep everybody else from changing or migrating the tenant until the block on *connection* ends; return it.

    Raises:
        UnknownTenantError: There is none.
        TenantInTrashError: It lies in the trash.
        TenantBusyError: Somebody else has the lock.
    """
    tenant_id = await connection.fetchval(_FIND_ID, slug)
    if tenant_id is None:
        raise UnknownTenantError(slug)
    await lock_until_commit(connection, tenant_id, slug)
    # Read behind the lock: it may have been another one's until now.
    try:
        return await get_living_tenant(connection, tenant_id, slug)
    except UnknownTenantError:
        if await connection.fetchval(_IS_IN_TRASH, tenant_id, slug):
            raise TenantInTrashError(slug) from None
        raise


async def get_living_tenant(connection: "Connection", tenant_id: int, slug: Slug) -> Tenant:
    """Return the tenant of this number, if it still has this slug.

    Raises:
        UnknownTenantError: It has not, or it lies in the trash.
    """
    row = await connection.fetchrow(_GET_LIVING, tenant_id, slug)
    if row is None:
        raise UnknownTenantError(slug)
    return read_tenant(row)


async def lock_until_commit(connection: "Connection", tenant_id: int, slug: Slug) -> None:
    """Wait up to `PATIENCE` for the lock, and hold it until the block on *connection* ends.

    Raises:
        TenantBusyError: Somebody else holds it.
    """
    await connection.execute(f"SET LOCAL lock_timeout TO {int(PATIENCE * 1000)}")
    await _try_for(connection, _TRY_UNTIL_COMMIT, tenant_id, slug, PATIENCE)


async def lock_session(connection: "DriverConnection", tenant_id: int, slug: Slug, seconds: float) -> None:
    """Wait so many seconds for the lock, and hold it until *connection* is closed.

    Raises:
        TenantBusyError: Somebody else holds it.
    """
    await _try_for(connection, _TRY_FOR_SESSION, tenant_id, slug, seconds)


async def _try_for(
    connection: "Connection | DriverConnection", try_to_lock: str, tenant_id: int, slug: Slug, seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not await connection.fetchval(try_to_lock, str(tenant_id)):
        if loop.time() > deadline:
            raise TenantBusyError(slug)
        # Closes what the driver left open, which keeps its snapshot until then.
        await connection.execute("SELECT")
        await asyncio.sleep(_PAUSE)
