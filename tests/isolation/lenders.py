"""Ways to lend a tenant's connection: ours, and the naive ones that the promises must catch."""

import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias, cast

import asyncpg

from quart_tenants.tenant import Tenant

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

Lender: TypeAlias = Callable[[Tenant], AbstractAsyncContextManager["Connection"]]
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"


async def _reset_nothing(connection: object) -> None:
    """What people pass to save a round trip."""


async def open_naive_pool(url: str, size: int, *, reset: bool = False) -> Pool:
    """Return a pool that resets nothing between its users, or with *reset* what asyncpg resets."""
    pool = asyncpg.create_pool(
        url, min_size=1, max_size=size, reset=None if reset else _reset_nothing, statement_cache_size=0
    )
    await pool
    return pool


def set_path_and_forget(pool: Pool) -> Lender:
    """Return the lender of the seed: a session-level SET, and the connection goes back as it is."""

    @asynccontextmanager
    async def lend(tenant: Tenant) -> AsyncIterator["Connection"]:
        async with pool.acquire() as connection:
            await connection.execute(f"SET search_path TO {tenant.schema.quoted}")
            yield cast("Connection", connection)

    return lend


def remember_path(pool: Pool) -> Lender:
    """Return a lender that sets the path only when it believes that the connection is at another tenant."""
    believed: weakref.WeakKeyDictionary[object, Tenant] = weakref.WeakKeyDictionary()

    @asynccontextmanager
    async def lend(tenant: Tenant) -> AsyncIterator["Connection"]:
        async with pool.acquire() as connection, connection.transaction():
            inner = connection._con  # type: ignore[attr-defined]
            if believed.get(inner) != tenant:
                await connection.execute(f"SET search_path TO {tenant.schema.quoted}")
                # A rollback takes the path back, and this is not told.
                believed[inner] = tenant
            yield cast("Connection", connection)

    return lend


def reset_like_the_driver(pool: Pool) -> Lender:
    """Return a lender that sets the path as we do, on a pool with asyncpg's own reset: no role, no temporary table."""

    @asynccontextmanager
    async def lend(tenant: Tenant) -> AsyncIterator["Connection"]:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(f"SET LOCAL search_path TO {tenant.schema.quoted}")
            yield cast("Connection", connection)

    return lend


def give_back_after_success(pool: Pool) -> Lender:
    """Return a lender that gives its connection back where nothing goes wrong, and only there."""

    @asynccontextmanager
    async def lend(tenant: Tenant) -> AsyncIterator["Connection"]:
        connection = await pool.acquire(timeout=0.01)
        await connection.execute(f"SET search_path TO {tenant.schema.quoted}")
        yield cast("Connection", connection)
        await connection.execute("DISCARD TEMP; RESET ALL")
        await pool.release(connection)

    return lend
