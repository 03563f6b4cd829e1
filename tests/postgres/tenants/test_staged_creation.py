"""A tenant whose files need several transactions does not exist before the last of them, whatever happens."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quart_tenants.connection import Connection
from quart_tenants.errors import (
    DatabaseUnavailableError,
    MigrationFailedError,
    TenantBusyError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry import tenant_locks
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.registry.registry_tables import get_tenant, list_tenants
from quart_tenants.postgres.tenants import provisioning, staged_creation
from quart_tenants.postgres.tenants.new_tenant import run_files
from quart_tenants.postgres.tenants.provisioning import create_tenant, create_tenants
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import list_trash
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug
from tests.support.databases import execute, set_default
from tests.support.roles import dropping_roles, set_up_roles

pytestmark = pytest.mark.slow

NEWCO = Slug("newco")
FILES = {
    "0001_notes.sql": "CREATE TABLE notes (id bigint PRIMARY KEY)",
    # The type is older than the transaction, so that every version of PostgreSQL needs a commit here.
    "0002_glad.sql": "ALTER TYPE public.mood ADD VALUE IF NOT EXISTS 'glad'",
    "0003_use.sql": "CREATE TABLE moods (m public.mood DEFAULT 'glad'); INSERT INTO moods DEFAULT VALUES",
    "0004_more.sql": "INSERT INTO notes VALUES (1)",
}
# Whatever a tenant may leave in the database: rows of the registry, its schema, its role.
LIST_TRACES = """
SELECT 'tenant ' || slug FROM quart_tenants.tenants WHERE slug = 'newco'
UNION ALL SELECT 'record ' || name FROM quart_tenants.applied_migrations WHERE schema_name = 'newco'
UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'newco'
UNION ALL SELECT 'role ' || rolname FROM pg_roles
WHERE rolname LIKE (SELECT left(owner_name, 23) FROM quart_tenants.role_setup) || '_t%' AND rolname NOT IN
    (SELECT role_name FROM quart_tenants.living_tenants)
"""
# The lock of a tenant is the only advisory lock that a session holds here beside the one that asks.
IS_LOCKED = """
SELECT EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND granted AND pid <> pg_backend_pid()
)
"""
END_LOCKS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND granted AND pid NOT IN (SELECT pid FROM pg_locks WHERE relation IS NOT NULL)
"""
CREATE_AND_WAIT = """
import asyncio, sys
from pathlib import Path
from quart_tenants.admin import create_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings

async def wait_for_ever(connection):
    print("filling", flush=True)
    await asyncio.Event().wait()

async def main():
    settings = Settings(database_url=sys.argv[1], migrations_dir=Path(sys.argv[2]))
    async with await Database.open(settings, max_size=1) as database:
        await create_tenant(database, "newco", "Newco", settings=settings, fill=wait_for_ever)

asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that need two transactions."""
    for name, sql in FILES.items():
        (tmp_path / name).write_text(sql)
    return tmp_path


@pytest.fixture(params=["one role", "a role per tenant"])
async def made_in(
    server_url: str, empty_registry_url: str, folder: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Database, Settings]]:
    """A pool of one connection, and its settings, in both role modes."""
    settings = Settings(
        database_url=empty_registry_url, migrations_dir=folder, role_per_tenant=request.param != "one role"
    )
    async with dropping_roles(server_url, empty_registry_url), await Database.open(settings, max_size=1) as database:
        if settings.role_per_tenant:
            await set_up_roles(database)
            await execute(empty_registry_url, f"ALTER TYPE public.mood OWNER TO {await find_owner(database)}")
        yield database, settings


@pytest.fixture
async def empty_registry_url(database_url: str) -> str:
    """A database without tenants, and with a type that all tenants share."""
    await execute(
        database_url,
        "DROP SCHEMA acme, globex, company1, company2 CASCADE",
        "DELETE FROM quart_tenants.applied_migrations WHERE schema_name <> 'quart_tenants'",
        "DELETE FROM quart_tenants.tenants",
        "CREATE TYPE public.mood AS ENUM ('sad')",
    )
    return database_url


async def find_owner(database: Database) -> str:
    """Return the name of the owner role."""
    async with database.connection() as connection:
        name: str = await connection.fetchval("SELECT owner_name FROM quart_tenants.role_setup")
    return name


async def list_traces(database: Database) -> list[str]:
    """Return what there is of newco in the database."""
    async with database.connection() as connection:
        return [row[0] for row in await connection.fetch(LIST_TRACES)]


async def test_tenant_is_complete(made_in: tuple[Database, Settings]) -> None:
    """All files ran and are recorded, the function has filled the tables once, and nothing is in the trash."""
    database, settings = made_in
    seen: list[object] = []

    async def fill(connection: Connection) -> None:
        seen.append(await connection.fetchval("SELECT m::text FROM moods"))
        await connection.execute("INSERT INTO notes VALUES (2)")

    made = await create_tenant(
        database, NEWCO, "Newco", settings=settings, fill=fill, first_rows="INSERT INTO notes VALUES (3)"
    )

    assert seen == ["glad"]
    assert await get_tenant(database, NEWCO) == made
    assert made.version == 4
    assert await list_trash(database) == []
    async with database.tenant_connection(made) as connection:
        assert await connection.fetchval("SELECT array_agg(id ORDER BY id) FROM notes") == [1, 2, 3]


async def test_naive_single_transaction_cannot_make_it(
    made_in: tuple[Database, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: one transaction is refused by PostgreSQL."""
    database, settings = made_in
    monkeypatch.setattr(provisioning, "count_committed_first", lambda error, migrations: 0)

    with pytest.raises(MigrationFailedError, match="unsafe use of new value"):
        await create_tenant(database, NEWCO, "Newco", settings=settings)


async def test_nobody_sees_it_before_it_is_complete(made_in: tuple[Database, Settings]) -> None:
    """While the last transaction runs, the tenant is unknown to commands and to workers."""
    database, settings = made_in

    async def look(connection: Connection) -> None:
        async with await Database.open(settings, max_size=1) as other:
            registry = Registry(other, settings, minimum_version=1)
            await registry.load()
            with pytest.raises(UnknownTenantError):
                registry.get_tenant(NEWCO)
            assert await list_tenants(other) == []
            # The negative control: its schema is there already.
            assert "schema newco" in await list_traces(other)

    await create_tenant(database, NEWCO, "Newco", settings=settings, fill=look)

    assert (await get_tenant(database, NEWCO)).version == 4


@pytest.mark.parametrize("broken", ["file", "first rows", "function"])
async def test_failure_in_a_later_transaction_leaves_nothing(
    made_in: tuple[Database, Settings], folder: Path, broken: str
) -> None:
    """There is no tenant, no schema and no role, and the name is free at once."""
    database, settings = made_in
    if broken == "file":
        (folder / "0004_more.sql").write_text("INSERT INTO nowhere VALUES (1)")

    async def fill(connection: Connection) -> None:
        if broken == "function":
            raise ZeroDivisionError

    with pytest.raises((MigrationFailedError, ZeroDivisionError)):
        await create_tenant(
            database,
            NEWCO,
            "Newco",
            settings=settings,
            first_rows="INSERT INTO nowhere VALUES (1)" if broken == "first rows" else None,
            fill=fill,
        )

    assert await list_traces(database) == []
    (folder / "0004_more.sql").write_text(FILES["0004_more.sql"])
    assert (await create_tenant(database, NEWCO, "Newco", settings=settings)).version == 4


async def create_under_a_limit(url: str, database: Database, settings: Settings) -> list[bool]:
    """Create a tenant where a new session may be idle in a transaction for a second; return whether its lock held."""
    await set_default(url, "idle_in_transaction_session_timeout", "1s")
    held = []

    async def fill(connection: Connection) -> None:
        # The session of this connection is older than the limit.
        await connection.execute("SELECT pg_sleep(1.3)")
        held.append(await connection.fetchval(IS_LOCKED))

    await create_tenant(database, NEWCO, "Newco", settings=settings, fill=fill)
    return held


async def test_limit_for_idle_transactions_ends_no_creation(
    made_in: tuple[Database, Settings], empty_registry_url: str
) -> None:
    """The transaction that holds the lock may be idle for as long as the tables are being made."""
    database, settings = made_in

    assert await create_under_a_limit(empty_registry_url, database, settings) == [True]


async def test_tenant_exists_whatever_becomes_of_the_lock_after_it_is_complete(
    made_in: tuple[Database, Settings], empty_registry_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: without `stay_open` the lock is lost. What was complete by then is no error."""
    database, settings = made_in

    async def leave_limits(connection: object) -> None:
        pass

    monkeypatch.setattr(staged_creation, "stay_open", leave_limits)

    assert await create_under_a_limit(empty_registry_url, database, settings) == [False]
    assert (await get_tenant(database, NEWCO)).version == 4


async def test_lock_that_is_lost_before_the_end_is_told(
    made_in: tuple[Database, Settings], empty_registry_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else was kept from purging the half-made tenant, so it is not completed, and nothing is left of it."""
    database, settings = made_in

    async def run_and_end_locks(*arguments: Any, **options: Any) -> None:
        await run_files(*arguments, **options)
        await execute(empty_registry_url, END_LOCKS)

    monkeypatch.setattr(staged_creation, "run_files", run_and_end_locks)

    with pytest.raises(DatabaseUnavailableError, match="the connection that held the lock of tenant 'newco' was lost"):
        await create_tenant(database, NEWCO, "Newco", settings=settings)

    assert await list_traces(database) == []


async def test_cancellation_leaves_nothing(made_in: tuple[Database, Settings]) -> None:
    """A Ctrl-C or a client that goes away removes what was committed, too."""
    database, settings = made_in
    filling = asyncio.Event()

    async def fill(connection: Connection) -> None:
        filling.set()
        await asyncio.Event().wait()

    creating = asyncio.create_task(create_tenant(database, NEWCO, "Newco", settings=settings, fill=fill))
    await filling.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating

    assert await list_traces(database) == []


@pytest.mark.parametrize("remedy", ["purge", "create again"])
async def test_killed_process_leaves_no_tenant(empty_registry_url: str, folder: Path, remedy: str) -> None:
    """Nobody is served, and what is left goes with the next purge, or with the next tenant of that name."""
    settings = Settings(database_url=empty_registry_url, migrations_dir=folder)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CREATE_AND_WAIT, empty_registry_url, str(folder), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"filling\n"
    process.send_signal(signal.SIGKILL)
    await process.wait()

    async with await Database.open(settings, max_size=2) as database:
        assert await list_tenants(database) == []
        assert "schema newco" in await list_traces(database)
        if remedy == "purge":
            await purge_trash(database, settings=settings)
            assert await list_traces(database) == []
        else:
            assert await create_tenants(database, {NEWCO: "Newco"}, settings=settings, jobs=1) == 1


async def test_tenant_that_is_being_made_is_left_alone(
    made_in: tuple[Database, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process that wants the name, and a purge, are refused and delete nothing."""
    database, settings = made_in
    monkeypatch.setattr(tenant_locks, "PATIENCE", 0.01)

    async def disturb(connection: Connection) -> None:
        async with await Database.open(settings, max_size=1) as other:
            with pytest.raises(TenantBusyError):
                await create_tenant(other, NEWCO, "Newco", settings=settings)
            with pytest.raises(TenantBusyError):
                await purge_trash(other, settings=settings)

    await create_tenant(database, NEWCO, "Newco", settings=settings, fill=disturb)

    assert (await get_tenant(database, NEWCO)).version == 4


async def test_list_of_tenants_is_made_in_steps(empty_registry_url: str, folder: Path) -> None:
    """`create_tenants` needs no more connections for it than jobs."""
    settings = Settings(database_url=empty_registry_url, migrations_dir=folder)
    names = {Slug(f"newco{number}"): "Newco" for number in range(4)}

    async with await Database.open(replace(settings, acquire_timeout=60.0), max_size=2) as database:
        await create_tenants(database, names, settings=settings, jobs=2)

        assert {tenant.slug: tenant.version for tenant in await list_tenants(database)} == dict.fromkeys(names, 4)
