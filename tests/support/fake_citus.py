"""Let a plain PostgreSQL look like a coordinator of Citus: its catalogue and functions by name, with nothing behind.

It shows what we ask and what we call. Whether Citus does what we think it does is not shown: `docs/scale-out.md` says
what was tried on a real one.
"""

import asyncpg
import pytest

from tests.support.databases import execute

# In this order; the names, types and columns are those of Citus 13.
_CATALOGUE = (
    "SET allow_system_table_mods TO on",
    """
    INSERT INTO pg_catalog.pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
    SELECT 99999, 'citus', oid, 'pg_catalog'::regnamespace, false, '13.2-1' FROM pg_roles WHERE rolname = session_user
    """,
    "CREATE TABLE pg_catalog.pg_dist_local_group (groupid integer PRIMARY KEY)",
    """
    CREATE TABLE pg_catalog.pg_dist_node (
        nodeid integer PRIMARY KEY, groupid integer, nodename text, nodeport integer, noderole text, isactive boolean,
        shouldhaveshards boolean
    )
    """,
    "CREATE TABLE pg_catalog.pg_dist_schema (schemaid oid PRIMARY KEY, colocationid integer)",
    "CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass PRIMARY KEY, colocationid integer)",
    "CREATE TABLE pg_catalog.pg_dist_shard (logicalrelid regclass, shardid bigint PRIMARY KEY)",
    "CREATE TABLE pg_catalog.pg_dist_placement (shardid bigint, groupid integer)",
    # Every table of a distributed schema is one shard.
    """
    CREATE FUNCTION pg_catalog.citus_schema_distribute(schemaname regnamespace) RETURNS void LANGUAGE sql AS $$
    INSERT INTO pg_catalog.pg_dist_schema SELECT schemaname, schemaname::oid::integer;
    INSERT INTO pg_catalog.pg_dist_partition
    SELECT oid, schemaname::oid::integer FROM pg_catalog.pg_class WHERE relnamespace = schemaname AND relkind = 'r';
    INSERT INTO pg_catalog.pg_dist_shard
    SELECT oid, oid::bigint FROM pg_catalog.pg_class WHERE relnamespace = schemaname AND relkind = 'r';
    INSERT INTO pg_catalog.pg_dist_placement
    SELECT oid::bigint, 1 FROM pg_catalog.pg_class WHERE relnamespace = schemaname AND relkind = 'r'
    $$
    """,
    """
    CREATE FUNCTION pg_catalog.citus_check_connection_to_node(nodename text, nodeport integer) RETURNS boolean
    LANGUAGE sql AS $$ SELECT $1 <> 'silent.example' $$
    """,
    """
    CREATE FUNCTION pg_catalog.citus_schema_move(
        schema_id regnamespace, target_node_name text, target_node_port integer
    ) RETURNS void LANGUAGE sql AS $$
    UPDATE pg_catalog.pg_dist_placement SET groupid = (
        SELECT groupid FROM pg_catalog.pg_dist_node WHERE nodename = target_node_name AND nodeport = target_node_port
    ) WHERE shardid IN (SELECT oid::bigint FROM pg_catalog.pg_class WHERE relnamespace = schema_id)
    $$
    """,
    """
    CREATE FUNCTION pg_catalog.get_rebalance_progress(
        OUT targetname text, OUT targetport integer, OUT source_shard_size bigint, OUT target_shard_size bigint
    ) RETURNS SETOF record LANGUAGE sql AS $$ SELECT 'b.example', 5432, 100, 50 $$
    """,
    """
    CREATE VIEW pg_catalog.citus_shards AS
    SELECT
        n.nodename, n.nodeport, pg_catalog.pg_relation_size(s.logicalrelid) + 8192 AS shard_size,
        'schema'::text AS citus_table_type
    FROM pg_catalog.pg_dist_shard AS s
    JOIN pg_catalog.pg_dist_placement AS p USING (shardid)
    JOIN pg_catalog.pg_dist_node AS n USING (groupid)
    """,
    "INSERT INTO pg_catalog.pg_dist_local_group VALUES (0)",
    "INSERT INTO pg_catalog.pg_dist_node VALUES (1, 0, 'coordinator.example', 5432, 'primary', true, false), "
    "(2, 1, 'a.example', 5432, 'primary', true, true), (3, 2, 'b.example', 5432, 'primary', true, true), "
    "(4, 3, 'away.example', 5432, 'primary', false, true), (5, 4, 'silent.example', 5432, 'primary', true, true)",
)


async def pretend_citus(url: str, *schemas: str) -> None:
    """Give the database at *url* what belongs to Citus, with *schemas* on the node `a.example:5432`.

    New schemas would be distributed by it, if there were a Citus.
    """
    connection = await asyncpg.connect(url)
    try:
        if await connection.fetchval("SELECT pg_catalog.current_setting('is_superuser')") != "on":
            pytest.skip("only a superuser can let a server look like Citus")
        database = await connection.fetchval("SELECT pg_catalog.current_database()")
    finally:
        await connection.close()
    await execute(url, *_CATALOGUE, *(f"SELECT pg_catalog.citus_schema_distribute('{name}')" for name in schemas))
    await execute(url, f"ALTER DATABASE {database} SET citus.enable_schema_based_sharding TO on")


async def become_worker(url: str) -> None:
    """Let the database at *url* be a worker."""
    await execute(url, "SET allow_system_table_mods TO on", "UPDATE pg_catalog.pg_dist_local_group SET groupid = 1")
