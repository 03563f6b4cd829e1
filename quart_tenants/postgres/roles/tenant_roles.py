"""Work as the owner of all tenants' schemas, and put one schema behind a role of its tenant's own."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import asyncpg

from quart_tenants.errors import RolesNotReadyError
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.roles.role_statements import (
    LIST_ROLE_STATEMENTS,
    LIST_SCHEMA_STATEMENTS,
    WRITE_ROLE,
    name_role,
    write_new_wall,
)
from quart_tenants.tenant import RoleName, SchemaName

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection, DriverConnection

RUN_INIT = "run quart-tenants init with TENANTS_ROLE_PER_TENANT on"

_FIND_OWNER = "SELECT owner_name FROM quart_tenants.role_setup"
ROLE_EXISTS = "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)"
"""$1 its name."""

# $1 whether until the end of the transaction only.
_ENTER_OWNER = "SELECT pg_catalog.set_config('role', owner_name, $1) FROM quart_tenants.role_setup"


async def find_owner(connection: "Connection") -> RoleName | None:
    """Return the role that owns all tenants' schemas, or None where no `init` has made it yet."""
    name = await connection.fetchval(_FIND_OWNER)
    return None if name is None else RoleName(name)


async def get_owner(connection: "Connection") -> RoleName:
    """Return the role that owns all tenants' schemas.

    Raises:
        RolesNotReadyError: No `init` has made it yet.
    """
    owner = await find_owner(connection)
    if owner is None:
        raise RolesNotReadyError(f"the tenants have no roles of their own yet: {RUN_INIT}")
    if not await connection.fetchval(ROLE_EXISTS, owner.name):
        # Such as after a restore of the database into another server.
        raise RolesNotReadyError(f"the role {owner} is missing in this server: {RUN_INIT}")
    return owner


@contextlib.asynccontextmanager
async def as_owner(
    connection: "Connection | DriverConnection", *, wanted: bool, local: bool = True
) -> AsyncIterator[None]:
    """Run what is inside as the owner of all tenants' schemas, never with the rights of a superuser.

    After an exception the role stays: the caller's transaction, or its connection, is at its end.

    Args:
        connection: As the role that has logged in.
        wanted: False where tenants have no roles of their own; then this does nothing.
        local: Whether *connection* is in a transaction.

    Raises:
        RolesNotReadyError: There is no such role, or we may not enter it.
    """
    if not wanted:
        yield
        return
    try:
        entered = await connection.fetchval(_ENTER_OWNER, local)
    except (asyncpg.InvalidParameterValueError, asyncpg.InsufficientPrivilegeError) as error:
        raise RolesNotReadyError(
            f"the owner's role cannot be entered: {describe_refusal(error)}; {RUN_INIT}"
        ) from error
    if entered is None:
        raise RolesNotReadyError(f"the tenants have no roles of their own yet: {RUN_INIT}")
    yield
    await connection.execute("SET LOCAL ROLE NONE" if local else "SET ROLE NONE")


async def build_wall(
    connection: "Connection", tenant_id: int, schema: SchemaName, owner: RoleName, *, new: bool = False
) -> RoleName:
    """Give *schema* and all that is in it to *owner*, and open it to the tenant's role alone; return that role.

    Both roles are made where they are missing in this server. Doing it again does no harm.

    Args:
        connection: Inside a block with an empty path.
        tenant_id: The registry's number.
        schema: Where it does not exist, only the role is made.
        owner: From `get_owner`.
        new: Whether we have just made the schema, so that nothing is in it.

    Raises:
        RolesNotReadyError: We may not, such as where a table belongs to somebody else.
    """
    role = name_role(owner, tenant_id)
    await raise_wall(connection, schema, owner, role, new=new)
    await connection.execute(WRITE_ROLE, tenant_id, role.name)
    return role


async def raise_wall(
    connection: "Connection", schema: SchemaName, owner: RoleName, role: RoleName, *, new: bool = False
) -> None:
    """Do the same for *role*, and write nothing down. Raises what `build_wall` raises."""
    try:
        rows = await connection.fetch(LIST_ROLE_STATEMENTS, owner.name, role.name)
        statements = [row["statement"] for row in rows]
        if new:
            statements.append(write_new_wall(schema, owner, role))
        else:
            rows = await connection.fetch(LIST_SCHEMA_STATEMENTS, schema.name, owner.name, role.name)
            statements += [row["statement"] for row in rows]
        await connection.execute("; ".join(statements))
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedObjectError) as error:
        raise RolesNotReadyError(
            f"schema {schema.name!r} cannot be put behind a role of its own: {describe_refusal(error)}; this role "
            "needs CREATEROLE and must own the schema and all that is in it (ALTER … OWNER TO it), or let a "
            "superuser's URL do this once"
        ) from error


async def drop_role(connection: "Connection", role: RoleName) -> None:
    """Drop the role of a tenant that is gone, where nothing needs it any more.

    A copy of this database in the same server may: then only its rights in this one go.
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
