"""Make a tenant whose files need several transactions. It does not exist before the last of them."""

import contextlib
from collections.abc import Collection, Sequence

from quart_tenants.errors import (
    DatabaseUnavailableError,
    MigrationFailedError,
    TenantBusyError,
    TenantError,
    TenantExistsError,
)
from quart_tenants.postgres.blocks.database import Database, enter_schema
from quart_tenants.postgres.blocks.long_work import stay_open
from quart_tenants.postgres.blocks.short_waits import ShortWaits
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS, DriverConnection, describe
from quart_tenants.postgres.migrations.migration_files import Migration
from quart_tenants.postgres.migrations.transactions import count_committed_first, take_together
from quart_tenants.postgres.registry.registry_tables import check_registry
from quart_tenants.postgres.registry.tenant_locks import lock_until_commit, tries_on
from quart_tenants.postgres.tenants.new_tenant import NewTenant, finish, make_schema, run_files, wait_for_turn
from quart_tenants.postgres.tenants.purge import purge_tenants
from quart_tenants.postgres.tenants.trash import list_trash
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant

_NEXT_ID = "SELECT pg_catalog.nextval(pg_catalog.pg_get_serial_sequence('quart_tenants.tenants', 'id'))"
# Until it is complete the tenant is as one that is being deleted: nobody is served, and the next purge removes it.
_ADD_UNFINISHED = """
INSERT INTO quart_tenants.tenants (id, slug, schema_name, display_name, schema_before_drop, dropped_at, purge_began_at)
OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $3, now(), now())
ON CONFLICT DO NOTHING RETURNING id
"""
_COMPLETE = """
UPDATE quart_tenants.tenants SET schema_before_drop = NULL, dropped_at = NULL, purge_began_at = NULL
WHERE id = $1 RETURNING id
"""
# The schema of a tenant that was dropped has another name.
_LIST_UNFINISHED = """
SELECT id FROM quart_tenants.tenants WHERE schema_name = schema_before_drop AND slug = ANY ($1::text[])
"""


async def create_in_steps(database: Database, new: NewTenant, *, settings: Settings) -> Tenant:
    """Make a tenant in several transactions. The last one makes it a tenant.

    After an error or a cancellation its schema is deleted. If that fails, or the process is killed, what was made stays
    in the trash as a tenant whose deletion has begun, until `purge`, or until somebody makes a tenant of that name.

    Args:
        database: Needs one connection, and opens another one for a lock.
        new: Checked: its names are free.
        settings: They say where the database is, and whether tenants have roles.

    Raises what `create_tenant` raises.
    """
    async with database.connection() as connection:
        tenant_id = await connection.fetchval(_NEXT_ID)
    tenant = Tenant(tenant_id, new.slug, new.schema, new.name, len(new.migrations))
    try:
        # The lock says that the tenant is still being made. A transaction holds it, also behind a pooler.
        async with database.plain_session() as guard:
            holding = guard.transaction()
            await holding.start()
            await stay_open(guard)
            await lock_until_commit(guard, tenant.id, tenant.slug)
            # This closes the driver's last statement. Its snapshot would hold up every index build until the end.
            await guard.execute("SELECT")
            tenant = await _create(database, new, tenant, settings, guard)
            # The tenant exists now, whatever becomes of the lock.
            with contextlib.suppress(*DRIVER_ERRORS):
                await holding.rollback()
            return tenant
    except BaseException:
        # If this fails, too, the error that is told is the first one.
        with contextlib.suppress(TenantError):
            await sweep_unfinished(database, [new.slug])
        raise


async def sweep_unfinished(database: Database, slugs: Collection[Slug]) -> None:
    """Delete what killed processes have left of tenants with these slugs, which were never complete.

    Raises:
        TenantBusyError: Another process is making such a tenant.
        RegistryNotReadyError: There is no registry yet.
    """
    async with database.connection() as connection:
        await check_registry(connection)
        rows = await connection.fetch(_LIST_UNFINISHED, list(slugs))
    if rows:
        unfinished = {row["id"] for row in rows}
        await purge_tenants(database, [tenant for tenant in await list_trash(database) if tenant.id in unfinished])


async def _run_together(tries: ShortWaits, tenant: Tenant, migrations: Sequence[Migration], settings: Settings) -> None:
    while True:
        async with tries.try_once() as connection:
            await wait_for_turn(connection, tries)
            await run_files(connection, tenant, migrations, settings=settings)
            return


async def _create(
    database: Database, new: NewTenant, tenant: Tenant, settings: Settings, guard: DriverConnection
) -> Tenant:
    async with database.connection() as connection:
        if await connection.fetchval(_ADD_UNFINISHED, tenant.id, tenant.slug, tenant.schema.name, tenant.name) is None:
            raise TenantExistsError(tenant.slug, tenant.schema.name)
        tenant = await make_schema(connection, tenant, settings=settings)
    left = list(new.migrations)
    together = take_together(left, new_tables=True)
    tries = tries_on(database, tenant.slug)
    while together:
        try:
            await _run_together(tries, tenant, together, settings)
        except MigrationFailedError as error:
            together = together[: count_committed_first(error, together)]
            if not together:
                raise
        else:
            left = left[len(together) :]
            together = take_together(left, new_tables=True)
    try:
        await guard.execute("SELECT")
    except DRIVER_ERRORS as error:
        raise DatabaseUnavailableError(
            f"the connection that held the lock of tenant {tenant.slug!r} was lost before it was complete: "
            f"{describe(error)}"
        ) from error
    while True:
        async with tries.try_once() as connection:
            if await connection.fetchval(_COMPLETE, tenant.id) is None:
                # The lock was lost, and a purge has deleted the tenant.
                raise TenantBusyError(tenant.slug)
            await enter_schema(connection, tenant.schema, settings=settings)
            await finish(database, tries, connection, new, tenant, settings=settings)
            return tenant
