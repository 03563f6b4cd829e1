"""Read migration files, and find those that are missing in a schema."""

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quart_tenants.connection import Connection
from quart_tenants.errors import MigrationFileError, SettingError
from quart_tenants.long_lists import name_some
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.settings import Settings
from quart_tenants.tenant import REGISTRY_SCHEMA, Slug

if TYPE_CHECKING:
    from quart_tenants.postgres.migrations.migration_statements import Script

SHARED_LEDGER = f"{REGISTRY_SCHEMA}_shared"
"""The name under which the shared migrations are recorded, in place of a schema's. No tenant's schema has it."""

_FILE_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql")

# Lists files ($1 versions, $2 digests) that ran with another text, and the tenants for which they ran. The index of all
# digests by version tells the first and the last one at once, and in nearly all calls there is no other. So the time
# does not grow with the number of tenants.
_LIST_EDITED = """
WITH edited AS MATERIALIZED (
    SELECT f.version, f.sha256
    FROM unnest($1::text[]::integer[], $2::text[]) AS f (version, sha256)
    CROSS JOIN LATERAL (
        SELECT min(a.sha256) AS first, max(a.sha256) AS last
        FROM quart_tenants.applied_migrations AS a
        WHERE a.version = f.version
            AND a.schema_name <> 'quart_tenants' AND NOT pg_catalog.starts_with(a.schema_name, 'quart_tenants_')
    ) AS ran
    WHERE ran.first <> f.sha256 OR ran.last <> f.sha256
)
SELECT a.version, array_agg(t.slug ORDER BY t.slug) AS slugs
FROM edited AS f
JOIN quart_tenants.applied_migrations AS a ON a.version = f.version AND a.sha256 <> f.sha256
JOIN quart_tenants.living_tenants AS t ON t.schema_name = a.schema_name
GROUP BY a.version ORDER BY a.version
"""
_LIST_APPLIED = "SELECT version, sha256 FROM quart_tenants.applied_migrations WHERE schema_name = $1"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file `NNNN_what_it_does.sql`.

    Attributes:
        version: NNNN, from 1 and without a gap.
        name: The file's name.
        sql: The text. Its names are unqualified, so that it runs in any tenant's schema.
        shared: Whether it runs once, for all tenants. Only then may it create extensions.
    """

    version: int
    name: str
    sql: str
    shared: bool = False

    @property
    def sha256(self) -> str:
        """The digest of the file's text, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def script(self) -> "Script":
        """The file's statements.

        Raises:
            MigrationFileError: The file is no SQL, or does what a migration must not.
        """
        return _parse(self.name, self.sql, self.shared)

    def check(self) -> None:
        """Make sure that the file can run. Raises the error of `script`."""
        _ = self.script


@dataclass(frozen=True, slots=True)
class EditedFile:
    """A migration whose file was changed after it had run for these tenants."""

    file: str
    slugs: tuple[Slug, ...]


def read_migrations(folder: Path, *, shared: bool = False, may_be_empty: bool = False) -> tuple[Migration, ...]:
    """Return the migrations in *folder* in order of version. Their statements are not parsed yet.

    Args:
        folder: The folder.
        shared: Whether the files run once, for all tenants.
        may_be_empty: Whether no file is no error.

    Raises:
        MigrationFileError: A file is misnamed or not UTF-8, a number is missing or there twice,
            there are none, or the folder cannot be read.
    """
    migrations: list[Migration] = []
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise MigrationFileError(f"{folder}: cannot be read: {error}") from error
    for path in paths:
        if path.name.startswith("."):
            continue
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise MigrationFileError(f"{path}: a migration is named like 0001_what_it_does.sql")
        try:
            migration = Migration(int(match[1]), path.name, path.read_text(encoding="utf-8-sig"), shared)
        except (OSError, UnicodeDecodeError) as error:
            raise MigrationFileError(f"{path}: cannot be read: {error}") from error
        if migration.version != len(migrations) + 1:
            raise MigrationFileError(
                f"{path}: expected number {len(migrations) + 1:04}; numbers start at 0001, without a gap or a double"
            )
        migrations.append(migration)
    if not migrations and not may_be_empty:
        raise MigrationFileError(f"{folder}: has no file named like 0001_what_it_does.sql")
    return tuple(migrations)


def get_tenant_migrations(settings: Settings) -> tuple[Migration, ...]:
    """Return the migrations for tenants' schemas. With `TENANTS_MINIMUM_VERSION=0` there may be none.

    Raises:
        SettingError: `TENANTS_MIGRATIONS_DIR` is not set.
        MigrationFileError: A file is misnamed, missing or unreadable.
    """
    others_migrate = settings.minimum_version == 0
    if settings.migrations_dir is not None:
        return read_migrations(settings.migrations_dir, may_be_empty=others_migrate)
    if others_migrate:
        return ()
    raise SettingError(
        "TENANTS_MIGRATIONS_DIR",
        "is not set: name the folder with the files that make a tenant's tables, "
        "or set TENANTS_MINIMUM_VERSION=0 if something else makes them",
    )


def describe_newest(migrations: Sequence[Migration]) -> str:
    """Return the name of the newest file, or say that there is none."""
    return migrations[-1].name if migrations else "none"


def get_shared_migrations(settings: Settings) -> tuple[Migration, ...]:
    """Return the migrations for the shared schemas; none if `TENANTS_SHARED_MIGRATIONS_DIR` is not set.

    Raises:
        MigrationFileError: A file is misnamed, missing or unreadable.
    """
    folder = settings.shared_migrations_dir
    return () if folder is None else read_migrations(folder, shared=True)


def plan_migrations(migrations: Sequence[Migration], applied: Mapping[int, str]) -> tuple[Migration, ...]:
    """Return those of *migrations* that are missing from *applied* (version → sha256). Pure.

    Versions in *applied* that are newer than every file are ignored: a newer program made them.

    Raises:
        MigrationFileError: A file was changed after it was applied.
    """
    for migration in migrations:
        if applied.get(migration.version, migration.sha256) != migration.sha256:
            raise MigrationFileError(
                f"{migration.name} was changed after it was applied; put the file back and write a new one"
            )
    return tuple(migration for migration in migrations if migration.version not in applied)


async def list_applied(connection: Connection | DriverConnection, schema: str) -> dict[int, str]:
    """Return the versions applied in *schema*, each with the sha256 of its file."""
    return {row["version"]: row["sha256"] for row in await connection.fetch(_LIST_APPLIED, schema)}


async def list_edited(connection: Connection, migrations: Sequence[Migration]) -> tuple[EditedFile, ...]:
    """Return the *migrations* that were changed after they ran, by one query for all tenants."""
    rows = await connection.fetch(
        _LIST_EDITED,
        [str(migration.version) for migration in migrations],
        [migration.sha256 for migration in migrations],
    )
    names = {migration.version: migration.name for migration in migrations}
    return tuple(EditedFile(names[row["version"]], tuple(map(Slug, row["slugs"]))) for row in rows)


async def refuse_edited(connection: Connection, migrations: Sequence[Migration]) -> None:
    """Make sure that no file was changed after it ran for some tenant.

    Raises:
        MigrationFileError: A file was changed. The error names the files and the tenants.
    """
    edited = await list_edited(connection, migrations)
    if edited:
        names = "; ".join(f"{one.file} (by {name_some(one.slugs)})" for one in edited)
        raise MigrationFileError(
            f"changed after it was applied: {names}; put the file back, and write a new one for what is to change"
        )


@functools.lru_cache(maxsize=256)
def _parse(name: str, sql: str, shared: bool) -> "Script":
    # Imported here, because loading it takes a tenth of a second and a worker runs no migration.
    from quart_tenants.postgres.migrations.migration_statements import parse_script

    return parse_script(name, sql, may_create_extensions=shared)
