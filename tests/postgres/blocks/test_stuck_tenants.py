"""A tenant whose blocks time out, one after the other, takes little from the others until it gets an answer again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import pytest

from quart_tenants.errors import DatabaseTimeoutError, TenantError
from quart_tenants.measures.counts import Measures
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.shares import Shares
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant, parse_slug
from tests.postgres.blocks.test_shares import make_tenant
from tests.support.web_lender import WebLender

pytestmark = pytest.mark.slow

READ = "SELECT count(*) FROM company_data"
# Other tenants' reads take a while, so that a pool that is half full serves half as many.
SLOW_READ = "SELECT count(*), pg_catalog.pg_sleep(0.05) FROM company_data"


@pytest.fixture
async def locked(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection that locks a table of acme and of company1 until it ends its transaction."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("BEGIN; LOCK TABLE acme.company_data, company1.company_data")
    yield connection
    await connection.close()


def make_settings(settings: Settings, *, stuck_after: int) -> Settings:
    """Return settings with short times, for ten connections."""
    return replace(settings, pool_max_size=10, command_timeout=0.5, acquire_timeout=2.0, stuck_after=stuck_after)


async def read_for_ever(database: Database, tenant: Tenant, *, found: list[str], errors: list[TenantError]) -> None:
    """Read as *tenant* again and again, as one of its visitors does; note each answer and each error."""
    while True:
        try:
            async with database.tenant_connection(tenant) as connection:
                await connection.fetchrow(SLOW_READ)
        except TenantError as error:
            errors.append(error)
            # Visitors who get an error at once do not come back at once.
            await asyncio.sleep(0.05)
        else:
            found.append(tenant.slug)


async def count_answers(database: Database, stuck: list[Tenant], other: Tenant, seconds: float) -> tuple[int, int]:
    """Let visitors of all tenants read for so long; return the answers and the errors of *other*."""
    found: list[str] = []
    errors: list[TenantError] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for tenant in stuck:
                for _ in range(20):
                    group.create_task(read_for_ever(database, tenant, found=[], errors=[]))
            for _ in range(10):
                group.create_task(read_for_ever(database, other, found=found, errors=errors))
    return len(found), len(errors)


async def find_rates(settings: Settings, *, stuck_after: int) -> tuple[float, int, int]:
    """Return the share of its rate that globex keeps beside two locked tenants, its errors, and refused blocks."""
    timings, measures = Timings(known=60, fuse=0.2), Measures()
    own = make_settings(settings, stuck_after=stuck_after)
    async with await WebLender.open(own, timings=timings, measures=measures) as database:
        acme, company1, globex = [await get_tenant(database, parse_slug(s)) for s in ("acme", "company1", "globex")]
        # The time-outs by which it becomes known that they are stuck.
        await count_answers(database, [acme, company1], globex, 2.0)
        alone = beside = errors = 0
        # In turns, because the machine may be busier at one moment than at another.
        for _ in range(4):
            alone += (await count_answers(database, [], globex, 0.75))[0]
            answers, failed = await count_answers(database, [acme, company1], globex, 0.75)
            beside, errors = beside + answers, errors + failed
    return beside / alone, errors, measures.refused_as_stuck


async def test_others_keep_their_rate_beside_stuck_tenants(
    settings: Settings, locked: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Beside two tenants whose table is locked, another one keeps 80 % of its rate and sees no error."""
    assert not locked.is_closed()
    rate, errors, refused = await find_rates(settings, stuck_after=3)

    assert errors == 0
    assert rate >= 0.8
    assert refused > 0


async def test_without_the_rule_others_starve_beside_stuck_tenants(
    settings: Settings, locked: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Negative control: where nobody is ever stuck, two locked tenants hold all connections."""
    assert not locked.is_closed()
    rate, _, refused = await find_rates(settings, stuck_after=0)

    assert rate < 0.2
    assert refused == 0


async def test_stuck_tenant_is_served_again_after_one_answer(
    settings: Settings, locked: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Once the table is free, the first block that gets an answer ends it: no block is refused or cut off."""
    own = make_settings(settings, stuck_after=2)
    async with await WebLender.open(own, timings=Timings(known=60, fuse=0.1)) as database:
        acme = await get_tenant(database, parse_slug("acme"))
        for _ in range(2):
            with pytest.raises(DatabaseTimeoutError, match="took too long"):
                async with database.tenant_connection(acme) as connection:
                    await connection.fetchval(READ)
        assert database.show_pool().stuck_tenants == 1
        with pytest.raises(DatabaseTimeoutError, match="still gives tenant 'acme' no answer"):
            async with database.tenant_connection(acme) as connection:
                await connection.fetchval(READ)

        await locked.execute("COMMIT")
        async with database.tenant_connection(acme) as connection:
            assert await connection.fetchval(READ) == 0

        assert database.show_pool().stuck_tenants == 0
        async with database.tenant_connection(acme) as one, database.tenant_connection(acme) as other:
            assert await one.fetchval(READ) == await other.fetchval(READ) == 0
            # Longer than a stuck tenant's block may take.
            await one.execute("SELECT pg_catalog.pg_sleep(0.2)")


async def test_error_of_the_server_is_an_answer(settings: Settings, acme: Tenant) -> None:
    """A statement that PostgreSQL refuses shows that it answers, and one that the visitor gave up shows nothing."""
    own = make_settings(settings, stuck_after=1)
    async with await WebLender.open(own, timings=Timings(known=60, fuse=5.0)) as database:
        with pytest.raises(DatabaseTimeoutError):
            async with database.tenant_connection(acme) as connection:
                await connection.execute("SELECT pg_catalog.pg_sleep(5)")
        assert database.show_pool().stuck_tenants == 1
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with database.tenant_connection(acme) as connection:
                await connection.execute("SELECT 1 / 0")
        assert database.show_pool().stuck_tenants == 0

        asleep = asyncio.Event()

        async def sleep() -> None:
            async with database.tenant_connection(acme) as connection:
                asleep.set()
                await connection.execute("SELECT pg_catalog.pg_sleep(5)")

        task = asyncio.create_task(sleep())
        await asleep.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert database.show_pool().stuck_tenants == 0


@pytest.mark.parametrize("method", ["fetch", "execute"])
async def test_request_that_took_too_long_counts(settings: Settings, acme: Tenant, method: str) -> None:
    """A block that is cancelled while its statement has run for long is as one that timed out."""
    own = replace(make_settings(settings, stuck_after=1), command_timeout=60.0)
    async with await WebLender.open(own, timings=Timings(known=60, fuse=0.1)) as database:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5), database.tenant_connection(acme) as connection:
                await getattr(connection, method)("SELECT pg_catalog.pg_sleep(60)")

        assert database.show_pool().stuck_tenants == 1


async def test_stuck_tenants_have_few_blocks_and_nobody_waits() -> None:
    """All stuck tenants together have so many blocks, those that waited are refused, and no place is lost."""
    shares = Shares(2, 5, apart=1, stuck_after=2)
    stuck, also_stuck = make_tenant(1), make_tenant(2)
    deadline = asyncio.get_running_loop().time() + 60
    for tenant in (stuck, stuck, also_stuck, also_stuck):
        assert not await shares.take(tenant, deadline)
    first, second = [asyncio.create_task(shares.take(stuck, deadline)) for _ in range(2)]
    await asyncio.sleep(0)

    for tenant in (stuck, stuck, also_stuck, also_stuck):
        shares.give_back(tenant, timed_out=True)

    assert not await first
    with pytest.raises(DatabaseTimeoutError):
        await second
    shares.give_back(stuck, timed_out=True)
    assert shares.count_stuck() == 2
    assert await shares.take(stuck, deadline)
    with pytest.raises(DatabaseTimeoutError):
        await shares.take(also_stuck, deadline)
    shares.give_back(stuck, timed_out=False, apart=True)
    assert await shares.take(also_stuck, deadline)
    shares.give_back(also_stuck, timed_out=False, apart=True)
    assert len(shares) == 0


# A node of a cluster that hangs.


async def count_late(settings: Settings, *, nodes: dict[int, int]) -> tuple[int, int]:
    """Let tenants whose table is locked read, one block each; return how many took the whole time, and were stuck."""
    late = stuck = 0
    own = make_settings(settings, stuck_after=2)
    async with await WebLender.open(own, timings=Timings(known=60, fuse=0.1)) as database:
        acme, globex = [await get_tenant(database, parse_slug(slug)) for slug in ("acme", "globex")]
        database.nodes.update(nodes | {globex.id: 2})
        for number in range(10, 15):
            try:
                async with database.tenant_connection(replace(acme, id=number)) as connection:
                    await connection.fetchval(READ)
            except DatabaseTimeoutError as error:
                late += "took too long" in str(error)
                stuck += "still gives" in str(error)
            # What lies on another node is served as before.
            async with database.tenant_connection(globex) as connection:
                assert await connection.fetchval(READ) == 0
        await connection_of_no_tenant(database)
        if nodes:
            await serve_again(database, acme, settings)
    return late, stuck


async def connection_of_no_tenant(database: Database) -> None:
    """Use the database for what belongs to no tenant, and so to no node."""
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def serve_again(database: Database, acme: Tenant, settings: Settings) -> None:
    """Let one of the tenants get an answer, after which the others of its node are no longer stuck."""
    async with database.tenant_connection(replace(acme, id=10)) as connection:
        assert await connection.fetchval("SELECT 1") == 1
    async with database.tenant_connection(replace(acme, id=14)) as connection:
        # Longer than a stuck tenant's block may take.
        await connection.execute("SELECT pg_catalog.pg_sleep(0.2)")


async def test_node_that_hangs_is_found_out_for_all_its_tenants(
    settings: Settings, locked: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """After two time-outs of two tenants, no other tenant of their node takes a connection for the whole time."""
    assert not locked.is_closed()
    assert await count_late(settings, nodes=dict.fromkeys(range(10, 15), 1)) == (2, 3)


async def test_tenants_of_no_known_node_find_out_one_by_one(
    settings: Settings, locked: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """Negative control: where nobody knows the nodes, each of the tenants takes a connection for the whole time."""
    assert not locked.is_closed()
    assert await count_late(settings, nodes={}) == (5, 0)


async def test_locked_table_of_one_tenant_says_nothing_about_its_node() -> None:
    """Time-outs of one tenant alone leave the others of its node as they were; one answer ends what two have shown."""
    shares = Shares(2, 5, apart=1, stuck_after=2)
    one, other, third = make_tenant(1), make_tenant(2), make_tenant(3)
    shares.nodes.update({1: 7, 2: 7, 3: 7})
    deadline = asyncio.get_running_loop().time() + 60

    async def use(tenant: Tenant, *, timed_out: bool) -> bool:
        apart = await shares.take(tenant, deadline)
        shares.give_back(tenant, timed_out=timed_out, apart=apart)
        return apart

    assert [await use(one, timed_out=True) for _ in range(3)] == [False, False, True]
    assert not await use(other, timed_out=True)
    assert await use(third, timed_out=False)
    assert not await use(other, timed_out=False)
    assert await use(one, timed_out=False)
    assert len(shares) == 0


async def test_block_that_waits_is_refused_when_its_node_is_found_out() -> None:
    """Nobody waits for a share of a tenant whose node hangs."""
    shares = Shares(1, 5, apart=1, stuck_after=2)
    one, other = make_tenant(1), make_tenant(2)
    shares.nodes.update({1: 7, 2: 7})
    deadline = asyncio.get_running_loop().time() + 60
    for tenant in (one, other):
        assert not await shares.take(tenant, deadline)
    waiting = asyncio.create_task(shares.take(other, deadline))
    await asyncio.sleep(0)

    shares.give_back(one, timed_out=True)
    shares.give_back(other, timed_out=True)

    with pytest.raises(DatabaseTimeoutError):
        await waiting
