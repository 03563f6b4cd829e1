"""Put tenants into the trash, list them, and bring them back."""

from dataclasses import dataclass
from datetime import datetime

from quart_tenants.argument_checks import check_arguments
from quart_tenants.errors import TenantNotInTrashError, UnknownSchemaError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import announce_changes, check_registry
from quart_tenants.postgres.registry.resting_names import check_rested, let_names_rest, wake_name
from quart_tenants.postgres.registry.tenant_locks import (
    FIND_ID,
    get_living_tenant,
    lock_tenant,
    lock_until_commit,
    tries_on,
)
from quart_tenants.postgres.shared.shared_names import refuse_shared_names
from quart_tenants.postgres.tenants.dependents import remove_dependents
from quart_tenants.postgres.tenants.schema_moves import MOVE_MIGRATIONS, rename_schema
from quart_tenants.settings import Settings
from quart_tenants.tenant import REGISTRY_SCHEMA, SchemaName, Slug, Tenant

TIME_OF_DROP = """greatest(
    clock_timestamp(), (SELECT changed_at FROM quart_tenants.changes ORDER BY revision DESC LIMIT 1)
)"""
"""SQL of the time of a drop. If the clock was set back too far, a purge would come too early once it is right again."""
_PUT_INTO_TRASH = f"""
UPDATE quart_tenants.tenants SET schema_name = $2, schema_before_drop = schema_name, dropped_at = {TIME_OF_DROP}
WHERE id = $1
"""  # noqa: S608  (of our own)
_TAKE_OUT_OF_TRASH = """
UPDATE quart_tenants.tenants SET schema_name = schema_before_drop, schema_before_drop = NULL, dropped_at = NULL
WHERE id = $1
"""
_SCHEMA_EXISTS = "SELECT pg_catalog.to_regnamespace(pg_catalog.quote_ident($1)) IS NOT NULL"
_LIST_TRASH = """
SELECT
    id, slug, schema_name AS schema, display_name AS name, dropped_at, purge_began_at IS NOT NULL AS half_purged
FROM quart_tenants.tenants WHERE dropped_at IS NOT NULL ORDER BY dropped_at, slug
"""
_GET_TRASHED = """
SELECT schema_name, schema_before_drop, purge_began_at FROM quart_tenants.tenants
WHERE id = $1 AND slug = $2 AND dropped_at IS NOT NULL
"""
_LIST_DOMAINS = "SELECT domain FROM quart_tenants.domains WHERE tenant_id = $1 AND verified_at IS NOT NULL"


@dataclass(frozen=True, slots=True)
class TrashedTenant:
    """A tenant in the trash.

    Attributes:
        id: The registry's number.
        slug: Its subdomain, which no other tenant can take before it is purged.
        schema: The name of its schema in the trash.
        name: Its display name.
        dropped_at: The time of the drop.
        half_purged: Whether its deletion has begun, so that it cannot come back.

    Example:
        ```python
        for tenant in await list_trash(database):
            print(tenant.slug, tenant.dropped_at, tenant.half_purged)
        ```
    """

    id: int
    slug: Slug
    schema: SchemaName
    name: str
    dropped_at: datetime
    half_purged: bool


@check_arguments
async def drop_tenant(database: Database, slug: Slug, *, including_dependents: bool = False) -> Tenant:
    """Put a tenant into the trash and return it as it was. `undrop_tenant` brings it back.

    Its schema is renamed, so that nothing can read it by its old name. The slug stays taken.

    Args:
        database: The database of the tenant.
        slug: The slug of the tenant.
        including_dependents: Whether views and foreign keys outside the schema that depend on it are dropped. They do
            not come back with the tenant. Such a view would go on to show the dropped tenant's rows.

    Raises:
        DependentsError: Something outside its schema depends on it.
        UnknownTenantError: There is no such tenant.
        TenantInTrashError: The tenant is in the trash already.
        TenantBusyError: The tenant is being migrated or changed.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        await drop_tenant(database, parse_slug("acme"))
        ```
    """
    tries = tries_on(database, slug)
    while True:
        async with tries.try_once() as connection:
            tenant = await lock_tenant(connection, slug)
            trash = name_in_trash(tenant.id)
            await connection.execute(_PUT_INTO_TRASH, tenant.id, trash.name)
            # A tenant must be droppable, too, if somebody dropped its schema by hand.
            if await connection.fetchval(_SCHEMA_EXISTS, tenant.schema.name):
                await remove_dependents(connection, slug, tenant.schema, including=including_dependents)
                await rename_schema(connection, tenant.schema, trash)
            else:
                await connection.execute(MOVE_MIGRATIONS, tenant.schema.name, trash.name)
            domains = [row["domain"] for row in await connection.fetch(_LIST_DOMAINS, tenant.id)]
            await let_names_rest(connection, tenant.id, domains)
            await let_names_rest(connection, tenant.id, [tenant.slug], schema=tenant.schema)
            await announce_changes(connection, tenant.id)
            return tenant


@check_arguments
async def undrop_tenant(database: Database, slug: Slug, *, settings: Settings) -> Tenant:
    """Bring a tenant back from the trash as it was, with its sessions and domains.

    Tenants in the trash are not migrated. If migrations ran meanwhile, the tenant is not served before
    `migrate_fleet` has migrated it.

    Args:
        database: The database of the tenant.
        slug: The slug of the tenant.
        settings: They say how long a name rests.

    Raises:
        TenantNotInTrashError: No tenant with that slug is in the trash.
        RecentlyDroppedError: Another tenant had the name of its schema until a moment ago.
        UnknownSchemaError: Its deletion has begun, or somebody has deleted its schema.
        SchemaExistsError: Somebody has made a schema of its name meanwhile.
        TenantBusyError: The tenant is being changed.
        SharedNameError: A name is in its schema and in a shared one.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        await drop_tenant(database, parse_slug("acme"))
        await undrop_tenant(database, parse_slug("acme"), settings=settings)
        ```
    """
    tries = tries_on(database, slug)
    while True:
        async with tries.try_once() as connection:
            await check_registry(connection)
            tenant_id = await connection.fetchval(FIND_ID, slug)
            if tenant_id is not None:
                await lock_until_commit(connection, tenant_id, slug)
            row = await connection.fetchrow(_GET_TRASHED, tenant_id, slug)
            if row is None:
                raise TenantNotInTrashError(slug)
            schema = SchemaName(row["schema_before_drop"])
            if row["purge_began_at"] is not None:
                raise UnknownSchemaError(schema.name, "its deletion has begun; let the command `purge` finish it")
            if not await connection.fetchval(_SCHEMA_EXISTS, row["schema_name"]):
                raise UnknownSchemaError(schema.name, f"it is gone: nothing is called {row['schema_name']} any more")
            await rename_schema(connection, SchemaName(row["schema_name"]), schema)
            await check_rested(connection, tenant_id, settings=settings, schema=schema)
            await refuse_shared_names(connection, schema, settings=settings)
            await connection.execute(_TAKE_OUT_OF_TRASH, tenant_id)
            await wake_name(connection, tenant_id, slug)
            await announce_changes(connection, tenant_id)
            return await get_living_tenant(connection, tenant_id, slug)


@check_arguments
async def list_trash(database: Database) -> list[TrashedTenant]:
    """Return the tenants in the trash, the oldest drop first.

    Raises:
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        await drop_tenant(database, parse_slug("acme"))
        print([tenant.slug for tenant in await list_trash(database)])
        ```
    """
    async with database.connection() as connection:
        await check_registry(connection)
        rows = await connection.fetch(_LIST_TRASH)
    return [TrashedTenant(**dict(row) | {"schema": SchemaName(row["schema"])}) for row in rows]


def name_in_trash(tenant_id: int) -> SchemaName:
    """Return the name that the schema of a tenant has in the trash."""
    return SchemaName(f"{REGISTRY_SCHEMA}_trash_{tenant_id}")
