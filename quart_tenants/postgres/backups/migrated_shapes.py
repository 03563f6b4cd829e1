"""Find out which tables the app's migrations make, in a schema that is rolled back at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from quart_tenants.connection import Connection, Row
from quart_tenants.errors import MigrationFileError
from quart_tenants.postgres.backups.manifests import AppliedMigration
from quart_tenants.postgres.backups.restore_scripts import SAME_TEXTS, get_shape
from quart_tenants.postgres.backups.stand_ins import make_stand_ins
from quart_tenants.postgres.blocks.database import enter_schema
from quart_tenants.postgres.blocks.short_waits import wait_shortly
from quart_tenants.postgres.citus.settings_of_citus import KEEP_LOCAL
from quart_tenants.postgres.migrations.migration_files import Migration, get_tenant_migrations
from quart_tenants.settings import Settings
from quart_tenants.sql_parser import messages, parse_sql, walk
from quart_tenants.tenant import REGISTRY_SCHEMA, SchemaName

# $1 whether rights count, $2 the prefix of stand-ins: a key to one is written as that to the shared table is.
_GET_DIGEST = get_shape("$1::boolean", "pg_catalog.replace(part, $2, '')")
LIST_RELATIONS = """
SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relname, c.relkind::text AS kind,
    c.relforcerowsecurity AS hides_rows, c.relispartition AS is_partition
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


@dataclass(frozen=True, slots=True)
class Shape:
    """What migrations make.

    Attributes:
        relations: The name and the kind of each table, sequence and materialized view. They differ sooner than the
            digest, which takes as long as a tenth of pg_dump.
        digest: Of everything that the schema is made of.
        statements: What makes it.
    """

    relations: frozenset[tuple[str, str]]
    digest: str
    statements: Sequence[str]


class Shapes(dict[tuple[AppliedMigration, ...], Shape | None]):
    """What a run of several backups remembers: what migrations make, or None if that is not known."""


class _UndoneError(Exception):
    """Rolls a savepoint back."""


async def find_shape(
    connection: Connection,
    number: int,
    applied: Sequence[AppliedMigration],
    *,
    settings: Settings,
    privileges: bool,
    server_version: int,
) -> Shape | None:
    """Return what *applied* make here; None if the files are not the same, make other tables later, or fail.

    Args:
        connection: Inside a transaction.
        number: The schema for the trial is called after it. No other transaction may use the same number.
        applied: The migrations.
        settings: They say where the files are, and which schemas are shared.
        privileges: Whether rights count.
        server_version: The version of the server, for example 180001.

    Raises:
        asyncpg.LockNotAvailableError: A table that they read is locked against readers.
    """
    try:
        files = {migration.version: migration for migration in get_tenant_migrations(settings)}
    except MigrationFileError:
        # pg_dump needs no files.
        return None
    migrations = [files[each.version] for each in applied if _has(files, each)]
    if (
        not applied
        or len(migrations) < len(applied)
        or not all(is_same_later(each, server_version) for each in migrations)
    ):
        return None
    scratch = SchemaName(f"{REGISTRY_SCHEMA}_shape_{number}")
    stand_ins = SchemaName(f"{REGISTRY_SCHEMA}_keys_{number}")
    statements = tuple(list_statements(migrations))
    shape = None
    try:
        async with connection.transaction():
            await wait_shortly(connection)
            # On Citus too, for a restore compares its tables while they are in a plain schema.
            await connection.execute(KEEP_LOCAL)
            await connection.execute(f"CREATE SCHEMA {scratch.quoted}")
            trial = await make_stand_ins(connection, stand_ins, statements, settings.shared_schemas)
            await enter_schema(connection, scratch, settings=settings)
            for statement in trial:
                await connection.execute(statement)
            digest = await get_digest(connection, privileges=privileges, hidden=f"{stand_ins}.")
            relations = name_relations(await connection.fetch(LIST_RELATIONS, scratch.name))
            shape = Shape(relations, digest, statements)
            raise _UndoneError
    except asyncpg.LockNotAvailableError:
        raise
    except (_UndoneError, asyncpg.PostgresError):
        # Whatever fails here, pg_dump does not need it.
        return shape


async def write_same_texts(connection: Connection) -> None:
    """Let this transaction write the same rows as the same texts as every other one."""
    for setting in SAME_TEXTS:
        await connection.execute(setting)


async def get_digest(connection: Connection, *, privileges: bool, hidden: str = "") -> str:
    """Return the digest of all that the first schema on the path is made of.

    Args:
        connection: Inside a transaction, whose texts are written as in every other one from then on.
        privileges: Whether rights count.
        hidden: What is left out of each text.
    """
    await write_same_texts(connection)
    digest: str = await connection.fetchval(_GET_DIGEST, privileges, hidden)
    return digest


def name_relations(rows: Sequence[Row]) -> frozenset[tuple[str, str]]:
    """Return the name and the kind of what `LIST_RELATIONS` has found."""
    return frozenset((row["relname"], row["kind"]) for row in rows)


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
        for statement in script.statements:
            if statement.kind not in _ROWS_ONLY and statement.sql_for_new_tables is not None:
                yield statement.sql_for_new_tables
        # The rows go, so the constraints need not be in their own mode again.
        yield "SET CONSTRAINTS ALL IMMEDIATE"
        yield "SET CONSTRAINTS ALL DEFERRED"


def _has(files: Mapping[int, Migration], applied: AppliedMigration) -> bool:
    return applied.version in files and files[applied.version].sha256 == applied.sha256
