"""The steps that make a tenant, whether they run in one transaction or in several."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import SchemaExistsError
from quart_tenants.postgres.blocks.database import Database, enter_schema, list_tenant_path
from quart_tenants.postgres.blocks.short_waits import ShortWaits, wait_long
from quart_tenants.postgres.migrations.migration_files import Migration
from quart_tenants.postgres.migrations.migration_runs import apply_migrations, run_scripts
from quart_tenants.postgres.registry.registry_tables import announce_changes
from quart_tenants.postgres.roles.owner_role import as_owner, get_owner
from quart_tenants.postgres.roles.schema_access import give_tenant_role
from quart_tenants.postgres.shared.shared_names import refuse_shared_names
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant

# The number is arbitrary: "making" as bytes. Whoever waits for it comes before whoever only tries.
_TRY_TOGETHER = "SELECT pg_catalog.pg_try_advisory_xact_lock_shared(120265181326951)"
_WAIT_FOR_TURN = "SELECT pg_catalog.pg_advisory_xact_lock(120265181326951)"

Fill = Callable[[Connection], Awaitable[object]]
"""A function that writes a new tenant's first rows."""


@dataclass(frozen=True, slots=True)
class NewTenant:
    """A tenant that is to be made.

    Attributes:
        slug: Its subdomain.
        schema: The name of its schema.
        name: Its display name.
        migrations: All files for its tables.
        first_rows: SQL that fills the tables, or None.
        fill: A function that fills the tables, or None.
    """

    slug: Slug
    schema: SchemaName
    name: str
    migrations: Sequence[Migration]
    first_rows: str | None = None
    fill: Fill | None = None


async def make_schema(connection: Connection, tenant: Tenant, *, settings: Settings) -> Tenant:
    """Make the schema of *tenant*, and its role if tenants have roles; return the tenant with that role.

    Raises:
        SchemaExistsError: The schema exists.
        RolesNotReadyError: There is no owner role, or this role may not make others.
    """
    owner = await get_owner(connection) if settings.role_per_tenant else None
    try:
        await connection.execute(f"CREATE SCHEMA {tenant.schema.quoted}")
    except asyncpg.DuplicateSchemaError as error:
        raise SchemaExistsError(str(tenant.schema)) from error
    if owner is None:
        return tenant
    # The schema is still empty: all that the owner role makes from now on is open to the tenant's role.
    return replace(tenant, role=await give_tenant_role(connection, tenant.id, tenant.schema, owner, new=True))


async def run_files(
    connection: Connection, tenant: Tenant, migrations: Sequence[Migration], *, settings: Settings
) -> None:
    """Run *migrations* in the new schema of *tenant*. Raises the errors of `apply_migrations`."""
    await enter_schema(connection, tenant.schema, settings=settings)
    path = list_tenant_path(tenant.schema, settings)
    await apply_migrations(connection, tenant.schema.name, migrations, path=path, owner=settings.role_per_tenant)


async def wait_for_turn(connection: Connection, tries: ShortWaits) -> None:
    """Let tenants be made together until two of them need one lock, and from then on one after the other.

    A foreign key to a shared table locks it against other such keys until the commit. If everybody only tried again and
    again, chance would decide who waits for ever.

    Args:
        connection: Of a try of *tries*.
        tries: They say whether a lock was not free before.
    """
    if tries.failed or not await connection.fetchval(_TRY_TOGETHER):
        await wait_long(connection, _WAIT_FOR_TURN)


async def finish(
    database: Database, tries: ShortWaits, connection: Connection, new: NewTenant, tenant: Tenant, *, settings: Settings
) -> None:
    """Write the first rows and announce the tenant. *connection* is of a try of *tries*, on the tenant's path.

    Raises whatever `new.fill` raises, and:
        MigrationFailedError: The first rows failed.
        SharedNameError: A name is in the tenant's schema and in a shared one.
    """
    if new.first_rows is not None:
        async with as_owner(connection, wanted=settings.role_per_tenant):
            await run_scripts(connection, tenant.schema.name, [Migration(0, "first_rows", new.first_rows)])
    await refuse_shared_names(connection, tenant.schema, settings=settings)
    await announce_changes(connection, tenant.id)
    if new.fill is not None:
        # It may do what cannot be undone, so it is not called again because of a lock.
        await tries.make_last(connection)
        await database.go_on_in(tries.block, tenant)
        filled: object = new.fill(connection)
        if not inspect.isawaitable(filled):
            raise TypeError("fill must be an async function: async def fill(connection): …")
        await filled
