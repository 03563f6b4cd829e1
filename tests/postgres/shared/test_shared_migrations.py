"""The shared files run once, before the tenants', and never half."""

import asyncio
from dataclasses import replace

import asyncpg
import pytest

from quart_tenants.errors import (
    BackupFileError,
    InvalidSchemaNameError,
    MigrationFailedError,
    MigrationFileError,
    RegistryNotReadyError,
    SettingError,
    SharedNameError,
)
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.doctor.catalogue_checks import State, find_leaks
from quart_tenants.postgres.fleet.fleet_plan import plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import FleetReport, migrate_fleet
from quart_tenants.postgres.fleet.status import get_fleet_status
from quart_tenants.postgres.shared.shared_migrations import migrate_shared, plan_shared
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant, undrop_tenant
from quart_tenants.settings import read_settings
from quart_tenants.tenant import SchemaName, parse_schema_name
from tests.postgres.shared.parts import ACME, COPY, GLOBEX, App, write_files
from tests.support.databases import execute

pytestmark = pytest.mark.slow

PLANS = "CREATE TABLE plans (id integer, name text); INSERT INTO plans VALUES (1, 'mine')"


async def migrate(app: App) -> FleetReport:
    """Migrate the shared schemas, and then the tenants, as the command does."""
    await migrate_shared(app.database, settings=app.settings)
    plan = await plan_fleet(app.database, settings=app.settings)
    return await migrate_fleet(app.database, plan, settings=app.settings)


async def count(app: App, table: str) -> int | None:
    """Return how many rows a shared table has, or None if there is none."""
    try:
        async with app.database.shared_connection() as connection:
            rows: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
    except asyncpg.UndefinedTableError:
        return None
    return rows


# Running


async def test_shared_files_run_once(app: App) -> None:
    """A second run has nothing to do; a new file runs alone, and tenants read what it makes."""
    assert await migrate_shared(app.database, settings=app.settings) == ()
    write_files(app.shared_files, {"0003_rates.sql": "CREATE TABLE rates (n integer); INSERT INTO rates VALUES (7)"})
    assert [file.name for file in await plan_shared(app.database, settings=app.settings)] == ["0003_rates.sql"]

    ran = await migrate_shared(app.database, settings=app.settings)

    assert [file.name for file in ran] == ["0003_rates.sql"]
    async with app.database.tenant_connection(await app.get(ACME)) as connection:
        assert await connection.fetchval("SELECT n FROM rates") == 7


async def test_tenants_file_refers_to_what_the_shared_file_made(app: App) -> None:
    """Both are new: the shared one runs first."""
    write_files(app.shared_files, {"0003_rates.sql": "CREATE TABLE rates (n integer PRIMARY KEY)"})
    write_files(app.tenant_files, {"0003_rate.sql": "ALTER TABLE members ADD COLUMN rate integer REFERENCES rates"})

    report = await migrate(app)

    assert (len(report.migrated), report.failed) == (2, [])


async def test_commands_at_once_run_a_shared_file_once(app: App) -> None:
    """Of several programs that start together one runs it, and the others find it done."""
    write_files(app.shared_files, {"0003_rates.sql": "CREATE TABLE rates (n integer); SELECT pg_sleep(0.05)"})

    ran = await asyncio.gather(*(migrate_shared(app.database, settings=app.settings) for _ in range(4)))

    assert sorted(len(files) for files in ran) == [0, 0, 0, 1]


async def test_shared_file_that_fails_in_the_middle_leaves_nothing(app: App) -> None:
    """The error names file and line; nothing of it is there, and the mended file runs."""
    text = "CREATE TABLE rates (n integer);\nINSERT INTO rates VALUES ('x');"
    write_files(app.shared_files, {"0003_rates.sql": text})
    with pytest.raises(MigrationFailedError, match=r"0003_rates\.sql failed in schema 'common'.*line 2"):
        await migrate_shared(app.database, settings=app.settings)
    assert await count(app, "rates") is None

    write_files(app.shared_files, {"0003_rates.sql": text.replace("'x'", "1")})
    await migrate_shared(app.database, settings=app.settings)

    assert await count(app, "rates") == 1


async def test_shared_file_outside_a_transaction_runs(app: App) -> None:
    """An index may be built while everybody reads."""
    text = "-- quart-tenants: no transaction\nCREATE INDEX CONCURRENTLY plans_by_name ON plans (name);"
    write_files(app.shared_files, {"0003_plans_by_name.sql": text})

    ran = await migrate_shared(app.database, settings=app.settings)

    assert [file.version for file in ran] == [3]
    assert await migrate_shared(app.database, settings=app.settings) == ()


async def test_edited_shared_file_is_refused(app: App) -> None:
    """What ran cannot be changed afterwards."""
    write_files(app.shared_files, {"0002_plans.sql": "CREATE TABLE other_plans ()"})

    with pytest.raises(MigrationFileError, match=r"0002_plans\.sql was changed after it was applied"):
        await migrate_shared(app.database, settings=app.settings)


async def test_shared_file_waits_for_a_lock_and_tries_again(app: App) -> None:
    """A transaction that has a shared table locked for a moment does not make the command fail."""
    settings = replace(app.settings, migration_lock_timeout=0.05)
    write_files(app.shared_files, {"0003_price.sql": "ALTER TABLE plans ADD COLUMN price integer"})
    async with app.database.shared_connection() as connection:
        await connection.execute("LOCK TABLE plans")
        running = asyncio.create_task(migrate_shared(app.database, settings=settings))
        await asyncio.sleep(0.2)
        assert not running.done()

    assert [file.version for file in await running] == [3]


async def test_shared_file_that_gives_up_says_who_has_the_table(app: App) -> None:
    """After its last try the error names the process that reads the table, and nothing of the file stays."""
    settings = replace(app.settings, migration_attempts=2)
    write_files(app.shared_files, {"0003_price.sql": "ALTER TABLE plans ADD COLUMN price integer"})
    async with app.database.shared_connection() as connection:
        await connection.execute("LOCK TABLE plans IN ACCESS SHARE MODE")
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        with pytest.raises(MigrationFailedError, match=rf"table common\.plans is in use by pid {pid} of role .* for "):
            await migrate_shared(app.database, settings=settings)

    assert [file.version for file in await migrate_shared(app.database, settings=settings)] == [3]


# Settings


def test_folder_without_schemas_is_refused(tmp_path: object) -> None:
    """The files need a schema in which they run."""
    with pytest.raises(SettingError, match="TENANTS_SHARED_MIGRATIONS_DIR needs TENANTS_SHARED_SCHEMAS"):
        read_settings({"TENANTS_SHARED_MIGRATIONS_DIR": str(tmp_path)})


@pytest.mark.parametrize("value", ["pg_temp", "quart_tenants", "quart_tenants_x", "$user", 7, [7], "x" * 64])
def test_reserved_schema_cannot_be_shared(value: object) -> None:
    """The registry, the catalogue and the role's own schema are nobody's to share."""
    with pytest.raises(SettingError, match="TENANTS_SHARED_SCHEMAS"):
        read_settings({"TENANTS_SHARED_SCHEMAS": value})


def test_shared_schemas_keep_their_order() -> None:
    """`public` may be shared, blanks around names are taken off, and each name counts once."""
    settings = read_settings({"TENANTS_SHARED_SCHEMAS": " common, public,common"})

    assert settings.shared_schemas == (SchemaName("common"), SchemaName("public"))


async def test_shared_schema_cannot_become_a_tenants(app: App) -> None:
    """A tenant with that schema would be read by everybody."""
    for act in (
        create_tenant(app.database, COPY, "Copy", settings=app.settings, schema=parse_schema_name("common")),
        adopt_schemas(app.database, {COPY: parse_schema_name("common")}, settings=app.settings, version=0),
    ):
        with pytest.raises(InvalidSchemaNameError, match="TENANTS_SHARED_SCHEMAS"):
            await act
    with pytest.raises(RegistryNotReadyError, match="names the schema of tenant 'acme'"):
        await migrate_shared(app.database, settings=replace(app.settings, shared_schemas=(SchemaName("acme"),)))


# Names that are in both


async def read_plan(app: App) -> str:
    """Return the name of acme's first plan, as a page of acme's reads it."""
    async with app.database.tenant_connection(await app.get(ACME)) as connection:
        name: str = await connection.fetchval("SELECT name FROM plans WHERE id = 1")
    return name


async def test_dropped_table_falls_through_where_nobody_refuses_the_name(app: App) -> None:
    """The negative control: acme's own `plans` is dropped, and acme silently reads the shared one."""
    await execute(app.superuser_url, f"SET search_path TO acme; {PLANS}; GRANT SELECT ON plans TO PUBLIC")
    assert await read_plan(app) == "mine"

    await execute(app.superuser_url, "DROP TABLE acme.plans")

    assert await read_plan(app) == "free"


async def test_tenants_file_cannot_make_a_shared_name(app: App) -> None:
    """`migrate` fails each tenant and `create` makes none: the tables stand as before."""
    write_files(app.tenant_files, {"0003_plans.sql": PLANS})

    report = await migrate(app)
    assert len(report.failed) == 2
    for outcome in report.failed:
        assert f"relation plans of schema {outcome.tenant.slug}" in str(outcome.error)
    with pytest.raises(SharedNameError, match=r"relation plans of schema copy"):
        await create_tenant(app.database, COPY, "Copy", settings=app.settings)

    assert await read_plan(app) == "free"


@pytest.mark.parametrize(
    ("own", "shared", "kind"),
    [
        ("CREATE TABLE rates ()", "CREATE VIEW rates AS SELECT 1 AS n", "relation"),
        ("CREATE TYPE mood AS ENUM ('well')", "CREATE DOMAIN mood AS text", "type"),
        ("CREATE TABLE mood ()", "CREATE TYPE mood AS ENUM ('well')", "type"),
        (
            "CREATE FUNCTION total(n integer) RETURNS integer LANGUAGE sql AS 'SELECT n'",
            "CREATE FUNCTION total(n text) RETURNS text LANGUAGE sql AS 'SELECT n'",
            "routine",
        ),
    ],
)
async def test_shared_file_cannot_make_a_tenants_name(app: App, own: str, shared: str, kind: str) -> None:
    """The shared file is rolled back, and the error names the tenant's schema. Status and doctor show it as well."""
    await execute(app.superuser_url, f"SET search_path TO globex; {own}")
    write_files(app.shared_files, {"0003_more.sql": shared})

    with pytest.raises(SharedNameError, match=rf"{kind} \w+ of schema globex; give one of each two another name"):
        await migrate_shared(app.database, settings=app.settings)

    assert len(await plan_shared(app.database, settings=app.settings)) == 1
    assert (await get_fleet_status(app.database, settings=app.settings)).shared_names == ()
    await execute(app.superuser_url, f'SET search_path TO "More things"; {shared}')
    (name,) = (await get_fleet_status(app.database, settings=app.settings)).shared_names
    assert (name.schema, name.kind, name.shared_schema) == ("globex", kind, "More things")
    findings = {finding.check: finding for finding in await find_leaks(app.database, settings=app.settings)}
    assert findings["shared names"].state is State.LEAK
    with pytest.raises(SharedNameError):
        await migrate_shared(app.database, settings=app.settings)


async def test_schema_with_a_shared_name_is_not_adopted_restored_or_undropped(app: App) -> None:
    """Every way by which a schema becomes a tenant's looks at its names."""
    await execute(app.settings.required_database_url, f"CREATE SCHEMA old; SET search_path TO old; {PLANS}")
    with pytest.raises(SharedNameError):
        await adopt_schemas(app.database, {COPY: SchemaName("old")}, settings=app.settings, version=0)

    file = app.tenant_files.parent / "globex.tar"
    write_files(app.tenant_files, {"0003_rates.sql": "CREATE TABLE rates ()"})
    plan = await plan_fleet(app.database, settings=app.settings, slugs=[GLOBEX])
    await migrate_fleet(app.database, plan, settings=app.settings)
    await backup_tenant(app.database, GLOBEX, file, settings=app.settings)
    await drop_tenant(app.database, GLOBEX)
    write_files(app.shared_files, {"0003_rates.sql": "CREATE TABLE rates (n integer)"})
    await migrate_shared(app.database, settings=app.settings)

    with pytest.raises(SharedNameError):
        await undrop_tenant(app.database, GLOBEX, settings=app.settings)
    with pytest.raises(BackupFileError, match=r"its relation rates is also in the shared schema common"):
        await restore_tenant(app.database, file, COPY, settings=app.settings)


async def test_extensions_names_are_shared_too(app: App) -> None:
    """A tenant's function that is called as one of hstore's is found."""
    write_files(
        app.tenant_files,
        {"0003_slice.sql": "CREATE FUNCTION slice(n integer) RETURNS integer LANGUAGE sql AS 'SELECT n'"},
    )

    report = await migrate(app)

    assert {outcome.tenant.slug for outcome in report.failed} == {"acme", "globex"}
    assert "routine slice" in str(report.failed[0].error)
