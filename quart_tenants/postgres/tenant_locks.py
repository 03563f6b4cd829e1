"""Let one at a time change a tenant or its tables: an advisory lock by the tenant's number."""

from typing import TYPE_CHECKING

import asyncpg

from quart_tenants.errors import TenantBusyError, TenantInTrashError, UnknownTenantError
from quart_tenants.postgres.registry_tables import read_tenant
from quart_tenants.tenant import Slug, Tenant

if TYPE_CHECKING:
    from quart_tenants.postgres.block import Connection, DriverConnection

# $1 the tenant's number, as text.
LOCK_UNTIL_COMMIT = (
    "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('quart_tenants ' || $1::text, 0))"
)
LOCK_SESSION = "SELECT pg_catalog.pg_advisory_lock(pg_catalog.hashtextextended('quart_tenants ' || $1::text, 0))"

# Long enough for a transaction like ours to end; a migration may take longer, and the operator is to know.
_LIMIT_WAITING = "SET LOCAL lock_timeout TO '5s'"

_FIND_ID = "SELECT id FROM quart_tenants.tenants WHERE slug = $1"
_GET_LIVING = """
SELECT id, slug, schema_name, display_name, version, suspended FROM quart_tenants.living_tenants
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
    """Wait up to five seconds for the lock, and hold it until the block on *connection* ends.

    Raises:
        TenantBusyError: Somebody else holds it.
    """
    await connection.execute(_LIMIT_WAITING)
    await take_lock(connection, LOCK_UNTIL_COMMIT, tenant_id, slug)


async def take_lock(connection: "Connection | DriverConnection", lock: str, tenant_id: int, slug: Slug) -> None:
    """Wait for *lock*, one of the two above, for as long as the connection's lock_timeout says.

    Raises:
        TenantBusyError: Somebody else holds it.
    """
    try:
        await connection.execute(lock, str(tenant_id))
    except asyncpg.LockNotAvailableError as error:
        raise TenantBusyError(slug) from error
