"""What needs doing: each thing that waits for an operator is told once, with its remedy, by everyone alike."""

from dataclasses import replace
from pathlib import Path

import pytest

from quart_tenants.errors import RegistryNotReadyError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import Finding, State
from quart_tenants.postgres.doctor.examination import examine
from quart_tenants.postgres.doctor.fleet_tasks import describe_tasks, find_tasks, list_tasks
from quart_tenants.postgres.fleet.status import get_fleet_status
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, parse_slug

FIRST_FILE = "0001_users_and_data.sql"
# Each makes one thing that waits for an operator.
PLANTED = {
    "grants": "GRANT USAGE ON SCHEMA acme TO PUBLIC",
    "failed migrations": """
        INSERT INTO quart_tenants.migration_failures (tenant_id, version, migration, reason)
        SELECT id, 1, '0002_more.sql', E'line 3:\n  no room' FROM quart_tenants.tenants WHERE slug = 'acme'
    """,
    "tenants behind": """
        INSERT INTO quart_tenants.tenants (slug, schema_name, display_name) VALUES ('oldco', 'oldco', 'Old Co')
    """,
    "edited files": "UPDATE quart_tenants.applied_migrations SET sha256 = '' WHERE schema_name = 'company1'",
    "trash": "UPDATE quart_tenants.tenants SET dropped_at = now() - interval '31 days' WHERE slug = 'company2'",
    "drift": "ALTER TABLE globex.app_user ADD nickname text",
}


async def execute(database: Database, statement: str) -> None:
    """Run one statement as the login role."""
    async with database.connection() as connection:
        await connection.execute(statement)


async def find(database: Database, settings: Settings, *, drift: bool = True) -> dict[str, Finding]:
    """Return what needs doing, by check."""
    status = await get_fleet_status(database, settings=settings, drift=drift)
    return {task.check: task for task in await find_tasks(database, status, settings=settings)}


async def test_fleet_at_rest_needs_nothing(database: Database, settings: Settings) -> None:
    """Where all is well nothing needs doing: a tenant that waits in the trash for its day is no task, nor is advice."""
    await drop_tenant(database, parse_slug("company2"))

    assert await find(database, settings) == {}
    assert describe_tasks([]) == "nothing needs doing"


@pytest.mark.parametrize("check", PLANTED)
async def test_each_thing_is_told_with_its_remedy(database: Database, settings: Settings, check: str) -> None:
    """What is planted is the one thing that is told, and something is said to do about it."""
    if check == "trash":
        await drop_tenant(database, parse_slug("company2"))
    await execute(database, PLANTED[check])

    tasks = await find(database, settings, drift=check == "drift")

    assert list(tasks) == [check]
    assert tasks[check].state is (State.LEAK if check == "grants" else State.TO_DO)
    assert tasks[check].remedy
    assert describe_tasks(list(tasks.values())) == f"1 thing needs doing: {check}"


async def test_tasks_name_tenants_and_reasons(database: Database, settings: Settings) -> None:
    """A tenant whose migration failed is behind as well, and is told once, with the reason in one line."""
    await execute(database, "DELETE FROM quart_tenants.applied_migrations WHERE schema_name IN ('acme', 'globex')")
    await execute(database, PLANTED["failed migrations"].replace("id, 1", "id, 0"))

    tasks = await find(database, settings, drift=False)

    assert {check: task.seen for check, task in tasks.items()} == {
        "failed migrations": "1 tenant, failed: acme (0002_more.sql: line 3: no room)",
        "tenants behind": f"1 tenant, older than {FIRST_FILE}: globex",
    }


async def test_shared_tables_that_are_behind_are_told(database: Database, settings: Settings, tmp_path: Path) -> None:
    """Shared files that did not run wait for `migrate`."""
    (tmp_path / "0001_plans.sql").write_text("CREATE TABLE plans (id int)")
    await execute(database, "CREATE SCHEMA common")
    shared = replace(settings, shared_schemas=(SchemaName("common"),), shared_migrations_dir=tmp_path)

    assert (await find(database, shared, drift=False))["shared migrations"].seen == (
        "they are at 0000, and the newest file is 0001"
    )


@pytest.mark.slow
async def test_doctor_and_status_agree(database: Database, settings: Settings) -> None:
    """Whatever is planted, `doctor` tells the same things as `status`, but for drift, which it does not compare."""
    await drop_tenant(database, parse_slug("company2"))
    for statement in PLANTED.values():
        await execute(database, statement)

    async with await Database.open(settings, max_size=1) as alone:
        examined = [finding async for finding in examine(alone, settings=settings)]

    told = await find(database, settings)
    assert told.keys() == PLANTED.keys()
    assert list_tasks(examined) == [task for task in told.values() if task.check != "drift"]


@pytest.mark.slow
async def test_doctor_goes_on_without_the_files(database: Database, settings: Settings, tmp_path: Path) -> None:
    """Where the state of the tenants cannot be told, the doctor says why, and attacks all the same."""
    broken = replace(settings, migrations_dir=tmp_path / "nowhere")

    async with await Database.open(broken, max_size=1) as alone:
        findings = {finding.check: finding async for finding in examine(alone, settings=broken)}

    assert findings["state of the tenants"].state is State.FAILED
    assert "nowhere" in findings["state of the tenants"].seen
    assert findings["blocks"].state is State.OK


async def test_tasks_need_a_registry(database: Database, settings: Settings, empty_database_url: str) -> None:
    """Without a registry the remedy is named."""
    status = await get_fleet_status(database, settings=settings, drift=False)
    settings = replace(settings, database_url=empty_database_url)
    async with await Database.open(settings, max_size=1) as empty:
        with pytest.raises(RegistryNotReadyError, match="run quart-tenants init"):
            await find_tasks(empty, status, settings=settings)
