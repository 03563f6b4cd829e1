"""Show what is in a backup, or in a folder of backups."""

import sys
from pathlib import Path

import click

from quart_tenants.postgres.backup_folders.backup_folder import FolderContents, read_folder
from quart_tenants.postgres.backup_folders.stored_backups import StoredBackup, check_backup
from quart_tenants.postgres.backups.backup_files import read_backup
from quart_tenants.web.commands.tables import print_rows

_COLUMNS = ("Tenant", "Number", "Made at", "Version", "Server", "Bytes", "File")


def list_backups(path: Path) -> None:
    """Check a file and print what is in it, or print what is in a folder; end with status 1 if a file is damaged.

    The files of a folder are not read if its manifest is to be trusted.

    Raises:
        BackupFileError: *path* is no backup, is damaged, or cannot be read.
    """
    contents = read_folder(path) if path.is_dir() else FolderContents(backups=[check_backup(path)])
    print_rows(_COLUMNS, [_describe(backup) for backup in contents.backups])
    for line in (*contents.notes, *contents.damaged.values()):
        click.echo(line, err=True)
    if not path.is_dir():
        _tell_more(path)
    if contents.damaged:
        sys.exit(1)


def _describe(backup: StoredBackup) -> tuple[str, ...]:
    return (
        backup.slug,
        str(backup.tenant_id),
        backup.made_at.isoformat(timespec="seconds"),
        f"{backup.version:04}",
        f"{backup.server_version // 10000}.{backup.server_version % 10000}",
        str(backup.size),
        backup.file,
    )


def _tell_more(file: Path) -> None:
    backup = read_backup(file)
    if backup.piped is not None:
        click.echo(f"its dump was piped through {backup.piped.program}", err=True)
    for own in backup.domains:
        click.echo(f"domain: {own.domain}", err=True)
    for former in backup.former_slugs:
        click.echo(f"former slug: {former.slug}, until {former.redirect_until:%Y-%m-%d}", err=True)
