"""The commands that back up a tenant and restore it."""

import asyncio
import sys
from pathlib import Path

import click

from quart_tenants.postgres.backup_folders.backup_all import backup_all_tenants
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.backup_files import read_backup
from quart_tenants.postgres.backups.pipes import Pipe, parse_pipe
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.backups.restored_names import RestoredNames, restore_names
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, parse_slug
from quart_tenants.web.commands.backup_all import tell_report
from quart_tenants.web.commands.backup_list import list_backups
from quart_tenants.web.commands.progress import Progress
from quart_tenants.web.commands.run_metrics import leaves_metrics
from quart_tenants.web.commands.running import name_program, tell_about_nodes, tell_hooks, tell_if_behind, with_database
from quart_tenants.web.commands.trash import INCLUDING_DEPENDENTS, ask_for_name

_SAMPLE = 10  # tenants


def _parse_pipe(ctx: click.Context, parameter: click.Parameter, value: str | None) -> Pipe | None:
    return None if value is None else parse_pipe(value)


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
@click.option(
    "--pipe", metavar="COMMAND", callback=_parse_pipe, help="Pipe what is backed up through it, to encrypt it."
)
@click.option("--verify", is_flag=True, help="Restore it, roll back, and compare every object and every row.")
@click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="With --all: --verify for N tenants only.  [default: 10]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@leaves_metrics
def backup_command(
    slug: str | None,
    path: Path,
    force: bool,
    everybody: bool,
    jobs: int,
    days: int | None,
    pipe: Pipe | None,
    verify: bool,
    sample: int | None,
    as_json: bool,
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
    if verify and pipe is not None:
        raise click.UsageError("--verify does not know what undoes the program of --pipe")
    if sample is not None and not verify:
        raise click.UsageError("--sample needs --verify")
    if slug is not None:
        for option, is_given in (("--keep", days is not None), ("--sample", sample is not None), ("--json", as_json)):
            if is_given:
                raise click.UsageError(f"{option} needs --all")

    @with_database
    async def back_up(database: Database, settings: Settings, *, jobs: int) -> None:
        if slug is not None:
            show_beginning(f"backing up {slug}")
        await tell_about_nodes(database)
        if slug is not None:
            backup = await backup_tenant(
                database, parse_slug(slug), path, settings=settings, force=force, pipe=pipe, verify=verify
            )
            click.echo(f"backed up {backup.slug} to {path} (version {backup.version:04}, {backup.size} bytes)")
            return
        with Progress("backing up") as progress:
            try:
                report = await backup_all_tenants(
                    database,
                    path,
                    settings=settings,
                    jobs=jobs,
                    keep_days=days,
                    pipe=pipe,
                    verify=(sample or _SAMPLE) if verify else 0,
                    on_begin=progress.expect,
                    on_done=lambda failed: progress.advance(failed=failed),
                )
            except asyncio.CancelledError:
                click.echo("interrupted: what is finished stays; run it again to go on", err=True)
                raise
        tell_report(report, path, as_json=as_json)

    back_up(jobs=jobs if everybody else 1)


@click.command("restore")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--as", "slug", metavar="SLUG", help="The slug of the restored tenant.")
@click.option("--replace", is_flag=True, help="Replace the living tenant SLUG.")
@INCLUDING_DEPENDENTS
@click.option("--pipe", metavar="COMMAND", callback=_parse_pipe, help="Undoes what the backup was piped through.")
@click.option("--list", "listing", is_flag=True, help="Check FILE and say what is in it, or in a folder of backups.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def restore_command(
    path: Path, slug: str | None, replace: bool, including_dependents: bool, pipe: Pipe | None, listing: bool, yes: bool
) -> None:
    """Make tenant SLUG from the backup FILE. A failure changes nothing.

    SLUG is a new tenant, unless --replace is given. With --replace the living tenant keeps its name, domains
    and sessions, so FILE must be a backup of that very tenant. Its old tables go into the trash, and undrop
    brings them back as a tenant of their own. The command asks for the name first. Without a terminal it
    refuses, unless --yes is given.

    Restore only a backup that you trust: its functions run with your rights.
    """
    if listing:
        if slug is not None or replace or pipe is not None:
            raise click.UsageError("--list changes nothing: leave the other options out")
        list_backups(path)
        return
    if slug is None:
        raise click.UsageError("say with --as which tenant FILE becomes, or with --list that you only want to look")
    parsed = parse_slug(slug)
    if replace and not yes:
        ask_for_name([parsed], "restore --replace", "This replaces all data of {what} by a backup.")

    @with_database
    async def restore(database: Database, settings: Settings) -> None:
        replaced: list[Slug] = []
        show_beginning(f"restoring {parsed}")
        tenant = await restore_tenant(
            database,
            path,
            parsed,
            settings=settings,
            replace=replace,
            on_replaced=replaced.append,
            on_notice=show_notice,
            including_dependents=including_dependents,
            pipe=pipe,
        )
        click.echo(f"restored {tenant.slug} (schema {tenant.schema}, at {tenant.slug}.{settings.domain})")
        for old in replaced:
            click.echo(f"its old tables are in the trash: {name_program()} undrop {old}", err=True)
        backup = read_backup(path)
        async with database.connection() as connection:
            server = connection.get_server_version().major
        if backup.server_version // 10000 != server:
            click.echo(
                f"it was made from PostgreSQL {backup.server_version // 10000}, and this server is {server}", err=True
            )
        if not replace:
            _tell_names(await restore_names(database, backup, tenant, settings=settings), tenant.slug)
        tell_if_behind(tenant, settings)
        await tell_hooks("restored", tenant)

    restore()


def _tell_names(names: RestoredNames, slug: Slug) -> None:
    for domain in names.claimed:
        click.echo(
            f"{domain} was its domain, and DNS must prove that again: {name_program()} domain add {slug} {domain}",
            err=True,
        )
    for former in names.redirected:
        click.echo(f"{former} leads to it, as before", err=True)
    for name, error in names.refused.items():
        click.echo(f"{name} was its name, too, and is not any more: {error}", err=True)


def show_notice(sentence: str) -> None:
    """Say what a command could not make quite as it was."""
    click.echo(f"note: {sentence}", err=True)


def show_beginning(doing: str) -> None:
    """Say on a terminal what takes long."""
    if sys.stderr.isatty():
        click.echo(f"{doing} …", err=True)
