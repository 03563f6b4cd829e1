"""The commands that look through migration files: for dangers, and for what would not run on Citus."""

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import click

from quart_tenants.errors import MigrationFileError
from quart_tenants.postgres.migrations.lint import Finding, check_portable_files, lint_files
from quart_tenants.postgres.migrations.migration_files import Migration, read_migrations
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.running import find_settings

_FILES = click.argument("files", nargs=-1, type=click.Path(path_type=Path))
_FROM = click.option(
    "--from", "first", type=click.IntRange(min=1), default=1, metavar="NNNN", help="Leave out older files."
)


@click.command("lint")
@_FILES
@_FROM
@changes_nothing
def lint_command(files: tuple[Path, ...], first: int) -> None:
    """Name well-known dangers in migration files, each with its safe form.

    FILES are migration files; without them all files of the app are looked at. The earlier files of their folders
    are read, too, because a file may rely on them. No database is needed. The exit status is 1 if there is a danger.
    """
    _look_through(files, first, lint_files, shared=True)


@click.command("check-portable")
@_FILES
@_FROM
@changes_nothing
def check_portable_command(files: tuple[Path, ...], first: int) -> None:
    """Name what in migration files fails on Citus, or is silently wrong there, each with a remedy.

    FILES are files for tenants' tables; without them all those of the app are looked at. No database is needed. The
    exit status is 1 if something is found.
    """
    # Shared tables lie on the coordinator, or are made reference tables by hand.
    _look_through(files, first, check_portable_files, shared=False)


def _look_through(
    files: Sequence[Path],
    first: int,
    look: Callable[[Sequence[Migration], Collection[int]], Sequence[Finding]],
    *,
    shared: bool,
) -> None:
    """Print what *look* finds in *files*, or in the app's folders; end with status 1 if there is anything."""
    settings = find_settings()
    shared_folder, own_folder = settings.shared_migrations_dir, settings.migrations_dir
    folders = (shared_folder, own_folder) if shared else (own_folder,)
    names: dict[Path, set[str]] = {folder: set() for folder in folders if folder is not None}
    if files:
        names = defaultdict(set)
        for file in files:
            names[file.parent].add(file.name)
    found = 0
    for folder, wanted in names.items():
        is_shared = shared_folder is not None and folder.resolve() == shared_folder.resolve()
        migrations = read_migrations(folder, shared=is_shared, may_be_empty=not files)
        missing = wanted - {migration.name for migration in migrations}
        if missing:
            raise MigrationFileError(f"{folder / min(missing)}: there is no such file")
        versions = {
            migration.version
            for migration in migrations
            if migration.version >= first and (not wanted or migration.name in wanted)
        }
        for finding in look(migrations, versions):
            found += 1
            click.echo(f"{finding.file}:{finding.line}: {finding.rule}: {finding.what}: {finding.remedy}")
    if found:
        click.echo(f"{found} danger{'s' * (found != 1)}; accept one by -- quart-tenants: accept RULE: reason", err=True)
        sys.exit(1)
