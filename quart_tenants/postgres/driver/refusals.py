"""Tell in one line what PostgreSQL refused, without the rows and values that it names."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from quart_tenants.errors import DatabaseRefusedError

# Data exceptions quote what was typed: invalid input syntax for type integer: "…". So do syntax errors, where a value
# was written into the statement: unterminated quoted string at or near "…".
_QUOTING = ("22", "42601")
_QUOTED = re.compile(r'".*"', re.DOTALL)
# How the driver begins when a value does not fit its $1; the value comes next.
_ARGUMENT = re.compile(r"(?:invalid input for )?query argument \$\d+")


@contextmanager
def translate_refusals() -> Iterator[None]:
    """Raise `DatabaseRefusedError` for an error of PostgreSQL that nothing inside has translated.

    For commands, where a missing right or table is the operator's business and a traceback no answer.
    A request keeps the driver's own error: its traceback belongs in the log.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        raise DatabaseRefusedError(
            f"the database refused a statement: {describe_refusal(error)}{_advise(error)}"
        ) from error


def _advise(error: asyncpg.PostgresError) -> str:
    if not isinstance(error, asyncpg.InsufficientPrivilegeError):
        return ""
    return "; GRANT the role in the URL what it lacks (ALTER … OWNER TO it), or let a superuser's URL do this"


def describe_refusal(error: asyncpg.PostgresError) -> str:
    """Return what the server said in one line, without its detail, which may hold a row with a password hash."""
    return str(error.args[0]) if error.args else type(error).__name__


def describe_without_values(error: BaseException) -> str:
    """Return what *error* says, without the rows, hints and parameters in what the database or the driver says."""
    if quotes_a_value(error):
        return "invalid input for a query argument, which is not shown"
    if isinstance(error, asyncpg.PostgresError):
        message = describe_refusal(error)
        return _QUOTED.sub('"…"', message) if (error.sqlstate or "").startswith(_QUOTING) else message
    if isinstance(error, asyncpg.InterfaceError):
        return str(error.args[0]) if error.args else ""
    return str(error)


def quotes_a_value(error: BaseException) -> bool:
    """Return whether *error* repeats a parameter that the driver could not convert. What caused it does, too."""
    return bool(
        isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError)
        and error.args
        and _ARGUMENT.match(str(error.args[0]))
    )
