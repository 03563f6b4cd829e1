"""A real Hypercorn, shared by the tests of a module that change nothing for each other."""

from collections.abc import Iterator

import pytest

from quart_tenants.testing.databases import new_database_between_loops
from tests.support.processes import QUICK_PASSWORDS, Server, run_server


@pytest.fixture(scope="module")
def module_database_url(server_url: str, template: str) -> Iterator[str]:
    """The URL of a database of the module's own, with the two companies in it."""
    with new_database_between_loops(server_url, template) as url:
        yield url


@pytest.fixture(scope="module")
def server(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The reference app on Hypercorn, one process."""
    with run_server(module_database_url, tmp_path_factory.mktemp("server"), **QUICK_PASSWORDS) as server:
        yield server
