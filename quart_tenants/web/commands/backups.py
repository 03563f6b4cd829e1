"""The commands that back up a tenant and restore it."""

import sys
from pathlib import Path

import click

from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, parse_slug
from quart_tenants.web.commands.running import name_program, tell_hooks, tell_if_behind, with_database
from quart_tenants.web.commands.trash import INCLUDING_DEPENDENTS, ask_for_name


@click.command("backup")
@click.argument("slug")
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path), required=True, metavar="FILE", help="What to write."
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@with_database
async def backup_command(database: Database, settings: Settings, slug: str, file: Path, force: bool) -> None:
    """Write everything of tenant SLUG into FILE, while it is served.

    Only you may read FILE, because it holds the rows of the tenant. This needs PostgreSQL's program
    pg_dump, which comes with quart-tenants[demo].
    """
    show_beginning(f"backing up {slug}")
    backup = await backup_tenant(database, parse_slug(slug), file, settings=settings, force=force)
    click.echo(f"backed up {backup.slug} to {file} (version {backup.version:04}, {backup.size} bytes)")


@click.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "slug", metavar="SLUG", required=True, help="The slug of the restored tenant.")
@click.option("--replace", is_flag=True, help="Replace the living tenant SLUG.")
@INCLUDING_DEPENDENTS
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore_command(file: Path, slug: str, replace: bool, including_dependents: bool, yes: bool) -> None:
    """Make tenant SLUG from the backup FILE. A failure changes nothing.

    SLUG is a new tenant, unless --replace is given. With --replace the living tenant keeps its name, domains
    and sessions, so FILE must be a backup of that very tenant. Its old tables go into the trash, and undrop
    brings them back as a tenant of their own. The command asks for the name first. Without a terminal it
    refuses, unless --yes is given.

    Restore only a backup that you trust: its functions run with your rights.
    """
    parsed = parse_slug(slug)
    if replace and not yes:
        ask_for_name([parsed], "restore --replace", "This replaces all data of {what} by a backup.")

    @with_database
    async def restore(database: Database, settings: Settings) -> None:
        replaced: list[Slug] = []
        show_beginning(f"restoring {slug}")
        tenant = await restore_tenant(
            database,
            file,
            parsed,
            settings=settings,
            replace=replace,
            on_replaced=replaced.append,
            on_notice=show_notice,
            including_dependents=including_dependents,
        )
        click.echo(f"restored {tenant.slug} (schema {tenant.schema}, at {tenant.slug}.{settings.domain})")
        for old in replaced:
            click.echo(f"its old tables are in the trash: {name_program()} undrop {old}", err=True)
        tell_if_behind(tenant, settings)
        await tell_hooks("restored", tenant)

    restore()


def show_notice(sentence: str) -> None:
    """Say what a command could not make quite as it was."""
    click.echo(f"note: {sentence}", err=True)


def show_beginning(doing: str) -> None:
    """Say on a terminal what takes long."""
    if sys.stderr.isatty():
        click.echo(f"{doing} …", err=True)
