"""Write statements as messages of PostgreSQL's protocol, to go ahead of what the driver sends. Pure: no I/O.

The extended protocol lets a client send many statements before it waits for an answer ("pipelining", PostgreSQL's
manual, section 54.2.4). asyncpg waits after each of its own. What is written here is executed by the server when it
arrives, and answered together with the driver's next statement, which ends with the Sync that these lack.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache

_LENGTH = struct.Struct("!i")
# The unnamed portal of the unnamed statement, no parameters, results as text.
_BIND = b"B" + _LENGTH.pack(12) + b"\0\0" + b"\0\0\0\0\0\0"
# The unnamed portal, all rows.
_EXECUTE = b"E" + _LENGTH.pack(9) + b"\0\0\0\0\0"


@lru_cache(maxsize=4096)
def write_statements(*statements: str) -> bytes:
    """Return the messages that run *statements*, which have no parameters and return no rows, one after the other."""
    return b"".join(_write_statement(statement) for statement in statements)


def write_closes(names: Sequence[str]) -> bytes:
    """Return the messages that make the server forget prepared statements, also those that it does not know."""
    bodies = [b"S" + name.encode() + b"\0" for name in names]
    return b"".join(b"C" + _LENGTH.pack(len(body) + _LENGTH.size) + body for body in bodies)


def _write_statement(statement: str) -> bytes:
    # No name, and no parameter's type.
    body = b"\0" + statement.encode() + b"\0" + b"\0\0"
    return b"P" + _LENGTH.pack(len(body) + _LENGTH.size) + body + _BIND + _EXECUTE
