"""Open connections of no pool, and make sure that one has a server process to itself."""

from collections.abc import Mapping
from time import monotonic
from typing import Any

import asyncpg

from quart_tenants.errors import DatabaseRefusedError, DatabaseUnavailableError, SettingError
from quart_tenants.postgres.blocks.long_work import LIFT_LIMITS_OF_SESSION
from quart_tenants.postgres.driver.connection_types import (
    DRIVER_ERRORS,
    DriverConnection,
    describe,
    explain_no_connection,
)
from quart_tenants.postgres.driver.server_process import GET_SERVER_PROCESS, has_to_itself
from quart_tenants.settings import Settings

# No right is needed for it, and a standby that is read from has another start than its primary.
_GET_PLACE = """
SELECT pg_catalog.pg_postmaster_start_time(), oid, datname::text FROM pg_catalog.pg_database
WHERE datname = pg_catalog.current_database()
"""


def find_own_url(settings: Settings) -> tuple[str, str]:
    """Return the URL for what needs a session of its own, and the setting that holds it."""
    if settings.direct_database_url is None:
        return settings.required_database_url, "TENANTS_DATABASE_URL"
    return settings.direct_database_url, "TENANTS_DIRECT_DATABASE_URL"


async def open_own_session(
    settings: Settings, defaults: Mapping[str, str], purpose: str, command_timeout: float | None = None
) -> DriverConnection:
    """Return a connection that has a server process to itself, in the database of `TENANTS_DATABASE_URL`.

    No limit of the server for idle sessions or for long transactions ends it. It is opened at
    `TENANTS_DIRECT_DATABASE_URL`, if that is set. A cancellation leaves no connection open.

    Args:
        settings: The addresses, and how long connecting may take.
        defaults: Settings of PostgreSQL for the connection, search_path among them.
        purpose: Why such a connection is needed, such as `a backup`.
        command_timeout: Seconds that a statement may take; None for no limit.

    Raises:
        SettingError: `TENANTS_DIRECT_DATABASE_URL` leads to a pooler or to another database, or the URL cannot be
            understood.
        DatabaseUnavailableError: The database cannot be reached.
        DatabaseRefusedError: `TENANTS_DATABASE_URL` leads to a pooler, and there is no other URL.
    """
    url, setting = find_own_url(settings)
    opened_at = monotonic()
    connection = await connect_once(settings, purpose, defaults, command_timeout=command_timeout, at=(url, setting))
    try:
        process = await connection.fetchrow(GET_SERVER_PROCESS)
        if not has_to_itself(connection, process, opened_at, defaults["search_path"]):
            if settings.direct_database_url is not None:
                raise SettingError(setting, "leads to a pooler; give it the URL of PostgreSQL itself")
            raise DatabaseRefusedError(
                f"a pooler stands between, and {purpose} cannot share a session with others: give the URL of "
                "PostgreSQL itself in TENANTS_DIRECT_DATABASE_URL"
            )
        if settings.direct_database_url is not None:
            await _compare(connection, settings, defaults, purpose)
        await connection.execute(LIFT_LIMITS_OF_SESSION)
    except BaseException as error:
        connection.terminate()
        if isinstance(error, DRIVER_ERRORS):
            raise DatabaseUnavailableError(f"the connection for {purpose} was lost: {describe(error)}") from error
        raise
    return connection


async def connect_once(
    settings: Settings,
    purpose: str,
    defaults: Mapping[str, str],
    *,
    command_timeout: float | None,
    at: tuple[str, str] | None = None,
) -> DriverConnection:
    """Return a connection of no pool, behind which a pooler may stand. A cancellation leaves no connection open.

    Args:
        settings: The address, and how long connecting may take.
        purpose: What it is for, such as `a backup`.
        defaults: Settings of PostgreSQL for the connection.
        command_timeout: Seconds that a statement may take; None for no limit.
        at: Another URL than `TENANTS_DATABASE_URL`, and the setting that holds it.

    Raises:
        SettingError: The URL cannot be understood.
        DatabaseUnavailableError: The database cannot be reached.
    """
    url, setting = at or (settings.required_database_url, "TENANTS_DATABASE_URL")
    try:
        return await asyncpg.connect(
            url,
            timeout=settings.connect_timeout,
            command_timeout=command_timeout,
            statement_cache_size=0,
            server_settings=dict(defaults),
        )
    except (ValueError, *DRIVER_ERRORS) as error:
        raise explain_no_connection(error, setting, f"cannot connect to the database for {purpose}") from error


async def _compare(connection: DriverConnection, settings: Settings, defaults: Mapping[str, str], purpose: str) -> None:
    """Make sure that both URLs lead to the same database of the same server."""
    other = await connect_once(settings, purpose, defaults, command_timeout=settings.command_timeout)
    try:
        here, there = [await each.fetchrow(_GET_PLACE) for each in (connection, other)]
    finally:
        other.terminate()
    if here != there:
        raise SettingError(
            "TENANTS_DIRECT_DATABASE_URL",
            f"leads to {_describe_place(here)}, and TENANTS_DATABASE_URL to {_describe_place(there)}: "
            "both must be the same database",
        )


def _describe_place(place: Any) -> str:
    started_at = place["pg_postmaster_start_time"].isoformat(" ")
    return f"database {place['datname']!r} of a server that was started at {started_at}"
