"""Find tenants by name and by state, a page at a time, with what an operator looks for in a list."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.short_waits import wait_shortly
from quart_tenants.postgres.registry.registry_tables import check_registry
from quart_tenants.tenant import SchemaName, Slug

_COUNT = 50
"""Tenants on a page."""

# $1 the slug after which the page begins, $2 what to look for, $3 suspended or not or both (null), $4 whether only
# those before version $5, $6 whether only failed ones, $7 only these slugs (null: all), $8 how many.
# A failure counts at the version where it happened. That is no condition of the join, because then the version of every
# tenant would be looked up, and not only of those on the page.
_FIND = """
SELECT
    t.slug, t.schema_name, t.display_name, t.version, t.suspended,
    CASE WHEN f.version = t.version THEN f.reason END AS reason,
    CASE WHEN f.version = t.version THEN f.failed_at END AS failed_at
FROM quart_tenants.living_tenants AS t
LEFT JOIN quart_tenants.migration_failures AS f ON f.tenant_id = t.id
WHERE t.slug > $1
    AND (
        $2 = '' OR strpos(t.slug, lower($2)) > 0 OR strpos(lower(t.display_name), lower($2)) > 0
        OR EXISTS (
            SELECT FROM quart_tenants.domains AS d WHERE d.tenant_id = t.id AND strpos(d.domain, lower($2)) > 0
        )
    )
    AND ($3::boolean IS NULL OR t.suspended = $3)
    AND (NOT $4 OR t.version < $5::integer)
    AND (NOT $6 OR f.version = t.version)
    AND ($7::text[] IS NULL OR t.slug = ANY ($7))
ORDER BY t.slug LIMIT $8
"""
DO_NOT_COMPILE = "SET LOCAL jit TO off"
"""Compiling the query would take as long as running it."""
# $1 the schemas. By pg_depend, which has an index for it: in a large fleet pg_class has a million rows.
_MEASURE = """
SELECT
    n.nspname::text AS schema_name,
    coalesce(sum(pg_catalog.pg_total_relation_size(c.oid)), 0)::bigint AS bytes,
    coalesce(sum(c.reltuples) FILTER (WHERE c.relkind = 'r' AND c.reltuples > 0), 0)::bigint AS rows
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d
    ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND c.relkind IN ('r', 'm', 'S')
WHERE n.nspname = ANY ($1::text[])
GROUP BY n.nspname
"""


@dataclass(frozen=True, slots=True)
class TenantFilter:
    """Which tenants to list.

    Attributes:
        text: What their slug, name or domain contains, in any case.
        suspended: Only suspended ones, or only those that are not; None for both.
        before_version: Only those that are older; None for all.
        failed: Only those whose last migration failed.
        slugs: Only these; None for all.
    """

    text: str = ""
    suspended: bool | None = None
    before_version: int | None = None
    failed: bool = False
    slugs: Collection[Slug] | None = None


@dataclass(frozen=True, slots=True)
class SchemaSize:
    """How much is in a schema.

    Attributes:
        bytes: On the disk, indexes included.
        rows: As of the last time that the server counted them.
    """

    bytes: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class ListedTenant:
    """A tenant in a list.

    Attributes:
        slug: Its subdomain.
        name: Its display name.
        version: The number of its newest migration.
        suspended: Whether it is suspended.
        failure: Why its last migration failed; None if it did not.
        failed_at: When that was.
        size: How much is in its schema; None where a table was locked, so that it cannot be known now.
    """

    slug: Slug
    name: str
    version: int
    suspended: bool
    failure: str | None
    failed_at: datetime | None
    size: SchemaSize | None


@dataclass(frozen=True, slots=True)
class TenantPage:
    """A page of the list: its tenants in order of slug, and after which slug the next page begins, if there is one."""

    tenants: tuple[ListedTenant, ...]
    last: Slug | None


async def find_tenants(database: Database, wanted: TenantFilter, *, after: str = "", limit: int = _COUNT) -> TenantPage:
    """Return the first *limit* tenants that are *wanted*, of those whose slug comes after *after*.

    Tenants in the trash are not among them.

    Raises:
        RegistryNotReadyError: There is no registry yet.
    """
    async with database.connection() as connection:
        await check_registry(connection)
        await connection.execute(DO_NOT_COMPILE)
        rows = await connection.fetch(
            _FIND,
            after,
            wanted.text,
            wanted.suspended,
            wanted.before_version is not None,
            wanted.before_version,
            wanted.failed,
            None if wanted.slugs is None else list(wanted.slugs),
            limit + 1,
        )
    shown = rows[:limit]
    sizes = await measure_schemas(database, [SchemaName(row["schema_name"]) for row in shown])
    tenants = tuple(
        ListedTenant(
            Slug(row["slug"]),
            row["display_name"],
            row["version"],
            row["suspended"],
            row["reason"],
            row["failed_at"],
            None if sizes is None else sizes.get(row["schema_name"], SchemaSize()),
        )
        for row in shown
    )
    return TenantPage(tenants, tenants[-1].slug if len(rows) > limit else None)


async def measure_schemas(database: Database, schemas: Sequence[SchemaName]) -> dict[str, SchemaSize] | None:
    """Return how much is in each of *schemas* that has tables, by name; None if one of its tables is locked."""
    try:
        async with database.connection() as connection:
            # Whoever changes a table has a lock on it. A list must not wait for that.
            await wait_shortly(connection)
            rows = await connection.fetch(_MEASURE, [schema.name for schema in schemas])
    except asyncpg.LockNotAvailableError:
        return None
    return {row["schema_name"]: SchemaSize(row["bytes"], row["rows"]) for row in rows}
