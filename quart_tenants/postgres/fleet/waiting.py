"""Look now and then for whom the migration of a tenant waits, while it waits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from quart_tenants.errors import TenantError
from quart_tenants.postgres.blocks.blockers import Watch, describe_blockers, find_blockers
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS
from quart_tenants.postgres.registry.tenant_locks import LOCK_KEY

# $1 the tenant's number. Whoever migrates the tenant holds its lock. The process number that the driver knows may be
# made up by a pooler, and a migration sends no question that it can do without.
_FIND_MIGRATING = """
SELECT l.pid FROM (SELECT {key} AS number) AS key
JOIN pg_catalog.pg_locks AS l ON l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.classid::bigint = (key.number >> 32) & 4294967295 AND l.objid::bigint = key.number & 4294967295
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
"""
_PAUSE = 1.0  # seconds


@contextlib.asynccontextmanager
async def watching_wait(
    database: Database, tenant_id: int, *, first_look: float, on_blocked: Callable[[str], object] | None = None
) -> AsyncIterator[Watch]:
    """Look now and then, while the block runs, for whom the migration of a tenant waits.

    It opens a connection of its own, if the block lasts until the first look: nearly all migrations are done by then.
    If that cannot be had, nobody is named.

    Args:
        database: Where the tenant is.
        tenant_id: The tenant's number.
        first_look: Seconds from the beginning.
        on_blocked: Told in a sentence when the migration begins to wait, or waits for somebody else.
    """
    wait = Watch()
    watch = asyncio.create_task(_watch(database, tenant_id, wait, first_look, on_blocked))
    try:
        yield wait
    finally:
        watch.cancel()
        # Not awaited itself, because its cancellation would look like one of ours.
        await asyncio.wait([watch])
    if not watch.cancelled():
        # What on_blocked has raised.
        watch.result()


async def _watch(
    database: Database, tenant_id: int, wait: Watch, first_look: float, on_blocked: Callable[[str], object] | None
) -> None:
    await asyncio.sleep(first_look)
    told: set[int] = set()
    question = _FIND_MIGRATING.format(key=LOCK_KEY.format("$1"))
    # Who is in the way is only to be told. Whatever hinders that must not stop the migration.
    with contextlib.suppress(TenantError, *DRIVER_ERRORS):
        async with database.plain_session() as connection:
            while True:
                pid = await connection.fetchval(question, str(tenant_id))
                blockers = [] if pid is None else await find_blockers(connection, pid)
                if blockers:
                    wait.seen = describe_blockers(blockers)
                    if on_blocked is not None and {blocker.pid for blocker in blockers} != told:
                        on_blocked(wait.seen)
                    told = {blocker.pid for blocker in blockers}
                await asyncio.sleep(_PAUSE)
