"""Bring many tenants to a version: who is behind, who goes first, and what became of each."""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import asyncpg

from quart_tenants.errors import (
    DatabaseUnavailableError,
    MigrationFailedError,
    MigrationFileError,
    TenantError,
    TenantInTrashError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.migrate_tenant import may_succeed_later, migrate_tenant
from quart_tenants.postgres.migrations.migration_files import Migration, get_tenant_migrations, refuse_edited
from quart_tenants.postgres.registry.registry_tables import check_registry, read_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant

_FIRST_PAUSE = 0.5  # seconds; twice as long after each further try
_LONGEST_PAUSE = 30.0

# One look at all tenants. $1 the version to reach, $2 their slugs or null for all. Those that failed before
# come last: they are the likeliest to fail again, and no canaries.
_LIST_BEHIND = """
SELECT
    t.id, t.slug, t.schema_name, t.display_name, t.version, t.suspended, t.role_name,
    f.tenant_id IS NOT NULL AS failed_before
FROM quart_tenants.living_tenants AS t
LEFT JOIN quart_tenants.migration_failures AS f ON f.tenant_id = t.id AND f.version = t.version
WHERE t.version < $1 AND ($2::text[] IS NULL OR t.slug = ANY ($2::text[]))
ORDER BY f.tenant_id IS NOT NULL, t.id
"""
_COUNT_TENANTS = """
SELECT count(*) FROM quart_tenants.tenants
WHERE dropped_at IS NULL AND ($1::text[] IS NULL OR slug = ANY ($1::text[]))
"""
_COUNT_VERSIONS = """
SELECT version, count(*) AS count FROM quart_tenants.living_tenants GROUP BY version ORDER BY version DESC
"""
_FIND_UNKNOWN = """
SELECT x.slug, t.id IS NOT NULL AS in_trash
FROM unnest($1::text[]) AS x (slug) LEFT JOIN quart_tenants.tenants AS t ON t.slug = x.slug
WHERE t.id IS NULL OR t.dropped_at IS NOT NULL LIMIT 1
"""
_WRITE_FAILURE = """
INSERT INTO quart_tenants.migration_failures (tenant_id, version, migration, reason)
SELECT id, $2, $3, $4 FROM quart_tenants.tenants WHERE id = $1
ON CONFLICT (tenant_id) DO UPDATE
SET version = excluded.version, migration = excluded.migration, reason = excluded.reason, failed_at = excluded.failed_at
"""


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What a migration of the fleet would do.

    Attributes:
        migrations: The files up to the one to reach, as they were read and checked.
        behind: The tenants that are not there yet, in the order in which they are taken.
        canaries: How many of those go first; if one fails, nobody follows.
        up_to_date: How many are there already.
    """

    migrations: tuple[Migration, ...]
    behind: tuple[Tenant, ...]
    canaries: int
    up_to_date: int

    @property
    def target(self) -> Migration:
        """The migration to reach."""
        return self.migrations[-1]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one tenant.

    Attributes:
        tenant: As it was when the plan was made.
        version: Where it stands now.
        migration: The file that failed, or None.
        error: Why it is not at the target, in one line; None where it is.
        gone: Whether it was dropped meanwhile, which is no failure.
    """

    tenant: Tenant
    version: int
    migration: str | None = None
    error: str | None = None
    gone: bool = False


@dataclass(slots=True)
class FleetReport:
    """What a migration of the fleet did.

    Attributes:
        plan: What was to be done.
        migrated: Tenants that are at the target now.
        failed: Tenants that are not, each with its error.
        gone: Tenants that were dropped meanwhile.
        left: Tenants that were not taken to an end, after a canary or too many had failed, or the database was lost.
        lost_database: Whether the database was out of reach at the end.
        seconds: How long it took.
    """

    plan: FleetPlan
    migrated: list[Outcome] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)
    gone: list[Tenant] = field(default_factory=list)
    left: list[Tenant] = field(default_factory=list)
    lost_database: bool = False
    seconds: float = 0.0


async def plan_fleet(
    database: Database,
    *,
    settings: Settings,
    slugs: Collection[Slug] = (),
    to: int | None = None,
    canary: Slug | int = 0,
) -> FleetPlan:
    """Find out which tenants are behind, by one look at all of them. Changes nothing.

    Args:
        database: Where.
        settings: Where the migrations lie.
        slugs: Only these tenants; none named means all, the suspended ones included.
        to: The version to reach; default: the newest file.
        canary: Who goes first: a tenant, or how many.

    Raises:
        MigrationFileError: A file is no SQL, was changed after it ran somewhere, or there is none of number *to*.
        UnknownTenantError: There is no tenant of that slug.
        TenantInTrashError: It lies in the trash.
        RegistryNotReadyError: There is no registry yet.
    """
    migrations = get_tenant_migrations(settings)
    if to is not None and not 1 <= to <= len(migrations):
        raise MigrationFileError(f"there is no migration {to:04}; the newest is {migrations[-1].name}")
    migrations = migrations[:to]
    first = {canary} if isinstance(canary, str) else set()
    named = sorted({*slugs, *first}) if slugs else None
    async with database.connection() as connection:
        await check_registry(connection)
        unknown = await connection.fetchrow(_FIND_UNKNOWN, sorted({*slugs, *first}))
        if unknown is not None:
            raise (TenantInTrashError if unknown["in_trash"] else UnknownTenantError)(unknown["slug"])
        try:
            # Before anybody is migrated, even to a file before the one that cannot run.
            for migration in migrations:
                migration.check()
            await refuse_edited(connection, migrations)
        except MigrationFileError as error:
            versions = await connection.fetch(_COUNT_VERSIONS)
            standing = ", ".join(f"{row['count']} at {row['version']:04}" for row in versions) or "there are none"
            raise MigrationFileError(
                f"{error}; nothing was run, and the tenants stand as before: {standing}"
            ) from error
        rows = await connection.fetch(_LIST_BEHIND, migrations[-1].version, named)
        count = await connection.fetchval(_COUNT_TENANTS, named)
    behind = [read_tenant(row) for row in rows]
    if isinstance(canary, str):
        behind.sort(key=lambda tenant: tenant.slug != canary)
        canaries = sum(tenant.slug == canary for tenant in behind)
    else:
        canaries = min(canary, len(behind))
    return FleetPlan(migrations, tuple(behind), canaries, count - len(behind))


async def migrate_fleet(
    database: Database,
    plan: FleetPlan,
    *,
    settings: Settings,
    jobs: int = 4,
    max_failures: int | None = None,
    on_outcome: Callable[[Outcome], object] | None = None,
) -> FleetReport:
    """Migrate the tenants of *plan*: the canaries, then the rest, each as `migrate_tenant` does it.

    A tenant that fails is written down with its error, for `status`, and the others go on. Running it again
    takes up where it stopped; two at once share the work. On a cancellation what is done stays, and what has
    begun is rolled back.

    Args:
        database: With at least as many connections as *jobs*.
        plan: By `plan_fleet`.
        settings: How long a migration may take, and how often it is tried.
        jobs: How many tenants at the same time.
        max_failures: Stop when so many have failed; default: never.
        on_outcome: Called for each tenant, in order of their ends.
    """
    began = time.monotonic()
    report = FleetReport(plan)
    run = _Run(database, settings, report, max_failures, on_outcome)
    for tenants in (plan.behind[: plan.canaries], plan.behind[plan.canaries :]):
        if report.failed and plan.canaries:
            report.left += tenants
        else:
            await run.take(tenants, jobs)
    report.seconds = time.monotonic() - began
    return report


class _Run:
    """Some jobs that share a queue of tenants. One that is to be tried again later comes back into it."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        report: FleetReport,
        max_failures: int | None,
        on_outcome: Callable[[Outcome], object] | None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._report = report
        self._max_failures = max_failures
        self._on_outcome = on_outcome

    async def take(self, tenants: Sequence[Tenant], jobs: int) -> None:
        """Return when each of *tenants* has come to an end."""
        # With the number of the try.
        queue: asyncio.Queue[tuple[Tenant, int] | None] = asyncio.Queue()
        unfinished = {tenant.id: tenant for tenant in tenants}
        for tenant in tenants:
            queue.put_nowait((tenant, 1))

        async def work() -> None:
            while unfinished and not self._must_stop():
                taken = await queue.get()
                if taken is None:
                    return
                tenant, attempt = taken
                outcome = await self._try(tenant, attempt)
                if outcome is None:
                    # Others go on meanwhile.
                    asyncio.get_running_loop().call_later(_pause(attempt), queue.put_nowait, (tenant, attempt + 1))
                    continue
                del unfinished[tenant.id]
                self._count(outcome)
                if self._on_outcome is not None:
                    self._on_outcome(outcome)
            # Wake those that wait for a tenant which will not come.
            for _ in range(jobs):
                queue.put_nowait(None)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(jobs, len(tenants))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            # Of the caller's on_outcome. One is enough to say; the group has cancelled the others.
            raise failures.exceptions[0] from None
        self._report.left += unfinished.values()

    def _count(self, outcome: Outcome) -> None:
        if outcome.error is None:
            self._report.migrated.append(outcome)
        elif outcome.gone:
            self._report.gone.append(outcome.tenant)
        else:
            self._report.failed.append(outcome)

    def _must_stop(self) -> bool:
        too_many = self._max_failures is not None and len(self._report.failed) >= self._max_failures
        return too_many or self._report.lost_database

    async def _try(self, tenant: Tenant, attempt: int) -> Outcome | None:
        """Migrate *tenant*; return None if it is to be tried again."""
        try:
            version = await migrate_tenant(
                self._database, tenant, self._report.plan.migrations, settings=self._settings
            )
        except TenantError as error:
            if may_succeed_later(error) and attempt < self._settings.migration_attempts:
                if isinstance(error, DatabaseUnavailableError):
                    # The others would fare no better: this job waits, or a restart would use up everybody's tries.
                    await asyncio.sleep(_pause(attempt))
                    return await self._try(tenant, attempt + 1)
                return None
            # Whoever comes next would wait as long, and for nothing.
            self._report.lost_database |= isinstance(error, DatabaseUnavailableError)
            tries = f" (tried {attempt} times)" if attempt > 1 else ""
            outcome = Outcome(
                tenant,
                await self._find_version(tenant),
                error.migration if isinstance(error, MigrationFailedError) else None,
                f"{error}{tries}",
                gone=isinstance(error, UnknownTenantError),
            )
            if not outcome.gone:
                await self._write_failure(outcome)
            return outcome
        return Outcome(tenant, version)

    async def _find_version(self, tenant: Tenant) -> int:
        # Files outside a transaction may have succeeded before the one that failed.
        with suppress(TenantError, asyncpg.PostgresError):
            async with self._database.connection() as connection:
                version = await connection.fetchval(
                    "SELECT version FROM quart_tenants.living_tenants WHERE id = $1", tenant.id
                )
            return tenant.version if version is None else int(version)
        return tenant.version

    async def _write_failure(self, outcome: Outcome) -> None:
        # Where the database is the trouble, or this role has no right to write there, the report alone has it.
        with suppress(TenantError, asyncpg.PostgresError):
            async with self._database.connection() as connection:
                await connection.execute(
                    _WRITE_FAILURE, outcome.tenant.id, outcome.version, outcome.migration, outcome.error
                )


def _pause(attempt: int) -> float:
    """Return how many seconds to wait after try number *attempt*: not all at the same moment again."""
    return min(_FIRST_PAUSE * 2.0 ** (attempt - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311  (no secret)
