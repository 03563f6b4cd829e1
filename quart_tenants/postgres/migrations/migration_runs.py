"""Run migrations in one transaction, and record them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import MigrationFailedError
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.migrations.deferred_constraints import settle_constraints
from quart_tenants.postgres.migrations.migration_files import Migration
from quart_tenants.postgres.roles.owner_role import as_owner

if TYPE_CHECKING:
    from quart_tenants.postgres.migrations.migration_statements import Statement

LEAVES_PATH = "it changes search_path; use unqualified names only"

# It returns the path, so that a migration that has changed the path is noticed.
_RECORD = """
WITH recorded AS (
    INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256)
    SELECT $1, version, name, sha256
    FROM unnest($2::text[]::integer[], $3::text[], $4::text[]) AS x (version, name, sha256)
)
SELECT pg_catalog.current_schemas(false)::text[]
"""

AfterStatement = Callable[[Connection | DriverConnection, Migration, "Statement"], Awaitable[None]]
"""Called with the connection after each statement of a migration, in the same transaction."""


async def apply_migrations(
    connection: Connection,
    schema: str,
    migrations: Sequence[Migration],
    *,
    path: Sequence[str] | None = None,
    owner: bool = False,
) -> None:
    """Run *migrations* in the transaction and on the path of *connection*, and record them for *schema*.

    Args:
        connection: Inside a block.
        schema: The name under which they are recorded.
        migrations: In order of version.
        path: The schemas on the path of *connection*; default: *schema* alone.
        owner: Whether they run as the owner role. The role that has logged in writes the record.

    Raises:
        MigrationFileError: A file is no SQL; nothing ran.
        MigrationFailedError: A statement failed, or a migration changed the path. The caller's
            transaction is lost.
        RolesNotReadyError: There is no owner role.
    """
    async with as_owner(connection, wanted=owner):
        await run_scripts(connection, schema, migrations)
    if await record_migrations(connection, schema, migrations) != list([schema] if path is None else path):
        raise explain_path(schema, migrations)


async def run_scripts(
    connection: Connection,
    schema: str,
    migrations: Sequence[Migration],
    *,
    seconds: float | None = None,
    after: AfterStatement | None = None,
) -> None:
    """Run the statements of *migrations* in the transaction of *connection*, one message each, without a record.

    The tables are new, and nobody uses them yet. So statements that PostgreSQL refuses in a transaction run without
    CONCURRENTLY, VACUUM and REINDEX are left out, and batches follow one another without a commit. After each file the
    constraints that it deferred are checked.

    Args:
        connection: Inside a block.
        schema: For errors.
        migrations: In order of version.
        seconds: How long a statement may take; default: the connection's own limit.
        after: Called after each statement.

    Raises:
        MigrationFileError: A file is no SQL; nothing ran.
        MigrationFailedError: A statement failed, or a row violates a deferred constraint. The caller's transaction is
            lost.
    """
    scripts = [(migration, migration.script) for migration in migrations]
    for number, (migration, script) in enumerate(scripts):
        name = migration.name
        deferred = False
        for statement in script.statements:
            try:
                # The first file would meet the same rows if it were alone, and there PostgreSQL has the last word.
                if number and deferred and statement.settled_tables:
                    await settle_constraints(connection, statement.settled_tables)
                if (sql := statement.sql_for_new_tables) is not None:
                    while await run_statement(connection, sql, script.batch_rows, seconds=seconds):
                        pass
            except asyncpg.PostgresError as error:
                raise MigrationFailedError(schema, name, locate_refusal(statement, error)) from error
            deferred |= statement.may_defer
            if after is not None:
                await after(connection, migration, statement)
        if deferred:
            try:
                await settle_constraints(connection)
            except asyncpg.PostgresError as error:
                raise MigrationFailedError(schema, name, describe_refusal(error)) from error


async def run_statement(
    connection: Connection | DriverConnection, sql: str, batch_rows: int | None, *, seconds: float | None = None
) -> bool:
    """Run *sql* once, and return whether it is to run again. Outside a transaction each run is one of its own.

    Args:
        connection: It sees the tables.
        sql: One statement.
        batch_rows: How many rows it may change, which is its only parameter; None if it has none, and runs once.
        seconds: How long it may take; default: the connection's own limit.
    """
    if batch_rows is None:
        await connection.execute(sql, timeout=seconds)
        return False
    status = await connection.execute(sql, batch_rows, timeout=seconds)
    # Such as "UPDATE 5000", or "INSERT 0 5000".
    return status.rpartition(" ")[2] != "0"


def explain_path(schema: str, migrations: Sequence[Migration]) -> MigrationFailedError:
    """Return the error for *migrations* that changed the path, for example by set_config()."""
    # A SET statement is refused before any statement runs.
    names = ", ".join(migration.name for migration in migrations)
    return MigrationFailedError(schema, names, LEAVES_PATH)


async def record_migrations(
    connection: Connection | DriverConnection, schema: str, migrations: Sequence[Migration]
) -> list[str]:
    """Record that *migrations* are applied in *schema*, and return the schemas on the path."""
    schemas: list[str] = await connection.fetchval(
        _RECORD,
        schema,
        [str(migration.version) for migration in migrations],
        [migration.name for migration in migrations],
        [migration.sha256 for migration in migrations],
    )
    return schemas


def locate_refusal(statement: "Statement", error: asyncpg.PostgresError) -> str:
    """Return the server's message about *statement*, with the line of its file."""
    return f"line {statement.locate(error.position)}: {describe_refusal(error)}"
