"""Know which tenants exist, in memory, kept fresh by a feed of changes."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import asyncpg

from quart_tenants.errors import RegistryNotReadyError, RegistryStaleError, TenantError, UnknownTenantError
from quart_tenants.postgres.database import Database
from quart_tenants.postgres.migrations import (
    Migration,
    apply_migrations,
    list_applied,
    plan_migrations,
    read_migrations,
)
from quart_tenants.postgres.refusals import describe_refusal
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import REGISTRY_SCHEMA, SchemaName, Slug, Tenant

if TYPE_CHECKING:
    from quart_tenants.postgres.database import Connection

logger = logging.getLogger(__name__)

_REGISTRY_EXISTS = "SELECT pg_catalog.to_regclass('quart_tenants.applied_migrations') IS NOT NULL"
_REGISTRY_SCHEMA_EXISTS = "SELECT pg_catalog.to_regnamespace('quart_tenants') IS NOT NULL"
_CREATE_REGISTRY_SCHEMA = "CREATE SCHEMA quart_tenants"
_RUN_INIT = "run quart-tenants init, or for an app of your own: quart --app APP tenants init"
_NO_REGISTRY = f"this database has no tenant registry yet: {_RUN_INIT}"
# Two `init` at once would both find nothing. The number is arbitrary, but ours: "tenants" as bytes.
_LOCK_REGISTRY_MAKING = "SELECT pg_catalog.pg_advisory_xact_lock(32760431163012211)"

_LIST_TENANTS = "SELECT id, slug, schema_name, display_name FROM quart_tenants.tenants ORDER BY slug"
_GET_TENANT = "SELECT id, slug, schema_name, display_name FROM quart_tenants.tenants WHERE slug = $1"
_LATEST_CHANGE = """
SELECT revision, tenant_id, changed_at FROM quart_tenants.changes ORDER BY revision DESC LIMIT 1
"""
# From the last change seen on, that one included: if it is missing, or another one, this is not the same feed.
_LIST_CHANGES = """
SELECT c.revision, c.tenant_id, c.changed_at, t.id, t.slug, t.schema_name, t.display_name
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
        # The last change seen: its revision, tenant and time.
        self._seen: tuple[object, ...] = (-1,)
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._checking: asyncio.Task[None] | None = None

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
            RegistryNotReadyError: The registry does not exist, is older than this program, or not ours to read.
            DatabaseUnavailableError: It cannot be read.
        """
        async with self._reading:
            await self._load()

    async def refresh(self) -> None:
        """Read what changed since the last time. Raises what `load` raises."""
        async with self._reading:
            now = asyncio.get_running_loop().time()
            async with self._database.connection() as connection:
                with _unready_explained():
                    changes = await connection.fetch(_LIST_CHANGES, self._seen[0])
            if not changes or _identify(changes[0]) != self._seen:
                # The database was replaced, such as by an older backup or by a replica that missed a change.
                await self._load()
                return
            for change in changes[1:]:
                self._remove(change["tenant_id"])
                if change["id"] is not None:
                    self._put(_read_tenant(change))
            self._seen = _identify(changes[-1])
            self._read_at = now

    async def follow(self) -> NoReturn:
        """Refresh for ever, once in `TENANTS_REGISTRY_POLL_INTERVAL`. Ends by cancellation only."""
        failed = False
        while True:
            await asyncio.sleep(self._settings.registry_poll_interval)
            try:
                await self.refresh()
            except Exception as error:
                # Whatever it is: without this task the worker would be stale until it is restarted.
                if not failed:
                    known = isinstance(error, TenantError)
                    logger.warning(
                        "the tenant registry cannot be read, and will be tried again: %s",
                        error,
                        exc_info=None if known else error,
                    )
                failed = True
            else:
                if failed:
                    logger.warning("the tenant registry can be read again")
                failed = False

    async def check(self) -> None:
        """Ask the database whether it answers and holds the registry. Raises what `load` raises.

        Callers at the same time share one answer: anybody may ask, and the feed needs its connection.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check())
        await asyncio.shield(self._checking)

    async def _check(self) -> None:
        async with self._database.connection() as connection:
            await check_registry(connection)

    async def _load(self) -> None:
        now = asyncio.get_running_loop().time()
        async with self._database.connection() as connection:
            await check_registry(connection)
            # First the last change: what comes in between is read once more by the next refresh.
            seen = await connection.fetchrow(_LATEST_CHANGE)
            rows = await connection.fetch(_LIST_TENANTS)
        self._by_slug.clear()
        self._by_id.clear()
        for row in rows:
            self._put(_read_tenant(row))
        self._seen = (-1,) if seen is None else _identify(seen)
        self._read_at = now

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
    async with database.connection() as connection:
        await connection.execute(_LOCK_REGISTRY_MAKING)
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
        missing = plan_migrations(_get_registry_migrations(), applied)
        await apply_migrations(connection, REGISTRY_SCHEMA, missing)
    return len(missing)


async def check_registry(connection: "Connection") -> None:
    """Make sure that the registry exists, is as new as this program, and ours to read.

    Raises:
        RegistryNotReadyError: Say `quart-tenants init`, or what right is missing.
    """
    if not await connection.fetchval(_REGISTRY_EXISTS):
        raise RegistryNotReadyError(_NO_REGISTRY)
    with _unready_explained():
        applied = await list_applied(connection, REGISTRY_SCHEMA)
    if plan_migrations(_get_registry_migrations(), applied):
        raise RegistryNotReadyError(f"the tenant registry is older than this program: {_RUN_INIT}")


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


@contextlib.contextmanager
def _unready_explained() -> Iterator[None]:
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError) as error:
        raise RegistryNotReadyError(_NO_REGISTRY) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise RegistryNotReadyError(
            f"this role may not read the tenant registry: {describe_refusal(error)}; GRANT it USAGE on the schema "
            f"{REGISTRY_SCHEMA} and its rights on the tables, or let it own them"
        ) from error


@functools.cache
def _get_registry_migrations() -> tuple[Migration, ...]:
    return read_migrations(get_resource_path("sql/registry"))


def _identify(change: asyncpg.Record) -> tuple[object, ...]:
    return change["revision"], change["tenant_id"], change["changed_at"]


def _read_tenant(row: asyncpg.Record) -> Tenant:
    # Checked when it was written, and trusted since: an adopted schema keeps its name as it is.
    return Tenant(row["id"], Slug(row["slug"]), SchemaName(row["schema_name"]), row["display_name"])
