"""What a backup says about itself: its manifest, as JSON with a digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from quart_tenants.errors import InvalidSchemaNameError
from quart_tenants.tenant import SchemaName, parse_schema_name

# The second one is of rows only, which an older program would take for a damaged dump.
FORMATS = (1, 2)
_DUMP, _ROWS = "schema.dump", "rows.sql.gz"


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
    """

    shape: str


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
        settings: What the app remembered about the tenant. With *piped* it is empty.

    Example:
        ```python
        backup = await backup_tenant(database, parse_slug("acme"), Path("acme.tar"), settings=settings)
        print(backup.slug, backup.version, backup.size)
        ```
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
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> str:
        """The name of the dump in the tar."""
        return _DUMP if self.rows is None else _ROWS

    @property
    def version(self) -> int:
        """The number of the newest migration; 0 for none."""
        return max((migration.version for migration in self.migrations), default=0)


class ManifestError(ValueError):
    """A text is no manifest. The text of the error is the end of a sentence about the file."""


def digest_manifest(told: Mapping[str, Any]) -> str:
    """Return the digest of what a manifest says, in hex."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def serialize(backup: Backup) -> bytes:
    """Return the manifest of *backup*."""
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
        rows=None if told["format"] == 1 else RowsOnly(told["rows"]["shape"]),
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
        settings=dict(told.get("settings", {})),
    )
    texts: list[Any] = [backup.slug, backup.schema.name, backup.name, backup.sha256]
    if backup.rows is not None:
        texts.append(backup.rows.shape)
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


def parse_manifest(text: bytes) -> Backup:
    """Return the backup that a manifest describes.

    Raises:
        ManifestError: It is none, is damaged, or is of a newer program.
    """
    try:
        told = json.loads(text)
        if told["format"] not in FORMATS:
            raise ManifestError(
                f"has format {told['format']!r}, and this program reads up to format {FORMATS[-1]}: "
                "use the program that made it"
            )
        # A file of an older program has no digest.
        if told.pop("digest", None) not in (None, digest_manifest(told)):
            raise ManifestError("is damaged: tenant.json is not as it was written")
        return _parse(told)
    except ManifestError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, InvalidSchemaNameError) as error:
        raise ManifestError("is no backup of a tenant: its tenant.json cannot be understood") from error
