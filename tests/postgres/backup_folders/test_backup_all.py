"""A run over all tenants: one good file for each, or an error that is named; what was interrupted is taken up."""

import asyncio
import json
import signal
import subprocess
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from quart_tenants.errors import BackupFileError, UnknownTenantError
from quart_tenants.postgres.backup_folders import folder_manifest
from quart_tenants.postgres.backup_folders.backup_all import backup_all_tenants
from quart_tenants.postgres.backup_folders.backup_folder import open_folder, read_folder
from quart_tenants.postgres.backup_folders.folder_manifest import MANIFEST
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.tenants.lifecycle import rename_tenant
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from tests.postgres.backups.parts import ACME, GLOBEX, fetch, fill, outside, wait_for_waiting
from tests.support.patience import DEADLINE
from tests.support.processes import PROGRAM, make_environment, run_warm_program

pytestmark = pytest.mark.slow

EVERYBODY = ["acme", "globex", "company1", "company2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "backups"


def list_slugs(folder: Path) -> list[str]:
    """Return whose good files are in *folder*, in order."""
    return sorted(backup.slug for backup in read_folder(folder).backups)


def age(folder: Path, days: float) -> None:
    """Let the files of *folder*, and its last run, be older than they are."""
    file = folder / MANIFEST
    told = json.loads(file.read_text())
    del told["format"], told["sha256"]
    for of in (told["run"], *told["backups"]):
        for name in {"began_at", "ended_at", "made_at"} & set(of):
            of[name] = of[name] and (datetime.fromisoformat(of[name]) - timedelta(days=days)).isoformat()
    # The digest is of what the program itself would write.
    digest = folder_manifest._digest(told)
    file.write_text(folder_manifest._dump({"format": 1, "sha256": digest} | told))


async def test_every_tenant_has_a_private_file_that_can_be_restored(
    database: Database, settings: Settings, acme: Tenant, folder: Path
) -> None:
    """A run writes one file for each tenant, which only its owner may read, and a manifest that names them."""
    await fill(database, acme, "INSERT INTO app_user (username, password) VALUES ('a', 'hash a')")

    report = await backup_all_tenants(database, folder, settings=settings)

    assert sorted(backup.slug for backup in report.made) == sorted(EVERYBODY)
    assert (report.failed, report.left, report.damaged, report.notes) == ([], [], {}, [])
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    (stored,) = [backup for backup in report.made if backup.slug == "acme"]
    assert stored.file.startswith(f"{acme.id:08}_2")
    assert stored.file.endswith("Z_acme.tar")
    assert json.loads((folder / MANIFEST).read_text())["format"] == 1
    restored = await restore_tenant(database, folder / stored.file, Slug("again"), settings=settings)
    async with database.tenant_connection(restored) as connection:
        assert await connection.fetchval("SELECT count(*) FROM app_user WHERE username = 'a'") == 1


async def test_tenant_that_fails_does_not_hold_up_the_others(
    database: Database, settings: Settings, database_url: str, folder: Path
) -> None:
    """A tenant that cannot be backed up is in the report with its error, and all others have their file."""
    async with outside(database_url) as connection:
        await connection.execute("DROP SCHEMA acme CASCADE")

    report = await backup_all_tenants(database, folder, settings=settings)

    assert [slug for slug, _ in report.failed] == ["acme"]
    assert list_slugs(folder) == ["company1", "company2", "globex"]
    assert not [path for path in folder.iterdir() if "acme" in path.name]


@pytest.fixture
async def interrupted_folder(database: Database, settings: Settings, database_url: str, folder: Path) -> Path:
    """The folder of a run that was cancelled at the last tenant, as by Ctrl-C."""
    async with outside(database_url) as connection, connection.transaction():
        await connection.execute("LOCK TABLE company2.app_user IN ACCESS EXCLUSIVE MODE")
        running = asyncio.create_task(backup_all_tenants(database, folder, settings=settings, jobs=1))
        await wait_for_waiting(connection)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    return folder


async def test_run_that_was_cancelled_is_taken_up(
    database: Database, settings: Settings, interrupted_folder: Path
) -> None:
    """After a Ctrl-C the next run does only the tenants that have no file yet, and the one after that all of them."""
    finished = list_slugs(interrupted_folder)

    second = await backup_all_tenants(database, interrupted_folder, settings=settings)
    third = await backup_all_tenants(database, interrupted_folder, settings=settings)

    assert 0 < len(finished) < len(EVERYBODY)
    assert (second.resumed, sorted(backup.slug for backup in second.made)) == (
        len(finished),
        sorted(set(EVERYBODY) - set(finished)),
    )
    assert (third.resumed, len(third.made)) == (0, 4)
    assert third.began_at > second.began_at


async def test_old_interruption_is_not_taken_up(
    database: Database, settings: Settings, interrupted_folder: Path
) -> None:
    """What was interrupted the night before does not count as done tonight."""
    age(interrupted_folder, 0.6)

    report = await backup_all_tenants(database, interrupted_folder, settings=settings)

    assert (report.resumed, len(report.made)) == (0, 4)


async def test_run_that_was_killed_is_taken_up(
    database: Database, settings: Settings, database_url: str, folder: Path, tmp_path: Path
) -> None:
    """After kill -9 the next run reads what is finished, deletes what is half written, and does the rest."""
    async with outside(database_url) as connection, connection.transaction():
        await connection.execute("LOCK TABLE company2.app_user IN ACCESS EXCLUSIVE MODE")
        command = ("backup", "--all", "-o", folder, "--jobs", "1")
        with run_warm_program(*command, log=tmp_path / "log", QUART_TENANTS_DATABASE_URL=database_url) as process:
            await wait_for_waiting(connection)
            process.send_signal(signal.SIGKILL)
            process.wait(DEADLINE)
    left = [path.name for path in folder.iterdir() if path.name.startswith(".0")]
    told = json.loads((folder / MANIFEST).read_text())

    report = await backup_all_tenants(database, folder, settings=settings)

    assert len(left) == 1
    assert (told["run"]["ended_at"], told["backups"]) == (None, [])
    assert report.resumed > 0
    assert report.resumed + len(report.made) == 4
    assert [path.name for path in folder.iterdir() if path.name in left] == []
    assert list_slugs(folder) == sorted(EVERYBODY)


async def test_second_run_into_a_folder_refuses(database: Database, settings: Settings, folder: Path) -> None:
    """Two runs never write into one folder at once."""
    with open_folder(folder):
        with pytest.raises(BackupFileError, match="in use by another"):
            await backup_all_tenants(database, folder, settings=settings)
        assert [path.name for path in folder.iterdir()] == [".lock"]

    assert len((await backup_all_tenants(database, folder, settings=settings)).made) == 4


async def test_tenant_that_is_renamed_or_made_meanwhile_has_its_file(
    database: Database, settings: Settings, database_url: str, folder: Path
) -> None:
    """A tenant whose slug changes between the plan and its turn is backed up under its new slug."""
    async with outside(database_url) as connection, connection.transaction():
        await connection.execute("LOCK TABLE acme.app_user IN ACCESS EXCLUSIVE MODE")
        running = asyncio.create_task(backup_all_tenants(database, folder, settings=settings, jobs=1))
        await wait_for_waiting(connection)
        await rename_tenant(database, GLOBEX, Slug("zenith"), settings=settings)
    report = await running

    assert (report.failed, report.left) == ([], [])
    assert list_slugs(folder) == ["acme", "company1", "company2", "zenith"]


async def test_tenants_of_a_naive_run_are_missed_after_a_rename(database: Database, settings: Settings) -> None:
    """Negative control: whoever lists the slugs first and backs each up later does not find a renamed tenant."""
    slugs = [Slug(slug) for slug in await fetch(database, "SELECT slug FROM quart_tenants.tenants")]
    await rename_tenant(database, GLOBEX, Slug("zenith"), settings=settings)

    assert GLOBEX in slugs
    with pytest.raises(UnknownTenantError):
        await backup_tenant(database, GLOBEX, Path("never written"), settings=settings)


async def test_run_stops_when_the_folder_is_full(
    database: Database, settings: Settings, database_url: str, folder: Path
) -> None:
    """Where nothing can be written the run ends at once, because the others would fail, too; nothing is left."""
    # A limit of 1 KB for a file stands for a full disk. The first manifest is smaller than that.
    command = ["sh", "-c", 'ulimit -f 2; exec "$@"', "sh", str(PROGRAM), "backup", "--all", "--jobs", "1", "-o"]
    environment = make_environment(QUART_TENANTS_DATABASE_URL=database_url, QUART_TENANTS_AUDIT="false")
    full = await asyncio.to_thread(
        subprocess.run, [*command, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    names = sorted(path.name for path in folder.iterdir())
    report = await backup_all_tenants(database, folder, settings=settings)

    assert full.returncode == 1
    assert "File too large" in full.stderr
    assert "stopped: the others would fail, too" in full.stderr
    assert "backed up 0 tenants" in full.stdout
    assert "1 failed, 3 not tried" in full.stdout
    assert names == [".lock", MANIFEST]
    assert (len(report.made), report.notes) == (4, [])


async def test_old_files_go_only_behind_a_newer_good_one(
    database: Database, settings: Settings, database_url: str, folder: Path
) -> None:
    """`keep_days` deletes old files of tenants that have a newer one; the only file of a tenant stays."""
    first = await backup_all_tenants(database, folder, settings=settings)
    age(folder, 10)
    async with outside(database_url) as connection:
        await connection.execute("ALTER SCHEMA globex RENAME TO away")

    second = await backup_all_tenants(database, folder, settings=settings, keep_days=7)

    assert [slug for slug, _ in second.failed] == ["globex"]
    assert sorted(backup.slug for backup in second.deleted) == ["acme", "company1", "company2"]
    assert list_slugs(folder) == sorted(EVERYBODY)
    (kept,) = [backup for backup in first.made if backup.slug == "globex"]
    assert (folder / kept.file).exists()


async def test_older_file_stays_if_the_newest_is_damaged(
    database: Database, settings: Settings, database_url: str, folder: Path
) -> None:
    """Before an old file goes, the newest one is read again; if it is damaged, both stay and the run says so."""
    await backup_all_tenants(database, folder, settings=settings)
    await backup_all_tenants(database, folder, settings=settings)
    older, newest = sorted(folder.glob("*_globex.tar"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    age(folder, 10)
    async with outside(database_url) as connection:
        await connection.execute("ALTER SCHEMA globex RENAME TO away")

    report = await backup_all_tenants(database, folder, settings=settings, keep_days=7)

    assert list(report.damaged) == [newest.name]
    assert (older.exists(), newest.exists()) == (True, True)
    assert "globex" not in {backup.slug for backup in report.deleted}


async def test_files_from_a_wrong_future_do_not_count_as_done(
    database: Database, settings: Settings, interrupted_folder: Path
) -> None:
    """After the database's clock was set back a run backs up everybody, whatever the files before it say."""
    age(interrupted_folder, -10)

    interrupted_in_future = await backup_all_tenants(database, interrupted_folder, settings=settings)
    age(interrupted_folder, -10)
    ended_in_future = await backup_all_tenants(database, interrupted_folder, settings=settings)

    assert [(report.resumed, len(report.made)) for report in (interrupted_in_future, ended_in_future)] == [(0, 4)] * 2


async def test_clock_of_the_database_that_is_ahead_deletes_no_files(
    database: Database, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files go when they are old by both clocks; by that of the database alone, a month would go in one night."""
    true_time = time.time
    await backup_all_tenants(database, folder, settings=settings)
    age(folder, 30)

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: true_time() - 30 * 86400)
        apart = await backup_all_tenants(database, folder, settings=settings, keep_days=7)
    together = await backup_all_tenants(database, folder, settings=settings, keep_days=7)

    assert (apart.deleted, len(together.deleted)) == ([], 4)


async def test_file_from_a_wrong_future_does_not_let_the_newest_go(
    database: Database, settings: Settings, database_url: str, folder: Path
) -> None:
    """The newest file of a true time stays, though one that was made before the clock was set back looks newer."""
    first = await backup_all_tenants(database, folder, settings=settings)
    age(folder, -30)
    second = await backup_all_tenants(database, folder, settings=settings)
    age(folder, 10)
    async with outside(database_url) as connection:
        await connection.execute("ALTER SCHEMA globex RENAME TO away")

    third = await backup_all_tenants(database, folder, settings=settings, keep_days=7)

    assert [slug for slug, _ in third.failed] == ["globex"]
    assert sorted(backup.file for backup in third.deleted) == sorted(
        backup.file for backup in second.made if backup.slug != "globex"
    )
    assert all((folder / backup.file).exists() for backup in first.made)


async def test_tenant_that_is_gone_keeps_its_newest_file(database: Database, settings: Settings, folder: Path) -> None:
    """The newest file of a dropped tenant stays; that of a purged one stays, too, and is named."""
    await backup_all_tenants(database, folder, settings=settings)
    age(folder, 10)
    await drop_tenant(database, ACME)
    await drop_tenant(database, GLOBEX)
    await purge_trash(database, settings=settings, slugs=[GLOBEX])

    report = await backup_all_tenants(database, folder, settings=settings, keep_days=7)

    assert list_slugs(folder) == sorted(EVERYBODY)
    assert [backup.slug for backup in report.unknown] == ["globex"]


async def test_folder_belongs_to_one_database(
    database: Database, settings: Settings, folder: Path, empty_database_url: str
) -> None:
    """A run refuses a folder with the backups of another database, whose tenants may have the same numbers."""
    await backup_all_tenants(database, folder, settings=settings)
    other = Settings(migrations_dir=settings.migrations_dir, database_url=empty_database_url)
    async with await Database.open(other, max_size=1) as another:
        await init_registry(another)
        with pytest.raises(BackupFileError, match="another database"):
            await backup_all_tenants(another, folder, settings=other)


async def test_statistics_do_not_see_every_change(database: Database, database_url: str, acme: Tenant) -> None:
    """Why there is no option that leaves out unchanged tenants: the counters of PostgreSQL miss changes."""
    counters = (
        "SELECT n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_all_tables WHERE schemaname = 'acme' AND relname = 't'"
    )
    async with outside(database_url) as connection:
        await connection.execute("SET stats_fetch_consistency TO none")
        await connection.execute("CREATE TABLE acme.t (n integer); INSERT INTO acme.t VALUES (1), (2)")
        await connection.execute("SELECT pg_stat_force_next_flush()")
        before = tuple(await connection.fetchrow(counters) or ())

        await connection.execute("SET track_counts TO off")
        await connection.execute("UPDATE acme.t SET n = 3")
        await connection.execute("SET track_counts TO on")
        await connection.execute("TRUNCATE acme.t; SELECT pg_stat_force_next_flush()")
        after = tuple(await connection.fetchrow(counters) or ())

    assert (before, after) == ((2, 0, 0), (2, 0, 0))
