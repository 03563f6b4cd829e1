"""Give a schema another name, with everything that knows it by its name."""

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import SchemaExistsError
from quart_tenants.tenant import SchemaName

MOVE_MIGRATIONS = "UPDATE quart_tenants.applied_migrations SET schema_name = $2 WHERE schema_name = $1"
"""Gives the record of what ran to another schema. $1 the old name, $2 the new name."""

FORGET_MIGRATIONS = "DELETE FROM quart_tenants.applied_migrations WHERE schema_name = $1"

MOVE_FUNCTION_PATHS = """
SELECT format('ALTER ROUTINE %s SET search_path TO %s', s.routine, substr(s.moved, 3, length(s.moved) - 3)) AS statement
FROM (
    SELECT
        p.oid::regprocedure AS routine,
        ', ' || substr(c.setting, 13) || ',' AS path,
        -- Twice, because two neighbours share a comma: acme, acme.
        replace(
            replace(
                ', ' || substr(c.setting, 13) || ',', ', ' || quote_ident($2) || ',', ', ' || quote_ident($3) || ','
            ),
            ', ' || quote_ident($2) || ',', ', ' || quote_ident($3) || ','
        ) AS moved
    FROM pg_catalog.pg_namespace AS n
    JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
        AND d.classid = 'pg_catalog.pg_proc'::regclass
    JOIN pg_catalog.pg_proc AS p ON p.oid = d.objid
    CROSS JOIN unnest(p.proconfig) AS c (setting)
    WHERE n.nspname = $1 AND c.setting LIKE 'search_path=%'
) AS s
WHERE s.moved <> s.path
"""
"""Lists the statements that put a schema's new name into the paths of its functions.

A function that was made with SET search_path FROM CURRENT keeps the name of its schema as a text, which a rename does
not change. It would read and write another tenant's rows. $1 its schema now, $2 the old name, $3 the new name.
"""


async def rename_schema(connection: Connection, old: SchemaName, new: SchemaName) -> None:
    """Rename a schema, also in the record of its migrations. Its functions keep their paths.

    Raises:
        SchemaExistsError: There is a schema *new*.
    """
    try:
        await connection.execute(f"ALTER SCHEMA {old.quoted} RENAME TO {new.quoted}")
    except asyncpg.DuplicateSchemaError as error:
        raise SchemaExistsError(new.name) from error
    await connection.execute(MOVE_MIGRATIONS, old.name, new.name)


async def move_schema(connection: Connection, old: SchemaName, new: SchemaName) -> None:
    """Rename a schema for good: also in the paths of its functions. Raises the error of `rename_schema`."""
    await rename_schema(connection, old, new)
    for row in await connection.fetch(MOVE_FUNCTION_PATHS, new.name, old.name, new.name):
        await connection.execute(row["statement"])
