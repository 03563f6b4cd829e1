"""Back up rows only, where the app's migrations make the very tables again.

pg_dump reads the catalogue of the whole database, which costs minutes with thousands of tenants, whatever the size of
the tenant. Its own tables are compared with those that the migrations make, in a schema that is rolled back at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import MigrationFileError
from quart_tenants.postgres.backups.manifests import AppliedMigration, RowsOnly
from quart_tenants.postgres.backups.restore_scripts import SAME_TEXTS, get_shape, quote_literal
from quart_tenants.postgres.blocks.database import enter_schema
from quart_tenants.postgres.migrations.migration_files import Migration, get_tenant_migrations
from quart_tenants.settings import Settings
from quart_tenants.sql_parser import messages, parse_sql, walk
from quart_tenants.tenant import REGISTRY_SCHEMA, SchemaName, Tenant


class Shapes(dict[tuple[AppliedMigration, ...], str | None]):
    """What a run of several backups remembers: the digest of the tables that migrations make, or None if they fail."""


_GET_SHAPE = get_shape("$1::boolean")
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
# Rows that a policy would hide from the owner cannot be loaded by COPY.
_LIST_RELATIONS = """
SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relkind::text AS kind, c.relforcerowsecurity AS hides_rows,
    c.relispopulated AS filled
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS c ON c.oid = d.objid
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'S', 'm')
ORDER BY name
"""
# Old rows may break such a key, and it stays while rows are loaded.
_HAS_UNPROVEN_KEY = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_namespace AS n
    JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
        AND d.classid = 'pg_catalog.pg_class'::regclass
    JOIN pg_catalog.pg_constraint AS k ON k.conrelid = d.objid AND k.contype = 'f' AND NOT k.convalidated
    JOIN pg_catalog.pg_class AS t ON t.oid = k.confrelid AND t.relnamespace <> n.oid
    WHERE n.nspname = $1
)
"""
# What these do may depend on the moment, so that the tables could be others when the backup is restored.
_OTHERWISE_LATER = frozenset({"do_stmt", "call_stmt", "select_stmt", "execute_stmt", "prepare_stmt", "copy_stmt"})
_MANY_ENUM_VALUES = 170000
"""From this version on a value can be used in the transaction that adds it to a new type."""

_BEGIN_READING = """BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET TRANSACTION SNAPSHOT {snapshot};
SET LOCAL search_path TO {path};
SET LOCAL row_security TO off;
"""
_READ_TABLE = """SELECT {heading};
COPY {target} TO STDOUT;
SELECT {end};
"""
_READ_SEQUENCE = """SELECT format('SELECT pg_catalog.setval(%L, %s, %L);', {literal}, last_value, is_called)
FROM {name};
"""


class _UndoneError(Exception):
    """Rolls a savepoint back."""


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
    try:
        migrations = {migration.version: migration for migration in get_tenant_migrations(settings)}
    except MigrationFileError:
        # pg_dump needs no files.
        return None
    chosen = [migrations.get(each.version) for each in applied]
    wanted = [
        migration
        for migration, each in zip(chosen, applied, strict=True)
        if migration is not None and migration.sha256 == each.sha256
    ]
    if not applied or len(wanted) < len(applied) or not all(is_same_later(each, server_version) for each in wanted):
        return None
    relations = await connection.fetch(_LIST_RELATIONS, schema.name)
    tables = [row["name"] for row in relations if row["kind"] in "rp"]
    if any(row["hides_rows"] for row in relations) or await connection.fetchval(_HAS_UNPROVEN_KEY, schema.name):
        return None
    if tables:
        # Nobody may change them by hand between the comparison and the reading.
        try:
            async with connection.transaction():
                await connection.execute(f"LOCK TABLE {', '.join(tables)} IN ACCESS SHARE MODE NOWAIT")
        except asyncpg.LockNotAvailableError:
            # Somebody changes one at this moment. pg_dump waits until they have finished.
            return None
    key = tuple(applied)
    if key not in shapes:
        scratch = SchemaName(f"{REGISTRY_SCHEMA}_shape_{tenant.id}")
        shapes[key] = await _try_migrations(connection, scratch, wanted, settings, privileges=privileges)
    await enter_schema(connection, schema, settings=settings)
    shape: str = await connection.fetchval(_GET_SHAPE, privileges)
    await connection.execute("SET LOCAL search_path TO ''")
    if shape != shapes[key]:
        return None
    return ReadingPlan(
        schema,
        RowsOnly(shape, tuple(row["name"] for row in relations if row["kind"] == "m" and row["filled"])),
        [(row["name"], row["columns"]) for row in await connection.fetch(_LIST_TABLES, schema.name)],
        [row["name"] for row in relations if row["kind"] == "S"],
        tuple(list_statements(wanted)),
    )


def begin_reading(snapshot: str, path: str) -> str:
    """Return the script for psql that begins to read what *snapshot* shows, with *path* as SQL of a path."""
    return _BEGIN_READING.format(snapshot=quote_literal(snapshot), path=path) + SAME_TEXTS


def write_head(schema: SchemaName) -> str:
    """Return the first line of the rows of *schema*. Their names have the schema, and must not reach into another."""
    return f"-- rows of schema {schema.quoted}"


def is_same_later(migration: Migration, server_version: int) -> bool:
    """Return whether the file makes the same tables whenever it runs. Pure."""
    for raw in parse_sql(migration.sql).stmts:
        kind = raw.stmt.WhichOneof("node")
        if kind in _OTHERWISE_LATER or (kind == "alter_enum_stmt" and server_version < _MANY_ENUM_VALUES):
            return False
        bounds = [node for name, node in walk(raw.stmt) if isinstance(node, messages.PartitionBoundSpec)]
        if any(
            isinstance(node, messages.FuncCall | messages.SQLValueFunction) for each in bounds for _, node in walk(each)
        ):
            return False
    return True


def list_statements(migrations: Sequence[Migration]) -> Iterator[str]:
    """Yield the statements that make the tables of a new tenant. Each file's deferred checks are done at its end."""
    for migration in migrations:
        script = migration.script
        if script.batch_rows is not None:
            # It changes rows only, and those go.
            continue
        for statement in script.statements:
            if statement.sql_for_new_tables is not None:
                yield statement.sql_for_new_tables
        # The rows go, so the constraints need not be in their own mode again.
        yield "SET CONSTRAINTS ALL IMMEDIATE"
        yield "SET CONSTRAINTS ALL DEFERRED"


async def _try_migrations(
    connection: Connection,
    schema: SchemaName,
    migrations: Sequence[Migration],
    settings: Settings,
    *,
    privileges: bool,
) -> str | None:
    """Return the digest of what *migrations* make in the new schema *schema*, or None if they fail there."""
    shape: str | None = None
    try:
        async with connection.transaction():
            await connection.execute(f"CREATE SCHEMA {schema.quoted}")
            await enter_schema(connection, schema, settings=settings)
            for statement in list_statements(migrations):
                await connection.execute(statement)
            shape = await connection.fetchval(_GET_SHAPE, privileges)
            raise _UndoneError
    except (_UndoneError, asyncpg.PostgresError):
        # Whatever fails here, pg_dump does not need it.
        return shape
