"""Promise: however many tenants share a connection and however their requests end, no row crosses over."""

import asyncio
import os

import asyncpg
import pytest

from quart_tenants.postgres.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Tenant, parse_slug
from tests.isolation.lenders import open_naive_pool, remember_path
from tests.isolation.soak import make_stamps, soak

# The short form of every run; SOAK_BLOCKS=200000 is the full one, with 200 tenants.
BLOCKS = int(os.environ.get("SOAK_BLOCKS", "4000"))
TENANTS = 200 if BLOCKS >= 100_000 else 20
POOL_SIZE = 5


@pytest.fixture
async def tenants(database_url: str) -> list[Tenant]:
    """Tenants whose only row names them."""
    slugs = [parse_slug(f"soak-{number}") for number in range(TENANTS)]
    tenants = [Tenant(number, slug, SchemaName(slug), slug) for number, slug in enumerate(slugs, start=1)]
    await make_stamps(database_url, tenants)
    return tenants


async def test_cancelled_blocks_leak_no_row_and_lose_no_connection(settings: Settings, tenants: list[Tenant]) -> None:
    """A tenth of the blocks is cancelled at a random moment, some fail: no foreign row, a whole and clean pool."""
    async with await Database.open(settings, max_size=POOL_SIZE) as database:
        findings = await soak(database.tenant_connection, tenants, blocks=BLOCKS, seed=1)
        print(findings)  # noqa: T201  (the figures of a long run, shown by pytest -s)

        assert findings.foreign_rows == 0
        assert findings.errors == 0
        assert findings.cancelled > BLOCKS / 50
        assert findings.failed > BLOCKS / 50
        assert findings.finished + findings.cancelled + findings.failed == findings.blocks >= BLOCKS
        together = asyncio.Barrier(POOL_SIZE)

        async def probe() -> str:
            async with database.connection() as connection:
                # Passed only when all the connections of the pool are lent at the same time.
                await together.wait()
                return str(await connection.fetchval("SHOW search_path"))

        assert await asyncio.gather(*(probe() for _ in range(POOL_SIZE))) == ['""'] * POOL_SIZE


async def test_remembered_path_is_caught_by_the_same_soak(database_url: str, tenants: list[Tenant]) -> None:
    """Negative control: a lender that remembers the connection's path reads foreign rows under the same soak."""
    pool = await open_naive_pool(database_url, POOL_SIZE)
    try:
        findings = await soak(remember_path(pool), tenants, blocks=BLOCKS, seed=1)
    finally:
        await pool.close()

    print(findings)  # noqa: T201
    assert findings.foreign_rows > 0


async def test_statement_outside_a_block_sees_no_table(database: Database, tenants: list[Tenant]) -> None:
    """Without a tenant there are no tables: the default path is empty."""
    with pytest.raises(asyncpg.UndefinedTableError):
        async with database.connection() as connection:
            await connection.fetch("SELECT owner FROM stamps")
