"""The types of the driver's connections, and its errors."""

import traceback
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from quart_tenants.connection import Connection as Connection
from quart_tenants.errors import DatabaseUnavailableError, SettingError, TenantError

if TYPE_CHECKING:
    DriverConnection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    # asyncpg's classes take no type arguments when the program runs.
    DriverConnection = asyncpg.Connection
    """A connection of asyncpg's that no block has."""

# What a lost server looks like depends on the moment it was lost.
DRIVER_ERRORS = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError)

# What the driver meets where it looks for a certificate: no file, no folder, or no home.
_NO_FILE_ERRORS = (FileNotFoundError, NotADirectoryError, asyncpg.ClientConfigurationError)

# What PgBouncer says, and what is to be done.
_POOLERS_WORDS = {
    "unsupported startup parameter: search_path": (
        "set ignore_startup_parameters = search_path in PgBouncer, and ALTER ROLE … SET search_path = '' in PostgreSQL"
    ),
    "not allowed in statement pooling mode": "a block is a transaction: set pool_mode = transaction in PgBouncer",
}

_DRIVERS = ("asyncpg.", __name__.rpartition(".")[0] + ".")


def describe(error: BaseException) -> str:
    """Return what a driver's error says, and what to do where a pooler says it; or its type where it says nothing."""
    remedy = find_poolers_remedy(error)
    return f"{error}: {remedy}" if remedy else str(error) or type(error).__name__


def find_poolers_remedy(error: BaseException) -> str:
    """Return what is to be set in the pooler so that it does not say *error* again, or nothing."""
    said = str(error)
    return next((remedy for words, remedy in _POOLERS_WORDS.items() if words in said), "")


def is_drivers(error: BaseException) -> bool:
    """Return whether *error* comes out of the driver, and is not the app's own, which may be of the same class."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__", "")).startswith(_DRIVERS) for frame, _ in frames)


def explain_no_connection(error: Exception, setting: str, purpose: str) -> TenantError:
    """Return the error for a connection that could not be opened.

    Args:
        error: One of `DRIVER_ERRORS`, or the ValueError that asyncpg raises for a URL.
        setting: The key of the setting that holds the URL.
        purpose: What cannot be done, such as `cannot connect to the database`.
    """
    if isinstance(error, asyncpg.ClientConfigurationError) and isinstance(error.__context__, _NO_FILE_ERRORS):
        return SettingError(
            setting,
            "asks to verify the server's certificate, and there is no root certificate to do it by: "
            "add sslrootcert=/path/to/root.crt to the URL, or put the file where PostgreSQL's programs look for it, "
            "~/.postgresql/root.crt",
        )
    # A certificate that is refused is a ValueError, too.
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        # Without asyncpg's words: they repeat a part of the URL, which holds a password.
        return SettingError(setting, "cannot be understood; check its port and its options")
    if find_poolers_remedy(error):
        return DatabaseUnavailableError(f"{purpose}: {describe(error)}")
    files = ", with the files that it names" if isinstance(error, FileNotFoundError) else ""
    return DatabaseUnavailableError(f"{purpose}: {describe(error)}; is it running, and is {setting} right{files}?")
