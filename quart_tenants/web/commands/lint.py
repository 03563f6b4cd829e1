"""The command that looks for dangers in migration files."""

import sys
from collections import defaultdict
from pathlib import Path

import click

from quart_tenants.errors import MigrationFileError
from quart_tenants.postgres.migrations.lint import lint_files
from quart_tenants.postgres.migrations.migration_files import read_migrations
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.running import find_settings


@click.command("lint")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--from", "first", type=click.IntRange(min=1), default=1, metavar="NNNN", help="Leave out older files.")
@changes_nothing
def lint_command(files: tuple[Path, ...], first: int) -> None:
    """Name well-known dangers in migration files, each with its safe form.

    FILES are migration files; without them all files of the app are looked at. The earlier files of their folders
    are read, too, because a file may rely on them. No database is needed. The exit status is 1 if there is a danger.
    """
    settings = find_settings()
    shared_folder, own_folder = settings.shared_migrations_dir, settings.migrations_dir
    names: dict[Path, set[str]] = {folder: set() for folder in (shared_folder, own_folder) if folder is not None}
    if files:
        names = defaultdict(set)
        for file in files:
            names[file.parent].add(file.name)
    found = 0
    for folder, wanted in names.items():
        shared = shared_folder is not None and folder.resolve() == shared_folder.resolve()
        migrations = read_migrations(folder, shared=shared, may_be_empty=not files)
        missing = wanted - {migration.name for migration in migrations}
        if missing:
            raise MigrationFileError(f"{folder / min(missing)}: there is no such file")
        versions = {
            migration.version
            for migration in migrations
            if migration.version >= first and (not wanted or migration.name in wanted)
        }
        for finding in lint_files(migrations, versions):
            found += 1
            click.echo(f"{finding.file}:{finding.line}: {finding.rule}: {finding.what}: {finding.remedy}")
    if found:
        click.echo(f"{found} danger{'s' * (found != 1)}; accept one by -- quart-tenants: accept RULE: reason", err=True)
        sys.exit(1)
