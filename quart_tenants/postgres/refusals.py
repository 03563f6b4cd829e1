"""Tell an operator in one line what PostgreSQL refused."""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from quart_tenants.errors import DatabaseRefusedError


@contextmanager
def translate_refusals() -> Iterator[None]:
    """Raise `DatabaseRefusedError` for an error of PostgreSQL that nothing inside has translated.

    For commands, where a missing right or table is the operator's business and a traceback no answer.
    A request keeps the driver's own error: its traceback belongs in the log.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        raise DatabaseRefusedError(f"the database refused a statement: {describe_refusal(error)}") from error


def describe_refusal(error: asyncpg.PostgresError) -> str:
    """Return what the server said in one line, without its detail, which may hold a row with a password hash."""
    return str(error.args[0]) if error.args else type(error).__name__
