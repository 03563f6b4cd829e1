"""A rehearsal says what a migration would do, and does nothing to the living tenants."""

import asyncio
import secrets
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from quart_tenants.errors import DatabaseRefusedError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_plan import plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import migrate_fleet
from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.postgres.rehearsal import scratch_database as scratch
from quart_tenants.postgres.rehearsal.rehearsal import (
    Rehearsal,
    RehearsedTenant,
    choose_sample,
    estimate_seconds,
    rehearse,
)
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant
from tests.postgres.conftest import Role
from tests.support.databases import execute

pytestmark = pytest.mark.slow

LIST_SCRATCH = "SELECT datname FROM pg_database WHERE starts_with(datname, $1)"
# All that a migration may change in the database: which tables there are, where they are stored, and the registry.
FINGERPRINT = """
SELECT md5(string_agg(line, ' ' ORDER BY line)) FROM (
    SELECT n.nspname || c.relname || pg_relation_filenode(c.oid) AS line FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'i')
    UNION ALL SELECT 'applied ' || a::text FROM quart_tenants.applied_migrations AS a
    UNION ALL SELECT 'tenant ' || t::text FROM quart_tenants.tenants AS t
) AS lines
"""


@pytest.fixture(autouse=True)
def _own_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test see its own databases only: other tests may use the same server."""
    monkeypatch.setattr(scratch, "_PREFIX", f"quart_tenants_rehearsal_{secrets.token_hex(4)}_")


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a folder of migrations that all tenants lack but for the first."""
    first = get_resource_path("sql/tenant/0001_users_and_data.sql")
    (tmp_path / first.name).write_bytes(first.read_bytes())
    (tmp_path / "0002_rewrite.sql").write_text("ALTER TABLE company_data ALTER id TYPE integer")
    (tmp_path / "0003_index.sql").write_text("CREATE INDEX by_name ON app_user (username); CREATE TABLE fresh (x int)")
    return replace(settings, migrations_dir=tmp_path)


async def run(database: Database, settings: Settings, sample: int = 3) -> Rehearsal:
    """Plan and rehearse, as the command does."""
    return await rehearse(database, await plan_fleet(database, settings=settings), settings=settings, sample=sample)


async def list_scratch(database: Database) -> list[str]:
    """Return the databases of rehearsals."""
    async with database.connection() as connection:
        return [row[0] for row in await connection.fetch(LIST_SCRATCH, scratch._PREFIX)]


async def read_fingerprint(database: Database) -> str:
    """Return a text that differs after any change to tenants."""
    async with database.connection() as connection:
        fingerprint: str = await connection.fetchval(FINGERPRINT)
    return fingerprint


async def test_files_are_measured_on_copies(database: Database, settings: Settings) -> None:
    """Each file names the tables that it locks and rewrites, and not those that are new."""
    rehearsal = await run(database, settings, sample=2)

    assert len(rehearsal.tenants) == 2
    for one in rehearsal.tenants:
        rewrite, index = one.files
        assert [file.file for file in one.files] == ["0002_rewrite.sql", "0003_index.sql"]
        assert [(lock.table, lock.mode) for lock in rewrite.locks] == [("company_data", "ACCESS EXCLUSIVE")]
        assert [rewritten.table for rewritten in rewrite.rewritten] == ["company_data"]
        assert [(lock.table, lock.mode) for lock in index.locks] == [("app_user", "SHARE")]
        assert index.rewritten == []
        # The first lock is held until the commit, behind the second file.
        assert rewrite.locks[0].seconds > rewrite.seconds > 0
        assert one.error is None
    assert rehearsal.estimate is not None
    assert rehearsal.estimate > 0


async def test_living_tenants_do_not_change(database: Database, settings: Settings) -> None:
    """Tables, registry and versions are as before; a real migration is the negative control."""
    before = await read_fingerprint(database)

    await run(database, settings)

    assert await read_fingerprint(database) == before
    assert await list_scratch(database) == []
    assert {tenant.version for tenant in await list_tenants(database)} == {1}
    await migrate_fleet(database, await plan_fleet(database, settings=settings), settings=settings)
    assert await read_fingerprint(database) != before


async def test_copies_go_away_after_a_cancellation(database: Database, settings: Settings) -> None:
    """A Ctrl-C in the middle drops the database of the copies."""
    begun = asyncio.Event()
    plan = await plan_fleet(database, settings=settings)

    async def go_on() -> None:
        await rehearse(database, plan, settings=settings, on_rehearsed=lambda one: begun.set())

    task = asyncio.create_task(go_on())
    await begun.wait()
    there = await list_scratch(database)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert len(there) == 1
    assert await list_scratch(database) == []


async def test_failure_on_a_copy_is_told(database: Database, settings: Settings, tmp_path: Path) -> None:
    """A file that fails for one tenant's rows is found before the tenant is migrated."""
    (tmp_path / "0004_check.sql").write_text("ALTER TABLE company_data ADD CHECK (description <> 'company 1 data')")

    rehearsal = await run(database, settings, sample=4)

    failed = {one.tenant.slug: one.error for one in rehearsal.tenants if one.error is not None}
    assert list(failed) == ["company1"]
    assert "0004_check.sql" in (failed[Slug("company1")] or "")
    assert rehearsal.estimate is None


async def test_files_in_several_transactions_are_measured_once(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    """A first try that was rolled back leaves nothing in the report; files outside a transaction are in it."""
    (tmp_path / "0004_mood.sql").write_text("CREATE TYPE mood AS ENUM ('sad')")
    plan = await plan_fleet(database, settings=settings)
    await migrate_fleet(database, plan, settings=settings)
    (tmp_path / "0005_rewrite.sql").write_text(
        "ALTER TABLE company_data ALTER id TYPE bigint; ALTER TYPE mood ADD VALUE 'glad'"
    )
    (tmp_path / "0006_use.sql").write_text("ALTER TABLE app_user ADD mood mood DEFAULT 'glad'")
    (tmp_path / "0007_alone.sql").write_text(
        "-- quart-tenants: no transaction\nCREATE INDEX CONCURRENTLY by_text ON company_data (description)"
    )

    rehearsal = await run(database, settings, sample=1)

    (one,) = rehearsal.tenants
    assert [file.file for file in one.files] == ["0005_rewrite.sql", "0006_use.sql", "0007_alone.sql"]
    assert [[each.table for each in file.rewritten] for file in one.files] == [["company_data"], [], []]
    assert [[lock.table for lock in file.locks] for file in one.files] == [["company_data"], ["app_user"], []]


async def test_role_that_may_make_no_database_is_told_the_remedy(
    database: Database, settings: Settings, database_url: str, role: Role
) -> None:
    """Nothing is copied then."""
    await execute(database_url, f"GRANT ALL ON SCHEMA quart_tenants TO {role.name}")
    await execute(database_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA quart_tenants TO {role.name}")
    poor = replace(settings, database_url=role.put_into(database_url))

    try:
        async with await Database.open(poor, max_size=1) as other:
            with pytest.raises(DatabaseRefusedError, match="CREATEDB"):
                await run(other, poor)
    finally:
        await execute(database_url, f"DROP OWNED BY {role.name}")


async def test_copies_of_a_killed_rehearsal_go_with_a_later_one(
    database: Database, settings: Settings, server_url: str
) -> None:
    """A database that is old and that nobody uses is dropped; one that is in use or new is left alone."""
    names = [f"{scratch._PREFIX}{number}_{'ab' * 4}" for number in (1, 2, 9_999_999_999)]
    for name in names:
        await execute(server_url, f"CREATE DATABASE {name}")
    user = await asyncpg.connect(server_url.replace("/postgres?", f"/{names[1]}?"))
    try:
        async with scratch.scratch_database(database, settings=settings):
            left = await list_scratch(database)
    finally:
        await user.close()
        for name in names:
            await execute(server_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    assert names[0] not in left
    assert set(names[1:]) <= set(left)


def make_tenant(number: int) -> Tenant:
    """Return a tenant by its number."""
    return Tenant(number, Slug(f"t{number}"), SchemaName(f"t{number}"), "T", 1)


def test_sample_has_the_largest_and_the_oldest() -> None:
    """The rest are others by chance, and nobody is there twice."""
    tenants = [make_tenant(number) for number in range(1, 20)]
    sizes = {tenant.id: 100 - tenant.id if tenant.id != 7 else 1000 for tenant in tenants}

    five = choose_sample(tenants, sizes, 5)

    assert [tenant.id for tenant in five[:2]] == [7, 1]
    assert len({tenant.id for tenant in five}) == 5
    assert [tenant.id for tenant in choose_sample(tenants, sizes, 1)] == [7]
    assert len(choose_sample(tenants, sizes, 100)) == 19
    assert choose_sample([], {}, 3) == []


def test_estimate_grows_with_the_sizes() -> None:
    """So much for each tenant and so much for each byte, by the smallest and the largest copy."""
    small, large = (
        RehearsedTenant(make_tenant(number), size, seconds, ())
        for number, size, seconds in ((1, 1000, 1.0), (2, 11_000, 3.0))
    )
    sizes = {1: 1000, 2: 11_000, 3: 6000}

    assert estimate_seconds([small, large], sizes) == pytest.approx(1 + 3 + 2)
    assert estimate_seconds([small], sizes) == pytest.approx(3)
    assert estimate_seconds([replace(small, error="failed"), large], sizes) is None
