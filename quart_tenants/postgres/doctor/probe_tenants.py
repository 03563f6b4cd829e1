"""Make two tenants for a moment, and try in every way to see one's row from the other's block."""

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import asyncpg

from quart_tenants.connection import Connection, Row
from quart_tenants.postgres.blocks.database import Database, enter_schema
from quart_tenants.postgres.roles.owner_role import find_owner
from quart_tenants.postgres.roles.schema_access import drop_role, open_schema_to
from quart_tenants.settings import Settings
from quart_tenants.tenant import REGISTRY_SCHEMA, RoleName, SchemaName, Slug, Tenant

_PREFIX = f"{REGISTRY_SCHEMA}_probe_"
"""Of the schemas of all probes. No tenant's can be called so."""

_NAME = re.compile(rf"{_PREFIX}([0-9]+)_[0-9a-f]+_[ab]")
# Longer than a run takes. Another one may be running now.
_LEFT_BEHIND_AFTER = 120  # seconds
_ROUNDS = 3

_GET_TIME = "SELECT pg_catalog.floor(EXTRACT(epoch FROM pg_catalog.clock_timestamp()))::bigint"
_LIST_PROBES = "SELECT nspname::text FROM pg_catalog.pg_namespace WHERE pg_catalog.starts_with(nspname::text, $1)"
_READ = "SELECT pg_catalog.pg_backend_pid() AS backend, pg_catalog.array_agg(stamp) AS stamps FROM probe"


@dataclass(frozen=True, slots=True)
class Probe:
    """A tenant that is in no registry, with one row.

    Attributes:
        tenant: For its blocks.
        stamp: What its row says.
    """

    tenant: Tenant
    stamp: str


class _LeaveBlockError(Exception):
    """Rolls a block back."""


@contextlib.asynccontextmanager
async def make_probes(database: Database, *, settings: Settings) -> AsyncIterator[tuple[Probe, Probe]]:
    """Make two probes, and remove them, also after a cancellation; and those that a killed run has left.

    Raises:
        asyncpg.InsufficientPrivilegeError: We may not create schemas.
        RolesNotReadyError: We may not make roles.
    """
    async with database.connection() as connection:
        now = await connection.fetchval(_GET_TIME)
        left = [row["nspname"] for row in await connection.fetch(_LIST_PROBES, _PREFIX)]
    for name in left:
        match = _NAME.fullmatch(name)
        if match is not None and now - int(match[1]) > _LEFT_BEHIND_AFTER:
            await _remove(database, SchemaName(name))
    run = f"{_PREFIX}{now}_{secrets.token_hex(4)}"
    schemas = SchemaName(f"{run}_a"), SchemaName(f"{run}_b")
    try:
        yield await _make(database, schemas[0], settings), await _make(database, schemas[1], settings)
    finally:
        for schema in schemas:
            await _remove(database, schema)


async def alternate(databases: Sequence[Database], probes: Sequence[Probe]) -> tuple[list[str], list[set[int]]]:
    """Let blocks of both probes follow one another in every way that a block can end.

    Returns:
        What was seen of a foreign probe, none if all is well; and the server processes of each database.
    """
    seen: list[str] = []
    backends: list[set[int]] = [set() for _ in databases]
    for _ in range(_ROUNDS):
        for end in (read_probe, _fail, _roll_back, _be_cancelled):
            for database, used in zip(databases, backends, strict=True):
                for probe in probes:
                    row = await end(database, probe)
                    used.add(row["backend"])
                    if row["stamps"] != [probe.stamp]:
                        seen.append(f"{end.__name__.strip('_').replace('_', ' ')}: {row['stamps']}")
    return seen, backends


async def read_probe(database: Database, probe: Probe) -> Row:
    """Return the server process and the stamps that a block of *probe* sees."""
    async with database.tenant_connection(probe.tenant) as connection:
        return await _read(connection)


async def attack(database: Database, probe: Probe, victim: Probe) -> list[str]:
    """Try to get out of *probe*'s schema and role; return what succeeded."""
    other = victim.tenant.schema.quoted
    succeeded = []
    for what, statement in (
        ("set_config() runs", "SELECT pg_catalog.set_config('role', 'none', true)"),
        ("another tenant is read by its full name", f"SELECT stamp FROM {other}.probe"),  # noqa: S608  (quoted)
        ("the registry is read", "SELECT slug FROM quart_tenants.tenants"),
        ("a table is created", "CREATE TABLE probe_table ()"),
        ("a temporary table is created", "CREATE TEMPORARY TABLE probe_table ()"),
        ("a second statement is stacked", "SELECT; RESET ROLE"),
    ):
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError, asyncpg.PostgresSyntaxError):
            async with database.tenant_connection(probe.tenant) as connection:
                await connection.execute(statement)
            succeeded.append(what)
    return succeeded


async def find_session_leaks(database: Database) -> tuple[bool, bool]:
    """Return whether a setting, and whether a prepared statement, of one client reach another one."""
    mark = secrets.token_hex(4)
    async with database.plain_session() as one, database.plain_session() as other:
        await one.execute(f"SET quart_tenants_probe.mark TO '{mark}'")
        setting = await other.fetchval("SELECT pg_catalog.current_setting('quart_tenants_probe.mark', true)")
        await one.execute(f"PREPARE quart_tenants_probe_{mark} AS SELECT")
        prepared = await other.fetchval(
            "SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_statements WHERE name = $1",
            f"quart_tenants_probe_{mark}",
        )
        with contextlib.suppress(asyncpg.PostgresError):
            # On another server process it is not there.
            await one.execute("RESET quart_tenants_probe.mark")
            await one.execute(f"DEALLOCATE quart_tenants_probe_{mark}")
    return setting == mark, prepared > 0


async def _make(database: Database, schema: SchemaName, settings: Settings) -> Probe:
    stamp = secrets.token_hex(8)
    role = None
    async with database.connection() as connection:
        await connection.execute(f"CREATE SCHEMA {schema.quoted}")
        await connection.execute(f"CREATE TABLE {schema.quoted}.probe (stamp text NOT NULL)")
        owner = await find_owner(connection) if settings.role_per_tenant else None
        if owner is not None:
            role = _name_role(owner, schema)
            await open_schema_to(connection, schema, owner, role)
        await enter_schema(connection, schema, settings=settings)
        await connection.execute("INSERT INTO probe (stamp) VALUES ($1)", stamp)
    return Probe(Tenant(0, Slug(schema.name), schema, schema.name, role=role), stamp)


async def _remove(database: Database, schema: SchemaName) -> None:
    async with database.connection() as connection:
        await connection.execute(f"DROP SCHEMA IF EXISTS {schema.quoted} CASCADE")
        owner = await find_owner(connection)
        if owner is not None:
            await drop_role(connection, _name_role(owner, schema))


def _name_role(owner: RoleName, schema: SchemaName) -> RoleName:
    return RoleName(owner.name.removesuffix("owner") + schema.name.removeprefix(f"{REGISTRY_SCHEMA}_"))


async def _fail(database: Database, probe: Probe) -> Row:
    with contextlib.suppress(asyncpg.DivisionByZeroError):
        async with database.tenant_connection(probe.tenant) as connection:
            await connection.execute("SELECT 1 / 0")
    return await read_probe(database, probe)


async def _roll_back(database: Database, probe: Probe) -> Row:
    with contextlib.suppress(_LeaveBlockError):
        async with database.tenant_connection(probe.tenant) as connection:
            row = await _read(connection)
            raise _LeaveBlockError
    return row


async def _be_cancelled(database: Database, probe: Probe) -> Row:
    rows: list[Row] = []
    inside = asyncio.Event()

    async def sleep_inside() -> None:
        async with database.tenant_connection(probe.tenant) as connection:
            rows.append(await _read(connection))
            inside.set()
            # Where the cancellation comes to the server before the statement does, this is how long the end waits.
            await connection.execute("SELECT pg_catalog.pg_sleep(2)")

    task = asyncio.create_task(sleep_inside())
    waiting = asyncio.create_task(inside.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
    return rows[0]


async def _read(connection: Connection) -> Row:
    (row,) = await connection.fetch(_READ)
    return row
