"""Keep the prepared statements of one connection, each for the one tenant that it was prepared for.

What PostgreSQL knows of a prepared statement's parameters and columns was so in one schema at one moment. Another
tenant's tables may differ, in a migration or by somebody's hand: a number would be sent in fewer bits than the column
has, and stored so without an error. So no two tenants share a statement, nor does one tenant before and after a
migration. Of what is changed by hand the server says so where columns of the answer are concerned, and the statement is
prepared anew. It does not where a parameter is: so none is kept that has one of a type that loses anything silently,
and none is used for an argument that its parameter might cut.
"""

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, TypeAlias

_TEXT = (str,)
_INTEGER = (int,)
# The types that lose nothing, and of what asyncpg writes to them as it is, or not at all: a number too large is an
# error. But 1.5 becomes 1 in an int8 without a word, a float is cut to the size of its type, a time to a date, and one
# without a zone is taken to be in this machine's.
_LOSSLESS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "bpchar": _TEXT,
    "bytea": (bytes,),
    "int2": _INTEGER,
    "int4": _INTEGER,
    "int8": _INTEGER,
    "json": _TEXT,
    "jsonb": _TEXT,
    "name": _TEXT,
    "numeric": (int, Decimal),
    "oid": _INTEGER,
    "text": _TEXT,
    "uuid": (uuid.UUID,),
    "varchar": _TEXT,
}
_LONGEST = 15_000
"""Characters. As in asyncpg: longer ones are mostly made for one occasion."""

Statement: TypeAlias = Any
"""asyncpg's own state of a prepared statement, which it does not publish."""
TenantKey: TypeAlias = tuple[int, int]
"""A tenant's number, and the version of its tables."""
_Parameters: TypeAlias = tuple[tuple[type, ...], ...]


class StatementCache:
    """At most *size* statements, those of the tenants that were served last."""

    __slots__ = ("_by_tenant", "_count", "_dropped", "_lossy", "_own", "_size", "_tenant")

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._by_tenant: OrderedDict[TenantKey, dict[str, tuple[Statement, _Parameters]]] = OrderedDict()
        # Whose turn it is: the last one in the above.
        self._tenant: TenantKey = (0, 0)
        self._own: dict[str, tuple[Statement, _Parameters]] = {}
        self._dropped: list[str] = []
        # Texts that are not kept, so that they are given no name the next time.
        self._lossy: set[str] = set()

    def turn_to(self, tenant: TenantKey) -> None:
        """Let what follows be about *tenant*."""
        self._tenant = tenant
        own = self._by_tenant.get(tenant)
        if own is None:
            self._own = self._by_tenant[tenant] = {}
            self._make_room()
        else:
            self._own = own
            self._by_tenant.move_to_end(tenant)

    def __len__(self) -> int:
        """Return how many statements the server knows for this, those included that it is still to forget."""
        return self._count + len(self._dropped)

    def find(self, query: str, arguments: Sequence[object]) -> Statement | None:
        """Return the tenant's statement of that text, if it is kept and takes *arguments* as they are."""
        found = self._own.get(query)
        if found is None:
            return None
        statement, parameters = found
        if len(arguments) != len(parameters):
            return None
        for argument, types in zip(arguments, parameters, strict=True):
            if not _fits(argument, types) and not _is_list_of(argument, types):
                return None
        return statement

    def takes(self, query: str) -> bool:
        """Return whether a statement of that text may be kept, and none is."""
        return query not in self._own and query not in self._lossy and self._size > 0 and len(query) <= _LONGEST

    def keep(self, query: str, statement: Statement) -> None:
        """Keep *statement* for the tenant, or drop it if that is not safe."""
        parameters = _find_lossless(statement)
        if parameters is None or query in self._own:
            self._dropped.append(statement.name)
            if len(self._lossy) >= self._size:
                self._lossy.clear()
            self._lossy.add(query)
        else:
            self._own[query] = statement, parameters
            self._count += 1
            self._make_room()

    def forget(self, query: str) -> None:
        """Drop the tenant's statement of that text, if there is one."""
        found = self._own.pop(query, None)
        if found is not None:
            self._count -= 1
            self._dropped.append(found[0].name)

    def forget_tenant(self) -> None:
        """Drop the tenant's statements: its tables are not what they were."""
        self._forget(self._own)
        self._own.clear()

    def forget_all(self) -> None:
        """Forget all statements, which the server has forgotten, too."""
        self._by_tenant.clear()
        self._own = self._by_tenant[self._tenant] = {}
        self._count = 0
        self._dropped.clear()

    def take_dropped(self) -> list[str]:
        """Return the names of what was dropped and is still known to the server, once."""
        if not self._dropped:
            return []
        dropped, self._dropped = self._dropped, []
        return dropped

    def _make_room(self) -> None:
        while self._count > self._size or len(self._by_tenant) > self._size:
            tenant, oldest = next(iter(self._by_tenant.items()))
            if oldest is self._own:
                # Nobody else has any.
                self.forget(next(iter(oldest)))
            else:
                del self._by_tenant[tenant]
                self._forget(oldest)

    def _forget(self, statements: dict[str, tuple[Statement, _Parameters]]) -> None:
        self._count -= len(statements)
        self._dropped += [statement.name for statement, _ in statements.values()]


def _find_lossless(statement: Statement) -> _Parameters | None:
    """Return what each parameter takes as it is, or None if one may lose something."""
    found = []
    for parameter in statement._get_parameters():  # noqa: SLF001  (what PreparedStatement.get_parameters() returns)
        types = _LOSSLESS.get(parameter.name.removesuffix("[]"))
        if types is None or parameter.schema != "pg_catalog":
            return None
        found.append(types)
    return tuple(found)


def _fits(argument: object, types: tuple[type, ...]) -> bool:
    kind = type(argument)
    # For Python True is a number.
    return argument is None or kind in types or (kind is not bool and isinstance(argument, types))


def _is_list_of(argument: object, types: tuple[type, ...]) -> bool:
    # PostgreSQL's arrays are asyncpg's lists. Where no array is expected, a list is an error.
    return type(argument) is list and all(_fits(item, types) for item in argument)
