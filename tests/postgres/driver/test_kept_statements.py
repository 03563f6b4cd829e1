"""Which statements are kept: never more than the size, and each name that the server has is known or was closed."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quart_tenants.postgres.driver.block_statements import TenantKey
from quart_tenants.postgres.driver.fast.statement_cache import FoundTypes, StatementCache

STEPS = ("turn", "migrate", "keep", "lossy", "text", "stop sharing", "forget", "forget tenant", "forget all", "close")


PARAMETERS = {"keep": "int8", "text": "text", "lossy": "float8"}


def make_statement(name: str, parameter: str) -> Any:
    """Return what asyncpg's state of a statement tells, with one parameter and a column of the same type."""
    kind = SimpleNamespace(name=parameter, schema="pg_catalog", oid=hash(parameter))
    return SimpleNamespace(
        name=name, _get_parameters=lambda: [kind], _get_attributes=lambda: [SimpleNamespace(type=kind)]
    )


@pytest.mark.parametrize("size", [1, 3])
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 6)), max_size=80))
def test_server_has_what_is_known(size: int, steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: what the server has is what is counted, and what is kept is bounded."""
    cache = StatementCache(size, FoundTypes(100))
    cache.turn_to(TenantKey(0, 1))
    version = 1
    server: set[str] = set()
    # By whose version and for which text they were prepared.
    made: dict[str, tuple[int, str]] = {}
    for count, (step, number) in enumerate(steps):
        query = f"query {number}"
        if step == "turn":
            version = 1
            cache.turn_to(TenantKey(number, version))
        elif step == "migrate":
            version = 2
            cache.turn_to(TenantKey(number, version))
        elif step in PARAMETERS and cache.takes(query):
            statement = make_statement(f"statement {count}", PARAMETERS[step])
            server.add(statement.name)
            made[statement.name] = version, query
            cache.keep(query, statement)
        elif step == "stop sharing":
            cache.stop_sharing(query)
            assert cache.find_shared(query, (7,)) is None
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
        shared = cache.find_shared(query, (7,))
        assert shared is None or (shared.name in server and made[shared.name] == (version, query))
        assert shared is None or found is None

    server -= set(cache.take_dropped())
    assert len(cache) == len(server) <= size
