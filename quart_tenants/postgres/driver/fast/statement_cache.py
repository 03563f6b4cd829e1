"""Keep the prepared statements of one connection, each for one tenant at one version.

PostgreSQL learns the types of a prepared statement's parameters and columns in one schema at one moment. Another
tenant's tables may differ, in a migration or after a change by hand: a number would be sent in fewer bits than the
column has, and stored so without an error; an enum of another schema is another type. So no tenant writes by another's
statement, and no statement serves a tenant before and after a migration.

Preparing costs several executions. So a tenant reads by a statement of another tenant at the same version, until it
has done so a few times. That is done only if PostgreSQL has found the same types for both, all of them its own: each
tenant's statement is prepared at least once in each pool. Where a table was changed by hand since then, the server
refuses the statement. The tenant then gets one of its own, and the read is run again: it has changed nothing.

A change by hand makes the server refuse the statement if columns of the answer changed, and it is prepared anew. The
server says nothing where a parameter changed. So no statement is kept that has a parameter of a type which loses
anything silently, and none is used for an argument that its parameter might cut.
"""

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

from quart_tenants.postgres.driver.block_statements import NOBODY, TenantKey
from quart_tenants.postgres.driver.fast.statement_effects import LONGEST

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

# Reads of one text by another tenant's statement. Preparing costs as much as planning it so often for this tenant.
_OWN_AFTER = 8

Statement: TypeAlias = Any
"""asyncpg's own state of a prepared statement, which it does not publish."""


Types: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""The types of a statement's parameters and columns, by PostgreSQL's numbers."""


class FoundTypes:
    """Which types PostgreSQL has found for a text in a tenant's schema. All connections of a pool share one."""

    __slots__ = ("_found", "_size")

    def __init__(self, size: int) -> None:
        """Remember *size* texts of tenants at most."""
        self._size = size
        self._found: OrderedDict[tuple[TenantKey, str], Types] = OrderedDict()

    def add(self, tenant: TenantKey, query: str, types: Types) -> None:
        """Remember that *query* has *types* for *tenant*."""
        self._found[tenant, query] = types
        if len(self._found) > self._size:
            self._found.popitem(last=False)

    def find(self, tenant: TenantKey, query: str) -> Types | None:
        """Return the types of *query* for *tenant*, or None if nobody knows them."""
        return self._found.get((tenant, query))

    def forget(self, tenant: TenantKey, query: str) -> None:
        """Forget the types of *query* for *tenant*: its tables are not what they were."""
        self._found.pop((tenant, query), None)


@dataclass(slots=True, eq=False)
class _Kept:
    statement: Statement
    # The Python types that each parameter takes as they are.
    parameters: tuple[tuple[type, ...], ...]
    types: Types

    def takes(self, arguments: Sequence[object]) -> bool:
        """Return whether each of *arguments* arrives as it is."""
        if len(arguments) != len(self.parameters):
            return False
        for argument, types in zip(arguments, self.parameters, strict=True):
            if not _fits(argument, types) and not _is_list_of(argument, types):
                return False
        return True


class _Own:
    """What is kept for one tenant at one version, by text."""

    __slots__ = ("kept", "shared_uses", "tenant")

    def __init__(self, tenant: TenantKey) -> None:
        self.tenant = tenant
        self.kept: dict[str, _Kept] = {}
        # How often the tenant has read by another's statement.
        self.shared_uses: dict[str, int] = {}


class StatementCache:
    """At most *size* statements: those of the tenants that were served last."""

    __slots__ = ("_by_tenant", "_count", "_dropped", "_found", "_lossy", "_own", "_shared", "_size", "_unshareable")

    def __init__(self, size: int, found: FoundTypes) -> None:
        self._size = size
        self._found = found
        self._count = 0
        self._own = _Own(NOBODY)
        self._by_tenant: OrderedDict[TenantKey, _Own] = OrderedDict({NOBODY: self._own})
        # Some of them, by which others may read, by version and text.
        self._shared: dict[tuple[tuple[int, int], str], _Kept] = {}
        self._dropped: list[str] = []
        # Texts that are not to be kept, and texts that are not to be shared.
        self._lossy: set[str] = set()
        self._unshareable: set[str] = set()

    def turn_to(self, tenant: TenantKey) -> None:
        """Let what follows be about *tenant*."""
        own = self._by_tenant.get(tenant)
        if own is None:
            self._own = self._by_tenant[tenant] = _Own(tenant)
            self._make_room()
        else:
            self._own = own
            self._by_tenant.move_to_end(tenant)

    def __len__(self) -> int:
        """Return how many statements the server knows, including those that it is still to be told to forget."""
        return self._count + len(self._dropped)

    def find(self, query: str, arguments: Sequence[object]) -> Statement | None:
        """Return the tenant's statement of that text, if one is kept that takes *arguments* as they are."""
        found = self._own.kept.get(query)
        return found.statement if found is not None and found.takes(arguments) else None

    def find_shared(self, query: str, arguments: Sequence[object]) -> Statement | None:
        """Return another tenant's statement of that text, by which the tenant may read, or None. Counts as a use."""
        own = self._own
        found = self._shared.get((own.tenant.versions, query))
        if found is None or query in own.kept or found.types != self._found.find(own.tenant, query):
            return None
        uses = own.shared_uses.get(query, 0)
        if uses >= _OWN_AFTER or not found.takes(arguments):
            return None
        if len(own.shared_uses) >= self._size:
            own.shared_uses.clear()
        own.shared_uses[query] = uses + 1
        return found.statement

    def takes(self, query: str) -> bool:
        """Return whether a statement of that text may be kept, and none is."""
        return self._size > 0 and query not in self._own.kept and query not in self._lossy and len(query) <= LONGEST

    def keep(self, query: str, statement: Statement) -> None:
        """Keep *statement* for the tenant, and let others read by it if that is safe, or drop it."""
        own = self._own
        names = _list_parameters(statement)
        if names is None or query in own.kept:
            self._dropped.append(statement.name)
            if names is None:
                self._add(self._lossy, query)
            return
        kept = own.kept[query] = _Kept(statement, tuple(_LOSSLESS[name] for name in names), _list_types(statement))
        own.shared_uses.pop(query, None)
        self._count += 1
        if query not in self._unshareable and _returns_built_in_types(statement):
            self._found.add(own.tenant, query, kept.types)
            self._shared.setdefault((own.tenant.versions, query), kept)
        self._make_room()

    def stop_sharing(self, query: str) -> None:
        """Let tenants no longer read *query* by each other's statements: some of their tables differ."""
        self._add(self._unshareable, query)
        self._found.forget(self._own.tenant, query)
        self._shared.pop((self._own.tenant.versions, query), None)

    def forget(self, query: str) -> None:
        """Drop the tenant's statement of that text, if there is one: its tables may not be what they were."""
        self._found.forget(self._own.tenant, query)
        self._forget(self._own, query)

    def forget_tenant(self) -> None:
        """Drop the tenant's statements: its tables are not what they were."""
        for query in list(self._own.kept):
            self.forget(query)

    def forget_all(self) -> None:
        """Forget all statements, which the server has forgotten, too."""
        for own in self._by_tenant.values():
            own.kept.clear()
        self._shared.clear()
        self._count = 0
        self._dropped.clear()

    def take_dropped(self) -> list[str]:
        """Return the names of the dropped statements that the server still knows, once."""
        if not self._dropped:
            return []
        dropped, self._dropped = self._dropped, []
        return dropped

    def _add(self, texts: set[str], query: str) -> None:
        if len(texts) >= self._size:
            texts.clear()
        texts.add(query)

    def _make_room(self) -> None:
        while self._count > self._size or len(self._by_tenant) > max(self._size, 1):
            tenant, oldest = next(iter(self._by_tenant.items()))
            if oldest is self._own:
                self._forget(oldest, next(iter(oldest.kept)))
                continue
            del self._by_tenant[tenant]
            for query in list(oldest.kept):
                self._forget(oldest, query)

    def _forget(self, own: _Own, query: str) -> None:
        found = own.kept.pop(query, None)
        if found is None:
            return
        self._count -= 1
        self._dropped.append(found.statement.name)
        if self._shared.get((own.tenant.versions, query)) is found:
            del self._shared[own.tenant.versions, query]


def _list_parameters(statement: Statement) -> list[str] | None:
    """Return the types of the parameters of *statement*, or None if one of them may lose something."""
    names = []
    for parameter in statement._get_parameters():  # noqa: SLF001  (what PreparedStatement.get_parameters() returns)
        name = parameter.name.removesuffix("[]")
        if name not in _LOSSLESS or parameter.schema != "pg_catalog":
            return None
        names.append(name)
    return names


def _list_types(statement: Statement) -> Types:
    parameters = tuple(parameter.oid for parameter in statement._get_parameters())  # noqa: SLF001  (as above)
    return parameters, tuple(column.type.oid for column in statement._get_attributes())  # noqa: SLF001  (as below)


def _returns_built_in_types(statement: Statement) -> bool:
    for column in statement._get_attributes():  # noqa: SLF001  (what PreparedStatement.get_attributes() returns)
        # A record may have fields of any type.
        if column.type.schema != "pg_catalog" or column.type.name.removesuffix("[]") == "record":
            return False
    return True


def _fits(argument: object, types: tuple[type, ...]) -> bool:
    kind = type(argument)
    # For Python True is a number.
    return argument is None or kind in types or (kind is not bool and isinstance(argument, types))


def _is_list_of(argument: object, types: tuple[type, ...]) -> bool:
    # PostgreSQL's arrays are asyncpg's lists. Where no array is expected, a list is an error.
    return type(argument) is list and all(_fits(item, types) for item in argument)
