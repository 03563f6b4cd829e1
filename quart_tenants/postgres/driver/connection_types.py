"""The types of the driver's connections, and its errors."""

from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from quart_tenants.connection import Connection as Connection

if TYPE_CHECKING:
    DriverConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    # asyncpg's classes take no type arguments when the program runs.
    DriverConnection = asyncpg.Connection
    """A connection of asyncpg's that no block has."""

# What a lost server looks like depends on the moment it was lost.
DRIVER_ERRORS = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError)


def describe(error: BaseException) -> str:
    """Return what a driver's error says, or its type where it says nothing."""
    return str(error) or type(error).__name__
