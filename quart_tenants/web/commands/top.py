"""The command that shows who is busy now."""

import asyncio
import json
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import click

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.activity import TenantActivity, list_activity
from quart_tenants.setting_checks import check_bind
from quart_tenants.settings import Settings
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.running import with_database
from quart_tenants.web.commands.tables import print_rows
from quart_tenants.web.commands.worker_figures import Samples, ask_workers, list_workers, sort_by_tenant

_LONGEST_STATEMENT = 60  # characters
_STARTS = "quart_tenants_worker_starts_total"
# The counters of tenants that are shown as rates.
_RATES = {
    "requests": "quart_tenants_tenant_requests_total",
    "refused": "quart_tenants_tenant_refused_requests_total",
    "failed_logins": "quart_tenants_tenant_failed_logins_total",
    "rows": "quart_tenants_tenant_rows_total",
    "bytes": "quart_tenants_tenant_answer_bytes_total",
    "block_seconds": "quart_tenants_tenant_block_seconds_total",
}
_COLUMNS = (
    "tenant", "busy", "requests/s", "429/s", "wrong logins/s", "rows/s", "bytes/s",
    "connections", "waiting", "longest", "statement", "",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Busy:
    """One line: rates are for each second; *block_seconds* says how many blocks were open on average."""

    tenant: str
    block_seconds: float = 0.0
    requests: float = 0.0
    refused: float = 0.0
    failed_logins: float = 0.0
    rows: float = 0.0
    bytes: float = 0.0
    behind: bool = False
    connections: int = 0
    waiting: int = 0
    longest: float = 0.0
    statement: str = ""


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
        workers = _list_workers(now[1])
        busy = _put_together(before, now, await list_activity(database))
        if as_json:
            click.echo(json.dumps({"workers": workers, "tenants": [asdict(one) for one in busy]}, indent=2))
            return
        if sys.stdout.isatty():
            click.clear()
        if workers:
            up = sum(worker["up"] for worker in workers)
            restarts = sum(worker["starts"] - 1 for worker in workers)
            click.echo(f"{up} of {len(workers)} workers up, {restarts} started again", err=not sys.stdout.isatty())
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


async def _look(address: str | None) -> tuple[float, Samples]:
    """Return what the workers tell, and when that was."""
    samples = {} if address is None else sort_by_tenant(await ask_workers(address))
    return time.monotonic(), samples


def _list_workers(samples: Samples) -> list[dict[str, Any]]:
    return [
        {"worker": name, "up": is_up, "starts": int(samples.get((_STARTS, name, ""), 1))}
        for name, is_up in list_workers(samples).items()
    ]


def _put_together(
    before: tuple[float, Samples], now: tuple[float, Samples], activity: list[TenantActivity]
) -> list[_Busy]:
    """Return one line for each tenant that does anything, the busiest first."""
    (began_at, earlier), (ended_at, samples) = before, now
    seconds = max(ended_at - began_at, 0.001)
    rates: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_RATES, 0.0))
    behind = {tenant for name, _, tenant in samples if name == "quart_tenants_tenant_behind"}
    figures = {name: figure for figure, name in _RATES.items()}
    for key, value in samples.items():
        name, _, tenant = key
        if name in figures:
            # A tenant that was not named before, or whose worker is new, begins here.
            rates[tenant][figures[name]] += max(value - earlier.get(key, value), 0.0) / seconds
    known = {one.slug: one for one in activity}
    lines = []
    for tenant in rates.keys() | known.keys() | behind:
        told: dict[str, Any] = {name: round(rate, 3) for name, rate in rates[tenant].items()}
        if (doing := known.get(tenant)) is not None:
            told |= {"connections": doing.connections, "waiting": doing.waiting}
            told |= {"longest": round(doing.seconds, 3), "statement": doing.statement}
        line = _Busy(tenant, behind=tenant in behind, **told)
        if line != _Busy(tenant):
            lines.append(line)
    return sorted(lines, key=lambda one: (-one.block_seconds, -one.connections, -one.requests, one.tenant))


def _make_cells(line: _Busy) -> tuple[str, ...]:
    statement = line.statement
    if len(statement) > _LONGEST_STATEMENT:
        statement = f"{statement[:_LONGEST_STATEMENT]}…"
    rates = (line.requests, line.refused, line.failed_logins, line.rows, line.bytes)
    return (
        line.tenant,
        f"{line.block_seconds:.2f}",
        *(f"{rate:.1f}" for rate in rates),
        str(line.connections),
        str(line.waiting),
        f"{line.longest:.1f} s",
        statement,
        "behind" if line.behind else "",
    )
