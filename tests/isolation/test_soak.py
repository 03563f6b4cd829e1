"""Promise: however many tenants share a connection and however their requests end, nothing crosses over or is lost."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import asyncpg
import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Tenant, parse_slug
from tests.isolation.lenders import (
    Lender,
    Pool,
    give_back_after_success,
    open_naive_pool,
    remember_path,
    reset_like_the_driver,
    set_path_and_forget,
)
from tests.isolation.soak import Findings, Mix, Soak, count_misplaced_stamps, make_stamps
from tests.support.pgbouncer import PgBouncer
from tests.support.web_lender import WebLender

pytestmark = pytest.mark.slow

# The short form of every run; `python -m benchmarks.soak` is the full one.
BLOCKS = 4000
TENANTS = 20
POOL_SIZE = 6


@pytest.fixture
async def tenants(direct_url: str) -> list[Tenant]:
    """Tenants whose only row names them."""
    slugs = [parse_slug(f"soak-{number}") for number in range(TENANTS)]
    tenants = [Tenant(number, slug, SchemaName(slug), slug) for number, slug in enumerate(slugs, start=1001)]
    await make_stamps(direct_url, tenants)
    return tenants


async def test_disturbed_blocks_leak_nothing_and_lose_no_connection(
    settings: Settings, tenants: list[Tenant], direct_url: str, pooler: PgBouncer | None
) -> None:
    """Cancelled, failing, killed, broken and refused blocks: no foreign row, no trace, no lost connection, no error."""
    # In the end all of them are used at the same time, and the pooler has two.
    size = POOL_SIZE if pooler is None else 2
    own = replace(settings, pool_max_size=size, acquire_timeout=0.1, tenant_pool_queue=2)
    mix = Mix(abort=0.01, kill_every=100, exhaust_every=500)
    # PgBouncer 1.18 may end itself where a server process is killed (its issue 801). Then the run says nothing of lost
    # connections, and is done again.
    for _ in range(10):
        async with await WebLender.open(own) as database:
            soak = Soak(database.tenant_connection, tenants, url=direct_url, size=size, seed=1, mix=mix)
            findings = await run_while_served(soak, pooler)
            shares = database._shares
        assert soak.findings.foreign_rows == 0
        if findings is not None:
            break
    assert findings is not None
    print(findings)  # noqa: T201  (shown by pytest -n 0 -s)

    assert findings.first is None
    assert findings.lost_slots == findings.foreign_rows == 0
    assert await count_misplaced_stamps(direct_url, tenants) == 0
    assert shares is not None
    assert len(shares) == 0
    # Each of the disturbances did happen.
    assert min(findings.cancelled, findings.failed, findings.probed) > BLOCKS / 50
    assert min(findings.lost, findings.refused, findings.killed, findings.aborted) > 0


async def run_while_served(soak: Soak, pooler: PgBouncer | None) -> Findings | None:
    """Return the findings of *soak*, or None if *pooler* has ended by itself meanwhile. It is started again then."""
    running = asyncio.create_task(soak.run(BLOCKS))
    while not running.done() and not (pooler is not None and pooler.has_ended):
        await asyncio.wait([running], timeout=0.2)
    if pooler is None or not pooler.has_ended:
        return running.result()
    running.cancel()
    await asyncio.wait([running])
    await pooler.revive()
    return None


@pytest.mark.parametrize(
    ("make_lender", "mix", "finding"),
    [
        (set_path_and_forget, Mix(), "not clean"),
        (remember_path, Mix(probe=0, careless=0), "of another tenant"),
        (reset_like_the_driver, Mix(), "not clean"),
        (give_back_after_success, Mix(probe=0, careless=0), "lost connection"),
    ],
)
async def test_naive_lender_is_caught_by_the_same_soak(
    database_url: str,
    direct_url: str,
    tenants: list[Tenant],
    make_lender: Callable[[Pool], Lender],
    mix: Mix,
    finding: str,
) -> None:
    """Negative control: what is lent in each of the usual ways fails in the same soak.

    Behind a pooler each fails by the first thing that it is about.
    """
    pool = await open_naive_pool(database_url, POOL_SIZE, reset=make_lender is reset_like_the_driver)
    try:
        soak = Soak(make_lender(pool), tenants, url=direct_url, size=POOL_SIZE, seed=1, mix=mix, naive=True)
        findings = await soak.run(BLOCKS // 4)
    finally:
        pool.terminate()

    print(findings)  # noqa: T201
    assert findings.first is not None
    if database_url == direct_url:
        assert finding in findings.first[0]


async def test_statement_outside_a_block_sees_no_table(database: Database, tenants: list[Tenant]) -> None:
    """Without a tenant there are no tables: the default path is empty."""
    with pytest.raises(asyncpg.UndefinedTableError):
        async with database.connection() as connection:
            await connection.fetch("SELECT owner FROM stamps")
