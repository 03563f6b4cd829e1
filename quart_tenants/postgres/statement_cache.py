"""Keep the prepared statements of one connection, each for the one tenant that it was prepared for.

What PostgreSQL knows of a prepared statement's parameters and columns was so in one schema at one moment. Another
tenant's tables may differ, in a migration or by somebody's hand: a number would be sent in fewer bits than the column
has, and stored so without an error. So no two tenants share a statement, nor does one tenant before and after a
migration. Of what is changed by hand the server says so where columns of the answer are concerned, and the statement is
prepared anew. It does not where a parameter is: so none is kept that has one of a type that loses anything silently.
"""

from collections import OrderedDict
from typing import Any, TypeAlias

# Of these asyncpg writes a value as it is, or not at all: text for a number is an error, a number too large is one.
# A float is cut to the size of its type, and a time to a date, without a word.
_LOSSLESS = frozenset(
    ("bool", "int2", "int4", "int8", "numeric", "text", "varchar", "bpchar", "uuid", "bytea", "json", "jsonb")
) | {"timestamptz", "oid", "name"}
_LONGEST = 15_000
"""Characters. As in asyncpg: longer ones are mostly made for one occasion."""

Statement: TypeAlias = Any
"""asyncpg's own state of a prepared statement, which it does not publish."""
TenantKey: TypeAlias = tuple[int, int]
"""A tenant's number, and the version of its tables."""


class StatementCache:
    """At most *size* statements, those of the tenants that were served last."""

    __slots__ = ("_by_tenant", "_count", "_dropped", "_own", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._count = 0
        self._by_tenant: OrderedDict[TenantKey, dict[str, Statement]] = OrderedDict()
        self._own: dict[str, Statement] = {}
        self._dropped: list[str] = []

    def turn_to(self, tenant: TenantKey) -> None:
        """Let what follows be about *tenant*."""
        own = self._by_tenant.get(tenant)
        if own is None:
            own = self._by_tenant[tenant] = {}
            self._make_room()
        else:
            self._by_tenant.move_to_end(tenant)
        self._own = own

    def find(self, query: str) -> Statement | None:
        """Return the tenant's statement of that text."""
        return self._own.get(query)

    def takes(self, query: str) -> bool:
        """Return whether a statement of that text may be kept."""
        return self._size > 0 and len(query) <= _LONGEST

    def keep(self, query: str, statement: Statement) -> None:
        """Keep *statement* for the tenant, or drop it if that is not safe."""
        if not _is_lossless(statement):
            self._dropped.append(statement.name)
        elif query not in self._own:
            self._own[query] = statement
            self._count += 1
            self._make_room()

    def forget_tenant(self) -> None:
        """Drop the tenant's statements: its tables are not what they were."""
        self._forget(self._own)
        self._own.clear()

    def forget_all(self) -> None:
        """Forget all statements, which the server has forgotten, too."""
        self._by_tenant.clear()
        self._own = {}
        self._count = 0
        self._dropped.clear()

    def take_dropped(self) -> list[str]:
        """Return the names of what was dropped and is still known to the server, once."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _make_room(self) -> None:
        while self._count > self._size or len(self._by_tenant) > self._size:
            _, oldest = self._by_tenant.popitem(last=False)
            self._forget(oldest)
            if oldest is self._own:
                self._own = {}

    def _forget(self, statements: dict[str, Statement]) -> None:
        self._count -= len(statements)
        self._dropped += [statement.name for statement in statements.values()]


def _is_lossless(statement: Statement) -> bool:
    return all(
        parameter.schema == "pg_catalog" and parameter.name.removesuffix("[]") in _LOSSLESS
        for parameter in statement._get_parameters()  # noqa: SLF001  (what PreparedStatement.get_parameters() returns)
    )
