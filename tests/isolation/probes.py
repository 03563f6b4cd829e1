"""What a connection must not carry from one tenant to the next, looked for from inside a block."""

from typing import TYPE_CHECKING

from quart_tenants.tenant import Tenant

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

# Each is empty on a clean connection, or says what it found.
_FIND_TRACES = """
SELECT
    nullif(pg_catalog.current_schemas(false)::text[]::text, ARRAY[$1]::text[]::text) AS path,
    nullif(session_user, $2) AS session_user,
    nullif(current_user, $3) AS role,
    nullif(pg_catalog.current_setting('statement_timeout'), '0') AS setting,
    nullif(coalesce(pg_catalog.current_setting('app.secret', true), ''), '') AS custom_setting,
    (SELECT pg_catalog.string_agg(relname, ',') FROM pg_catalog.pg_class
        WHERE relnamespace = pg_catalog.pg_my_temp_schema() AND relkind = 'r') AS temporary_table,
    (SELECT pg_catalog.string_agg(channel, ',') FROM pg_catalog.pg_listening_channels() AS channel) AS listener,
    (SELECT pg_catalog.string_agg(objid::text, ',') FROM pg_catalog.pg_locks
        WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()) AS advisory_lock,
    (SELECT pg_catalog.string_agg(name, ',') FROM pg_catalog.pg_cursors WHERE is_holdable) AS cursor,
    (SELECT pg_catalog.string_agg(name, ',') FROM pg_catalog.pg_prepared_statements WHERE from_sql) AS prepared,
    pg_catalog.pg_current_xact_id_if_assigned()::text AS open_transaction
"""

LEAVE_TRACES = """
SET statement_timeout TO 54321;
SET app.secret TO 'mine';
CREATE TEMP TABLE my_notes (note text);
LISTEN my_news;
SELECT pg_try_advisory_lock(42)
"""
"""What a careless handler leaves behind."""


async def find_traces(connection: "Connection", tenant: Tenant, login: str, role: str | None = None) -> dict[str, str]:
    """Return what is not as it must be at the start of a block of *tenant*, on *connection* inside that block.

    Args:
        connection: As it was lent.
        tenant: Whose block it is.
        login: Who connected.
        role: Whom the block is meant to act as; default: *login*.
    """
    row = await connection.fetchrow(_FIND_TRACES, tenant.schema.name, login, role or login)
    return {name: str(value) for name, value in dict(row or {}).items() if value is not None}
