"""Put all tenants behind roles of their own, and find what only a superuser may do for that."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from quart_tenants.errors import DatabaseUnavailableError, RolesNotReadyError, TenantBusyError, TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.refusals import describe_refusal, translate_refusals
from quart_tenants.postgres.registry.registry_tables import announce_changes, check_registry
from quart_tenants.postgres.registry.tenant_locks import lock_until_commit
from quart_tenants.postgres.roles.role_statements import name_owner
from quart_tenants.postgres.roles.tenant_roles import ROLE_EXISTS, build_wall, find_owner
from quart_tenants.tenant import RoleName, SchemaName, Slug

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

# Two `init` at once would both make an owner. The number is arbitrary, but ours: "roles" as bytes.
_LOCK_SETUP = "SELECT pg_catalog.pg_advisory_xact_lock(491327481203)"
_HAS_RIGHTS_OF = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_roles WHERE rolname = $1 AND pg_catalog.pg_has_role(session_user, oid, 'USAGE')
)
"""
_WRITE_OWNER = "INSERT INTO quart_tenants.role_setup (owner_name) VALUES ($1)"
# $1 the owner. Nothing that it makes is open to everybody.
_LIST_OWNER_STATEMENTS = """
SELECT pg_catalog.format('CREATE ROLE %I NOLOGIN', $1::text)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1::text)
UNION ALL
-- A member that inherits: with the wall off again it keeps its rights. A superuser has them anyway.
SELECT pg_catalog.format('GRANT %I TO %I', $1::text, session_user) || CASE
    WHEN pg_catalog.current_setting('server_version_num')::integer >= 160000 THEN ' WITH INHERIT TRUE, SET TRUE' ELSE ''
END
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = session_user AND rolsuper)
UNION ALL
SELECT pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I REVOKE ALL ON ROUTINES FROM PUBLIC', $1::text)
"""
# $1 the owner. What everybody may do in a new database, and the tenants' roles must not: each as a statement. The role
# that has logged in and the owner keep those rights.
_LIST_OPEN_DOORS = """
WITH names AS (
    SELECT pg_catalog.format('%I, %I', session_user, $1::text) AS keepers, session_user AS login
), functions (name) AS (
    -- The first leads out of the role and the path. The second shows what was sent with values in its text.
    VALUES ('pg_catalog.set_config(text, text, boolean)'), ('pg_catalog.pg_prepared_statement()')
), databases AS (
    SELECT pg_catalog.current_database() AS name
)
SELECT pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s', f.name, keepers) AS statement
FROM functions AS f CROSS JOIN names
WHERE pg_catalog.has_function_privilege('public', f.name, 'EXECUTE')
    OR NOT pg_catalog.has_function_privilege(login, f.name, 'EXECUTE')
    OR NOT pg_catalog.has_function_privilege($1::text, f.name, 'EXECUTE')
UNION ALL
SELECT pg_catalog.format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f.name) FROM functions AS f
WHERE pg_catalog.has_function_privilege('public', f.name, 'EXECUTE')
UNION ALL
SELECT pg_catalog.format(s, keepers) FROM names CROSS JOIN (
    VALUES ('GRANT UPDATE ON pg_catalog.pg_settings TO %s'), ('REVOKE UPDATE ON pg_catalog.pg_settings FROM PUBLIC')
) AS settings (s)
WHERE pg_catalog.has_table_privilege('public', 'pg_catalog.pg_settings', 'UPDATE')
UNION ALL
SELECT pg_catalog.format(s, name, keepers) FROM databases CROSS JOIN names CROSS JOIN (
    VALUES ('GRANT TEMPORARY ON DATABASE %1$I TO %2$s'), ('REVOKE TEMPORARY, CREATE ON DATABASE %1$I FROM PUBLIC')
) AS doors (s)
WHERE pg_catalog.has_database_privilege('public', name, 'TEMPORARY')
    OR pg_catalog.has_database_privilege('public', name, 'CREATE')
UNION ALL
SELECT 'REVOKE CREATE ON SCHEMA public FROM PUBLIC' FROM pg_catalog.pg_namespace
WHERE nspname = 'public' AND pg_catalog.has_schema_privilege('public', oid, 'CREATE')
UNION ALL
SELECT 'REVOKE ALL ON SCHEMA quart_tenants FROM PUBLIC'
WHERE pg_catalog.has_schema_privilege('public', 'quart_tenants', 'USAGE')
"""
# Catalogues that were never analyzed look small, and loops over them take the square of the number of tenants.
DO_NOT_LOOP = "SET LOCAL enable_nestloop TO off; SET LOCAL jit TO off"
"""For what looks at all tenants, to the end of the transaction."""

# $1 the owner. Tenants whose wall is missing or has a hole, those in the trash too; one look at all.
_LIST_WITHOUT_WALL = """
WITH owner AS (
    SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1::text
), strange AS (
    SELECT DISTINCT d.refobjid AS schema_oid
    FROM quart_tenants.tenants AS t
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schema_name
    JOIN pg_catalog.pg_depend AS d
        ON d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.refobjid = n.oid AND d.deptype = 'n'
        AND d.classid IN ('pg_catalog.pg_class'::pg_catalog.regclass, 'pg_catalog.pg_proc'::pg_catalog.regclass)
    WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_shdepend AS s
        WHERE s.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
            AND s.classid = d.classid AND s.objid = d.objid AND s.objsubid = 0 AND s.deptype = 'o'
            AND s.refobjid = (SELECT oid FROM owner)
    )
    AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS e
        WHERE e.classid = d.classid AND e.objid = d.objid AND e.deptype = 'e'
    )
)
SELECT t.id, t.slug, t.schema_name, open.door
FROM quart_tenants.tenants AS t
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schema_name
LEFT JOIN pg_catalog.pg_roles AS r ON r.rolname = t.role_name
CROSS JOIN LATERAL (
    SELECT r.oid IS NULL
    OR NOT EXISTS (
        SELECT FROM pg_catalog.pg_auth_members AS m WHERE m.roleid = r.oid AND m.member = (SELECT oid FROM owner)
    )
    OR n.oid IS NOT NULL AND (
        n.nspowner IS DISTINCT FROM (SELECT oid FROM owner)
        OR NOT pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')
        OR pg_catalog.has_schema_privilege('public', n.oid, 'USAGE')
    ) AS door
) AS open
WHERE t.purge_began_at IS NULL AND (open.door OR n.oid IN (SELECT schema_oid FROM strange))
ORDER BY t.id
"""


@dataclass(frozen=True, slots=True)
class TenantWithoutWall:
    """A tenant that `build_walls` has to do with.

    Attributes:
        id: The registry's number.
        slug: Its subdomain.
        schema: What its schema is called now.
        open: Whether it has no role, or its schema is another's. Otherwise only something in it is.
    """

    id: int
    slug: Slug
    schema: SchemaName
    open: bool


async def make_owner(database: Database) -> tuple[RoleName, list[TenantWithoutWall]]:
    """Make the role that is to own all tenants' schemas, and return it with the tenants that are not behind a wall yet.

    Doing it again does no harm, and repairs what lacks in this server, such as after a restore of the database.

    Raises:
        RolesNotReadyError: We may not make roles.
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
                    # Somebody else has granted it, and keeps the right to do so.
                    continue
                # A name that we have just invented goes with this transaction.
                which = owner.quoted if known else "the owner role that it names"
                raise RolesNotReadyError(
                    f"this role may not set up roles: {describe_refusal(error)}; ALTER ROLE … CREATEROLE it, or run "
                    f"quart-tenants init with a superuser's URL, and GRANT {which} TO this one"
                ) from error
        return owner, await list_without_wall(connection, owner)


async def build_walls(
    database: Database,
    owner: RoleName,
    tenants: Sequence[TenantWithoutWall],
    *,
    on_done: Callable[[TenantWithoutWall, TenantError | None], object],
) -> None:
    """Put each of *tenants* behind a role of its own, each in a transaction of its own.

    Their tables change hands, which waits up to five seconds for those that use them. Killed or cancelled, it leaves
    whole tenants; the next `init` goes on.

    Args:
        database: Where.
        owner: From `make_owner`.
        tenants: The same.
        on_done: Called for each, with the error of one that failed; the others go on.

    Raises:
        DatabaseUnavailableError: The database is lost.
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


async def shut_doors(
    database: Database, owner: RoleName, *, on_shut: Callable[[str], object] = lambda statement: None
) -> list[str]:
    """Take from everybody in this database what the tenants' roles must not have.

    Args:
        database: Where.
        owner: From `make_owner`.
        on_shut: Called with each statement that was run and has done its work.

    Returns:
        The statements that this role may not run: let a superuser run them once, in this database.
    """
    async with database.connection() as connection:
        statements = await list_open_doors(connection, owner)
        for statement in statements:
            try:
                async with connection.transaction():
                    await connection.execute(statement)
            except asyncpg.InsufficientPrivilegeError:
                continue
    async with database.connection() as connection:
        # Where a role has some right but not this one PostgreSQL only warns. What counts is what is open now.
        missing = await list_open_doors(connection, owner)
    for statement in statements:
        if statement not in missing:
            on_shut(statement)
    return missing


async def list_without_wall(connection: "Connection", owner: RoleName) -> list[TenantWithoutWall]:
    """Return the tenants that have no role, or whose schema is not the owner's alone, those in the trash too."""
    await connection.execute(DO_NOT_LOOP)
    rows = await connection.fetch(_LIST_WITHOUT_WALL, owner.name)
    return [
        TenantWithoutWall(row["id"], Slug(row["slug"]), SchemaName(row["schema_name"]), row["door"]) for row in rows
    ]


async def list_open_doors(connection: "Connection", owner: RoleName) -> list[str]:
    """Return the statements that would shut what is open to the tenants' roles."""
    return [row["statement"] for row in await connection.fetch(_LIST_OPEN_DOORS, owner.name)]


async def _build(database: Database, owner: RoleName, tenant: TenantWithoutWall) -> None:
    try:
        async with database.connection() as connection:
            await lock_until_commit(connection, tenant.id, tenant.slug)
            await build_wall(connection, tenant.id, tenant.schema, owner)
            await announce_changes(connection, tenant.id)
    except asyncpg.LockNotAvailableError as error:
        raise TenantBusyError(tenant.slug) from error
