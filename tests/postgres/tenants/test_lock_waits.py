"""Commands never make other tenants wait long for a table that all of them use, and say who is in the way."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from quart_tenants.connection import Connection
from quart_tenants.errors import DatabaseTimeoutError, DependentsError, TenantBusyError
from quart_tenants.postgres.backups import restore_scripts
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks import short_waits
from quart_tenants.postgres.blocks.blockers import find_blockers
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.migrations.migration_files import Migration
from quart_tenants.postgres.registry import registry_tables
from quart_tenants.postgres.registry.registry_tables import get_tenant, init_registry
from quart_tenants.postgres.tenants import provisioning, purge
from quart_tenants.postgres.tenants.dependents import remove_dependents
from quart_tenants.postgres.tenants.new_tenant import wait_for_turn
from quart_tenants.postgres.tenants.provisioning import create_tenant, create_tenants
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.ready_making import prepare_tenants
from quart_tenants.postgres.tenants.trash import drop_tenant, list_trash, undrop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.support.databases import REFERENCE_FILES, execute
from tests.support.patience import wait_until

pytestmark = pytest.mark.slow

ACME, GLOBEX, NEWCO = parse_slug("acme"), parse_slug("globex"), parse_slug("newco")

PLANS = (
    "CREATE SCHEMA common",
    "CREATE TABLE common.plans (id int PRIMARY KEY)",
    "CREATE TABLE common.kinds (id int PRIMARY KEY)",
    "INSERT INTO common.plans VALUES (1)",
    "CREATE TABLE acme.orders (plan int REFERENCES common.plans, kind int REFERENCES common.kinds)",
    "CREATE TABLE acme.bills (plan int REFERENCES common.plans)",
)
ENDLESS = 10**6  # tries
READ = "SELECT count(*) FROM common.plans"
ALTER_REGISTRY = "ALTER TABLE quart_tenants.tenants ADD COLUMN more int"
# Sessions that wait for a lock. $1 its table, $2 its mode.
COUNT_WAITING = """
SELECT count(*) FROM pg_locks WHERE relation = to_regclass($1) AND mode = $2 AND NOT granted
"""


@pytest.fixture
async def shared_database(database: Database, database_url: str) -> Database:
    """A database in which acme has foreign keys to a table that all tenants read."""
    await execute(database_url, *PLANS)
    return database


@pytest.fixture
def linked_settings(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a migration that refers to the shared table."""
    folder = shutil.copytree(REFERENCE_FILES, tmp_path / "tenant")
    (folder / "0002_orders.sql").write_text("CREATE TABLE orders (plan int REFERENCES common.plans);")
    return replace(settings, migrations_dir=folder)


@asynccontextmanager
async def using(url: str, statement: str = READ) -> AsyncIterator[DriverConnection]:
    """Run *statement* in a transaction that stays open for the block, or until its COMMIT."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("BEGIN")
        await connection.execute(statement)
        yield connection
    finally:
        await connection.close()


async def wait_for_tries(url: str, mode: str, *, table: str = "common.plans", count: int = 2) -> None:
    """Return when somebody has waited for a lock of *mode* on *table* and stopped that, *count* times."""
    looking = await asyncpg.connect(url)
    for _ in range(count):
        for waiting in (1, 0):

            async def look(expected: int = waiting) -> bool:
                return bool(await looking.fetchval(COUNT_WAITING, table, mode) == expected)

            await wait_until(look)
    await looking.close()


async def read_between(url: str) -> None:
    """Make sure that others read the shared table, while a command cannot have its lock."""
    other = await asyncpg.connect(url)
    for _ in range(5):
        assert await other.fetchval(READ) == 1
    await other.close()


async def test_purge_lets_others_read_the_shared_table(
    shared_database: Database, settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a reader keeps its transaction open, purge tries and backs off; when that has ended, purge ends, too."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", ENDLESS)
    await drop_tenant(shared_database, ACME)

    async with using(database_url) as reader:
        purging = asyncio.create_task(purge_trash(shared_database, settings=settings, slugs=[ACME]))
        await wait_for_tries(database_url, "AccessExclusiveLock")
        await read_between(database_url)
        assert not purging.done()
        assert [tenant.half_purged for tenant in await list_trash(shared_database)] == [False]
        await reader.execute("COMMIT")
        assert [tenant.slug for tenant in await purging] == [ACME]

    assert await list_trash(shared_database) == []
    await execute(database_url, "DROP SCHEMA common CASCADE")


async def test_naive_purge_stops_all_readers(shared_database: Database, database_url: str) -> None:
    """Negative control: behind a DROP that waits, a new reader waits as long as the old one reads."""
    async with using(database_url), using(database_url, "SELECT 1") as dropping:
        drop = asyncio.create_task(dropping.execute("DROP TABLE acme.orders CASCADE"))
        looking, other = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
        await wait_until(lambda: find_blockers(looking, dropping.get_server_pid()))
        reading = asyncio.create_task(other.fetchval(READ))

        (blocker,) = await wait_until(lambda: find_blockers(looking, other.get_server_pid()))

        assert (blocker.pid, blocker.what) == (dropping.get_server_pid(), "table common.plans is in use")
        assert not reading.done()
        drop.cancel()
        assert await reading == 1
        await looking.close()
        await other.close()


async def test_purge_says_who_reads_the_shared_table(
    shared_database: Database, settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its patience it names the table, the process and its statement. The tenant is whole, and can come back."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", 5)
    await drop_tenant(shared_database, ACME)

    async with using(database_url) as reader:
        with pytest.raises(TenantBusyError) as refused:
            await purge_trash(shared_database, settings=settings, slugs=[ACME])
        told = f"table common.plans is in use by pid {reader.get_server_pid()} of role "
        assert told in str(refused.value)
        assert f"(idle in transaction: {READ})" in str(refused.value)
        assert "pid" not in refused.value.visitor_text

    acme = await undrop_tenant(shared_database, ACME, settings=settings)
    for statement in ("INSERT INTO bills VALUES (2)", "INSERT INTO orders VALUES (2)"):
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            async with shared_database.tenant_connection(acme) as connection:
                await connection.execute(statement)


async def test_each_transaction_of_purge_locks_one_table_of_others(
    shared_database: Database, settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits for one shared table, it holds no other one."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", ENDLESS)
    await drop_tenant(shared_database, ACME)

    async with using(database_url, "SELECT FROM common.kinds"):
        purging = asyncio.create_task(purge_trash(shared_database, settings=settings, slugs=[ACME]))
        looking = await asyncpg.connect(database_url)
        waiting = "SELECT pid FROM pg_locks WHERE relation = 'common.kinds'::regclass AND NOT granted"
        held = """
            SELECT count(*) FROM pg_locks AS w JOIN pg_locks AS h ON h.pid = w.pid AND h.granted
            WHERE w.relation = 'common.kinds'::regclass AND NOT w.granted AND h.relation = 'common.plans'::regclass
        """

        async def look() -> bool:
            assert await looking.fetchval(held) == 0
            return await looking.fetchval(waiting) is not None

        await wait_until(look)
        await looking.close()
    assert len(await purging) == 1


async def test_view_that_is_made_between_two_batches_stops_purge(
    shared_database: Database, settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked for in the transaction of each batch, so CASCADE never drops what purge has not told."""
    monkeypatch.setattr(purge, "_BATCH", 1)
    await drop_tenant(shared_database, ACME)
    (trashed,) = await list_trash(shared_database)
    # The last table that goes: it has most dependents.
    await execute(database_url, f"CREATE TABLE {trashed.schema}.hub (id int PRIMARY KEY)")
    for number in range(3):
        await execute(
            database_url, f"CREATE TABLE {trashed.schema}.leaf{number} (id int REFERENCES {trashed.schema}.hub)"
        )
    await execute(
        database_url,
        "CREATE FUNCTION public.interfere() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
        f"   IF to_regclass('{trashed.schema}.leaf0') IS NULL AND to_regclass('public.report') IS NULL THEN"
        f"       CREATE VIEW public.report AS SELECT id FROM {trashed.schema}.hub; END IF; END $$",
        "CREATE EVENT TRIGGER interfere ON sql_drop EXECUTE FUNCTION public.interfere()",
    )

    with pytest.raises(DependentsError, match=r"view public\.report"):
        await purge_trash(shared_database, settings=settings, slugs=[ACME])

    async with shared_database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM public.report") == 0
    # Whoever allows it can go on.
    await execute(database_url, "DROP EVENT TRIGGER interfere")
    await purge_trash(shared_database, settings=settings, slugs=[ACME], including_dependents=True)
    async with shared_database.connection() as connection:
        assert await connection.fetchval("SELECT to_regclass('public.report')") is None


async def test_nobody_depends_on_a_batch_after_the_look(
    shared_database: Database, settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables of a batch are locked before the look, so a view of them fails or is seen."""
    await drop_tenant(shared_database, ACME)
    (trashed,) = await list_trash(shared_database)
    other = await asyncpg.connect(database_url)
    views: list[asyncio.Task[str]] = []

    async def look_and_be_late(*args: Any, **options: Any) -> None:
        await remove_dependents(*args, **options)
        if options.get("relations") and not views:
            views.append(
                asyncio.create_task(other.execute(f"CREATE VIEW public.late AS SELECT FROM {trashed.schema}.bills"))
            )
            looking = await asyncpg.connect(database_url)
            await wait_until(lambda: find_blockers(looking, other.get_server_pid()))
            await looking.close()

    monkeypatch.setattr(purge, "remove_dependents", look_and_be_late)

    assert len(await purge_trash(shared_database, settings=settings, slugs=[ACME])) == 1

    with pytest.raises(asyncpg.UndefinedTableError):
        await views[0]
    await other.close()


async def test_drop_lets_others_read_what_depends_on_the_tenant(
    shared_database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign key of another tenant is dropped by short tries, too, and nothing is done while its table is read."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", ENDLESS)
    await execute(
        database_url,
        "CREATE TABLE acme.hub (id int PRIMARY KEY)",
        "ALTER TABLE common.plans ADD CONSTRAINT hub FOREIGN KEY (id) REFERENCES acme.hub NOT VALID",
    )

    async with using(database_url) as reader:
        dropping = asyncio.create_task(drop_tenant(shared_database, ACME, including_dependents=True))
        await wait_for_tries(database_url, "AccessExclusiveLock")
        await read_between(database_url)
        assert (await get_tenant(shared_database, ACME)).schema.name == "acme"
        await reader.execute("COMMIT")
        await dropping

    assert len(await list_trash(shared_database)) == 1


async def test_create_waits_shortly_for_a_writer_of_the_shared_table(
    shared_database: Database, linked_settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole transaction is tried again, other writers pass in between, and it ends when the first writer does."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", ENDLESS)

    async with using(database_url, "INSERT INTO common.plans VALUES (2)") as writer:
        creating = asyncio.create_task(create_tenant(shared_database, NEWCO, "New", settings=linked_settings))
        await wait_for_tries(database_url, "ShareRowExclusiveLock")
        for number in range(3, 6):
            await execute(database_url, f"INSERT INTO common.plans VALUES ({number})")
        assert not creating.done()
        await writer.execute("COMMIT")
        await creating

    async with shared_database.tenant_connection(await get_tenant(shared_database, NEWCO)) as connection:
        await connection.execute("INSERT INTO orders VALUES (2)")


async def test_create_says_who_writes_the_shared_table(
    shared_database: Database, linked_settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its last try it names the writer, and leaves nothing behind."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", 5)
    filled: list[Connection] = []

    async def fill(connection: Connection) -> None:
        filled.append(connection)

    async with using(database_url, "INSERT INTO common.plans VALUES (2)") as writer:
        with pytest.raises(TenantBusyError, match=rf"table common\.plans is in use by pid {writer.get_server_pid()} "):
            await create_tenant(shared_database, NEWCO, "New", settings=linked_settings, fill=fill)

    assert filled == []
    async with shared_database.connection() as connection:
        assert await connection.fetchval("SELECT to_regnamespace('newco')") is None
        assert await connection.fetchval("SELECT count(*) FROM quart_tenants.tenants WHERE slug = 'newco'") == 0


async def test_fill_is_called_once(shared_database: Database, linked_settings: Settings, database_url: str) -> None:
    """A lock that is not free in *fill* is its error: what it has done elsewhere must not be done twice."""
    calls = 0

    async def fill(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        assert await connection.fetchval("SHOW lock_timeout") == "0"
        await connection.execute("LOCK TABLE common.kinds NOWAIT")

    async with using(database_url, "SELECT FROM common.kinds"):
        with pytest.raises(asyncpg.LockNotAvailableError):
            await create_tenant(shared_database, NEWCO, "New", settings=linked_settings, fill=fill)

    assert calls == 1
    async with shared_database.connection() as connection:
        assert await connection.fetchval("SELECT to_regnamespace('newco')") is None


@asynccontextmanager
async def making_slowly(database: Database, settings: Settings) -> AsyncIterator[asyncio.Event]:
    """Make a tenant that has locked the shared table, and is not committed before the event is set."""
    locked, free = asyncio.Event(), asyncio.Event()

    async def fill(_: Connection) -> None:
        locked.set()
        await free.wait()

    making = asyncio.create_task(create_tenant(database, parse_slug("slow"), "Slow", settings=settings, fill=fill))
    await locked.wait()
    yield free
    free.set()
    await making


async def test_new_tenants_wait_for_one_another_as_long_as_it_takes(
    shared_database: Database, linked_settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tenants whose files refer to one shared table are made one after the other, and neither fails."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", 2)
    names = {parse_slug(f"new{number}"): "New" for number in range(3)}

    async with making_slowly(shared_database, linked_settings) as free:
        making = asyncio.create_task(create_tenants(shared_database, names, settings=linked_settings, jobs=3))
        looking = await asyncpg.connect(database_url)
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND NOT granted"

        async def all_wait() -> bool:
            return bool(await looking.fetchval(waiting) == len(names))

        await wait_until(all_wait)
        await looking.close()
        free.set()
        assert await making == len(names)


async def test_without_turns_a_new_tenant_fails_behind_another(
    shared_database: Database, linked_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: short waits alone end before a tenant is made whose first rows take long."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", 2)
    turn = wait_for_turn

    async with making_slowly(shared_database, linked_settings):
        monkeypatch.setattr(provisioning, "wait_for_turn", _never_wait)
        with pytest.raises(TenantBusyError):
            await create_tenant(shared_database, NEWCO, "New", settings=linked_settings)
        monkeypatch.setattr(provisioning, "wait_for_turn", turn)


async def _never_wait(*_: object) -> None:
    """Take no turn."""


async def test_init_lets_workers_read_the_registry(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new column of the registry waits for whoever reads it, by short tries, and workers read it meanwhile."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", ENDLESS)
    files = registry_tables._get_registry_migrations()
    more = Migration(len(files) + 1, f"{len(files) + 1:04}_more.sql", ALTER_REGISTRY)
    monkeypatch.setattr(registry_tables, "_get_registry_migrations", lambda: (*files, more))

    async with using(database_url, "SELECT FROM quart_tenants.tenants") as reader:
        initializing = asyncio.create_task(init_registry(database))
        await wait_for_tries(database_url, "AccessExclusiveLock", table="quart_tenants.tenants")
        other = await asyncpg.connect(database_url)
        for _ in range(5):
            assert await other.fetchval("SELECT count(*) FROM quart_tenants.tenants") == 4
        await other.close()
        assert not initializing.done()
        await reader.execute("COMMIT")
        assert await initializing == 1


async def test_init_says_who_reads_the_registry(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its last try it names the reader, and the registry is as it was."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", 5)
    files = registry_tables._get_registry_migrations()
    more = Migration(len(files) + 1, f"{len(files) + 1:04}_more.sql", ALTER_REGISTRY)
    monkeypatch.setattr(registry_tables, "_get_registry_migrations", lambda: (*files, more))

    async with using(database_url, "SELECT FROM quart_tenants.tenants") as reader:
        told = rf"table quart_tenants\.tenants is in use by pid {reader.get_server_pid()} "
        with pytest.raises(DatabaseTimeoutError, match=told):
            await init_registry(database)

    monkeypatch.undo()
    assert await init_registry(database) == 0


async def test_ready_tenant_waits_shortly_for_a_writer_of_the_shared_table(
    shared_database: Database, linked_settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made in advance has no more patience than a new tenant, and names the writer."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", 5)
    ready = replace(linked_settings, ready_tenants=1)

    async with using(database_url, "INSERT INTO common.plans VALUES (2)") as writer:
        told = rf"table common\.plans is in use by pid {writer.get_server_pid()} "
        with pytest.raises(DatabaseTimeoutError, match=told):
            await prepare_tenants(shared_database, settings=ready)

    assert (await prepare_tenants(shared_database, settings=ready)).made == 1


@pytest.fixture
async def depended_file(database: Database, settings: Settings, database_url: str, tmp_path: Path) -> Path:
    """A backup of acme, to which a foreign key of the shared table leads."""
    file = tmp_path / "acme.tar"
    await backup_tenant(database, ACME, file, settings=settings)
    await execute(
        database_url,
        *PLANS,
        "CREATE TABLE acme.hub (id int PRIMARY KEY)",
        "ALTER TABLE common.plans ADD CONSTRAINT hub FOREIGN KEY (id) REFERENCES acme.hub NOT VALID",
    )
    return file


async def test_replacing_lets_others_read_what_depends_on_the_tenant(
    database: Database, settings: Settings, database_url: str, depended_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What depends on the replaced tables is dropped by short tries, while all that was restored stays."""
    monkeypatch.setattr(restore_scripts, "MOST_TRIES", ENDLESS)

    async with using(database_url) as reader:
        restoring = asyncio.create_task(
            restore_tenant(database, depended_file, ACME, settings=settings, replace=True, including_dependents=True)
        )
        await wait_for_tries(database_url, "AccessExclusiveLock")
        await read_between(database_url)
        assert not restoring.done()
        await reader.execute("COMMIT")
        await restoring

    assert len(await list_trash(database)) == 1


async def test_replacing_gives_up_and_changes_nothing(
    database: Database, settings: Settings, database_url: str, depended_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its last try it says who uses a table, and the living tenant is as it was."""
    monkeypatch.setattr(restore_scripts, "MOST_TRIES", 8)

    async with using(database_url) as reader:
        with pytest.raises(TenantBusyError, match=rf"table common\.plans is in use by pid {reader.get_server_pid()} "):
            await restore_tenant(
                database, depended_file, ACME, settings=settings, replace=True, including_dependents=True
            )

    assert await list_trash(database) == []
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT to_regclass('acme.hub')") is not None
        assert await connection.fetchval("SELECT count(*) FROM pg_constraint WHERE conname = 'hub'") == 1
