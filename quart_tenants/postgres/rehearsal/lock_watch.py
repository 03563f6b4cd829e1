"""Watch what migrations do to one tenant's tables: how long each file takes, what it locks, and what it rewrites."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from quart_tenants.connection import Connection
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.migrations.migration_files import Migration

if TYPE_CHECKING:
    from quart_tenants.postgres.migrations.migration_statements import Statement

# $1 the schema. These are the locks for which somebody who writes has to wait; for the last one, who reads as well.
_LOOK = """
SELECT
    c.oid, c.relname::text AS name, pg_catalog.pg_relation_filenode(c.oid) AS file,
    pg_catalog.pg_relation_size(c.oid) AS bytes, c.reltuples::float8 AS rows,
    ARRAY(
        SELECT l.mode FROM pg_catalog.pg_locks AS l
        WHERE l.relation = c.oid AND l.pid = pg_catalog.pg_backend_pid() AND l.granted
            AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
            AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    ) AS locks
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'm')
"""
# The strongest first.
_MODES = {
    "AccessExclusiveLock": "ACCESS EXCLUSIVE",
    "ExclusiveLock": "EXCLUSIVE",
    "ShareRowExclusiveLock": "SHARE ROW EXCLUSIVE",
    "ShareLock": "SHARE",
}


@dataclass(slots=True)
class HeldLock:
    """A lock on a table that existed before.

    Attributes:
        table: The table.
        mode: Such as `ACCESS EXCLUSIVE`.
        seconds: From the start of the statement that took it to the commit.
    """

    table: str
    mode: str
    seconds: float


class Rewritten(NamedTuple):
    """A table that existed before and was written anew."""

    table: str
    size: int
    rows: int


@dataclass(slots=True)
class WatchedFile:
    """What one file did.

    Attributes:
        file: Its name.
        seconds: How long its statements took.
        locks: Which locks it took first; none for a file outside a transaction, whose locks end with each statement.
        rewritten: The tables that it wrote anew, with their size in bytes and the rows that they had before.
    """

    file: str
    seconds: float = 0.0
    locks: list[HeldLock] = field(default_factory=list)
    rewritten: list[Rewritten] = field(default_factory=list)


class LockWatch:
    """Called after each statement of a migration. Its own questions are not counted as the statements' time."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._files: dict[int, WatchedFile] = {}
        # The state of each table by its number: where it is stored, and how many rows it has.
        self._before: dict[int, tuple[int | None, int]] = {}
        # The same when each file began, by version.
        self._before_file: dict[int, dict[int, tuple[int | None, int]]] = {}
        # By table and mode, with the time at which the statement began that took the lock.
        self._held: dict[tuple[int, str], tuple[float, HeldLock]] = {}
        self._resumed_at = 0.0

    async def start(self, connection: Connection) -> None:
        """Note what the tables are like before the first statement."""
        rows = await connection.fetch(_LOOK, self._schema)
        self._before = {row["oid"]: (row["file"], max(int(row["rows"]), 0)) for row in rows}
        self._resumed_at = time.monotonic()

    async def note(
        self, connection: Connection | DriverConnection, migration: Migration, statement: "Statement"
    ) -> None:
        """Note what *statement* of *migration*, which has just ended, did and still holds."""
        ended_at = time.monotonic()
        began_at = self._resumed_at
        if statement is migration.script.statements[0]:
            self._begin(migration.version)
        file = self._files.setdefault(migration.version, WatchedFile(migration.name))
        file.seconds += ended_at - began_at
        present = set()
        for row in await connection.fetch(_LOOK, self._schema):
            if row["oid"] not in self._before:
                # Nobody waits for a table that is new.
                continue
            stored, count = self._before[row["oid"]]
            if row["file"] != stored:
                file.rewritten.append(Rewritten(row["name"], row["bytes"], count))
                self._before[row["oid"]] = (row["file"], count)
            present |= {(row["oid"], mode) for mode in row["locks"]}
            # The strongest one says what others have to wait for.
            strongest = next((mode for mode in _MODES if mode in row["locks"]), None)
            if strongest is not None and not self._has(row["oid"], strongest):
                lock = HeldLock(row["name"], _MODES[strongest], 0.0)
                self._held[row["oid"], strongest] = (began_at, lock)
                file.locks.append(lock)
        self._let_go({key for key in self._held if key not in present}, began_at)
        self._resumed_at = time.monotonic()

    def finish(self) -> tuple[WatchedFile, ...]:
        """Return what was seen. Call it after the last commit."""
        self._let_go(set(self._held), time.monotonic())
        return tuple(self._files.values())

    def _begin(self, version: int) -> None:
        before = self._before_file.get(version)
        if before is None:
            self._before_file[version] = dict(self._before)
            return
        # It has begun once before, and was rolled back: a later file needed a transaction of its own.
        self._before = dict(before)
        self._held.clear()
        for later in [number for number in self._files if number >= version]:
            del self._files[later]
            self._before_file.pop(later)
        self._before_file[version] = before

    def _has(self, table: int, mode: str) -> bool:
        """Return whether this lock on *table*, or a stronger one, is noted."""
        modes = list(_MODES)
        return any((table, held) in self._held for held in modes[: modes.index(mode) + 1])

    def _let_go(self, keys: set[tuple[int, str]], ended_at: float) -> None:
        for key in keys:
            began_at, lock = self._held.pop(key)
            lock.seconds = ended_at - began_at
