"""Back up all tenants into one folder, a file for each, and take up a run that was interrupted."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from quart_tenants.argument_checks import check_arguments
from quart_tenants.errors import (
    BackupFileError,
    DatabaseUnavailableError,
    TenantError,
    TenantInTrashError,
    UnknownTenantError,
)
from quart_tenants.postgres.backup_folders.backup_folder import FolderContents, open_folder, read_folder
from quart_tenants.postgres.backup_folders.folder_manifest import MANIFEST, Manifest, Run, write_manifest
from quart_tenants.postgres.backup_folders.old_backups import delete_old_backups
from quart_tenants.postgres.backup_folders.stored_backups import StoredBackup, describe_backup, name_backup
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.migrated_shapes import Shapes
from quart_tenants.postgres.backups.pipes import Pipe
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.refusals import translate_refusals
from quart_tenants.postgres.registry.registry_tables import check_registry
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug

# An interrupted run of last night is taken up in the morning, and not in the next night.
_MAX_AGE = timedelta(hours=12)

_LIST_LIVING = "SELECT id, slug, created_at FROM quart_tenants.tenants WHERE dropped_at IS NULL ORDER BY id"
_LIST_KNOWN = "SELECT id, created_at FROM quart_tenants.tenants"
_GET_DATABASE = """
SELECT
    pg_catalog.clock_timestamp() AS now,
    pg_catalog.format('%s on server %s', pg_catalog.current_database(), s.system_identifier) AS name
FROM pg_catalog.pg_control_system() AS s
"""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A living tenant."""

    id: int
    slug: Slug
    created_at: datetime


@dataclass(slots=True)
class BackupReport:
    """What a run over all tenants did.

    Attributes:
        began_at: When the run began. This is earlier than the command if it took up an interrupted run.
        resumed: How many tenants had their file of the interrupted run already.
        made: The new files.
        failed: Tenants without a new file, each with its error.
        left: Tenants that were not tried, because the database or the folder was out of reach.
        deleted: Old files that were deleted.
        damaged: Files that are not good, each with the reason.
        unknown: The newest files of tenants that the database does not have any more, also not in the trash.
        notes: What the operator should know about the manifest.
        seconds: The duration.

    Example:
        ```python
        report = await backup_all_tenants(database, Path("backups"), settings=settings)
        for slug, error in report.failed:
            print(slug, error)
        ```
    """

    began_at: datetime
    resumed: int = 0
    made: list[StoredBackup] = field(default_factory=list)
    failed: list[tuple[Slug, TenantError]] = field(default_factory=list)
    left: list[Slug] = field(default_factory=list)
    deleted: list[StoredBackup] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    unknown: list[StoredBackup] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@check_arguments
async def backup_all_tenants(
    database: Database,
    folder: Path,
    *,
    settings: Settings,
    jobs: int = 2,
    keep_days: int | None = None,
    verify: int = 0,
    pipe: Pipe | None = None,
    on_begin: Callable[[int], object] | None = None,
    on_done: Callable[[bool], object] | None = None,
) -> BackupReport:
    """Write a backup of every living tenant into *folder*, while the tenants are served.

    A tenant that fails is in the report, and the others go on. If the last run was interrupted less than twelve hours
    ago, this one does only the tenants that have no file of that run yet. After a cancellation the files that are
    finished stay.

    Args:
        database: It needs at least *jobs* connections. pg_dump opens another one for each job.
        folder: For the backups of this database only. It is made if it is missing.
        settings: They have the address of the database.
        jobs: How many tenants are backed up at the same time.
        keep_days: Delete files that are older than so many days by the clocks of this machine and of the database,
            except the newest good one of each tenant.
        verify: How many tenants' backups are restored in a transaction that is rolled back, and compared; they are
            chosen by chance. It is not possible with *pipe*.
        pipe: A program that each dump is piped through, such as one that encrypts it.
        on_begin: Called with the number of tenants when the work begins.
        on_done: Called for each tenant that is finished, with whether it failed.

    Raises:
        BackupFileError: *folder* cannot be used, is in use, or holds backups of another database.
        DatabaseUnavailableError: The database cannot be reached.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        report = await backup_all_tenants(database, Path("backups"), settings=settings, jobs=1, keep_days=14)
        print(len(report.made), f"{report.seconds:.1f} s")
        ```
    """
    began = time.monotonic()
    now, name = await _find_database(database)
    with open_folder(folder):
        contents = await asyncio.to_thread(read_folder, folder)
        if contents.database not in (None, name):
            raise BackupFileError(
                str(folder),
                f"holds backups of another database ({contents.database}; this is {name}): give each database a folder "
                f"of its own; if this database was moved or upgraded, delete {MANIFEST} there",
            )
        run = contents.run
        # A run that begins in the future began before the database's clock was set back.
        if run is None or run.ended_at is not None or not timedelta(0) <= now - run.began_at <= _MAX_AGE:
            run = Run(now)
        report = BackupReport(run.began_at, notes=contents.notes)
        _write(folder, name, run, contents)
        work = _Work(database, folder, settings, contents, report, pipe, verify, on_done)
        try:
            finished = await work.do_all(jobs, on_begin, until=now)
            if finished:
                ended_at, _ = await _find_database(database)
                run = Run(run.began_at, ended_at)
        finally:
            # Also after a cancellation. It is brief, and without it the next run would read the new files again.
            _write(folder, name, run, contents)
        if finished and keep_days is not None:
            report.deleted = await asyncio.to_thread(
                delete_old_backups,
                folder,
                contents,
                min(now, datetime.fromtimestamp(time.time(), UTC)) - timedelta(days=keep_days),
                now=ended_at,
                checked={backup.file for backup in report.made},
            )
            _write(folder, name, run, contents)
        report.damaged = contents.damaged
        if finished:
            report.unknown = await _find_unknown(database, contents.backups)
    report.seconds = time.monotonic() - began
    return report


class _Work:
    """Jobs that share a queue of tenants."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        settings: Settings,
        contents: FolderContents,
        report: BackupReport,
        pipe: Pipe | None,
        sample: int,
        on_done: Callable[[bool], object] | None,
    ) -> None:
        self._database = database
        self._folder = folder
        self._settings = settings
        self._contents = contents
        self._report = report
        self._pipe = pipe
        self._sample_size = sample
        self._sample: Sequence[_Candidate] = ()
        self._shapes = Shapes()
        self._on_done = on_done
        self._must_stop = False

    async def do_all(self, jobs: int, on_begin: Callable[[int], object] | None, *, until: datetime) -> bool:
        """Back up all tenants that have no file of this run, and return whether all of them were tried.

        Args:
            jobs: How many tenants at the same time.
            on_begin: Called with the number of tenants.
            until: When this command began. A file that is newer was made before the database's clock was set back.
        """
        began_at = self._report.began_at
        done = {backup.tenant for backup in self._contents.backups if began_at <= backup.made_at < until}
        tenants = await self._list_tenants()
        todo = [tenant for tenant in tenants if (tenant.id, tenant.created_at) not in done]
        self._report.resumed = len(tenants) - len(todo)
        self._sample = random.sample(todo, min(self._sample_size, len(todo)))  # no secret
        if on_begin is not None:
            on_begin(len(todo))
        tried: set[_Candidate] = set()
        # The registry is read again at the end. A tenant that was renamed meanwhile has not been found by its old slug.
        while todo and not self._must_stop:
            await self._do(todo, jobs)
            tried |= set(todo)
            done |= {backup.tenant for backup in self._report.made}
            if not self._must_stop:
                todo = [
                    tenant
                    for tenant in await self._list_tenants()
                    if tenant not in tried and (tenant.id, tenant.created_at) not in done
                ]
        return not self._must_stop

    async def _list_tenants(self) -> list[_Candidate]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(_LIST_LIVING)
        return [_Candidate(row["id"], Slug(row["slug"]), row["created_at"]) for row in rows]

    async def _do(self, tenants: Iterable[_Candidate], jobs: int) -> None:
        queue = deque(tenants)

        async def work() -> None:
            while queue and not self._must_stop:
                await self._try(queue.popleft())

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(jobs):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            # A bug, or the caller's on_done. The group has cancelled the other jobs.
            raise failures.exceptions[0] from None
        self._report.left += [tenant.slug for tenant in queue]

    async def _try(self, tenant: _Candidate) -> None:
        failed = False
        try:
            with translate_refusals():
                stored = await self._back_up(tenant)
        except (UnknownTenantError, TenantInTrashError):
            # It was dropped or renamed meanwhile.
            pass
        except TenantError as error:
            failed = True
            self._report.failed.append((tenant.slug, error))
            self._must_stop |= _concerns_all(error)
        else:
            if stored is not None:
                self._report.made.append(stored)
                self._contents.backups.append(stored)
        if self._on_done is not None:
            self._on_done(failed)

    async def _back_up(self, tenant: _Candidate) -> StoredBackup | None:
        file = self._folder / name_backup(tenant.id, tenant.slug)
        backup = await backup_tenant(
            self._database,
            tenant.slug,
            file,
            settings=self._settings,
            pipe=self._pipe,
            verify=tenant in self._sample,
            shapes=self._shapes,
        )
        if (backup.id, backup.created_at) != (tenant.id, tenant.created_at):
            # Another tenant has the slug by now, and the name of the file would tell the wrong number.
            file.unlink()
            return None
        return await asyncio.to_thread(describe_backup, file, backup)


async def _find_database(database: Database) -> tuple[datetime, str]:
    """Return the time of the database's clock, and which database it is."""
    async with database.connection() as connection:
        await check_registry(connection)
        row = await connection.fetchrow(_GET_DATABASE)
    if row is None:
        raise DatabaseUnavailableError("the database does not say which one it is")
    return row["now"], row["name"]


async def _find_unknown(database: Database, backups: Iterable[StoredBackup]) -> list[StoredBackup]:
    """Return the newest backup of each tenant that the registry does not have, also not in the trash."""
    async with database.connection() as connection:
        known = {(row["id"], row["created_at"]) for row in await connection.fetch(_LIST_KNOWN)}
    newest = {backup.tenant: backup for backup in sorted(backups, key=lambda backup: backup.made_at)}
    return [backup for tenant, backup in newest.items() if tenant not in known]


def _concerns_all(error: TenantError) -> bool:
    """Return whether every other tenant would fail, too: the database is lost, or the folder is full or read-only."""
    if isinstance(error, DatabaseUnavailableError):
        return not error.lost
    return isinstance(error, BackupFileError) and isinstance(error.__cause__, OSError)


def _write(folder: Path, database: str, run: Run, contents: FolderContents) -> None:
    backups = sorted(contents.backups, key=lambda backup: backup.file)
    write_manifest(folder, Manifest(database, run, backups))
