"""The fleet is migrated tenant by tenant: one that fails stays as it was and is named, the others go on."""

import asyncio
from collections import Counter
from dataclasses import replace

import asyncpg
import pytest

from quart_tenants.errors import (
    MigrationFailedError,
    MigrationFileError,
    TenantBusyError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_plan import plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import Outcome
from quart_tenants.postgres.fleet.migrate_tenant import migrate_tenant
from quart_tenants.postgres.fleet.status import get_fleet_status
from quart_tenants.postgres.migrations.migration_files import get_tenant_migrations
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.registry.registry_tables import get_tenant, list_tenants
from quart_tenants.postgres.tenants.lifecycle import suspend_tenant
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant, parse_slug
from tests.postgres.fleet.parts import ALL, NO_TRANSACTION, Add, list_with_column, migrate, read_versions
from tests.support.databases import execute

pytestmark = pytest.mark.slow

ADD_NICKNAME = "ALTER TABLE app_user ADD COLUMN nickname text"


# Who is behind


async def test_all_tenants_are_brought_to_the_newest_file(database: Database, settings: Settings, add: Add) -> None:
    """Several files run in order for every tenant, the suspended ones included; doing it again does nothing."""
    await suspend_tenant(database, parse_slug("acme"))
    add("0002_nickname.sql", ADD_NICKNAME)
    add("0003_first.sql", "UPDATE app_user SET nickname = username; ALTER TABLE app_user ALTER nickname SET NOT NULL")

    first = await migrate(database, settings)
    second = await migrate(database, settings)

    assert sorted(outcome.tenant.slug for outcome in first.migrated) == ALL
    assert {outcome.version for outcome in first.migrated} == {3}
    assert (first.failed, first.left, second.migrated, second.plan.up_to_date) == ([], [], [], 4)
    assert await read_versions(database) == dict.fromkeys(ALL, 3)
    assert await list_with_column(database, "app_user", "nickname") == ALL


async def test_number_of_queries_to_find_who_is_behind_does_not_grow(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """However many tenants there are, the plan asks the database the same few questions."""
    add("0002_nickname.sql", ADD_NICKNAME)

    async def count_queries() -> int:
        queries: list[object] = []
        async with await Database.open(settings, max_size=1) as one:
            async with one.connection() as connection:
                connection.add_query_logger(queries.append)
            plan = await plan_fleet(one, settings=settings)
        assert len(plan.behind) == await count_tenants()
        return len(queries)

    async def count_tenants() -> int:
        return len(await list_tenants(database))

    few = await count_queries()
    await execute(
        database_url,
        "INSERT INTO quart_tenants.tenants (slug, schema_name, display_name)"
        " SELECT 'bulk' || n, 'bulk' || n, 'Bulk' FROM generate_series(1, 500) AS n",
    )
    many = await count_queries()

    assert few == many


async def test_only_the_named_tenants_are_migrated(database: Database, settings: Settings, add: Add) -> None:
    """`--tenant` leaves all others alone, and `--to` stops at a version."""
    add("0002_nickname.sql", ADD_NICKNAME)
    add("0003_colour.sql", "ALTER TABLE company_data ADD COLUMN colour text")

    await migrate(database, settings, slugs=[Slug("acme")])
    await migrate(database, settings, slugs=[Slug("globex")], to=2)

    assert await read_versions(database) == {"acme": 3, "company1": 1, "company2": 1, "globex": 2}
    with pytest.raises(UnknownTenantError):
        await plan_fleet(database, settings=settings, slugs=[Slug("nobody")])
    with pytest.raises(MigrationFileError, match=r"no migration 0009; the newest is 0003_colour\.sql"):
        await plan_fleet(database, settings=settings, to=9)


# Failures


async def test_failing_tenant_stays_as_it_was_and_the_others_go_on(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """Its files are one transaction with the rows that record them; its error is kept until it succeeds."""
    await execute(database_url, 'ALTER TABLE "company1".company_data ADD COLUMN colour text')
    add("0002_nickname.sql", ADD_NICKNAME)
    add("0003_colour.sql", "-- in colour\nSELECT 1;\nALTER TABLE company_data ADD COLUMN colour text")

    report = await migrate(database, settings)

    (failed,) = report.failed
    assert (failed.tenant.slug, failed.version, failed.migration) == ("company1", 1, "0003_colour.sql")
    assert failed.error is not None
    assert 'line 3: column "colour" of relation "company_data" already exists' in failed.error
    assert await read_versions(database) == {"acme": 3, "company1": 1, "company2": 3, "globex": 3}
    assert await list_with_column(database, "app_user", "nickname") == ["acme", "company2", "globex"]
    (written,) = (await get_fleet_status(database, settings=settings, drift=False)).failures
    assert (written.slug, written.migration, written.reason) == ("company1", failed.migration, failed.error)

    await execute(database_url, 'ALTER TABLE "company1".company_data DROP COLUMN colour')
    again = await migrate(database, settings)

    assert [outcome.tenant.slug for outcome in again.migrated] == ["company1"]
    assert (await get_fleet_status(database, settings=settings, drift=False)).failures == ()


@pytest.mark.parametrize("canary", ["company1", 1])
async def test_nobody_follows_a_canary_that_fails(
    database: Database, settings: Settings, add: Add, database_url: str, canary: Slug | int
) -> None:
    """A canary is one tenant, or the first of them; when it succeeds the rest follow."""
    add("0002_check.sql", "ALTER TABLE company_data ADD CHECK (description <> 'company 1 data')")
    if canary == 1:
        # The oldest goes first.
        await execute(database_url, "INSERT INTO acme.company_data (description) VALUES ('company 1 data')")

    report = await migrate(database, settings, canary=canary)

    assert [len(report.failed), len(report.migrated), len(report.left)] == [1, 0, 3]
    assert await read_versions(database) == dict.fromkeys(ALL, 1)

    # Who has failed before is no canary again, or one broken tenant would keep all others back for ever.
    report = await migrate(database, settings, canary=1)

    assert sorted(outcome.tenant.slug for outcome in report.failed) == (
        ["acme", "company1"] if canary == 1 else ["company1"]
    )
    assert not report.left


async def test_too_many_failures_stop_the_rest(database: Database, settings: Settings, add: Add) -> None:
    """`--max-failures` ends a run that is going wrong; who was not tried stands where it stood."""
    add("0002_broken.sql", "ALTER TABLE nowhere ADD COLUMN nothing text")

    report = await migrate(database, settings, jobs=1, max_failures=2)

    assert [len(report.failed), len(report.left)] == [2, 2]
    assert await read_versions(database) == dict.fromkeys(ALL, 1)


# Files


async def test_file_that_cannot_run_stops_before_anybody_is_changed(
    database: Database, settings: Settings, add: Add
) -> None:
    """A syntax error in a later file is found before an earlier one runs; the error says where all stand."""
    add("0002_nickname.sql", ADD_NICKNAME)
    await migrate(database, settings, slugs=[Slug("acme")])
    for number in range(3, 10):
        add(f"{number:04}_more.sql", "SELECT 1" if number != 7 else "SELECT 1;\nSELEC 2")

    with pytest.raises(MigrationFileError) as caught:
        await migrate(database, settings)

    assert str(caught.value) == (
        '0007_more.sql: line 2: syntax error at or near "SELEC"; nothing was run, '
        "and the tenants stand as before: 1 at 0002, 3 at 0001"
    )
    assert await read_versions(database) == {"acme": 2, "company1": 1, "company2": 1, "globex": 1}
    # Up to the broken one they can go.
    await migrate(database, settings, to=6)
    assert await read_versions(database) == dict.fromkeys(ALL, 6)


async def test_edited_file_is_refused_with_the_tenants_that_ran_it(
    database: Database, settings: Settings, add: Add
) -> None:
    """Otherwise tenants would differ though they stand at one version; a new tenant is refused as well."""
    add("0002_nickname.sql", ADD_NICKNAME)
    await migrate(database, settings, slugs=[Slug("acme"), Slug("globex")])
    add("0002_nickname.sql", ADD_NICKNAME.replace("text", "varchar"))

    with pytest.raises(MigrationFileError, match=r"0002_nickname\.sql \(by acme, globex\)"):
        await migrate(database, settings)
    with pytest.raises(MigrationFileError, match=r"0002_nickname\.sql \(by acme, globex\)"):
        await create_tenant(database, Slug("newco"), "Newco", settings=settings)

    assert "newco" not in await read_versions(database)


async def test_migration_cannot_hide_that_it_leaves_the_schema(
    database: Database, settings: Settings, add: Add
) -> None:
    """What a function does to the path is not to be read in the file, and found out before the commit."""
    add("0002_sneaky.sql", "SELECT set_config('search_path', 'globex', true); CREATE TABLE stray ()")

    report = await migrate(database, settings, slugs=[Slug("acme")])

    assert report.failed[0].error is not None
    assert "changes search_path" in report.failed[0].error
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT to_regclass('globex.stray')") is None


# Outside a transaction


async def test_file_outside_a_transaction_runs_between_the_others(
    database: Database, settings: Settings, add: Add, acme: Tenant
) -> None:
    """CREATE INDEX CONCURRENTLY runs in a file of its own, before and after files in transactions."""
    add("0002_nickname.sql", ADD_NICKNAME)
    add(
        "0003_index.sql",
        f"{NO_TRANSACTION}DROP INDEX CONCURRENTLY IF EXISTS by_nickname;\n"
        "CREATE INDEX CONCURRENTLY by_nickname ON app_user (nickname)",
    )
    add("0004_colour.sql", "ALTER TABLE company_data ADD COLUMN colour text")

    report = await migrate(database, settings)
    newco = await create_tenant(database, Slug("newco"), "Newco", settings=settings)

    assert report.failed == []
    assert await read_versions(database) == dict.fromkeys([*ALL, "newco"], 4)
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT schemaname FROM pg_indexes WHERE indexname = 'by_nickname' ORDER BY 1")
    assert [row["schemaname"] for row in rows] == sorted([*ALL, newco.schema.name])


async def test_index_that_was_left_invalid_is_found_out(
    database: Database, settings: Settings, add: Add, database_url: str, acme: Tenant
) -> None:
    """A failed CREATE INDEX CONCURRENTLY leaves an index that IF NOT EXISTS would take for a good one."""
    await execute(database_url, "INSERT INTO acme.company_data (description) VALUES ('twice'), ('twice')")
    add(
        "0002_index.sql",
        f"{NO_TRANSACTION}CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS by_text ON company_data (description)",
    )

    first = await migrate(database, settings, slugs=[acme.slug])
    second = await migrate(database, settings, slugs=[acme.slug])

    assert first.failed[0].error is not None
    assert "what it did before stays" in first.failed[0].error
    assert "could not create unique index" in first.failed[0].error
    assert second.failed[0].error is not None
    assert "index by_text is invalid" in second.failed[0].error
    assert (await get_tenant(database, acme.slug)).version == 1

    await execute(database_url, "DELETE FROM acme.company_data", "DROP INDEX acme.by_text")
    third = await migrate(database, settings, slugs=[acme.slug])

    assert third.failed == []


# Others at the same time


async def test_two_runs_at_once_do_everything_once(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """A lock by tenant lets the second run wait, and find nothing left to do."""
    await execute(database_url, "CREATE TABLE public.runs (schema_name text)", "GRANT ALL ON public.runs TO PUBLIC")
    add("0002_count.sql", "INSERT INTO public.runs VALUES (current_schema()); SELECT pg_sleep(0.02)")
    patient = replace(settings, migration_lock_timeout=10.0)

    reports = await asyncio.gather(*(migrate(database, patient, jobs=2) for _ in range(2)))

    assert [report.failed for report in reports] == [[], []]
    assert sorted(outcome.tenant.slug for report in reports for outcome in report.migrated) == ALL
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT schema_name FROM public.runs ORDER BY 1")
    assert [row["schema_name"] for row in rows] == ALL


async def test_locked_table_fails_its_tenant_after_some_tries(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """A lock is waited for and tried again, while the others go on; then that tenant is named."""
    add("0002_nickname.sql", ADD_NICKNAME)
    ends: list[Outcome] = []
    holder = await asyncpg.connect(database_url)
    await holder.execute("BEGIN; LOCK TABLE acme.app_user IN ACCESS SHARE MODE")

    report = await migrate(database, settings, jobs=1, on_outcome=ends.append)
    await holder.close()

    (failed,) = report.failed
    assert (failed.tenant.slug, failed.version) == ("acme", 1)
    assert failed.error is not None
    assert "lock timeout" in failed.error
    assert "(tried 2 times)" in failed.error
    # It was the first to be tried, and held nobody up.
    assert [outcome.tenant.slug for outcome in ends][-1] == "acme"
    assert len(report.migrated) == 3


async def test_lock_that_goes_away_is_no_failure(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """A tenant that was busy for a moment is migrated by a later try."""
    add("0002_nickname.sql", ADD_NICKNAME)
    holder = await asyncpg.connect(database_url)
    await holder.execute("BEGIN; LOCK TABLE acme.app_user IN ACCESS SHARE MODE")

    async def let_go(outcome: Outcome) -> None:
        await holder.execute("COMMIT")

    releasing: list[asyncio.Task[None]] = []
    report = await migrate(
        database,
        replace(settings, migration_attempts=20),
        jobs=1,
        # When the last of the others is done, only the one that waits is left.
        on_outcome=lambda outcome: releasing.append(asyncio.create_task(let_go(outcome))) if not releasing else None,
    )
    await asyncio.gather(*releasing)
    await holder.close()

    assert report.failed == []
    assert await read_versions(database) == dict.fromkeys(ALL, 2)


async def test_tenant_that_is_being_changed_is_not_migrated(
    database: Database, settings: Settings, add: Add, acme: Tenant
) -> None:
    """Who drops or restores a tenant holds its lock; a migration must not write into what moves away."""
    add("0002_nickname.sql", ADD_NICKNAME)
    migrations = get_tenant_migrations(settings)

    async with database.connection() as other:
        await other.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('quart_tenants ' || $1::text, 0))", str(acme.id)
        )
        with pytest.raises(TenantBusyError):
            await migrate_tenant(database, acme, migrations, settings=settings)

    assert await migrate_tenant(database, acme, migrations, settings=settings) == (2, True)
    with pytest.raises(UnknownTenantError):
        # As somebody remembers it who has not heard of a drop.
        await migrate_tenant(database, replace(acme, id=0), migrations, settings=settings)


async def test_killed_connections_leave_nothing_half_done(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """A server process that dies in the middle is tried again; each tenant runs each file exactly once."""
    await execute(database_url, "CREATE TABLE public.runs (schema_name text)", "GRANT ALL ON public.runs TO PUBLIC")
    add("0002_count.sql", "INSERT INTO public.runs VALUES (current_schema()); SELECT pg_sleep(0.02)")
    patient = replace(settings, migration_attempts=20)
    done = asyncio.Event()
    killed = 0

    async def kill() -> None:
        nonlocal killed
        connection = await asyncpg.connect(database_url)
        try:
            while not done.is_set():
                killed += await connection.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE query LIKE '%pg_sleep(0.02)%' AND pid <> pg_backend_pid()"
                )
                if killed >= 3:
                    return
        finally:
            await connection.close()

    killer = asyncio.create_task(kill())
    report = await migrate(database, patient)
    done.set()
    await killer

    assert killed >= 1
    assert report.failed == []
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT schema_name FROM public.runs")
    assert Counter(row["schema_name"] for row in rows) == dict.fromkeys(ALL, 1)


async def test_cancelled_run_is_taken_up_where_it_stopped(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """Ctrl-C rolls back what is in flight and keeps what is done."""
    add("0002_slow.sql", f"{ADD_NICKNAME}; SELECT pg_sleep(0.05)")
    first_done = asyncio.Event()
    run = asyncio.create_task(migrate(database, settings, jobs=1, on_outcome=lambda _: first_done.set()))
    await first_done.wait()

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    versions = await read_versions(database)
    assert sorted(await list_with_column(database, "app_user", "nickname")) == [
        slug for slug, version in versions.items() if version == 2
    ]
    assert 0 < sum(version == 2 for version in versions.values()) < 4
    report = await migrate(database, settings)
    assert report.failed == []
    assert await read_versions(database) == dict.fromkeys(ALL, 2)


async def test_statement_that_takes_too_long_is_given_up(database: Database, settings: Settings, add: Add) -> None:
    """A migration cannot hold a tenant for ever; that is no passing trouble, so it is not tried again."""
    add("0002_endless.sql", "SELECT pg_sleep(60)")

    report = await migrate(database, replace(settings, migration_statement_timeout=0.05), slugs=[Slug("acme")])

    assert report.failed[0].error is not None
    assert "line 1: canceling statement due to statement timeout" in report.failed[0].error
    assert "tried" not in report.failed[0].error


async def test_constraint_that_is_checked_at_the_commit_fails_its_tenant_only(
    database: Database, settings: Settings, add: Add
) -> None:
    """The commit itself may refuse; that is this tenant's failure like any other, and the others go on."""
    add(
        "0002_pairs.sql",
        "CREATE TABLE pairs (id bigint REFERENCES company_data (id) DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO pairs SELECT 99 FROM company_data WHERE description = 'company 1 data'",
    )

    report = await migrate(database, settings)

    (failed,) = report.failed
    assert (failed.tenant.slug, failed.version, failed.migration) == ("company1", 1, "0002_pairs.sql")
    assert failed.error is not None
    assert "violates foreign key constraint" in failed.error
    assert len(report.migrated) == 3


# What workers learn


async def test_worker_learns_of_a_new_version(database: Database, settings: Settings, add: Add, acme: Tenant) -> None:
    """Each migrated tenant is announced by the transaction that migrates it."""
    add("0002_nickname.sql", ADD_NICKNAME)
    registry = Registry(database, settings, minimum_version=1)
    await registry.load()

    await migrate(database, settings, slugs=[acme.slug])
    await registry.refresh()

    assert registry.get_tenant(acme.slug).version == 2
    assert registry.get_tenant(Slug("globex")).version == 1


async def test_failed_migration_raises_what_happened(
    database: Database, settings: Settings, add: Add, acme: Tenant
) -> None:
    """The function for one tenant tells its caller which file failed where."""
    add("0002_broken.sql", "SELECT 1;\nALTER TABLE nowhere ADD COLUMN nothing text")

    with pytest.raises(
        MigrationFailedError, match=r"0002_broken\.sql failed in schema 'acme' and was rolled back: line 2"
    ):
        await migrate_tenant(database, acme, get_tenant_migrations(settings), settings=settings)
