"""Find out which tenants are behind, before any of them is migrated."""

from collections.abc import Collection
from dataclasses import dataclass

from quart_tenants.argument_checks import check_arguments
from quart_tenants.errors import MigrationFileError, TenantInTrashError, UnknownTenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.citus.cluster import has_citus
from quart_tenants.postgres.migrations.migration_files import (
    Migration,
    describe_newest,
    get_tenant_migrations,
    refuse_edited,
)
from quart_tenants.postgres.registry.registry_tables import check_registry, read_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant

# One query for all tenants. $1 the version to reach, $2 the slugs, or null for all tenants. Tenants that failed before
# come last, because they are likely to fail again and make bad canaries.
_LIST_BEHIND = """
SELECT
    t.id, t.slug, t.schema_name, t.display_name, t.version, t.suspended, t.role_name, t.settings,
    f.tenant_id IS NOT NULL AS failed_before
FROM quart_tenants.living_tenants AS t
LEFT JOIN quart_tenants.migration_failures AS f ON f.tenant_id = t.id AND f.version = t.version
WHERE t.version < $1 AND ($2::text[] IS NULL OR t.slug = ANY ($2::text[]))
ORDER BY f.tenant_id IS NOT NULL, t.id
"""
_COUNT_TENANTS = """
SELECT count(*) FROM quart_tenants.tenants
WHERE dropped_at IS NULL AND ($1::text[] IS NULL OR slug = ANY ($1::text[]))
"""
_COUNT_VERSIONS = """
SELECT version, count(*) AS count FROM quart_tenants.living_tenants GROUP BY version ORDER BY version DESC
"""
_FIND_UNKNOWN = """
SELECT x.slug, t.id IS NOT NULL AS in_trash
FROM unnest($1::text[]) AS x (slug) LEFT JOIN quart_tenants.tenants AS t ON t.slug = x.slug
WHERE t.id IS NULL OR t.dropped_at IS NOT NULL LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What a migration of the fleet would do.

    Attributes:
        migrations: The files up to the one to reach, read and checked.
        behind: The tenants to migrate, in this order.
        canaries: How many of them are migrated first. If one fails, no other tenant is migrated.
        up_to_date: How many tenants are at the target already.
        on_citus: Whether the tenants lie on the nodes of a Citus cluster.

    Example:
        ```python
        plan = await plan_fleet(database, settings=settings, canary=1)
        print(plan.target_version, [tenant.slug for tenant in plan.behind])
        ```
    """

    migrations: tuple[Migration, ...]
    behind: tuple[Tenant, ...]
    canaries: int
    up_to_date: int
    on_citus: bool = False

    @property
    def target_version(self) -> int:
        """The version to reach; 0 if there are no files."""
        return len(self.migrations)

    @property
    def target_file(self) -> str:
        """The name of the file to reach."""
        return describe_newest(self.migrations)


@check_arguments
async def plan_fleet(
    database: Database,
    *,
    settings: Settings,
    slugs: Collection[Slug] = (),
    to: int | None = None,
    canary: Slug | int = 0,
) -> FleetPlan:
    """Find out which tenants are behind, by one query for all of them. This changes nothing.

    Args:
        database: The database of the tenants.
        settings: They name the folder of the migrations.
        slugs: Only these tenants; an empty collection means all tenants, also the suspended ones.
        to: The version to reach; default: the newest file.
        canary: The tenant to migrate first, or how many tenants to migrate first.

    Raises:
        MigrationFileError: A file is no SQL or was changed after it ran for a tenant, or there is no file number *to*.
        UnknownTenantError: There is no tenant with that slug.
        TenantInTrashError: The tenant is in the trash.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        plan = await plan_fleet(database, settings=settings, slugs=[parse_slug("acme")])
        print(plan.target_file, plan.up_to_date)
        ```
    """
    migrations = get_tenant_migrations(settings)
    if to is not None and not 1 <= to <= len(migrations):
        raise MigrationFileError(f"there is no migration {to:04}; the newest is {describe_newest(migrations)}")
    migrations = migrations[:to]
    first = {canary} if isinstance(canary, str) else set()
    named = sorted({*slugs, *first}) if slugs else None
    async with database.connection() as connection:
        await check_registry(connection)
        unknown = await connection.fetchrow(_FIND_UNKNOWN, sorted({*slugs, *first}))
        if unknown is not None:
            raise (TenantInTrashError if unknown["in_trash"] else UnknownTenantError)(unknown["slug"])
        try:
            # All files are checked before any tenant is migrated.
            for migration in migrations:
                migration.check()
            await refuse_edited(connection, migrations)
        except MigrationFileError as error:
            versions = await connection.fetch(_COUNT_VERSIONS)
            standing = ", ".join(f"{row['count']} at {row['version']:04}" for row in versions) or "there are none"
            raise MigrationFileError(
                f"{error}; nothing was run, and the tenants stand as before: {standing}"
            ) from error
        rows = await connection.fetch(_LIST_BEHIND, len(migrations), named)
        count = await connection.fetchval(_COUNT_TENANTS, named)
        on_citus = await has_citus(connection)
    behind = [read_tenant(row) for row in rows]
    if isinstance(canary, str):
        behind.sort(key=lambda tenant: tenant.slug != canary)
        canaries = sum(tenant.slug == canary for tenant in behind)
    else:
        canaries = min(canary, len(behind))
    return FleetPlan(migrations, tuple(behind), canaries, count - len(behind), on_citus)
