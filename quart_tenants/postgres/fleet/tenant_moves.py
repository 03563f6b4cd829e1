"""Move tenants between the nodes of a cluster of Citus, while they are served."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from quart_tenants.connection import Connection
from quart_tenants.errors import DatabaseRefusedError
from quart_tenants.long_lists import name_some
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.long_work import stay_open
from quart_tenants.postgres.citus.cluster import Node, has_citus, list_nodes, list_places, list_sizes
from quart_tenants.postgres.registry.registry_tables import announce_changes, check_registry, get_tenant, list_tenants
from quart_tenants.postgres.registry.tenant_locks import get_living_tenant, lock_until_commit
from quart_tenants.tenant import Slug, Tenant

# Rows of such a table cannot be told apart while they are copied and changed at the same time. $1 the schema.
_LIST_WITHOUT_IDENTITY = """
SELECT c.relname::text AS name
FROM pg_catalog.pg_class AS c
WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'p') AND CASE c.relreplident
    WHEN 'd' THEN NOT EXISTS (SELECT FROM pg_catalog.pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)
    ELSE c.relreplident = 'n'
END
ORDER BY c.relname
"""
_ANSWERS = "SELECT pg_catalog.citus_check_connection_to_node($1, $2)"
_MOVE = "SELECT pg_catalog.citus_schema_move($1::text::regnamespace, $2::text, $3::integer)"
# Without it the server notices that a command was killed only when the move is over.
_NOTICE_OUR_END = "SET client_connection_check_interval TO 1000"
_TAKE_YOUR_TIME = "SET statement_timeout TO 0"
_GET_PROGRESS = """
SELECT
    coalesce(pg_catalog.sum(target_shard_size), 0)::bigint AS done,
    coalesce(pg_catalog.sum(source_shard_size), 0)::bigint AS total
FROM pg_catalog.get_rebalance_progress() WHERE targetname = $1 AND targetport = $2
"""
_LOOK_EVERY = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """What lies on a node.

    Attributes:
        node: The node.
        tenants: Tenants outside the trash.
        size: In bytes, with those in the trash.
    """

    node: Node
    tenants: int
    size: int


async def list_loads(database: Database) -> tuple[list[NodeLoad], int]:
    """Return the nodes of the cluster with what lies on each, and how many tenants lie on none of them.

    Those have plain schemas, which are on the coordinator, or no table yet.

    Raises:
        DatabaseRefusedError: The database is no cluster, or a node does not answer.
        RegistryNotReadyError: There is no registry yet, or this is a worker.
    """
    tenants = await list_tenants(database)
    async with database.connection() as connection:
        nodes = await _list_nodes(connection)
        places = await list_places(connection)
        sizes = await list_sizes(connection)
    counts = Counter(places.get(tenant.schema.name) for tenant in tenants)
    loads = [NodeLoad(node, counts[node.number], sizes.get((node.host, node.port), 0)) for node in nodes]
    return loads, counts[None]


async def move_tenant(
    database: Database,
    slug: Slug,
    node_name: str,
    *,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
    look_every: float = _LOOK_EVERY,
) -> tuple[Tenant, bool]:
    """Move a tenant to another node, and return it, with whether it was not there already. It is served meanwhile.

    Nobody can migrate, rename or drop it meanwhile. A cancellation stops the move, and the tenant stays where it was.

    Args:
        database: Needs one connection, and opens two others.
        slug: The slug of the tenant.
        node_name: The node as `host:port`.
        on_progress: Called with the bytes that are copied, and with all of them.
        look_every: How many seconds are between two of these calls.

    Raises:
        DatabaseRefusedError: The database is no cluster, the node is unknown or away, the tenant's schema is not
            distributed, a table has no primary key, or Citus refuses it.
        UnknownTenantError: There is no such tenant.
        TenantBusyError: It is being moved, migrated or changed.
        RegistryNotReadyError: There is no registry yet, or this is a worker.
    """
    tenant = await get_tenant(database, slug)
    # The lock lies in a transaction of its own, because the move is a statement outside of any.
    async with database.plain_session() as guard, guard.transaction():
        await stay_open(guard)
        async with database.connection() as connection:
            node = await _find_target(connection, node_name)
            await lock_until_commit(guard, tenant.id, slug)
            tenant = await get_living_tenant(connection, tenant.id, slug)
            if await _check_movable(connection, tenant) == node.number:
                return tenant, False
        async with database.session(tenant.schema) as mover:
            await mover.execute(_NOTICE_OUR_END)
            await mover.execute(_TAKE_YOUR_TIME)
            moving = asyncio.create_task(mover.execute(_MOVE, tenant.schema.quoted, node.host, node.port))
            try:
                while not (await asyncio.wait([moving], timeout=look_every))[0]:
                    async with database.connection() as connection:
                        seen = await connection.fetchrow(_GET_PROGRESS, node.host, node.port)
                    if seen is not None:
                        on_progress(seen["done"], seen["total"])
            finally:
                moving.cancel()
            await moving
        async with database.connection() as connection:
            # Workers count what hangs with a node apart.
            await announce_changes(connection, tenant.id)
    return tenant, True


async def _list_nodes(connection: Connection) -> list[Node]:
    await check_registry(connection)
    if not await has_citus(connection):
        raise DatabaseRefusedError(
            "this database has no extension citus: all tenants lie on this one server, and none can move"
        )
    return await list_nodes(connection)


async def _find_target(connection: Connection, name: str) -> Node:
    nodes = await _list_nodes(connection)
    node = next((node for node in nodes if node.name == name), None)
    if node is None:
        raise DatabaseRefusedError(f"there is no node {name!r}; there are {name_some([node.name for node in nodes])}")
    if not node.takes_tenants:
        raise DatabaseRefusedError(f"node {name} takes no tenants: let citus_set_node_property allow it shards")
    if not node.active or not await connection.fetchval(_ANSWERS, node.host, node.port):
        raise DatabaseRefusedError(f"node {name} is away: nothing moves there before it answers")
    return node


async def _check_movable(connection: Connection, tenant: Tenant) -> int:
    """Return the number of the node on which *tenant* lies, if it can move."""
    place = (await list_places(connection)).get(tenant.schema.name)
    if place is None:
        raise DatabaseRefusedError(
            f"schema {tenant.schema} is not distributed, or has no table: "
            f"SELECT citus_schema_distribute('{tenant.schema.quoted}') distributes it"
        )
    tables = [row["name"] for row in await connection.fetch(_LIST_WITHOUT_IDENTITY, tenant.schema.quoted)]
    if tables:
        raise DatabaseRefusedError(
            f"tenant {tenant.slug!r} cannot move while it is served: no primary key has {name_some(tables)}; "
            "add one by a migration, or ALTER TABLE … REPLICA IDENTITY FULL"
        )
    return place
