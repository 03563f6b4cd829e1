"""The figures of a worker, with a real database: blocks, connections, the registry."""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from quart_tenants.errors import PoolExhaustedError, TenantOverShareError
from quart_tenants.measures.counts import Figures, Measures
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.support.patience import wait_until

SECRET = "planted-parameter"


@pytest.fixture
def measures() -> Measures:
    """What is counted."""
    return Measures(named_tenants=20)


@pytest.fixture
async def counted(settings: Settings, measures: Measures) -> AsyncIterator[Database]:
    """A pool of two connections, of which a tenant has one, and whose blocks are counted."""
    small = replace(settings, pool_max_size=2, tenant_pool_queue=1)
    async with await Database.open(small, measures=measures) as database:
        yield database


async def test_blocks_and_statements_are_counted(counted: Database, measures: Measures, acme: Tenant) -> None:
    """A block counts once, with its statements, their rows and their tenant."""
    async with counted.tenant_connection(acme) as connection:
        await connection.fetch("SELECT generate_series(1, 7)")
        await connection.fetchval("SELECT $1::text", SECRET)
    async with counted.tenant_connection(acme) as connection:
        await connection.execute("CREATE TABLE counted (id int)")
        await connection.executemany("INSERT INTO counted VALUES ($1)", [(1,), (2,)])
    async with counted.connection() as connection:
        await connection.fetchval("SELECT 1")

    blocks = measures.show_blocks()
    (tenant,), others = measures.tenants.show()
    assert blocks.ended.count == 3
    assert (blocks.statements, blocks.failed, blocks.slow) == (5, 0, 0)
    assert 0 < blocks.statement_seconds < blocks.ended.seconds
    assert (tenant.slug, tenant.blocks, tenant.statements) == ("acme", 2, 4)
    assert tenant.rows >= 7
    assert others.blocks == 0
    assert measures.list_open_blocks() == []


@pytest.mark.usefixtures("fast_driver_only")
async def test_plain_read_that_is_known_is_one_round_trip(counted: Database, measures: Measures, acme: Tenant) -> None:
    """A read whose statement is prepared goes there and back once; a block that writes three times."""

    async def count(statement: str) -> int:
        before = measures.round_trips
        async with counted.tenant_connection(acme, is_known=True) as connection:
            await connection.fetch(statement)
        return measures.round_trips - before

    # A connection that has not answered lately begins its block by a message of its own.
    await count("SELECT 2")
    first, second = await count("SELECT 1 AS one"), await count("SELECT 1 AS one")
    await count("UPDATE company_data SET id = id")
    writing = await count("UPDATE company_data SET id = id")

    assert (first, second, writing) == (2, 1, 3)


async def test_failed_block_is_counted_as_one(counted: Database, measures: Measures, acme: Tenant) -> None:
    """A block that ends by an error, or by a cancellation, is a failed one, and is not open any more."""
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with counted.tenant_connection(acme) as connection:
            await connection.fetchval("SELECT 1 / 0")
    entered = asyncio.Event()

    async def stay() -> None:
        async with counted.tenant_connection(acme):
            entered.set()
            await asyncio.Event().wait()

    staying = asyncio.create_task(stay())
    await entered.wait()
    open_now = measures.list_open_blocks()
    staying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await staying

    assert [(block.tenant, block.state, bool(block.backend)) for block in open_now] == [("acme", "open", True)]
    assert measures.failed_blocks == 2
    assert measures.list_open_blocks() == []


async def test_tenant_over_its_share_is_told(counted: Database, measures: Measures, acme: Tenant) -> None:
    """What waits for a share, and what is refused for one, can be told from a pool that is too small."""
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(counted.tenant_connection(acme))
        waiting = asyncio.create_task(counted.tenant_connection(acme).__aenter__())

        async def has_waiter() -> bool:
            return counted.show_pool().waiting_for_share == 1

        await wait_until(has_waiter)
        with pytest.raises(TenantOverShareError):
            await counted.tenant_connection(acme).__aenter__()
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    pool = counted.show_pool()
    assert (pool.refused_by_share, pool.refused_by_pool) == (1, 0)
    assert pool.share_wait_seconds > 0
    assert (pool.waiting_for_share, pool.size - pool.idle) == (0, 0)


async def test_pool_that_is_too_small_is_told(settings: Settings, measures: Measures, acme: Tenant) -> None:
    """A block that gets no connection in time is counted, with the time for which it waited."""
    tight = replace(settings, acquire_timeout=0.05)
    async with await Database.open(tight, max_size=1, measures=measures) as database, database.connection():
        with pytest.raises(PoolExhaustedError):
            await database.tenant_connection(acme).__aenter__()
        pool = database.show_pool()

    assert (pool.refused_by_share, pool.refused_by_pool) == (0, 1)
    assert pool.connection_wait_seconds >= 0.05
    assert (pool.size, pool.idle, pool.max_size) == (1, 0, 1)


async def test_replaced_connection_is_counted_with_its_reason(
    counted: Database, measures: Measures, acme: Tenant, database: Database
) -> None:
    """A server process that was ended is a lost connection; a type codec that was set is an altered one."""
    async with counted.tenant_connection(acme) as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
    async with database.connection() as other:
        await other.fetchval("SELECT pg_terminate_backend($1, 60000)", pid)
    async with counted.tenant_connection(acme) as connection:
        await connection.fetchval("SELECT 1")
        await connection.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=str)

    closed = counted.show_pool().closed
    assert closed["altered"] == 1
    assert closed["lost"] >= 1


async def test_slow_block_is_told_without_its_parameters(
    settings: Settings, acme: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    """The line names the tenant, the longest statement and where the time went, and no value."""
    measures = Measures(slow_block=0.02)
    async with await Database.open(settings, measures=measures) as database:
        with caplog.at_level(logging.WARNING, "quart_tenants.slow"):
            async with database.tenant_connection(acme) as connection:
                await connection.fetch(f"SELECT pg_sleep(0.03), '{SECRET}-literal', $1::text", SECRET)
            # Nothing is that slow, whatever else the machine does.
            measures.slow_block = 3600
            async with database.tenant_connection(acme) as connection:
                await connection.fetch("SELECT 1")

    (record,) = [record for record in caplog.records if record.name == "quart_tenants.slow"]
    facts = vars(record)["facts"]
    assert facts["tenant"] == "acme"
    assert facts["longest_statement"] == "SELECT pg_sleep(…), …, $1::text"
    assert facts["seconds"] >= facts["server_seconds"] >= 0.03
    assert facts["share_seconds"] + facts["connection_seconds"] <= facts["seconds"]
    assert SECRET not in record.getMessage()
    assert measures.slow_blocks == 1


async def test_mistake_in_the_apps_own_figures_hides_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """A function that raises, names a figure wrongly or returns no number is logged, and the others are shown."""

    def fail() -> dict[str, float]:
        raise LookupError("no figures today")

    wrong: list[Figures] = [fail, lambda: {"<script>": 1}, lambda: {"mean": math.nan}]
    measures = Measures(figures=[*wrong, lambda: {"orders_total": 3}])

    figures = measures.collect_figures()

    assert figures == {"orders_total": 3.0}
    assert "no figures today" in caplog.text
    assert "is no name of a figure" in caplog.text
    assert "mean is nan" in caplog.text
