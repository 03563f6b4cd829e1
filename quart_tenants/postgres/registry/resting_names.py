"""Let a name rest before the next tenant takes it: a slug, a schema's name or a domain.

A worker may remember for up to `TENANTS_REGISTRY_MAX_AGE` whose a name was, and it enters a schema by its name:
a visitor of the last tenant would read the next one's rows. So would a transaction that began in that time, for
as long as it is open.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from quart_tenants.errors import RecentlyDroppedError
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

# From the moment that is written down to the commit, which is when the others may hear of it.
_GRACE = 1.0  # seconds

# $4 days. Not now(): the transaction may have begun long ago, and waited for a lock since.
_LET_REST = """
INSERT INTO quart_tenants.resting_names (tenant_id, slug, schema_name, free_at)
SELECT $1, x.name, $3, clock_timestamp() + make_interval(secs => $4 * 86400) FROM unnest($2::text[]) AS x (name)
"""
_WAKE = "DELETE FROM quart_tenants.resting_names WHERE tenant_id = $1 AND slug = $2"
_FREE = """
UPDATE quart_tenants.resting_names SET free_at = clock_timestamp() WHERE tenant_id = $1 AND free_at > clock_timestamp()
"""
# Names ($1) and schemas ($2), of which either may be null, that rest for others than the tenant $4; $3 for how many
# seconds. A slug or a domain leads there by the registry alone, a schema's name by any transaction that is open.
# Those of other roles show their start only to a member of pg_read_all_stats.
_LIST_RESTS = """
SELECT x.name, x.schema_name, (extract(epoch FROM max(r.free_at) - now()) + $3)::float8 AS wait
FROM unnest($1::text[], $2::text[]) AS x (name, schema_name)
CROSS JOIN (
    SELECT least(now(), min(xact_start)) AS began_at FROM pg_catalog.pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
) AS oldest
JOIN quart_tenants.resting_names AS r
    ON r.tenant_id IS DISTINCT FROM $4::bigint
    AND (
        r.slug = x.name AND r.free_at > now() - make_interval(secs => $3)
        OR r.schema_name = x.schema_name AND r.free_at > oldest.began_at - make_interval(secs => $3)
    )
GROUP BY x.name, x.schema_name
"""
# Longer than any worker may remember them: TENANTS_REGISTRY_MAX_AGE is an hour at most.
_PRUNE = """
DELETE FROM quart_tenants.resting_names
WHERE free_at < interval '-1 day' + (
    SELECT least(now(), min(xact_start)) FROM pg_catalog.pg_stat_activity WHERE datname = current_database()
)
"""


async def let_names_rest(
    connection: "Connection",
    tenant_id: int,
    names: Iterable[str],
    *,
    schema: SchemaName | None = None,
    days: float = 0.0,
) -> None:
    """Let slugs or domains of a tenant rest. The last statement before `announce_changes`: none may wait after it.

    Args:
        connection: Inside a block.
        tenant_id: Whose they were.
        names: Of a dropped tenant its slug.
        schema: Rests with each of them.
        days: How long the tenant keeps them yet: the rest begins then.
    """
    await connection.execute(_LET_REST, tenant_id, list(names), schema and schema.name, days)


async def wake_name(connection: "Connection", tenant_id: int, name: str) -> None:
    """Let a slug be its tenant's again."""
    await connection.execute(_WAKE, tenant_id, name)


async def free_names(connection: "Connection", tenant_id: int) -> None:
    """Let the rest of a tenant's names begin now at the latest. As late in the transaction as `let_names_rest`."""
    await connection.execute(_FREE, tenant_id)


async def forget_rested_names(connection: "Connection") -> None:
    """Delete what has rested for long."""
    await connection.execute(_PRUNE)


async def find_resting(
    connection: "Connection", schemas: Mapping[Slug, SchemaName | None], settings: Settings
) -> dict[Slug, RecentlyDroppedError]:
    """Return why those of *schemas* cannot be a new tenant's that rest, by slug or by schema."""
    names = {name: None if schema is None else schema.name for name, schema in schemas.items()}
    found = await _list_rests(connection, list(names), list(names.values()), settings)
    return {name: found[name, schema] for name, schema in names.items() if (name, schema) in found}


async def check_rested(
    connection: "Connection",
    tenant_id: int,
    *,
    settings: Settings,
    domain: str | None = None,
    schema: SchemaName | None = None,
) -> None:
    """Make sure that a domain, or a schema's name, is no other tenant's any more for anybody.

    To be asked when the name is taken already: who had it has committed then.

    Raises:
        RecentlyDroppedError: It rests. Its last tenant may have it back at once.
    """
    schemas = [None if schema is None else schema.name]
    for error in (await _list_rests(connection, [domain], schemas, settings, tenant_id)).values():
        raise error


async def _list_rests(
    connection: "Connection",
    names: Sequence[str | None],
    schemas: Sequence[str | None],
    settings: Settings,
    tenant_id: int | None = None,
) -> dict[tuple[str | None, str | None], RecentlyDroppedError]:
    rows = await connection.fetch(_LIST_RESTS, names, schemas, settings.registry_max_age + _GRACE, tenant_id)
    return {
        (row["name"], row["schema_name"]): RecentlyDroppedError(row["name"] or row["schema_name"], row["wait"])
        for row in rows
    }
