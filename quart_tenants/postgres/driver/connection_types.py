"""What the driver's connections are called here, and what its errors look like."""

from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from quart_tenants.connection import Connection as Connection

if TYPE_CHECKING:
    DriverConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    DriverConnection = asyncpg.Connection

# What a lost server looks like depends on the moment it was lost.
DRIVER_ERRORS = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError)


def describe(error: BaseException) -> str:
    """Return what a driver's error says, which is nothing at times."""
    return str(error) or type(error).__name__
