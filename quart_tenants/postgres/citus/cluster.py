"""Ask whether the database is a cluster of Citus, which nodes it has, and on which of them each schema lies."""

from collections.abc import Sequence
from dataclasses import dataclass

from quart_tenants.connection import Connection
from quart_tenants.postgres.driver.connection_types import DriverConnection

HAS_CITUS = "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus')"
# The coordinator is the node of group 0.
_IS_WORKER = "SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_local_group WHERE groupid <> 0)"

# $1 the name of a schema. By the session's own setting, which a SET LOCAL before it must not hide.
LIST_DISTRIBUTION = """
SELECT pg_catalog.format('SELECT pg_catalog.citus_schema_distribute(%L)', pg_catalog.quote_ident($1::text)) AS statement
FROM pg_catalog.pg_extension
WHERE extname = 'citus' AND pg_catalog.current_setting('citus.enable_schema_based_sharding', true) = 'on'
"""
"""Lists the statement that spreads a plain schema with its rows, where new schemas are spread; none elsewhere."""

_LIST_NODES = """
SELECT
    groupid AS number, nodename::text AS host, nodeport AS port, isactive AS active,
    shouldhaveshards AS takes_tenants
FROM pg_catalog.pg_dist_node WHERE noderole = 'primary' ORDER BY groupid
"""
# The catalogue of the coordinator says where everything lies; no other node is asked. $1 the schemas, or null for all.
_LIST_PLACES = """
SELECT n.nspname::text AS schema_name, p.groupid AS number
FROM pg_catalog.pg_dist_schema AS d
JOIN pg_catalog.pg_namespace AS n ON n.oid = d.schemaid
JOIN pg_catalog.pg_dist_partition AS t ON t.colocationid = d.colocationid
JOIN pg_catalog.pg_dist_shard AS s ON s.logicalrelid = t.logicalrelid
JOIN pg_catalog.pg_dist_placement AS p ON p.shardid = s.shardid
WHERE $1::text[] IS NULL OR n.nspname = ANY ($1)
GROUP BY n.nspname, p.groupid
"""
_LIST_SIZES = """
SELECT nodename::text AS host, nodeport AS port, coalesce(pg_catalog.sum(shard_size), 0)::bigint AS bytes
FROM pg_catalog.citus_shards WHERE citus_table_type = 'schema' GROUP BY nodename, nodeport
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster.

    Attributes:
        number: Of its group; 0 is the coordinator.
        host: Its address, as the coordinator knows it.
        port: Its port.
        active: Whether the coordinator uses it.
        takes_tenants: Whether it may have schemas of tenants.
    """

    number: int
    host: str
    port: int
    active: bool
    takes_tenants: bool

    @property
    def name(self) -> str:
        """The address as operators write it."""
        return f"{self.host}:{self.port}"


async def has_citus(connection: Connection | DriverConnection) -> bool:
    """Return whether the database has the extension."""
    return bool(await connection.fetchval(HAS_CITUS))


async def is_worker(connection: Connection | DriverConnection) -> bool:
    """Return whether the connection leads to a worker, which knows no registry, and not to the coordinator."""
    return await has_citus(connection) and bool(await connection.fetchval(_IS_WORKER))


async def list_nodes(connection: Connection) -> list[Node]:
    """Return the nodes of the cluster, the coordinator first."""
    return [Node(**row) for row in await connection.fetch(_LIST_NODES)]


async def list_places(connection: Connection, schemas: Sequence[str] | None = None) -> dict[str, int]:
    """Return the number of the node on which each schema lies. A schema without tables, or a plain one, is left out.

    Args:
        connection: To the coordinator.
        schemas: Their names; None for all.
    """
    return {row["schema_name"]: row["number"] for row in await connection.fetch(_LIST_PLACES, schemas)}


async def list_sizes(connection: Connection) -> dict[tuple[str, int], int]:
    """Return how many bytes the tenants have on each node, by host and port. This asks every node."""
    return {(row["host"], row["port"]): row["bytes"] for row in await connection.fetch(_LIST_SIZES)}
