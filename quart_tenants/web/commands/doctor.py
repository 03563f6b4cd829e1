"""The command that looks for leaks between tenants."""

import json
from dataclasses import asdict

import click

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import Finding, State
from quart_tenants.postgres.doctor.examination import examine
from quart_tenants.postgres.doctor.fleet_tasks import describe_tasks, list_tasks
from quart_tenants.settings import Settings
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.run_metrics import leaves_metrics, note_failures
from quart_tenants.web.commands.running import with_database
from quart_tenants.web.commands.worker_figures import check_workers


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON document with everything, for programs.")
@changes_nothing
@leaves_metrics
@with_database
async def doctor_command(database: Database, settings: Settings, as_json: bool) -> None:
    """Look for leaks between tenants, through the same pooler as the app.

    It makes two tenants for a moment (schemas named quart_tenants_probe_...), runs their blocks in turns on
    shared connections, and checks grants, default paths and session settings. Then it says what else waits for an
    operator, as status does, but for drift. Each check prints one line. The status is 1 if there is a leak, or a check
    that could not be done.
    """
    findings: list[Finding] = []

    def note(finding: Finding) -> None:
        findings.append(finding)
        if not as_json:
            print_finding(finding)

    async for finding in examine(database, settings=settings):
        note(finding)
    for finding in await check_workers(settings):
        note(finding)
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        click.echo(describe_tasks(list_tasks(findings)))
    bad = [finding for finding in findings if finding.state in (State.LEAK, State.FAILED)]
    if bad:
        note_failures(len(bad))
        raise click.ClickException(f"not safe: {', '.join(finding.check for finding in bad)}")


def print_finding(finding: Finding) -> None:
    """Print what was seen, and below it the remedy, if there is one."""
    click.echo(f"{finding.state:7}  {finding.check}: {finding.seen}")
    if finding.remedy:
        click.echo(f"         -> {finding.remedy}")
