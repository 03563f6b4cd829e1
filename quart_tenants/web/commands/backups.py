"""The commands that back up a tenant and restore it."""

import sys
from pathlib import Path

import click

from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, parse_slug
from quart_tenants.web.commands.running import name_program, tell_if_behind, with_database
from quart_tenants.web.commands.trash import ask_for_name


@click.command("backup")
@click.argument("slug")
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path), required=True, metavar="FILE", help="What to write."
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@with_database
async def backup_command(database: Database, settings: Settings, slug: str, file: Path, force: bool) -> None:
    """Write everything of tenant SLUG into FILE, while it is being served.

    Only you may read FILE, because it holds what the tenant's tables hold. Needs PostgreSQL's program
    pg_dump, which comes with quart-tenants[demo].
    """
    show_beginning(f"backing up {slug}")
    backup = await backup_tenant(database, parse_slug(slug), file, settings=settings, force=force)
    click.echo(f"backed up {backup.slug} to {file} (version {backup.version:04}, {backup.size} bytes)")


@click.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "slug", metavar="SLUG", required=True, help="The tenant that it becomes.")
@click.option("--replace", is_flag=True, help="Put it in the place of the tenant SLUG that lives.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore_command(file: Path, slug: str, replace: bool, yes: bool) -> None:
    """Make tenant SLUG of the backup FILE. A failure changes nothing.

    SLUG is a new tenant, unless --replace is given. Then it keeps its name, domains and sessions, and what
    it was until now goes into the trash, from where undrop brings it back as a tenant of its own. So FILE
    must be a backup of that very tenant. Asks for the name once more before that. Without a terminal to ask
    on it refuses, unless --yes is given.

    Restore only a backup that you trust: its functions run with your rights.
    """
    parsed = parse_slug(slug)
    if replace and not yes:
        ask_for_name([parsed], "restore --replace", "This puts a backup in the place of all data of {what}.")

    @with_database
    async def restore(database: Database, settings: Settings) -> None:
        replaced: list[Slug] = []
        show_beginning(f"restoring {slug}")
        tenant = await restore_tenant(
            database, file, parsed, settings=settings, replace=replace, on_replaced=replaced.append
        )
        click.echo(f"restored {tenant.slug} (schema {tenant.schema}, at {tenant.slug}.{settings.domain})")
        for old in replaced:
            click.echo(f"what it was lies in the trash: {name_program()} undrop {old}", err=True)
        tell_if_behind(tenant, settings)

    restore()


def show_beginning(doing: str) -> None:
    """Tell somebody who waits before a terminal what takes so long."""
    if sys.stderr.isatty():
        click.echo(f"{doing} …", err=True)
