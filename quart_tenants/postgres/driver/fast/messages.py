"""Write statements as messages of PostgreSQL's protocol, to go ahead of what the driver sends. Pure: no I/O.

The extended protocol lets a client send many statements before it waits for an answer ("pipelining", PostgreSQL's
manual, section 54.2.4). asyncpg waits after each of its own statements. The server executes the messages of this module
when they arrive, and answers them together with asyncpg's next statement, which ends with the Sync that these lack.
"""

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache

from quart_tenants.postgres.driver.block_statements import BEGIN, COMMIT, REPEATED

_LENGTH = struct.Struct("!i")
_NO_PARAMETERS = b"\0\0"
# No parameters' formats, no parameters, and results as text.
_NO_ARGUMENTS = b"\0\0" + _NO_PARAMETERS + b"\0\0"
# The unnamed portal, all rows.
_EXECUTE = b"E" + _LENGTH.pack(9) + b"\0\0\0\0\0"
# The unnamed statement.
_DESCRIBE = b"D" + _LENGTH.pack(6) + b"S\0"


# All connections use the same names for the same statements.
_NAMES = {text: b"quart_tenants_" + hashlib.sha256(text.encode()).hexdigest()[:16].encode() for text in REPEATED}


def write_preparation() -> bytes:
    """Return the messages that prepare `REPEATED` on a server process that does not have them."""
    # Preparing begins a transaction. Left open, it would make the next block begin in the past.
    return b"".join(_write_parse(name, statement) for statement, name in _NAMES.items()) + write_statements(
        BEGIN, COMMIT
    )


@lru_cache(maxsize=4096)
def write_statements(*statements: str, prepared: bool = True) -> bytes:
    """Return the messages that run *statements* one after the other. They have no parameters, and return no rows.

    Args:
        statements: SQL.
        prepared: Whether `REPEATED` is prepared on the server process.
    """
    return b"".join(
        _write_statement(statement, _NAMES.get(statement, b"") if prepared else b"") for statement in statements
    )


def write_description(query: str) -> bytes:
    """Return the messages that prepare *query* without a name, and make the server describe it."""
    return _write_parse(b"", query) + _DESCRIBE


def write_closes(names: Sequence[str]) -> bytes:
    """Return the messages that make the server forget prepared statements, also those that it does not know."""
    return b"".join(_write_message(b"C", b"S" + name.encode() + b"\0") for name in names)


def _write_statement(statement: str, name: bytes) -> bytes:
    parse = b"" if name else _write_parse(name, statement)
    # The unnamed portal.
    return parse + _write_message(b"B", b"\0" + name + b"\0" + _NO_ARGUMENTS) + _EXECUTE


def _write_parse(name: bytes, statement: str) -> bytes:
    return _write_message(b"P", name + b"\0" + statement.encode() + b"\0" + _NO_PARAMETERS)


def _write_message(kind: bytes, body: bytes) -> bytes:
    return kind + _LENGTH.pack(len(body) + _LENGTH.size) + body
