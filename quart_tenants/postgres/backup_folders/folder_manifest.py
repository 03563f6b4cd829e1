"""Write and read the manifest of a folder of backups: which files are in it, and how far the last run came."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from quart_tenants.errors import BackupFileError
from quart_tenants.postgres.backup_folders.stored_backups import StoredBackup
from quart_tenants.postgres.backups.whole_files import UNREADABLE, file_errors, write_whole

MANIFEST = "manifest.json"
"""The name of the manifest in a folder of backups."""

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Run:
    """A run over all tenants.

    Attributes:
        began_at: When it began, by the clock of the database. A backup that was made later is of this run.
        ended_at: When every tenant had been tried; None while it runs, and after an interruption.
    """

    began_at: datetime
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the manifest of a folder says.

    Attributes:
        database: Which database the backups are of.
        run: The last run.
        backups: The good files.
    """

    database: str
    run: Run
    backups: Sequence[StoredBackup]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step. Afterwards it, and the names of all files in *folder*, are on the disk.

    Raises:
        BackupFileError: It cannot be written.
    """
    told = asdict(manifest)
    text = _dump({"format": _FORMAT, "sha256": _digest(told)} | told)
    with write_whole(folder / MANIFEST) as (_, opened):
        opened.write(text.encode())
        opened.flush()
        os.fsync(opened.fileno())
    with file_errors(folder, "cannot be written"):
        _flush_names(folder)


def read_manifest(folder: Path) -> Manifest | None:
    """Return what the manifest of *folder* says; None if it is missing, damaged, or was edited by hand.

    Raises:
        BackupFileError: It cannot be read, or a newer program wrote it.
    """
    file = folder / MANIFEST
    with file_errors(file, UNREADABLE):
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            return None
    try:
        told = json.loads(text)
        written_by = told.pop("format")
        if type(written_by) is int and written_by > _FORMAT:
            raise BackupFileError(
                str(file),
                f"has format {written_by}, and this program reads format {_FORMAT}: use the program that made it",
            )
        if told.pop("sha256") != _digest(told):
            return None
        return _parse(told)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _parse(told: dict[str, Any]) -> Manifest:
    ended_at = told["run"]["ended_at"]
    return Manifest(
        told["database"],
        Run(datetime.fromisoformat(told["run"]["began_at"]), ended_at and datetime.fromisoformat(ended_at)),
        [
            StoredBackup(**backup | {name: datetime.fromisoformat(backup[name]) for name in ("created_at", "made_at")})
            for backup in told["backups"]
        ],
    )


def _dump(told: dict[str, Any]) -> str:
    return json.dumps(told, default=datetime.isoformat, indent=1)


def _digest(told: dict[str, Any]) -> str:
    """Return the digest of what a manifest says. Layout does not count."""
    return hashlib.sha256(_dump(told).encode()).hexdigest()


def _flush_names(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
