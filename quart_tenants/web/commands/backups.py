"""The commands that back up a tenant and restore it."""

import sys
from pathlib import Path

import click

from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, parse_slug
from quart_tenants.web.commands.backup_all import back_up_all
from quart_tenants.web.commands.running import name_program, tell_hooks, tell_if_behind, with_database
from quart_tenants.web.commands.trash import INCLUDING_DEPENDENTS, ask_for_name


@click.command("backup")
@click.argument("slug", required=False)
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE|FOLDER",
    help="The file to write, or with --all the folder.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--all", "everybody", is_flag=True, help="Back up every tenant, each into a file of its own.")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Tenants at the same time.")
@click.option(
    "--keep", "days", type=click.IntRange(min=1), metavar="DAYS", help="Delete older files.  [default: keep them]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def backup_command(
    slug: str | None, path: Path, force: bool, everybody: bool, jobs: int, days: int | None, as_json: bool
) -> None:
    """Write everything of tenant SLUG into FILE, while it is served. With --all, back up every tenant into FOLDER.

    Only you may read the files, because they hold the rows of the tenants. This needs PostgreSQL's program
    pg_dump, which comes with quart-tenants[demo].

    With --all a tenant that fails is named, and the others go on. Run it again to continue after an
    interruption. --keep never deletes the newest good file of a tenant.
    """
    if (slug is None) != everybody:
        raise click.UsageError("give either SLUG or --all")
    if str(path) == "-":
        raise click.UsageError("a backup is not written to stdout, because what stands first in it is known last")
    if everybody and force:
        raise click.UsageError("--force is for one FILE; --all never replaces a file")
    if slug is not None:
        for option, is_given in (("--keep", days is not None), ("--json", as_json)):
            if is_given:
                raise click.UsageError(f"{option} needs --all")
        back_up_one(slug=slug, file=path, force=force)
    else:
        back_up_all(folder=path, jobs=jobs, days=days, as_json=as_json)


@with_database
async def back_up_one(database: Database, settings: Settings, *, slug: str, file: Path, force: bool) -> None:
    """Back up one tenant."""
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
            including_dependents=including_dependents,
        )
        click.echo(f"restored {tenant.slug} (schema {tenant.schema}, at {tenant.slug}.{settings.domain})")
        for old in replaced:
            click.echo(f"its old tables are in the trash: {name_program()} undrop {old}", err=True)
        tell_if_behind(tenant, settings)
        await tell_hooks("restored", tenant)

    restore()


def show_beginning(doing: str) -> None:
    """Say on a terminal what takes long."""
    if sys.stderr.isatty():
        click.echo(f"{doing} …", err=True)
