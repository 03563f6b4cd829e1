"""A backup that is piped through a program: nothing of it is plain on the disk, and it comes back whole or not."""

import asyncio
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quart_tenants.errors import BackupFileError, ClientProgramError
from quart_tenants.postgres.backup_folders.backup_all import backup_all_tenants
from quart_tenants.postgres.backup_folders.backup_folder import read_folder
from quart_tenants.postgres.backup_folders.folder_manifest import MANIFEST
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.backup_files import open_backup, read_backup
from quart_tenants.postgres.backups.pipes import Pipe, parse_pipe
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.postgres.backups.parts import ACME, COPY, fill, remember
from tests.support.patience import wait_until

pytestmark = pytest.mark.slow

SECRET = "a note that nobody may read"
# pg_dump compresses rows, so a secret is not found in a plain dump either: the name of a table stands there as it is.
TABLE = "table_that_nobody_may_know"


def run_python(script: str) -> Pipe:
    """Return a program that runs *script*."""
    return parse_pipe(shlex.join([sys.executable, "-c", script]))


# It stands for a program that encrypts: what comes out has no byte of what went in, and it undoes itself.
SCRAMBLE = run_python(
    "import sys\nwhile chunk := sys.stdin.buffer.read1(65536): sys.stdout.buffer.write(bytes(b ^ 255 for b in chunk))"
)
UNCHANGED = run_python("import shutil, sys; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)")
FAILING = run_python("import sys; sys.stdin.buffer.read(); sys.exit('no key')")
DEAF = run_python("import sys; sys.exit('no key')")
CUTTING = run_python("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[:100])")


@pytest.fixture
async def secretive(database: Database, acme: Tenant) -> None:
    """Give acme a table with rows, which are more than a pipe holds."""
    await fill(database, acme, f"CREATE TABLE {TABLE} (body text); INSERT INTO {TABLE} VALUES ('{SECRET}')")
    await fill(database, acme, f"INSERT INTO {TABLE} SELECT md5(n::text) FROM generate_series(1, 20000) AS n")


@pytest.mark.usefixtures("secretive")
async def test_piped_backup_comes_back_and_hides_what_it_holds(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    """Neither rows nor names of tables are in the file; the program that undoes it brings all of them back."""
    file, plain = tmp_path / "acme.tar", tmp_path / "plain.tar"

    await backup_tenant(database, ACME, file, settings=settings, pipe=SCRAMBLE)
    await backup_tenant(database, ACME, plain, settings=settings)
    restored = await restore_tenant(database, file, COPY, settings=settings, pipe=SCRAMBLE)

    assert TABLE.encode() not in file.read_bytes()
    # Negative control: without the program it stands there.
    assert TABLE.encode() in plain.read_bytes()
    assert (read_backup(file).slug, read_backup(file).version) == ("acme", 1)
    async with database.tenant_connection(restored) as connection:
        assert await connection.fetchval(f"SELECT body FROM {TABLE} LIMIT 1") == SECRET
        assert await connection.fetchval(f"SELECT count(*) FROM {TABLE}") == 20001


@pytest.mark.usefixtures("secretive")
@pytest.mark.parametrize(
    ("pipe", "error", "words"),
    [
        (None, BackupFileError, "was piped through python"),
        (UNCHANGED, BackupFileError, "what comes out differs"),
        (CUTTING, BackupFileError, "what comes out differs"),
        (FAILING, ClientProgramError, "ended with status 1: no key"),
        (DEAF, ClientProgramError, "ended with status 1: no key"),
    ],
)
async def test_piped_backup_is_restored_by_the_right_program_only(
    database: Database, settings: Settings, tmp_path: Path, pipe: Pipe | None, error: type[Exception], words: str
) -> None:
    """What comes out of the program must be what went in, to the last byte; otherwise nothing is restored."""
    file = tmp_path / "acme.tar"
    await backup_tenant(database, ACME, file, settings=settings, pipe=SCRAMBLE)
    before = await remember(database)

    with pytest.raises(error, match=words):
        await restore_tenant(database, file, COPY, settings=settings, pipe=pipe)

    assert await remember(database) == before


@pytest.mark.usefixtures("secretive")
@pytest.mark.parametrize("pipe", [FAILING, DEAF])
async def test_backup_fails_if_its_program_fails(
    database: Database, settings: Settings, tmp_path: Path, pipe: Pipe
) -> None:
    """A program that ends with an error, read or not, leaves no file, and its words are told."""
    with pytest.raises(ClientProgramError, match="ended with status 1: no key"):
        await backup_tenant(database, ACME, tmp_path / "acme.tar", settings=settings, pipe=pipe)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("secretive")
async def test_cancelled_backup_ends_its_program(database: Database, settings: Settings, tmp_path: Path) -> None:
    """A program that never ends is killed with the backup that waits for it."""
    waiting = tmp_path / "waiting"
    endless = run_python(f"import pathlib, signal; pathlib.Path({str(waiting)!r}).touch(); signal.pause()")
    backing_up = asyncio.create_task(
        backup_tenant(database, ACME, tmp_path / "acme.tar", settings=settings, pipe=endless)
    )

    async def look() -> bool:
        return waiting.exists()

    await wait_until(look)
    backing_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await backing_up

    assert [path.name for path in tmp_path.iterdir()] == ["waiting"]


async def test_piped_rows_come_back(database: Database, settings: Settings, acme: Tenant, tmp_path: Path) -> None:
    """A backup of rows only is piped and comes back as one with a dump does."""
    file = tmp_path / "acme.tar"
    await fill(database, acme, "INSERT INTO app_user (username, password) VALUES ('a', 'hash a')")

    backup = await backup_tenant(database, ACME, file, settings=settings, pipe=SCRAMBLE)
    restored = await restore_tenant(database, file, COPY, settings=settings, pipe=SCRAMBLE)

    assert backup.rows is not None
    async with database.tenant_connection(restored) as connection:
        assert await connection.fetchval("SELECT count(*) FROM app_user WHERE username = 'a'") == 1


async def test_plain_backup_is_not_piped_at_its_restore(
    backup_file: Path, database: Database, settings: Settings
) -> None:
    """A program for a backup that was not piped is a mistake, and is told as one."""
    with pytest.raises(BackupFileError, match="without --pipe"):
        await restore_tenant(database, backup_file, COPY, settings=settings, pipe=SCRAMBLE)


async def test_piped_backup_can_be_checked_without_the_key(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    """Damage of a piped file is found without its program, and a folder of such files is read without a manifest."""
    folder = tmp_path / "backups"
    report = await backup_all_tenants(database, folder, settings=settings, pipe=SCRAMBLE)
    (folder / MANIFEST).unlink()
    read = read_folder(folder)
    file = folder / read.backups[0].file
    content = bytearray(file.read_bytes())
    # Scrambled, gzip begins so.
    content[content.index(b"\xe0\x74") + 20] ^= 1
    file.write_bytes(content)

    assert sorted(backup.slug for backup in read.backups) == sorted(backup.slug for backup in report.made)
    with pytest.raises(BackupFileError, match="sha256"), open_backup(file):
        pass


@pytest.mark.parametrize(
    ("text", "words"), [("", "no program ''"), ("no-such-program -x", "'no-such-program'"), ("age 'x", "quotation")]
)
def test_command_that_cannot_run_is_told(text: str, words: str) -> None:
    """A program that is not there, or quotes that do not match, are an error before anything begins."""
    with pytest.raises(ClientProgramError, match=words):
        parse_pipe(text)


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    """What a shell would run is one argument among others."""
    pipe = parse_pipe(f"cat '; touch {tmp_path}/made' $HOME")

    assert pipe.arguments == (f"; touch {tmp_path}/made", "$HOME")
    assert "made" not in repr(pipe)


@pytest.mark.skipif(shutil.which("age-keygen") is None, reason="needs age")
@pytest.mark.usefixtures("secretive")
async def test_backup_that_age_encrypted_comes_back(database: Database, settings: Settings, tmp_path: Path) -> None:
    """What is encrypted by the public key of age comes back by the secret one, and not by another."""
    for name in ("key", "other"):
        subprocess.run(["age-keygen", "-o", tmp_path / name], check=True, capture_output=True)
    public = subprocess.run(["age-keygen", "-y", tmp_path / "key"], check=True, capture_output=True, text=True).stdout
    file = tmp_path / "acme.tar"

    await backup_tenant(database, ACME, file, settings=settings, pipe=parse_pipe(f"age -r {public}"))
    with pytest.raises(ClientProgramError, match="age ended with status 1"):
        await restore_tenant(database, file, COPY, settings=settings, pipe=parse_pipe(f"age -d -i {tmp_path}/other"))
    await restore_tenant(database, file, COPY, settings=settings, pipe=parse_pipe(f"age -d -i {tmp_path}/key"))

    assert b"age-encryption.org" in file.read_bytes()
    assert TABLE.encode() not in file.read_bytes()
