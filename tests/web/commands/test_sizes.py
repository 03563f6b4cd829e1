"""The command that remembers how large the tenants are."""

import asyncio
import json

import asyncpg
import pytest

from tests.web.commands.runs import Run, execute

pytestmark = pytest.mark.slow


def test_sizes_are_listed_with_their_growth(run: Run, database_url: str) -> None:
    """The largest tenants come first, or those that have grown most; what is not known yet is empty."""
    execute(
        database_url,
        "INSERT INTO quart_tenants.tenant_sizes (tenant_id, day, bytes)"
        " SELECT id, current_date - 9, 1 FROM quart_tenants.tenants WHERE slug = 'globex'",
    )
    execute(
        database_url,
        "INSERT INTO acme.company_data (description) SELECT repeat('x', 500) FROM generate_series(1, 2000)",
    )
    largest = run("sizes")
    one = run("sizes", "--by", "growth", "--most", "1")
    document = json.loads(run("sizes", "--json").out)

    assert largest.status == one.status == 0
    lines = [line.split("\t") for line in largest.out.splitlines()]
    assert {line[0] for line in lines} == {"acme", "company1", "company2", "globex"}
    sizes = [int(line[1]) for line in lines]
    assert sizes == sorted(sizes, reverse=True)
    assert lines[0][0] == "acme"
    assert lines[0][2:] == ["", ""]
    (grown,) = [line.split("\t") for line in one.out.splitlines()]
    assert grown == ["globex", grown[1], f"+{int(grown[1]) - 1}", ""]
    assert document["locked"] == []
    assert document["tenants"][0]["slug"] == "acme"


def test_tenant_that_cannot_be_measured_is_named(run: Run, database_url: str) -> None:
    """Whoever changes a table keeps its tenant from being measured: the command names it, and its status is 1."""
    with asyncio.Runner() as runner:
        other = runner.run(asyncpg.connect(database_url))
        runner.run(other.execute("BEGIN; LOCK TABLE acme.app_user IN ACCESS EXCLUSIVE MODE"))
        outcome = run("sizes")
        runner.run(other.close())

    assert outcome.status == 1
    assert "1 tenant not measured" in outcome.err
    assert "acme" in outcome.err
    assert len(outcome.out.splitlines()) == 3
