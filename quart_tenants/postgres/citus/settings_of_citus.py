"""The settings of Citus that a transaction of ours sets. On plain PostgreSQL they are names without a meaning."""

KEEP_LOCAL = "SET LOCAL citus.enable_schema_based_sharding TO off"
"""Lets the schemas that this transaction makes be plain ones on the coordinator, whatever the database is set to.

The registry must be such a schema. If it were distributed, the number of a transaction would come from the coordinator
and the snapshot that it is compared with from a worker, so readers of the feed would miss changes.
"""

LIMIT_ALL_NODES = "SET LOCAL citus.propagate_set_commands TO local"
"""Lets the SET LOCAL statements that follow in this transaction hold on the workers, too.

Without it `lock_timeout` ends no wait of a worker. Only SET is passed on, and no call of set_config().
"""
