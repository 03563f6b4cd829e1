"""A tenant's share of the pool: what one tenant may have, and that none of it is ever lost."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from quart_tenants.errors import PoolExhaustedError, TenantOverShareError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.shares import Shares
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Tenant, parse_slug
from tests.support.web_lender import WebLender

pytestmark = pytest.mark.slow


def make_tenant(number: int) -> Tenant:
    """Return a tenant that needs no database."""
    slug = parse_slug(f"tenant-{number}")
    return Tenant(number, slug, SchemaName(slug), slug)


@pytest.fixture
async def shared_database(settings: Settings) -> AsyncIterator[Database]:
    """A pool of four, of which a tenant may have two while one more waits, for a short time."""
    own = Settings(
        database_url=settings.database_url,
        pool_max_size=4,
        tenant_pool_share=2,
        tenant_pool_queue=1,
        acquire_timeout=0.2,
    )
    async with await WebLender.open(own) as database:
        yield database


async def test_tenant_over_its_share_waits_and_then_is_refused(
    shared_database: Database, acme: Tenant, globex: Tenant
) -> None:
    """The third block of a tenant waits in vain, the fourth is refused at once, and another tenant is served."""
    async with shared_database.tenant_connection(acme), shared_database.tenant_connection(acme):
        waiting = asyncio.create_task(shared_database.tenant_connection(acme).__aenter__())
        await asyncio.sleep(0)
        with pytest.raises(TenantOverShareError, match="'acme'"):
            await shared_database.tenant_connection(acme).__aenter__()
        async with shared_database.tenant_connection(globex) as connection:
            assert await connection.fetchval("SELECT current_schemas(false)") == ["globex"]
        with pytest.raises(PoolExhaustedError, match="share"):
            await waiting

    async with shared_database.tenant_connection(acme), shared_database.tenant_connection(acme):
        pass


async def test_waiting_block_begins_when_one_ends(shared_database: Database, acme: Tenant) -> None:
    """A place in a share is handed to the block that waits for it."""
    begun = asyncio.Event()

    async def wait_and_begin() -> None:
        async with shared_database.tenant_connection(acme):
            begun.set()

    async with shared_database.tenant_connection(acme):
        async with shared_database.tenant_connection(acme):
            task = asyncio.create_task(wait_and_begin())
            await asyncio.sleep(0)
            assert not begun.is_set()
        await begun.wait()
    await task


async def test_without_a_share_one_tenant_takes_all(settings: Settings, acme: Tenant, globex: Tenant) -> None:
    """Negative control: where a share is the whole pool, another tenant waits in vain."""
    unfair = replace(settings, pool_min_size=2, pool_max_size=2, tenant_pool_share=2, acquire_timeout=0.05)
    async with (
        await WebLender.open(unfair) as database,
        database.tenant_connection(acme),
        database.tenant_connection(acme),
    ):
        with pytest.raises(PoolExhaustedError, match="all 2 connections"):
            await database.tenant_connection(globex).__aenter__()


async def test_commands_have_no_shares(settings: Settings, acme: Tenant) -> None:
    """A pool that a command opens for itself is all its own, for one tenant too."""
    async with (
        await WebLender.open(settings, max_size=2) as database,
        database.tenant_connection(acme),
        database.tenant_connection(acme) as connection,
    ):
        assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("seed", range(5))
async def test_no_place_is_lost_whenever_a_block_is_cancelled(seed: int) -> None:
    """Cancelled before, while and after it waited: the count is right at every moment, and nothing is left."""
    chance = random.Random(seed)  # noqa: S311
    shares = Shares(3, 5)
    tenants = [make_tenant(number) for number in range(3)]
    used = dict.fromkeys(tenants, 0)
    loop = asyncio.get_running_loop()

    async def use(tenant: Tenant) -> None:
        await shares.take(tenant, loop.time() + chance.choice([0.0005, 1]))
        used[tenant] += 1
        try:
            assert used[tenant] <= 3
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            used[tenant] -= 1
            shares.give_back(tenant)

    async def work() -> None:
        for _ in range(200):
            task = asyncio.create_task(use(chance.choice(tenants)))
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, PoolExhaustedError, TenantOverShareError):
                await task

    await asyncio.gather(*(work() for _ in range(30)))

    assert len(shares) == 0
