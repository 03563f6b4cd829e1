"""Lift the server's limits for transactions and sessions that stay open while work is done beside them."""

from quart_tenants.connection import Connection
from quart_tenants.postgres.driver.connection_types import DriverConnection

# A setting that does not exist would be an error: transaction_timeout came with PostgreSQL 17. No right is needed.
_LIFT = """DO $lift$ BEGIN
    SET {local}idle_in_transaction_session_timeout TO 0;
    SET {local}idle_session_timeout TO 0;
    IF pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 170000 THEN
        SET {local}transaction_timeout TO 0;
    END IF;
END $lift$"""

LIFT_LIMITS = _LIFT.format(local="LOCAL ")
"""The statement that lifts them until the end of the transaction."""
LIFT_LIMITS_OF_SESSION = _LIFT.format(local="")
"""The statement that lifts them for the rest of the session. No pooler may stand between."""


async def stay_open(connection: Connection | DriverConnection) -> None:
    """Let the transaction on *connection* be open, and idle, for as long as what is done beside it takes.

    A transaction that a limit of the server ends gives its locks and its snapshot away. A pooler has limits of its own.
    """
    await connection.execute(LIFT_LIMITS)
