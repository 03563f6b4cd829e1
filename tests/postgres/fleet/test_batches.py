"""A file in batches changes a few rows in each transaction, goes on after an interruption, and holds nobody up."""

import asyncpg
import pytest

from quart_tenants.connection import Connection
from quart_tenants.errors import MigrationFileError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.fleet.migrate_tenant import migrate_tenant
from quart_tenants.postgres.migrations.migration_files import Migration, get_tenant_migrations
from quart_tenants.postgres.migrations.migration_statements import Statement, parse_script
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from tests.postgres.fleet.parts import ALL, Add, migrate, read_versions
from tests.support.databases import execute

pytestmark = pytest.mark.slow

ROWS = 3000
FILL = "UPDATE sums SET total = a + b WHERE id IN (SELECT id FROM sums WHERE total IS NULL ORDER BY id LIMIT {})"
BATCHES = f"-- quart-tenants: in batches of 1000\n{FILL.format('$1')}"
# What everybody else may want of all rows.
LOCK_ALL = "SELECT FROM acme.sums FOR UPDATE NOWAIT"
COUNT_DONE = "SELECT count(*) FROM acme.sums WHERE total = a + b"


@pytest.fixture
async def behind(database: Database, settings: Settings, add: Add, database_url: str) -> Tenant:
    """The tenant acme with rows that are to be filled."""
    add("0002_sums.sql", "CREATE TABLE sums (id int PRIMARY KEY, a int, b int, total int)")
    await migrate(database, settings)
    await execute(
        database_url, f"INSERT INTO acme.sums SELECT n, n, n FROM generate_series(1, {ROWS}) AS n", "ANALYZE acme.sums"
    )
    return await get_tenant(database, Slug("acme"))


async def count_what_others_may(database_url: str, database: Database, tenant: Tenant, settings: Settings) -> list[int]:
    """Migrate *tenant*; return after each run of a statement how many rows another transaction can change at once."""
    other = await asyncpg.connect(database_url)
    seen: list[int] = []

    async def try_all_rows(_: Connection | DriverConnection, migration: Migration, statement: Statement) -> None:
        try:
            async with other.transaction():
                await other.execute(LOCK_ALL)
        except asyncpg.LockNotAvailableError:
            seen.append(0)
        else:
            seen.append(await other.fetchval(COUNT_DONE))

    try:
        await migrate_tenant(database, tenant, get_tenant_migrations(settings), settings=settings, after=try_all_rows)
    finally:
        await other.close()
    return seen


async def test_batches_hold_no_lock_between_them(
    database: Database, settings: Settings, add: Add, behind: Tenant, database_url: str
) -> None:
    """After each batch its rows are committed, and every row is free for others; then the version is recorded."""
    add("0003_fill.sql", BATCHES)

    seen = await count_what_others_may(database_url, database, behind, settings)

    assert seen == [1000, 2000, 3000, 3000]
    assert (await get_tenant(database, behind.slug)).version == 3


async def test_naive_update_holds_all_rows(
    database: Database, settings: Settings, add: Add, behind: Tenant, database_url: str
) -> None:
    """The negative control: the same change in one transaction lets nobody write until its commit."""
    add("0003_fill.sql", FILL.format(ROWS))

    assert await count_what_others_may(database_url, database, behind, settings) == [0]


async def test_interrupted_batches_go_on(
    database: Database, settings: Settings, add: Add, behind: Tenant, database_url: str
) -> None:
    """What was committed stays, the tenant is at the version before, and the next run does the rest only."""
    add("0003_fill.sql", BATCHES)
    runs: list[str] = []

    async def break_off(connection: Connection | DriverConnection, migration: Migration, statement: Statement) -> None:
        runs.append(statement.sql)
        if len(runs) == 2:
            raise KeyboardInterrupt

    async def count(connection: Connection | DriverConnection, migration: Migration, statement: Statement) -> None:
        runs.append(statement.sql)

    migrations = get_tenant_migrations(settings)
    with pytest.raises(KeyboardInterrupt):
        await migrate_tenant(database, behind, migrations, settings=settings, after=break_off)
    async with database.connection() as connection:
        done = await connection.fetchval(COUNT_DONE)
    version = (await get_tenant(database, behind.slug)).version
    runs.clear()
    await migrate_tenant(database, behind, migrations, settings=settings, after=count)

    assert (done, version) == (2000, 2)
    assert len(runs) == 2
    assert (await get_tenant(database, behind.slug)).version == 3


async def test_all_tenants_and_new_ones_get_it(
    database: Database, settings: Settings, add: Add, behind: Tenant
) -> None:
    """A new tenant's rows are filled in the transaction that makes it."""
    add("0003_fill.sql", BATCHES)
    add("0004_more.sql", "INSERT INTO sums SELECT n, n, n FROM generate_series(1, 5) AS n ON CONFLICT DO NOTHING")
    add(
        "0005_move.sql",
        "-- quart-tenants: in batches of 2\nDELETE FROM sums WHERE id IN (SELECT id FROM sums LIMIT $1)",
    )

    report = await migrate(database, settings)
    newco = await create_tenant(database, Slug("newco"), "Newco", settings=settings)

    assert report.failed == []
    assert await read_versions(database) == dict.fromkeys([*ALL, "newco"], 5)
    async with database.tenant_connection(newco) as connection:
        assert await connection.fetchval("SELECT count(*) FROM sums") == 0


async def test_failing_batch_names_the_file(
    database: Database, settings: Settings, add: Add, behind: Tenant, database_url: str
) -> None:
    """The batches before stay, and the error says so."""
    await execute(database_url, f"ALTER TABLE acme.sums ADD CHECK (total <> {2 * 1500})")
    add("0003_fill.sql", BATCHES)

    report = await migrate(database, settings, slugs=[behind.slug])

    assert report.failed[0].error is not None
    assert "0003_fill.sql" in report.failed[0].error
    assert "what it did before stays" in report.failed[0].error
    async with database.connection() as connection:
        assert await connection.fetchval(COUNT_DONE) == 1000


@pytest.mark.parametrize(
    ("directive", "rows"), [("in batches", 5000), ("In Batches of 7", 7), ("in batches of 2000 ", 2000)]
)
def test_directive_says_how_many_rows(directive: str, rows: int) -> None:
    """Without a number it is 5,000."""
    script = parse_script("x", f"-- quart-tenants: {directive}\n{FILL.format('$1')}")

    assert (script.batch_rows, script.in_transaction) == (rows, False)


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE t SET a = 1",
        "UPDATE t SET a = 1 WHERE b = $1; UPDATE t SET a = 2 WHERE b = $1",
        "UPDATE t SET a = $2 WHERE b = $1",
        "SELECT $1",
        "CREATE TABLE t (a int)",
    ],
)
def test_file_that_is_no_batch_is_refused(text: str) -> None:
    """A statement without a limit would run for ever, or all at once."""
    with pytest.raises(
        MigrationFileError, match=r"a file in batches holds one INSERT, UPDATE or DELETE with LIMIT \$1"
    ):
        parse_script("x", f"-- quart-tenants: in batches\n{text}")


@pytest.mark.parametrize("directive", ["in batches of", "in batches of 0", "in batches of many", "in batch"])
def test_wrong_directive_is_refused(directive: str) -> None:
    """What was meant is not guessed."""
    with pytest.raises(MigrationFileError, match="there is no such directive"):
        parse_script("x", f"-- quart-tenants: {directive}\n{FILL.format('$1')}")
