"""Give every tenant a role of its own, and find what only a superuser may do for that."""

import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import DatabaseUnavailableError, RolesNotReadyError, TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.citus.cluster import has_citus
from quart_tenants.postgres.driver.refusals import describe_refusal, translate_refusals
from quart_tenants.postgres.registry.registry_tables import announce_changes, check_registry
from quart_tenants.postgres.registry.tenant_locks import lock_until_commit, tries_on
from quart_tenants.postgres.roles.owner_role import ROLE_EXISTS, find_owner, name_owner
from quart_tenants.postgres.roles.schema_access import give_tenant_role
from quart_tenants.resources import read_statement
from quart_tenants.tenant import RoleName, SchemaName, Slug

# Two runs of `init` at once would both make an owner role. The number is arbitrary: "roles" as bytes.
_LOCK_SETUP = "SELECT pg_catalog.pg_advisory_xact_lock(491327481203)"
_HAS_RIGHTS_OF = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_roles WHERE rolname = $1 AND pg_catalog.pg_has_role(session_user, oid, 'USAGE')
)
"""
_WRITE_OWNER = "INSERT INTO quart_tenants.role_setup (owner_name) VALUES ($1)"
# $1 the owner role. PUBLIC gets no rights on the functions that it makes.
_LIST_OWNER_STATEMENTS = """
SELECT pg_catalog.format('CREATE ROLE %I NOLOGIN', $1::text)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1::text)
UNION ALL
-- A member that inherits keeps its rights if roles are switched off again. A superuser has them anyway.
SELECT pg_catalog.format('GRANT %I TO %I', $1::text, session_user) || CASE
    WHEN pg_catalog.current_setting('server_version_num')::integer >= 160000 THEN ' WITH INHERIT TRUE, SET TRUE' ELSE ''
END
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = session_user AND rolsuper)
UNION ALL
SELECT pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I REVOKE ALL ON ROUTINES FROM PUBLIC', $1::text)
"""
_GET_SCHEMA = "SELECT schema_name FROM quart_tenants.tenants WHERE id = $1"
# A catalogue that was never analyzed looks small to the planner. It would choose loops, whose time grows with the
# square of the number of tenants.
DO_NOT_LOOP = "SET LOCAL enable_nestloop TO off; SET LOCAL jit TO off"
"""Settings for a query over all tenants; they end with the transaction."""


@dataclass(frozen=True, slots=True)
class TenantWithoutRole:
    """A tenant that `give_roles` must change.

    Attributes:
        id: The registry's number.
        slug: Its subdomain.
        schema: The name of its schema when it was listed.
        open: Whether it has no role, or its schema has another owner. Otherwise only an object in it has.
    """

    id: int
    slug: Slug
    schema: SchemaName
    open: bool


async def refuse_roles_on_citus(database: Database) -> None:
    """Make sure that tenants can have roles of their own in this database.

    Raises:
        RolesNotReadyError: It is a cluster of Citus.
    """
    async with database.connection() as connection:
        if await has_citus(connection):
            raise RolesNotReadyError(
                "tenants cannot have roles of their own on Citus, whose workers let nobody in as such a role: "
                "switch TENANTS_ROLE_PER_TENANT off"
            )


async def make_owner(database: Database) -> tuple[RoleName, list[TenantWithoutRole]]:
    """Make the owner role of all tenants' schemas; return it with the tenants that have no role of their own yet.

    Doing it again does no harm. It makes what is missing in this server, for example after a restore of the database.

    Raises:
        RolesNotReadyError: This role may not make roles.
        RegistryNotReadyError: There is no registry yet.
    """
    async with database.connection() as connection:
        await check_registry(connection)
        await connection.execute(_LOCK_SETUP)
        owner = await find_owner(connection)
        known = owner is not None and await connection.fetchval(ROLE_EXISTS, owner.name)
        if owner is None:
            owner = name_owner(secrets.token_hex(4))
            await connection.execute(_WRITE_OWNER, owner.name)
        for row in await connection.fetch(_LIST_OWNER_STATEMENTS, owner.name):
            try:
                async with connection.transaction():
                    await connection.execute(row[0])
            except asyncpg.InsufficientPrivilegeError as error:
                if await connection.fetchval(_HAS_RIGHTS_OF, owner.name):
                    # Another role granted it, and only that role may do so.
                    continue
                # A new name would be lost with this transaction, so the message does not say it.
                which = owner.quoted if known else "the owner role that it names"
                raise RolesNotReadyError(
                    f"this role may not set up roles: {describe_refusal(error)}; ALTER ROLE … CREATEROLE it, or run "
                    f"quart-tenants init with a superuser's URL, and GRANT {which} TO this one"
                ) from error
        return owner, await list_without_role(connection, owner)


async def give_roles(
    database: Database,
    owner: RoleName,
    tenants: Sequence[TenantWithoutRole],
    *,
    on_done: Callable[[TenantWithoutRole, TenantError | None], object],
) -> None:
    """Give each of *tenants* a role of its own, each in its own transaction.

    Their tables get a new owner. That is tried again and again while transactions use them. If this is killed or
    cancelled, each tenant is changed completely or not at all, and the next `init` does the rest.

    Args:
        database: Where.
        owner: From `make_owner`.
        tenants: From `make_owner`.
        on_done: Called for each tenant with its error, or None. After an error the others go on.

    Raises:
        DatabaseUnavailableError: The connection to the database is lost.
    """
    for tenant in tenants:
        failure = None
        try:
            with translate_refusals():
                await _build(database, owner, tenant)
        except DatabaseUnavailableError:
            raise
        except TenantError as error:
            failure = error
        on_done(tenant, failure)


async def revoke_public_rights(
    database: Database, owner: RoleName, *, on_shut: Callable[[str], object] = lambda statement: None
) -> list[str]:
    """Take from PUBLIC in this database what the tenants' roles must not have.

    Args:
        database: Where.
        owner: From `make_owner`.
        on_shut: Called with each statement that had an effect.

    Returns:
        The statements that this role may not run. A superuser must run them once in this database.
    """
    async with database.connection() as connection:
        statements = await list_public_rights(connection, owner)
        for statement in statements:
            with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
                async with connection.transaction():
                    await connection.execute(statement)
    async with database.connection() as connection:
        # PostgreSQL only warns if a role lacks part of a right. So what counts is which rights PUBLIC has now.
        missing = await list_public_rights(connection, owner)
    for statement in statements:
        if statement not in missing:
            on_shut(statement)
    return missing


async def list_without_role(connection: Connection, owner: RoleName) -> list[TenantWithoutRole]:
    """Return the tenants that have no role, or whose schema is not the owner role's alone, also those in the trash."""
    await connection.execute(DO_NOT_LOOP)
    rows = await connection.fetch(read_statement("list_tenants_without_role"), owner.name)
    return [
        TenantWithoutRole(row["id"], Slug(row["slug"]), SchemaName(row["schema_name"]), row["unprotected"])
        for row in rows
    ]


async def list_public_rights(connection: Connection, owner: RoleName) -> list[str]:
    """Return the statements that would take from PUBLIC what the tenants' roles must not have."""
    return [row["statement"] for row in await connection.fetch(read_statement("list_public_rights"), owner.name)]


async def _build(database: Database, owner: RoleName, tenant: TenantWithoutRole) -> None:
    tries = tries_on(database, tenant.slug)
    while True:
        async with tries.try_once() as connection:
            await lock_until_commit(connection, tenant.id, tenant.slug)
            # In the time since the tenant was listed it may have been dropped, and its schema's name may be another's.
            schema = await connection.fetchval(_GET_SCHEMA, tenant.id)
            if schema is None:
                return
            await give_tenant_role(connection, tenant.id, SchemaName(schema), owner)
            await announce_changes(connection, tenant.id)
            return
