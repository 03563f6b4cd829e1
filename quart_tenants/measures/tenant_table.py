"""Count for each tenant what it did: by its name while it is named, and else in one sum of all others.

What belongs to no tenant is counted, too, and only in the sum of everything.

A name begins at 0 whenever it is given, and the sum of all others never goes down. So the numbers of several workers
may be added up: Prometheus takes a number that is lower than before for that of a program which was started anew, and
would show a peak that never was.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from heapq import nlargest
from operator import itemgetter
from time import monotonic

from quart_tenants.measures.elections import ELECT_EVERY, Election
from quart_tenants.measures.stats import TENANT_FIGURES, TenantStats
from quart_tenants.tenant import Tenant

# Of so many tenants, for each one that may be named, it is known how busy they were; of at least so many.
_KNOWN_PER_NAMED = 5
_KNOWN_AT_LEAST = 1000
_VOTES_PER_NAMED = 2
_KEPT = 0.5
"""How much of what a tenant did before counts after `ELECT_EVERY`."""
# What makes a tenant busy, in requests: a second in blocks, a refused request, a wrong password.
_SECOND, _REFUSED, _FAILED_LOGIN = 20, 10, 10


@dataclass(slots=True, eq=False)
class TenantCounts:
    """What one tenant did. The numbers are those of `TenantStats`."""

    requests: int = 0
    refused: int = 0
    errors: int = 0
    bytes: int = 0
    blocks: int = 0
    block_seconds: float = 0.0
    statements: int = 0
    statement_seconds: float = 0.0
    rows: int = 0
    failed_logins: int = 0

    def get_weight(self) -> float:
        """Return how busy that makes the tenant."""
        return (
            self.requests + _SECOND * self.block_seconds + _REFUSED * self.refused + _FAILED_LOGIN * self.failed_logins
        )

    def add(self, more: "TenantCounts") -> None:
        """Add the numbers of *more*."""
        for name in TENANT_FIGURES:
            setattr(self, name, getattr(self, name) + getattr(more, name))

    def show(self, slug: str) -> TenantStats:
        """Return the numbers as those of the tenant *slug*."""
        return TenantStats(slug, *[getattr(self, name) for name in TENANT_FIGURES])


class TenantTable:
    """The counts of the named tenants, and those of all others together. Its size does not grow with the fleet."""

    __slots__ = (
        "_aged_at",
        "_busy",
        "_clock",
        "_election",
        "_everything",
        "_known",
        "_named",
        "_new",
        "_nobodys",
        "_others",
        "_size",
    )

    def __init__(self, named: int, clock: Callable[[], float] = monotonic) -> None:
        """Make an empty table.

        Args:
            named: How many tenants are shown by name at most.
            clock: Returns seconds.
        """
        self._size = named
        self._known = max(named * _KNOWN_PER_NAMED, _KNOWN_AT_LEAST)
        self._clock = clock
        # By slug: what was counted since the last look, how busy a tenant was before it, and who is named.
        self._new: dict[str, TenantCounts] = {}
        self._busy: dict[str, float] = {}
        self._named: dict[str, TenantCounts] = {}
        self._others = TenantCounts()
        self._nobodys = TenantCounts()
        # Of all tenants, without what is new.
        self._everything = TenantCounts()
        self._aged_at = clock()
        self._election: Election | None = Election(named, clock)

    def __len__(self) -> int:
        """Return how many entries the table has at most for its tenants."""
        return max(len(self._new), len(self._busy))

    def get(self, tenant: Tenant | None) -> TenantCounts:
        """Return the counts of *tenant*, to be added to at once. They may be gone after the next call.

        Args:
            tenant: Whose counts; None for those of what belongs to no tenant.
        """
        if tenant is None:
            return self._nobodys
        found = self._new.get(tenant.slug)
        if found is None:
            if len(self._new) >= self._known:
                self._file()
            found = self._new[tenant.slug] = TenantCounts()
        return found

    def find_busiest(self) -> dict[str, float]:
        """Return how busy some more tenants than may be named were lately, by slug."""
        busy = dict(self._busy)
        for slug, counts in self._new.items():
            busy[slug] = busy.get(slug, 0.0) + counts.get_weight()
        return dict(nlargest(_VOTES_PER_NAMED * self._size, busy.items(), key=itemgetter(1)))

    def name(self, slugs: Iterable[str]) -> None:
        """Name *slugs* and no others, until the next call: all workers together decide, and not this table."""
        self._election = None
        self._name(slugs)

    def show(self) -> tuple[tuple[TenantStats, ...], TenantStats]:
        """Return the named tenants, and all others together."""
        self._take_in()
        return tuple(counts.show(slug) for slug, counts in self._named.items()), self._others.show("")

    def sum_up(self) -> TenantCounts:
        """Return the counts of all tenants and of no tenant together. None of them is ever lower than before."""
        # A sum of what is filed and what is new would be rounded in another way when that is filed, too.
        self._take_in()
        total = replace(self._everything)
        total.add(self._nobodys)
        return total

    def _take_in(self) -> None:
        """File what is new, under the names that are told now."""
        if self._election is not None:
            self._name(self._election.hold([self.find_busiest()]))
        self._file()

    def _name(self, slugs: Iterable[str]) -> None:
        self._named = {slug: self._named.get(slug) or TenantCounts() for slug in slugs}

    def _file(self) -> None:
        """Add what is new to where it belongs."""
        now = self._clock()
        if now - self._aged_at >= ELECT_EVERY:
            self._busy = {slug: weight * _KEPT for slug, weight in self._busy.items()}
            self._aged_at = now
        for slug, counts in self._new.items():
            self._busy[slug] = self._busy.get(slug, 0.0) + counts.get_weight()
            self._named.get(slug, self._others).add(counts)
            self._everything.add(counts)
        self._new.clear()
        if len(self._busy) > 2 * self._known:
            self._busy = dict(nlargest(self._known, self._busy.items(), key=itemgetter(1)))
