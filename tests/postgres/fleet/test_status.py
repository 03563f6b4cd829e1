"""The report on the fleet is right about every tenant, and asks as often for many as for few."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from quart_tenants.errors import RegistryNotReadyError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.drift import Drift, Majority
from quart_tenants.postgres.fleet.status import (
    FleetStatus,
    MigrationFailure,
    TenantVersion,
    VersionCount,
    get_fleet_status,
)
from quart_tenants.postgres.migrations.migration_files import EditedFile
from quart_tenants.postgres.tenants.lifecycle import suspend_tenant
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.postgres.fleet.parts import Add

ACME, COMPANY1, COMPANY2, GLOBEX = map(parse_slug, ("acme", "company1", "company2", "globex"))
FIRST_FILE = "0001_users_and_data.sql"
SECOND_FILE = "0002_nickname.sql"


async def execute(database: Database, statement: str, *values: object) -> None:
    """Run one statement on the registry."""
    async with database.connection() as connection:
        await connection.execute(statement, *values)


@pytest.fixture
def settings_with_second_file(settings: Settings, add: Add) -> Settings:
    """Settings whose folder has a migration more than the tenants."""
    add(SECOND_FILE, "ALTER TABLE app_user ADD nickname text")
    return settings


async def test_fleet_at_rest_has_nothing_to_report(database: Database, settings: Settings) -> None:
    """Four tenants at the newest file are one line, and all alike."""
    assert await get_fleet_status(database, settings=settings) == FleetStatus(
        newest_version=1,
        newest_file=FIRST_FILE,
        tenants=4,
        suspended=0,
        trash=0,
        ready=0,
        versions=(VersionCount(1, FIRST_FILE, 4),),
        behind=(),
        ahead=(),
        failures=(),
        edited=(),
        shared_version=0,
        shared_names=(),
        nodes={},
        majorities=(Majority(1, ACME, count=4, compared=4, tied=False),),
        drift=(),
    )


async def test_everything_is_reported_at_once(database: Database, settings_with_second_file: Settings) -> None:
    """Versions, behind, ahead, suspended, trash, failures and drift stand beside one another."""
    settings = settings_with_second_file
    failed_at = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
    await create_tenant(database, parse_slug("newco"), "New Co", settings=settings)
    await create_tenant(database, parse_slug("oldco"), "Old Co", settings=settings)
    await suspend_tenant(database, ACME)
    await drop_tenant(database, COMPANY2)
    await execute(
        database,
        "INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256)"
        " VALUES ('globex', 2, $1, encode(sha256($2::text::bytea), 'hex')), ('oldco', 3, '0003_newer.sql', '')",
        SECOND_FILE,
        "ALTER TABLE app_user ADD nickname text",
    )
    await execute(
        database,
        "INSERT INTO quart_tenants.migration_failures (tenant_id, version, migration, reason, failed_at)"
        " SELECT id, 1, $1, 'no room', $2 FROM quart_tenants.tenants WHERE slug IN ('acme', 'company2')",
        SECOND_FILE,
        failed_at,
    )

    status = await get_fleet_status(database, settings=settings)

    assert status == FleetStatus(
        newest_version=2,
        newest_file=SECOND_FILE,
        tenants=5,
        suspended=1,
        trash=1,
        ready=0,
        versions=(VersionCount(3, None, 1), VersionCount(2, SECOND_FILE, 2), VersionCount(1, FIRST_FILE, 2)),
        behind=(TenantVersion(ACME, 1), TenantVersion(COMPANY1, 1)),
        ahead=(TenantVersion(parse_slug("oldco"), 3),),
        failures=(MigrationFailure(ACME, SECOND_FILE, "no room", failed_at),),
        edited=(),
        shared_version=0,
        shared_names=(),
        nodes={},
        majorities=(
            Majority(1, ACME, count=2, compared=2, tied=False),
            Majority(2, GLOBEX, count=1, compared=2, tied=True),
            Majority(3, parse_slug("oldco"), count=1, compared=1, tied=False),
        ),
        drift=(Drift(parse_slug("newco"), 2, ("extra column app_user.nickname (text)",)),),
    )


async def test_edited_file_is_reported_and_not_refused(database: Database, settings_with_second_file: Settings) -> None:
    """A file that is not what ran is named with all tenants in which it ran; a report must not stop there."""
    settings = settings_with_second_file
    await drop_tenant(database, COMPANY2)
    if settings.migrations_dir is not None:
        (settings.migrations_dir / FIRST_FILE).write_text("SELECT 'edited'")

    status = await get_fleet_status(database, settings=settings, drift=False)

    assert status.edited == (EditedFile(FIRST_FILE, (ACME, COMPANY1, GLOBEX)),)
    assert status.drift is None
    assert status.majorities is None


async def test_number_of_queries_does_not_grow(one_connection_database: Database, settings: Settings) -> None:
    """Five tenants more cost no query more, but for the drift."""
    database = one_connection_database
    queries: list[str] = []
    async with database.connection() as connection:
        connection.add_query_logger(lambda query: queries.append(query.query))
    counts = []
    for slug in map(parse_slug, ("more0", "more1", "more2", "more3", "more4")):
        await create_tenant(database, slug, "More", settings=settings)
        queries.clear()

        status = await get_fleet_status(database, settings=settings, drift=False)

        counts.append((status.tenants, len(queries)))

    assert [tenants for tenants, _ in counts] == [5, 6, 7, 8, 9]
    assert len({number for _, number in counts}) == 1


async def test_report_needs_a_registry(settings: Settings, empty_database_url: str) -> None:
    """Without one it says what to run."""
    settings = replace(settings, database_url=empty_database_url)
    async with await Database.open(settings, max_size=1) as empty:
        with pytest.raises(RegistryNotReadyError, match="run quart-tenants init"):
            await get_fleet_status(empty, settings=settings)
