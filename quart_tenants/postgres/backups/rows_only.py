"""Back up rows only, where the app's migrations make the very tables again.

pg_dump reads the catalogue of the whole database, which costs minutes with thousands of tenants, whatever the size of
the tenant. Its own tables are compared with those that the migrations make, in a schema that is rolled back at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.postgres.backups.manifests import AppliedMigration, RowsOnly
from quart_tenants.postgres.backups.migrated_shapes import (
    LIST_RELATIONS,
    Shapes,
    find_shape,
    get_digest,
    name_relations,
)
from quart_tenants.postgres.backups.restore_scripts import SAME_TEXTS, write_script
from quart_tenants.postgres.blocks.database import enter_schema
from quart_tenants.postgres.blocks.long_work import LIFT_LIMITS
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Tenant, quote_literal

_LIST_TABLES = """
SELECT
    format('%I.%I', n.nspname, c.relname) AS name,
    (
        SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute AS a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    ) AS columns
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS c ON c.oid = d.objid
WHERE n.nspname = $1 AND c.relkind = 'r'
ORDER BY name
"""
# Says whether the schema has what rows alone would not bring back as it was: an index of a function, which may read
# other rows; domains with CHECKs; tables that inherit or are partitions; constraints that old rows may break; what
# depends on an extension; and rights that new tables get by default.
_HAS_MORE = """
WITH members AS MATERIALIZED (
    SELECT d.classid, d.objid
    FROM pg_catalog.pg_namespace AS n
    JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    WHERE n.nspname = $1
)
SELECT EXISTS (
    SELECT FROM members AS m JOIN pg_catalog.pg_index AS x ON x.indrelid = m.objid
    JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = x.indexrelid
    WHERE d.refclassid = 'pg_catalog.pg_proc'::regclass
    UNION ALL
    SELECT FROM members AS m JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = m.objid
    UNION ALL
    SELECT FROM members AS m JOIN pg_catalog.pg_inherits AS i ON i.inhparent = m.objid
    UNION ALL
    SELECT FROM members AS m JOIN pg_catalog.pg_constraint AS k ON k.conrelid = m.objid WHERE NOT k.convalidated
    UNION ALL
    SELECT FROM members AS m
    JOIN pg_catalog.pg_depend AS d ON d.refclassid = m.classid AND d.refobjid = m.objid
    JOIN pg_catalog.pg_constraint AS k ON k.oid = d.objid AND k.contypid = m.objid
    WHERE m.classid = 'pg_catalog.pg_type'::regclass AND d.classid = 'pg_catalog.pg_constraint'::regclass
        AND k.contype = 'c'
    UNION ALL
    SELECT FROM members AS m JOIN pg_catalog.pg_depend AS d ON d.classid = m.classid AND d.objid = m.objid
    WHERE d.deptype = 'x'
    UNION ALL
    SELECT FROM members AS m JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = m.objid
    WHERE g.tgisinternal AND g.tgenabled <> 'O'
    UNION ALL
    SELECT FROM pg_catalog.pg_default_acl WHERE defaclnamespace = 0 AND $2
)
"""
_BEGIN_READING = """BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET TRANSACTION SNAPSHOT {snapshot};
{lift};
SET LOCAL search_path TO {path};
SET LOCAL row_security TO off;
SET LOCAL statement_timeout TO 0;
"""
_READ_TABLE = """SELECT {heading};
COPY {target} TO STDOUT;
SELECT {end};
"""
_READ_SEQUENCE = """SELECT format('SELECT pg_catalog.setval(%L, %s, %L);', {literal}, last_value, is_called)
FROM {name};
"""


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """What psql is to read.

    Attributes:
        schema: The schema of the tenant.
        rows: What the manifest says of the backup.
        tables: The name of each table, quoted and with its schema, and its columns.
        sequences: The names of the sequences.
        statements: What makes the tables.
    """

    schema: SchemaName
    rows: RowsOnly
    tables: Sequence[tuple[str, str | None]]
    sequences: Sequence[str]
    statements: Sequence[str]

    def write_script(self, snapshot: str) -> str:
        """Return the script for psql. What it prints is the SQL that loads the rows again."""
        script = [begin_reading(snapshot, "''"), f"SELECT {quote_literal(write_head(self.schema))};\n"]
        for name, columns in self.tables:
            target = f"{name} ({columns})" if columns else name
            heading = quote_literal(f"COPY {target} FROM stdin;")
            script.append(_READ_TABLE.format(heading=heading, target=target, end=quote_literal("\\.")))
        script += [_READ_SEQUENCE.format(name=name, literal=quote_literal(name)) for name in self.sequences]
        return "".join([*script, "COMMIT;\n"])


async def plan_rows_only(
    connection: Connection,
    tenant: Tenant,
    applied: Sequence[AppliedMigration],
    *,
    settings: Settings,
    privileges: bool,
    server_version: int,
    shapes: Shapes,
) -> ReadingPlan | None:
    """Return the plan if the tables of *tenant* are those that its migrations make, else None.

    Args:
        connection: Inside a block that has locked the tenant.
        tenant: The tenant.
        applied: The migrations that have run in it.
        settings: They say where the migrations are, and which schemas are shared.
        privileges: Whether rights count.
        server_version: The version of the server, for example 180001.
        shapes: From other tenants of the same run.
    """
    schema = tenant.schema
    key = tuple(applied)
    if key not in shapes:
        try:
            shapes[key] = await find_shape(
                connection, tenant.id, key, settings=settings, privileges=privileges, server_version=server_version
            )
        except asyncpg.LockNotAvailableError:
            # Nobody can read a shared table at this moment. The next tenant may have more luck.
            return None
    shape = shapes[key]
    relations = await connection.fetch(LIST_RELATIONS, schema.name)
    if shape is None or name_relations(relations) != shape.relations:
        return None
    tables = [row["name"] for row in relations if row["kind"] in "rp"]
    if any(row["hides_rows"] for row in relations) or await connection.fetchval(_HAS_MORE, schema.name, privileges):
        return None
    if tables:
        # Nobody may change them by hand between the comparison and the reading.
        try:
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS SHARE MODE NOWAIT")
        except asyncpg.LockNotAvailableError:
            # Somebody changes one at this moment. pg_dump waits until they have finished.
            return None
    await enter_schema(connection, schema, settings=settings)
    digest = await get_digest(connection, privileges=privileges)
    await connection.execute("SET LOCAL search_path TO ''")
    if digest != shape.digest:
        return None
    return ReadingPlan(
        schema,
        RowsOnly(digest),
        [(row["name"], row["columns"]) for row in await connection.fetch(_LIST_TABLES, schema.name)],
        [row["name"] for row in relations if row["kind"] == "S"],
        shape.statements,
    )


def begin_reading(snapshot: str, path: str) -> str:
    """Return the script for psql that begins to read what *snapshot* shows, with *path* as SQL of a path."""
    begin = _BEGIN_READING.format(snapshot=quote_literal(snapshot), lift=LIFT_LIMITS, path=path)
    return begin + write_script(*SAME_TEXTS)


def write_head(schema: SchemaName) -> str:
    """Return the first line of the rows of *schema*. Their names have the schema, and must not reach into another."""
    return f"-- rows of schema {schema.quoted}"
