"""Migrate many tenants by a plan, and report what happened to each."""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import asyncpg

from quart_tenants.argument_checks import check_arguments
from quart_tenants.errors import (
    DatabaseUnavailableError,
    MigrationFailedError,
    TenantError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.blockers import Watch
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_plan import FleetPlan
from quart_tenants.postgres.fleet.migrate_tenant import migrate_tenant
from quart_tenants.postgres.fleet.waiting import watching_wait
from quart_tenants.postgres.migrations.migration_tries import choose_pause, may_succeed_later
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant

_WAITED_TOO_LONG = asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError
_WRITE_FAILURE = """
INSERT INTO quart_tenants.migration_failures (tenant_id, version, migration, reason)
SELECT id, $2, $3, $4 FROM quart_tenants.tenants WHERE id = $1
ON CONFLICT (tenant_id) DO UPDATE
SET version = excluded.version, migration = excluded.migration, reason = excluded.reason, failed_at = excluded.failed_at
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one tenant.

    Attributes:
        tenant: The tenant as it was when the plan was made.
        version: Its version now.
        migration: The file that failed, or None.
        error: Why it is not at the target, in one line; None if it is.
        gone: Whether it was dropped meanwhile. That is no failure.
        by_others: Whether another run has migrated it.
    """

    tenant: Tenant
    version: int
    migration: str | None = None
    error: str | None = None
    gone: bool = False
    by_others: bool = False


@dataclass(slots=True)
class FleetReport:
    """What a migration of the fleet did.

    Attributes:
        plan: The plan.
        migrated: Tenants that are at the target now, by this run.
        by_others: Tenants that another run at the same time has brought there. Only that run counts them as migrated.
        failed: Tenants that are not, each with its error.
        gone: Tenants that were dropped meanwhile.
        left: Tenants that were not migrated because a canary failed, too many failed, or the database was lost.
        lost_database: Whether the database could not be reached at the end.
        seconds: The duration.

    Example:
        ```python
        report = await migrate_fleet(database, await plan_fleet(database, settings=settings), settings=settings)
        print(len(report.migrated), len(report.failed), f"{report.seconds:.1f} s")
        ```
    """

    plan: FleetPlan
    migrated: list[Outcome] = field(default_factory=list)
    by_others: list[Outcome] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)
    gone: list[Tenant] = field(default_factory=list)
    left: list[Tenant] = field(default_factory=list)
    lost_database: bool = False
    seconds: float = 0.0


@check_arguments
async def migrate_fleet(
    database: Database,
    plan: FleetPlan,
    *,
    settings: Settings,
    jobs: int = 4,
    max_failures: int | None = None,
    on_outcome: Callable[[Outcome], object] | None = None,
    on_blocked: Callable[[Tenant, str], object] | None = None,
) -> FleetReport:
    """Migrate the tenants of *plan*: first the canaries, then the others.

    If a tenant fails, its error is noted for `status`, and the others go on. Run it again to continue after an
    interruption. Two processes that run it share the work. After a cancellation finished tenants stay migrated, and
    what has begun is rolled back.

    Args:
        database: It needs at least *jobs* connections.
        plan: From `plan_fleet`.
        settings: How long a migration may take, and how often it is tried.
        jobs: How many tenants are migrated at the same time.
        max_failures: Stop after this many failures; default: never.
        on_outcome: Called for each tenant when it is finished.
        on_blocked: Called with a tenant whose migration waits, and a sentence that says for whom.

    An error of one tenant is in the report and raises nothing. If *on_outcome* or *on_blocked* raises, the run ends.

    Example:
        ```python
        plan = await plan_fleet(database, settings=settings, canary=1)
        report = await migrate_fleet(database, plan, settings=settings, jobs=4, max_failures=20)
        for outcome in report.failed:
            print(outcome.tenant.slug, outcome.error)
        ```
    """
    began = time.monotonic()
    report = FleetReport(plan)
    run = _Run(database, settings, report, max_failures, on_outcome, on_blocked)
    for tenants in (plan.behind[: plan.canaries], plan.behind[plan.canaries :]):
        if report.failed and plan.canaries:
            report.left += tenants
        else:
            await run.take(tenants, jobs)
    report.seconds = time.monotonic() - began
    return report


@dataclass
class _Run:
    """Jobs that share a queue of tenants. A tenant that must be tried again goes back into the queue."""

    database: Database
    settings: Settings
    report: FleetReport
    max_failures: int | None
    on_outcome: Callable[[Outcome], object] | None
    on_blocked: Callable[[Tenant, str], object] | None
    last_together: dict[int, int] = field(default_factory=dict)

    async def take(self, tenants: Sequence[Tenant], jobs: int) -> None:
        """Return when each of *tenants* is finished."""
        # Each tenant has the number of its try with it.
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
                    # The jobs go on with other tenants meanwhile.
                    asyncio.get_running_loop().call_later(
                        choose_pause(attempt), queue.put_nowait, (tenant, attempt + 1)
                    )
                    continue
                del unfinished[tenant.id]
                self._count(outcome)
                if self.on_outcome is not None:
                    self.on_outcome(outcome)
            # Wake the jobs that wait for a tenant, because none will come.
            for _ in range(jobs):
                queue.put_nowait(None)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(jobs, len(tenants))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            # The error comes from the caller's on_outcome. The group has cancelled the other jobs.
            raise failures.exceptions[0] from None
        self.report.left += unfinished.values()

    def _count(self, outcome: Outcome) -> None:
        if outcome.error is None:
            (self.report.by_others if outcome.by_others else self.report.migrated).append(outcome)
        elif outcome.gone:
            self.report.gone.append(outcome.tenant)
        else:
            self.report.failed.append(outcome)

    def _must_stop(self) -> bool:
        too_many = self.max_failures is not None and len(self.report.failed) >= self.max_failures
        return too_many or self.report.lost_database

    async def _try(self, tenant: Tenant, attempt: int) -> Outcome | None:
        """Migrate *tenant*; return None if it must be tried again."""
        wait = Watch()
        try:
            async with watching_wait(
                self.database,
                tenant.id,
                # Before a lock time-out ends the wait.
                first_look=min(1.0, self.settings.migration_lock_timeout / 2),
                on_blocked=None if self.on_blocked is None else functools.partial(self.on_blocked, tenant),
            ) as wait:
                reached = await migrate_tenant(
                    self.database,
                    tenant,
                    self.report.plan.migrations,
                    settings=self.settings,
                    last_together=self.last_together,
                    on_citus=self.report.plan.on_citus,
                )
        except TenantError as error:
            if may_succeed_later(error) and attempt < self.settings.migration_attempts:
                if isinstance(error, DatabaseUnavailableError):
                    # Other tenants would fail, too. If this job did not wait, a restart of the server would use up
                    # the tries of all tenants.
                    await asyncio.sleep(choose_pause(attempt))
                    return await self._try(tenant, attempt + 1)
                return None
            # The next tenant would wait as long, without success.
            self.report.lost_database |= isinstance(error, DatabaseUnavailableError)
            tries = f" (tried {attempt} times)" if attempt > 1 else ""
            waited = f"; in the way: {wait.seen}" if wait.seen and isinstance(error.__cause__, _WAITED_TOO_LONG) else ""
            outcome = Outcome(
                tenant,
                await self._find_version(tenant),
                error.migration if isinstance(error, MigrationFailedError) else None,
                f"{error}{waited}{tries}",
                gone=isinstance(error, UnknownTenantError),
            )
            if not outcome.gone:
                await self._write_failure(outcome)
            return outcome
        return Outcome(tenant, reached.version, by_others=not reached.by_us)

    async def _find_version(self, tenant: Tenant) -> int:
        # Earlier files outside a transaction may have succeeded.
        with suppress(TenantError, asyncpg.PostgresError):
            async with self.database.connection() as connection:
                version = await connection.fetchval(
                    "SELECT version FROM quart_tenants.living_tenants WHERE id = $1", tenant.id
                )
            return tenant.version if version is None else int(version)
        return tenant.version

    async def _write_failure(self, outcome: Outcome) -> None:
        # If the database is lost, or this role may not write there, only the report has the failure.
        with suppress(TenantError, asyncpg.PostgresError):
            async with self.database.connection() as connection:
                await connection.execute(
                    _WRITE_FAILURE, outcome.tenant.id, outcome.version, outcome.migration, outcome.error
                )
