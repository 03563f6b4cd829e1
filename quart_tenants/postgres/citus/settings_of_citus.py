"""The settings of Citus that a transaction of ours sets. On plain PostgreSQL they are names without a meaning."""

KEEP_LOCAL = "SET LOCAL citus.enable_schema_based_sharding TO off"
"""Lets the schemas that this transaction makes be plain ones on the coordinator, whatever the database is set to.

The registry must be such a schema. If it were distributed, the number of a transaction would come from the coordinator
and the snapshot that it is compared with from a worker, so readers of the feed would miss changes.
"""

_LIMIT_ALL_NODES = "SET LOCAL citus.propagate_set_commands TO local"


def list_limits(*, lock: float, statement: float | None = None) -> tuple[str, ...]:
    """Return the statements that limit how long the rest of a transaction waits, on all nodes of a cluster.

    The first lets the workers hear of each SET LOCAL that follows; without it no wait of a worker ends. Citus passes
    SET on, and no call of set_config(). Each needs a message of its own, because a worker is sent the whole message.

    Args:
        lock: Seconds that a statement may wait for a lock; 0 for no limit.
        statement: Seconds that a statement may take; None for as long as before.
    """
    limits = (_LIMIT_ALL_NODES, f"SET LOCAL lock_timeout TO {round(lock * 1000)}")
    return limits if statement is None else (*limits, f"SET LOCAL statement_timeout TO {round(statement * 1000)}")
