"""Tell where many logins fail."""

from dataclasses import dataclass
from datetime import datetime

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.tenant import Slug

# $1 how many. Number 0 is the apex; the rows of a tenant that is deleted have none any more.
_LIST = """
SELECT
    t.slug,
    count(*) AS counted,
    count(*) FILTER (WHERE f.wait_until > now()) AS held_up,
    max(f.failures) AS most,
    max(f.failed_at) AS last_at
FROM quart_tenants.failed_logins AS f
LEFT JOIN quart_tenants.tenants AS t ON t.id = f.tenant_id
WHERE f.failures > 0 AND (t.id IS NOT NULL OR f.tenant_id = 0)
GROUP BY f.tenant_id, t.slug
ORDER BY held_up DESC, most DESC, f.tenant_id LIMIT $1
"""


@dataclass(frozen=True, slots=True)
class FailedLogins:
    """The failed logins of one tenant, which are kept as digests: nobody can read which names were typed.

    Attributes:
        slug: The tenant; None for the apex.
        counted: How many accounts and addresses have failed lately.
        held_up: How many of them must wait now before the next try.
        most: The failures of the one that has most.
        last_at: The last failure.
    """

    slug: Slug | None
    counted: int
    held_up: int
    most: int
    last_at: datetime


async def list_failed_logins(database: Database, *, limit: int = 100) -> list[FailedLogins]:
    """Return the *limit* tenants at which most logins are held up now, or failed lately."""
    async with database.connection() as connection:
        rows = await connection.fetch(_LIST, limit)
    return [FailedLogins(**dict(row)) for row in rows]
