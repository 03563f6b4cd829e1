"""Make tenants: create one, create many, or adopt schemas that exist."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import asyncpg

from quart_tenants.argument_checks import check_arguments
from quart_tenants.connection import Connection
from quart_tenants.errors import MigrationFailedError, TenantExistsError, UnknownSchemaError
from quart_tenants.long_lists import name_some
from quart_tenants.postgres.blocks.database import Database, enter_schema
from quart_tenants.postgres.blocks.short_waits import ShortWaits
from quart_tenants.postgres.migrations.migration_files import describe_newest, get_tenant_migrations, refuse_edited
from quart_tenants.postgres.migrations.migration_runs import record_migrations
from quart_tenants.postgres.migrations.transactions import count_committed_first, take_together
from quart_tenants.postgres.registry.registry_tables import announce_changes, check_registry
from quart_tenants.postgres.registry.tenant_locks import tries_on
from quart_tenants.postgres.roles.owner_role import get_owner
from quart_tenants.postgres.roles.schema_access import give_tenant_role
from quart_tenants.postgres.shared.shared_access import grant_shared
from quart_tenants.postgres.shared.shared_names import refuse_shared_names
from quart_tenants.postgres.tenants.free_names import check_free, check_not_reserved
from quart_tenants.postgres.tenants.new_tenant import Fill, NewTenant, finish, make_schema, run_files, wait_for_turn
from quart_tenants.postgres.tenants.ready_tenants import take_ready
from quart_tenants.postgres.tenants.staged_creation import create_in_steps, sweep_unfinished
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant, parse_display_name, parse_schema_name

_ADD_TENANT = """
INSERT INTO quart_tenants.tenants (slug, schema_name, display_name) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING RETURNING id
"""
_MAY_USE_SCHEMA = """
SELECT pg_catalog.has_schema_privilege(oid, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = $1
"""


@check_arguments
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

    Before PostgreSQL 17 an enum value that one file adds cannot be used by a later one in the same transaction. Where
    files do that, several transactions make the tenant, and only the last one makes it a tenant: see `create_in_steps`.

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
            If it uses an enum value that the transaction has added, all is rolled back, and it is called once more.
            Otherwise it is called once, and it waits for locks as long as in any other block.

    While somebody writes a table that the files lock, such as a shared one that a foreign key refers to, the
    transaction is tried again and again.

    This also raises whatever *fill* raises.

    Raises:
        InvalidSlugError: *slug* is reserved by `TENANTS_RESERVED_SLUGS`.
        InvalidNameError: *name* is empty, too long or not printable.
        TenantExistsError: The slug or the schema is taken.
        TenantInTrashError: A tenant with that slug is in the trash.
        FormerSlugError: A renamed tenant had that slug, and it still leads to the new one.
        RecentlyDroppedError: Another tenant had the name until a moment ago, or a transaction may still read it.
        SchemaExistsError: The schema exists and is no tenant's.
        MigrationFileError: A file is no SQL, or was changed after it ran for another tenant.
        MigrationFailedError: A migration failed.
        TenantBusyError: A table that the migrations lock, or the name, is in use. The error says by whom.
        SharedNameError: A name is in the tenant's schema and in a shared one.
        RegistryNotReadyError: There is no registry yet.
        RolesNotReadyError: Each tenant must have a role, but roles are not set up, or this role may not make them.

    Example:
        ```python
        async def add_first_user(connection: Connection) -> None:
            await connection.execute("INSERT INTO app_user (username, password) VALUES ($1, $2)", "ada", "…")

        await create_tenant(database, parse_slug("initech"), "Initech", settings=settings, fill=add_first_user)
        ```
    """
    check_not_reserved(slug, settings)
    name = parse_display_name(name)
    schema = schema or parse_schema_name(slug)
    migrations = get_tenant_migrations(settings)
    new = NewTenant(slug, schema, name, migrations, first_rows, fill)
    await sweep_unfinished(database, [slug])
    return await _create(database, new, settings, alone=True)


@check_arguments
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

    Example:
        ```python
        names = {parse_slug("initech"): "Initech", parse_slug("hooli"): "Hooli"}
        number = await create_tenants(database, names, settings=settings, jobs=2)
        ```
    """
    for slug in names:
        check_not_reserved(slug, settings)
    rows = {slug: (parse_schema_name(slug), parse_display_name(name)) for slug, name in names.items()}
    migrations = get_tenant_migrations(settings)
    for migration in migrations:
        migration.check()
    await sweep_unfinished(database, list(names))
    async with database.connection() as connection:
        await refuse_edited(connection, migrations)
        await check_free(connection, {slug: schema for slug, (schema, _) in rows.items()}, settings)
    left = iter(rows.items())

    async def create_from_the_rest() -> None:
        # All jobs share one iterator, and each takes the next tenant when it is free.
        for slug, (schema, name) in left:
            tenant = await _create(database, NewTenant(slug, schema, name, migrations), settings)
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


@check_arguments
async def adopt_schemas(
    database: Database, schemas: Mapping[Slug, SchemaName], *, settings: Settings, version: int
) -> list[Tenant]:
    """Register schemas that exist already, all or none. Their tables do not change.

    With `TENANTS_ROLE_PER_TENANT` the schemas and their contents get a new owner, the owner role.

    Args:
        database: The database with the schemas.
        schemas: The schemas by slug. The slug becomes the display name, too.
        settings: They say which slugs are reserved and where the migrations are.
        version: The version of the tables: the newest migration whose changes the schemas contain already; 0 for none.

    Raises:
        InvalidSlugError: A slug is reserved by `TENANTS_RESERVED_SLUGS`.
        UnknownSchemaError: A schema does not exist, this role may not use it, or there is no such version.
        TenantExistsError: A slug is taken, or a schema is another tenant's.
        TenantInTrashError: A tenant with that slug is in the trash.
        FormerSlugError: A renamed tenant had that slug, and it still leads to the new one.
        RecentlyDroppedError: Another tenant had the name until a moment ago, or a transaction may still read it.
        TenantBusyError: A table is in use. The error says by whom.
        SharedNameError: A name is in the tenant's schema and in a shared one.
        RegistryNotReadyError: There is no registry yet.
        RolesNotReadyError: This role may not give a schema, or an object in it, to the owner role.

    Example:
        ```python
        async with database.connection() as connection:
            await connection.execute("CREATE SCHEMA initech")
        await adopt_schemas(
            database, {parse_slug("initech"): parse_schema_name("initech")}, settings=settings, version=0
        )
        ```
    """
    migrations = get_tenant_migrations(settings)
    if not 0 <= version <= len(migrations):
        raise UnknownSchemaError(
            name_some([str(schema) for schema in schemas.values()]),
            f"there is no migration {version:04}; the newest is {describe_newest(migrations)}",
        )
    tries = tries_on(database, name_some(list(schemas)))
    while True:
        tenants = []
        async with tries.try_once() as connection:
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


async def _create(database: Database, new: NewTenant, settings: Settings, *, alone: bool = False) -> Tenant:
    """Make the tenant in one transaction if PostgreSQL allows that, or else in several.

    Args:
        database: Needs one connection.
        new: What to make.
        settings: They say whether tenants have roles.
        alone: Whether it is one tenant, and not many: then nobody has checked yet that the names are free and that no
            file was edited, and it may take a schema that was made in advance.
    """
    tries = tries_on(database, new.slug)
    tenant: Tenant | None = None
    while True:
        try:
            async with tries.try_once() as connection:
                tenant = await _create_at_once(database, tries, connection, new, settings, alone=alone)
                break
        except (MigrationFailedError, asyncpg.UnsafeNewEnumValueUsageError) as error:
            if not count_committed_first(error, new.migrations):
                raise
            break
    return tenant or await create_in_steps(database, new, settings=settings)


async def _create_at_once(
    database: Database, tries: ShortWaits, connection: Connection, new: NewTenant, settings: Settings, *, alone: bool
) -> Tenant | None:
    """Make the tenant in the transaction of *connection*, which is a try of *tries*; None if it needs several."""
    if alone:
        await refuse_edited(connection, new.migrations)
        await check_free(connection, {new.slug: new.schema}, settings)
    owner = await get_owner(connection) if settings.role_per_tenant else None
    taken = alone and await take_ready(connection, new.schema, new.migrations, owner, settings=settings)
    if not taken and len(take_together(new.migrations, new_tables=True)) != len(new.migrations):
        return None
    tenant = await register_tenant(connection, new.slug, new.schema, new.name, len(new.migrations))
    if taken:
        if owner is not None:
            tenant = replace(tenant, role=await give_tenant_role(connection, tenant.id, tenant.schema, owner))
        await enter_schema(connection, tenant.schema, settings=settings)
    else:
        tenant = await make_schema(connection, tenant, settings=settings)
        await wait_for_turn(connection, tries)
        await run_files(connection, tenant, new.migrations, settings=settings)
    await finish(database, tries, connection, new, tenant, settings=settings)
    return tenant
