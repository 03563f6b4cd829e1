"""The command that migrates the tenants."""

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import click

from quart_tenants.long_lists import name_some
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_plan import FleetPlan, plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import FleetReport, Outcome, migrate_fleet
from quart_tenants.postgres.rehearsal.rehearsal import DEFAULT_SAMPLE
from quart_tenants.postgres.shared.shared_migrations import migrate_shared, plan_shared
from quart_tenants.postgres.tenants.ready_making import prepare_tenants
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant, parse_slug
from quart_tenants.web.commands.progress import Progress
from quart_tenants.web.commands.rehearsal import rehearse_migration
from quart_tenants.web.commands.run_metrics import leaves_metrics, note_failures
from quart_tenants.web.commands.running import count_tenants, describe_ready, tell_shared, with_database

_MOST_NAMES = 10
_ENOUGH = 100  # tenants, for a rate


def _parse_canary(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Slug | int:
    if value is None:
        return 0
    # A tenant may be called 7: then say --tenant 7 --canary 1.
    return int(value) if value.isascii() and value.isdigit() else parse_slug(value)


@click.command("migrate")
@click.option("--tenant", "slugs", metavar="SLUG", multiple=True, help="Only this tenant; may be repeated.")
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Tenants at the same time.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and do nothing.")
@click.option("--canary", metavar="SLUG|N", callback=_parse_canary, help="Migrate these first; if one fails, stop.")
@click.option("--max-failures", type=click.IntRange(min=1), help="Stop after so many failures.  [default: never]")
@click.option("--to", type=click.IntRange(min=1), metavar="NNNN", help="The version to reach.  [default: the newest]")
@click.option("--rehearse", is_flag=True, help="Migrate copies of some tenants, say what that did, and delete them.")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="How many copies.  [default: 3]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@leaves_metrics
@with_database
async def migrate_command(
    database: Database,
    settings: Settings,
    slugs: tuple[str, ...],
    jobs: int,
    dry_run: bool,
    canary: Slug | int,
    max_failures: int | None,
    to: int | None,
    rehearse: bool,
    sample: int | None,
    as_json: bool,
) -> None:
    """Migrate the shared schemas, and then all tenants to the newest version, also the suspended ones.

    A tenant that fails is named and stays as it was, and the others go on. Run it again to continue after an
    interruption. Two runs at once share the work.
    """
    named = [parse_slug(slug) for slug in slugs]
    if named and isinstance(canary, str) and canary not in named:
        raise click.UsageError(f"the canary {canary} is none of those that --tenant names")
    if rehearse and dry_run:
        raise click.UsageError("--rehearse and --dry-run exclude each other")
    if sample is not None and not rehearse:
        raise click.UsageError("--sample belongs to --rehearse")
    if dry_run:
        shared = [migration.name for migration in await plan_shared(database, settings=settings)]
        if shared:
            click.echo(f"would run in the shared schema first: {', '.join(shared)}", err=True)
    elif not rehearse:
        # Before the tenants, whose files may refer to shared tables.
        tell_shared(await migrate_shared(database, settings=settings), settings)
    plan = await plan_fleet(database, settings=settings, slugs=named, to=to, canary=canary)
    if dry_run:
        click.echo(json.dumps(_show_plan(plan)) if as_json else _describe_plan(plan))
        return
    if not plan.behind:
        click.echo(json.dumps(_show_report(FleetReport(plan))) if as_json else _describe_nothing(plan))
        await _prepare(database, settings, named, to)
        return
    if rehearse:
        await rehearse_migration(
            database, plan, settings, DEFAULT_SAMPLE if sample is None else sample, as_json=as_json
        )
        return
    migrated = 0

    def show(outcome: Outcome) -> None:
        nonlocal migrated
        migrated += outcome.error is None and not outcome.by_others
        progress.advance(failed=outcome.error is not None and not outcome.gone)

    def show_blocked(tenant: Tenant, blockers: str) -> None:
        click.echo(f"{tenant.slug} waits: {blockers}", err=True)

    try:
        with Progress("migrating", len(plan.behind)) as progress:
            report = await migrate_fleet(
                database,
                plan,
                settings=settings,
                jobs=jobs,
                max_failures=max_failures,
                on_outcome=show,
                on_blocked=show_blocked,
            )
    except asyncio.CancelledError:
        click.echo(
            f"interrupted: {migrated} of {count_tenants(len(plan.behind))} done; run it again to go on", err=True
        )
        raise
    if as_json:
        click.echo(json.dumps(_show_report(report)))
    else:
        _print_report(report)
    if report.failed or report.left:
        note_failures(len(report.failed) + len(report.left))
        sys.exit(1)
    await _prepare(database, settings, named, to)


async def _prepare(database: Database, settings: Settings, named: Collection[Slug], to: int | None) -> None:
    """Make the ready tenants anew, unless only a part of the fleet or of the files was meant."""
    if named or to is not None or not settings.ready_tenants:
        return
    ready = await prepare_tenants(database, settings=settings)
    if ready.made or ready.removed:
        click.echo(f"tenants made in advance: {describe_ready(ready)}", err=True)


def _describe_plan(plan: FleetPlan) -> str:
    if not plan.behind:
        return _describe_nothing(plan)
    lines = [f"would migrate {count_tenants(len(plan.behind))} to {plan.target_file}; already there: {plan.up_to_date}"]
    if plan.canaries:
        lines.append(f"first: {name_some([tenant.slug for tenant in plan.behind[: plan.canaries]], _MOST_NAMES)}")
    lines += _group((tenant.version, tenant.slug) for tenant in plan.behind)
    return "\n".join(lines)


def _print_report(report: FleetReport) -> None:
    plan = report.plan
    for outcome in report.failed:
        click.echo(f"{outcome.tenant.slug} stays at {outcome.version:04}: {outcome.error}", err=True)
    if report.left:
        click.echo(f"stopped: {_explain_stop(report)}; mend it, and run migrate again", err=True)
    # A rate over a few tenants means nothing.
    rate = f", {len(report.migrated) / report.seconds:.0f} a second" if len(report.migrated) >= _ENOUGH else ""
    gone = f", {len(report.gone)} gone meanwhile" if report.gone else ""
    there = plan.up_to_date + len(report.by_others)
    click.echo(
        f"migrated {count_tenants(len(report.migrated))} to {plan.target_file} in {report.seconds:.1f} s{rate}; "
        f"{len(report.failed)} failed, {len(report.left)} not tried{gone}, already there: {there}"
    )
    behind = [(outcome.version, outcome.tenant.slug) for outcome in report.failed]
    for line in _group(behind + [(tenant.version, tenant.slug) for tenant in report.left]):
        click.echo(line)


def _explain_stop(report: FleetReport) -> str:
    first = {tenant.slug for tenant in report.plan.behind[: report.plan.canaries]}
    canaries = [outcome.tenant.slug for outcome in report.failed if outcome.tenant.slug in first]
    if canaries:
        return f"the canary {canaries[0]} failed"
    if report.lost_database:
        return "the database is out of reach"
    return f"{count_tenants(len(report.failed))} failed"


def _describe_nothing(plan: FleetPlan) -> str:
    return f"nothing to do: {count_tenants(plan.up_to_date)} at {plan.target_file} or newer"


def _group(standing: Iterable[tuple[int, str]]) -> list[str]:
    """Return one line for each version, with its tenants."""
    by_version: dict[int, list[str]] = defaultdict(list)
    for version, slug in standing:
        by_version[version].append(slug)
    return [
        f"at {version:04}: {count_tenants(len(slugs))}: {name_some(slugs, _MOST_NAMES)}"
        for version, slugs in sorted(by_version.items())
    ]


def _show_plan(plan: FleetPlan) -> dict[str, Any]:
    return {
        "target": plan.target_version,
        "up_to_date": plan.up_to_date,
        "canaries": [tenant.slug for tenant in plan.behind[: plan.canaries]],
        "behind": [{"slug": tenant.slug, "version": tenant.version} for tenant in plan.behind],
    }


def _show_report(report: FleetReport) -> dict[str, Any]:
    return {
        "target": report.plan.target_version,
        "up_to_date": report.plan.up_to_date + len(report.by_others),
        "migrated": len(report.migrated),
        "failed": [
            {
                "slug": outcome.tenant.slug,
                "version": outcome.version,
                "migration": outcome.migration,
                "error": outcome.error,
            }
            for outcome in report.failed
        ],
        "not_tried": [{"slug": tenant.slug, "version": tenant.version} for tenant in report.left],
        "gone": [tenant.slug for tenant in report.gone],
        "seconds": round(report.seconds, 3),
    }
