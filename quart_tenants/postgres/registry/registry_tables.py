"""Make and check the registry's tables, read tenants from them, and announce changes."""

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import asyncpg

from quart_tenants.argument_checks import check_arguments
from quart_tenants.connection import Connection, Row
from quart_tenants.errors import DatabaseTimeoutError, RegistryNotReadyError, UnknownTenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.short_waits import ShortWaits, wait_long
from quart_tenants.postgres.citus.cluster import is_worker
from quart_tenants.postgres.citus.settings_of_citus import KEEP_LOCAL
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.migrations.migration_files import Migration, list_applied, plan_migrations, read_migrations
from quart_tenants.postgres.migrations.migration_runs import apply_migrations
from quart_tenants.resources import get_resource_path
from quart_tenants.tenant import NO_SETTINGS, REGISTRY_SCHEMA, RoleName, SchemaName, Slug, Tenant

ALL_TENANTS = 0
"""In place of a tenant's number in the feed: something that all tenants share has changed."""

_REGISTRY_EXISTS = "SELECT pg_catalog.to_regclass('quart_tenants.applied_migrations') IS NOT NULL"
_REGISTRY_SCHEMA_EXISTS = "SELECT pg_catalog.to_regnamespace('quart_tenants') IS NOT NULL"
_CREATE_REGISTRY_SCHEMA = "CREATE SCHEMA quart_tenants"
_RUN_INIT = "run quart-tenants init, or for an app of your own: quart --app APP tenants init"
GRANT_REGISTRY = (
    f"GRANT USAGE ON SCHEMA {REGISTRY_SCHEMA} TO …; "
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {REGISTRY_SCHEMA} TO …"
)
"""The rights of a role that serves or runs commands but does not own the registry."""

_NO_REGISTRY = f"this database has no tenant registry yet: {_RUN_INIT}"
# Two runs of `init` at once would both find no registry. The number is arbitrary: "tenants" as bytes.
_LOCK_REGISTRY_MAKING = "SELECT pg_catalog.pg_advisory_xact_lock(32760431163012211)"

_GET_OLDEST_READER = "SELECT migration FROM quart_tenants.oldest_reader"

SELECT_TENANTS = """
SELECT id, slug, schema_name, display_name, version, suspended, role_name, settings FROM quart_tenants.living_tenants
"""
"""What `read_tenant` reads, of all tenants outside the trash."""

_ADD_CHANGES = "INSERT INTO quart_tenants.changes (tenant_id) SELECT unnest($1::text[]::bigint[])"


@check_arguments
async def init_registry(database: Database) -> int:
    """Create or update the registry's tables; return how many migrations ran. Doing it again does no harm.

    Raises:
        MigrationFailedError: A migration failed, for example for a lack of rights. The database is unchanged.
        DatabaseTimeoutError: Somebody uses a table of the registry. The error says who. The database is unchanged.
        RegistryNotReadyError: This role may not create the schema, or this program is too old for the registry.

    Example:
        ```python
        number = await init_registry(database)
        print(f"{number} migrations of the registry ran")
        ```
    """
    tries = ShortWaits(
        database, lambda in_the_way: DatabaseTimeoutError(f"the registry is as it was: {in_the_way}; try again shortly")
    )
    while True:
        async with tries.try_once() as connection:
            await wait_long(connection, _LOCK_REGISTRY_MAKING)
            await _refuse_worker(connection)
            await connection.execute(KEEP_LOCAL)
            applied = {}
            if await connection.fetchval(_REGISTRY_EXISTS):
                applied = await list_applied(connection, REGISTRY_SCHEMA)
            elif not await connection.fetchval(_REGISTRY_SCHEMA_EXISTS):
                try:
                    await connection.execute(_CREATE_REGISTRY_SCHEMA)
                except asyncpg.InsufficientPrivilegeError as error:
                    raise RegistryNotReadyError(
                        f"this role may not create the schema {REGISTRY_SCHEMA}: GRANT CREATE ON DATABASE to it"
                    ) from error
            await _refuse_newer(connection, applied)
            missing = plan_migrations(_get_registry_migrations(), applied)
            if missing:
                await apply_migrations(connection, REGISTRY_SCHEMA, missing, path=())
            return len(missing)


async def check_registry(connection: Connection) -> None:
    """Make sure that the registry exists, that this program is neither too new nor too old for it, and may read it.

    Raises:
        RegistryNotReadyError: One of these is not true. The error says what to run or which right is missing, or that
            this is a worker of Citus.
    """
    with unready_explained():
        # Without USAGE on the schema this raises an error.
        exists = await connection.fetchval(_REGISTRY_EXISTS)
    if not exists:
        await _refuse_worker(connection)
        raise RegistryNotReadyError(_NO_REGISTRY)
    with unready_explained():
        applied = await list_applied(connection, REGISTRY_SCHEMA)
        await _refuse_newer(connection, applied)
    if plan_migrations(_get_registry_migrations(), applied):
        raise RegistryNotReadyError(f"the tenant registry is older than this program: {_RUN_INIT}")


async def _refuse_worker(connection: Connection) -> None:
    """Raise `RegistryNotReadyError` if this is a worker of Citus."""
    if await is_worker(connection):
        raise RegistryNotReadyError(
            "this is a worker of a Citus cluster, and the tenant registry is on its coordinator: "
            "let TENANTS_DATABASE_URL lead there"
        )


async def _refuse_newer(connection: Connection, applied: Mapping[int, str]) -> None:
    """Raise `RegistryNotReadyError` if the registry has files *applied* that this program would have to know."""
    if max(applied, default=0) > _get_registry_migrations()[-1].version:
        refuse_old_program(await connection.fetchval(_GET_OLDEST_READER))


def refuse_old_program(oldest_reader: int) -> None:
    """Raise `RegistryNotReadyError` if the registry may be read only by programs that know file *oldest_reader*."""
    newest = _get_registry_migrations()[-1].version
    if oldest_reader > newest:
        raise RegistryNotReadyError(
            "the tenant registry is newer than this program, which would read it wrongly (its tables are at "
            f"{oldest_reader:04}, and this program knows {newest:04}): install the newer program, and restart"
        )


@check_arguments
async def list_tenants(database: Database) -> list[Tenant]:
    """Read all tenants from the database, without those in the trash, in order of slug.

    Raises:
        RegistryNotReadyError: There is no registry.

    Example:
        ```python
        for tenant in await list_tenants(database):
            print(tenant.slug, tenant.name)
        ```
    """
    async with database.connection() as connection:
        await check_registry(connection)
        return [read_tenant(row) for row in await connection.fetch(f"{SELECT_TENANTS} ORDER BY slug")]


@check_arguments
async def get_tenant(database: Database, slug: Slug) -> Tenant:
    """Read the tenant at *slug* from the database. This is for commands; a worker asks its `Registry`.

    Raises:
        UnknownTenantError: There is no such tenant, or it is in the trash.
        RegistryNotReadyError: There is no registry.

    Example:
        ```python
        tenant = await get_tenant(database, parse_slug("acme"))
        print(tenant.schema, tenant.version)
        ```
    """
    async with database.connection() as connection:
        await check_registry(connection)
        row = await connection.fetchrow(f"{SELECT_TENANTS} WHERE slug = $1", slug)
    if row is None:
        raise UnknownTenantError(slug)
    return read_tenant(row)


async def announce_changes(connection: Connection | DriverConnection, *tenant_ids: int) -> None:
    """Tell every worker that this transaction made, changed or dropped these tenants."""
    await connection.execute(_ADD_CHANGES, list(map(str, tenant_ids)))


def read_tenant(row: Row) -> Tenant:
    """Return the tenant in a row of `living_tenants`."""
    # The name was checked when it was written. An adopted schema may have a name that we would not give.
    schema = SchemaName(row["schema_name"])
    role = None if row["role_name"] is None else RoleName(row["role_name"])
    settings = row["settings"]
    return Tenant(
        row["id"],
        Slug(row["slug"]),
        schema,
        row["display_name"],
        row["version"],
        row["suspended"],
        role,
        NO_SETTINGS if settings == "{}" else MappingProxyType(json.loads(settings)),
    )


@contextlib.contextmanager
def unready_explained() -> Iterator[None]:
    """Raise `RegistryNotReadyError` if a table is missing or this role may not read it."""
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError) as error:
        raise RegistryNotReadyError(_NO_REGISTRY) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise RegistryNotReadyError(
            f"this role may not read the tenant registry: {describe_refusal(error)}; {GRANT_REGISTRY}"
        ) from error


@functools.cache
def _get_registry_migrations() -> tuple[Migration, ...]:
    return read_migrations(get_resource_path("sql/registry"))
