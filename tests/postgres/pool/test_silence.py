"""What happens when the other end says nothing any more: no error, no end of the connection, nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from quart_tenants.errors import DatabaseUnavailableError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.support.patience import DEADLINE, wait_until
from tests.support.tcp_proxy import TcpProxy
from tests.support.web_lender import WebLender

pytestmark = pytest.mark.slow

SIZE = 3
BACKEND = "SELECT pg_backend_pid()"


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[TcpProxy]:
    """A network that can fall silent."""
    async with TcpProxy(database_url) as proxy:
        yield proxy


@pytest.fixture
async def behind(proxy: TcpProxy, settings: Settings) -> AsyncIterator[Database]:
    """A pool behind it, whose statements may take ten minutes."""
    async with await WebLender.open(
        replace(settings, database_url=proxy.url, command_timeout=600), max_size=SIZE
    ) as pool:
        yield pool


async def use_all(database: Database, tenant: Tenant) -> set[int]:
    """Return the backends of a whole pool, used at the same time."""
    together = asyncio.Barrier(SIZE)

    async def use() -> int:
        async with database.tenant_connection(tenant) as connection:
            await together.wait()
            return int(await connection.fetchval(BACKEND))

    return set(await asyncio.gather(*(use() for _ in range(SIZE))))


async def test_silent_connections_are_replaced(proxy: TcpProxy, behind: Database, acme: Tenant) -> None:
    """After a hole in the network no block fails, though every pooled connection is dead and does not say so."""
    before = await use_all(behind, acme)

    proxy.open_black_hole()
    proxy.close_black_hole()
    after = await use_all(behind, acme)

    assert len(before) == len(after) == SIZE
    assert not before & after


async def test_black_hole_costs_a_block_the_time_that_it_has(proxy: TcpProxy, settings: Settings, acme: Tenant) -> None:
    """Where nobody answers, not even a new connection, the block fails in the time that it has."""
    impatient = replace(settings, database_url=proxy.url, acquire_timeout=1.0)
    async with await WebLender.open(impatient, max_size=SIZE) as database:
        await use_all(database, acme)
        proxy.open_black_hole()

        async with asyncio.timeout(DEADLINE):
            with pytest.raises(DatabaseUnavailableError):
                async with database.tenant_connection(acme) as connection:
                    await connection.fetchval(BACKEND)


async def test_connection_that_falls_silent_while_it_is_opened_is_given_up(
    proxy: TcpProxy, settings: Settings, acme: Tenant
) -> None:
    """Its place is free again after the time that connecting may take, also if it was opened without a block."""
    patient = replace(settings, database_url=proxy.url, connect_timeout=1, command_timeout=600, pool_min_size=1)
    async with await WebLender.open(patient, max_size=1) as database:
        proxy.watch()
        # After the login.
        proxy.swallow_at("client", 1)
        proxy.reset_all()

        async with asyncio.timeout(DEADLINE):
            served = None
            while served is None:
                with contextlib.suppress(DatabaseUnavailableError):
                    async with database.tenant_connection(acme) as connection:
                        served = await connection.fetchval(BACKEND)


@pytest.mark.parametrize("savepoint", [False, True], ids=["block", "savepoint"])
async def test_cancelled_block_does_not_wait_for_a_silent_server(
    proxy: TcpProxy, behind: Database, database: Database, acme: Tenant, savepoint: bool
) -> None:
    """A block that is cancelled in a hole ends as cancelled, long before its statement would have."""
    asleep = asyncio.Event()

    async def sleep() -> None:
        async with behind.tenant_connection(acme) as connection:
            asleep.set()
            if savepoint:
                async with connection.transaction():
                    await connection.execute("SELECT pg_sleep(600)")
            await connection.execute("SELECT pg_sleep(600)")

    task = asyncio.create_task(sleep())
    await asleep.wait()
    await wait_until(lambda: _sleeps(database))
    proxy.open_black_hole()
    task.cancel()
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(asyncio.CancelledError):
            await task

    proxy.close_black_hole()
    assert len(await use_all(behind, acme)) == SIZE


async def _sleeps(database: Database) -> bool:
    async with database.connection() as connection:
        count = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        )
    return bool(count)
