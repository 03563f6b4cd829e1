"""Commands on a database of the test's own, or on one that many share."""

from collections.abc import Iterator

import pytest

from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.testing.databases import new_database_between_loops
from tests.web.commands.runs import Run, ask, execute, make_run


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run commands on `database_url`."""
    return make_run(database_url, monkeypatch, capsys)


@pytest.fixture(scope="module")
def shared_url(server_url: str, template: str) -> Iterator[str]:
    """Name one database for all commands that change nothing; it has the schema "old", which is no tenant's."""
    with new_database_between_loops(server_url, template) as url:
        execute(url, "CREATE SCHEMA old")
        yield url


@pytest.fixture
def run_in_vain(shared_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run commands that change nothing; what they leave is compared with what was there."""
    before = ask(shared_url, list_tenants)
    yield make_run(shared_url, monkeypatch, capsys)
    assert ask(shared_url, list_tenants) == before
