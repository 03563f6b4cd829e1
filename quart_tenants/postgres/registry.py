"""Know which tenants exist, in memory, kept fresh by a feed of changes."""

import asyncio
import logging
from typing import TYPE_CHECKING, NoReturn

import asyncpg

from quart_tenants.errors import RegistryNotReadyError, RegistryStaleError, TenantError, UnknownTenantError
from quart_tenants.postgres.database import Database
from quart_tenants.postgres.migrations import apply_migrations, list_applied, plan_migrations, read_migrations
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import REGISTRY_SCHEMA, SchemaName, Slug, Tenant

if TYPE_CHECKING:
    from quart_tenants.postgres.database import Connection

logger = logging.getLogger(__name__)

_REGISTRY_EXISTS = "SELECT pg_catalog.to_regclass('quart_tenants.applied_migrations') IS NOT NULL"
_CREATE_REGISTRY_SCHEMA = "CREATE SCHEMA IF NOT EXISTS quart_tenants"
# Two `init` at once would both find nothing. The number is arbitrary, but ours: "tenants" as bytes.
_LOCK_REGISTRY_MAKING = "SELECT pg_catalog.pg_advisory_xact_lock(32760431163012211)"

_LIST_TENANTS = "SELECT id, slug, schema_name, display_name FROM quart_tenants.tenants ORDER BY slug"
_GET_TENANT = "SELECT id, slug, schema_name, display_name FROM quart_tenants.tenants WHERE slug = $1"
_LATEST_REVISION = "SELECT max(revision) FROM quart_tenants.changes"
# From the last revision seen on, that one included: if it is missing, this is not the same feed.
_LIST_CHANGES = """
SELECT c.revision, c.tenant_id, t.id, t.slug, t.schema_name, t.display_name
FROM quart_tenants.changes AS c LEFT JOIN quart_tenants.tenants AS t ON t.id = c.tenant_id
WHERE c.revision >= $1 ORDER BY c.revision
"""
_LOCK_CHANGES = "LOCK TABLE quart_tenants.changes IN SHARE ROW EXCLUSIVE MODE"
_ADD_CHANGES = """
INSERT INTO quart_tenants.changes (revision, tenant_id)
SELECT (SELECT max(revision) FROM quart_tenants.changes) + n, id FROM unnest($1::bigint[]) WITH ORDINALITY AS x (id, n)
"""


class Registry:
    """Every active tenant, in the memory of one worker.

    A look-up costs no query. Changes made by any other process arrive by `follow` within
    `TENANTS_REGISTRY_POLL_INTERVAL`. When they cannot be read for `TENANTS_REGISTRY_MAX_AGE`, what
    is remembered is not trusted any more: fail closed.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._by_slug: dict[Slug, Tenant] = {}
        self._by_id: dict[int, Tenant] = {}
        self._revision = -1
        self._read_at = float("-inf")

    def get_tenant(self, slug: Slug) -> Tenant:
        """Return the tenant at *slug*.

        Raises:
            UnknownTenantError: There is none.
            RegistryStaleError: What is remembered is too old to be trusted.
        """
        if asyncio.get_running_loop().time() - self._read_at > self._settings.registry_max_age:
            raise RegistryStaleError("the feed of changes could not be read lately")
        tenant = self._by_slug.get(slug)
        if tenant is None:
            raise UnknownTenantError(slug)
        return tenant

    async def load(self) -> None:
        """Read all tenants.

        Raises:
            RegistryNotReadyError: The registry does not exist, or is older than this program.
            DatabaseUnavailableError: It cannot be read.
        """
        now = asyncio.get_running_loop().time()
        async with self._database.connection() as connection:
            await check_registry(connection)
            # First the revision: what changes in between is read once more by the next refresh.
            revision = await connection.fetchval(_LATEST_REVISION)
            rows = await connection.fetch(_LIST_TENANTS)
        self._by_slug.clear()
        self._by_id.clear()
        for row in rows:
            self._put(_read_tenant(row))
        self._revision = revision
        self._read_at = now

    async def refresh(self) -> None:
        """Read what changed since the last time. Raises what `load` raises."""
        now = asyncio.get_running_loop().time()
        async with self._database.connection() as connection:
            changes = await connection.fetch(_LIST_CHANGES, self._revision)
        if not changes or changes[0]["revision"] != self._revision:
            # The database was replaced, such as by an older backup.
            await self.load()
            return
        for change in changes[1:]:
            self._remove(change["tenant_id"])
            if change["id"] is not None:
                self._put(_read_tenant(change))
        self._revision = changes[-1]["revision"]
        self._read_at = now

    async def follow(self) -> NoReturn:
        """Refresh for ever, once in `TENANTS_REGISTRY_POLL_INTERVAL`. Ends by cancellation only."""
        failed = False
        while True:
            await asyncio.sleep(self._settings.registry_poll_interval)
            try:
                await self.refresh()
            except (TenantError, asyncpg.PostgresError) as error:
                if not failed:
                    logger.warning("the tenant registry cannot be read, and will be tried again: %s", error)
                failed = True
            else:
                if failed:
                    logger.warning("the tenant registry can be read again")
                failed = False

    async def check(self) -> None:
        """Ask the database whether it answers and holds the registry. Raises what `load` raises."""
        async with self._database.connection() as connection:
            await check_registry(connection)

    def _put(self, tenant: Tenant) -> None:
        self._by_slug[tenant.slug] = tenant
        self._by_id[tenant.id] = tenant

    def _remove(self, tenant_id: int) -> None:
        tenant = self._by_id.pop(tenant_id, None)
        # Its old name may be another tenant's by now.
        if tenant is not None and self._by_slug.get(tenant.slug) is tenant:
            del self._by_slug[tenant.slug]


async def init_registry(database: Database) -> int:
    """Create or update the registry's tables; return how many migrations ran. Doing it again does no harm.

    Raises:
        MigrationFailedError: Such as for a lack of rights; the database is unchanged.
    """
    migrations = read_migrations(get_resource_path("sql/registry"))
    async with database.connection() as connection:
        await connection.execute(_LOCK_REGISTRY_MAKING)
        applied = {}
        if await connection.fetchval(_REGISTRY_EXISTS):
            applied = await list_applied(connection, REGISTRY_SCHEMA)
        else:
            try:
                await connection.execute(_CREATE_REGISTRY_SCHEMA)
            except asyncpg.InsufficientPrivilegeError as error:
                raise RegistryNotReadyError(
                    f"cannot create the schema {REGISTRY_SCHEMA}: {error}; GRANT CREATE ON DATABASE to this role"
                ) from error
        missing = plan_migrations(migrations, applied)
        await apply_migrations(connection, REGISTRY_SCHEMA, missing)
    return len(missing)


async def check_registry(connection: "Connection") -> None:
    """Make sure that the registry exists and is as new as this program.

    Raises:
        RegistryNotReadyError: Say `quart-tenants init`.
    """
    if not await connection.fetchval(_REGISTRY_EXISTS):
        raise RegistryNotReadyError("this database has no tenant registry yet: run quart-tenants init")
    applied = await list_applied(connection, REGISTRY_SCHEMA)
    if plan_migrations(read_migrations(get_resource_path("sql/registry")), applied):
        raise RegistryNotReadyError("the tenant registry is older than this program: run quart-tenants init")


async def list_tenants(database: Database) -> list[Tenant]:
    """Return all tenants in order of slug, read from the database.

    Raises:
        RegistryNotReadyError: There is no registry.
    """
    async with database.connection() as connection:
        await check_registry(connection)
        return [_read_tenant(row) for row in await connection.fetch(_LIST_TENANTS)]


async def get_tenant(database: Database, slug: Slug) -> Tenant:
    """Return the tenant at *slug*, read from the database. For commands; a worker asks its `Registry`.

    Raises:
        UnknownTenantError: There is none.
        RegistryNotReadyError: There is no registry.
    """
    async with database.connection() as connection:
        await check_registry(connection)
        row = await connection.fetchrow(_GET_TENANT, slug)
    if row is None:
        raise UnknownTenantError(slug)
    return _read_tenant(row)


async def announce_changes(connection: "Connection", *tenant_ids: int) -> None:
    """Tell every worker that these tenants were made, changed or dropped by this transaction.

    To be called last: other writers wait for this transaction from here to its end.
    """
    await connection.execute(_LOCK_CHANGES)
    await connection.execute(_ADD_CHANGES, tenant_ids)


def _read_tenant(row: asyncpg.Record) -> Tenant:
    # Checked when it was written, and trusted since: an adopted schema keeps its name as it is.
    return Tenant(row["id"], Slug(row["slug"]), SchemaName(row["schema_name"]), row["display_name"])
