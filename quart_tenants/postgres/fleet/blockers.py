"""Find out for whom the migration of a tenant waits, while it waits."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable

from quart_tenants.errors import TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS
from quart_tenants.postgres.registry.tenant_locks import LOCK_KEY

# $1 the tenant's number. Whoever migrates the tenant holds its lock: a pooler may have made up the number of the server
# process that the driver knows. A prepared transaction has no process, and blocks under number 0.
_LIST_BLOCKERS = """
SELECT DISTINCT
    b.pid, a.state, extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start)::float8 AS seconds, a.query
FROM (SELECT {key} AS number) AS key
JOIN pg_catalog.pg_locks AS l ON l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.classid::bigint = (key.number >> 32) & 4294967295 AND l.objid::bigint = key.number & 4294967295
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
CROSS JOIN unnest(pg_catalog.pg_blocking_pids(l.pid)) AS b (pid)
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = b.pid
ORDER BY b.pid
"""
_TEXT = re.compile(r"'(?:[^']|'')*'?")
_LONGEST_QUERY = 60  # characters
_PAUSE = 1.0  # seconds

Blocked = Callable[[str], object]
"""Called with those for whom a migration waits, once for each group of them."""


class Wait:
    """For whom the migration waited when somebody last looked."""

    blockers: str | None = None


@contextlib.asynccontextmanager
async def watching_blockers(
    database: Database, tenant_id: int, *, first_look: float, on_blocked: Blocked | None = None
) -> AsyncIterator[Wait]:
    """Look now and then, while the block runs, for whom the migration of a tenant waits.

    It opens a connection of its own, if the block lasts until the first look. If that cannot be had, nobody is named.

    Args:
        database: Where the tenant is.
        tenant_id: The tenant's number.
        first_look: Seconds from the beginning.
        on_blocked: Told when the migration begins to wait, or waits for somebody else.
    """
    wait = Wait()
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


async def _watch(database: Database, tenant_id: int, wait: Wait, first_look: float, on_blocked: Blocked | None) -> None:
    await asyncio.sleep(first_look)
    told: set[int] = set()
    question = _LIST_BLOCKERS.format(key=LOCK_KEY.format("$1"))
    # Who blocks is only to be told. Whatever hinders that must not stop the migration.
    with contextlib.suppress(TenantError, *DRIVER_ERRORS):
        async with database.plain_session() as connection:
            while True:
                rows = await connection.fetch(question, str(tenant_id))
                if rows:
                    wait.blockers = ", ".join(
                        describe_blocker(row["pid"], row["state"], row["seconds"], row["query"]) for row in rows
                    )
                    if on_blocked is not None and {row["pid"] for row in rows} != told:
                        on_blocked(wait.blockers)
                    told = {row["pid"] for row in rows}
                await asyncio.sleep(_PAUSE)


def describe_blocker(pid: int, state: str | None, seconds: float | None, query: str | None) -> str:
    """Return who blocks in a few words: the beginning of the statement, without the texts in it. Pure."""
    if not pid:
        return "a prepared transaction (see pg_prepared_xacts)"
    shown = " ".join(_TEXT.sub("'…'", query or "").split())
    if len(shown) > _LONGEST_QUERY:
        shown = f"{shown[:_LONGEST_QUERY]}…"
    open_for = "" if seconds is None else f", open for {max(seconds, 0):.0f} s"
    return f"process {pid} ({state or 'in an unknown state'}{open_for}): {shown}"
