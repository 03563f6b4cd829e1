"""Read migration files, plan what is missing, and run it in one schema."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from quart_tenants.errors import MigrationFailedError, MigrationFileError
from quart_tenants.postgres.refusals import describe_refusal

if TYPE_CHECKING:
    from quart_tenants.postgres.database import Connection

# Good enough to tell whether anything else is there; the server does the parsing.
_COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_FILE_NAME = re.compile(r"([0-9]{4})_[a-z0-9_]+\.sql")

_RECORD = """
INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256) VALUES ($1, $2, $3, $4)
"""
_SHOW_PATH = "SELECT pg_catalog.current_setting('search_path')"
_LIST_APPLIED = "SELECT version, sha256 FROM quart_tenants.applied_migrations WHERE schema_name = $1"


_ENDS_TRANSACTION = "it ends the transaction that it runs in; take COMMIT and ROLLBACK out"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file `NNNN_what_it_does.sql`.

    Attributes:
        version: NNNN, from 1 and without a gap.
        name: The file's name.
        sql: What it does: unqualified names, so that it runs in any tenant's schema.
    """

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """The digest of the file's text, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(folder: Path) -> tuple[Migration, ...]:
    """Return the migrations in *folder* in order of version.

    Raises:
        MigrationFileError: A file is misnamed or not UTF-8, a number is missing or there twice,
            a file holds no statement, there are none, or the folder cannot be read.
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
            migration = Migration(int(match[1]), path.name, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise MigrationFileError(f"{path}: cannot be read: {error}") from error
        if not _COMMENTS.sub("", migration.sql).strip():
            raise MigrationFileError(f"{path}: holds no statement")
        if migration.version != len(migrations) + 1:
            raise MigrationFileError(
                f"{path}: expected number {len(migrations) + 1:04}; numbers start at 0001, without a gap or a double"
            )
        migrations.append(migration)
    if not migrations:
        raise MigrationFileError(f"{folder}: has no file named like 0001_what_it_does.sql")
    return tuple(migrations)


def plan_migrations(migrations: Sequence[Migration], applied: Mapping[int, str]) -> tuple[Migration, ...]:
    """Return those of *migrations* that are missing from *applied* (version → sha256). Pure.

    Versions in *applied* that are newer than every file are left alone: a newer program made them.

    Raises:
        MigrationFileError: A file was changed after it was applied.
    """
    for migration in migrations:
        if applied.get(migration.version, migration.sha256) != migration.sha256:
            raise MigrationFileError(
                f"{migration.name} was changed after it was applied; put the file back and write a new one"
            )
    return tuple(migration for migration in migrations if migration.version not in applied)


async def list_applied(connection: "Connection", schema: str) -> dict[int, str]:
    """Return the versions applied in *schema*, each with the sha256 of its file."""
    return {row["version"]: row["sha256"] for row in await connection.fetch(_LIST_APPLIED, schema)}


async def apply_migrations(connection: "Connection", schema: str, migrations: Sequence[Migration]) -> None:
    """Run *migrations* in the transaction and on the path of *connection*, and record them for *schema*.

    Raises:
        MigrationFailedError: A statement failed, and the caller's transaction is lost; or a file ended
            that transaction or changed the path, so that what follows would land elsewhere.
    """
    path = await connection.fetchval(_SHOW_PATH)
    for migration in migrations:
        try:
            await connection.execute(migration.sql)
        except asyncpg.PostgresError as error:
            # What `create_tenant` put there fails at an early COMMIT.
            early = isinstance(error, asyncpg.ForeignKeyViolationError) and error.table_name == "unfinished"
            reason = _ENDS_TRANSACTION if early else _locate(error, migration.sql)
            raise MigrationFailedError(schema, migration.name, reason) from error
        if not connection.is_in_transaction():
            raise MigrationFailedError(schema, migration.name, _ENDS_TRANSACTION)
        if await connection.fetchval(_SHOW_PATH) != path:
            raise MigrationFailedError(schema, migration.name, "it changes search_path; use unqualified names only")
    await record_migrations(connection, schema, migrations)


async def record_migrations(connection: "Connection", schema: str, migrations: Sequence[Migration]) -> None:
    """Write down that *migrations* are applied in *schema*, without running them."""
    await connection.executemany(
        _RECORD, [(schema, migration.version, migration.name, migration.sha256) for migration in migrations]
    )


def _locate(error: asyncpg.PostgresError, sql: str) -> str:
    """Return what the server said, with the line of *sql* if it said where."""
    # Its position counts characters from 1.
    line = f"line {sql.count(chr(10), 0, int(error.position) - 1) + 1}: " if error.position else ""
    return line + describe_refusal(error)
