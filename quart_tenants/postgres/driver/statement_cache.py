"""Keep the prepared statements of one connection, each for one tenant at one version.

PostgreSQL learns the types of a prepared statement's parameters and columns in one schema at one moment. Another
tenant's tables may differ, in a migration or after a change by hand: a number would be sent in fewer bits than the
column has, and stored so without an error; an enum of another schema is another type. So tenants share no statement,
nor does one tenant before and after a migration.

A change by hand makes the server refuse the statement if columns of the answer changed, and it is prepared anew. The
server says nothing where a parameter changed. So no statement is kept that has a parameter of a type which loses
anything silently, and none is used for an argument that its parameter might cut.
"""

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

from quart_tenants.postgres.driver.block_statements import NOBODY, TenantKey
from quart_tenants.postgres.driver.statement_effects import LONGEST

_TEXT = (str,)
_INTEGER = (int,)
# The types that lose nothing, and the Python types that asyncpg writes to them either whole or not at all: a number
# that is too large is an error. But 1.5 becomes 1 in an int8 without a word, a float is cut to the size of its type, a
# time to a date, and a time without a zone is taken to be in this machine's zone.
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

Statement: TypeAlias = Any
"""asyncpg's own state of a prepared statement, which it does not publish."""


class _Kept(NamedTuple):
    statement: Statement
    # The Python types that each parameter takes as they are.
    parameters: tuple[tuple[type, ...], ...]


class StatementCache:
    """At most *size* statements: those of the tenants that were served last."""

    __slots__ = ("_by_tenant", "_count", "_dropped", "_lossy", "_own", "_size", "_tenant")

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._by_tenant: OrderedDict[TenantKey, dict[str, _Kept]] = OrderedDict()
        self._tenant = NOBODY
        self._own: dict[str, _Kept] = {}
        self._dropped: list[str] = []
        # Texts that are not to be kept.
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
        """Return how many statements the server knows, including those that it is still to be told to forget."""
        return self._count + len(self._dropped)

    def find(self, query: str, arguments: Sequence[object]) -> Statement | None:
        """Return the tenant's statement of that text, if one is kept that takes *arguments* as they are."""
        found = self._own.get(query)
        if found is None or len(arguments) != len(found.parameters):
            return None
        for argument, types in zip(arguments, found.parameters, strict=True):
            if not _fits(argument, types) and not _is_list_of(argument, types):
                return None
        return found.statement

    def takes(self, query: str) -> bool:
        """Return whether a statement of that text may be kept, and none is."""
        return self._size > 0 and query not in self._own and query not in self._lossy and len(query) <= LONGEST

    def keep(self, query: str, statement: Statement) -> None:
        """Keep *statement* for the tenant, or drop it if a parameter may lose something."""
        parameters = _judge(statement)
        if parameters is None or query in self._own:
            self._dropped.append(statement.name)
            if parameters is None:
                if len(self._lossy) >= self._size:
                    self._lossy.clear()
                self._lossy.add(query)
            return
        self._own[query] = _Kept(statement, parameters)
        self._count += 1
        self._make_room()

    def forget(self, query: str) -> None:
        """Drop the tenant's statement of that text, if there is one."""
        found = self._own.pop(query, None)
        if found is not None:
            self._count -= 1
            self._dropped.append(found.statement.name)

    def forget_tenant(self) -> None:
        """Drop the tenant's statements: its tables are not what they were."""
        self._drop(self._own)

    def forget_all(self) -> None:
        """Forget all statements, which the server has forgotten, too."""
        self._by_tenant.clear()
        self._own = self._by_tenant[self._tenant] = {}
        self._count = 0
        self._dropped.clear()

    def take_dropped(self) -> list[str]:
        """Return the names of the dropped statements that the server still knows, once."""
        if not self._dropped:
            return []
        dropped, self._dropped = self._dropped, []
        return dropped

    def _make_room(self) -> None:
        while self._count > self._size or len(self._by_tenant) > self._size:
            tenant, oldest = next(iter(self._by_tenant.items()))
            if oldest is not self._own:
                del self._by_tenant[tenant]
                self._drop(oldest)
                continue
            self.forget(next(iter(oldest)))

    def _drop(self, kept: dict[str, _Kept]) -> None:
        self._count -= len(kept)
        self._dropped += [each.statement.name for each in kept.values()]
        kept.clear()


def _judge(statement: Statement) -> tuple[tuple[type, ...], ...] | None:
    """Return what the parameters of *statement* take, or None if one of them may lose something."""
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
