"""Many tenants are made at once: checked all before the first, each complete, none twice."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from quart_tenants.errors import (
    InvalidNameError,
    InvalidSlugError,
    MigrationFailedError,
    MigrationFileError,
    TenantError,
    TenantExistsError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.migrations.migration_files import get_tenant_migrations
from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.postgres.tenants.free_names import find_obstacles
from quart_tenants.postgres.tenants.provisioning import create_tenants
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant, parse_slug

NAMES = {parse_slug(f"new{number}"): f"New {number}" for number in range(12)}
# Schemas, rows of the registry, migrations and announcements: a tenant is complete when it has one of each.
COUNT_COMPLETE = """
SELECT count(*) FROM quart_tenants.tenants AS t
JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schema_name
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'company_data'
JOIN quart_tenants.applied_migrations AS a ON a.schema_name = t.schema_name
JOIN quart_tenants.changes AS x ON x.tenant_id = t.id
WHERE t.slug LIKE 'new%'
"""


async def count_complete(database: Database) -> int:
    """Return how many of the new tenants are there with all that they need."""
    async with database.connection() as connection:
        return int(await connection.fetchval(COUNT_COMPLETE))


async def find_new(database: Database) -> dict[Slug, str]:
    """Return the names of the new tenants."""
    return {tenant.slug: tenant.name for tenant in await list_tenants(database) if tenant.slug.startswith("new")}


@pytest.mark.parametrize(
    ("slug", "name", "error"),
    [
        ("www", "Web", InvalidSlugError),
        ("acme", "Another", TenantExistsError),
        ("last", "La\nst", InvalidNameError),
    ],
)
async def test_mistake_in_the_last_line_makes_no_tenant(
    database: Database, settings: Settings, slug: str, name: str, error: type[TenantError]
) -> None:
    """What can be checked is checked for all before the first is made."""
    with pytest.raises(error):
        await create_tenants(database, {**NAMES, parse_slug(slug): name}, settings=settings)

    assert await find_new(database) == {}


async def test_every_obstacle_is_found_by_one_look(database: Database, settings: Settings) -> None:
    """Each name that cannot be taken is told with its reason, and those that can are not."""
    slugs = [parse_slug(slug) for slug in ("new1", "acme", "www", "globex")]

    obstacles = await find_obstacles(database, slugs, settings=settings)

    assert {slug: type(error) for slug, error in obstacles.items()} == {
        "acme": TenantExistsError,
        "www": InvalidSlugError,
        "globex": TenantExistsError,
    }


async def test_concurrent_jobs_make_every_tenant_once(database: Database, settings: Settings) -> None:
    """Four at a time make as many as were asked for, each with its name and complete, and tell each."""
    told: list[Tenant] = []

    assert await create_tenants(database, NAMES, settings=settings, jobs=4, on_created=told.append) == len(NAMES)

    assert await find_new(database) == NAMES
    assert await count_complete(database) == len(NAMES)
    assert sorted(tenant.slug for tenant in told) == sorted(NAMES)


async def test_interrupted_run_leaves_complete_tenants_and_is_continued(database: Database, settings: Settings) -> None:
    """Cancelled in the middle, those that are made stay, each complete; the rest can be made later."""
    made = 0
    running = asyncio.Event()

    def count(_: Tenant) -> None:
        nonlocal made
        made += 1
        if made == 3:
            running.set()

    run = asyncio.create_task(create_tenants(database, NAMES, settings=settings, jobs=2, on_created=count))
    await running.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    there = await find_new(database)
    assert 3 <= len(there) < len(NAMES)
    assert await count_complete(database) == len(there)

    await create_tenants(database, {slug: name for slug, name in NAMES.items() if slug not in there}, settings=settings)

    assert await find_new(database) == NAMES
    assert await count_complete(database) == len(NAMES)


async def test_two_runs_of_one_list_make_no_tenant_twice(database: Database, settings: Settings) -> None:
    """The second meets a name that the first has taken, says so, and harms nothing."""
    results = await asyncio.gather(
        *(create_tenants(database, NAMES, settings=settings, jobs=2) for _ in range(2)), return_exceptions=True
    )

    assert any(isinstance(result, TenantExistsError) for result in results)
    assert await count_complete(database) == len(await find_new(database))


async def test_failing_migration_is_named_and_no_sql_makes_none(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    """A file that is no SQL is found before the first tenant; one that fails ends the run at its tenant."""
    (first,) = get_tenant_migrations(settings)
    (tmp_path / first.name).write_text(first.sql)
    second = tmp_path / "0002_second.sql"
    settings = replace(settings, migrations_dir=tmp_path)

    for sql, error in (("CREAT", MigrationFileError), ("SELECT no_such_column", MigrationFailedError)):
        second.write_text(sql)
        with pytest.raises(error, match=r"0002_second\.sql"):
            await create_tenants(database, NAMES, settings=settings)

        assert await find_new(database) == {}
