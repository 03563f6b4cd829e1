"""Which statements are kept: never more than the size, and each name that the server has is known or was closed."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_tenants.postgres.driver.block_statements import TenantKey
from quart_tenants.postgres.driver.statement_cache import StatementCache

STEPS = ("turn", "keep", "lossy", "forget", "forget tenant", "forget all", "close")


@pytest.mark.parametrize("size", [1, 3])
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 6)), max_size=80))
def test_server_has_what_is_known(size: int, steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: what the server has is what is counted, and what is kept is bounded."""
    cache = StatementCache(size)
    cache.turn_to(TenantKey(0, 1))
    server: set[str] = set()
    for count, (step, number) in enumerate(steps):
        query = f"query {number}"
        if step == "turn":
            cache.turn_to(TenantKey(number, 1))
        elif step in ("keep", "lossy") and cache.takes(query):
            name = f"statement {count}"
            server.add(name)
            kind = "int8" if step == "keep" else "float8"
            parameter = SimpleNamespace(name=kind, schema="pg_catalog")
            cache.keep(query, SimpleNamespace(name=name, _get_parameters=lambda parameter=parameter: [parameter]))
        elif step == "forget":
            cache.forget(query)
        elif step == "forget tenant":
            cache.forget_tenant()
        elif step == "forget all":
            server.clear()
            cache.forget_all()
        elif step == "close":
            server -= set(cache.take_dropped())

        assert len(cache) == len(server)
        found = cache.find(query, (7,))
        assert found is None or found.name in server

    server -= set(cache.take_dropped())
    assert len(cache) == len(server) <= size
