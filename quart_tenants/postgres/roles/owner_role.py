"""Find the role that owns all tenants' schemas, and work as that role."""

import contextlib
from collections.abc import AsyncIterator

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import RolesNotReadyError
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.tenant import RoleName

RUN_INIT = "run quart-tenants init with TENANTS_ROLE_PER_TENANT on"
OWNER_SUFFIX = "_owner"

_FIND_OWNER = "SELECT owner_name FROM quart_tenants.role_setup"
ROLE_EXISTS = "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)"
"""$1 the name of the role."""

# $1 whether the role is left at the end of the transaction.
_ENTER_OWNER = "SELECT pg_catalog.set_config('role', owner_name, $1) FROM quart_tenants.role_setup"


def name_owner(random_part: str) -> RoleName:
    """Return the name of the owner role for one database."""
    return RoleName(f"quart_tenants_{random_part}{OWNER_SUFFIX}")


def name_readers(owner: RoleName) -> RoleName:
    """Return the name of the role that all tenants' roles are members of. It reads the shared schemas."""
    return RoleName(f"{owner.name.removesuffix(OWNER_SUFFIX)}_readers")


async def find_owner(connection: Connection) -> RoleName | None:
    """Return the role that owns all tenants' schemas, or None if no `init` has made it yet."""
    name = await connection.fetchval(_FIND_OWNER)
    return None if name is None else RoleName(name)


async def get_owner(connection: Connection) -> RoleName:
    """Return the role that owns all tenants' schemas.

    Raises:
        RolesNotReadyError: No `init` has made it yet.
    """
    owner = await find_owner(connection)
    if owner is None:
        raise RolesNotReadyError(f"the tenants have no roles of their own yet: {RUN_INIT}")
    if not await connection.fetchval(ROLE_EXISTS, owner.name):
        # For example after the database was restored into another server.
        raise RolesNotReadyError(f"the role {owner} is missing in this server: {RUN_INIT}")
    return owner


@contextlib.asynccontextmanager
async def as_owner(
    connection: Connection | DriverConnection, *, wanted: bool, local: bool = True
) -> AsyncIterator[None]:
    """Run the block as the owner of all tenants' schemas, never with the rights of a superuser.

    After an exception the role stays: the caller must not use the transaction, or the connection, any more.

    Args:
        connection: It must have the role that has logged in.
        wanted: False if tenants have no roles of their own; then this does nothing.
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
