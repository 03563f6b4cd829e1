"""Which connection a tenant gets, and when it is looked after."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from quart_tenants.errors import DatabaseUnavailableError, RolesNotReadyError, UnknownTenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.fast.fast_connection import FastConnection
from quart_tenants.postgres.driver.opening import BlockConnection, Opener
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import RoleName, Tenant, parse_slug
from tests.support.patience import DEADLINE
from tests.support.timings import WARM
from tests.support.web_lender import WebLender

pytestmark = pytest.mark.slow

BACKEND = "SELECT pg_backend_pid()"
READ = "SELECT description FROM company_data"
ADD = "INSERT INTO company_data (description) VALUES ($1)"


@pytest.fixture
def timings() -> Timings:
    """Let connections stay warm however slow the machine is, and let nobody tidy meanwhile."""
    return WARM


async def find_backend(database: Database, tenant: Tenant) -> int:
    """Return which server process serves *tenant*."""
    async with database.tenant_connection(tenant) as connection:
        return int(await connection.fetchval(BACKEND))


async def find_state(database: Database, pid: int) -> str | None:
    """Return what PostgreSQL says about the server process *pid*, or None if it has ended."""
    async with database.connection() as connection:
        state: str | None = await connection.fetchval("SELECT state FROM pg_stat_activity WHERE pid = $1", pid)
        return state


async def wait_until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again."""
    async with asyncio.timeout(DEADLINE):
        while not await is_so():
            await asyncio.sleep(0.02)


async def test_tenant_keeps_its_connection(database: Database, acme: Tenant, globex: Tenant) -> None:
    """While nobody else is at it a tenant finds its own connection again, and another tenant another one."""
    backends = [(await find_backend(database, acme), await find_backend(database, globex)) for _ in range(5)]

    assert len(set(backends)) == 1
    assert len(set(backends[0])) == 2


@pytest.mark.usefixtures("fast_driver_only")
async def test_busy_tenant_keeps_its_few_connections(settings: Settings, acme: Tenant) -> None:
    """Blocks at the same time use the same few connections each time."""
    async with await WebLender.open(replace(settings, tenant_pool_share=5), timings=WARM) as database:
        seen = []
        for _ in range(4):
            async with AsyncExitStack() as stack:
                lent = [await stack.enter_async_context(database.tenant_connection(acme)) for _ in range(3)]
                seen.append(tuple([await connection.fetchval(BACKEND) for connection in lent]))

    assert len(set(seen)) == 1
    assert len(set(seen[0])) == 3


async def test_waiting_blocks_are_served_in_order(one_connection_database: Database, acme: Tenant) -> None:
    """First come, first served; one that is cancelled meanwhile takes nobody's turn."""
    served = []

    async def serve(number: int) -> None:
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.fetch(READ)
            served.append(number)

    async with one_connection_database.tenant_connection(acme):
        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(serve(number)))
            await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[4].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert served == [0, 2, 3, 5]
    assert await find_backend(one_connection_database, acme)


async def test_close_waits_for_blocks(settings: Settings, acme: Tenant) -> None:
    """Closing the pool lets blocks end, saved, and closes every connection."""
    database = await WebLender.open(settings, timings=WARM)
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def add() -> int:
        async with database.tenant_connection(acme) as connection:
            entered.set()
            await go_on.wait()
            await connection.execute(ADD, "late")
            return connection.get_server_pid()

    task = asyncio.create_task(add())
    await entered.wait()
    closing = asyncio.create_task(database.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    go_on.set()
    pid = await task
    await closing
    await database.close()

    async with await WebLender.open(settings, max_size=1, timings=WARM) as other:
        async with other.tenant_connection(acme) as connection:
            assert [row["description"] for row in await connection.fetch(READ)] == ["late"]
        await wait_until(lambda: _is_gone(other, pid))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each connection that was to be opened."""
    opened: list[None] = []
    open_one = Opener.open

    async def note(*args: Any, **options: Any) -> BlockConnection:
        opened.append(None)
        return await open_one(*args, **options)

    monkeypatch.setattr(Opener, "open", note)
    return opened


async def test_command_opens_no_connection_in_the_place_of_one_that_ends(
    settings: Settings, acme: Tenant, opened: list[None]
) -> None:
    """A command ends after its last connection. From 0.32 on asyncpg would open another one, only to close it."""
    async with await WebLender.open(replace(settings, pool_min_size=1), max_size=1) as database:
        opened.clear()
        with pytest.raises(DatabaseUnavailableError):
            async with database.tenant_connection(acme) as connection:
                await connection.execute("SELECT 1")
                connection.terminate()
        # asyncpg begins in the same step, or not at all.
        for _ in range(20):
            await asyncio.sleep(0)

        assert opened == []


async def test_close_opens_no_connection(settings: Settings, acme: Tenant, opened: list[None]) -> None:
    """While a block keeps the pool from being closed, nothing is opened in place of what others have given back."""
    database = await WebLender.open(replace(settings, pool_min_size=3, pool_max_size=3), timings=WARM)
    together = asyncio.Barrier(3)
    go_on = asyncio.Event()

    async def use(number: int) -> None:
        async with database.tenant_connection(replace(acme, id=number)) as connection:
            await connection.fetch(READ)
            await together.wait()
            if number == 2:
                await go_on.wait()

    tasks = [asyncio.create_task(use(number)) for number in range(3)]
    await asyncio.gather(*tasks[:2])
    closing = asyncio.create_task(database.close())
    # What is idle was taken, and the last one is waited for: others would be opened now.
    await wait_until(lambda: _is_waiting(database))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done()
    go_on.set()
    await asyncio.gather(closing, *tasks)

    assert len(opened) == 3


async def _is_waiting(database: Database) -> bool:
    return len(database._pool._slots._waiters) == 1


async def _is_gone(database: Database, pid: int) -> bool:
    return await find_state(database, pid) is None


@pytest.mark.usefixtures("fast_driver_only")
async def test_connection_that_has_served_many_tenants_is_replaced(settings: Settings, acme: Tenant) -> None:
    """A server process remembers the tables of every tenant until it ends; who may not weigh it counts them."""
    tenants = [replace(acme, id=number) for number in range(1, 10)]

    async def cannot_ask(_: FastConnection) -> None:
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FastConnection, "find_memory", cannot_ask, raising=False)
        async with await WebLender.open(
            replace(settings, connection_max_tenants=3), max_size=1, timings=WARM
        ) as database:
            backends = [await find_backend(database, tenant) for tenant in tenants]
            # It has served these before.
            again = [await find_backend(database, tenants[-1]) for _ in range(9)]

    assert len(set(backends)) >= 3
    assert max(Counter(backends).values()) <= 4
    assert len(set(again)) <= 2


async def test_idle_connection_is_reset_and_heard(settings: Settings, database: Database, acme: Tenant) -> None:
    """A while after its last block a connection is idle for PostgreSQL, too, which a read leaves as active."""
    async with await WebLender.open(settings, max_size=1, timings=Timings(known=60, fresh=60, tidy_every=0.1)) as own:
        for _ in range(2):
            pid = await find_backend(own, acme)

        async def is_idle() -> bool:
            return await find_state(database, pid) == "idle"

        await wait_until(is_idle)
        assert await find_backend(own, acme) == pid


async def test_connection_that_nobody_uses_is_given_up(settings: Settings, database: Database, acme: Tenant) -> None:
    """After long idleness asyncpg's pool has it back, and lends it again when it is wanted."""
    often = Timings(known=60, fresh=60, tidy_every=0.05, give_up_after=0.2)
    async with await WebLender.open(settings, max_size=1, timings=often) as own:
        await find_backend(own, acme)

        async def is_given_up() -> bool:
            return len(own._pool._slots) == 0

        await wait_until(is_given_up)
        for _ in range(3):
            assert await find_backend(own, acme)


async def test_tidying_and_blocks_share_connections(settings: Settings, acme: Tenant, globex: Tenant) -> None:
    """What is tidied all the time loses no connection and shows nobody a foreign row."""
    often = Timings(known=60, fresh=60, tidy_every=0.001, give_up_after=0.003)
    async with await WebLender.open(settings, max_size=2, timings=often) as own:
        for tenant in (acme, globex):
            async with own.tenant_connection(tenant) as connection:
                await connection.execute(ADD, tenant.slug)

        async def use(tenant: Tenant) -> set[str]:
            seen = set()
            for number in range(150):
                async with own.tenant_connection(tenant) as connection:
                    seen |= {row["description"] for row in await connection.fetch(READ)}
                await asyncio.sleep(0.001 * (number % 7))
            return seen

        assert [*await asyncio.gather(use(acme), use(globex), use(acme))] == [{"acme"}, {"globex"}, {"acme"}]


# Roles that go ahead of a first statement.


@pytest.mark.usefixtures("fast_driver_only")
@pytest.mark.parametrize("first", ["fetch", "execute", "empty"])
async def test_missing_role_is_said_by_a_warm_block(roles_database: Database, first: str) -> None:
    """A tenant's role that cannot be entered is RolesNotReadyError also where it went ahead of a read."""
    acme = await get_tenant(roles_database, parse_slug("acme"))
    for _ in range(2):
        async with roles_database.tenant_connection(acme) as connection:
            await connection.fetch(READ)
    without = replace(acme, role=RoleName("quart_tenants_nobody"))

    with pytest.raises(RolesNotReadyError) if first != "empty" else contextlib.nullcontext():
        async with roles_database.tenant_connection(without) as connection:
            if first != "empty":
                await getattr(connection, first)(READ)

    async with roles_database.tenant_connection(acme) as connection:
        assert await connection.fetch(READ) == []


async def test_missing_role_of_a_dropped_tenant_is_unknown(roles_database: Database) -> None:
    """Where the schema is gone with the role the tenant is unknown, and no setup is blamed."""
    acme = await get_tenant(roles_database, parse_slug("acme"))
    for _ in range(2):
        async with roles_database.tenant_connection(acme) as connection:
            await connection.fetch(READ)
    async with roles_database.connection() as connection:
        await connection.execute("ALTER SCHEMA acme RENAME TO elsewhere")

    with pytest.raises(UnknownTenantError):
        async with roles_database.tenant_connection(replace(acme, role=RoleName("quart_tenants_nobody"))) as connection:
            await connection.fetch(READ)
