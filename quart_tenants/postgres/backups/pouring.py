"""Let psql run the script of a restore, with the dump's own SQL in the middle."""

import asyncio
import gzip
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from quart_tenants.connection import Connection
from quart_tenants.errors import (
    BackupFileError,
    ClientProgramError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    TenantBusyError,
    TenantError,
    TenantExistsError,
)
from quart_tenants.postgres.backups.client_programs import (
    CHUNK,
    ClientPrograms,
    Program,
    describe_failure,
    start_program,
)
from quart_tenants.postgres.backups.restore_scripts import (
    BROKEN_BY_OLD_ROWS,
    DIFFERENT,
    MADE_ELSEWHERE,
    WRONG_PLACE,
    Restoration,
    write_setting,
)
from quart_tenants.postgres.backups.rows_only import write_head
from quart_tenants.postgres.blocks.blockers import watch_program
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.resources import read_statement

_ASK_FOR_LIFE = "SELECT"

_TOLD = re.compile(r"^(?:psql:\S*:\d+: )?(\S+): +([0-9A-Z]{5}): (.*)$", re.MULTILINE)
_CLASSES_OF_SUCCESS = ("00", "01", "02")
# A role, a type, a function, a table, a schema that is not there.
_MISSING = frozenset({"42704", "42883", "42P01", "3F000"})
_IN_FUNCTION = re.compile(r'^(?:psql:\S*:\d+: )?CONTEXT: +.*?function "?([^"\s]+)', re.MULTILINE)
_UNIQUE_VIOLATION = "23505"
_LOCK_NOT_AVAILABLE = "55P03"
_CONNECTION_LOST = 2  # psql's exit status
_MAX_HEAD = 1 << 16  # bytes; pg_restore writes its settings first
_EMPTY_PATH = b"\nSELECT pg_catalog.set_config('search_path', '', false);"
# In the list of a dump's entries: "4021; 0 16512 MATERIALIZED VIEW DATA acme totals postgres".
_ENTRY_OF_VIEW = re.compile(r"^\d+; \d+ \d+ MATERIALIZED VIEW DATA ")
_REFRESH = re.compile(r'^REFRESH MATERIALIZED VIEW ((?:"(?:[^"]|"")*"|[^";])*);$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Dump:
    """A dump that pg_restore can read.

    Attributes:
        opened: The open file, at the start of the dump.
        programs: They are not older than the server and the dump.
    """

    opened: BinaryIO
    programs: ClientPrograms


async def run_restoration(
    database: Database,
    connection: Connection,
    restoration: Restoration,
    dump: Dump,
    environment: Mapping[str, str],
    *,
    source: str,
    server_version: int,
    on_notice: Callable[[str], object] | None = None,
    instead: str | None = None,
) -> None:
    """Let psql run the script of *restoration*. It commits at the very end; if its input ends earlier, it rolls back.

    The dump's functions run with the path of the tenant, as they did when its rows were written. The CHECKs are added
    after all rows, and materialized views are filled in an order that works.

    Args:
        database: For a look at who is in the way of psql.
        connection: It holds the locks until psql has committed.
        restoration: What to run before, between and after the parts of the dump.
        dump: The dump.
        environment: Where psql connects.
        source: What errors call the backup.
        server_version: The version of the server, for example 180001.
        on_notice: Called with each sentence about what could not become quite as it was.
        instead: SQL that takes the place of what makes a tenant of the restored schema.

    Raises what `restore_tenant` raises.
    """
    pouring = _Pouring(restoration, dump, environment, source, server_version)
    # Nobody else restores this tenant.
    application = f"{environment['PGAPPNAME']} {restoration.tenant.id}"
    async with (
        watch_program(database, application) as watch,
        start_program(
            dump.programs.run_sql(),
            {**environment, "PGAPPNAME": application},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as psql,
    ):
        listening = await pouring.pour_all(psql)
        if listening:
            # This fails if the connection is lost, and with it our locks.
            await connection.execute(_ASK_FOR_LIFE)
            listening = await psql.write((restoration.after if instead is None else instead).encode())
        status, words = await psql.wait()
    if status != 0 or not listening:
        raise _explain(restoration, source, status, words, watch.seen)
    if on_notice is not None:
        for notice in _list_notices(words):
            on_notice(notice)


class _Pouring:
    def __init__(
        self, restoration: Restoration, dump: Dump, environment: Mapping[str, str], source: str, server_version: int
    ) -> None:
        self._restoration = restoration
        self._dump = dump
        self._environment = environment
        self._source = source
        self._server_version = server_version
        self._start = dump.opened.tell()
        self._enter = restoration.enter

    async def pour_all(self, psql: Program) -> bool:
        """Pass on all but the end of the script, and return whether psql read all of it."""
        if self._restoration.rows is not None:
            return (
                await psql.write(f"{self._restoration.before}{self._restoration.make_tables}".encode())
                and await self._pour_rows(psql)
                and await psql.write(f"SET CONSTRAINTS ALL IMMEDIATE;\n{self._enter}".encode())
                and await psql.write(read_statement("add_again").encode())
            )
        entries = (await self._read_all("--list")).splitlines(keepends=True)
        # Functions that PostgreSQL calls while it restores may call others by a name without a schema. So they run with
        # the path of the tenant, as they did when the rows were written, and not with the empty one that pg_dump sets.
        # But with that path a function of the tenant's own could be taken for one of PostgreSQL's with the same name.
        # Where that may be, what only creates objects is read with the empty path.
        with_path = not self._restoration.shadows
        with tempfile.TemporaryDirectory(prefix="quart-tenants-", ignore_cleanup_errors=True) as folder:
            views, others = await self._find_views(entries, Path(folder) / "entries")
            return (
                await psql.write(self._restoration.before.encode())
                and await self._pour(psql, "--section=pre-data", with_path=with_path)
                and await psql.write(f"{self._enter}{read_statement('set_aside')}".encode())
                and await self._pour(psql, "--section=data", with_path=True)
                and await psql.write(read_statement("add_again").encode())
                and await self._pour(psql, "--section=post-data", *others, with_path=with_path)
                and await psql.write(self._fill(views))
            )

    async def _pour_rows(self, psql: Program) -> bool:
        head = f"{write_head(self._restoration.dumped)}\n".encode()
        with gzip.open(self._dump.opened) as unpacked:
            if await asyncio.to_thread(unpacked.read, len(head)) != head:
                raise BackupFileError(
                    self._source, f"is damaged: its rows are not of schema {self._restoration.dumped}"
                )
            while chunk := await asyncio.to_thread(unpacked.read, CHUNK):
                if not await psql.write(chunk):
                    return False
        return True

    async def _find_views(self, entries: Sequence[str], file: Path) -> tuple[Sequence[str], Sequence[str]]:
        """Return the names of the materialized views that have rows, and the option that leaves them out."""
        views = [entry for entry in entries if _ENTRY_OF_VIEW.match(entry)]
        if not views:
            return (), ()
        await asyncio.to_thread(file.write_text, "".join(views), encoding="utf-8")
        names = _REFRESH.findall(await self._read_all(f"--use-list={file}"))
        left = "".join(entry for entry in entries if entry not in views)
        await asyncio.to_thread(file.write_text, left, encoding="utf-8")
        return names, (f"--use-list={file}",)

    async def _read_all(self, *options: str) -> str:
        read = []
        async with self._start_pg_restore(*options) as pg_restore:
            while chunk := await pg_restore.read():
                read.append(chunk)
            await self._check_end(pg_restore)
        return b"".join(read).decode()

    def _fill(self, views: Sequence[str]) -> bytes:
        if not views:
            return b""
        names = write_setting("quart_tenants.views", json.dumps(views))
        return f"{self._enter}{names}{read_statement('fill_materialized_views')}".encode()

    async def _pour(self, psql: Program, *options: str, with_path: bool) -> bool:
        async with self._start_pg_restore(*options) as pg_restore:
            head = b""
            while len(head) < _MAX_HEAD and _EMPTY_PATH not in head and (chunk := await pg_restore.read()):
                head += chunk
            if self._server_version < 170000:
                # pg_restore does not know the version of the server, and an older one does not know this setting.
                head = head.replace(b"\nSET transaction_timeout = 0;", b"", 1)
            chunk = head.replace(_EMPTY_PATH, f"\n{self._enter}".encode(), 1) if with_path else head
            while chunk:
                if not await psql.write(chunk):
                    return False
                chunk = await pg_restore.read()
            await self._check_end(pg_restore)
        return True

    def _start_pg_restore(self, *options: str) -> AbstractAsyncContextManager[Program]:
        # All of these programs share one position in the file.
        os.lseek(self._dump.opened.fileno(), self._start, os.SEEK_SET)
        return start_program(
            [*self._dump.programs.write_sql(privileges=self._restoration.privileges), *options],
            self._environment,
            stdin=self._dump.opened.fileno(),
            stdout=subprocess.PIPE,
        )

    async def _check_end(self, pg_restore: Program) -> None:
        status, words = await pg_restore.wait()
        if status != 0:
            raise ClientProgramError(f"{self._source} cannot be read: {describe_failure('pg_restore', words)}")


def _list_notices(words: str) -> list[str]:
    return [message for _, sqlstate, message in _TOLD.findall(words) if sqlstate == BROKEN_BY_OLD_ROWS]


def _explain(restoration: Restoration, source: str, status: int, words: str, in_the_way: str) -> TenantError:
    tenant = restoration.tenant
    failed = f"{source} was not restored as tenant {tenant.slug!r}"
    for _, sqlstate, message in _TOLD.findall(words):
        if sqlstate.startswith(_CLASSES_OF_SUCCESS) or sqlstate == BROKEN_BY_OLD_ROWS:
            continue
        if status == _CONNECTION_LOST:
            break
        if sqlstate in _MISSING:
            # PostgreSQL has run a function of the backup, such as one of an index, with a path of its own.
            by_function = _IN_FUNCTION.search(words)
            remedy = (
                f"function {by_function[1]} calls it without its schema; write the schema there, and back up again"
                if by_function
                else "create it, and restore again"
            )
            return BackupFileError(
                source, f"needs what this database lacks, to become tenant {tenant.slug!r}: {message}; {remedy}"
            )
        if sqlstate == WRONG_PLACE:
            return ClientProgramError(f"{failed}: {message}; write host, port, user and database into the URL")
        if sqlstate == DIFFERENT:
            told = "; ".join([f"the restored schema {message}", *_list_notices(words)])
            return BackupFileError(source, f"is not what was backed up: {told}")
        if sqlstate == MADE_ELSEWHERE:
            return BackupFileError(source, f"cannot become tenant {tenant.slug!r}: {message}")
        if sqlstate == _UNIQUE_VIOLATION and "tenants_slug_key" in message:
            return TenantExistsError(tenant.slug, tenant.schema.name)
        if sqlstate == _UNIQUE_VIOLATION and "pg_namespace_nspname_index" in message:
            # Another program, which is no restore, made a schema of that name meanwhile.
            return TenantBusyError(tenant.slug)
        if sqlstate == _LOCK_NOT_AVAILABLE:
            return TenantBusyError(
                tenant.slug, in_the_way or "a table that depends on it, or that it refers to, is in use"
            )
        return DatabaseRefusedError(f"{failed}: {message}")
    if status == _CONNECTION_LOST:
        return DatabaseUnavailableError(f"{failed}: {describe_failure('psql', words)}")
    return ClientProgramError(f"{failed}: psql ended with status {status}: {describe_failure('psql', words)}")
