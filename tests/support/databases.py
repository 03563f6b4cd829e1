"""Databases for tests: a template made once, cloned for each test."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import asyncpg

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, parse_slug

ISOLATION_TENANTS = ("acme", "globex")
DEMO_TENANTS = ("company1", "company2")
REFERENCE_FILES = get_resource_path("sql/tenant")
"""The migrations of the reference app, which make the tables of most tests."""
DEMO_SQL = Path(__file__).parents[2] / "sql" / "demo"


def name_database(url: str, name: str) -> str:
    """Return *url* with the database *name*."""
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}/{name}{query}"


def make_name() -> str:
    """Return a name that no database has."""
    return f"qt_{secrets.token_hex(6)}"


async def copy_database(connection: "asyncpg.Connection[asyncpg.Record]", name: str, template: str) -> None:
    """Make the database *name*. Copying files is quicker than PostgreSQL's usual way, which logs each page."""
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")


@asynccontextmanager
async def new_database(server_url: str, template: str = "template0") -> AsyncIterator[str]:
    """Make a database, yield its URL, and drop it with whoever is still connected."""
    name = make_name()
    connection = await asyncpg.connect(server_url)
    try:
        await copy_database(connection, name, template)
        try:
            yield name_database(server_url, name)
        finally:
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        await connection.close()


class DatabaseStock:
    """Copies of one template. The next one is made, and used ones are dropped, while tests run.

    `with DatabaseStock(server_url, template) as stock:` has a thread with one connection of its own.
    """

    def __init__(self, server_url: str, template: str) -> None:
        self._server_url = server_url
        self._template = template
        self._runner = asyncio.Runner()
        self._connection: asyncpg.Connection[asyncpg.Record]
        self._thread = ThreadPoolExecutor(1)
        self._next: Future[str]
        self._dropped: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._thread.submit(self._connect).result()
        self._next = self._thread.submit(self._make)
        return self

    def __exit__(self, *_: object) -> None:
        self.drop(self._next.result())
        for dropped in self._dropped:
            dropped.result()
        self._thread.submit(self._close).result()
        self._thread.shutdown()

    async def take(self) -> str:
        """Return the name of a copy that nobody else has."""
        ready, self._next = self._next, self._thread.submit(self._make)
        return await asyncio.wrap_future(ready)

    def drop(self, name: str) -> None:
        """Drop a copy soon, with whoever is still connected."""
        self._dropped.append(self._thread.submit(self._drop, name))

    def _connect(self) -> None:
        self._connection = self._runner.run(asyncpg.connect(self._server_url))

    def _make(self) -> str:
        name = make_name()
        self._runner.run(copy_database(self._connection, name, self._template))
        return name

    def _drop(self, name: str) -> None:
        self._runner.run(self._connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    def _close(self) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()


@contextmanager
def new_database_between_loops(server_url: str, template: str = "template0") -> Iterator[str]:
    """Make a database as `new_database` does, for a fixture that outlives a test's event loop."""
    with asyncio.Runner() as runner:
        manager = new_database(server_url, template)
        url = runner.run(manager.__aenter__())
        try:
            yield url
        finally:
            runner.run(manager.__aexit__(None, None, None))


async def drop_for_good(database: Database, slug: Slug) -> None:
    """Drop and purge a tenant, and let that be long ago, so that its name is free."""
    await drop_tenant(database, slug)
    await purge_trash(database, settings=Settings(migrations_dir=REFERENCE_FILES), slugs=[slug])
    await let_names_rest(database)


async def let_names_rest(database: Database) -> None:
    """Let it be long ago that tenants were dropped, so that their names are free."""
    async with database.connection() as connection:
        await connection.execute("UPDATE quart_tenants.resting_names SET free_at = free_at - interval '1 day'")


async def fill_template(url: str) -> None:
    """Make the registry, two empty tenants for the isolation tests and the two companies of the seed."""
    settings = Settings(migrations_dir=REFERENCE_FILES, database_url=url)
    async with await Database.open(settings, max_size=1) as database:
        await init_registry(database)
        for slug in ISOLATION_TENANTS:
            await create_tenant(database, parse_slug(slug), slug.title(), settings=settings)
        for slug in DEMO_TENANTS:
            first_rows = (DEMO_SQL / f"{slug}.sql").read_text(encoding="utf-8")
            await create_tenant(database, parse_slug(slug), slug, settings=settings, first_rows=first_rows)
