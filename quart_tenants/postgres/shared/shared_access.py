"""Make the shared schemas, and let the tenants' roles read what is in them."""

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import RegistryNotReadyError, RolesNotReadyError
from quart_tenants.postgres.citus.settings_of_citus import KEEP_LOCAL
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.migrations.migration_files import SHARED_LEDGER
from quart_tenants.postgres.roles.owner_role import name_readers
from quart_tenants.resources import read_statement
from quart_tenants.settings import Settings
from quart_tenants.tenant import RoleName

_LIST_MISSING = """
SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS x (name, number)
WHERE pg_catalog.to_regnamespace(pg_catalog.quote_ident(name)) IS NULL ORDER BY number
"""
_FIND_TENANTS_OWN = """
SELECT t.slug FROM quart_tenants.tenants AS t WHERE t.schema_name = ANY ($1::text[]) ORDER BY t.slug LIMIT 1
"""
# $1 the role whose rights the tenants' roles inherit, $2 the owner role. Whoever works as the owner role may make the
# next tenant's role a member, also if another login has made the role.
_MAKE_READERS = """
SELECT pg_catalog.format('CREATE ROLE %I NOLOGIN', $1::text)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1::text)
UNION ALL
SELECT pg_catalog.format('GRANT %I TO %I WITH ADMIN OPTION', $1::text, $2::text)
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_auth_members AS m
    JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid AND g.rolname = $1::text
    JOIN pg_catalog.pg_roles AS o ON o.oid = m.member AND o.rolname = $2::text
    WHERE m.admin_option
)
"""
# $1 the shared schemas. Parts of extensions belong to whoever has created the extension.
_LIST_FOREIGN = """
SELECT pg_catalog.format('%s %s', kind, name) AS part FROM (
    SELECT 'schema' AS kind, pg_catalog.quote_ident(nspname) AS name, nspowner AS owner
    FROM pg_catalog.pg_namespace WHERE nspname = ANY ($1::text[]) AND nspname <> 'public'
    UNION ALL
    SELECT 'table', pg_catalog.format('%I.%I', n.nspname, c.relname), c.relowner
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY ($1::text[]) AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS e
        WHERE e.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND e.objid = c.oid AND e.deptype = 'e'
    )
) AS parts
WHERE NOT pg_catalog.pg_has_role(session_user, owner, 'USAGE') ORDER BY 1
"""
_FIND_LEDGER_SCHEMA = """
SELECT name FROM quart_tenants.applied_migrations WHERE schema_name = $1 AND version = 0
"""
_NOTE_LEDGER_SCHEMA = """
INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256) VALUES ($1, 0, $2, '')
ON CONFLICT DO NOTHING
"""


async def make_shared_schemas(connection: Connection, *, settings: Settings) -> None:
    """Make the shared schemas that do not exist.

    Raises:
        RegistryNotReadyError: This role may not make schemas, one of them is a tenant's, or the shared files have run
            in another schema than the first one, or in one that is gone.
    """
    names = settings.shared_names
    await connection.execute(KEEP_LOCAL)
    await _refuse_misnamed(connection, names)
    missing = {row["name"] for row in await connection.fetch(_LIST_MISSING, names)}
    if names[0] in missing and await connection.fetchval(_FIND_LEDGER_SCHEMA, SHARED_LEDGER) is not None:
        raise RegistryNotReadyError(
            f"the shared schema {names[0]} is gone, although files have run in it: bring it back from a backup"
        )
    for schema in settings.shared_schemas:
        if schema.name in missing:
            try:
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema.quoted}")
            except asyncpg.InsufficientPrivilegeError as error:
                raise RegistryNotReadyError(
                    f"this role may not create the shared schema {schema}: GRANT CREATE ON DATABASE to it"
                ) from error


async def check_shared_schemas(connection: Connection | DriverConnection, *, settings: Settings) -> None:
    """Make sure that the shared schemas exist, and that no tenant has one of them.

    Raises:
        RegistryNotReadyError: One is missing or a tenant's, or the shared files have run in another schema.
    """
    names = settings.shared_names
    if not names:
        return
    await _refuse_misnamed(connection, names)
    missing = [row["name"] for row in await connection.fetch(_LIST_MISSING, names)]
    if missing:
        raise RegistryNotReadyError(f"the shared schema {missing[0]} is missing: run quart-tenants init")


async def note_ledger_schema(connection: Connection | DriverConnection, *, settings: Settings) -> None:
    """Write down in which schema the shared files run, so that a change of the setting is noticed."""
    await connection.execute(_NOTE_LEDGER_SCHEMA, SHARED_LEDGER, settings.shared_schemas[0].name)


async def list_foreign_parts(connection: Connection | DriverConnection, *, settings: Settings) -> list[str]:
    """Return the shared schemas, and the tables in them, that this login may not change."""
    return [row["part"] for row in await connection.fetch(_LIST_FOREIGN, settings.shared_names)]


async def _refuse_misnamed(connection: Connection | DriverConnection, names: list[str]) -> None:
    slug = await connection.fetchval(_FIND_TENANTS_OWN, names)
    if slug is not None:
        raise RegistryNotReadyError(
            f"TENANTS_SHARED_SCHEMAS names the schema of tenant {slug!r}: every tenant would read its tables"
        )
    noted = await connection.fetchval(_FIND_LEDGER_SCHEMA, SHARED_LEDGER)
    if noted is not None and noted != names[0]:
        raise RegistryNotReadyError(
            f"the shared files have run in schema {noted}, and TENANTS_SHARED_SCHEMAS begins with {names[0]}: "
            f"put {noted} first"
        )


async def grant_shared(connection: Connection, owner: RoleName, *, settings: Settings) -> None:
    """Let the tenants' roles read the shared schemas, and what is made there later. Doing it again does no harm.

    The owner role may also refer to the tables by foreign keys, because it runs the tenants' migrations.

    Args:
        connection: Inside a block with an empty path, as the login.
        owner: From `get_owner`.
        settings: They name the shared schemas.

    Raises:
        RolesNotReadyError: This role may not grant that.
    """
    if not settings.shared_schemas:
        return
    readers = name_readers(owner)
    try:
        for row in await connection.fetch(_MAKE_READERS, readers.name, owner.name):
            await connection.execute(row[0])
        for statement in await list_shared_grants(connection, owner, settings=settings):
            await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError as error:
        raise RolesNotReadyError(
            f"the tenants' roles cannot be given what is shared: {describe_refusal(error)}; this role needs "
            "CREATEROLE, and must own the shared schemas and what is in them: let a superuser ALTER … OWNER TO it"
        ) from error
    missing = await list_shared_grants(connection, owner, settings=settings)
    if missing:
        # PostgreSQL only warns if a role lacks part of a right.
        raise RolesNotReadyError(
            f"this role may not give the tenants' roles what is shared: let a superuser run {'; '.join(missing)}"
        )


async def list_shared_grants(
    connection: Connection | DriverConnection, owner: RoleName, *, settings: Settings
) -> list[str]:
    """Return the statements that would give the tenants' roles what they lack of the shared schemas."""
    readers = name_readers(owner)
    rows = await connection.fetch(read_statement("list_shared_grants"), settings.shared_names, owner.name, readers.name)
    return [row["statement"] for row in rows]
