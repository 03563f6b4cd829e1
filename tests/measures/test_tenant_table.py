"""The table that counts what each tenant did, and remembers the busiest."""

import random

from quart_tenants.measures.stats import TENANT_FIGURES, TenantStats
from quart_tenants.measures.tenant_table import TenantTable
from quart_tenants.tenant import SchemaName, Tenant, parse_slug


def make_tenant(number: int, slug: str = "") -> Tenant:
    """Return a tenant that is in no database."""
    name = slug or f"t{number}"
    return Tenant(number, parse_slug(name), SchemaName(name), name)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now


def list_names(shown: tuple[TenantStats, ...]) -> list[str]:
    """Return the slugs of *shown*."""
    return [tenant.slug for tenant in shown]


def test_table_does_not_grow_with_the_fleet() -> None:
    """However many tenants there are, some are counted by themselves, and nothing that they did is lost."""
    table = TenantTable(20)
    largest = 0

    for number in range(10_000):
        table.get(make_tenant(number)).requests += 1
        largest = max(largest, len(table))
    shown, others = table.show()

    assert largest <= 2000
    assert len(shown) == 20
    assert others.requests + sum(tenant.requests for tenant in shown) == 10_000


def test_sum_of_everything_is_whole_whoever_is_named() -> None:
    """It has what belongs to no tenant, too, and what was counted under a name that is not told any more."""
    table = TenantTable(2)

    for number in range(1, 1001):
        table.get(make_tenant(number % 5)).requests += 1
        table.get(None).requests += 1
        if number % 7 == 0:
            table.name([f"t{number % 3}"])
        if number % 11 == 0:
            table.show()
        assert table.sum_up().requests == 2 * number
    shown, others = table.show()

    assert others.requests + sum(tenant.requests for tenant in shown) < 1000


def test_sum_of_everything_never_goes_down() -> None:
    """Not by a rounding, either: Prometheus would take it for a worker that was started anew."""
    table, drawn = TenantTable(2), random.Random(1)  # noqa: S311  (no secret)
    before = 0.0

    for number in range(5000):
        tenant = make_tenant(drawn.randrange(5)) if drawn.random() < 0.9 else None
        table.get(tenant).block_seconds += drawn.random() / 3
        sums = [table.sum_up().block_seconds]
        if number % 3 == 0:
            table.show()
            sums.append(table.sum_up().block_seconds)
        assert before <= sums[0] <= sums[-1]
        before = sums[-1]


def test_busiest_tenants_are_named() -> None:
    """A tenant with more requests than others is named, also among thousands that ask once."""
    table = TenantTable(3)

    for number in range(5000):
        table.get(make_tenant(number)).requests += 1
        if number % 10 == 0:
            table.get(make_tenant(99_999, "acme")).requests += 1
    shown, _ = table.show()

    assert "acme" in list_names(shown)


def test_tenant_that_has_become_busy_is_named_soon() -> None:
    """What happened long ago counts less than what happens now."""
    clock = Clock()
    table = TenantTable(1, clock)
    table.get(make_tenant(1, "acme")).requests += 1000
    table.get(make_tenant(2, "globex")).requests += 1
    before = list_names(table.show()[0])

    for _ in range(12):
        clock.now += 10
        table.get(make_tenant(2, "globex")).failed_logins += 10
        table.show()

    assert before == ["acme"]
    assert list_names(table.show()[0]) == ["globex"]


def test_numbers_of_the_others_never_go_down() -> None:
    """Prometheus takes a number that has gone down for a program that was started anew."""
    chosen = random.Random(7)  # noqa: S311
    clock = Clock()
    table = TenantTable(5, clock)
    before: dict[str, tuple[float, ...]] = {}
    changes = 0

    for _ in range(300):
        for _ in range(50):
            counts = table.get(make_tenant(int(chosen.paretovariate(0.6)) % 2000))
            counts.requests += 1
            counts.block_seconds += chosen.random()
        clock.now += 4
        shown, others = table.show()
        now = {tenant.slug: tuple(getattr(tenant, name) for name in TENANT_FIGURES) for tenant in (*shown, others)}
        changes += now.keys() != before.keys()
        for slug in now.keys() & before.keys():
            assert all(later >= earlier for later, earlier in zip(now[slug], before[slug], strict=True))
        before = now

    # Negative control: had nobody been replaced among the named, this would say nothing.
    assert changes > 5


def test_name_is_shown_once() -> None:
    """A name that has gone from a dropped tenant to a new one has one line: Prometheus refuses two."""
    table = TenantTable(5)
    table.get(make_tenant(1, "acme")).requests += 5
    table.get(make_tenant(2, "acme")).requests += 2

    shown, others = table.show()

    assert [(tenant.slug, tenant.requests) for tenant in shown] == [("acme", 7)]
    assert others.requests == 0


def test_renamed_tenant_is_shown_by_its_new_name() -> None:
    """What a tenant did is told by the name that it had then."""
    table = TenantTable(5)
    table.get(make_tenant(1, "acme")).requests += 5
    table.get(make_tenant(1, "newname")).requests += 1

    shown, _ = table.show()

    assert [(tenant.slug, tenant.requests) for tenant in shown] == [("acme", 5), ("newname", 1)]


def test_no_tenant_is_named_where_none_may_be() -> None:
    """With `TENANTS_METRICS_TENANTS=0` all tenants are one line."""
    table = TenantTable(0)
    table.get(make_tenant(1, "acme")).requests += 5

    shown, others = table.show()

    assert shown == ()
    assert others.requests == 5
