"""An enum value that one file adds and a later one uses: a tenant gets there in as many transactions as that needs."""

from pathlib import Path
from typing import Any

import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet import migrate_tenant as one_tenant
from quart_tenants.postgres.migrations.migration_files import Migration
from quart_tenants.postgres.migrations.transactions import take_together
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant
from tests.postgres.fleet.parts import ALL, Add, list_with_column, migrate, read_versions

pytestmark = pytest.mark.slow

ADD_GLAD = "ALTER TYPE mood ADD VALUE 'glad'"
USE_GLAD = "ALTER TABLE app_user ADD COLUMN mood mood NOT NULL DEFAULT 'glad'"
LIST_TRANSACTIONS = """
SELECT array_agg(version ORDER BY version) AS versions FROM quart_tenants.applied_migrations
WHERE schema_name = $1 AND version > 2 GROUP BY xmin::text ORDER BY min(version)
"""


@pytest.fixture
async def add_moods(database: Database, settings: Settings, add: Add) -> Add:
    """Let every tenant have the type, and stand at version 2."""
    add("0002_mood.sql", "CREATE TYPE mood AS ENUM ('sad')")
    await migrate(database, settings)
    return add


async def test_tenant_two_versions_behind_gets_there_by_itself(
    database: Database, settings: Settings, add_moods: Add
) -> None:
    """A new transaction begins with the file that uses the value, and with no other."""
    add_moods("0003_before.sql", "CREATE TABLE before (x int)")
    add_moods("0004_glad.sql", ADD_GLAD)
    add_moods("0005_between.sql", "CREATE TABLE between_them (x int)")
    add_moods("0006_use.sql", USE_GLAD)
    add_moods("0007_rest.sql", "ALTER TYPE mood ADD VALUE 'angry'; CREATE TABLE rest (m mood)")

    report = await migrate(database, settings, jobs=2)

    assert report.failed == []
    assert await read_versions(database) == dict.fromkeys(ALL, 7)
    async with database.connection() as connection:
        for slug in ALL:
            rows = await connection.fetch(LIST_TRANSACTIONS, slug)
            assert [row["versions"] for row in rows] == [[3, 4, 5], [6, 7]]


async def test_naive_single_transaction_is_refused(
    database: Database, settings: Settings, add_moods: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: all missing files in one transaction are an error of PostgreSQL."""
    add_moods("0003_glad.sql", ADD_GLAD)
    add_moods("0004_use.sql", USE_GLAD)
    monkeypatch.setattr(one_tenant, "count_committed_first", lambda error, migrations: 0)

    report = await migrate(database, settings)

    assert len(report.failed) == len(ALL)
    assert all("unsafe use of new value" in (outcome.error or "") for outcome in report.failed)


async def test_later_failure_leaves_what_was_committed(database: Database, settings: Settings, add_moods: Add) -> None:
    """What ran in an earlier transaction is recorded; the tenant stands there, and the next run goes on."""
    add_moods("0003_glad.sql", ADD_GLAD)
    add_moods("0004_use.sql", USE_GLAD)
    add_moods("0005_broken.sql", "ALTER TABLE nowhere ADD COLUMN nothing text")

    report = await migrate(database, settings)

    assert [(outcome.version, outcome.migration) for outcome in report.failed] == [(3, "0005_broken.sql")] * len(ALL)
    assert await read_versions(database) == dict.fromkeys(ALL, 3)
    assert await list_with_column(database, "app_user", "mood") == []

    add_moods("0005_broken.sql", "SELECT 1")

    assert (await migrate(database, settings)).failed == []
    assert await read_versions(database) == dict.fromkeys(ALL, 5)


async def test_value_that_its_own_file_uses_is_an_error(database: Database, settings: Settings, add_moods: Add) -> None:
    """A file is never torn apart: its author hears what PostgreSQL says."""
    add_moods("0003_both.sql", f"{ADD_GLAD}; {USE_GLAD}")

    report = await migrate(database, settings)

    assert all("unsafe use of new value" in (outcome.error or "") for outcome in report.failed)
    assert await read_versions(database) == dict.fromkeys(ALL, 2)


async def test_new_tenant_gets_a_value_of_its_own_type(database: Database, settings: Settings, add_moods: Add) -> None:
    """From PostgreSQL 17 on that is one transaction, and before that several; the tenant is the same."""
    add_moods("0003_glad.sql", ADD_GLAD)
    add_moods("0004_use.sql", USE_GLAD)

    tenant = await create_tenant(database, Slug("newco"), "Newco", settings=settings)

    assert tenant.version == 4
    assert await list_with_column(database, "app_user", "mood") == ["newco"]


async def test_fleet_finds_out_once_where_a_transaction_ends(
    database: Database, settings: Settings, add_moods: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first tenant tries in vain to run the files together."""
    add_moods("0003_glad.sql", ADD_GLAD)
    add_moods("0004_use.sql", USE_GLAD)
    tried: list[int] = []
    run = one_tenant._run_together

    async def count(database: Database, tenant: Tenant, migrations: list[Migration], *options: Any) -> None:
        tried.append(len(migrations))
        await run(database, tenant, migrations, *options)

    monkeypatch.setattr(one_tenant, "_run_together", count)

    await migrate(database, settings, jobs=1)

    assert tried == [2] + [1, 1] * len(ALL)


async def test_shared_files_follow_the_same_rule(settings: Settings, database_url: str, tmp_path: Path) -> None:
    """A value that one shared file adds is used by a later one."""
    (folder := tmp_path / "shared").mkdir()
    shared = Settings(
        database_url=database_url,
        migrations_dir=settings.migrations_dir,
        shared_schemas=(SchemaName("common"),),
        shared_migrations_dir=folder,
    )
    (folder / "0001_mood.sql").write_text("CREATE TYPE mood AS ENUM ('sad')")
    async with await Database.open(shared, max_size=2) as database:
        await migrate_shared(database, settings=shared)
        (folder / "0002_glad.sql").write_text(ADD_GLAD)
        (folder / "0003_use.sql").write_text(
            "CREATE TABLE moods (m mood DEFAULT 'glad'); INSERT INTO moods DEFAULT VALUES"
        )
        (folder / "0004_more.sql").write_text("CREATE TABLE more (m mood DEFAULT 'glad')")

        ran = await migrate_shared(database, settings=shared)

    assert [migration.version for migration in ran] == [2, 3, 4]


@pytest.mark.parametrize(
    ("texts", "together"),
    [
        (["SELECT 1", "SELECT 2"], 2),
        (["SET CONSTRAINTS ALL DEFERRED", "SELECT 2"], 2),
        (["SET CONSTRAINTS a, b DEFERRED", "ALTER TABLE t ADD UNIQUE (a) DEFERRABLE"], 2),
        (["SET CONSTRAINTS ALL IMMEDIATE", "SELECT 2", "ALTER TABLE t ADD UNIQUE (a) DEFERRABLE"], 1),
        (["ALTER TABLE t ADD UNIQUE (a) DEFERRABLE; SET CONSTRAINTS ALL IMMEDIATE", "SELECT 2"], 2),
        (["SELECT 1", "-- quart-tenants: no transaction\nVACUUM"], 1),
    ],
)
def test_transaction_ends_where_a_mode_would_reach_later_constraints(texts: list[str], together: int) -> None:
    """SET CONSTRAINTS ALL ends with its file only at the commit, if a later file makes a constraint that can wait."""
    migrations = [Migration(number, f"{number:04}_x.sql", text) for number, text in enumerate(texts, start=1)]

    assert len(take_together(migrations)) == together


async def test_file_that_sets_all_constraints_leaves_later_ones_alone(
    database: Database, settings: Settings, add: Add
) -> None:
    """A constraint that a later file makes has the mode of its declaration, as if that file ran alone."""
    add("0002_all.sql", "SET CONSTRAINTS ALL IMMEDIATE")
    add(
        "0003_ring.sql",
        "CREATE TABLE rings (id bigint PRIMARY KEY, next bigint NOT NULL REFERENCES rings (id)"
        " DEFERRABLE INITIALLY DEFERRED); INSERT INTO rings VALUES (1, 2); INSERT INTO rings VALUES (2, 1)",
    )

    report = await migrate(database, settings, slugs=[Slug("acme")])

    assert report.failed == []
