"""Open a tenant's schema to the role of that tenant only."""

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import RolesNotReadyError
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.roles.owner_role import OWNER_SUFFIX, name_readers
from quart_tenants.resources import read_statement
from quart_tenants.tenant import RoleName, SchemaName

LIST_ROLE_STATEMENTS = """
SELECT statement FROM (
    SELECT 1 AS step, pg_catalog.format('CREATE ROLE %I NOLOGIN', $2::text) AS statement
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $2::text)
    UNION ALL
    SELECT 2, pg_catalog.format('GRANT %I TO %I', $2::text, $1::text)
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_auth_members AS m
        JOIN pg_catalog.pg_roles AS r ON r.oid = m.roleid AND r.rolname = $2::text
        JOIN pg_catalog.pg_roles AS o ON o.oid = m.member AND o.rolname = $1::text
    )
    UNION ALL
    SELECT 3, pg_catalog.format('GRANT %I TO %I', $3::text, $2::text)
    WHERE EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $3::text) AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_auth_members AS m
        JOIN pg_catalog.pg_roles AS g ON g.oid = m.roleid AND g.rolname = $3::text
        JOIN pg_catalog.pg_roles AS r ON r.oid = m.member AND r.rolname = $2::text
    )
) AS statements ORDER BY step
"""
"""Lists the statements that make a tenant's role.

$1 the owner role, $2 the tenant's role, $3 the role of those who read the shared schemas, if there is one.
"""

WRITE_ROLE = "UPDATE quart_tenants.tenants SET role_name = $2 WHERE id = $1"
"""Notes the role in the registry. $1 the tenant's number, $2 the name of its role."""


def name_role(owner: RoleName, tenant_id: int) -> RoleName:
    """Return the name of a tenant's role in the database of *owner*."""
    return RoleName(f"{owner.name.removesuffix(OWNER_SUFFIX)}_t{tenant_id}")


async def give_tenant_role(
    connection: Connection, tenant_id: int, schema: SchemaName, owner: RoleName, *, new: bool = False
) -> RoleName:
    """Give *schema* and its contents to *owner*, open it to the tenant's role only, and return that role.

    Roles that are missing in this server are made. Doing it again does no harm.

    Args:
        connection: Inside a block with an empty path.
        tenant_id: The registry's number.
        schema: If it does not exist, only the role is made.
        owner: From `get_owner`.
        new: Whether the caller has just made the schema, so that it is empty.

    Raises:
        RolesNotReadyError: This role lacks the rights, for example because a table belongs to another role.
    """
    role = name_role(owner, tenant_id)
    await open_schema_to(connection, schema, owner, role, new=new)
    await connection.execute(WRITE_ROLE, tenant_id, role.name)
    return role


async def open_schema_to(
    connection: Connection, schema: SchemaName, owner: RoleName, role: RoleName, *, new: bool = False
) -> None:
    """Give *schema* to *owner* and open it to *role* only, without a note in the registry.

    Raises:
        RolesNotReadyError: This role lacks the rights, for example because a table belongs to another role.
    """
    try:
        rows = await connection.fetch(LIST_ROLE_STATEMENTS, owner.name, role.name, name_readers(owner).name)
        if not new:
            rows += await connection.fetch(read_statement("grant_schema"), schema.name, owner.name, role.name)
        statements = [row["statement"] for row in rows]
        if new:
            statements += _list_grants_for_empty_schema(schema, owner, role)
        for statement in statements:
            await connection.execute(statement)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedObjectError) as error:
        raise RolesNotReadyError(
            f"schema {schema.name!r} cannot be given a role of its own: {describe_refusal(error)}; this role "
            "needs CREATEROLE and must own the schema and all that is in it (ALTER … OWNER TO it), or let a "
            "superuser's URL do this once"
        ) from error


async def drop_role(connection: Connection, role: RoleName) -> None:
    """Drop the role of a tenant that is gone, unless something still needs it.

    A copy of this database in the same server may need it. Then only the role's rights in this database go.
    """
    for statement in (f"DROP OWNED BY {role.quoted}", f"DROP ROLE {role.quoted}"):
        try:
            async with connection.transaction():
                await connection.execute(statement)
        except (
            asyncpg.UndefinedObjectError,
            asyncpg.DependentObjectsStillExistError,
            asyncpg.InsufficientPrivilegeError,
        ):
            continue


def _list_grants_for_empty_schema(schema: SchemaName, owner: RoleName, role: RoleName) -> tuple[str, ...]:
    # The short form of grant_schema.sql: there is nothing to look for in an empty schema.
    later = f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner.quoted} IN SCHEMA {schema.quoted} GRANT"
    return (
        f"ALTER SCHEMA {schema.quoted} OWNER TO {owner.quoted}",
        f"GRANT USAGE ON SCHEMA {schema.quoted} TO {role.quoted}",
        f"{later} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role.quoted}",
        f"{later} USAGE, SELECT ON SEQUENCES TO {role.quoted}",
        f"{later} EXECUTE ON ROUTINES TO {role.quoted}",
    )
