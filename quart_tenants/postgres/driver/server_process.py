"""Tell whether a connection has a server process to itself."""

from time import monotonic
from typing import Any

from quart_tenants.postgres.driver.connection_types import DriverConnection

GET_SERVER_PROCESS = """
SELECT
    pid AS number, EXTRACT(epoch FROM pg_catalog.clock_timestamp() - backend_start)::float8 AS age,
    pg_catalog.current_setting('search_path') AS path,
    pg_catalog.current_setting('default_transaction_isolation') = 'read committed' AS commits_are_seen,
    pg_catalog.has_function_privilege('pg_catalog.pg_prepared_statement()', 'EXECUTE') AS statements_are_seen
FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()
"""
"""Says which process serves the connection that asks, and whether blocks can be one message there."""


def has_to_itself(connection: DriverConnection, process: Any, opened_at: float, path: str) -> bool:
    """Return whether no pooler stands between, who makes up the number of a process, or lends one that is older.

    The age does not tell a process that was started a moment before, where the answer took longer than that moment. So
    it must also have the path that the connection was opened with, in the same letters: a pooler ignores it, or sets
    it later.

    Args:
        connection: The one that asked.
        process: The row of `GET_SERVER_PROCESS`.
        opened_at: When the connection began to be opened, by the monotonic clock.
        path: The search_path with which it was opened. A role's own default had better be written in another way.
    """
    return bool(
        process["number"] == connection.get_server_pid()
        and process["path"] == path
        and process["age"] <= monotonic() - opened_at
    )
