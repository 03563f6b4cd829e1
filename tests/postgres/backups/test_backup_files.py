"""What is in a backup's file, who may read it, and what is left of a backup that fails: nothing."""

import asyncio
import gzip
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from quart_tenants.errors import (
    BackupFileError,
    TenantExistsError,
    UnknownTenantError,
)
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.backup_files import get_reader_version, open_backup
from quart_tenants.postgres.backups.restore import copy_tenant, restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from tests.postgres.backups.parts import ACME, COPY, GLOBEX, fetch, fill, outside, wait_for_waiting

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["rows", "dump"])
async def test_backup_is_a_private_tar_that_says_what_it_is(backup_file: Path, dump_file: Path, kind: str) -> None:
    """The file is a plain tar of two members, and only its owner may read it: it holds password hashes."""
    file = {"rows": backup_file, "dump": dump_file}[kind]
    content, number, slug, magic = {
        "rows": ("rows.sql.gz", 2, "acme", b"\x1f\x8b"),
        "dump": ("schema.dump", 1, "globex", b"PGDMP"),
    }[kind]

    with tarfile.open(file, "r:") as tar:
        names = tar.getnames()
        manifest = json.load(tar.extractfile("tenant.json") or io.BytesIO())
        dump = (tar.extractfile(content) or io.BytesIO()).read()

    assert names == ["tenant.json", content]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert dump.startswith(magic)
    assert (manifest["format"], manifest["slug"], manifest["schema"]) == (number, slug, slug)
    assert manifest["dump"]["size"] == len(dump)
    assert [migration["version"] for migration in manifest["migrations"]] == [1]
    assert {path.name for path in file.parent.iterdir()} == {"acme.tar", "globex.tar"}


async def test_rows_of_a_backup_are_the_sql_that_loads_them(backup_file: Path) -> None:
    """Whoever has lost everything else can read the rows with gzip and any text editor."""
    with tarfile.open(backup_file, "r:") as tar:
        rows = gzip.decompress((tar.extractfile("rows.sql.gz") or io.BytesIO()).read()).decode()

    assert "COPY acme.app_user (id, username, password) FROM stdin;\n1\ta\thash a\n2\tb\thash b\n\\.\n" in rows
    assert "SELECT pg_catalog.setval('acme.app_user_id_seq', 2, 't');\n" in rows


async def test_programs_that_restore_are_as_new_as_those_that_wrote(dump_file: Path) -> None:
    """A server may be older than the programs that made the backup, and older ones cannot read what they wrote."""
    with open_backup(dump_file) as (_, dump):
        written_by = get_reader_version(dump)
        rest = dump.read(5)

    needed = [
        get_reader_version(io.BytesIO(b"PGDMP" + bytes(found)))
        for found in ((), (1, 14, 0), (1, 15, 0), (1, 16, 0), (1, 17, 0), (2, 0, 0))
    ]
    # PostgreSQL 17 and 18 write the same.
    assert (written_by, rest) == (17, b"PGDMP")
    assert needed == [12, 12, 16, 17, 18, 18]


async def test_existing_file_is_replaced_only_by_force(
    database: Database, settings: Settings, backup_file: Path
) -> None:
    """A backup never overwrites a file unless told to, and then in one step."""
    before = backup_file.read_bytes()

    with pytest.raises(BackupFileError, match="--force"):
        await backup_tenant(database, GLOBEX, backup_file, settings=settings)
    assert backup_file.read_bytes() == before
    backup = await backup_tenant(database, GLOBEX, backup_file, settings=settings, force=True)

    assert backup.slug == GLOBEX
    assert backup_file.read_bytes() != before


def describe_file(file: Path) -> tuple[int, ...]:
    """Return what a change of *file* itself would change. Whoever looks through a link changes when it was read."""
    found = file.lstat()
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize("kind", ["pipe", "link", "link to nothing"])
async def test_what_is_no_regular_file_is_never_replaced(
    database: Database, settings: Settings, tmp_path: Path, kind: str
) -> None:
    """A pipe, a device or a link such as /dev/stdout stays what it is, also with force."""
    file, target = tmp_path / "acme.tar", tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(target)
    if kind == "link":
        target.write_text("precious")
    before = describe_file(file)

    for force in (False, True):
        with pytest.raises(BackupFileError, match="no regular file"):
            await backup_tenant(database, ACME, file, settings=settings, force=force)

    assert describe_file(file) == before


async def test_backup_that_fails_or_is_cancelled_leaves_nothing(
    database: Database, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    """Neither a half file nor a program stays behind when a backup does not come to its end."""
    file = tmp_path / "acme.tar"
    async with outside(database_url) as connection, connection.transaction():
        await connection.execute("LOCK TABLE acme.app_user IN ACCESS EXCLUSIVE MODE")
        backing_up = asyncio.create_task(backup_tenant(database, ACME, file, settings=settings))
        await wait_for_waiting(connection)
        assert [path.suffix for path in tmp_path.iterdir()] != []
        backing_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await backing_up
    assert list(tmp_path.iterdir()) == []

    with pytest.raises(UnknownTenantError):
        await backup_tenant(database, Slug("nobody"), file, settings=settings)
    with pytest.raises(BackupFileError, match="a folder that exists"):
        await backup_tenant(database, ACME, tmp_path / "nowhere" / "acme.tar", settings=settings)

    assert list(tmp_path.iterdir()) == []


async def test_backup_is_of_one_moment(database: Database, settings: Settings, acme: Tenant, tmp_path: Path) -> None:
    """What one transaction writes while the backup runs is in it as a whole, or not at all."""
    await fill(database, acme, "CREATE TABLE a_first (n integer); CREATE TABLE z_last (n integer)")
    written = 0
    done = asyncio.Event()

    async def write_pairs() -> None:
        nonlocal written
        while not done.is_set():
            await fill(database, acme, "INSERT INTO a_first VALUES (1); INSERT INTO z_last VALUES (1)")
            written += 1

    writing = asyncio.create_task(write_pairs())
    counts = []
    for number in range(3):
        file = tmp_path / f"{number}.tar"
        await backup_tenant(database, ACME, file, settings=settings)
        restored = await restore_tenant(database, file, Slug(f"copy{number}"), settings=settings)
        async with database.tenant_connection(restored) as connection:
            pair = await connection.fetchrow("SELECT (SELECT count(*) FROM a_first), (SELECT count(*) FROM z_last)")
        counts.append(tuple(pair or ()))
    done.set()
    await writing

    assert all(first == last for first, last in counts)
    assert 0 < counts[-1][0] < written
    assert counts == sorted(counts)


async def test_naive_backup_mixes_moments(database: Database, acme: Tenant) -> None:
    """Negative control: tables that are read one after the other do not belong together."""
    await fill(database, acme, "CREATE TABLE a_first (n integer); CREATE TABLE z_last (n integer)")

    first = await fetch(database, "SELECT n FROM acme.a_first")
    await fill(database, acme, "INSERT INTO a_first VALUES (1); INSERT INTO z_last VALUES (1)")
    last = await fetch(database, "SELECT n FROM acme.z_last")

    assert first != last


async def test_two_copies_to_one_name_make_one_tenant(database: Database, settings: Settings) -> None:
    """The slower of two gets to know that the name is taken, and has changed nothing."""
    outcomes = await asyncio.gather(
        *(copy_tenant(database, ACME, COPY, name, settings=settings) for name in ("one", "two")), return_exceptions=True
    )

    (copy,) = [outcome for outcome in outcomes if isinstance(outcome, Tenant)]
    (error,) = [outcome for outcome in outcomes if outcome is not copy]
    assert isinstance(error, TenantExistsError)
    assert copy == await get_tenant(database, COPY)
