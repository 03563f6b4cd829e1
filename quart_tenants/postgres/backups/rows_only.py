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
from quart_tenants.postgres.backups.stand_ins import make_stand_ins
from quart_tenants.postgres.blocks.database import enter_schema
from quart_tenants.postgres.blocks.short_waits import WAIT_SHORTLY
from quart_tenants.postgres.citus.settings_of_citus import KEEP_LOCAL
from quart_tenants.postgres.migrations.migration_files import Migration, get_tenant_migrations
from quart_tenants.settings import Settings
from quart_tenants.sql_parser import messages, parse_sql, walk
from quart_tenants.tenant import REGISTRY_SCHEMA, SchemaName, Tenant


class Shapes(dict[tuple[AppliedMigration, ...], str | None]):
    """What a run of several backups remembers: the digest of the tables that migrations make, or None if they fail."""


# $1 whether rights count, $2 the prefix of stand-ins: a key to one is written as that to the shared table is.
_GET_SHAPE = get_shape("$1::boolean", "pg_catalog.replace(part, $2, '')")
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
LIST_RELATIONS = """
SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relkind::text AS kind, c.relforcerowsecurity AS hides_rows,
    c.relispopulated AS filled, c.relispartition AS is_partition
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS c ON c.oid = d.objid
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'S', 'm')
ORDER BY name
"""
"""Lists the tables, the sequences and the materialized views of the schema $1, and how its rows may be read.

COPY cannot load rows that a policy would hide from the owner.
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
# What these make is the same whenever they run.
_SAME_LATER = frozenset(
    {
        *("create_stmt", "alter_table_stmt", "index_stmt", "view_stmt", "create_function_stmt", "create_trig_stmt"),
        *("create_seq_stmt", "alter_seq_stmt", "create_enum_stmt", "alter_enum_stmt", "create_domain_stmt"),
        *("composite_type_stmt", "rename_stmt", "drop_stmt", "comment_stmt", "create_policy_stmt", "rule_stmt"),
        *("create_stats_stmt", "variable_set_stmt", "constraints_set_stmt", "create_range_stmt"),
    }
)
# They change rows, which a restore replaces anyway. Rows of shared tables would be changed once more.
_ROWS_ONLY = frozenset({"insert_stmt", "update_stmt", "delete_stmt", "merge_stmt", "truncate_stmt"})
_MOMENTS = frozenset({"now", "today", "tomorrow", "yesterday"})
_MANY_ENUM_VALUES = 170000
"""From this version on a value can be used in the transaction that adds it to a new type."""

_BEGIN_READING = """BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET TRANSACTION SNAPSHOT {snapshot};
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
    relations = await connection.fetch(LIST_RELATIONS, schema.name)
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
    key = tuple(applied)
    if key not in shapes:
        try:
            shapes[key] = await _try_migrations(connection, tenant, wanted, settings, privileges=privileges)
        except asyncpg.LockNotAvailableError:
            # Nobody can read a shared table at this moment. The next tenant may have more luck.
            return None
    await enter_schema(connection, schema, settings=settings)
    await connection.execute(SAME_TEXTS)
    shape: str = await connection.fetchval(_GET_SHAPE, privileges, "")
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
        if kind in _ROWS_ONLY:
            continue
        if kind not in _SAME_LATER or (kind == "alter_enum_stmt" and server_version < _MANY_ENUM_VALUES):
            return False
        nodes = [node for _, node in walk(raw.stmt)]
        # Another table may have other columns by then.
        if any(isinstance(node, messages.A_Star | messages.TableLikeClause) for node in nodes):
            return False
        # A literal, which is read once. The function of that name is called for each row.
        if any(isinstance(node, messages.A_Const) and node.sval.sval.strip().lower() in _MOMENTS for node in nodes):
            return False
        bounds = [node for node in nodes if isinstance(node, messages.PartitionBoundSpec)]
        calls = messages.FuncCall | messages.SQLValueFunction
        if any(isinstance(node, calls) for each in bounds for _, node in walk(each)):
            return False
    return True


def list_statements(migrations: Sequence[Migration]) -> Iterator[str]:
    """Yield the statements that make the tables of a new tenant. Each file's deferred checks are done at its end."""
    for migration in migrations:
        script = migration.script
        if script.batch_rows is not None:
            # It changes rows only, and those go.
            continue
        kinds = [raw.stmt.WhichOneof("node") for raw in parse_sql(migration.sql).stmts]
        for kind, statement in zip(kinds, script.statements, strict=True):
            if kind not in _ROWS_ONLY and statement.sql_for_new_tables is not None:
                yield statement.sql_for_new_tables
        # The rows go, so the constraints need not be in their own mode again.
        yield "SET CONSTRAINTS ALL IMMEDIATE"
        yield "SET CONSTRAINTS ALL DEFERRED"


async def _try_migrations(
    connection: Connection, tenant: Tenant, migrations: Sequence[Migration], settings: Settings, *, privileges: bool
) -> str | None:
    """Return the digest of what *migrations* make in a new schema, or None if they fail there.

    Raises:
        asyncpg.LockNotAvailableError: A table that they read is locked against readers.
    """
    scratch = SchemaName(f"{REGISTRY_SCHEMA}_shape_{tenant.id}")
    stand_ins = SchemaName(f"{REGISTRY_SCHEMA}_keys_{tenant.id}")
    shape: str | None = None
    try:
        async with connection.transaction():
            await connection.execute(WAIT_SHORTLY)
            # On Citus too, for a restore compares its tables while they are in a plain schema.
            await connection.execute(KEEP_LOCAL)
            await connection.execute(f"CREATE SCHEMA {scratch.quoted}")
            statements = await make_stand_ins(
                connection, stand_ins, list_statements(migrations), settings.shared_schemas
            )
            await enter_schema(connection, scratch, settings=settings)
            for statement in statements:
                await connection.execute(statement)
            await connection.execute(SAME_TEXTS)
            shape = await connection.fetchval(_GET_SHAPE, privileges, f"{stand_ins}.")
            raise _UndoneError
    except asyncpg.LockNotAvailableError:
        raise
    except (_UndoneError, asyncpg.PostgresError):
        # Whatever fails here, pg_dump does not need it.
        return shape
