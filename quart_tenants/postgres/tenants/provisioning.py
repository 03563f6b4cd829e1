"""Make tenants: create one, create many, or adopt schemas that exist."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import (
    SchemaExistsError,
    TenantExistsError,
    UnknownSchemaError,
)
from quart_tenants.postgres.blocks.database import Database, enter_schema, list_tenant_path
from quart_tenants.postgres.migrations.migration_files import (
    Migration,
    apply_migrations,
    describe_newest,
    get_tenant_migrations,
    record_migrations,
    refuse_edited,
    run_scripts,
)
from quart_tenants.postgres.registry.registry_tables import announce_changes, check_registry
from quart_tenants.postgres.roles.owner_role import as_owner, get_owner
from quart_tenants.postgres.roles.schema_access import give_tenant_role
from quart_tenants.postgres.shared.shared_access import grant_shared
from quart_tenants.postgres.shared.shared_names import refuse_shared_names
from quart_tenants.postgres.tenants.free_names import check_free, check_not_reserved
from quart_tenants.postgres.tenants.ready_tenants import take_ready
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant, parse_display_name, parse_schema_name

Fill = Callable[[Connection], Awaitable[object]]
"""A function that writes a new tenant's first rows."""

_ADD_TENANT = """
INSERT INTO quart_tenants.tenants (slug, schema_name, display_name) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING RETURNING id
"""
_MAY_USE_SCHEMA = """
SELECT pg_catalog.has_schema_privilege(oid, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = $1
"""


async def create_tenant(
    database: Database,
    slug: Slug,
    name: str,
    *,
    settings: Settings,
    schema: SchemaName | None = None,
    first_rows: str | None = None,
    fill: Fill | None = None,
) -> Tenant:
    """Register a tenant, create its schema and run every tenant migration in it, in one transaction.

    With `TENANTS_READY_TENANTS` it takes a schema that was made in advance from the same files, if there is one.

    Args:
        database: The database; its role needs CREATE on it.
        slug: The subdomain.
        name: The display name of the tenant.
        settings: They say which slugs are reserved and where the migrations are.
        schema: The name of the schema; default: the slug.
        first_rows: SQL that fills the new tables, in the same transaction.
        fill: An async function that gets a connection which sees the new tenant's tables, in the same transaction.
            With roles it acts as the tenant's role. The tenant exists if the function returns, and not if it raises.

    Raises whatever *fill* raises, and:
        InvalidSlugError: *slug* is reserved by `TENANTS_RESERVED_SLUGS`.
        InvalidNameError: *name* is empty, too long or not printable.
        TenantExistsError: The slug or the schema is taken.
        TenantInTrashError: A tenant with that slug is in the trash.
        FormerSlugError: A renamed tenant had that slug, and it still leads to the new one.
        RecentlyDroppedError: Another tenant had the name until a moment ago, or a transaction may still read it.
        SchemaExistsError: The schema exists and is no tenant's.
        MigrationFileError: A file is no SQL, or was changed after it ran for another tenant.
        MigrationFailedError: A migration failed.
        SharedNameError: A name is in the tenant's schema and in a shared one.
        RegistryNotReadyError: There is no registry yet.
        RolesNotReadyError: Each tenant must have a role, but roles are not set up, or this role may not make them.
    """
    check_not_reserved(slug, settings)
    name = parse_display_name(name)
    schema = schema or parse_schema_name(slug)
    migrations = get_tenant_migrations(settings)
    block = database.connection()
    async with block as connection:
        await check_registry(connection)
        await refuse_edited(connection, migrations)
        await check_free(connection, {slug: schema}, settings)
        tenant = await _create(connection, slug, schema, name, migrations, settings, first_rows, may_take=True)
        if fill is not None:
            await database.go_on_in(block, tenant)
            filled: object = fill(connection)
            if not inspect.isawaitable(filled):
                raise TypeError("fill must be an async function: async def fill(connection): …")
            await filled
    return tenant


async def create_tenants(
    database: Database,
    names: Mapping[Slug, str],
    *,
    settings: Settings,
    jobs: int = 4,
    on_created: Callable[[Tenant], object] | None = None,
) -> int:
    """Create many tenants, each in its own transaction, and return how many.

    All that can be checked is checked before the first tenant is made. After a later failure or a cancellation the
    tenants that were made stay, and each of them is complete.

    Args:
        database: It needs at least *jobs* connections.
        names: The display names by slug.
        settings: They say which slugs are reserved and where the migrations are.
        jobs: How many tenants are made at the same time.
        on_created: Called for each new tenant.

    Raises what `create_tenant` raises, for the first slug that cannot be a tenant's.
    """
    for slug in names:
        check_not_reserved(slug, settings)
    rows = {slug: (parse_schema_name(slug), parse_display_name(name)) for slug, name in names.items()}
    migrations = get_tenant_migrations(settings)
    for migration in migrations:
        migration.check()
    async with database.connection() as connection:
        await check_registry(connection)
        await refuse_edited(connection, migrations)
        await check_free(connection, {slug: schema for slug, (schema, _) in rows.items()}, settings)
    left = iter(rows.items())

    async def create_from_the_rest() -> None:
        # All jobs share one iterator, and each takes the next tenant when it is free.
        for slug, (schema, name) in left:
            async with database.connection() as connection:
                tenant = await _create(connection, slug, schema, name, migrations, settings)
            if on_created is not None:
                on_created(tenant)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(jobs):
                group.create_task(create_from_the_rest())
    except BaseExceptionGroup as failures:
        # The group has cancelled the other jobs, and one error is enough.
        raise failures.exceptions[0] from None
    return len(rows)


async def adopt_schemas(
    database: Database, schemas: Mapping[Slug, SchemaName], *, settings: Settings, version: int
) -> list[Tenant]:
    """Register schemas that exist already, all or none. Their tables do not change.

    With `TENANTS_ROLE_PER_TENANT` the schemas and their contents get a new owner, the owner role.

    Args:
        database: The database with the schemas.
        schemas: The schemas by slug. The slug becomes the display name, too.
        settings: They say which slugs are reserved and where the migrations are.
        version: The newest migration whose changes the schemas contain already; 0 for none.

    Raises:
        InvalidSlugError: A slug is reserved by `TENANTS_RESERVED_SLUGS`.
        UnknownSchemaError: A schema does not exist, this role may not use it, or there is no such version.
        TenantExistsError: A slug is taken, or a schema is another tenant's.
        TenantInTrashError: A tenant with that slug is in the trash.
        FormerSlugError: A renamed tenant had that slug, and it still leads to the new one.
        RecentlyDroppedError: Another tenant had the name until a moment ago, or a transaction may still read it.
        SharedNameError: A name is in the tenant's schema and in a shared one.
        RegistryNotReadyError: There is no registry yet.
        RolesNotReadyError: This role may not give a schema, or an object in it, to the owner role.
    """
    migrations = get_tenant_migrations(settings)
    if not 0 <= version <= len(migrations):
        raise UnknownSchemaError(
            ", ".join(str(schema) for schema in schemas.values()),
            f"there is no migration {version:04}; the newest is {describe_newest(migrations)}",
        )
    tenants = []
    async with database.connection() as connection:
        await check_registry(connection)
        owner = await get_owner(connection) if settings.role_per_tenant else None
        if owner is not None:
            await grant_shared(connection, owner, settings=settings)
        for slug, schema in schemas.items():
            check_not_reserved(slug, settings)
            usable = await connection.fetchval(_MAY_USE_SCHEMA, schema.name)
            if usable is None:
                raise UnknownSchemaError(schema.name, "there is none of that name in this database")
            if not usable:
                raise UnknownSchemaError(schema.name, "this role lacks the right to use it: GRANT USAGE ON SCHEMA")
            await check_free(connection, {slug: schema}, settings, new_schema=False)
            await refuse_shared_names(connection, schema, settings=settings)
            tenant = await register_tenant(connection, slug, schema, slug, version)
            if owner is not None:
                tenant = replace(tenant, role=await give_tenant_role(connection, tenant.id, schema, owner))
            tenants.append(tenant)
            await record_migrations(connection, schema.name, migrations[:version])
        await announce_changes(connection, *(tenant.id for tenant in tenants))
    return tenants


async def register_tenant(connection: Connection, slug: Slug, schema: SchemaName, name: str, version: int) -> Tenant:
    """Write the tenant's row, after `check_free`.

    Raises:
        TenantExistsError: Another process took the name a moment ago.
    """
    tenant_id = await connection.fetchval(_ADD_TENANT, slug, schema.name, name)
    if tenant_id is None:
        raise TenantExistsError(slug, schema.name)
    return Tenant(tenant_id, slug, schema, name, version)


async def _create(
    connection: Connection,
    slug: Slug,
    schema: SchemaName,
    name: str,
    migrations: Sequence[Migration],
    settings: Settings,
    first_rows: str | None = None,
    *,
    may_take: bool = False,
) -> Tenant:
    """Make a tenant in the transaction of *connection*, with a ready schema if it *may take* one and there is one."""
    with_role = settings.role_per_tenant
    owner = await get_owner(connection) if with_role else None
    tenant = await register_tenant(connection, slug, schema, name, len(migrations))
    if may_take and await take_ready(connection, schema, migrations, owner, settings=settings):
        if owner is not None:
            tenant = replace(tenant, role=await give_tenant_role(connection, tenant.id, schema, owner))
        await enter_schema(connection, schema, settings=settings)
    else:
        try:
            await connection.execute(f"CREATE SCHEMA {schema.quoted}")
        except asyncpg.DuplicateSchemaError as error:
            raise SchemaExistsError(str(schema)) from error
        if owner is not None:
            # The schema is still empty: all that the owner role makes from now on is open to the tenant's role.
            tenant = replace(tenant, role=await give_tenant_role(connection, tenant.id, schema, owner, new=True))
        await enter_schema(connection, schema, settings=settings)
        path = list_tenant_path(schema, settings)
        await apply_migrations(connection, str(schema), migrations, path=path, owner=with_role)
    if first_rows is not None:
        async with as_owner(connection, wanted=with_role):
            await run_scripts(connection, str(schema), [Migration(0, "first_rows", first_rows)])
    await refuse_shared_names(connection, schema, settings=settings)
    await announce_changes(connection, tenant.id)
    return tenant
