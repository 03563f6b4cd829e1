"""What `migrate --rehearse` prints."""

import json
import sys
from typing import Any

import click

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_plan import FleetPlan
from quart_tenants.postgres.rehearsal.lock_watch import WatchedFile
from quart_tenants.postgres.rehearsal.rehearsal import Rehearsal, RehearsedTenant, rehearse
from quart_tenants.settings import Settings
from quart_tenants.web.commands.progress import Progress
from quart_tenants.web.commands.running import count_tenants


async def rehearse_migration(
    database: Database, plan: FleetPlan, settings: Settings, sample: int, *, as_json: bool
) -> None:
    """Rehearse *plan* on copies of *sample* tenants, print the result, and end with status 1 if a copy failed."""
    with Progress("rehearsing", min(sample, len(plan.behind))) as progress:

        def show(one: RehearsedTenant) -> None:
            progress.advance(failed=one.error is not None)

        rehearsal = await rehearse(database, plan, settings=settings, sample=sample, on_rehearsed=show)
    click.echo(json.dumps(_show(rehearsal)) if as_json else _describe(rehearsal))
    failed = [one for one in rehearsal.tenants if one.error is not None]
    for one in failed:
        click.echo(f"a copy of {one.tenant.slug} failed: {one.error}", err=True)
    if failed:
        sys.exit(1)


def _describe(rehearsal: Rehearsal) -> str:
    plan = rehearsal.plan
    lines = [
        f"rehearsed {plan.target_file} on copies of {len(rehearsal.tenants)} of {count_tenants(len(plan.behind))}; "
        "the copies are deleted"
    ]
    for one in rehearsal.tenants:
        lines.append(f"{one.tenant.slug} at {one.tenant.version:04}, {_format_size(one.size)}: {one.seconds:.2f} s")
        lines += [f"  {_describe_file(file)}" for file in one.files]
    if rehearsal.estimate is not None:
        lines.append(f"all {count_tenants(len(plan.behind))}, one after the other: about {rehearsal.estimate:.1f} s")
    return "\n".join(lines)


def _describe_file(file: WatchedFile) -> str:
    parts = [f"{file.file}: {file.seconds:.2f} s"]
    parts += [f"locks {lock.table} ({lock.mode}) for {lock.seconds:.2f} s" for lock in file.locks]
    parts += [f"rewrites {one.table} ({one.rows} rows, {_format_size(one.size)})" for one in file.rewritten]
    return "; ".join(parts)


def _format_size(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"


def _show(rehearsal: Rehearsal) -> dict[str, Any]:
    return {
        "target": rehearsal.plan.target_version,
        "behind": len(rehearsal.plan.behind),
        "estimate_seconds": None if rehearsal.estimate is None else round(rehearsal.estimate, 3),
        "tenants": [
            {
                "slug": one.tenant.slug,
                "version": one.tenant.version,
                "bytes": one.size,
                "seconds": round(one.seconds, 3),
                "error": one.error,
                "files": [_show_file(file) for file in one.files],
            }
            for one in rehearsal.tenants
        ],
    }


def _show_file(file: WatchedFile) -> dict[str, Any]:
    return {
        "file": file.file,
        "seconds": round(file.seconds, 3),
        "locks": [{"table": lock.table, "mode": lock.mode, "seconds": round(lock.seconds, 3)} for lock in file.locks],
        "rewritten": [{"table": one.table, "bytes": one.size, "rows": one.rows} for one in file.rewritten],
    }
