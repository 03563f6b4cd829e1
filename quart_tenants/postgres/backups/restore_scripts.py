"""Write the SQL before and after a dump that makes a tenant of it. Pure: no I/O."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from quart_tenants.postgres.backups.manifests import AppliedMigration, RowsOnly
from quart_tenants.postgres.blocks.long_work import LIFT_LIMITS
from quart_tenants.postgres.blocks.short_waits import LONGEST_WAIT, MOST_TRIES
from quart_tenants.postgres.citus.cluster import LIST_DISTRIBUTION
from quart_tenants.postgres.citus.settings_of_citus import KEEP_LOCAL, list_limits
from quart_tenants.postgres.roles.owner_role import name_readers
from quart_tenants.postgres.roles.schema_access import (
    LIST_ROLE_STATEMENTS,
    WRITE_ROLE,
    name_role,
)
from quart_tenants.postgres.shared.shared_names import SHARE_LOCK
from quart_tenants.postgres.tenants.dependents import Dependent
from quart_tenants.postgres.tenants.schema_moves import MOVE_FUNCTION_PATHS, MOVE_MIGRATIONS
from quart_tenants.postgres.tenants.trash import TIME_OF_DROP, name_in_trash
from quart_tenants.resources import read_statement
from quart_tenants.tenant import REGISTRY_SCHEMA, RoleName, SchemaName, Slug, Tenant, quote_literal

WRONG_PLACE = "QT002"
"""The SQLSTATE of this package's own refusal: psql is connected to another database."""
MADE_ELSEWHERE = "QT001"
"""The SQLSTATE of this package's own refusal: the backup does not fit here."""
DIFFERENT = "QT005"
"""The SQLSTATE of this package's own refusal: what came back is not what was backed up."""
SAME_TEXTS = (
    "SET LOCAL DateStyle TO ISO",
    "SET LOCAL IntervalStyle TO postgres",
    "SET LOCAL extra_float_digits TO 3",
    "SET LOCAL TimeZone TO 'UTC'",
    "SET LOCAL bytea_output TO hex",
)
"""Lets two transactions write the same rows as the same texts."""
BROKEN_BY_OLD_ROWS = "QT004"
"""The SQLSTATE of this package's own warning: a CHECK was added as NOT VALID, or a materialized view stays empty."""


def describe_objects(privileges: str) -> str:
    """Return the statement that lists all that the first schema on the path is made of, a text for each object.

    Args:
        privileges: SQL that says whether rights count.
    """
    return read_statement("describe_everything").replace("$1", privileges)


def get_shape(privileges: str, text: str = "part") -> str:
    """Return the statement for the digest of all that the first schema on the path is made of.

    Args:
        privileges: SQL that says whether rights count.
        text: SQL of the text that counts for an object whose description is `part`.
    """
    return f"""
SELECT pg_catalog.md5(pg_catalog.string_agg(text, chr(2) ORDER BY text COLLATE "C"))
FROM ({describe_objects(privileges)}) AS described CROSS JOIN LATERAL (SELECT {text}) AS counted (text)
"""  # noqa: S608  (a file of ours)


# The number was taken from the sequence a moment before.
_ADD_TENANT = """
INSERT INTO quart_tenants.tenants (id, slug, schema_name, display_name, settings)
OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5)
"""
# Registers the replaced tables as a tenant with the new number $1. $5 is the number of the living tenant.
_ADD_REPLACED = f"""
INSERT INTO quart_tenants.tenants
    (id, slug, schema_name, display_name, settings, created_at, suspended_at, dropped_at, schema_before_drop)
OVERRIDING SYSTEM VALUE
SELECT $1::bigint, $2, $3, display_name, settings, created_at, suspended_at, {TIME_OF_DROP}, $4
FROM quart_tenants.tenants WHERE id = $5
"""  # noqa: S608  (of our own)
_FORGET_MIGRATIONS = "DELETE FROM quart_tenants.applied_migrations WHERE schema_name = $1"
_FORGET_FAILURE = "DELETE FROM quart_tenants.migration_failures WHERE tenant_id = $1"
_ADD_MIGRATION = """
INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256) VALUES ($1, $2, $3, $4)
"""
# Not now(), which is the start of the transaction: old rows of the feed are deleted.
_ADD_CHANGE = "INSERT INTO quart_tenants.changes (tenant_id, changed_at) VALUES ($1, clock_timestamp())"
# Lists the statements that close a schema to everybody but its owner. Where roles were on and are off now, the role of
# the living tenant would go on to reach the tables in the trash, which are another tenant's from now on. $1 the schema.
_CLOSE_SCHEMA = """
SELECT DISTINCT format(
    'REVOKE ALL ON SCHEMA %I FROM %s', n.nspname,
    CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END
)
FROM pg_catalog.pg_namespace AS n CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) AS x
WHERE n.nspname = $1 AND x.grantee <> n.nspowner
"""

# Lists a statement that fails if a name is in the restored schema and in a shared one. $1 the shared schemas, $2 the
# restored one, both as arrays.
_REFUSE_SHARED_NAMES = f"""
SELECT format('DO %L', format(
    'BEGIN RAISE EXCEPTION USING ERRCODE = ''{MADE_ELSEWHERE}'', MESSAGE = %L; END',
    format(
        'its %s %s is also in the shared schema %s, which a query would read if the tenant''s were dropped',
        kind, name, shared_schema
    )
))
FROM ({read_statement("list_shared_names")}) AS common LIMIT 1
"""  # noqa: S608  (a file of ours)

GET_PLACE = """
SELECT pg_catalog.concat_ws(
    ' ', 'database', pg_catalog.current_database(), 'as', session_user, 'on the server that was started at',
    extract(epoch FROM pg_catalog.pg_postmaster_start_time())
)
"""
"""Asks where a connection leads. Everybody may ask that, and the time has microseconds."""
# psql reads the same address as the driver by rules of its own. $1 the answer to GET_PLACE on the driver's connection.
_CHECK_PLACE = f"""
SELECT format('DO %L', format(
    'BEGIN RAISE EXCEPTION USING ERRCODE = ''{WRONG_PLACE}'', MESSAGE = %L; END',
    format('psql was led to %s, and this program to %s', place, $1::text)
))
FROM ({GET_PLACE}) AS here (place) WHERE place <> $1::text
"""  # noqa: S608  (of our own)

_RUN_LISTED = """SELECT statement FROM (VALUES {listed}) AS listed (number, statement) ORDER BY number \\gexec
"""
# $1 the digest of the backup's tables, $2 whether rights count.
_CHECK_SHAPE = f"""
SELECT format(
    'DO %L',
    'BEGIN RAISE EXCEPTION USING ERRCODE = ''{MADE_ELSEWHERE}'', MESSAGE = ''the migrations make other tables now than '
    'those of the backup; restore it where the same shared tables and extensions are''; END'
)
FROM ({get_shape("$2::text::boolean")}) AS now (shape) WHERE shape <> $1::text
"""  # noqa: S608  (a file of ours)


def write_script(*statements: str) -> str:
    """Return *statements* as a script of psql, which sends each in a message of its own."""
    return "".join(f"{statement};\n" for statement in statements)


_BEGIN = (
    "BEGIN;\nSET LOCAL search_path TO '';\n"
    # On Citus a dump is poured into a plain schema, which is distributed at the end with all its rows.
    + write_script(LIFT_LIMITS, *list_limits(lock=5, statement=0), KEEP_LOCAL)
)
# The dump has changed settings of the session, and behind a pooler other clients use the same session.
_GO_ON = f"RESET ALL;{_BEGIN.removeprefix('BEGIN;')}"
# Others read on between two tries: the locks of a try that fails are free again, and what was restored stays.
_DROP_IN_TRIES = f"""
BEGIN
    FOR number IN 1..{{tries}} LOOP
        BEGIN
            SET LOCAL lock_timeout TO {round(LONGEST_WAIT * 1000)};
            {{drops}}
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF number = {{tries}} THEN RAISE; END IF;
            PERFORM pg_catalog.pg_sleep(0.2);
        END;
    END LOOP;
END
"""
_RESET = "RESET ALL;\n"
_COMMIT = "COMMIT;\n"


@dataclass(frozen=True, slots=True)
class Replaced:
    """The new tenant in the trash that gets the schema of a replaced tenant.

    Attributes:
        id: Its new number.
        slug: Its slug, and the name of its schema when it comes back.
    """

    id: int
    slug: Slug


@dataclass(frozen=True, slots=True)
class Restoration:
    """The plan of one restore.

    Attributes:
        tenant: The tenant as it will be.
        dumped: The name of the schema in the dump.
        migrations: The migrations that had run in it.
        aside: Whether a schema of that name exists now.
        replaces: Whether the tenant exists now.
        replaced: The tenant in the trash; None for a new tenant, or if there is no schema any more.
        dependents: What outside the replaced schema depends on it, and is dropped.
        rows: Given if the backup has rows only.
        statements: What makes the tables for them.
        privileges: Whether the dump's grants are kept, and rights count when the tables are compared.
        same_server: Whether the backup is from the same major version of the server. Another one may write the same
            definition in other words.
        shadows: Whether a function in the dump could be taken for one of PostgreSQL's.
        place: Where the driver's connection leads, as `GET_PLACE` says it.
        owner: The owner role if each tenant has a role of its own.
        shared: The schemas that all tenants share.
    """

    tenant: Tenant
    dumped: SchemaName
    migrations: Sequence[AppliedMigration]
    aside: bool = False
    replaces: bool = False
    replaced: Replaced | None = None
    dependents: Sequence[Dependent] = ()
    rows: RowsOnly | None = None
    statements: Sequence[str] = ()
    privileges: bool = True
    same_server: bool = True
    shadows: bool = False
    place: str = ""
    owner: RoleName | None = None
    shared: Sequence[SchemaName] = ()

    @property
    def before(self) -> str:
        """The SQL before the dump."""
        check = _execute(_CHECK_PLACE, self.place, answer="\\gexec\n")
        return _BEGIN + check + (_rename(self.dumped, self._aside_name) if self.aside else "")

    @property
    def make_tables(self) -> str:
        """The SQL that makes the tables for a backup of rows only, with keys and CHECKs set aside.

        psql reads the statements as literals, because it would replace :name in them.
        """
        listed = ",\n".join(f"({number}, {quote_literal(text)})" for number, text in enumerate(self.statements))
        return (
            f"CREATE SCHEMA {self.dumped.quoted};\n{self.enter}"
            f"{_RUN_LISTED.format(listed=listed)}"
            # A file may have set something.
            f"{_GO_ON}{self._check_shape}{self.enter}"
            f"{read_statement('set_aside')}"
        )

    @property
    def _check_shape(self) -> str:
        """The SQL that fails unless the tables are those of the backup."""
        if self.rows is None or not self.same_server:
            return ""
        arguments = self.rows.shape, str(self.privileges).lower()
        return self.enter + write_script(*SAME_TEXTS) + _execute(_CHECK_SHAPE, *arguments, answer="\\gexec\n")

    @property
    def enter(self) -> str:
        """The SQL by which functions see what a block of the tenant would see, while the schema has the dump's name."""
        path = ", ".join(schema.quoted for schema in (self.dumped, *self.shared))
        return f"SET search_path TO {path};\n"

    @property
    def prepare_comparison(self) -> str:
        """The SQL after the dump if it is only to be compared."""
        return f"RESET ALL;\n{self.enter}{write_script(*SAME_TEXTS)}SET LOCAL row_security TO off;\n"

    @property
    def after(self) -> str:
        """The SQL after the dump, with the COMMIT."""
        tenant, schema = self.tenant, self.tenant.schema.name
        # No tenant's schema has such a name. Without the number, one restore would wait for another.
        restored = SchemaName(f"{REGISTRY_SCHEMA}_restored_{tenant.id}")
        script = [_GO_ON, _rename(self.dumped, restored)]
        if self.aside:
            script.append(_rename(self._aside_name, self.dumped))
        if self.replaced is not None:
            trash, later = name_in_trash(self.replaced.id), self.replaced.slug
            script += [
                _rename(tenant.schema, trash),
                _execute(_CLOSE_SCHEMA, trash.name, answer="\\gexec\n"),
                _execute(MOVE_FUNCTION_PATHS, trash.name, schema, later, answer="\\gexec\n"),
                _execute(_ADD_REPLACED, self.replaced.id, later, trash.name, later, tenant.id),
                _execute(MOVE_MIGRATIONS, schema, trash.name),
            ]
        script.append(_rename(restored, tenant.schema))
        if self.dumped != tenant.schema:
            script += [
                _execute(MOVE_FUNCTION_PATHS, schema, self.dumped.name, schema, answer="\\gexec\n"),
                _execute(read_statement("refuse_old_schema_name"), schema, self.dumped.name, answer="\\gexec\n"),
            ]
        if self.shared:
            shared, restored_as = _write_array(self.shared), _write_array([tenant.schema])
            script.append(f"{SHARE_LOCK};\n")
            script.append(_execute(_REFUSE_SHARED_NAMES, shared, restored_as, answer="\\gexec\n"))
        if self.replaces:
            script += [_execute(_FORGET_MIGRATIONS, schema), _execute(_FORGET_FAILURE, tenant.id)]
        else:
            remembered = json.dumps(dict(tenant.settings))
            script.append(_execute(_ADD_TENANT, tenant.id, tenant.slug, schema, tenant.name, remembered))
        script += [
            _execute(_ADD_MIGRATION, schema, migration.version, migration.name, migration.sha256)
            for migration in self.migrations
        ]
        script.append(self._give_role(tenant.id, tenant.schema))
        if self.replaced is not None:
            # The role that has used these tables until now may use only the new ones.
            script.append(self._give_role(self.replaced.id, name_in_trash(self.replaced.id)))
        # The reset comes before it, because it shows whether new schemas are distributed here.
        distribute = _execute(LIST_DISTRIBUTION, schema, answer="\\gexec\n")
        return "".join([*script, _execute(_ADD_CHANGE, tenant.id), self._drop_dependents, _RESET, distribute, _COMMIT])

    @property
    def _drop_dependents(self) -> str:
        """The SQL that drops what is others'. It comes last, because they cannot read it from then on until the end."""
        if not self.dependents:
            return ""
        drops = " ".join(f"{dependent.removal};" for dependent in self.dependents)
        return f"DO {quote_literal(_DROP_IN_TRIES.format(drops=drops, tries=MOST_TRIES))};\n"

    @property
    def _aside_name(self) -> SchemaName:
        return SchemaName(f"{REGISTRY_SCHEMA}_aside_{self.tenant.id}")

    def _give_role(self, tenant_id: int, schema: SchemaName) -> str:
        if self.owner is None:
            return ""
        role = name_role(self.owner, tenant_id)
        return (
            _execute(
                LIST_ROLE_STATEMENTS, self.owner.name, role.name, name_readers(self.owner).name, answer="\\gexec\n"
            )
            + _execute(read_statement("grant_schema"), schema.name, self.owner.name, role.name, answer="\\gexec\n")
            + _execute(WRITE_ROLE, tenant_id, role.name)
        )


def write_difference(sentence: str, found: str) -> str:
    """Return the script for psql that fails with *sentence* if *found* has a row. Both are SQL."""
    refusal = f"BEGIN RAISE EXCEPTION USING ERRCODE = ''{DIFFERENT}'', MESSAGE = %L; END"
    return f"SELECT format('DO %L', format('{refusal}', {sentence})) FROM {found} LIMIT 1 \\gexec\n"  # noqa: S608


def write_setting(name: str, setting: str) -> str:
    """Return the statement for psql that sets *name* until the end of the transaction."""
    return f"SELECT pg_catalog.set_config({quote_literal(name)}, {quote_literal(setting)}, true);\n"


def _execute(statement: str, *arguments: str | int, answer: str = ";\n") -> str:
    """Return *statement* with values for its parameters $1… as a script for psql.

    Args:
        statement: SQL.
        arguments: The values of its parameters.
        answer: psql's gexec if the answer is statements to run.
    """
    given = ", ".join(quote_literal(argument) for argument in arguments)
    return (
        f"PREPARE quart_tenants_statement AS {statement.strip()};\n"
        f"EXECUTE quart_tenants_statement ({given}) {answer}"
        "DEALLOCATE quart_tenants_statement;\n"
    )


def _write_array(schemas: Sequence[SchemaName]) -> str:
    """Return the names of *schemas* as PostgreSQL reads an array."""
    names = (schema.name.replace("\\", "\\\\").replace('"', '\\"') for schema in schemas)
    return "{" + ",".join(f'"{name}"' for name in names) + "}"


def _rename(schema: SchemaName, name: SchemaName) -> str:
    return f"ALTER SCHEMA {schema.quoted} RENAME TO {name.quoted};\n"
