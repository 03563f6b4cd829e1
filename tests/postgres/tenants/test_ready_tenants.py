"""A tenant that was made in advance is as good as one that is made now, and nobody's before it is taken."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from quart_tenants.connection import Connection
from quart_tenants.errors import MigrationFailedError, MigrationFileError, SchemaExistsError, SharedNameError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.drift import find_drift
from quart_tenants.postgres.fleet.status import get_fleet_status
from quart_tenants.postgres.migrations.migration_files import get_tenant_migrations
from quart_tenants.postgres.registry.registry_tables import get_tenant, list_tenants
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.postgres.tenants import ready_tenants
from quart_tenants.postgres.tenants.provisioning import create_tenant, create_tenants
from quart_tenants.postgres.tenants.ready_making import ReadyReport, keep_ready, prepare_tenants
from quart_tenants.postgres.tenants.ready_tenants import count_ready
from quart_tenants.postgres.tenants.schema_moves import rename_schema
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant
from tests.support.patience import wait_until
from tests.support.roles import dropping_roles, set_up_roles

FIRST_FILE = """
CREATE TYPE state AS ENUM ('open', 'shut');
CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL, state state DEFAULT 'open');
CREATE FUNCTION count_notes() RETURNS bigint LANGUAGE sql SET search_path FROM CURRENT
    AS 'SELECT count(*) FROM notes';
"""
# What a rename does not reach, and the words by which it is refused.
NAMES_IN_TEXTS = {
    "function f": "DO $$ BEGIN EXECUTE format("
    "'CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS ''SELECT count(*) FROM %I.notes''', current_schema()); END $$",
    "default value": "CREATE SEQUENCE numbers; DO $$ BEGIN EXECUTE format("
    "'ALTER TABLE notes ADD number bigint DEFAULT nextval(''%s.numbers''::text::regclass)', current_schema()); END $$",
    "a row of notes": "INSERT INTO notes (body) SELECT 'this is ' || current_schema()",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of migrations with one file."""
    (path := tmp_path / "migrations").mkdir()
    (path / "0001_notes.sql").write_text(FIRST_FILE)
    return path


@pytest.fixture(params=["one role", "a role per tenant"])
async def settings(
    request: pytest.FixtureRequest, folder: Path, server_url: str, database_url: str
) -> AsyncIterator[Settings]:
    """Settings that want three ready tenants, in both role modes; there are no tenants yet."""
    settings = Settings(
        database_url=database_url,
        migrations_dir=folder,
        pool_max_size=5,
        ready_tenants=3,
        role_per_tenant=request.param != "one role",
        connect_timeout=60.0,
        acquire_timeout=60.0,
    )
    async with dropping_roles(server_url, database_url):
        async with await Database.open(settings, max_size=1) as database:
            async with database.connection() as connection:
                await connection.execute(
                    "DELETE FROM quart_tenants.applied_migrations WHERE schema_name <> 'quart_tenants';"
                    " DELETE FROM quart_tenants.tenants"
                )
            if settings.role_per_tenant:
                await set_up_roles(database)
        yield settings


async def list_ready(database: Database) -> list[str]:
    """Return the ready schemas that exist, and those that were never finished."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT nspname FROM pg_namespace WHERE nspname ~ '^quart_tenants_(ready|making)_' ORDER BY oid"
        )
    return [row["nspname"] for row in rows]


async def create(database: Database, settings: Settings, slug: str) -> Tenant:
    """Create a tenant with a note."""

    async def write_note(connection: Connection) -> None:
        await connection.execute("INSERT INTO notes (body) VALUES ($1)", slug)

    return await create_tenant(database, Slug(slug), slug, settings=settings, fill=write_note)


async def read_notes(database: Database, tenant: Tenant) -> tuple[list[str], int]:
    """Return the tenant's notes, and what its function counts."""
    async with database.tenant_connection(tenant) as connection:
        bodies = [row["body"] for row in await connection.fetch("SELECT body FROM notes")]
        return bodies, await connection.fetchval("SELECT count_notes()")


async def test_taken_tenant_is_as_one_that_was_made(database: Database, settings: Settings) -> None:
    """It has the tables, the rights and the record of one that is made, its functions read its own rows, no others'."""
    made = await create(database, settings, "made")
    assert await prepare_tenants(database, settings=settings) == ReadyReport(made=3, removed=0, ready=3)

    taken = [await create(database, settings, f"taken{number}") for number in range(3)]

    assert await list_ready(database) == []
    everybody = [made, *taken]
    assert [await read_notes(database, tenant) for tenant in everybody] == [([t.slug], 1) for t in everybody]
    assert await get_tenant(database, taken[0].slug) == taken[0]
    majorities, drift = await find_drift(database, everybody, settings=settings)
    assert (drift, [majority.count for majority in majorities]) == ([], [4])
    async with database.connection() as connection:
        rights = await connection.fetch(
            "SELECT n.nspowner, cardinality(n.nspacl) AS grants, count(*) AS parts, min(c.relowner::bigint)"
            " FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid"
            " WHERE nspname = ANY ($1) GROUP BY n.oid",
            [tenant.schema.name for tenant in everybody],
        )
    assert len(rights) == 4
    assert len({tuple(row) for row in rights}) == 1


async def test_rename_alone_is_not_enough(database: Database, settings: Settings) -> None:
    """Negative control: where the paths of functions keep the old name, a function does not find its tables."""
    await prepare_tenants(database, settings=settings)
    old = SchemaName((await list_ready(database))[0])

    async with database.connection() as connection:
        await rename_schema(connection, old, SchemaName("naive"))

    async with database.connection() as connection:
        paths = await connection.fetchval(
            "SELECT proconfig FROM pg_proc WHERE pronamespace = 'naive'::regnamespace AND proname = 'count_notes'"
        )
    assert paths == [f"search_path={old}"]


async def test_ready_tenant_is_nobodys(database: Database, settings: Settings) -> None:
    """It is not listed, counted or compared, and no role but its owner may look into it."""
    await create(database, settings, "newco")

    await prepare_tenants(database, settings=settings)

    assert [tenant.slug for tenant in await list_tenants(database)] == ["newco"]
    status = await get_fleet_status(database, settings=settings)
    assert (status.tenants, status.trash, status.drift, status.ready) == (1, 0, (), 3)
    assert status.majorities is not None
    assert [majority.compared for majority in status.majorities] == [1]
    async with database.connection() as connection:
        grants = await connection.fetch(
            "SELECT x.grantee FROM pg_namespace AS n CROSS JOIN LATERAL aclexplode(n.nspacl) AS x"
            " WHERE starts_with(n.nspname, 'quart_tenants_ready_') AND x.grantee <> n.nspowner"
        )
    assert grants == []


async def test_without_a_ready_one_a_tenant_is_made(database: Database, settings: Settings) -> None:
    """The fourth of three, and every tenant of a list, for a list must not take what sign-ups wait for."""
    await prepare_tenants(database, settings=settings)
    await create_tenants(database, {Slug("listed"): "Listed"}, settings=settings)
    assert len(await list_ready(database)) == 3

    tenants = [await create(database, settings, f"t{number}") for number in range(4)]

    assert [await read_notes(database, tenant) for tenant in tenants] == [([t.slug], 1) for t in tenants]


async def test_first_rows_that_fail_give_the_ready_one_back(database: Database, settings: Settings) -> None:
    """A sign-up that fails or meets a taken schema leaves no tenant, and takes nothing."""
    await prepare_tenants(database, settings=settings)
    before = await list_ready(database)

    async def fail(connection: Connection) -> None:
        await connection.execute("INSERT INTO notes (body) VALUES ('lost')")
        raise LookupError

    with pytest.raises(LookupError):
        await create_tenant(database, Slug("newco"), "Newco", settings=settings, fill=fail)
    async with database.connection() as connection:
        await connection.execute("CREATE SCHEMA foreign_schema")
    with pytest.raises(SchemaExistsError):
        await create_tenant(database, Slug("newco"), "Newco", settings=settings, schema=SchemaName("foreign_schema"))

    assert await list_ready(database) == before
    assert await list_tenants(database) == []
    assert await read_notes(database, await create(database, settings, "newco")) == (["newco"], 1)


@pytest.mark.parametrize("naive", [False, True])
async def test_two_at_once_never_take_the_same(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, naive: bool
) -> None:
    """The second sign-up takes another one while the first has not committed. Negative control: it only looks."""
    await prepare_tenants(database, settings=settings)
    if naive:
        monkeypatch.setattr(ready_tenants, "_TAKE", "SELECT min(id) FROM quart_tenants.ready_schemas WHERE recipe = $1")
    recipe = "SELECT min(recipe) FROM quart_tenants.ready_schemas"

    async with database.connection() as first, database.connection() as second:
        taken = [
            await connection.fetchval(ready_tenants._TAKE, await connection.fetchval(recipe))
            for connection in (first, second)
        ]

    assert (len(set(taken)) == 1) == naive


async def test_many_at_once_get_one_each(database: Database, settings: Settings) -> None:
    """Twelve sign-ups over five connections, with eight ready tenants, while two processes make more."""
    settings = replace(settings, ready_tenants=8)
    await prepare_tenants(database, settings=settings)

    async with await Database.open(settings, max_size=2) as others:
        tenants = await asyncio.gather(
            *(create(database, settings, f"t{number}") for number in range(12)),
        )
        await asyncio.gather(*(prepare_tenants(others, settings=settings) for _ in range(2)))

    assert [await read_notes(database, tenant) for tenant in tenants] == [([t.slug], 1) for t in tenants]
    assert len(await list_ready(database)) == 8


async def test_other_files_are_not_taken(database: Database, settings: Settings, folder: Path) -> None:
    """After a new file the ready ones are thrown away and made anew; a program that has no such file leaves them."""
    await prepare_tenants(database, settings=settings)
    old = await list_ready(database)
    migrations = get_tenant_migrations(settings)
    (folder / "0002_colour.sql").write_text("ALTER TABLE notes ADD colour text")

    made = await create(database, settings, "made")
    report = await prepare_tenants(database, settings=settings)
    taken = await create(database, settings, "taken")

    assert report == ReadyReport(made=3, removed=3, ready=3)
    assert not set(old) & set(await list_ready(database))
    assert (made.version, taken.version) == (2, 2)
    assert (await find_drift(database, [made, taken], settings=settings))[1] == []
    (folder / "0002_colour.sql").unlink()
    newer = await list_ready(database)
    assert await prepare_tenants(database, settings=settings) == ReadyReport()
    assert await list_ready(database) == newer
    async with database.connection() as connection:
        assert await count_ready(connection, migrations, settings=settings) == 0


async def test_number_follows_the_setting(database: Database, settings: Settings) -> None:
    """Too many are thrown away, one that somebody dropped by hand is replaced, and with 0 there are none."""
    await prepare_tenants(database, settings=settings)
    async with database.connection() as connection:
        await connection.execute(f"DROP SCHEMA {(await list_ready(database))[0]} CASCADE")

    replaced = await prepare_tenants(database, settings=settings)
    fewer = await prepare_tenants(database, settings=replace(settings, ready_tenants=1))
    kept = await list_ready(database)
    none = await prepare_tenants(database, settings=replace(settings, ready_tenants=0))

    assert replaced == ReadyReport(made=1, removed=1, ready=3)
    assert (fewer, len(kept)) == (ReadyReport(made=0, removed=2, ready=1), 1)
    assert (none, await list_ready(database)) == (ReadyReport(made=0, removed=1, ready=0), [])
    async with database.connection() as connection:
        assert await connection.fetch("SELECT FROM quart_tenants.applied_migrations WHERE schema_name ~ 'ready'") == []


@pytest.mark.parametrize("told", NAMES_IN_TEXTS)
async def test_name_that_no_renaming_reaches_is_refused(
    database: Database, settings: Settings, folder: Path, told: str
) -> None:
    """A tenant would read another one's rows by it. Nothing is made in advance, and tenants are made as without."""
    (folder / "0002_name.sql").write_text(NAMES_IN_TEXTS[told])

    with pytest.raises(MigrationFailedError, match=told):
        await prepare_tenants(database, settings=settings)

    assert await list_ready(database) == []
    assert (await create_tenant(database, Slug("newco"), "Newco", settings=settings)).version == 2


@pytest.mark.parametrize("settings", ["one role"], indirect=True)
async def test_files_for_several_transactions_are_refused(database: Database, settings: Settings, folder: Path) -> None:
    """What cannot be made in one transaction is not made in advance, and the error says what to do."""
    (folder / "0002_check.sql").write_text(
        "ALTER TABLE notes ADD UNIQUE (body) DEFERRABLE; SET CONSTRAINTS ALL DEFERRED"
    )
    (folder / "0003_more.sql").write_text("ALTER TABLE notes ADD UNIQUE (state) DEFERRABLE")

    with pytest.raises(MigrationFileError, match=r"0003_more\.sql: .*TENANTS_READY_TENANTS to 0"):
        await prepare_tenants(database, settings=settings)

    assert await list_ready(database) == []
    assert (await create_tenant(database, Slug("newco"), "Newco", settings=settings)).version == 3


@pytest.mark.parametrize("settings", ["one role"], indirect=True)
async def test_value_that_must_be_committed_first_is_refused_with_a_remedy(
    database: Database, settings: Settings, folder: Path
) -> None:
    """Where PostgreSQL lets nobody use a new enum value before the commit, the error names the file and what to do."""
    async with database.connection() as connection:
        # The type is older than the transaction, so that every version of PostgreSQL needs a commit here.
        await connection.execute("CREATE TYPE public.mood AS ENUM ('sad')")
    (folder / "0002_glad.sql").write_text("ALTER TYPE public.mood ADD VALUE IF NOT EXISTS 'glad'")
    (folder / "0003_use.sql").write_text("CREATE TABLE moods (mood public.mood DEFAULT 'glad')")

    with pytest.raises(MigrationFileError, match=r"0003_use\.sql: .*TENANTS_READY_TENANTS to 0.* PostgreSQL 17"):
        await prepare_tenants(database, settings=settings)

    assert await list_ready(database) == []
    # Without one in advance, as many transactions are used as it needs.
    assert (await create_tenant(database, Slug("newco"), "Newco", settings=settings)).version == 3


@pytest.mark.parametrize("settings", ["one role"], indirect=True)
async def test_shared_tables_that_changed_are_noticed(database: Database, settings: Settings, tmp_path: Path) -> None:
    """After a shared file none is taken; a name that somebody shares by hand is refused when one is taken."""
    (files := tmp_path / "shared").mkdir()
    (files / "0001_plans.sql").write_text("CREATE TABLE plans (id int PRIMARY KEY)")
    settings = replace(settings, shared_schemas=(SchemaName("common"),), shared_migrations_dir=files)
    async with await Database.open(settings, max_size=1) as database:
        await migrate_shared(database, settings=settings)
        await prepare_tenants(database, settings=settings)
        (files / "0002_more.sql").write_text("CREATE TABLE more (id int PRIMARY KEY)")
        await migrate_shared(database, settings=settings)
        async with database.connection() as connection:
            left = await count_ready(connection, get_tenant_migrations(settings), settings=settings)

        again = await prepare_tenants(database, settings=settings)
        async with database.connection() as connection:
            await connection.execute("CREATE TABLE common.notes ()")
        with pytest.raises(SharedNameError, match="notes"):
            await create(database, settings, "newco")

    assert left == 0
    assert again == ReadyReport(made=3, removed=3, ready=3)


@pytest.mark.parametrize("settings", ["one role"], indirect=True)
async def test_worker_makes_new_ones_when_some_are_taken(database: Database, settings: Settings) -> None:
    """It does so at once, and goes on after an error."""
    taken = asyncio.Event()
    upkeep = asyncio.create_task(keep_ready(database, taken, settings=settings, look_every=0.05))

    async def is_full() -> bool:
        return len(await list_ready(database)) == 3

    try:
        await wait_until(is_full)
        async with database.connection() as connection:
            await connection.execute("ALTER TABLE quart_tenants.ready_schemas RENAME TO hidden")
        await create_tenants(database, {Slug("meanwhile"): "M"}, settings=settings)
        async with database.connection() as connection:
            await connection.execute("ALTER TABLE quart_tenants.hidden RENAME TO ready_schemas")
        first = await list_ready(database)
        await create(database, settings, "newco")
        taken.set()
        await wait_until(is_full)
    finally:
        upkeep.cancel()
        with suppress(asyncio.CancelledError):
            await upkeep

    assert set(first) != set(await list_ready(database))


TAKER = """
import asyncio, sys
from pathlib import Path
from quart_tenants.admin import Database, create_tenant, parse_slug
from quart_tenants.settings import Settings

async def main(url, folder):
    settings = Settings(database_url=url, migrations_dir=Path(folder), ready_tenants=3)
    async def hang(connection):
        await connection.execute("INSERT INTO notes (body) VALUES ('half')")
        print("taken", flush=True)
        await asyncio.Event().wait()
    async with await Database.open(settings, max_size=1) as database:
        await create_tenant(database, parse_slug("newco"), "Newco", settings=settings, fill=hang)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["one role"], indirect=True)
async def test_kill_in_the_middle_leaves_it_ready(database: Database, settings: Settings, folder: Path) -> None:
    """After kill -9 there is no tenant, and the next one takes the same schema, with nothing of the first."""
    await prepare_tenants(database, settings=settings)
    before = await list_ready(database)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TAKER, settings.required_database_url, str(folder), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"taken\n"

    process.send_signal(signal.SIGKILL)
    await process.communicate()

    async def is_rolled_back() -> bool:
        async with database.connection() as connection:
            count = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'INSERT INTO notes'"
                " AND datname = current_database() AND pid <> pg_backend_pid()"
            )
        return bool(count == 0)

    await wait_until(is_rolled_back)
    assert await list_ready(database) == before
    assert await list_tenants(database) == []
    assert await read_notes(database, await create(database, settings, "newco")) == (["newco"], 1)
    assert await list_ready(database) == before[1:]


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["one role"], indirect=True)
async def test_hundred_sign_ups_in_a_row(database: Database, settings: Settings) -> None:
    """Each customer has a working tenant of its own, whether it was ready or not."""
    taken = asyncio.Event()
    upkeep = asyncio.create_task(keep_ready(database, taken, settings=settings))
    tenants = []
    for number in range(100):
        tenants.append(await create(database, settings, f"t{number}"))
        taken.set()
    upkeep.cancel()

    assert [await read_notes(database, tenant) for tenant in tenants] == [([t.slug], 1) for t in tenants]
    assert (await find_drift(database, tenants, settings=settings))[1] == []
