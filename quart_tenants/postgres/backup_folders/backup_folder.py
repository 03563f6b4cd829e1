"""Keep the backups of one database in a folder that nobody else changes."""

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from quart_tenants.errors import BackupFileError
from quart_tenants.postgres.backup_folders.folder_manifest import MANIFEST, Run, read_manifest
from quart_tenants.postgres.backup_folders.stored_backups import StoredBackup, check_backup, is_backup_name
from quart_tenants.postgres.backups.whole_files import file_errors

_UNUSABLE = "cannot be used for backups"
_LOCK = ".lock"
# What a run that was killed leaves: a dot, the name of the file, and eight characters of Python's.
_LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}")


@dataclass(slots=True)
class FolderContents:
    """What is in a folder of backups.

    Attributes:
        backups: The good files in order of name, which is the order of tenants and times.
        damaged: Why a file is not good, by its name.
        database: Which database they are of; None if the manifest does not say.
        run: The last run; None if the manifest does not say.
        notes: What the operator should know about the manifest.
    """

    backups: list[StoredBackup] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    database: str | None = None
    run: Run | None = None
    notes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[None]:
    """Make *folder* if it is missing, and let no other run write into it until the block ends.

    What a run that was killed left half-written is deleted. A folder that this makes has mode 0700.

    Raises:
        BackupFileError: It is no folder, others may write into it, it holds strangers' files and no backups, another
            run uses it, or it cannot be written.
    """
    with file_errors(folder, _UNUSABLE):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _check_private(folder)
        names = os.listdir(folder)
        strangers = sorted(name for name in names if not _is_ours(name))
        if strangers and MANIFEST not in names:
            raise BackupFileError(
                str(folder),
                f"holds what is no backup, such as {strangers[0]!r}: give an empty folder, or one that does not exist",
            )
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _lock(folder, descriptor)
        _delete_leftovers(folder)
        yield
    finally:
        os.close(descriptor)


def read_folder(folder: Path) -> FolderContents:
    """Read which backups are in *folder*: from its manifest, and from the files that the manifest does not name.

    A file that the manifest names is read again only if it has another size now. Without a manifest that can be
    trusted all files are read and checked, which takes as long as reading them takes.

    Raises:
        BackupFileError: *folder* cannot be read, or a newer program wrote its manifest.
    """
    with file_errors(folder, _UNUSABLE):
        sizes = {
            entry.name: entry.stat(follow_symlinks=False).st_size
            for entry in os.scandir(folder)
            if is_backup_name(entry.name) and entry.is_file(follow_symlinks=False)
        }
    contents = FolderContents()
    manifest = read_manifest(folder)
    known = {}
    if manifest is not None:
        contents.database, contents.run = manifest.database, manifest.run
        known = {backup.file: backup for backup in manifest.backups}
    elif sizes or (folder / MANIFEST).exists():
        contents.notes.append(
            f"{folder / MANIFEST} is missing, damaged, or was edited by hand; the files themselves were read instead"
        )
    for name, size in sorted(sizes.items()):
        backup = known.pop(name, None)
        if backup is None or backup.size != size:
            try:
                backup = check_backup(folder / name)
            except BackupFileError as error:
                contents.damaged[name] = str(error)
                continue
        contents.backups.append(backup)
    if known:
        contents.notes.append(f"{folder / MANIFEST} names files that are gone, such as {min(known)}")
    return contents


def _check_private(folder: Path) -> None:
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise BackupFileError(str(folder), "is no folder: give a folder for the backups of all tenants")
    if status.st_uid != os.geteuid():
        raise BackupFileError(str(folder), "belongs to another user, who could change what is in it: give one of yours")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BackupFileError(str(folder), f"can be changed by others: chmod go-w {folder}")


def _lock(folder: Path, descriptor: int) -> None:
    with file_errors(folder, _UNUSABLE):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupFileError(
                str(folder), "is in use by another `backup --all`: wait until that has ended"
            ) from None


def _delete_leftovers(folder: Path) -> None:
    with file_errors(folder, _UNUSABLE):
        for name in os.listdir(folder):
            if _is_leftover(name):
                (folder / name).unlink()


def _is_ours(name: str) -> bool:
    return name in (MANIFEST, _LOCK) or is_backup_name(name) or _is_leftover(name)


def _is_leftover(name: str) -> bool:
    match = _LEFTOVER.fullmatch(name)
    return match is not None and (match[1] == MANIFEST or is_backup_name(match[1]))
