"""The command that remembers how large the tenants are, and tells how they grow."""

import json
import sys
from dataclasses import asdict

import click

from quart_tenants.long_lists import name_some
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.tenant_sizes import Order, list_growth, measure_sizes
from quart_tenants.settings import Settings
from quart_tenants.web.commands.progress import Progress
from quart_tenants.web.commands.running import count_tenants, with_database
from quart_tenants.web.commands.tables import print_rows


@click.command("sizes")
@click.option(
    "--by",
    type=click.Choice(["size", "growth"]),
    default="size",
    show_default=True,
    help="What comes first: the largest tenants, or those that have grown most.",
)
@click.option("--most", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Tenants to list.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, for programs.")
@with_database
async def sizes_command(database: Database, settings: Settings, by: Order, most: int, as_json: bool) -> None:
    """Measure all tenants, remember it for forty days, and list the largest with their growth.

    Run it once a day, such as by cron: the growth is known from the second week on, and the console shows it, too. It
    prints a table on a terminal. Otherwise it prints one line each with tabs between slug, bytes, and by how many bytes
    it has grown in 7 and in 30 days, which are empty where that is not known.
    """
    with Progress("measuring") as progress:
        locked = await measure_sizes(database, progress.advance, on_begin=progress.expect)
    found = await list_growth(database, order=by, limit=most)
    if as_json:
        click.echo(json.dumps({"tenants": [asdict(one) for one in found], "locked": locked}, indent=2, default=str))
    else:
        print_rows(
            ("tenant", "bytes", "in 7 days", "in 30 days"),
            [(one.slug, str(one.bytes), _show(one.in_7_days), _show(one.in_30_days)) for one in found],
        )
    if locked:
        told = f"{count_tenants(len(locked))} not measured, because somebody changes one of their tables"
        click.echo(f"{told}: {name_some(locked)}; run it again", err=True)
        sys.exit(1)


def _show(growth: int | None) -> str:
    return "" if growth is None else f"{growth:+d}"
