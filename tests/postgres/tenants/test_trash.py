"""The trash: out of reach from the moment of the drop, back as it was, deleted for good however large it is."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from quart_tenants.domain import parse_domain
from quart_tenants.errors import (
    DatabaseFullError,
    DatabaseRefusedError,
    DatabaseUnavailableError,
    RecentlyDroppedError,
    SchemaExistsError,
    TenantBusyError,
    TenantError,
    TenantInTrashError,
    TenantNotInTrashError,
    UnknownSchemaError,
    UnknownTenantError,
)
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks import short_waits
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres
from quart_tenants.postgres.registry import tenant_locks
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.registry.registry_tables import get_tenant, init_registry, list_tenants
from quart_tenants.postgres.registry.tenant_locks import lock_tenant
from quart_tenants.postgres.tenants.domains import add_domain, remove_domain
from quart_tenants.postgres.tenants.lifecycle import rename_tenant, suspend_tenant
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant
from quart_tenants.postgres.tenants.purge import find_purgeable, purge_tenants, purge_trash
from quart_tenants.postgres.tenants.trash import TrashedTenant, drop_tenant, list_trash, undrop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant, parse_schema_name, parse_slug
from quart_tenants.testing.databases import FAST_AND_FORGETFUL
from tests.support.clocks import DAY
from tests.support.databases import REFERENCE_FILES, let_names_rest

ACME, GLOBEX, NEWCO, BIG = parse_slug("acme"), parse_slug("globex"), parse_slug("newco"), parse_slug("big")

# A table of locks as small as PostgreSQL allows, so that a few hundred tables are as thousands elsewhere.
FEW_LOCKS = FAST_AND_FORGETFUL | {
    "max_locks_per_transaction": "10",
    "max_connections": "10",
    "max_worker_processes": "1",
    "max_wal_senders": "0",
    "autovacuum": "off",
    "autovacuum_worker_slots": "1",
}
TABLES = 600
# Each statement in a transaction of its own.
HUB = (
    'CREATE SCHEMA "Big ""1"" x"',
    'CREATE TABLE "Big ""1"" x".hub (id int PRIMARY KEY)',
    'CREATE SEQUENCE "Big ""1"" x".alone',
    'CREATE TYPE "Big ""1"" x".mood AS ENUM (\'fine\')',
    'CREATE FUNCTION "Big ""1"" x".answer ("Big ""1"" x".mood) RETURNS int LANGUAGE sql RETURN 42',
)
# Half of them refer to one table, and have so many columns that fifty at once are too many to drop here.
ADD_TABLES = """
DO $do$ BEGIN
    FOR number IN {first} .. {last} LOOP
        IF number % 2 = 0 THEN
            EXECUTE format('CREATE TABLE "Big ""1"" x".%I (day int, year int)', 'Part ' || number);
        ELSE
            EXECUTE format(
                'CREATE TABLE "Big ""1"" x".%I (id int REFERENCES "Big ""1"" x".hub, %s)', 'T;able ' || number,
                (SELECT string_agg(format('c%s int DEFAULT 1', n), ',') FROM generate_series(1, 30) AS n));
        END IF;
    END LOOP;
END $do$
"""
# The other half are partitions, and older than their parent.
PARENTS = (
    'CREATE TABLE "Big ""1"" x".measured (day int, year int) PARTITION BY LIST (year)',
    'CREATE TABLE "Big ""1"" x".y1 PARTITION OF "Big ""1"" x".measured FOR VALUES IN (1) PARTITION BY RANGE (day)',
    'CREATE VIEW "Big ""1"" x".days AS SELECT day FROM "Big ""1"" x".measured',
    'CREATE MATERIALIZED VIEW "Big ""1"" x".seen AS SELECT day FROM "Big ""1"" x".days',
)
ATTACH_TABLES = """
DO $do$ BEGIN
    FOR number IN {first} .. {last} BY 2 LOOP
        EXECUTE format(
            'ALTER TABLE "Big ""1"" x".y1 ATTACH PARTITION "Big ""1"" x".%I FOR VALUES FROM (%s) TO (%s)',
            'Part ' || number, number, number + 2);
    END LOOP;
END $do$
"""
COUNT_RELATIONS = """
SELECT count(*) FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname LIKE 'quart_tenants_trash_%' AND c.relkind <> 'i'
"""
# The end of the connection in the middle of a purge: when the oldest of acme's tables is dropped.
KILL_AT_THE_FIRST_TABLE = """
CREATE FUNCTION public.kill() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_event_trigger_dropped_objects() AS o WHERE o.object_name = 'app_user') THEN
        PERFORM pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid());
    END IF;
END $$;
CREATE EVENT TRIGGER kill ON sql_drop EXECUTE FUNCTION public.kill()
"""
LET_BE_DROPPED = """
UPDATE quart_tenants.tenants SET dropped_at = now() - make_interval(secs => $1) WHERE dropped_at IS NOT NULL
"""
ADD_ROW = "INSERT INTO company_data (description) VALUES ('secret')"
LIST_ROWS = "SELECT description FROM company_data"


@pytest.fixture
async def database_of_few_locks() -> AsyncIterator[Database]:
    """A pool on a server whose table of locks is small."""
    with tempfile.TemporaryDirectory(prefix="quart-tenants-tests-") as folder:
        Path(folder).chmod(0o711)
        async with (
            EmbeddedPostgres(Path(folder) / "postgres", options=FEW_LOCKS) as server,
            await Database.open(
                Settings(migrations_dir=REFERENCE_FILES, database_url=server.url), max_size=2
            ) as database,
        ):
            yield database


async def execute(database: Database, statement: str) -> None:
    """Run one statement in a transaction of its own."""
    async with database.connection() as connection:
        await connection.execute(statement)


async def let_be_dropped(database: Database, days: float) -> None:
    """Let it be so many *days* ago that everything in the trash was dropped."""
    async with database.connection() as connection:
        await connection.execute(LET_BE_DROPPED, days * 86400)


async def count_relations(database: Database) -> int:
    """Return how many relations are in the trash."""
    async with database.connection() as connection:
        return int(await connection.fetchval(COUNT_RELATIONS))


async def read_as_stale_worker(database: Database, tenant: Tenant) -> list[str]:
    """Return what a worker reads that has not heard of a drop."""
    async with database.tenant_connection(tenant) as connection:
        return [row["description"] for row in await connection.fetch(LIST_ROWS)]


# Drop


async def test_worker_that_remembers_a_dropped_tenant_reads_nothing(database: Database, acme: Tenant) -> None:
    """From its commit on, the drop keeps everybody out, also who has not heard of it."""
    async with database.tenant_connection(acme) as connection:
        await connection.execute(ADD_ROW)

    await drop_tenant(database, ACME)

    with pytest.raises(UnknownTenantError):
        await read_as_stale_worker(database, acme)


async def test_naive_drop_lets_a_stale_worker_read(database: Database, settings: Settings, acme: Tenant) -> None:
    """Negative control: without renaming the schema the old rows can be read, without a rest the next tenant's."""
    async with database.tenant_connection(acme) as connection:
        await connection.execute(ADD_ROW)
    await execute(database, "DELETE FROM quart_tenants.tenants WHERE slug = 'acme'")
    assert await read_as_stale_worker(database, acme) == ["secret"]

    await execute(database, "DROP SCHEMA acme CASCADE")
    await execute(database, "DELETE FROM quart_tenants.applied_migrations WHERE schema_name = 'acme'")
    first_rows = "INSERT INTO company_data (description) VALUES ('of the next')"
    await create_tenant(database, ACME, "The next", settings=settings, first_rows=first_rows)
    assert await read_as_stale_worker(database, acme) == ["of the next"]


async def test_name_in_the_trash_is_taken(database: Database, settings: Settings) -> None:
    """Nobody creates, adopts, renames to or drops again what is in the trash, however long ago."""
    await execute(database, "CREATE SCHEMA old")
    await drop_tenant(database, ACME)
    await let_names_rest(database)
    calls = (
        create_tenant(database, ACME, "x", settings=settings),
        create_tenant(database, ACME, "x", settings=settings, schema=parse_schema_name("another")),
        adopt_schemas(database, {ACME: parse_schema_name("old")}, settings=settings, version=0),
        rename_tenant(database, GLOBEX, ACME, settings=settings),
        drop_tenant(database, ACME),
        suspend_tenant(database, ACME),
        rename_tenant(database, ACME, NEWCO, settings=settings),
    )

    for call in calls:
        with pytest.raises(TenantInTrashError, match=r"`undrop acme`.*`purge acme`"):
            await call


# Undrop


async def test_undrop_brings_everything_back(database: Database, settings: Settings, acme: Tenant) -> None:
    """Rows, number, name, version and suspension are what they were, and workers serve the tenant again."""
    async with database.tenant_connection(acme) as connection:
        await connection.execute(ADD_ROW)
    acme = await suspend_tenant(database, ACME)
    registry = Registry(database, settings)
    await registry.load()
    await drop_tenant(database, ACME)
    await registry.refresh()

    back = await undrop_tenant(database, ACME, settings=settings)

    assert back == acme
    assert back == await get_tenant(database, ACME)
    assert await read_as_stale_worker(database, back) == ["secret"]
    assert await list_trash(database) == []
    await execute(database, "UPDATE quart_tenants.tenants SET suspended_at = NULL")
    await execute(database, f"INSERT INTO quart_tenants.changes (tenant_id) VALUES ({back.id})")
    await registry.refresh()
    assert registry.get_tenant(ACME) == replace(back, suspended=False)


async def test_undrop_says_what_is_in_its_way(database: Database, settings: Settings) -> None:
    """A tenant that never was dropped, a schema of its name, and one that somebody deleted are errors that say so."""
    for slug in (ACME, NEWCO):
        with pytest.raises(TenantNotInTrashError, match=f"no tenant '{slug}' is in the trash"):
            await undrop_tenant(database, slug, settings=settings)
    dropped = await drop_tenant(database, ACME)
    await execute(database, "CREATE SCHEMA acme")
    with pytest.raises(SchemaExistsError):
        await undrop_tenant(database, ACME, settings=settings)
    await execute(database, "DROP SCHEMA acme")
    await execute(database, f"DROP SCHEMA quart_tenants_trash_{dropped.id} CASCADE")

    with pytest.raises(UnknownSchemaError, match="it is gone"):
        await undrop_tenant(database, ACME, settings=settings)


async def test_undrop_waits_until_another_tenant_of_its_schema_is_forgotten(
    database: Database, settings: Settings, acme: Tenant
) -> None:
    """A worker that has not heard of the other one's drop would show its visitors the rows that came back."""
    async with database.tenant_connection(acme) as connection:
        await connection.execute(ADD_ROW)
    await drop_tenant(database, ACME)
    await let_names_rest(database)
    other = await create_tenant(database, NEWCO, "x", settings=settings, schema=acme.schema)
    await drop_tenant(database, NEWCO)

    with pytest.raises(RecentlyDroppedError, match=r"'acme' was another tenant's .* try again in 11 s"):
        await undrop_tenant(database, ACME, settings=settings)

    with pytest.raises(UnknownTenantError):
        await read_as_stale_worker(database, other)
    # Negative control: the name does not rest.
    await let_names_rest(database)
    assert await undrop_tenant(database, ACME, settings=settings) == acme
    assert await read_as_stale_worker(database, other) == ["secret"]


async def test_names_rest_from_the_end_of_the_transaction_that_frees_them(
    database: Database, settings: Settings, acme: Tenant
) -> None:
    """It may have waited for a lock since its start, while workers still read the old state as a fresh one."""
    for table, column in (("resting_names", "free_at"), ("former_slugs", "redirect_until"), ("changes", "changed_at")):
        await execute(database, f"ALTER TABLE quart_tenants.{table} ADD CHECK ({column} > now()) NOT VALID")
    # Negative control.
    with pytest.raises(asyncpg.CheckViolationError):
        await execute(database, "INSERT INTO quart_tenants.changes (tenant_id, changed_at) VALUES (1, now())")
    shop = parse_domain("shop.example.com")

    await rename_tenant(database, GLOBEX, NEWCO, settings=settings, redirect_days=0)
    await rename_tenant(database, ACME, parse_slug("newer"), settings=settings, redirect_days=7)
    await add_domain(database, NEWCO, shop, settings=settings, trusted=True)
    await remove_domain(database, shop)
    await drop_tenant(database, NEWCO)
    await drop_tenant(database, parse_slug("newer"))
    await purge_trash(database, settings=settings, older_than_days=0)

    async with database.connection() as connection:
        rows = await connection.fetch("SELECT slug, free_at < now() AS freed FROM quart_tenants.resting_names")
    assert {row["slug"] for row in rows} == {"acme", "newer", "globex", "newco", shop}
    assert all(row["freed"] for row in rows)


# Purge


async def test_clock_that_was_set_back_deletes_nothing_early(database: Database, settings: Settings) -> None:
    """A tenant that was dropped while the clock was ahead stays, whatever its age is to be, and can come back."""
    await drop_tenant(database, ACME)
    await let_be_dropped(database, -1)

    assert await purge_trash(database, settings=settings, older_than_days=0) == []
    assert (await undrop_tenant(database, ACME, settings=settings)).slug == ACME


@pytest.mark.parametrize("ahead", ["server", "program"])
async def test_clock_that_is_ahead_deletes_nothing_while_the_other_is_right(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, ahead: str
) -> None:
    """The clock that is behind counts, whichever machine it is on; a tenant that is named goes all the same."""
    true_time, wrong = time.time, 31 * DAY
    await drop_tenant(database, ACME)
    if ahead == "server":
        await let_be_dropped(database, wrong / DAY)
        monkeypatch.setattr(time, "time", lambda: true_time() - wrong)
    else:
        monkeypatch.setattr(time, "time", lambda: true_time() + wrong)

    assert await purge_trash(database, settings=settings) == []

    assert [tenant.slug for tenant in await purge_trash(database, settings=settings, slugs=[ACME])] == [ACME]


async def test_by_the_clock_of_the_server_alone_it_would_be_deleted(database: Database, settings: Settings) -> None:
    """Negative control: with both clocks ahead, as on one machine, what was dropped a moment ago is purged."""
    await drop_tenant(database, ACME)
    await let_be_dropped(database, 31)

    assert [tenant.slug for tenant in await purge_trash(database, settings=settings)] == [ACME]


@pytest.mark.parametrize(("behind", "left"), [(40 * DAY, 1), (0, 0)], ids=["one clock", "both (negative control)"])
async def test_clock_of_the_server_that_is_ahead_ends_no_redirect(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, behind: float, left: int
) -> None:
    """A former slug leads on to its tenant after a purge, if the time of its redirect is not over by both clocks."""
    true_time = time.time
    await rename_tenant(database, ACME, NEWCO, settings=settings, redirect_days=30)
    await execute(
        database, "UPDATE quart_tenants.former_slugs SET redirect_until = redirect_until - interval '40 days'"
    )
    monkeypatch.setattr(time, "time", lambda: true_time() - behind)

    await purge_trash(database, settings=settings)

    async with database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM quart_tenants.former_slugs") == left


@pytest.mark.parametrize("how", ["drop", "replace"])
async def test_drop_under_a_clock_that_was_set_back_is_not_old_tomorrow(
    database: Database, settings: Settings, tmp_path: Path, how: str
) -> None:
    """A drop is never older than the newest change, which the clock has seen before it was set back by forty days."""
    async with database.connection() as connection:
        await connection.execute("UPDATE quart_tenants.changes SET changed_at = changed_at + interval '40 days'")

    if how == "drop":
        await drop_tenant(database, ACME)
    else:
        await backup_tenant(database, ACME, tmp_path / "acme.tar", settings=settings)
        await restore_tenant(database, tmp_path / "acme.tar", ACME, settings=settings, replace=True)

    # The clock is right again.
    async with database.connection() as connection:
        await connection.execute("UPDATE quart_tenants.tenants SET dropped_at = dropped_at - interval '40 days'")
    assert len(await list_trash(database)) == 1
    assert await purge_trash(database, settings=settings) == []


async def test_purge_deletes_the_old_and_keeps_the_young(database: Database, settings: Settings) -> None:
    """What has lain for `TENANTS_TRASH_DAYS` goes, or for the days that are given; living tenants are never meant."""
    dropped = await drop_tenant(database, ACME)
    await let_be_dropped(database, settings.trash_days - 0.01)
    assert await purge_trash(database, settings=settings) == []
    await let_be_dropped(database, settings.trash_days + 0.01)
    await drop_tenant(database, GLOBEX)
    assert [tenant.slug for tenant in await find_purgeable(database, settings=settings)] == [ACME]

    purged = await purge_trash(database, settings=settings)

    assert [tenant.slug for tenant in purged] == [ACME]
    assert [tenant.slug for tenant in await list_trash(database)] == [GLOBEX]
    assert [tenant.slug for tenant in await list_tenants(database)] == ["company1", "company2"]
    async with database.connection() as connection:
        left = await connection.fetch(
            "SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname IN ('acme', $1)"
            " UNION ALL SELECT schema_name FROM quart_tenants.applied_migrations WHERE schema_name IN ('acme', $1)"
            " UNION ALL SELECT slug FROM quart_tenants.tenants WHERE slug = 'acme'",
            f"quart_tenants_trash_{dropped.id}",
        )
    assert left == []
    assert await purge_trash(database, settings=settings, older_than_days=0.0) != []


async def test_named_tenants_are_purged_at_once_and_all_must_be_there(database: Database, settings: Settings) -> None:
    """A name goes before the age; one that does not are in the trash keeps the others from being deleted."""
    await drop_tenant(database, ACME)
    await drop_tenant(database, GLOBEX)
    with pytest.raises(TenantNotInTrashError, match="'company1'"):
        await purge_trash(database, settings=settings, slugs=[ACME, parse_slug("company1")])
    assert len(await list_trash(database)) == 2

    await purge_trash(database, settings=settings, slugs=[ACME])

    assert [tenant.slug for tenant in await list_trash(database)] == [GLOBEX]
    assert await purge_trash(database, settings=settings, slugs=[]) == []


async def test_tenant_that_was_brought_back_is_not_purged(database: Database, settings: Settings) -> None:
    """What was to be deleted when it was looked for, and lives or was dropped anew since, stays."""
    await drop_tenant(database, ACME)
    found = await find_purgeable(database, settings=settings, slugs=[ACME])
    await undrop_tenant(database, ACME, settings=settings)
    assert await purge_tenants(database, found) == []
    await drop_tenant(database, ACME)
    assert await purge_tenants(database, found) == []

    assert (await undrop_tenant(database, ACME, settings=settings)).slug == ACME


async def test_purge_killed_in_the_middle_is_finished_by_the_next(database: Database, settings: Settings) -> None:
    """Half of the tables are gone: the tenant cannot come back, and the next purge goes on, however young it is."""
    async with database.tenant_connection(await get_tenant(database, ACME)) as connection:
        for number in range(60):
            await connection.execute(f"CREATE TABLE more_{number} ()")
    await drop_tenant(database, ACME)
    before = await count_relations(database)
    await execute(database, KILL_AT_THE_FIRST_TABLE)
    with pytest.raises(DatabaseUnavailableError):
        await purge_trash(database, settings=settings, slugs=[ACME])
    assert 0 < await count_relations(database) < before
    (half,) = await list_trash(database)
    assert half.half_purged
    with pytest.raises(UnknownSchemaError, match="its deletion has begun"):
        await undrop_tenant(database, ACME, settings=settings)
    await execute(database, "DROP EVENT TRIGGER kill")

    assert [tenant.slug for tenant in await purge_trash(database, settings=settings)] == [ACME]

    assert await list_trash(database) == []
    assert await count_relations(database) == 0


async def test_purge_goes_on_after_one_tenant_failed(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant that somebody still reads, or that is not ours to drop, is told, and the others are deleted."""
    monkeypatch.setattr(short_waits, "MOST_TRIES", 2)
    failed: dict[str, TenantError] = {}

    def note(tenant: TrashedTenant, error: TenantError) -> None:
        failed[tenant.slug] = error

    async with database.tenant_connection(await get_tenant(database, ACME)) as reader:
        await reader.fetch(LIST_ROWS)
        await drop_tenant(database, ACME)
        await drop_tenant(database, GLOBEX)
        tenants = await find_purgeable(database, settings=settings, older_than_days=0)

        purged = await purge_tenants(database, tenants, on_failed=note)

        assert [tenant.slug for tenant in purged] == [GLOBEX]
        assert [type(error) for error in failed.values()] == [TenantBusyError]
        with pytest.raises(TenantBusyError):
            await purge_tenants(database, tenants)

    assert len(await purge_tenants(database, tenants)) == 1


@pytest.mark.slow
async def test_tenant_larger_than_the_table_of_locks_is_purged(database_of_few_locks: Database, tmp_path: Path) -> None:
    """It is deleted piece by piece: leaves before parents, whatever kind of relation, whatever they are called."""
    database = database_of_few_locks
    await init_registry(database)
    (tmp_path / "0001_none.sql").write_text("SELECT 1")
    settings = Settings(migrations_dir=tmp_path)
    add_tables, attach_tables = (
        [statement.format(first=first, last=first + 19) for first in range(0, TABLES, 20)]
        for statement in (ADD_TABLES, ATTACH_TABLES)
    )
    for statement in (*HUB, *add_tables, *PARENTS, *attach_tables):
        await execute(database, statement)
    schema = parse_schema_name('Big "1" x')
    await adopt_schemas(database, {BIG: schema}, settings=settings, version=0)
    # Negative control: what anybody would write.
    with pytest.raises(DatabaseFullError, match="out of shared memory"):
        await execute(database, f"DROP SCHEMA {schema.quoted} CASCADE")
    await drop_tenant(database, BIG)
    assert await count_relations(database) > TABLES

    await purge_trash(database, settings=settings, slugs=[BIG])

    assert await count_relations(database) == 0
    assert await list_trash(database) == []


async def test_two_purges_at_once_share_the_work(database: Database, settings: Settings) -> None:
    """Neither fails, and at the end everything is gone."""
    for tenant in await list_tenants(database):
        await drop_tenant(database, tenant.slug)

    await asyncio.gather(*(purge_trash(database, settings=settings, older_than_days=0) for _ in range(3)))

    assert await list_trash(database) == []
    assert await count_relations(database) == 0


async def test_purge_that_postgresql_refuses_keeps_the_tenant_in_the_trash(
    database: Database, settings: Settings
) -> None:
    """What could not be dropped is told, and tried again by the next purge."""
    await drop_tenant(database, ACME)
    await execute(
        database,
        "CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;"
        "CREATE EVENT TRIGGER refuse ON sql_drop EXECUTE FUNCTION public.refuse()",
    )
    with pytest.raises(DatabaseRefusedError, match="no"):
        await purge_trash(database, settings=settings, slugs=[ACME])
    await execute(database, "ALTER EVENT TRIGGER refuse DISABLE")

    assert len(await purge_trash(database, settings=settings)) == 1


async def test_purge_forgets_what_the_registry_needs_no_more(database: Database, settings: Settings) -> None:
    """Changes, resting names and redirects of long ago go; the newest change and what is young stay."""
    registry = Registry(database, settings)
    await registry.load()
    await rename_tenant(database, ACME, NEWCO, settings=settings, redirect_days=0)
    await drop_tenant(database, GLOBEX)
    await execute(database, "UPDATE quart_tenants.changes SET changed_at = changed_at - interval '2 days'")
    await execute(database, "UPDATE quart_tenants.resting_names SET free_at = free_at - interval '2 days'")
    await execute(database, "UPDATE quart_tenants.former_slugs SET redirect_until = now() - interval '2 days'")
    await rename_tenant(database, NEWCO, parse_slug("newer"), settings=settings)
    await execute(database, "UPDATE quart_tenants.changes SET changed_at = changed_at - interval '2 days'")

    await purge_trash(database, settings=settings)

    async with database.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM quart_tenants.changes") == 1
        assert [row["slug"] for row in await connection.fetch("SELECT slug FROM quart_tenants.former_slugs")] == [NEWCO]
        assert [row["slug"] for row in await connection.fetch("SELECT slug FROM quart_tenants.resting_names")] == [
            NEWCO
        ]
    # A reader whose place in the feed is gone misses nothing: it reads all anew.
    await registry.refresh()
    assert registry.get_tenant(parse_slug("newer")).slug == "newer"
    for gone in (ACME, GLOBEX):
        with pytest.raises(UnknownTenantError):
            registry.get_tenant(gone)


# At the same time


async def test_second_command_on_one_tenant_waits_or_says_that_it_is_busy(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one command works on a tenant no other does, and other tenants are free."""
    monkeypatch.setattr(tenant_locks, "PATIENCE", 0.05)
    async with database.connection() as connection:
        await lock_tenant(connection, ACME)
        for call in (
            drop_tenant(database, ACME),
            suspend_tenant(database, ACME),
            rename_tenant(database, ACME, NEWCO, settings=settings),
        ):
            with pytest.raises(TenantBusyError, match="'acme' is being migrated or changed"):
                await call
        await drop_tenant(database, GLOBEX)
    monkeypatch.undo()

    results = await asyncio.gather(
        *(drop_tenant(database, ACME) for _ in range(2)),
        *(rename_tenant(database, ACME, NEWCO, settings=settings) for _ in range(2)),
        return_exceptions=True,
    )

    # Either the drop came first, or the rename and then nothing is called acme any more.
    kinds = sorted(type(result).__name__ for result in results)
    assert kinds in (["Tenant"] + ["TenantInTrashError"] * 3, ["Tenant"] + ["UnknownTenantError"] * 3)
