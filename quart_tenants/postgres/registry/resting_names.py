"""Let a name rest before another tenant may take it: a slug, the name of a schema, or a domain.

A worker may remember for `TENANTS_REGISTRY_MAX_AGE` which tenant had a name, and a block enters a schema by its name.
Without a rest, a visitor of the old tenant could read the rows of the new one. The same holds for a transaction that
began in that time, as long as it is open. Before a transaction begins later than that, its block asks the server.
"""

from collections.abc import Iterable, Mapping, Sequence

from quart_tenants.connection import Connection
from quart_tenants.errors import RecentlyDroppedError
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug

# From the moment that is noted to the commit, from which on workers learn of it; and for so long as a block trusts what
# the registry said: see `Timings.known`.
_GRACE = 1.0  # seconds

# $4 days. Not now(), which is the start of the transaction: it may have waited long for a lock.
_LET_REST = """
INSERT INTO quart_tenants.resting_names (tenant_id, slug, schema_name, free_at)
SELECT $1, x.name, $3, clock_timestamp() + make_interval(secs => $4 * 86400) FROM unnest($2::text[]) AS x (name)
"""
_WAKE = "DELETE FROM quart_tenants.resting_names WHERE tenant_id = $1 AND slug = $2"
_FREE = """
UPDATE quart_tenants.resting_names SET free_at = clock_timestamp() WHERE tenant_id = $1 AND free_at > clock_timestamp()
"""
# Lists which names ($1) and schemas ($2) rest for other tenants than $4. Either of a pair may be null. $3 the length of
# a rest in seconds. A slug or a domain is only looked up in the registry, but an open transaction may use the name of a
# schema. Only a member of pg_read_all_stats sees when transactions of other roles began.
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
# A day is longer than a worker may remember a name: TENANTS_REGISTRY_MAX_AGE is at most an hour.
_PRUNE = """
DELETE FROM quart_tenants.resting_names
WHERE free_at < interval '-1 day' + (
    SELECT least(now(), min(xact_start)) FROM pg_catalog.pg_stat_activity WHERE datname = current_database()
)
"""


async def let_names_rest(
    connection: Connection,
    tenant_id: int,
    names: Iterable[str],
    *,
    schema: SchemaName | None = None,
    days: float = 0.0,
) -> None:
    """Let slugs or domains of a tenant rest. Call it last before `announce_changes`, after all that may wait.

    Args:
        connection: Inside a block.
        tenant_id: The tenant that had the names.
        names: Slugs or domains.
        schema: A schema whose name rests, too.
        days: How many days the tenant still keeps the names before the rest begins.
    """
    await connection.execute(_LET_REST, tenant_id, list(names), schema and schema.name, days)


async def wake_name(connection: Connection, tenant_id: int, name: str) -> None:
    """End the rest of a slug, because its tenant takes it again."""
    await connection.execute(_WAKE, tenant_id, name)


async def free_names(connection: Connection, tenant_id: int) -> None:
    """Let the rest of a tenant's names begin now, if it has not begun. Call it last, like `let_names_rest`."""
    await connection.execute(_FREE, tenant_id)


async def forget_rested_names(connection: Connection) -> None:
    """Delete names whose rest ended long ago."""
    await connection.execute(_PRUNE)


async def find_resting(
    connection: Connection, schemas: Mapping[Slug, SchemaName | None], settings: Settings
) -> dict[Slug, RecentlyDroppedError]:
    """Return the error of each slug in *schemas* that rests, or whose schema rests."""
    names = {name: None if schema is None else schema.name for name, schema in schemas.items()}
    found = await _list_rests(connection, list(names), list(names.values()), settings)
    return {name: found[name, schema] for name, schema in names.items() if (name, schema) in found}


async def check_rested(
    connection: Connection,
    tenant_id: int,
    *,
    settings: Settings,
    domain: str | None = None,
    schema: SchemaName | None = None,
) -> None:
    """Make sure that a domain, or the name of a schema, does not rest for another tenant.

    Call it after the name was taken, because the transaction that gave it up has committed then.

    Raises:
        RecentlyDroppedError: The name rests. Only its last tenant may have it back at once.
    """
    schemas = [None if schema is None else schema.name]
    for error in (await _list_rests(connection, [domain], schemas, settings, tenant_id)).values():
        raise error


async def _list_rests(
    connection: Connection,
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
