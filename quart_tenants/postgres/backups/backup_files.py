"""Write and read the file of a backup: a tar of `tenant.json`, which says what it is, and a dump or rows."""

import contextlib
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from quart_tenants.errors import BackupFileError
from quart_tenants.postgres.backups.manifests import Backup, ManifestError, Piped, parse_manifest, serialize
from quart_tenants.postgres.backups.whole_files import UNREADABLE, file_errors, write_whole

_MANIFEST = "tenant.json"
_DUMP_MAGIC = b"PGDMP"
_READERS = {(1, 14): 12, (1, 15): 16, (1, 16): 17}
_NEWEST_READER = 18
_CHUNK = 1 << 20  # bytes
_MAX_MANIFEST_BYTES = 1 << 24
# The manifest gets its room before the sizes of the dump are known. A size has at most 19 digits.
_ROOM_FOR_SIZES = 48


class BackupWriter:
    """Writes a backup whose dump comes in pieces. Made by `write_backup`.

    Attributes:
        path: Where the backup is until it gets its name.
    """

    def __init__(self, path: Path, file: BinaryIO, backup: Backup) -> None:
        self.path = path
        self._file = file
        self._backup = backup
        self._digest = hashlib.sha256()
        self._size = 0
        self._manifest_size = len(serialize(backup)) + _ROOM_FOR_SIZES
        # Two headers and the manifest come before the dump.
        file.seek(2 * tarfile.BLOCKSIZE + self._manifest_size + -self._manifest_size % tarfile.BLOCKSIZE)

    def write(self, chunk: bytes) -> None:
        """Append to the dump."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self._size += len(chunk)

    def finish(self, piped: Piped | None = None) -> Backup:
        """Write the size and digest of the dump into the manifest, and flush the file to the disk.

        Args:
            piped: What the dump was before it was piped through a program.
        """
        self._file.write(b"\0" * (-self._size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
        backup = replace(self._backup, size=self._size, sha256=self._digest.hexdigest(), piped=piped)
        # JSON ignores blanks at the end, so the dump begins where it was written.
        manifest = serialize(backup).ljust(self._manifest_size)
        try:
            parse_manifest(manifest)
        except ManifestError as error:
            # Better no file than one that no restore would take.
            raise BackupFileError(str(self.path), f"would not be readable: it {error}") from error
        made_at = backup.made_at.timestamp()
        self._file.seek(0)
        self._file.write(_make_header(_MANIFEST, len(manifest), made_at))
        self._file.write(manifest + b"\0" * (-len(manifest) % tarfile.BLOCKSIZE))
        self._file.write(_make_header(backup.content, self._size, made_at))
        self._file.flush()
        os.fsync(self._file.fileno())
        return backup


@contextlib.contextmanager
def write_backup(file: Path, backup: Backup, *, force: bool) -> Iterator[BackupWriter]:
    """Write *file*. It gets its name only if the block ends without an error; otherwise nothing is left.

    Only its owner may read it, because it holds the rows of the tenant.

    Raises:
        BackupFileError: *file* exists and *force* is not given, or it cannot be written.
    """
    refuse_existing(file, force=force)
    with write_whole(file) as (temporary, opened):
        yield BackupWriter(temporary, opened, backup)
        refuse_existing(file, force=force)


def refuse_existing(file: Path, *, force: bool) -> None:
    """Make sure that *file* may be written, before the long work of a backup begins.

    Raises:
        BackupFileError: It exists, or its folder does not.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise BackupFileError(str(file), "cannot be written: give a file in a folder that exists")
    with file_errors(file, "cannot be written"):
        try:
            mode = file.lstat().st_mode
        except FileNotFoundError:
            return
    # A rename would replace a pipe, a device or a link such as /dev/stdout.
    if not stat.S_ISREG(mode):
        raise BackupFileError(str(file), "cannot be written: it exists and is no regular file; choose another name")
    if not force:
        raise BackupFileError(str(file), "exists already; choose another name, or replace it with --force")


def read_backup(file: Path) -> Backup:
    """Read what *file* says about itself, without a check of the dump.

    Raises:
        BackupFileError: It is no backup, or cannot be read.

    Example:
        ```python
        await backup_tenant(database, parse_slug("acme"), Path("acme.tar"), settings=settings)
        print(read_backup(Path("acme.tar")).made_at)
        ```
    """
    with file_errors(file, UNREADABLE), file.open("rb", buffering=0) as opened:
        return _read_start(file, opened)[0]


@contextlib.contextmanager
def open_backup(file: Path) -> Iterator[tuple[Backup, BinaryIO]]:
    """Read and check all of *file*; lend its manifest, and the open file at the start of the dump.

    Raises:
        BackupFileError: It is no backup, is damaged, or cannot be read.
    """
    with file_errors(file, UNREADABLE):
        opened = file.open("rb", buffering=0)
    with opened:
        with file_errors(file, UNREADABLE):
            backup, start = _read_start(file, opened)
            _check_dump(file, opened, backup, start)
        # A program that inherits the descriptor reads from here.
        os.lseek(opened.fileno(), start, os.SEEK_SET)
        yield backup, opened


def get_reader_version(opened: BinaryIO) -> int:
    """Return the oldest major version of pg_restore that can read the dump at the position of *opened*.

    pg_dump writes the version of its format after five letters (src/bin/pg_dump/pg_backup_archiver.h): 1.15 from
    PostgreSQL 16 on, 1.16 from 17 on.
    """
    start = opened.tell()
    # If the file is shorter, pg_restore refuses it.
    found = tuple(opened.read(len(_DUMP_MAGIC) + 2)[len(_DUMP_MAGIC) :])
    opened.seek(start)
    return next((version for known, version in _READERS.items() if found <= known), _NEWEST_READER)


def _read_start(file: Path, opened: io.RawIOBase) -> tuple[Backup, int]:
    """Return the manifest, and the position of the dump."""
    size, start = _read_header(file, opened, _MANIFEST, 0)
    if size > _MAX_MANIFEST_BYTES:
        raise _is_no_backup(file)
    opened.seek(start)
    text = opened.read(size) or b""
    if len(text) < size:
        raise _is_truncated(file)
    try:
        backup = parse_manifest(text)
    except ManifestError as error:
        raise BackupFileError(str(file), str(error)) from error
    dump_size, start = _read_header(file, opened, backup.content, start + size + -size % tarfile.BLOCKSIZE)
    if dump_size != backup.size:
        raise BackupFileError(str(file), f"is damaged: {backup.content} has not the size that {_MANIFEST} says")
    return backup, start


def _read_header(file: Path, opened: io.RawIOBase, name: str, position: int) -> tuple[int, int]:
    """Return the size of the member *name* at *position*, and the position of its content."""
    opened.seek(position)
    block = opened.read(tarfile.BLOCKSIZE) or b""
    if position and len(block) < tarfile.BLOCKSIZE:
        raise _is_truncated(file)
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        raise _is_no_backup(file) from error
    if member.name != name or not member.isreg() or member.size < 0:
        raise _is_no_backup(file)
    return member.size, position + tarfile.BLOCKSIZE


def _check_dump(file: Path, opened: io.RawIOBase, backup: Backup, start: int) -> None:
    digest = hashlib.sha256()
    left = backup.size
    opened.seek(start)
    while left:
        chunk = opened.read(min(left, _CHUNK))
        if not chunk:
            raise _is_truncated(file)
        digest.update(chunk)
        left -= len(chunk)
    if digest.hexdigest() != backup.sha256:
        raise BackupFileError(str(file), f"is damaged: {backup.content} has not the sha256 that {_MANIFEST} says")


def _make_header(name: str, size: int, made_at: float) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, int(made_at), 0o600
    # In this format one block is enough, also for more than 8 GiB. ustar has no such size; pax needs two more blocks.
    return member.tobuf(tarfile.GNU_FORMAT)


def _is_no_backup(file: Path) -> BackupFileError:
    return BackupFileError(str(file), "is no backup of a tenant: the command `backup` makes one")


def _is_truncated(file: Path) -> BackupFileError:
    return BackupFileError(str(file), "is truncated: copy it again from where it was made")
