"""Rehearse a migration: run the missing files on copies of some tenants, and say what they would mean for all."""

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quart_tenants.errors import TenantError
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_plan import FleetPlan
from quart_tenants.postgres.fleet.migrate_tenant import migrate_tenant
from quart_tenants.postgres.rehearsal.lock_watch import LockWatch, WatchedFile
from quart_tenants.postgres.rehearsal.scratch_database import scratch_database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant

# $1 the names of schemas. The sizes are those of the last ANALYZE: asking the file system takes long for many tenants.
_LIST_SIZES = """
SELECT n.nspname::text AS schema_name, sum(c.relpages)::bigint * current_setting('block_size')::bigint AS bytes
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'i', 'm') AND n.nspname = ANY ($1::text[]) GROUP BY n.nspname
"""
DEFAULT_SAMPLE = 3


@dataclass(frozen=True, slots=True)
class RehearsedTenant:
    """What the files did to a copy of one tenant.

    Attributes:
        tenant: The tenant that was copied. It is as before.
        size: Bytes of its tables and indexes, by the last ANALYZE.
        seconds: How long all its files took, in their transactions.
        files: What each file did.
        error: Why the copy is not at the target, or None if it is.
    """

    tenant: Tenant
    size: int
    seconds: float
    files: tuple[WatchedFile, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a rehearsal found out.

    Attributes:
        plan: What is to be migrated.
        tenants: Those of which copies were migrated.
        estimate: Seconds for all tenants of the plan, one after the other; None if a copy failed.
    """

    plan: FleetPlan
    tenants: tuple[RehearsedTenant, ...]
    estimate: float | None


async def rehearse(
    database: Database,
    plan: FleetPlan,
    *,
    settings: Settings,
    sample: int = DEFAULT_SAMPLE,
    on_rehearsed: Callable[[RehearsedTenant], object] | None = None,
) -> Rehearsal:
    """Run the files of *plan* on copies of *sample* tenants: the largest, the oldest, and others by chance.

    The copies are made by a backup, which the tenant does not notice, in a database of their own. It is dropped at the
    end, also after an error or a cancellation. Nothing of the living tenants changes.

    Args:
        database: Needs one connection. Its role needs CREATEDB.
        plan: From `plan_fleet`.
        settings: Of the living database.
        sample: How many tenants.
        on_rehearsed: Called for each tenant when its copy is migrated.

    Raises:
        DatabaseRefusedError: This role may not create a database.
        BackupFileError: A tenant cannot be copied.
        ClientProgramError: PostgreSQL's programs are missing, too old, or do not run.
        MigrationFailedError: A shared migration failed.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(_LIST_SIZES, [tenant.schema.name for tenant in plan.behind])
    found = {row["schema_name"]: row["bytes"] for row in rows}
    sizes = {tenant.id: found.get(tenant.schema.name, 0) for tenant in plan.behind}
    rehearsed = []
    async with scratch_database(database, settings=settings) as (scratch, own):
        for tenant in choose_sample(plan.behind, sizes, sample):
            with tempfile.TemporaryDirectory(prefix="quart-tenants-", ignore_cleanup_errors=True) as folder:
                file = Path(folder) / "tenant.tar"
                await backup_tenant(database, tenant.slug, file, settings=settings)
                copy = await restore_tenant(scratch, file, tenant.slug, settings=own)
            one = await _rehearse_on(scratch, copy, tenant, sizes[tenant.id], plan, own)
            rehearsed.append(one)
            if on_rehearsed is not None:
                on_rehearsed(one)
    return Rehearsal(plan, tuple(rehearsed), estimate_seconds(rehearsed, sizes))


def choose_sample(tenants: Sequence[Tenant], sizes: Mapping[int, int], count: int) -> list[Tenant]:
    """Return *count* of *tenants*, or all if there are fewer: the largest, the oldest, then others by chance. Pure.

    Args:
        tenants: All that are to be migrated.
        sizes: Their sizes by number.
        count: How many.
    """
    if not tenants:
        return []
    chosen = {tenant.id: tenant for tenant in (max(tenants, key=lambda tenant: sizes[tenant.id]),)}
    oldest = min(tenants, key=lambda tenant: tenant.id)
    others = [tenant for tenant in tenants if tenant.id not in (oldest.id, *chosen)]
    random.shuffle(others)
    for tenant in (oldest, *others):
        if len(chosen) < count:
            chosen.setdefault(tenant.id, tenant)
    return list(chosen.values())


def estimate_seconds(rehearsed: Sequence[RehearsedTenant], sizes: Mapping[int, int]) -> float | None:
    """Return how long all tenants with *sizes* would take one after the other, or None if a copy failed. Pure.

    It draws a line through the smallest and the largest of those that were rehearsed: so much for each tenant, and so
    much for each byte.
    """
    if not rehearsed or any(one.error is not None for one in rehearsed):
        return None
    by_size = sorted(rehearsed, key=lambda one: one.size)
    smallest, largest = by_size[0], by_size[-1]
    if largest.size == smallest.size or largest.seconds <= smallest.seconds:
        return len(sizes) * max(one.seconds for one in rehearsed)
    for_each_byte = (largest.seconds - smallest.seconds) / (largest.size - smallest.size)
    return sum(max(smallest.seconds + for_each_byte * (size - smallest.size), 0) for size in sizes.values())


async def _rehearse_on(
    scratch: Database, copy: Tenant, tenant: Tenant, size: int, plan: FleetPlan, settings: Settings
) -> RehearsedTenant:
    watch = LockWatch(copy.schema.name)
    async with scratch.connection() as connection:
        # A restored table has no statistics, by which the server plans, and from which we know its rows.
        await connection.execute("ANALYZE", timeout=settings.migration_statement_timeout)
        await watch.start(connection)
    error = None
    began = time.monotonic()
    try:
        await migrate_tenant(scratch, copy, plan.migrations, settings=settings, after=watch.note)
    except TenantError as failure:
        error = str(failure)
    return RehearsedTenant(tenant, size, time.monotonic() - began, watch.finish(), error)
