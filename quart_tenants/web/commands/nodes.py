"""The commands for a cluster of Citus: which tenants lie where, and moving one."""

import click

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.tenant_moves import list_loads, move_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.running import count_tenants, with_database
from quart_tenants.web.commands.tables import print_rows


@click.command("nodes")
@changes_nothing
@with_database
async def nodes_command(database: Database, settings: Settings) -> None:
    """List the nodes of a Citus cluster, with the tenants and their bytes on each.

    It prints a table on a terminal. Otherwise it prints one line each with tabs between node, state, tenants and
    bytes. The state is active, away, or empty for a node that takes no tenants.
    """
    loads, nowhere = await list_loads(database)
    rows = []
    for load in loads:
        state = "away" if not load.node.active else "active" if load.node.takes_tenants else "empty"
        rows.append((load.node.name, state, str(load.tenants), str(load.size)))
    print_rows(("node", "state", "tenants", "bytes"), rows)
    if nowhere:
        click.echo(f"{count_tenants(nowhere)} more with plain schemas, on the coordinator", err=True)


@click.command("move")
@click.argument("slug")
@click.argument("node", metavar="NODE")
@with_database
async def move_command(database: Database, settings: Settings, slug: str, node: str) -> None:
    """Move tenant SLUG to NODE of a Citus cluster, while it is served. NODE is HOST:PORT, as nodes prints it.

    An interruption stops it, and the tenant stays where it was. Running it again does no harm.
    """

    def show(done: int, total: int) -> None:
        click.echo(f"moving {slug}: {done} of {total} bytes copied", err=True)

    tenant, moved = await move_tenant(database, parse_slug(slug), node, on_progress=show)
    click.echo(f"{'moved' if moved else 'already there:'} {tenant.slug} (schema {tenant.schema}, on {node})")
