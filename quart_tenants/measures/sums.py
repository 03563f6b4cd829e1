"""Add up the figures of several workers, or those of one and of the worker that it has replaced."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from quart_tenants.measures.metric_names import TOTAL
from quart_tenants.measures.stats import NOW, Stats, TenantStats

# The parts with numbers of their own. Tenants and the app's own numbers are added by name.
_COUNTED = tuple(part.name for part in fields(Stats) if is_dataclass(part.type))


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker of a server.

    Attributes:
        stats: What was counted at its place since the server began, also by workers before it; None if nothing was.
        name: Its label.
        starts: How often a worker was started at this place.
        is_up: Whether it gives figures. Those of one that is gone still count.
    """

    stats: Stats | None
    name: str = "0"
    starts: int = 1
    is_up: bool = True


def add_up(first: Stats, second: Stats) -> Stats:
    """Return the sum of what both have counted. What is so now, such as the size of the pool, is that of *second*."""
    added: Any = {name: _add(getattr(first, name), getattr(second, name)) for name in _COUNTED}
    totals = {name for name in first.figures.keys() | second.figures.keys() if name.endswith(TOTAL)}
    figures = {name: first.figures.get(name, 0) + second.figures.get(name, 0) for name in totals}
    tenants = {tenant.slug: tenant for tenant in first.tenants}
    for tenant in second.tenants:
        tenants[tenant.slug] = _add(tenants.get(tenant.slug, TenantStats(tenant.slug)), tenant)
    return replace(second, **added, tenants=tuple(tenants.values()), figures=second.figures | figures)


def _add(first: Any, second: Any) -> Any:
    if isinstance(second, dict):
        return {name: value + first.get(name, 0) for name, value in second.items()}
    if isinstance(second, tuple):
        return tuple(map(sum, zip(first, second, strict=True)))
    if isinstance(second, int | float):
        return first + second
    names = [field.name for field in fields(second) if NOW not in field.metadata]
    return replace(second, **{name: _add(getattr(first, name), getattr(second, name)) for name in names})
