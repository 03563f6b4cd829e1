"""Report where the fleet stands: versions, failures, edited files and drift, each by one query over all tenants."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.drift import Drift, Majority, find_drift
from quart_tenants.postgres.migrations.migration_files import EditedFile, get_tenant_migrations, list_edited
from quart_tenants.postgres.registry.registry_tables import check_registry, read_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug

# So that all answers are about the same moment, while tenants are made and migrated.
_READ_ONE_MOMENT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_LIST_TENANTS = """
SELECT
    t.id, t.slug, t.schema_name, t.display_name, t.version, t.suspended, t.role_name,
    f.tenant_id IS NOT NULL AS failed, f.migration, f.reason, f.failed_at
FROM quart_tenants.living_tenants AS t
LEFT JOIN quart_tenants.migration_failures AS f ON f.tenant_id = t.id AND f.version = t.version
ORDER BY t.slug
"""
_COUNT_TRASH = "SELECT count(*) FROM quart_tenants.tenants WHERE dropped_at IS NOT NULL"


@dataclass(frozen=True, slots=True)
class VersionCount:
    """How many tenants stand at a version.

    Attributes:
        version: Of their newest migration; 0 for none.
        file: Its file; None for version 0, and where a newer program made it.
        count: How many.
    """

    version: int
    file: str | None
    count: int


@dataclass(frozen=True, slots=True)
class TenantVersion:
    """Where one tenant stands."""

    slug: Slug
    version: int


@dataclass(frozen=True, slots=True)
class MigrationFailure:
    """What went wrong in the last try to migrate a tenant.

    Attributes:
        slug: The tenant.
        migration: The file that failed, or None where none had begun.
        reason: What was said.
        failed_at: When.
    """

    slug: Slug
    migration: str | None
    reason: str
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """Where all tenants stand. The trash counts only as `trash`.

    Attributes:
        newest_version: Of the newest migration file.
        newest_file: Its name.
        tenants: How many there are.
        suspended: How many of them are not served.
        trash: How many more lie in the trash.
        versions: How many stand where, the newest version first.
        behind: Tenants older than the newest file, in order of slug.
        ahead: Tenants newer than every file: a newer program made or migrated them.
        failures: Tenants whose last migration failed.
        edited: Files that are not what ran.
        majorities: What the tenants at each version were compared with; None where they were not compared.
        drift: Tenants whose tables are not those of the majority; None where they were not compared.
    """

    newest_version: int
    newest_file: str
    tenants: int
    suspended: int
    trash: int
    versions: tuple[VersionCount, ...]
    behind: tuple[TenantVersion, ...]
    ahead: tuple[TenantVersion, ...]
    failures: tuple[MigrationFailure, ...]
    edited: tuple[EditedFile, ...]
    majorities: tuple[Majority, ...] | None
    drift: tuple[Drift, ...] | None


async def get_fleet_status(database: Database, *, settings: Settings, drift: bool = True) -> FleetStatus:
    """Return where all tenants stand, at one moment. Changes nothing.

    For commands: the server process behind the connection remembers what it has compared, some 25 kB a tenant,
    until the connection is closed.

    Args:
        database: Where.
        settings: Where the migrations lie.
        drift: Whether to compare the tables of all tenants, too: about a second for ten thousand small ones.

    Raises:
        MigrationFileError: A file is misnamed, missing or unreadable.
        RegistryNotReadyError: There is no registry yet.
        DatabaseTimeoutError: A question took longer than `TENANTS_COMMAND_TIMEOUT`.
    """
    migrations = get_tenant_migrations(settings)
    newest = migrations[-1]
    async with database.connection() as connection:
        await connection.execute(_READ_ONE_MOMENT)
        await check_registry(connection)
        rows = await connection.fetch(_LIST_TENANTS)
        tenants = [read_tenant(row) for row in rows]
        trash: int = await connection.fetchval(_COUNT_TRASH)
        edited = await list_edited(connection, migrations)
        compared = await find_drift(connection, tenants) if drift else None

    files = {migration.version: migration.name for migration in migrations}
    counts = Counter(tenant.version for tenant in tenants)
    return FleetStatus(
        newest_version=newest.version,
        newest_file=newest.name,
        tenants=len(tenants),
        suspended=sum(tenant.suspended for tenant in tenants),
        trash=trash,
        versions=tuple(
            VersionCount(version, files.get(version), counts[version]) for version in sorted(counts, reverse=True)
        ),
        behind=tuple(TenantVersion(t.slug, t.version) for t in tenants if t.version < newest.version),
        ahead=tuple(TenantVersion(t.slug, t.version) for t in tenants if t.version > newest.version),
        failures=tuple(
            MigrationFailure(Slug(row["slug"]), row["migration"], row["reason"], row["failed_at"])
            for row in rows
            if row["failed"]
        ),
        edited=edited,
        majorities=None if compared is None else tuple(compared[0]),
        drift=None if compared is None else tuple(compared[1]),
    )
