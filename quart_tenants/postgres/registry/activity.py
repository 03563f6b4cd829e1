"""Ask the server what its processes do now, and for which tenants."""

from dataclasses import dataclass

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.sql_parser import hide_literals

# A process that works for a tenant has locks on the tenant's tables. So nothing has to be told to the server in
# advance, which would cost each block something.
_LIST_ACTIVITY = """
SELECT DISTINCT ON (t.slug)
    t.slug,
    count(*) OVER one_tenant AS connections,
    count(*) FILTER (WHERE a.wait_event_type = 'Lock') OVER one_tenant AS waiting,
    greatest(extract(epoch FROM pg_catalog.clock_timestamp() - a.query_start), 0)::float8 AS seconds,
    coalesce(a.query, '') AS statement
FROM pg_catalog.pg_stat_activity AS a
CROSS JOIN LATERAL (
    SELECT DISTINCT n.nspname
    FROM pg_catalog.pg_locks AS l
    JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE l.pid = a.pid AND l.locktype = 'relation'
) AS used
JOIN quart_tenants.living_tenants AS t ON t.schema_name = used.nspname
WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid()
WINDOW one_tenant AS (PARTITION BY t.slug)
ORDER BY t.slug, a.query_start
"""


@dataclass(frozen=True, slots=True)
class TenantActivity:
    """What the server does for a tenant now.

    Attributes:
        slug: Of the tenant.
        connections: Server processes in a transaction that has used the tenant's tables.
        waiting: How many of them wait for a lock.
        seconds: How long the longest of their statements runs, or has been the last one.
        statement: That one, without its literals. Empty where this login may not see it.
    """

    slug: str
    connections: int
    waiting: int
    seconds: float
    statement: str


async def list_activity(database: Database) -> list[TenantActivity]:
    """Return what the server does for which tenants now. Raises the errors of `Database.connection`."""
    async with database.connection() as connection:
        rows = await connection.fetch(_LIST_ACTIVITY)
    return [TenantActivity(**dict(row) | {"statement": hide_literals(row["statement"])}) for row in rows]
