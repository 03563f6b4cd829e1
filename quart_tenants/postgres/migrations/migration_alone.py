"""Run a file that PostgreSQL refuses in a transaction, or one in batches: statement by statement."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import asyncpg

from quart_tenants.errors import MigrationFailedError
from quart_tenants.postgres.blocks.block import list_path
from quart_tenants.postgres.driver.connection_types import DriverConnection, describe
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.migrations.migration_files import Migration
from quart_tenants.postgres.migrations.migration_runs import LEAVES_PATH, AfterStatement, locate_refusal, run_statement
from quart_tenants.postgres.migrations.migration_tries import GRACE
from quart_tenants.settings import Settings

# By the tables of the schema: pg_index has no index for what is not valid, and would be read for all tenants. The index
# of a partitioned table (relkind I) is not valid before each partition has one.
_FIND_INVALID_INDEX = """
SELECT c.relname::text FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
JOIN pg_catalog.pg_index AS i ON i.indrelid = d.objid AND NOT i.indisvalid
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid AND c.relkind = 'i'
WHERE n.nspname = $1 AND d.classid = 'pg_catalog.pg_class'::regclass LIMIT 1
"""


async def run_alone(
    connection: DriverConnection,
    migration: Migration,
    path: Sequence[str],
    *,
    settings: Settings,
    after: AfterStatement | None = None,
) -> None:
    """Run the statements of *migration* outside a transaction. If one fails, those before it stay.

    Args:
        connection: It sees the schemas of *path*.
        migration: The file.
        path: The schema of the tables first.
        settings: They say how long a statement may take.
        after: Called after each statement.

    Raises:
        MigrationFileError: The file is no SQL; nothing ran.
        MigrationFailedError: A statement failed or changed the path, or an index is invalid.
    """
    script = migration.script
    for statement in script.statements:
        again = True
        while again:
            try:
                again = await run_statement(
                    connection,
                    statement.sql,
                    script.batch_rows,
                    seconds=settings.migration_statement_timeout + GRACE,
                )
            except asyncpg.PostgresError as error:
                raise _explain_half(path[0], migration, locate_refusal(statement, error)) from error
            # Otherwise the next statement could run in another tenant's schema.
            if await list_path(connection) != list(path):
                raise _explain_half(path[0], migration, f"line {statement.line}: {LEAVES_PATH}")
            if after is not None:
                await after(connection, migration, statement)
    index = await connection.fetchval(_FIND_INVALID_INDEX, path[0])
    if index is not None:
        raise _explain_half(
            path[0],
            migration,
            f"index {index} is invalid, left by a CREATE INDEX CONCURRENTLY that failed: "
            "begin the file with DROP INDEX CONCURRENTLY IF EXISTS, or drop it by hand",
        )


@contextmanager
def half_explained(schema: str, migration: Migration) -> Iterator[None]:
    """Let a driver's error in the block say that a part of *migration* may have run in *schema*.

    Raises:
        MigrationFailedError: There was one.
    """
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        reason = describe_refusal(error) if isinstance(error, asyncpg.PostgresError) else describe(error)
        raise _explain_half(schema, migration, reason) from error


def _explain_half(schema: str, migration: Migration, reason: str) -> MigrationFailedError:
    kept = "what it did before stays, for it runs outside a transaction; the next try begins the file anew"
    return MigrationFailedError(schema, migration.name, reason, kept=kept)
