"""The command that reports the state of all tenants."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from itertools import islice

import click

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.fleet_tasks import check_drift, describe_tasks, list_tasks
from quart_tenants.postgres.fleet.status import FleetStatus, add_drift, get_fleet_status
from quart_tenants.settings import Settings
from quart_tenants.web.commands.doctor import print_finding
from quart_tenants.web.commands.progress import Progress
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.running import count_tenants, with_database
from quart_tenants.web.commands.tables import print_rows
from quart_tenants.web.commands.worker_figures import find_all_tasks

_MOST_LISTED = 20


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON document with everything, for programs.")
@click.option("--no-drift", is_flag=True, help="Do not compare the tenants' tables.")
@changes_nothing
@with_database
async def status_command(database: Database, settings: Settings, as_json: bool, no_drift: bool) -> None:
    """Report what needs doing and the state of all tenants: versions, failures, and drift.

    For the drift it compares all tables, which takes longest. A tenant has drifted if its tables, columns, indexes or
    constraints differ from those of most tenants at the same version. Lists of more than 20 tenants are cut short,
    except with --json.
    """
    status = await get_fleet_status(database, settings=settings, drift=False)
    tasks = await find_all_tasks(database, status, settings=settings)
    try:
        if not no_drift:
            with Progress("comparing tables", status.tenants) as progress:
                status = await add_drift(database, status, settings=settings, on_compared=progress.advance)
            tasks += list_tasks(check_drift(status))
    finally:
        # Also where the comparison fails or is interrupted: the rest is as right without it.
        if as_json:
            document = {"tasks": [asdict(task) for task in tasks], **asdict(status)}
            click.echo(json.dumps(document, indent=2, default=datetime.isoformat))
        else:
            click.echo(describe_tasks(tasks))
            for task in tasks:
                print_finding(task)
            _print_report(status)
            if settings.ready_tenants:
                click.echo(f"made in advance: {status.ready} of {settings.ready_tenants}")
            _print_drift(status)


def _print_report(status: FleetStatus) -> None:
    click.echo(f"{count_tenants(status.tenants)}, {status.suspended} suspended; {status.trash} more in the trash")
    click.echo(f"newest file: {status.newest_file}")
    rows = [
        (f"{row.version:04}", row.file or ("a newer program's" if row.version else "no migration"), str(row.count))
        for row in status.versions
    ]
    print_rows(("version", "file", "tenants"), rows)
    for title, standing in (("behind", status.behind), ("ahead of the files", status.ahead)):
        _print_list(title, len(standing), (f"{tenant.slug} at {tenant.version:04}" for tenant in standing))
    _print_list(
        "failed",
        len(status.failures),
        (
            f"{failure.slug}: {failure.migration or 'no file'}, {failure.failed_at:%Y-%m-%d %H:%M} UTC:"
            f" {' '.join(failure.reason.split())}"
            for failure in status.failures
        ),
    )
    if status.shared_version:
        click.echo(f"shared tables: at {status.shared_version:04}")
    _print_list(
        "names that are also shared",
        len({one.schema for one in status.shared_names}),
        [f"{one.kind} {one.schema}.{one.name}, also in {one.shared_schema}" for one in status.shared_names],
    )
    for node, count in sorted(Counter(status.nodes.values()).items()):
        click.echo(f"on {node}: {count_tenants(count)}")
    for edited in status.edited:
        _print_list(f"{edited.file} was changed after it ran for", len(edited.slugs), edited.slugs)


def _print_drift(status: FleetStatus) -> None:
    drift = status.drift
    if drift is None:
        click.echo("drift: not compared")
        return
    if not drift:
        click.echo("drift: none")
        return
    for majority in status.majorities or ():
        if majority.tied:
            click.echo(
                f"no majority at {majority.version:04}: the tables of {majority.slug} count, the oldest tenant,"
                f" but as many tenants have others ({majority.count} of {majority.compared} each)"
            )
    _print_list(
        "drift",
        len(drift),
        ("\n    ".join((f"{tenant.slug} at {tenant.version:04}", *tenant.differences)) for tenant in drift),
    )


def _print_list(title: str, count: int, lines: Iterable[str]) -> None:
    """Print the first of *lines*, one for each tenant, and how many more there are. Print nothing for none."""
    if count:
        click.echo(f"{title}: {count_tenants(count)}")
        for line in islice(lines, _MOST_LISTED):
            click.echo(f"  {line}")
        if count > _MOST_LISTED:
            click.echo(f"  and {count - _MOST_LISTED} more; --json lists all")
