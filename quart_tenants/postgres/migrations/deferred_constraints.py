"""Check deferred constraints after a file, as the commit would if the file were alone in its transaction."""

from collections.abc import Sequence

from quart_tenants.connection import Connection

# ALTER TABLE refuses a table for which a check is pending. So that a file runs alike alone and behind others, its
# checks are done at its end, and the constraints are then in the mode of their declaration again.
#
# SET CONSTRAINTS ALL would also change constraints that a later file makes, so each is named. The tables are found
# by pg_depend, whose index knows schemas: pg_constraint has none for them, and would be read for all tenants. $1 has
# the names of the tables, or is null for all.
_FORMAT_SETTLING = """
SELECT
    'SET CONSTRAINTS ' || string_agg(c.name, ', ') || ' IMMEDIATE' AS checking,
    'SET CONSTRAINTS ' || string_agg(c.name, ', ') FILTER (WHERE c.condeferred) || ' DEFERRED' AS deferring
FROM (
    SELECT DISTINCT pg_catalog.format('%I.%I', n.nspname, k.conname) AS name, k.condeferred
    FROM pg_catalog.pg_namespace AS n
    JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    JOIN pg_catalog.pg_class AS t ON t.oid = d.objid
    JOIN pg_catalog.pg_constraint AS k ON k.conrelid = t.oid
    WHERE n.nspname = ANY (pg_catalog.current_schemas(false))
        AND d.classid = 'pg_catalog.pg_class'::regclass AND k.condeferrable
        AND ($1::text[] IS NULL OR t.relname = ANY ($1::text[]))
) AS c
"""


async def settle_constraints(connection: Connection, tables: Sequence[str] | None = None) -> None:
    """Check what the transaction on *connection* has deferred, in all schemas on its path.

    Args:
        connection: Inside a block.
        tables: The names of the tables whose own constraints are checked; default: all tables. An update of a row that
            an earlier file has inserted into a table waits for a check that it would not need in a transaction of its
            own.

    Raises:
        asyncpg.IntegrityConstraintViolationError: A row violates a constraint. The transaction is lost.
    """
    for statement in await connection.fetchrow(_FORMAT_SETTLING, tables) or ():
        if statement is not None:
            await connection.execute(statement)
