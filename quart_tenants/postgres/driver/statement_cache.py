"""Keep the prepared statements of one connection, by tenant and version.

What PostgreSQL knows of a prepared statement's parameters and columns was so in one schema at one moment. Another
tenant's tables may differ, in a migration or by somebody's hand: a number would be sent in fewer bits than the column
has, and stored so without an error. So tenants at different versions share no statement, nor does one tenant before and
after a migration. Of what is changed by hand the server says so where columns of the answer are concerned, and the
statement is prepared anew. It does not where a parameter is: so none is kept that has one of a type that loses anything
silently, and none is used for an argument that its parameter might cut.

Preparing costs several executions. So tenants of one version begin with a shared statement, if its parameters are of
types from which every cast that PostgreSQL makes by itself is exact or an error. Whoever uses it often gets an own one,
whose plan stays when the connection changes hands, and so does a tenant that the server finds to differ.
"""

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

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
# Of them, those whose value reaches a column of any other type exactly, as its text, or not at all. A numeric would be
# rounded for an integer, JSON is written in another way as text.
_SHAREABLE = frozenset(("bool", "int2", "int4", "int8", "text", "uuid", "varchar"))
_OWN_AFTER = 8
"""Uses of a shared statement. Preparing costs as much as that many times making its plan for another tenant."""
LONGEST = 15_000
"""Characters. As in asyncpg: longer statements are mostly made for one occasion, and not worth being remembered."""

Statement: TypeAlias = Any
"""asyncpg's own state of a prepared statement, which it does not publish."""
TenantKey: TypeAlias = tuple[int, int]
"""A tenant's number, and the version of its tables."""
NOBODY: TenantKey = (0, 0)
"""No tenant's, for blocks that write every name in full."""
_Parameters: TypeAlias = tuple[tuple[type, ...], ...]


class StatementCache:
    """At most *size* statements: the shared ones, and those of the tenants that were served last."""

    __slots__ = ("_apart", "_by_tenant", "_count", "_dropped", "_lossy", "_own", "_shared", "_size", "_tenant")

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._by_tenant: OrderedDict[TenantKey, _Own] = OrderedDict()
        self._tenant = NOBODY
        self._own = _Own()
        # By version and text.
        self._shared: OrderedDict[tuple[int, str], _Kept] = OrderedDict()
        # Whose tables are not what others of their version have.
        self._apart: set[TenantKey] = set()
        self._dropped: list[str] = []
        # Texts that are not to be kept.
        self._lossy: set[str] = set()

    def turn_to(self, tenant: TenantKey) -> None:
        """Let what follows be about *tenant*."""
        self._tenant = tenant
        own = self._by_tenant.get(tenant)
        if own is None:
            self._own = self._by_tenant[tenant] = _Own()
            self._make_room()
        else:
            self._own = own
            self._by_tenant.move_to_end(tenant)

    def __len__(self) -> int:
        """Return how many statements the server knows for this, those included that it is still to forget."""
        return self._count + len(self._dropped)

    def find(self, query: str, arguments: Sequence[object]) -> Statement | None:
        """Return the statement of that text for the tenant, if one is kept that takes *arguments* as they are."""
        found = self._own.kept.get(query)
        if found is None:
            found = self._find_shared(query)
            if found is None:
                return None
            uses = self._own.uses
            uses[query] = uses.get(query, 0) + 1
        statement, parameters, _ = found
        if len(arguments) != len(parameters):
            return None
        for argument, types in zip(arguments, parameters, strict=True):
            if not _fits(argument, types) and not _is_list_of(argument, types):
                return None
        return statement

    def takes(self, query: str) -> bool:
        """Return whether a statement of that text may be kept, and none is that the tenant uses."""
        if query in self._own.kept or query in self._lossy or self._find_shared(query) is not None:
            return False
        return self._size > 0 and len(query) <= LONGEST

    def keep(self, query: str, statement: Statement) -> None:
        """Keep *statement* for the tenant, and for others if that is safe, or drop it."""
        kept = _judge(statement)
        version = self._tenant[1]
        if kept is None or query in self._own.kept:
            self._dropped.append(statement.name)
            if len(self._lossy) >= self._size:
                self._lossy.clear()
            self._lossy.add(query)
            return
        if kept.shareable and self._tenant not in self._apart and (version, query) not in self._shared:
            self._shared[version, query] = kept
        else:
            self._own.kept[query] = kept
        self._count += 1
        self._make_room()

    def forget(self, query: str) -> None:
        """Drop the tenant's statement of that text, if there is one, and have it share none any more."""
        self._stay_apart()
        found = self._own.kept.pop(query, None)
        if found is not None:
            self._count -= 1
            self._dropped.append(found.statement.name)

    def forget_tenant(self) -> None:
        """Drop the tenant's statements, and have it share none: its tables are not what they were."""
        self._stay_apart()
        self._forget(self._own)

    def forget_all(self) -> None:
        """Forget all statements, which the server has forgotten, too."""
        self._by_tenant.clear()
        self._shared.clear()
        self._own = self._by_tenant[self._tenant] = _Own()
        self._count = 0
        self._dropped.clear()

    def take_dropped(self) -> list[str]:
        """Return the names of what was dropped and is still known to the server, once."""
        if not self._dropped:
            return []
        dropped, self._dropped = self._dropped, []
        return dropped

    def _find_shared(self, query: str) -> "_Kept | None":
        if self._tenant in self._apart or self._own.uses.get(query, 0) >= _OWN_AFTER:
            return None
        return self._shared.get((self._tenant[1], query))

    def _stay_apart(self) -> None:
        if len(self._apart) >= self._size:
            self._apart.clear()
        self._apart.add(self._tenant)

    def _make_room(self) -> None:
        while self._count > self._size or len(self._by_tenant) > self._size:
            tenant, oldest = next(iter(self._by_tenant.items()))
            if oldest is not self._own:
                del self._by_tenant[tenant]
                self._forget(oldest)
                continue
            # Nobody else has any of their own.
            kept = (
                self._own.kept.pop(next(iter(self._own.kept)))
                if self._own.kept
                else self._shared.popitem(last=False)[1]
            )
            self._count -= 1
            self._dropped.append(kept.statement.name)

    def _forget(self, own: "_Own") -> None:
        self._count -= len(own.kept)
        self._dropped += [kept.statement.name for kept in own.kept.values()]
        own.kept.clear()


class _Kept(NamedTuple):
    """A statement, what each of its parameters takes as it is, and whether tenants may share it."""

    statement: Statement
    parameters: _Parameters
    shareable: bool


class _Own:
    """One tenant's statements, and how often it has used a shared one."""

    __slots__ = ("kept", "uses")

    def __init__(self) -> None:
        self.kept: dict[str, _Kept] = {}
        self.uses: dict[str, int] = {}


def _judge(statement: Statement) -> _Kept | None:
    """Return how *statement* may be kept, or None if one of its parameters may lose something."""
    found, shareable = [], True
    for parameter in statement._get_parameters():  # noqa: SLF001  (what PreparedStatement.get_parameters() returns)
        name = parameter.name.removesuffix("[]")
        types = _LOSSLESS.get(name)
        if types is None or parameter.schema != "pg_catalog":
            return None
        found.append(types)
        shareable = shareable and name in _SHAREABLE
    return _Kept(statement, tuple(found), shareable)


def _fits(argument: object, types: tuple[type, ...]) -> bool:
    kind = type(argument)
    # For Python True is a number.
    return argument is None or kind in types or (kind is not bool and isinstance(argument, types))


def _is_list_of(argument: object, types: tuple[type, ...]) -> bool:
    # PostgreSQL's arrays are asyncpg's lists. Where no array is expected, a list is an error.
    return type(argument) is list and all(_fits(item, types) for item in argument)
