"""Delete old backups from a folder, but never the newest good one of a tenant."""

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from quart_tenants.errors import BackupFileError
from quart_tenants.postgres.backup_folders.backup_folder import FolderContents
from quart_tenants.postgres.backup_folders.stored_backups import StoredBackup, check_backup
from quart_tenants.postgres.backups.whole_files import file_errors


def delete_old_backups(
    folder: Path, contents: FolderContents, before: datetime, *, now: datetime, checked: Collection[str]
) -> list[StoredBackup]:
    """Delete files that were made before *before*, take them out of *contents*, and return them.

    The newest good file of a tenant stays, however old it is and whatever became of the tenant. It is read once more
    before an older file is deleted, unless this run has written it. If it turns out to be damaged, it is noted as such
    and stays, and the file before it counts as the newest. A file from the future was made before the clock of the
    database was set back: it stays, too, and is no reason to delete another one.

    Args:
        folder: The folder.
        contents: What is in it.
        before: Files that are not older stay.
        now: The time by the clock of the database.
        checked: The names of the files that this run has written.

    Raises:
        BackupFileError: A file cannot be deleted.
    """
    of_tenants = defaultdict(list)
    for backup in sorted(contents.backups, key=lambda backup: backup.made_at):
        if backup.made_at <= now:
            of_tenants[backup.tenant].append(backup)
    deleted = []
    for backups in of_tenants.values():
        while len(backups) > 1 and backups[0].made_at < before:
            newest = backups[-1]
            damage = None if newest.file in checked else _find_damage(folder, newest)
            if damage is not None:
                contents.damaged[newest.file] = damage
                contents.backups.remove(backups.pop())
                continue
            for old in backups[:-1]:
                if old.made_at < before:
                    _delete(folder / old.file)
                    contents.backups.remove(old)
                    deleted.append(old)
            break
    return deleted


def _find_damage(folder: Path, backup: StoredBackup) -> str | None:
    file = folder / backup.file
    try:
        return None if check_backup(file) == backup else f"{file} is not what was written: its digest is another one"
    except BackupFileError as error:
        return str(error)


def _delete(file: Path) -> None:
    with file_errors(file, "cannot be deleted"):
        file.unlink()
