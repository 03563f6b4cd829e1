"""Write and read the file of a backup: a tar of `tenant.json`, which says what it is, and a dump or rows."""

import contextlib
import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from quart_tenants.errors import BackupFileError, InvalidSchemaNameError
from quart_tenants.tenant import SchemaName, parse_schema_name

# The second one is of rows only, which an older program would take for a damaged dump.
_FORMATS = (1, 2)

_MANIFEST, _DUMP, _ROWS = "tenant.json", "schema.dump", "rows.sql.gz"
_DUMP_MAGIC = b"PGDMP"
_READERS = {(1, 14): 12, (1, 15): 16, (1, 16): 17}
_NEWEST_READER = 18
_CHUNK = 1 << 20  # bytes
_MAX_MANIFEST_BYTES = 1 << 24
# The manifest is written before the sizes of the dump are known. A size has at most 19 digits.
_ROOM_FOR_SIZES = 48


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """A migration that had run in the schema."""

    version: int
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class RowsOnly:
    """A backup of rows for tables that the migrations make.

    Attributes:
        shape: The digest of what the schema was made of.
        views: The materialized views that had rows, quoted and with their schema.
    """

    shape: str
    views: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OwnDomain:
    """A verified domain that the tenant had.

    Attributes:
        domain: The domain.
        token: What its owner had put into DNS.
    """

    domain: str
    token: str


@dataclass(frozen=True, slots=True)
class FormerSlug:
    """A slug that led to the tenant.

    Attributes:
        slug: The slug.
        redirect_until: Until when.
    """

    slug: str
    redirect_until: datetime


@dataclass(frozen=True, slots=True)
class Piped:
    """What went into the program that the dump was piped through, such as age.

    Attributes:
        program: The name of the program.
        size: The size of the dump before it, in bytes.
        sha256: The digest of the dump before it, in hex.
    """

    program: str
    size: int = 0
    sha256: str = "0" * 64


@dataclass(frozen=True, slots=True)
class Backup:
    """The manifest of a backup.

    Attributes:
        id: The tenant's number in its registry.
        slug: The tenant's slug.
        schema: The name of its schema, also in the dump.
        name: Its display name.
        created_at: When the tenant was made. This and the number identify the tenant, also after a rename.
        made_at: When the backup was made.
        server_version: The version of the PostgreSQL server, for example 180001.
        migrations: The migrations that had run in the schema, in order.
        rows: Given if the file has no tables but those of the migrations.
        shadows: Whether a function in the schema could be taken for one of PostgreSQL's.
        size: The size of the dump in bytes, as it is in the file.
        sha256: The digest of the dump in hex, as it is in the file.
        domains: The verified domains of the tenant's own.
        former_slugs: The slugs that led to the tenant.
        piped: What the dump was before it was piped through a program; None if it was not.
    """

    id: int
    slug: str
    schema: SchemaName
    name: str
    created_at: datetime
    made_at: datetime
    server_version: int
    migrations: tuple[AppliedMigration, ...]
    rows: RowsOnly | None = None
    shadows: bool = False
    size: int = 0
    sha256: str = "0" * 64
    domains: tuple[OwnDomain, ...] = ()
    former_slugs: tuple[FormerSlug, ...] = ()
    piped: Piped | None = None

    @property
    def content(self) -> str:
        """The name of the dump in the tar."""
        return _DUMP if self.rows is None else _ROWS

    @property
    def version(self) -> int:
        """The number of the newest migration; 0 for none."""
        return max((migration.version for migration in self.migrations), default=0)


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
        self._manifest_size = len(_serialize(backup)) + _ROOM_FOR_SIZES
        self._write_start()

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
        self._backup = replace(self._backup, size=self._size, sha256=self._digest.hexdigest(), piped=piped)
        self._file.seek(0)
        self._write_start()
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._backup

    def _write_start(self) -> None:
        # JSON ignores blanks at the end, so the dump begins at the same position both times.
        manifest = _serialize(self._backup).ljust(self._manifest_size)
        made_at = self._backup.made_at.timestamp()
        self._file.write(_make_header(_MANIFEST, len(manifest), made_at))
        self._file.write(manifest + b"\0" * (-len(manifest) % tarfile.BLOCKSIZE))
        self._file.write(_make_header(self._backup.content, self._size, made_at))


@contextlib.contextmanager
def write_backup(file: Path, backup: Backup, *, force: bool) -> Iterator[BackupWriter]:
    """Write *file*. It gets its name only if the block ends without an error; otherwise nothing is left.

    Only its owner may read it, because it holds the rows of the tenant.

    Raises:
        BackupFileError: *file* exists and *force* is not given, or it cannot be written.
    """
    refuse_existing(file, force=force)
    try:
        # It has mode 0600, and is in the same folder because a rename cannot cross file systems.
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name[:100]}.", dir=file.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                yield BackupWriter(temporary, opened, backup)
            refuse_existing(file, force=force)
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BackupFileError(str(file), f"cannot be written: {error.strerror or error}") from error


def refuse_existing(file: Path, *, force: bool) -> None:
    """Make sure that *file* may be written, before the long work of a backup begins.

    Raises:
        BackupFileError: It exists, or its folder does not.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise BackupFileError(str(file), "cannot be written: give a file in a folder that exists")
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise BackupFileError(str(file), f"cannot be written: {error.strerror or error}") from error
    # A rename would replace a pipe, a device or a link such as /dev/stdout.
    if not stat.S_ISREG(mode):
        raise BackupFileError(str(file), "cannot be written: it exists and is no regular file; choose another name")
    if not force:
        raise BackupFileError(str(file), "exists already; choose another name, or replace it with --force")


def read_backup(file: Path) -> Backup:
    """Read what *file* says about itself, without a check of the dump.

    Raises:
        BackupFileError: It is no backup, or cannot be read.
    """
    try:
        with file.open("rb", buffering=0) as opened:
            return _read_start(file, opened)[0]
    except OSError as error:
        raise BackupFileError(str(file), f"cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def open_backup(file: Path) -> Iterator[tuple[Backup, BinaryIO]]:
    """Read and check all of *file*; lend its manifest, and the open file at the start of the dump.

    Raises:
        BackupFileError: It is no backup, is damaged, or cannot be read.
    """
    try:
        opened = file.open("rb", buffering=0)
    except OSError as error:
        raise BackupFileError(str(file), f"cannot be read: {error.strerror or error}") from error
    with opened:
        try:
            backup, start = _read_start(file, opened)
            _check_dump(file, opened, backup, start)
        except OSError as error:
            raise BackupFileError(str(file), f"cannot be read: {error.strerror or error}") from error
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


def digest_manifest(told: Mapping[str, Any]) -> str:
    """Return the digest of what a manifest says, in hex."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


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
        told = json.loads(text)
        if told["format"] not in _FORMATS:
            raise BackupFileError(
                str(file),
                f"has format {told['format']!r}, and this program reads up to format {_FORMATS[-1]}: "
                "use the program that made it",
            )
        # A file of an older program has no digest.
        if told.pop("digest", None) not in (None, digest_manifest(told)):
            raise BackupFileError(str(file), f"is damaged: {_MANIFEST} is not as it was written")
        backup = _parse(told)
    except (ValueError, TypeError, KeyError, AttributeError, InvalidSchemaNameError) as error:
        raise BackupFileError(str(file), f"is no backup of a tenant: its {_MANIFEST} cannot be understood") from error
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


def _serialize(backup: Backup) -> bytes:
    told = asdict(backup)
    dump = {"size": told.pop("size"), "sha256": told.pop("sha256")}
    told["schema"] = backup.schema.name
    told = {"format": 1 if backup.rows is None else 2} | told | {"dump": dump}
    # As a reader finds it: the times are texts.
    told = json.loads(json.dumps(told, default=datetime.isoformat))
    return json.dumps(told | {"digest": digest_manifest(told)}, indent=1).encode()


def _parse(told: Mapping[str, Any]) -> Backup:
    """Return the backup that a manifest describes. A wrong manifest raises one of several errors of Python."""
    piped = told.get("piped")
    backup = Backup(
        id=told["id"],
        slug=told["slug"],
        # A restore renames the schema of this name, so it must not be the registry's or public.
        schema=parse_schema_name(told["schema"]),
        name=told["name"],
        created_at=datetime.fromisoformat(told["created_at"]),
        made_at=datetime.fromisoformat(told["made_at"]),
        server_version=told["server_version"],
        migrations=tuple(AppliedMigration(**migration) for migration in told["migrations"]),
        rows=None if told["format"] == 1 else RowsOnly(told["rows"]["shape"], tuple(told["rows"]["views"])),
        # A file of an older program does not say.
        shadows=bool(told.get("shadows")),
        size=told["dump"]["size"],
        sha256=told["dump"]["sha256"],
        # Files that are older than these lack them.
        domains=tuple(OwnDomain(**domain) for domain in told.get("domains", ())),
        former_slugs=tuple(
            FormerSlug(former["slug"], datetime.fromisoformat(former["redirect_until"]))
            for former in told.get("former_slugs", ())
        ),
        piped=None if piped is None else Piped(**piped),
    )
    texts: list[Any] = [backup.slug, backup.schema.name, backup.name, backup.sha256]
    if backup.rows is not None:
        texts += [backup.rows.shape, *backup.rows.views]
    numbers: list[Any] = [backup.id, backup.server_version, backup.size]
    for own in backup.domains:
        texts += [own.domain, own.token]
    texts += [former.slug for former in backup.former_slugs]
    if backup.piped is not None:
        texts += [backup.piped.program, backup.piped.sha256]
        numbers.append(backup.piped.size)
    for migration in backup.migrations:
        texts += [migration.name, migration.sha256]
        numbers.append(migration.version)
    if not all(isinstance(text, str) and text.isprintable() for text in texts):
        raise TypeError("a text is none")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TypeError("a number is none")
    return backup


def _make_header(name: str, size: int, made_at: float) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, int(made_at), 0o600
    # In this format one block is enough, also for more than 8 GiB. ustar has no such size; pax needs two more blocks.
    return member.tobuf(tarfile.GNU_FORMAT)


def _is_no_backup(file: Path) -> BackupFileError:
    return BackupFileError(str(file), "is no backup of a tenant: the command `backup` makes one")


def _is_truncated(file: Path) -> BackupFileError:
    return BackupFileError(str(file), "is truncated: copy it again from where it was made")
