"""Delete tenants in the trash for good, and rows of the registry that nobody needs any more."""

import time
from collections.abc import Callable, Collection, Sequence

import asyncpg

from quart_tenants.argument_checks import check_arguments
from quart_tenants.errors import DatabaseFullError, DatabaseUnavailableError, TenantError, TenantNotInTrashError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.short_waits import ShortWaits
from quart_tenants.postgres.driver.refusals import translate_refusals
from quart_tenants.postgres.registry.resting_names import forget_rested_names, free_names
from quart_tenants.postgres.registry.tenant_locks import lock_until_commit, tries_on
from quart_tenants.postgres.roles.schema_access import drop_role
from quart_tenants.postgres.sessions.failed_logins import prune_failed_logins
from quart_tenants.postgres.sessions.session_ends import prune_ended_sessions
from quart_tenants.postgres.tenants.dependents import remove_dependents
from quart_tenants.postgres.tenants.schema_moves import FORGET_MIGRATIONS
from quart_tenants.postgres.tenants.trash import TrashedTenant, list_trash
from quart_tenants.resources import read_statement
from quart_tenants.settings import Settings
from quart_tenants.tenant import RoleName, SchemaName, Slug

# How many relations one transaction drops. DROP locks a table with its indexes, sequences, types and constraints until
# the commit. All requests share the server's table of locks, and a schema with thousands of tables would fill it.
_BATCH = 50

# $2 the time of this machine, which may be another one than the server's. The clock that is behind counts, because
# one that is ahead by a month would delete what was dropped yesterday. Clocks are seldom the same to the second.
_GET_BORDER = """
SELECT least(now(), to_timestamp($2) + interval '1 minute') - make_interval(secs => $1 * 86400)
"""
# $2 the time of the drop: a tenant that was brought back and dropped again is a younger one.
_BEGIN = """
UPDATE quart_tenants.tenants SET purge_began_at = coalesce(purge_began_at, now())
WHERE id = $1 AND dropped_at = $2 RETURNING schema_name
"""
_GET_BEGUN = "SELECT schema_name, role_name FROM quart_tenants.tenants WHERE id = $1 AND purge_began_at IS NOT NULL"
# $1 the schema. What partitions have inherited goes with the key of their parent.
_LIST_KEYS = """
SELECT
    format(
        'ALTER TABLE IF EXISTS %I.%I DROP CONSTRAINT IF EXISTS %I', n.nspname, c.relname, k.conname
    ) AS statement
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d
    ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS c ON c.oid = d.objid
JOIN pg_catalog.pg_constraint AS k ON k.conrelid = c.oid AND k.contype = 'f' AND k.conparentid = 0
JOIN pg_catalog.pg_class AS other ON other.oid = k.confrelid AND other.relnamespace <> n.oid
WHERE n.nspname = $1
ORDER BY k.oid
"""
_FORGET_TENANT = "DELETE FROM quart_tenants.tenants WHERE id = $1"

# A worker whose last row is gone reads the whole registry again. So the newest row stays, however old it is.
_PRUNE_CHANGES = """
DELETE FROM quart_tenants.changes
WHERE changed_at < now() - interval '1 day' AND revision < (SELECT max(revision) FROM quart_tenants.changes)
"""
# $1 the time of this machine, as above.
_PRUNE_REDIRECTS = """
DELETE FROM quart_tenants.former_slugs WHERE redirect_until < least(now(), to_timestamp($1)) - interval '1 day'
"""


async def find_purgeable(
    database: Database,
    *,
    settings: Settings,
    slugs: Collection[Slug] | None = None,
    older_than_days: float | None = None,
) -> list[TrashedTenant]:
    """Return the tenants that `purge_trash` would delete, the oldest drop first.

    Raises:
        TenantNotInTrashError: One of *slugs* is not in the trash.
        RegistryNotReadyError: There is no registry yet.
    """
    trash = await list_trash(database)
    if slugs is not None:
        lying = {tenant.slug for tenant in trash}
        for slug in slugs:
            if slug not in lying:
                raise TenantNotInTrashError(slug)
        return [tenant for tenant in trash if tenant.slug in slugs]
    days = settings.trash_days if older_than_days is None else older_than_days
    async with database.connection() as connection:
        border = await connection.fetchval(_GET_BORDER, days, time.time())
    # A deletion that has begun must be finished.
    return [tenant for tenant in trash if tenant.half_purged or tenant.dropped_at <= border]


@check_arguments
async def purge_trash(
    database: Database,
    *,
    settings: Settings,
    slugs: Collection[Slug] | None = None,
    older_than_days: float | None = None,
    including_dependents: bool = False,
) -> list[TrashedTenant]:
    """Delete tenants for good that have been in the trash for long, and return them.

    Args:
        database: The database of the tenants.
        settings: They say how long the trash is kept.
        slugs: Only these tenants, however long they have been in the trash.
        older_than_days: Only tenants that were dropped so many days ago by the clocks of this machine and of the
            server; default: `TENANTS_TRASH_DAYS`.
        including_dependents: Whether views and foreign keys outside a schema that depend on it are dropped.

    Raises:
        DependentsError: Something outside a schema depends on it.
        TenantNotInTrashError: One of *slugs* is not in the trash; nothing is deleted.
        TenantBusyError: A transaction changes or reads a tenant, or uses a table that it refers to.
        DatabaseRefusedError: PostgreSQL refused to drop something, for example for a lack of rights.
        DatabaseUnavailableError: The database cannot be reached.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        await drop_tenant(database, parse_slug("acme"))
        await purge_trash(database, settings=settings, slugs=[parse_slug("acme")])
        ```
    """
    tenants = await find_purgeable(database, settings=settings, slugs=slugs, older_than_days=older_than_days)
    return await purge_tenants(database, tenants, including_dependents=including_dependents)


async def purge_tenants(
    database: Database,
    tenants: Sequence[TrashedTenant],
    *,
    on_purged: Callable[[TrashedTenant], object] | None = None,
    on_failed: Callable[[TrashedTenant, TenantError], object] | None = None,
    including_dependents: bool = False,
) -> list[TrashedTenant]:
    """Delete tenants for good, each schema in several transactions, and return them. Then clean up the registry.

    Its foreign keys to tables of others go first, each in a transaction of its own that waits shortly for the lock on
    such a table, so that others go on reading it. A tenant that was brought back meanwhile stays. If this is killed, it
    leaves a tenant that cannot come back, and the next purge finishes it.

    Args:
        database: The database of the tenants.
        tenants: From `find_purgeable`.
        on_purged: Called for each tenant that is deleted.
        on_failed: Called for each tenant that could not be deleted; the others are still deleted. Without it
            the error is raised.
        including_dependents: Whether views and foreign keys outside a schema that depend on it are dropped.

    Raises:
        DependentsError: Something outside a schema depends on it, and nothing of the tenant is deleted.
        TenantBusyError: A transaction changes or reads a tenant, or uses a table that it refers to.
        DatabaseRefusedError: PostgreSQL refused to drop something, for example for a lack of rights.
        DatabaseUnavailableError: The database cannot be reached.
    """
    purged = []
    for tenant in tenants:
        try:
            with translate_refusals():
                gone = await _purge(database, tenant, including=including_dependents)
        except TenantError as error:
            if on_failed is None or isinstance(error, DatabaseUnavailableError):
                raise
            on_failed(tenant, error)
            continue
        if gone:
            purged.append(tenant)
            if on_purged is not None:
                on_purged(tenant)
    async with database.connection() as connection:
        await connection.execute(_PRUNE_CHANGES)
        await connection.execute(_PRUNE_REDIRECTS, time.time())
        await forget_rested_names(connection)
        await prune_ended_sessions(connection)
        await prune_failed_logins(connection)
    return purged


async def _purge(database: Database, tenant: TrashedTenant, *, including: bool) -> bool:
    """Return whether this call deleted the tenant. If not, it was brought back, or another process deleted it."""
    tries = tries_on(database, tenant.slug)
    keys = await _begin(tries, tenant, including=including)
    if keys is None:
        return False
    for statement in keys:
        try:
            await _drop_key(tries, tenant, statement)
        except DatabaseFullError as error:
            # A partitioned table may have more partitions than the table of locks has room for. Batches drop those.
            if not _has_too_many_locks(error):
                raise
    batch = _BATCH
    while True:
        try:
            while not await _drop_batch(tries, tenant, batch, including=including):
                pass
        except DatabaseFullError as error:
            # The table of locks is full: tables with many columns, or a server that is small or busy.
            if batch == 1 or not _has_too_many_locks(error):
                raise
            batch //= 2
        else:
            return True


async def _begin(tries: ShortWaits, tenant: TrashedTenant, *, including: bool) -> Sequence[str] | None:
    """Note that the deletion has begun, and return the statements that drop its foreign keys to tables of others.

    They are to run one by one: each locks a table that other tenants use, until its transaction ends. The first one ran
    here, so that nothing has begun if such a table is in use. None means that the tenant was brought back.
    """
    while True:
        async with tries.try_once() as connection:
            await lock_until_commit(connection, tenant.id, tenant.slug)
            # Before anything is deleted, so that a tenant that cannot be deleted is left whole.
            await remove_dependents(connection, tenant.slug, tenant.schema, including=including)
            if await connection.fetchval(_BEGIN, tenant.id, tenant.dropped_at) is None:
                return None
            keys = [row["statement"] for row in await connection.fetch(_LIST_KEYS, tenant.schema.name)]
            if keys:
                await connection.execute(keys[0])
            return keys[1:]


async def _drop_key(tries: ShortWaits, tenant: TrashedTenant, statement: str) -> None:
    while True:
        async with tries.try_once() as connection:
            await lock_until_commit(connection, tenant.id, tenant.slug)
            await connection.execute(statement)
            return


async def _drop_batch(tries: ShortWaits, tenant: TrashedTenant, batch: int, *, including: bool) -> bool:
    """Drop up to *batch* relations, or the empty schema; return whether the tenant is gone."""
    while True:
        async with tries.try_once() as connection:
            await lock_until_commit(connection, tenant.id, tenant.slug)
            row = await connection.fetchrow(_GET_BEGUN, tenant.id)
            if row is None:
                return True
            schema = SchemaName(row["schema_name"])
            drops = await connection.fetch(read_statement("list_drops"), schema.name, batch)
            if drops:
                # Locked first: from then on nobody can make a view or a foreign key that CASCADE would drop.
                if tables := [drop["table"] for drop in drops if drop["table"] is not None]:
                    await connection.execute(f"LOCK TABLE ONLY {', ONLY '.join(tables)} IN ACCESS EXCLUSIVE MODE")
                relations = [drop["relation"] for drop in drops]
                await remove_dependents(connection, tenant.slug, schema, including=including, relations=relations)
                for drop in drops:
                    await connection.execute(drop["statement"])
                return False
            # Its functions and types are still there.
            await remove_dependents(connection, tenant.slug, schema, including=including)
            await connection.execute(f"DROP SCHEMA IF EXISTS {schema.quoted} CASCADE")
            await connection.execute(FORGET_MIGRATIONS, schema.name)
            await connection.execute(_FORGET_TENANT, tenant.id)
            if row["role_name"] is not None:
                await drop_role(connection, RoleName(row["role_name"]))
            # Its former addresses lead nowhere now, so they may be free soon.
            await free_names(connection, tenant.id)
            return True


def _has_too_many_locks(error: DatabaseFullError) -> bool:
    return isinstance(error.__cause__, asyncpg.OutOfMemoryError)
