"""A real PostgreSQL for every test: the embedded one, or the one that `TEST_DATABASE_URL` names."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Generator, Iterator

import hypothesis
import pytest
from quart.testing.app import TestApp

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.fast import driver_check
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant, parse_slug
from quart_tenants.testing.databases import (
    DatabaseStock,
    name_database,
    new_database,
    new_database_between_loops,
)
from tests.support.databases import REFERENCE_FILES, fill_template
from tests.support.patience import DEADLINE
from tests.support.pgbouncer import PROGRAM, SWALLOWS_PATH, PgBouncer, empty_default_path, run_pgbouncer
from tests.support.roles import dropping_roles, set_up_roles
from tests.support.web_lender import WebLender

# No test fails for being slow: the machines are shared. "--hypothesis-profile thorough" tries five times as much.
_STEADY = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("steady", _STEADY)
hypothesis.settings.register_profile("thorough", _STEADY, max_examples=500)
hypothesis.settings.load_profile("steady")

# Tests use the programs of the embedded PostgreSQL.
POSTGRESQL_PROGRAMS = ("initdb", "pg_ctl", "pg_dump", "pg_dumpall", "pg_restore", "postgres", "psql")
OLD_VERSION = "9.0"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options by which the suite runs with an asyncpg whose inside is another, and behind PgBouncer."""
    parser.addoption(
        "--plain-driver", action="store_true", help="run as with an asyncpg whose inside is unknown: plain connections"
    )
    parser.addoption(
        "--pgbouncer",
        action="store_true",
        help="let the tests' databases be reached through a PgBouncer with two connections",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to pass tests through a PgBouncer that is not there: all would be left out, and none would have failed."""
    if config.getoption("--pgbouncer") and PROGRAM is None:
        raise pytest.UsageError("PgBouncer is not installed: it is Debian's package pgbouncer")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what is imported and collected out of garbage collections: all of it stays until the end.

    Otherwise each collection looks through these hundreds of thousands of objects again.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def plain_driver(request: pytest.FixtureRequest) -> bool:
    """Whether all connections are plain ones, because asyncpg's inside is another."""
    return bool(request.config.getoption("--plain-driver"))


@pytest.fixture
def fast_driver_only(plain_driver: bool) -> None:
    """Skip a test about what only fast connections do."""
    if plain_driver:
        pytest.skip("only fast connections do this")


@pytest.fixture
def alone_only(fast_driver_only: None, pooler: PgBouncer | None) -> None:
    """Skip a test about what only a fast connection does that has its server process to itself."""
    if pooler is not None:
        pytest.skip("behind a pooler no connection does this")


@pytest.fixture(scope="session", autouse=True)
def _strange_asyncpg(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the driver miss something in asyncpg, where the option says so."""
    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--plain-driver"):
            patch.setitem(driver_check._CONNECTION_METHODS, "_renamed_by_another_version", ())
        yield


@pytest.fixture(scope="session", autouse=True)
def _patient_test_app() -> Iterator[None]:
    """Let an app take its time to start and to stop: Quart's `test_app()` gives each of them six seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TestApp.__init__, "__defaults__", (DEADLINE, DEADLINE))
        yield


@pytest.fixture
def foreground() -> Iterator[None]:
    """Let programs hear Ctrl-C also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def timings() -> Timings:
    """How long pools wait for what. On a busy machine nobody asks again for a tenant's schema."""
    return Timings(known=60)


@pytest.fixture(scope="session", autouse=True)
def _environment_without_settings() -> Iterator[None]:
    """Keep the developer's own settings, and PostgreSQL's variables, out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("QUART_", "PG")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_other_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put programs before those of a PostgreSQL that the machine may have: they call themselves old, and do nothing."""
    folder = tmp_path_factory.mktemp("path")
    for name in POSTGRESQL_PROGRAMS:
        (folder / name).write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo "{name} (PostgreSQL) {OLD_VERSION}" && exit 0\n'
            "echo 'a test has run a program of PostgreSQL that is only on PATH' >&2\nexit 97\n"
        )
        (folder / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        yield


@pytest.fixture(scope="session")
def server_url(tenants_server_url: str) -> str:
    """The server's URL, with a database to connect to for making others. The test kit has the same server."""
    return tenants_server_url


@pytest.fixture(scope="session")
def pooler(request: pytest.FixtureRequest, server_url: str) -> Iterator[PgBouncer | None]:
    """A PgBouncer before the server, where the option says so."""
    if not request.config.getoption("--pgbouncer"):
        yield None
        return
    with asyncio.Runner() as runner:
        running = run_pgbouncer(server_url, **SWALLOWS_PATH)
        try:
            yield runner.run(running.__aenter__())
        finally:
            runner.run(running.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def template(server_url: str) -> Iterator[str]:
    """The name of a database with a registry and four tenants."""
    with new_database_between_loops(server_url) as url:
        asyncio.run(fill_template(url))
        yield url.partition("?")[0].rpartition("/")[2]


@pytest.fixture
async def empty_database_url(server_url: str) -> AsyncIterator[str]:
    """The URL of a database of the test's own, with nothing in it."""
    async with new_database(server_url) as url:
        yield url


@pytest.fixture(scope="session")
def stock(server_url: str, template: str) -> Iterator[DatabaseStock]:
    """Copies of the template, one of which is always ready."""
    with DatabaseStock(server_url, template) as stock:
        yield stock


@pytest.fixture
async def direct_url(server_url: str, stock: DatabaseStock) -> AsyncIterator[str]:
    """The URL of a database of the test's own, at the server itself: tenants acme, globex, company1 and company2."""
    name = await stock.take()
    yield name_database(server_url, name)
    stock.drop(name)


@pytest.fixture
async def database_url(direct_url: str, pooler: PgBouncer | None) -> AsyncIterator[str]:
    """The URL of the database of `direct_url` by which the app reaches it."""
    if pooler is None:
        yield direct_url
        return
    await empty_default_path(direct_url)
    yield pooler.url(direct_url)
    # Here, so that its last words stand in the report of the test in which it ended.
    await pooler.revive()


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings for `database_url`. A busy machine may take long to connect."""
    return Settings(
        migrations_dir=REFERENCE_FILES,
        database_url=database_url,
        pool_max_size=5,
        connect_timeout=60.0,
        acquire_timeout=60.0,
    )


@pytest.fixture
async def database(settings: Settings, timings: Timings) -> AsyncIterator[Database]:
    """A pool on `database_url`."""
    async with await WebLender.open(settings, timings=timings) as database:
        yield database


@pytest.fixture
async def roles_settings(server_url: str, database_url: str) -> AsyncIterator[Settings]:
    """Settings for `database_url`, where each tenant has a role of its own."""
    settings = Settings(
        migrations_dir=REFERENCE_FILES, database_url=database_url, pool_max_size=5, role_per_tenant=True
    )
    async with dropping_roles(server_url, database_url):
        async with await WebLender.open(settings, max_size=1) as database:
            await set_up_roles(database)
        yield settings


@pytest.fixture
async def roles_database(roles_settings: Settings, timings: Timings) -> AsyncIterator[Database]:
    """A pool of one connection on `roles_settings`."""
    async with await WebLender.open(roles_settings, max_size=1, timings=timings) as database:
        yield database


@pytest.fixture
async def one_connection_database(settings: Settings, timings: Timings) -> AsyncIterator[Database]:
    """A pool of one connection, which so serves one tenant after the other."""
    async with await WebLender.open(settings, max_size=1, timings=timings) as database:
        yield database


@pytest.fixture
async def acme(database: Database) -> Tenant:
    """One tenant."""
    return await get_tenant(database, parse_slug("acme"))


@pytest.fixture
async def globex(database: Database) -> Tenant:
    """Another tenant."""
    return await get_tenant(database, parse_slug("globex"))
