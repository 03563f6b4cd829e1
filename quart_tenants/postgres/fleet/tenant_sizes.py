"""Remember how large each tenant is, one number a day, and tell by how much it grows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.tenant_search import DO_NOT_COMPILE, SchemaSize, measure_schemas
from quart_tenants.postgres.registry.registry_tables import check_registry, list_tenants
from quart_tenants.tenant import Slug, Tenant

KEPT_DAYS = 40
"""A month and some days on which nobody looked."""

_AT_ONCE = 100
"""Tenants. A lock on one table keeps all of them from being measured, so they are measured one by one then."""

# $1 numbers of tenants, $2 their bytes. One that was purged meanwhile is left out, and cannot be until the end of this.
_REMEMBER = """
INSERT INTO quart_tenants.tenant_sizes (tenant_id, day, bytes)
SELECT t.id, (pg_catalog.now() AT TIME ZONE 'UTC')::date, measured.bytes
FROM quart_tenants.tenants AS t
JOIN unnest($1::bigint[], $2::bigint[]) AS measured (tenant_id, bytes) ON measured.tenant_id = t.id
FOR KEY SHARE OF t
ON CONFLICT (tenant_id, day) DO UPDATE SET bytes = excluded.bytes
"""
# $1 days.
_FORGET = """
DELETE FROM quart_tenants.tenant_sizes WHERE day < (pg_catalog.now() AT TIME ZONE 'UTC')::date - $1::integer
"""
# $1 whether the largest come first, or else those that grow most; $2 rows; $3 the only tenant, or null.
_LIST_GROWTH = """
SELECT
    t.slug, newest.day, newest.bytes,
    newest.bytes - week.bytes AS in_7_days, newest.bytes - month.bytes AS in_30_days
FROM quart_tenants.tenants AS t
CROSS JOIN LATERAL (
    SELECT s.day, s.bytes FROM quart_tenants.tenant_sizes AS s WHERE s.tenant_id = t.id ORDER BY s.day DESC LIMIT 1
) AS newest
LEFT JOIN LATERAL (
    SELECT s.bytes FROM quart_tenants.tenant_sizes AS s
    WHERE s.tenant_id = t.id AND s.day <= newest.day - 7 ORDER BY s.day DESC LIMIT 1
) AS week ON true
LEFT JOIN LATERAL (
    SELECT s.bytes FROM quart_tenants.tenant_sizes AS s
    WHERE s.tenant_id = t.id AND s.day <= newest.day - 30 ORDER BY s.day DESC LIMIT 1
) AS month ON true
WHERE CASE WHEN $3::bigint IS NULL THEN t.dropped_at IS NULL ELSE t.id = $3 END
ORDER BY
    CASE WHEN $1 THEN newest.bytes ELSE coalesce(newest.bytes - month.bytes, newest.bytes - week.bytes, 0) END DESC,
    t.slug
LIMIT $2
"""
_LIST_DAYS = "SELECT day, bytes FROM quart_tenants.tenant_sizes WHERE tenant_id = $1 ORDER BY day"

Order = Literal["size", "growth"]
"""What comes first: the largest tenants, or those that have grown most in 30 days, or else in 7."""


@dataclass(frozen=True, slots=True)
class TenantGrowth:
    """How large a tenant is, and by how much it has grown.

    Attributes:
        slug: Its subdomain.
        day: When it was measured last, in UTC.
        bytes: On the disk then, indexes included.
        in_7_days: How many bytes more than seven days before, or on the last day before that on which it was measured;
            None if there was none.
        in_30_days: The same of thirty days.
    """

    slug: Slug
    day: date
    bytes: int
    in_7_days: int | None
    in_30_days: int | None


async def measure_sizes(
    database: Database,
    on_measured: Callable[[int], object] = lambda number: None,
    *,
    on_begin: Callable[[int], object] = lambda total: None,
) -> list[Slug]:
    """Measure all tenants, and remember their sizes as those of today; return who could not be measured.

    Those are the tenants one of whose tables was locked. Doing it again on the same day replaces what was remembered.

    Args:
        database: The database of the tenants.
        on_measured: Called with how many more tenants are done.
        on_begin: Called with the number of tenants.

    Raises:
        RegistryNotReadyError: There is no registry yet, or it is older than this program.
    """
    tenants = await list_tenants(database)
    on_begin(len(tenants))
    locked: list[Slug] = []
    for begin in range(0, len(tenants), _AT_ONCE):
        batch = tenants[begin : begin + _AT_ONCE]
        sizes = await _measure(database, batch)
        async with database.connection() as connection:
            await connection.execute(_REMEMBER, list(sizes), list(sizes.values()))
        locked += [tenant.slug for tenant in batch if tenant.id not in sizes]
        on_measured(len(batch))
    async with database.connection() as connection:
        await connection.execute(_FORGET, KEPT_DAYS)
    return locked


async def list_growth(
    database: Database, *, order: Order = "size", limit: int = 1, tenant_id: int | None = None
) -> list[TenantGrowth]:
    """Return the first *limit* tenants of those that were ever measured and are not in the trash, or only one tenant.

    Raises:
        RegistryNotReadyError: There is no registry yet, or it is older than this program.
    """
    async with database.connection() as connection:
        await check_registry(connection)
        await connection.execute(DO_NOT_COMPILE)
        rows = await connection.fetch(_LIST_GROWTH, order == "size", limit, tenant_id)
    return [TenantGrowth(**dict(row)) for row in rows]


async def list_sizes_by_day(database: Database, tenant_id: int) -> dict[date, int]:
    """Return what is remembered of a tenant: its bytes by day, the oldest first."""
    async with database.connection() as connection:
        return {row["day"]: row["bytes"] for row in await connection.fetch(_LIST_DAYS, tenant_id)}


async def _measure(database: Database, tenants: Sequence[Tenant]) -> dict[int, int]:
    """Return the bytes of *tenants* by number, without those that cannot be known now."""
    found = await measure_schemas(database, [tenant.schema for tenant in tenants])
    if found is not None:
        return {tenant.id: found.get(tenant.schema.name, SchemaSize()).bytes for tenant in tenants}
    if len(tenants) == 1:
        return {}
    sizes: dict[int, int] = {}
    for tenant in tenants:
        sizes |= await _measure(database, [tenant])
    return sizes
