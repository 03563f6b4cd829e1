"""Name the files of a folder of backups, and describe what is in one."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from quart_tenants.postgres.backups.backup_files import open_backup
from quart_tenants.postgres.backups.manifests import Backup
from quart_tenants.postgres.backups.whole_files import UNREADABLE, file_errors
from quart_tenants.tenant import SLUG_PATTERN, Slug

# They sort by tenant and then by time. A slug has no underscore.
_NAME = re.compile(rf"[0-9]{{8,19}}_[0-9]{{8}}T[0-9]{{6}}\.[0-9]{{6}}Z_{SLUG_PATTERN}\.tar")


@dataclass(frozen=True, slots=True)
class StoredBackup:
    """A file in a folder of backups that was good when it was last read.

    Attributes:
        file: Its name in the folder.
        size: Its size in bytes.
        sha256: The digest of the whole file in hex.
        tenant_id: The tenant's number.
        slug: The tenant's slug at that time.
        created_at: When the tenant was made.
        made_at: When the backup was made, by the clock of the database.
        version: The number of the tenant's newest migration.
        server_version: The version of the PostgreSQL server, for example 180001.
    """

    file: str
    size: int
    sha256: str
    tenant_id: int
    slug: str
    created_at: datetime
    made_at: datetime
    version: int
    server_version: int

    @property
    def tenant(self) -> tuple[int, datetime]:
        """Which tenant it is, also after a rename."""
        return self.tenant_id, self.created_at


def name_backup(tenant_id: int, slug: Slug) -> str:
    """Return the name of a file for a backup that begins now."""
    return f"{tenant_id:08}_{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}_{slug}.tar"


def is_backup_name(name: str) -> bool:
    """Return whether *name* looks like one that `name_backup` made."""
    return _NAME.fullmatch(name) is not None


def describe_backup(file: Path, backup: Backup) -> StoredBackup:
    """Read all of *file* for its digest, and describe it.

    Args:
        file: The file.
        backup: What its own manifest says.

    Raises:
        BackupFileError: It cannot be read.
    """
    with file_errors(file, UNREADABLE), file.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        size = opened.tell()
    return StoredBackup(
        file=file.name,
        size=size,
        sha256=sha256,
        tenant_id=backup.id,
        slug=backup.slug,
        created_at=backup.created_at,
        made_at=backup.made_at,
        version=backup.version,
        server_version=backup.server_version,
    )


def check_backup(file: Path) -> StoredBackup:
    """Check all of *file*, and describe it by what it says itself.

    Raises:
        BackupFileError: It is no backup, is damaged, or cannot be read.
    """
    with open_backup(file) as (backup, _):
        return describe_backup(file, backup)
