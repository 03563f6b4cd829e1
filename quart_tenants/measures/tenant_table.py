"""Count for each tenant what it did, and remember only the busiest tenants.

The counts of a tenant may begin anew, and those of all others together never go down: Prometheus takes a number that is
lower than before for the number of a program that was started anew, and would show a peak that never was.
"""

from collections.abc import Callable
from time import monotonic
from typing import Any

from quart_tenants.measures.stats import TENANT_FIGURES, TenantStats
from quart_tenants.tenant import Tenant

# Tenants that are counted, for each one that may be named, and at least so many. Twice as many are in memory at most.
_COUNTED_PER_NAMED = 5
_COUNTED_AT_LEAST = 1000
_ELECT_EVERY = 10.0
"""Seconds. Whoever has become busy is named after this time at the latest."""
_KEPT = 0.5
"""How much of what a tenant did before the last election counts in the next one."""
# What makes a tenant busy, in requests: a second in blocks, a refused request, a wrong password.
_SECOND, _REFUSED, _FAILED_LOGIN = 20, 10, 10


class TenantCounts:
    """What one tenant did. The numbers are those of `TenantStats`."""

    __slots__ = ("_busy_before", "_told", "busy", "slug", *TENANT_FIGURES)
    requests: int
    refused: int
    errors: int
    bytes: int
    blocks: int
    block_seconds: float
    statements: int
    statement_seconds: float
    rows: int
    failed_logins: int

    def __init__(self, slug: str) -> None:
        self.slug = slug
        self.requests = self.refused = self.errors = self.bytes = self.blocks = 0
        self.statements = self.rows = self.failed_logins = 0
        self.block_seconds = self.statement_seconds = 0.0
        # How busy the tenant was lately, at the last election.
        self.busy = 0.0
        self._busy_before = 0.0
        # What is in the others' counts already.
        self._told: tuple[float, ...] = (0,) * len(TENANT_FIGURES)

    def get_weight(self) -> float:
        """Return how busy the tenant was lately."""
        return self.busy * _KEPT + self._sum_up() - self._busy_before

    def elect(self) -> None:
        """Let an election begin to count anew."""
        self.busy = self.get_weight()
        self._busy_before = self._sum_up()

    def list_figures(self) -> tuple[float, ...]:
        """Return the numbers, in the order of `TENANT_FIGURES`."""
        return tuple(getattr(self, name) for name in TENANT_FIGURES)

    def move_to(self, others: "TenantCounts") -> None:
        """Add to *others* what was counted since the last call of this or of `keep`."""
        figures = self.list_figures()
        for name, now, told in zip(TENANT_FIGURES, figures, self._told, strict=True):
            setattr(others, name, getattr(others, name) + now - told)
        self._told = figures

    def keep(self) -> None:
        """Let what was counted until now be in no other counts, because it is shown by itself."""
        self._told = self.list_figures()

    def _sum_up(self) -> float:
        return (
            self.requests + _SECOND * self.block_seconds + _REFUSED * self.refused + _FAILED_LOGIN * self.failed_logins
        )


class TenantTable:
    """The counts of the busiest tenants, and those of all others together. Its size does not grow with the fleet."""

    __slots__ = ("_by_id", "_clock", "_counted", "_elected_at", "_named", "_others", "_size")

    def __init__(self, named: int, clock: Callable[[], float] = monotonic) -> None:
        """Make an empty table.

        Args:
            named: How many tenants are shown by name at most.
            clock: Returns seconds.
        """
        self._size = named
        self._counted = max(named * _COUNTED_PER_NAMED, _COUNTED_AT_LEAST)
        self._clock = clock
        self._by_id: dict[int, TenantCounts] = {}
        self._others = TenantCounts("")
        self._named: list[TenantCounts] = []
        self._elected_at = float("-inf")

    def __len__(self) -> int:
        """Return how many tenants are counted by themselves."""
        return len(self._by_id)

    def get(self, tenant: Tenant) -> TenantCounts:
        """Return the counts of *tenant*, to be added to at once. They may be gone after the next call."""
        found = self._by_id.get(tenant.id)
        if found is None:
            if len(self._by_id) >= 2 * self._counted:
                self._forget_half()
            found = self._by_id[tenant.id] = TenantCounts(tenant.slug)
        elif found.slug is not tenant.slug:
            found.slug = tenant.slug
        return found

    def show(self) -> tuple[tuple[TenantStats, ...], TenantStats]:
        """Return the busiest tenants, and all others together."""
        now = self._clock()
        if now - self._elected_at >= _ELECT_EVERY or len(self._named) < min(self._size, len(self._by_id)):
            self._elect(now)
        # A name may have gone from a tenant that was dropped or renamed to another one: the busier one is shown.
        shown = {counts.slug: counts for counts in reversed(self._named)}
        for counts in shown.values():
            counts.keep()
        for counts in self._by_id.values():
            # Of those that were kept nothing is left to move.
            counts.move_to(self._others)
        return tuple(_show(counts) for counts in shown.values()), _show(self._others)

    def _elect(self, now: float) -> None:
        # One that was never shown has told all it did to the others by now, or does so here.
        for counts in self._by_id.values():
            counts.elect()
        ranked = sorted(self._by_id.values(), key=lambda counts: counts.busy, reverse=True)
        self._named = ranked[: self._size]
        self._elected_at = now

    def _forget_half(self) -> None:
        ranked = sorted(self._by_id.items(), key=lambda item: item[1].get_weight(), reverse=True)
        named = set(self._named)
        for tenant_id, counts in ranked[self._counted :]:
            if counts in named:
                self._named.remove(counts)
            counts.move_to(self._others)
            del self._by_id[tenant_id]


def _show(counts: TenantCounts) -> TenantStats:
    figures: Any = counts.list_figures()
    return TenantStats(counts.slug, *figures)
