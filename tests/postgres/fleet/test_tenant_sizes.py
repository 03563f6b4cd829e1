"""How large tenants are is remembered once a day, and their growth is told from it."""

import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.tenant_sizes import KEPT_DAYS, list_growth, list_sizes_by_day, measure_sizes
from quart_tenants.tenant import Tenant
from tests.support.databases import execute

pytestmark = pytest.mark.slow


async def remember(url: str, slug: str, **days: int) -> None:
    """Let a tenant have been so large; `d7` is seven days ago."""
    for day, size in days.items():
        await execute(
            url,
            "INSERT INTO quart_tenants.tenant_sizes (tenant_id, day, bytes)"
            f" SELECT id, (now() AT TIME ZONE 'UTC')::date - {int(day[1:])}, {size}"
            f" FROM quart_tenants.tenants WHERE slug = '{slug}'",
        )


async def test_size_of_a_day_is_the_last_one(database: Database, acme: Tenant) -> None:
    """A second look on the same day replaces the first, and what is remembered is the size of the tables."""
    await measure_sizes(database)
    (first,) = await list_growth(database, tenant_id=acme.id)
    async with database.tenant_connection(acme) as connection:
        await connection.execute(
            "INSERT INTO company_data (description) SELECT repeat('x', 1000) FROM generate_series(1, 1000)"
        )
    done: list[int] = []
    assert await measure_sizes(database, done.append) == []
    (second,) = await list_growth(database, tenant_id=acme.id)

    assert sum(done) == 4
    assert second.bytes >= first.bytes + 1_000_000
    assert await list_sizes_by_day(database, acme.id) == {second.day: second.bytes}
    assert (second.in_7_days, second.in_30_days) == (None, None)


async def test_old_days_are_forgotten(database: Database, database_url: str, acme: Tenant) -> None:
    """Forty days stay, so the table does not grow with time."""
    await remember(database_url, "acme", **{f"d{KEPT_DAYS}": 1, f"d{KEPT_DAYS + 1}": 2})
    await measure_sizes(database)

    days = await list_sizes_by_day(database, acme.id)
    assert 1 in days.values()
    assert 2 not in days.values()


async def test_locked_tenant_is_named_and_the_others_are_measured(
    database: Database, acme: Tenant, globex: Tenant
) -> None:
    """Whoever changes a table keeps only this tenant from being measured."""
    async with database.connection() as connection:
        await connection.execute("LOCK TABLE acme.app_user IN ACCESS EXCLUSIVE MODE")
        locked = await measure_sizes(database)

    assert locked == ["acme"]
    assert await list_growth(database, tenant_id=acme.id) == []
    assert len(await list_growth(database, tenant_id=globex.id)) == 1


async def test_growth_is_since_the_last_look_before(database: Database, database_url: str) -> None:
    """Growth is counted from the last size that is at least seven or thirty days older than the newest."""
    await remember(database_url, "acme", d0=1000, d6=900, d8=700, d31=200)
    await remember(database_url, "globex", d0=5000, d7=4900)
    await remember(database_url, "company1", d0=50)

    by_size = await list_growth(database, limit=9)
    by_growth = await list_growth(database, order="growth", limit=2)

    assert [(one.slug, one.bytes, one.in_7_days, one.in_30_days) for one in by_size] == [
        ("globex", 5000, 100, None),
        ("acme", 1000, 300, 800),
        ("company1", 50, None, None),
    ]
    assert [one.slug for one in by_growth] == ["acme", "globex"]
