"""Many blocks of many tenants on few connections, some failing, some cancelled, with every row checked."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from quart_tenants.errors import TenantError
from quart_tenants.tenant import Tenant

if TYPE_CHECKING:
    from tests.isolation.lenders import Lender

_STAMPS = "SELECT owner FROM stamps"
_ADD_STAMP = "INSERT INTO stamps (owner) VALUES ($1)"


@dataclass
class Findings:
    """What a soak saw.

    Attributes:
        blocks: Blocks begun.
        finished: Blocks that ended by themselves.
        cancelled: Blocks that were cut off.
        foreign_rows: Rows read that another tenant had written.
        failed: Blocks that ended by an error of their own, as some are to.
        errors: Blocks that ended by any other error.
    """

    blocks: int = 0
    finished: int = 0
    cancelled: int = 0
    foreign_rows: int = 0
    failed: int = 0
    errors: int = 0


class _MeantError(Exception):
    """What a handler of the app might raise."""


async def make_stamps(url: str, tenants: Sequence[Tenant]) -> None:
    """Give each tenant a table whose one row names it."""
    connection = await asyncpg.connect(url)
    try:
        for tenant in tenants:
            schema = tenant.schema.quoted
            await connection.execute(
                f"CREATE SCHEMA IF NOT EXISTS {schema};"
                f"CREATE TABLE {schema}.stamps (owner text NOT NULL);"
                f"INSERT INTO {schema}.stamps VALUES ('{tenant.slug}')"
            )
    finally:
        await connection.close()


async def soak(lend: "Lender", tenants: Sequence[Tenant], *, blocks: int, seed: int, concurrency: int = 16) -> Findings:
    """Run *blocks* blocks, of which one in twenty fails and one in ten is cancelled at a random moment."""
    chance = random.Random(seed)  # noqa: S311
    # A few large customers and many small ones (Zipf's law).
    weights = [1 / rank for rank in range(1, len(tenants) + 1)]
    findings = Findings()

    async def run_block(tenant: Tenant) -> None:
        async with lend(tenant) as connection:
            rows = await connection.fetch(_STAMPS)
            findings.foreign_rows += sum(row["owner"] != tenant.slug for row in rows)
            if chance.random() < 0.05:
                raise _MeantError
            if chance.random() < 0.1:
                await connection.execute(_ADD_STAMP, tenant.slug)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        while findings.blocks < blocks:
            findings.blocks += 1
            task = asyncio.create_task(run_block(*chance.choices(tenants, weights)))
            if chance.random() < 0.16:
                # A block takes a few milliseconds on a busy pool: from before it began to after it ended,
                # which about a third of these do before they are cut off.
                loop.call_later(chance.random() * 0.006, task.cancel)
            try:
                await task
                findings.finished += 1
            except asyncio.CancelledError:
                findings.cancelled += 1
            except _MeantError:
                findings.failed += 1
            except (asyncpg.PostgresError, asyncpg.InterfaceError, TenantError):
                findings.errors += 1

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return findings
