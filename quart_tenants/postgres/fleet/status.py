"""Report the state of all tenants: versions, failures and edited files, each by one query, and drift."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from quart_tenants.argument_checks import check_arguments
from quart_tenants.connection import Connection
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.citus.cluster import has_citus, list_nodes, list_places
from quart_tenants.postgres.fleet.drift import READ_ONE_MOMENT, Drift, Majority, find_drift
from quart_tenants.postgres.migrations.migration_files import (
    SHARED_LEDGER,
    EditedFile,
    describe_newest,
    get_tenant_migrations,
    list_applied,
    list_edited,
)
from quart_tenants.postgres.registry.registry_tables import check_registry, list_tenants, read_tenant
from quart_tenants.postgres.shared.shared_names import SharedName, list_shared_names
from quart_tenants.postgres.tenants.ready_tenants import count_ready
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant

_LIST_TENANTS = """
SELECT
    t.id, t.slug, t.schema_name, t.display_name, t.version, t.suspended, t.role_name, t.settings,
    f.tenant_id IS NOT NULL AS failed, f.migration, f.reason, f.failed_at
FROM quart_tenants.living_tenants AS t
LEFT JOIN quart_tenants.migration_failures AS f ON f.tenant_id = t.id AND f.version = t.version
ORDER BY t.slug
"""
_COUNT_TRASH = "SELECT count(*) FROM quart_tenants.tenants WHERE dropped_at IS NOT NULL"


@dataclass(frozen=True, slots=True)
class VersionCount:
    """How many tenants are at a version.

    Attributes:
        version: The number of their newest migration; 0 for none.
        file: The file of that migration; None for version 0, and if a newer program made the version.
        count: The number of tenants.
    """

    version: int
    file: str | None
    count: int


@dataclass(frozen=True, slots=True)
class TenantVersion:
    """The version of one tenant."""

    slug: Slug
    version: int


@dataclass(frozen=True, slots=True)
class MigrationFailure:
    """What went wrong when a tenant was last migrated.

    Attributes:
        slug: The tenant.
        migration: The file that failed, or None if no file had begun.
        reason: The text of the error.
        failed_at: The time of the failure.
    """

    slug: Slug
    migration: str | None
    reason: str
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """The state of all tenants. Tenants in the trash are only in `trash`.

    Attributes:
        newest_version: The number of the newest migration file.
        newest_file: The name of that file, or `none`.
        tenants: The number of tenants.
        suspended: How many of them are suspended.
        trash: How many more tenants are in the trash.
        ready: How many empty tenants were made in advance, from the files as they are. They are not in `tenants`.
        versions: The number of tenants at each version, the newest version first.
        behind: Tenants older than the newest file, in order of slug.
        ahead: Tenants newer than every file: a newer program made or migrated them.
        failures: Tenants whose last migration failed.
        edited: Files that were changed after they had run.
        shared_version: The version of the tables that all tenants share; 0 for none.
        shared_names: Names that are in a tenant's schema and in a shared one.
        nodes: On which node of a Citus cluster each tenant lies, by slug. Plain schemas are left out.
        majorities: What the tenants at each version were compared with; None if they were not compared.
        drift: Tenants whose tables differ from those of the majority; None if they were not compared.

    Example:
        ```python
        status = await get_fleet_status(database, settings=settings)
        print(status.tenants, status.newest_version, [tenant.slug for tenant in status.behind])
        ```
    """

    newest_version: int
    newest_file: str
    tenants: int
    suspended: int
    trash: int
    ready: int
    versions: tuple[VersionCount, ...]
    behind: tuple[TenantVersion, ...]
    ahead: tuple[TenantVersion, ...]
    failures: tuple[MigrationFailure, ...]
    edited: tuple[EditedFile, ...]
    shared_version: int
    shared_names: tuple[SharedName, ...]
    nodes: dict[Slug, str]
    majorities: tuple[Majority, ...] | None
    drift: tuple[Drift, ...] | None


@check_arguments
async def get_fleet_status(database: Database, *, settings: Settings, drift: bool = True) -> FleetStatus:
    """Return the state of all tenants. This changes nothing.

    Everything but the drift is of one moment. The drift comes last, as of the moments at which `find_drift` looks.

    Args:
        database: The database of the tenants.
        settings: They name the folder of the migrations.
        drift: Whether to compare the tables of all tenants, too. That takes some ten milliseconds for a tenant with
            forty tables, and a tenth of that for a small one.

    Raises:
        MigrationFileError: A file is misnamed, missing or unreadable.
        RegistryNotReadyError: There is no registry yet.
        DatabaseTimeoutError: A query took longer than `TENANTS_COMMAND_TIMEOUT`.

    Example:
        ```python
        status = await get_fleet_status(database, settings=settings, drift=False)
        for version in status.versions:
            print(version.version, version.count)
        ```
    """
    migrations = get_tenant_migrations(settings)
    newest = len(migrations)
    async with database.connection() as connection:
        await connection.execute(READ_ONE_MOMENT)
        await check_registry(connection)
        rows = await connection.fetch(_LIST_TENANTS)
        tenants = [read_tenant(row) for row in rows]
        trash: int = await connection.fetchval(_COUNT_TRASH)
        # A role that does not own the registry may lack the right to look, where nobody needs it.
        ready = await count_ready(connection, migrations, settings=settings) if settings.ready_tenants else 0
        edited = await list_edited(connection, migrations)
        shared = await list_applied(connection, SHARED_LEDGER)
        common = await list_shared_names(connection, settings=settings)
        nodes = await _find_nodes(connection, tenants)
    files = {migration.version: migration.name for migration in migrations}
    counts = Counter(tenant.version for tenant in tenants)
    status = FleetStatus(
        newest_version=newest,
        newest_file=describe_newest(migrations),
        tenants=len(tenants),
        suspended=sum(tenant.suspended for tenant in tenants),
        trash=trash,
        ready=ready,
        versions=tuple(
            VersionCount(version, files.get(version), counts[version]) for version in sorted(counts, reverse=True)
        ),
        behind=tuple(TenantVersion(t.slug, t.version) for t in tenants if t.version < newest),
        ahead=tuple(TenantVersion(t.slug, t.version) for t in tenants if t.version > newest),
        failures=tuple(
            MigrationFailure(Slug(row["slug"]), row["migration"], row["reason"], row["failed_at"])
            for row in rows
            if row["failed"]
        ),
        edited=edited,
        shared_version=max(shared, default=0),
        shared_names=tuple(common),
        nodes=nodes,
        majorities=None,
        drift=None,
    )
    return await add_drift(database, status, settings=settings) if drift else status


async def _find_nodes(connection: Connection, tenants: Iterable[Tenant]) -> dict[Slug, str]:
    if not await has_citus(connection):
        return {}
    names = {node.number: node.name for node in await list_nodes(connection)}
    places = await list_places(connection)
    return {
        tenant.slug: names[places[tenant.schema.name]] for tenant in tenants if places.get(tenant.schema.name) in names
    }


async def add_drift(
    database: Database,
    status: FleetStatus,
    *,
    settings: Settings,
    on_compared: Callable[[int], object] = lambda number: None,
) -> FleetStatus:
    """Return *status* with the drift, which takes longer than everything else. Raises the errors of `find_drift`.

    Args:
        database: The database of the tenants.
        status: From `get_fleet_status` without drift.
        settings: The settings of *status*.
        on_compared: Called after each batch with the number of its tenants.
    """
    tenants = await list_tenants(database)
    majorities, drift = await find_drift(database, tenants, settings=settings, on_compared=on_compared)
    return replace(status, majorities=tuple(majorities), drift=tuple(drift))
