"""Parse SQL with PostgreSQL's own parser. The only module that loads postgast.

The type stub of postgast's messages is not valid Python, and mypy stops at it, also in the project of whoever uses
this package. So postgast is loaded by name, and type checkers do not see it.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

_postgast: Any = importlib.import_module("postgast")

messages: Any = _postgast.pg_query_pb2
"""The classes and constants of the syntax tree, as protocol buffers."""

_LITERALS = frozenset({"SCONST", "USCONST", "ICONST", "FCONST", "BCONST", "XCONST"})
_COMMENTS = frozenset({"SQL_COMMENT", "C_COMMENT"})


class SqlSyntaxError(Exception):
    """The parser refuses a text. *position* counts characters from 1; 0 means that it is unknown."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def parse_sql(text: str) -> Any:
    """Return the syntax tree of *text*.

    Raises:
        SqlSyntaxError: PostgreSQL's parser refuses it.
        ValueError: It holds a NUL, or half of a surrogate pair.
    """
    try:
        return _postgast.parse(text)
    except _postgast.PgQueryError as error:
        raise SqlSyntaxError(error.message, error.cursorpos) from error


walk: Callable[[Any], Iterator[tuple[str, Any]]] = _postgast.walk
"""Yields every node of a syntax tree with the name of its field."""


def list_tokens(text: str) -> Any:
    """Return the tokens of *text*; `start` and `end` count bytes."""
    return _postgast.scan(text).tokens


def hide_literals(text: str) -> str:
    """Return *text* in one line, with dots for its literals and without its comments. They may be somebody's secrets.

    Of a text that is no SQL, or not all of it, only the first word is returned.
    """
    try:
        tokens = list_tokens(text)
    except (_postgast.PgQueryError, ValueError):
        return " ".join([*text.split()[:1], "…"])
    encoded, shown, end = text.encode(), [], 0
    for token in tokens:
        kind = messages.Token.Name(token.token)
        shown.append(encoded[end : token.start])
        if kind in _LITERALS:
            shown.append("…".encode())
        elif kind not in _COMMENTS:
            shown.append(encoded[token.start : token.end])
        end = token.end
    return " ".join(b"".join(shown).decode().split())
