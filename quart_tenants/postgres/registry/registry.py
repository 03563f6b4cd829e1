"""Keep in memory which tenants exist, and follow the feed of changes."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from typing import NoReturn

from quart_tenants.connection import Row
from quart_tenants.errors import (
    RegistryStaleError,
    SchemaBehindError,
    SharedSchemaBehindError,
    TenantError,
    UnknownTenantError,
)
from quart_tenants.measures.counts import Measures
from quart_tenants.measures.stats import RegistryStats
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.citus.cluster import has_citus, list_places
from quart_tenants.postgres.migrations.migration_files import SHARED_LEDGER
from quart_tenants.postgres.registry.registry_tables import (
    ALL_TENANTS,
    check_registry,
    read_tenant,
    refuse_old_program,
    unready_explained,
)
from quart_tenants.postgres.sessions.session_ends import EndedSessions
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant

logger = logging.getLogger(__name__)

_LIST_LIVING = """
SELECT
    id, slug, schema_name, display_name, version, suspended, role_name, settings, domains, former_slugs,
    redirects_until::text[] AS redirects_until
FROM quart_tenants.living_tenants
"""
# The position of the feed: the transactions that are visible, the start of the server, and the newest row.
_GET_POSITION = """
SELECT
    pg_catalog.pg_current_snapshot()::text AS snapshot, pg_catalog.pg_postmaster_start_time() AS started_at,
    newest.revision, newest.tenant_id, newest.changed_at
FROM (SELECT) AS once LEFT JOIN (
    SELECT revision, tenant_id, changed_at FROM quart_tenants.changes ORDER BY revision DESC LIMIT 1
) AS newest ON true
"""
# $1 the last snapshot: rows that it did not show are new. $2 to $4 the newest row at that time: if it is gone, this
# is another feed. The answer has at least one row; changed_id is null if nothing changed.
_LIST_CHANGES = """
SELECT
    pg_catalog.pg_current_snapshot()::text AS snapshot, pg_catalog.pg_postmaster_start_time() AS started_at,
    newest.revision, newest.tenant_id, newest.changed_at,
    EXISTS (
        SELECT FROM quart_tenants.changes WHERE (revision, tenant_id, changed_at) = ($2, $3, $4)
    ) AS same_feed,
    (SELECT migration FROM quart_tenants.oldest_reader) AS oldest_reader,
    changed.tenant_id AS changed_id,
    t.id, t.slug, t.schema_name, t.display_name, t.version, t.suspended, t.role_name, t.settings,
    t.domains, t.former_slugs, t.redirects_until::text[] AS redirects_until
FROM (SELECT) AS once
LEFT JOIN (
    SELECT revision, tenant_id, changed_at FROM quart_tenants.changes ORDER BY revision DESC LIMIT 1
) AS newest ON true
LEFT JOIN (
    SELECT DISTINCT tenant_id FROM quart_tenants.changes
    WHERE transaction >= pg_catalog.pg_snapshot_xmin($1::text::pg_catalog.pg_snapshot)
        AND NOT pg_catalog.pg_visible_in_snapshot(transaction, $1::text::pg_catalog.pg_snapshot)
        -- Rows in a dump from another server may have later numbers: no snapshot here would show them as seen.
        AND transaction < pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())
) AS changed ON true
LEFT JOIN quart_tenants.living_tenants AS t ON t.id = changed.tenant_id
"""
_GET_SHARED_VERSION = """
SELECT coalesce(max(version), 0) FROM quart_tenants.applied_migrations WHERE schema_name = $1
"""


class Registry:
    """All tenants outside the trash and all ended sessions, in the memory of one worker.

    A look-up costs no query. Changes by other processes arrive by `follow` within `TENANTS_REGISTRY_POLL_INTERVAL`, or
    at once by `catch_up` when a visitor asks for an unknown address. If they cannot be read for
    `TENANTS_REGISTRY_MAX_AGE`, look-ups raise an error, because the memory may be wrong.

    Attributes:
        ended_sessions: Sessions that were ended, as of `get_age` seconds ago.
        shared_version: The version of the tables that all tenants share.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        minimum_version: int = 0,
        minimum_shared_version: int = 0,
        catch_up_pause: float = 0.25,
        measures: Measures | None = None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._minimum_version = minimum_version
        self._minimum_shared_version = minimum_shared_version
        self._measures = measures or Measures()
        self.shared_version = 0
        self.ended_sessions = EndedSessions()
        self._by_id: dict[int, Tenant] = {}
        self._by_slug: dict[Slug, Tenant] = {}
        # The other addresses of tenants: domains, and former slugs with the end of their redirect.
        self._by_domain: dict[str, int] = {}
        self._moved: dict[Slug, tuple[int, float]] = {}
        self._addresses: dict[int, tuple[list[str], list[Slug]]] = {}
        self._position: Row | None = None
        self._on_citus = False
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self._catching_up = asyncio.Lock()
        # Seconds between two reads that visitors cause: strangers can make up as many names as they like.
        self._catch_up_pause = catch_up_pause
        self._tried_at = self._failed_at = float("-inf")
        self._checking: asyncio.Task[None] | None = None

    def get_tenant(self, slug: Slug) -> Tenant:
        """Return the tenant at *slug*, if it may be served.

        Raises:
            UnknownTenantError: There is no such tenant, or it is suspended.
            SchemaBehindError: Its tables, or those that all tenants share, are older than the app needs.
            RegistryStaleError: The registry could not be read for too long.
        """
        self._refuse_stale()
        tenant = self._by_slug.get(slug)
        if tenant is None or tenant.suspended:
            raise UnknownTenantError(slug)
        if tenant.version < self._minimum_version:
            raise SchemaBehindError(slug, tenant.version, self._minimum_version)
        if self.shared_version < self._minimum_shared_version:
            raise SharedSchemaBehindError(slug, self.shared_version, self._minimum_shared_version)
        return tenant

    def list_served(self) -> list[Tenant]:
        """Return the tenants that may be served now, in order of slug.

        Raises:
            RegistryStaleError: The registry could not be read for too long.
        """
        # Also if there is none.
        self._refuse_stale()
        served = []
        for slug in sorted(self._by_slug):
            with contextlib.suppress(UnknownTenantError, SchemaBehindError):
                served.append(self.get_tenant(slug))
        return served

    def get_present(self, tenant: Tenant) -> Tenant:
        """Return *tenant* as it is now, also after a rename. Raises the errors of `get_tenant`.

        If the tenant is gone and its slug is another tenant's by now, that tenant is returned.
        """
        present = self._by_id.get(tenant.id, tenant)
        return self.get_tenant(present.slug)

    def show(self) -> RegistryStats:
        """Return what this worker knows of the tenants, in numbers."""
        tenants = self._by_id.values()
        if self.shared_version < self._minimum_shared_version:
            behind = list(tenants)
        else:
            behind = [tenant for tenant in tenants if tenant.version < self._minimum_version]
        return RegistryStats(
            age=self.get_age(),
            tenants=len(tenants),
            suspended=sum(tenant.suspended for tenant in tenants),
            behind=len(behind),
            behind_slugs=tuple(str(tenant.slug) for tenant in behind[: self._measures.named_tenants]),
            unknown_lookups=self._measures.unknown_lookups,
            failed_reads=self._measures.failed_reads,
        )

    def get_age(self) -> float:
        """Return how many seconds ago the registry was read. Something may have changed since."""
        return time.monotonic() - self._read_at

    def _refuse_stale(self) -> None:
        if self.get_age() > self._settings.registry_max_age:
            raise RegistryStaleError("the feed of changes could not be read lately")

    def find_slug_by_domain(self, domain: str) -> Slug | None:
        """Return the slug of the tenant that owns *domain*, or None. `get_tenant` says whether it may be served."""
        tenant = self._by_id.get(self._by_domain.get(domain, 0))
        return None if tenant is None else tenant.slug

    def find_new_slug(self, slug: Slug) -> Slug | None:
        """Return the slug now of the tenant that was renamed from *slug*, or None if its redirect is over."""
        tenant_id, until = self._moved.get(slug, (0, 0.0))
        tenant = self._by_id.get(tenant_id)
        return None if tenant is None or slug in self._by_slug or until <= time.time() else tenant.slug

    async def load(self) -> None:
        """Read all tenants.

        Raises:
            RegistryNotReadyError: There is no registry, it does not fit this program, or we may not read it.
            DatabaseUnavailableError: It cannot be read.
        """
        async with self._reading:
            await self._load()

    async def refresh(self) -> None:
        """Read what changed since the last call. Raises the errors of `load`."""
        async with self._reading:
            now = time.monotonic()
            seen = self._position
            if seen is None:
                await self._load()
                return
            async with self._database.connection() as connection:
                with unready_explained():
                    changes = await connection.fetch(
                        _LIST_CHANGES, seen["snapshot"], seen["revision"], seen["tenant_id"], seen["changed_at"]
                    )
                    if any(change["changed_id"] == ALL_TENANTS for change in changes):
                        self.shared_version = await connection.fetchval(_GET_SHARED_VERSION, SHARED_LEDGER)
                    # This comes second: a row that is written in between is read again by the next refresh.
                    await self.ended_sessions.refresh(connection, seen["snapshot"])
                    changed = [change for change in changes if change["id"] is not None]
                    places = {}
                    if self._on_citus and changed:
                        places = await list_places(connection, [change["schema_name"] for change in changed])
            newest = changes[0]
            # Somebody has run `init` of a newer program.
            refuse_old_program(newest["oldest_reader"])
            # Otherwise the registry was replaced, for example by an older backup, or the server went back in time.
            if not newest["same_feed"] or newest["started_at"] != seen["started_at"]:
                await self._load()
                return
            for change in changes:
                if change["changed_id"] is not None:
                    self._remove(change["changed_id"])
                    self._database.nodes.pop(change["changed_id"], None)
            for change in changed:
                self._put(change)
            self._place(changed, places)
            self._position = newest
            self._read_at = now

    async def catch_up(self) -> None:
        """Read what was changed before this call. This is for a visitor who asks for what this worker does not know.

        Concurrent callers share one read, and there are at most four such reads a second. A caller that is cancelled
        leaves the read to the next one.

        Raises:
            RegistryStaleError: The registry cannot be read now.
        """
        asked_at = time.monotonic()
        self._measures.unknown_lookups += 1
        try:
            # Each of the two locks may be held by a read that hangs.
            async with asyncio.timeout(self._settings.registry_max_age / 2), self._catching_up:
                if self._read_at < asked_at and self._failed_at < asked_at:
                    await asyncio.sleep(self._tried_at + self._catch_up_pause - time.monotonic())
                    self._tried_at = time.monotonic()
                    await self.refresh()
        except TenantError as error:
            self._failed_at = self._tried_at
            raise RegistryStaleError(f"the feed of changes cannot be read: {error}") from error
        except TimeoutError as error:
            raise RegistryStaleError("the feed of changes cannot be read in time") from error
        if self._read_at < asked_at:
            raise RegistryStaleError("the feed of changes cannot be read")

    async def follow(self) -> NoReturn:
        """Refresh in every `TENANTS_REGISTRY_POLL_INTERVAL`, until it is cancelled."""
        failed = False
        while True:
            await asyncio.sleep(self._settings.registry_poll_interval)
            try:
                await self.refresh()
            except Exception as error:
                # No error may end this task: without it the worker would be stale until it is restarted.
                self._measures.failed_reads += 1
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
        """Ask the database whether it answers and has the registry. Raises the errors of `load`.

        Concurrent callers share one answer: any visitor may ask, and the feed needs the connection.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._check())
        await asyncio.shield(self._checking)

    async def _check(self) -> None:
        async with self._database.connection() as connection:
            await check_registry(connection)

    async def _load(self) -> None:
        now = time.monotonic()
        async with self._database.connection() as connection:
            await check_registry(connection)
            # The position comes first: a row that is written in between is read again by the next refresh.
            position = await connection.fetchrow(_GET_POSITION)
            rows = await connection.fetch(_LIST_LIVING)
            self.shared_version = await connection.fetchval(_GET_SHARED_VERSION, SHARED_LEDGER)
            await self.ended_sessions.load(connection)
            self._on_citus = await has_citus(connection)
            places = await list_places(connection) if self._on_citus else {}
        for remembered in (self._by_id, self._by_slug, self._by_domain, self._moved, self._addresses):
            remembered.clear()
        for row in rows:
            self._put(row)
        self._database.nodes.clear()
        self._place(rows, places)
        self._position = position
        self._read_at = now

    def _place(self, rows: Iterable[Row], places: Mapping[str, int]) -> None:
        """Tell the database on which node the tenants of *rows* lie. What hangs with a node is counted apart."""
        for row in rows:
            if (node := places.get(row["schema_name"])) is not None:
                self._database.nodes[row["id"]] = node

    def _put(self, row: Row) -> None:
        tenant = read_tenant(row)
        self._by_id[tenant.id] = self._by_slug[tenant.slug] = tenant
        former_slugs = [Slug(slug) for slug in row["former_slugs"]]
        if row["domains"] or former_slugs:
            self._addresses[tenant.id] = row["domains"], former_slugs
        for domain in row["domains"]:
            self._by_domain[domain] = tenant.id
        for slug, until in zip(former_slugs, row["redirects_until"], strict=True):
            self._moved[slug] = tenant.id, float(until)

    def _remove(self, tenant_id: int) -> None:
        tenant = self._by_id.pop(tenant_id, None)
        if tenant is None:
            return
        # Each of its addresses may belong to another tenant by now.
        if self._by_slug.get(tenant.slug) is tenant:
            del self._by_slug[tenant.slug]
        domains, former_slugs = self._addresses.pop(tenant_id, ([], []))
        for domain in domains:
            if self._by_domain.get(domain) == tenant_id:
                del self._by_domain[domain]
        for slug in former_slugs:
            if self._moved.get(slug, (0, 0.0))[0] == tenant_id:
                del self._moved[slug]
