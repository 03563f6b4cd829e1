"""The command that shows who is busy now."""

import asyncio
import json
import sys
from dataclasses import asdict

import click

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.activity import list_activity
from quart_tenants.setting_checks import check_bind
from quart_tenants.settings import Settings
from quart_tenants.web.commands.busy_tenants import BusyTenant, Look, describe_workers, list_busy, read_look
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.running import with_database
from quart_tenants.web.commands.tables import print_rows
from quart_tenants.web.commands.worker_figures import ask_workers

_LONGEST_STATEMENT = 60  # characters
_COLUMNS = (
    "tenant", "busy", "a block", "requests/s", "429/s", "wrong logins/s", "rows/s", "bytes/s",
    "connections", "waiting", "longest", "statement", "",
)  # fmt: skip


@click.command("top")
@click.option("--every", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds.")
@click.option("--at", metavar="HOST:PORT", help="Where the workers tell.  [default: TENANTS_METRICS_BIND]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document after two looks, for programs.")
@changes_nothing
@with_database
async def top_command(database: Database, settings: Settings, every: float, at: str | None, as_json: bool) -> None:
    """Show which tenants are busy now, until Ctrl-C; once, where the output is no terminal.

    Rates come from the workers of serve, by the port of TENANTS_METRICS_BIND; connections and statements from
    PostgreSQL, without their values. Without that port only the latter are shown.
    """
    address = _find_address(at, settings)
    if address is None:
        click.echo("TENANTS_METRICS_BIND is not set: this shows only what PostgreSQL knows", err=True)
    before = await _look(address)
    while True:
        await asyncio.sleep(every)
        now = await _look(address)
        busy = list_busy(before, now, await list_activity(database))
        if as_json:
            click.echo(
                json.dumps(
                    {"workers": [asdict(one) for one in now.workers], "tenants": [asdict(one) for one in busy]},
                    indent=2,
                )
            )
            return
        if sys.stdout.isatty():
            click.clear()
        if now.workers:
            click.echo(describe_workers(now.workers), err=not sys.stdout.isatty())
        print_rows(_COLUMNS, [_make_cells(one) for one in busy])
        if not sys.stdout.isatty():
            return
        before = now


def _find_address(at: str | None, settings: Settings) -> str | None:
    if at is None:
        return settings.metrics_bind
    try:
        return check_bind(at)
    except ValueError as error:
        raise click.UsageError(f"--at {error}") from error


async def _look(address: str | None) -> Look:
    return Look() if address is None else read_look(await ask_workers(address))


def _make_cells(line: BusyTenant) -> tuple[str, ...]:
    statement = line.statement
    if len(statement) > _LONGEST_STATEMENT:
        statement = f"{statement[:_LONGEST_STATEMENT]}…"
    rates = (line.requests, line.refused, line.failed_logins, line.rows, line.bytes)
    return (
        line.tenant,
        f"{line.block_seconds:.2f}",
        f"{line.block_takes:.2f} s",
        *(f"{rate:.1f}" for rate in rates),
        str(line.connections),
        str(line.waiting),
        f"{line.longest:.1f} s",
        statement,
        "behind" if line.behind else "",
    )
