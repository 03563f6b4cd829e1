"""What else happens while the fleet is migrated: restores, drops, index builds, lost databases."""

import asyncio
from dataclasses import replace

import asyncpg
import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_plan import plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import migrate_fleet
from quart_tenants.postgres.registry import tenant_locks
from quart_tenants.postgres.tenants.lifecycle import suspend_tenant
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from tests.postgres.fleet.parts import ALL, NO_TRANSACTION, Add, list_with_column, migrate, read_versions
from tests.support.databases import execute
from tests.support.patience import DEADLINE, wait_until

ADD_NICKNAME = "ALTER TABLE app_user ADD COLUMN nickname text"
BUILD_INDEX = (
    f"{NO_TRANSACTION}DROP INDEX CONCURRENTLY IF EXISTS by_text;\n"
    "CREATE INDEX CONCURRENTLY by_text ON company_data (description)"
)
COUNT_BUILDS = """
SELECT count(*) FROM pg_stat_activity
WHERE query LIKE 'CREATE INDEX CONCURRENTLY by_text%' AND state = 'active' AND datname = current_database()
"""

# Of commands that pause between two tries: the empty statement behind a try has closed what held its snapshot.
COUNT_PAUSING = """
SELECT count(*) FROM pg_stat_activity
WHERE query = 'SELECT' AND state = 'idle in transaction' AND backend_xmin IS NULL AND datname = current_database()
"""
COUNT_LOCK_WAITERS = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


async def hold_up_index_builds(database_url: str) -> "asyncpg.Connection[asyncpg.Record]":
    """Return a connection whose transaction writes to acme's table, for which an index build waits at its start."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("BEGIN; INSERT INTO acme.company_data (description) VALUES ('open')")
    return connection


async def wait_for_builds(connection: "asyncpg.Connection[asyncpg.Record]", number: int) -> None:
    """Return when so many index builds are active."""

    async def are_active() -> bool:
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        return bool(await connection.fetchval(COUNT_BUILDS) == number)

    await wait_until(are_active)


async def test_tenant_that_went_back_gets_every_file(
    database: Database, settings: Settings, add: Add, database_url: str, acme: Tenant
) -> None:
    """An older backup may take a tenant's place between the plan and its turn: no file is skipped for that."""
    add("0002_nickname.sql", ADD_NICKNAME)
    await migrate(database, settings)
    add("0003_colour.sql", "ALTER TABLE company_data ADD COLUMN colour text")
    plan = await plan_fleet(database, settings=settings)
    await execute(
        database_url,
        "ALTER TABLE acme.app_user DROP COLUMN nickname",
        "DELETE FROM quart_tenants.applied_migrations WHERE schema_name = 'acme' AND version = 2",
    )

    report = await migrate_fleet(database, plan, settings=settings)

    assert report.failed == []
    assert await read_versions(database) == dict.fromkeys(ALL, 3)
    assert await list_with_column(database, "app_user", "nickname") == ALL


async def test_tenant_that_is_dropped_meanwhile_is_no_failure(
    database: Database, settings: Settings, add: Add, acme: Tenant
) -> None:
    """It is gone, and has nothing to be migrated; what is in the trash is not touched."""
    add("0002_nickname.sql", ADD_NICKNAME)
    plan = await plan_fleet(database, settings=settings, canary=1)
    await drop_tenant(database, acme.slug)

    report = await migrate_fleet(database, plan, settings=settings)

    assert [tenant.slug for tenant in report.gone] == ["acme"]
    assert (report.failed, report.left, len(report.migrated)) == ([], [], 3)
    assert await list_with_column(database, "app_user", "nickname") == ["company1", "company2", "globex"]


async def test_schema_that_somebody_deleted_is_named(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """It is no passing trouble, and says what is missing."""
    add("0002_nickname.sql", ADD_NICKNAME)
    await execute(database_url, "DROP SCHEMA acme CASCADE")

    report = await migrate(database, settings)

    assert [(failed.tenant.slug, failed.error) for failed in report.failed] == [
        ("acme", "schema 'acme' is missing, or this role may not use it")
    ]


async def test_command_that_waits_for_its_turn_does_not_break_an_index_build(
    database: Database,
    settings: Settings,
    add: Add,
    database_url: str,
    acme: Tenant,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An index build waits for old snapshots and holds the tenant's lock: who waits for that must have no snapshot."""
    monkeypatch.setattr(tenant_locks, "PATIENCE", DEADLINE)
    add("0002_index.sql", BUILD_INDEX)
    old = await hold_up_index_builds(database_url)
    building = asyncio.create_task(migrate(database, settings, slugs=[acme.slug]))
    await wait_for_builds(old, 1)

    waiting = asyncio.create_task(suspend_tenant(database, acme.slug))

    async def has_tried() -> bool:
        await old.execute("SELECT pg_stat_clear_snapshot()")
        return bool(await old.fetchval(COUNT_PAUSING))

    await wait_until(has_tried)
    await old.close()

    assert (await building).failed == []
    assert (await waiting).suspended


async def test_naive_wait_for_the_lock_breaks_an_index_build(
    database: Database, settings: Settings, add: Add, database_url: str, acme: Tenant
) -> None:
    """The negative control: a statement that waits for the same lock is a deadlock with the build."""
    add("0002_index.sql", BUILD_INDEX)
    old = await hold_up_index_builds(database_url)
    building = asyncio.create_task(migrate(database, replace(settings, migration_attempts=1), slugs=[acme.slug]))
    await wait_for_builds(old, 1)
    naive = await asyncpg.connect(database_url)
    await naive.execute("SET deadlock_timeout TO '50ms'")

    waiting = asyncio.create_task(
        naive.execute(f"SELECT pg_advisory_xact_lock(hashtextextended('quart_tenants {acme.id}', 0))")
    )
    await wait_until(lambda: old.fetchval(COUNT_LOCK_WAITERS))
    await old.close()
    report = await building
    (told,) = await asyncio.gather(waiting, return_exceptions=True)
    await naive.close()

    assert report.failed or isinstance(told, asyncpg.DeadlockDetectedError)


async def test_cancelled_index_build_ends_in_the_server(
    database: Database, settings: Settings, add: Add, database_url: str, acme: Tenant
) -> None:
    """After a Ctrl-C nothing goes on and nothing is locked: the next run can begin."""
    add("0002_index.sql", BUILD_INDEX)
    old = await hold_up_index_builds(database_url)
    building = asyncio.create_task(migrate(database, settings, slugs=[acme.slug]))
    await wait_for_builds(old, 1)

    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building

    await wait_for_builds(old, 0)
    await old.close()
    assert (await migrate(database, settings, slugs=[acme.slug])).failed == []


async def test_server_notices_a_lost_client(database: Database, settings: Settings, add: Add, acme: Tenant) -> None:
    """A killed command's statement ends within a second, and with it the tenant's lock."""
    add("0002_seen.sql", "CREATE TABLE seen AS SELECT current_setting('client_connection_check_interval') AS value")

    await migrate(database, settings, slugs=[acme.slug])

    async with database.tenant_connection(acme) as connection:
        assert await connection.fetchval("SELECT value FROM seen") == "1s"


async def test_file_outside_a_transaction_cannot_reach_another_tenant(
    database: Database, settings: Settings, add: Add
) -> None:
    """The path is compared before each statement: what a function did to it stops the file there."""
    add(
        "0002_stray.sql", f"{NO_TRANSACTION}SELECT set_config('search_path', 'globex', false);\nDROP TABLE company_data"
    )

    report = await migrate(database, settings, slugs=[Slug("acme")])

    assert report.failed[0].error is not None
    assert "line 2: it changes search_path" in report.failed[0].error
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT to_regclass('globex.company_data')") is not None


async def test_lost_database_ends_the_run(
    database: Database, settings: Settings, add: Add, database_url: str, server_url: str
) -> None:
    """One tenant's tries are spent on it; the others are left for the next run, and not failed one by one."""
    add("0002_nickname.sql", ADD_NICKNAME)
    plan = await plan_fleet(database, settings=settings)
    name = database_url.partition("?")[0].rpartition("/")[2]
    await execute(
        server_url,
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )

    report = await migrate_fleet(database, plan, settings=settings, jobs=1)
    await execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    assert [len(report.failed), len(report.left)] == [1, 3]
    assert (await migrate(database, settings)).failed == []


async def test_failure_that_cannot_be_written_down_stops_nobody(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """A role may lack the right to write there; the report names the tenant all the same."""
    add("0002_text.sql", "ALTER TABLE company_data ADD CHECK (description <> 'company 1 data')")
    await execute(database_url, "ALTER TABLE quart_tenants.migration_failures ADD CHECK (reason = '')")

    report = await migrate(database, settings)

    assert [failed.tenant.slug for failed in report.failed] == ["company1"]
    assert len(report.migrated) == 3


async def test_error_of_the_callers_own_reaches_the_caller(database: Database, settings: Settings, add: Add) -> None:
    """What `on_outcome` raises ends the run as itself."""
    add("0002_nickname.sql", ADD_NICKNAME)

    def refuse(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await migrate(database, settings, on_outcome=refuse)


async def test_new_tenant_needs_no_vacuum(database: Database, settings: Settings, add: Add) -> None:
    """What has no purpose in new tables is left out there, so that such files keep nobody from being made."""
    add("0002_analyze.sql", "ANALYZE company_data")
    add(
        "0003_vacuum.sql",
        f"{NO_TRANSACTION}VACUUM company_data;\nREINDEX (CONCURRENTLY) TABLE company_data;\n"
        "REINDEX TABLE CONCURRENTLY app_user;\nCREATE INDEX CONCURRENTLY by_text ON company_data (description)",
    )

    report = await migrate(database, settings)
    newco = await create_tenant(database, Slug("newco"), "Newco", settings=settings)

    assert report.failed == []
    assert newco.version == 3
    async with database.tenant_connection(newco) as connection:
        assert await connection.fetchval("SELECT to_regclass('by_text') IS NOT NULL")
