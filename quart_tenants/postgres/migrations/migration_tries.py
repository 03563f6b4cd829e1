"""Say how long a migration may take and wait, and whether it is worth another try."""

import random

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import (
    DatabaseUnavailableError,
    MigrationFailedError,
    PoolExhaustedError,
    TenantBusyError,
    TenantError,
)
from quart_tenants.postgres.blocks.block import SERVER_GONE_ERRORS
from quart_tenants.postgres.citus.settings_of_citus import list_limits
from quart_tenants.settings import Settings

GRACE = 10.0
"""Seconds. The client waits longer than the server's own limit, whose error says more."""

_FIRST_PAUSE = 0.5  # seconds; it doubles after each further try
_LONGEST_PAUSE = 30.0

# Times are in milliseconds. The third setting lets the server notice that a command was killed: without it the server
# looks at its client only between statements. A server on Windows cannot do that. The last one would end a migration
# that takes long in all, and exists from PostgreSQL 17 on. `LIFT_LIMITS` cannot do it here: the limits share a message
# with other statements, and on Citus a DO block must not.
_LIMITS = """
SELECT
    pg_catalog.set_config('lock_timeout', '{lock:d}', {local}),
    pg_catalog.set_config('statement_timeout', '{statement:d}', {local}),
    pg_catalog.set_config(
        'client_connection_check_interval',
        CASE WHEN pg_catalog.version() ~* 'windows|mingw|visual' THEN '0' ELSE '1000' END,
        {local}
    ),
    (
        SELECT pg_catalog.set_config(name, '0', {local}) FROM pg_catalog.pg_settings
        WHERE name = 'transaction_timeout'
    )
"""
_PASSING_ERRORS = (
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    *SERVER_GONE_ERRORS,
    asyncpg.InterfaceError,
    OSError,
)
# A password, a role, a database or a rule of pg_hba.conf that does not let us in. Trying again may lock the account.
_REFUSED_LOGINS = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)


def format_limits(settings: Settings, lock_timeout: float, *, local: bool) -> str:
    """Return the statement that limits in seconds how long statements wait for locks, and how long they take.

    Args:
        settings: They say how long a statement may take.
        lock_timeout: Seconds; 0 for no limit.
        local: Whether the limits end with the transaction.
    """
    return _LIMITS.format(
        lock=round(lock_timeout * 1000),
        statement=round(settings.migration_statement_timeout * 1000),
        local=str(local).lower(),
    )


async def limit_on_all_nodes(connection: Connection, settings: Settings) -> None:
    """Let the limits of a migration hold for the rest of the transaction, on all nodes of a cluster."""
    limits = list_limits(lock=settings.migration_lock_timeout, statement=settings.migration_statement_timeout)
    for limit in limits:
        await connection.execute(limit)


def may_succeed_later(error: TenantError) -> bool:
    """Return whether *error* may pass: a lock, a deadlock, or a lost connection, but no wrong password."""
    if isinstance(error.__cause__, _REFUSED_LOGINS):
        return False
    if isinstance(error, DatabaseUnavailableError | PoolExhaustedError | TenantBusyError):
        return True
    return isinstance(error, MigrationFailedError) and isinstance(error.__cause__, _PASSING_ERRORS)


def choose_pause(attempt: int) -> float:
    """Return how many seconds to wait after try number *attempt*, partly random."""
    return min(_FIRST_PAUSE * 2.0 ** (attempt - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311  (no secret)
