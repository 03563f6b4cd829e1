"""Create, adopt and drop tenants. Each is one transaction: all of it, or nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import asyncpg

from quart_tenants.errors import (
    InvalidSlugError,
    RecentlyDroppedError,
    SchemaExistsError,
    TenantExistsError,
    UnknownSchemaError,
    UnknownTenantError,
)
from quart_tenants.postgres.database import Database, enter_schema
from quart_tenants.postgres.migrations import Migration, apply_migrations, read_migrations, record_migrations
from quart_tenants.postgres.registry import announce_changes, check_registry
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant, parse_display_name, parse_schema_name

if TYPE_CHECKING:
    from quart_tenants.postgres.database import Connection

_ADD_TENANT = """
INSERT INTO quart_tenants.tenants (slug, schema_name, display_name) VALUES ($1, $2, $3)
ON CONFLICT DO NOTHING RETURNING id
"""
_FIND_TAKEN = "SELECT slug, schema_name FROM quart_tenants.tenants WHERE slug = $1 OR schema_name = $2 LIMIT 1"
_REMOVE_TENANT = "DELETE FROM quart_tenants.tenants WHERE slug = $1 RETURNING id, schema_name, display_name"
_WRITE_DROP = """
INSERT INTO quart_tenants.dropped_tenants (tenant_id, slug, schema_name) VALUES ($1, $2, $3)
"""
# Seconds until the name is free. $3 how long a worker may remember it, in seconds.
_FIND_RECENT_DROP = """
SELECT (extract(epoch FROM max(dropped_at) - now()) + $3)::float8 FROM quart_tenants.dropped_tenants
WHERE dropped_at > now() - make_interval(secs => $3) AND (slug = $1 OR schema_name = $2)
"""
# Between these two no COMMIT succeeds.
_FORBID_COMMIT = "INSERT INTO quart_tenants.unfinished (tenant_id) VALUES (0)"
_ALLOW_COMMIT = "DELETE FROM quart_tenants.unfinished WHERE tenant_id = 0"
_FORGET_MIGRATIONS = "DELETE FROM quart_tenants.applied_migrations WHERE schema_name = $1"
_MAY_USE_SCHEMA = """
SELECT pg_catalog.has_schema_privilege(oid, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = $1
"""


def get_tenant_migrations(settings: Settings) -> tuple[Migration, ...]:
    """Return the migrations of a tenant's schema: the app's own, or those of the reference app.

    Raises:
        MigrationFileError: A file is misnamed, missing or unreadable.
    """
    return read_migrations(settings.migrations_dir or get_resource_path("sql/tenant"))


async def create_tenant(
    database: Database, slug: Slug, name: str, *, settings: Settings, first_rows: str | None = None
) -> Tenant:
    """Register a tenant, create its schema and run every tenant migration in it.

    Args:
        database: Where; its role needs CREATE on the database.
        slug: The subdomain; also the name of the schema.
        name: What people call the customer.
        settings: Reserved slugs, and where the migrations lie.
        first_rows: SQL that fills the new tables, in the same transaction.

    Raises:
        InvalidSlugError: *slug* is reserved by `TENANTS_RESERVED_SLUGS`.
        InvalidNameError: *name* is empty, too long or not printable.
        TenantExistsError: The slug is taken.
        RecentlyDroppedError: A tenant of that name was dropped within `TENANTS_REGISTRY_MAX_AGE`.
        SchemaExistsError: A schema of that name exists and is no tenant's.
        MigrationFailedError: A migration failed.
        RegistryNotReadyError: There is no registry yet.
    """
    _check_not_reserved(slug, settings)
    name = parse_display_name(name)
    schema = parse_schema_name(slug)
    migrations = get_tenant_migrations(settings)
    async with database.connection() as connection:
        await check_registry(connection)
        tenant = await _register(connection, slug, schema, name, settings)
        try:
            await connection.execute(f"CREATE SCHEMA {schema.quoted}")
        except asyncpg.DuplicateSchemaError as error:
            raise SchemaExistsError(str(schema)) from error
        await connection.execute(_FORBID_COMMIT)
        await enter_schema(connection, schema)
        await apply_migrations(connection, str(schema), migrations)
        if first_rows is not None:
            await connection.execute(first_rows)
        await connection.execute(_ALLOW_COMMIT)
        await announce_changes(connection, tenant.id)
    return tenant


async def adopt_schemas(
    database: Database, schemas: Mapping[Slug, SchemaName], *, settings: Settings, version: int
) -> list[Tenant]:
    """Register schemas that exist already, all or none. Nothing inside them is touched.

    Args:
        database: Where they are.
        schemas: The subdomain that each will answer at. The slug becomes the display name, too.
        settings: Reserved slugs, and where the migrations lie.
        version: The newest migration whose work the schemas contain already; 0 for none.

    Raises:
        InvalidSlugError: A slug is reserved by `TENANTS_RESERVED_SLUGS`.
        UnknownSchemaError: A schema does not exist, is not ours to use, or there is no such version.
        TenantExistsError: A slug is taken, or a schema is another tenant's.
        RecentlyDroppedError: A tenant of that name was dropped within `TENANTS_REGISTRY_MAX_AGE`.
        RegistryNotReadyError: There is no registry yet.
    """
    migrations = get_tenant_migrations(settings)
    if not 0 <= version <= len(migrations):
        raise UnknownSchemaError(
            ", ".join(str(schema) for schema in schemas.values()),
            f"there is no migration {version:04}; the newest is {migrations[-1].name}",
        )
    tenants = []
    async with database.connection() as connection:
        await check_registry(connection)
        for slug, schema in schemas.items():
            _check_not_reserved(slug, settings)
            usable = await connection.fetchval(_MAY_USE_SCHEMA, schema.name)
            if usable is None:
                raise UnknownSchemaError(schema.name, "there is none of that name in this database")
            if not usable:
                raise UnknownSchemaError(schema.name, "this role lacks the right to use it: GRANT USAGE ON SCHEMA")
            tenants.append(await _register(connection, slug, schema, slug, settings))
            await record_migrations(connection, schema.name, migrations[:version])
        await announce_changes(connection, *(tenant.id for tenant in tenants))
    return tenants


async def drop_tenant(database: Database, slug: Slug) -> Tenant:
    """Remove a tenant and its schema with everything in it, for good; return what it was.

    Raises:
        UnknownTenantError: There is none.
        RegistryNotReadyError: There is no registry yet.
    """
    async with database.connection() as connection:
        await check_registry(connection)
        row = await connection.fetchrow(_REMOVE_TENANT, slug)
        if row is None:
            raise UnknownTenantError(slug)
        tenant = Tenant(row["id"], slug, SchemaName(row["schema_name"]), row["display_name"])
        # IF EXISTS: a schema that somebody dropped by hand must not keep its tenant alive.
        await connection.execute(f"DROP SCHEMA IF EXISTS {tenant.schema.quoted} CASCADE")
        await connection.execute(_FORGET_MIGRATIONS, tenant.schema.name)
        await connection.execute(_WRITE_DROP, tenant.id, tenant.slug, tenant.schema.name)
        await announce_changes(connection, tenant.id)
    return tenant


async def _register(connection: "Connection", slug: Slug, schema: SchemaName, name: str, settings: Settings) -> Tenant:
    wait = await connection.fetchval(_FIND_RECENT_DROP, slug, schema.name, settings.registry_max_age)
    if wait is not None:
        raise RecentlyDroppedError(slug, wait)
    tenant_id = await connection.fetchval(_ADD_TENANT, slug, schema.name, name)
    if tenant_id is None:
        taken = await connection.fetchrow(_FIND_TAKEN, slug, schema.name)
        # Gone again in this very moment: the name is free, but not in this transaction.
        raise TenantExistsError(*(taken or (slug, schema.name)))
    return Tenant(tenant_id, slug, schema, name)


def _check_not_reserved(slug: Slug, settings: Settings) -> None:
    if slug in settings.reserved_slugs:
        raise InvalidSlugError(slug, "the name is reserved by TENANTS_RESERVED_SLUGS")
