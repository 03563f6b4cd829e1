"""Make the shared schemas, and let the tenants' roles read what is in them."""

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import RegistryNotReadyError, RolesNotReadyError
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.driver.refusals import describe_refusal
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
# $1 the name of the role. The tenants' roles inherit its rights.
_MAKE_READERS = """
SELECT pg_catalog.format('CREATE ROLE %I NOLOGIN', $1::text)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1::text)
UNION ALL
SELECT pg_catalog.format('GRANT %I TO %s', $1::text, pg_catalog.string_agg(pg_catalog.quote_ident(r.rolname), ', '))
FROM quart_tenants.tenants AS t
JOIN pg_catalog.pg_roles AS r ON r.rolname = t.role_name
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_auth_members AS m
    JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid AND g.rolname = $1::text
    WHERE m.member = r.oid
)
HAVING pg_catalog.count(*) > 0
"""


async def make_shared_schemas(connection: Connection, *, settings: Settings) -> None:
    """Make the shared schemas that do not exist.

    Raises:
        RegistryNotReadyError: This role may not make schemas, or one of them is a tenant's.
    """
    names = [schema.name for schema in settings.shared_schemas]
    slug = await connection.fetchval(_FIND_TENANTS_OWN, names)
    if slug is not None:
        raise RegistryNotReadyError(
            f"TENANTS_SHARED_SCHEMAS names the schema of tenant {slug!r}: every tenant would read its tables"
        )
    missing = {row["name"] for row in await connection.fetch(_LIST_MISSING, names)}
    for schema in settings.shared_schemas:
        if schema.name in missing:
            try:
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema.quoted}")
            except asyncpg.InsufficientPrivilegeError as error:
                raise RegistryNotReadyError(
                    f"this role may not create the shared schema {schema}: GRANT CREATE ON DATABASE to it"
                ) from error


async def check_shared_schemas(connection: Connection | DriverConnection, *, settings: Settings) -> None:
    """Make sure that the shared schemas exist.

    Raises:
        RegistryNotReadyError: One is missing.
    """
    names = [schema.name for schema in settings.shared_schemas]
    missing = [row["name"] for row in await connection.fetch(_LIST_MISSING, names)] if names else []
    if missing:
        raise RegistryNotReadyError(f"the shared schema {missing[0]} is missing: run quart-tenants init")


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
    names = [schema.name for schema in settings.shared_schemas]
    if not names:
        return
    readers = name_readers(owner)
    try:
        for row in await connection.fetch(_MAKE_READERS, readers.name):
            await connection.execute(row[0])
        for statement in await list_shared_grants(connection, owner, settings=settings):
            await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError as error:
        raise RolesNotReadyError(
            f"the tenants' roles cannot be given what is shared: {describe_refusal(error)}; this role needs CREATEROLE "
            "and must own the shared schemas and their tables, or let a superuser's URL run quart-tenants init once"
        ) from error
    missing = await list_shared_grants(connection, owner, settings=settings)
    if missing:
        # PostgreSQL only warns if a role lacks part of a right.
        raise RolesNotReadyError(
            f"this role may not give the tenants' roles what is shared: let a superuser run {missing[0]}"
        )


async def list_shared_grants(
    connection: Connection | DriverConnection, owner: RoleName, *, settings: Settings
) -> list[str]:
    """Return the statements that would give the tenants' roles what they lack of the shared schemas."""
    names = [schema.name for schema in settings.shared_schemas]
    rows = await connection.fetch(read_statement("list_shared_grants"), names, owner.name, name_readers(owner).name)
    return [row["statement"] for row in rows]
