"""Make databases for tests: one is filled once, and each test gets a copy of it."""

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Self

import asyncpg

from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres
from quart_tenants.postgres.rehearsal.scratch_database import name_database as name_database

FAST_AND_FORGETFUL = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    # It would look into the template just when that is to be copied.
    "autovacuum": "off",
}
"""Options of a server on which nothing has to survive a crash of the machine."""

# The members before the roles that they are members of, and the owner last: it has granted the memberships.
_LIST_ROLES = """
SELECT rolname::text AS name FROM pg_catalog.pg_roles WHERE starts_with(rolname::text, $1) ORDER BY rolname DESC
"""
_ROOM = 2 * 1024**3  # bytes, for many databases of some 8 MB


@contextmanager
def serve_postgres() -> Iterator[str]:
    """Yield the URL of the server that `TEST_DATABASE_URL` names, or else of an embedded one that ends with the block.

    The URL names a database from which others can be made.
    """
    url = os.environ.get("TEST_DATABASE_URL")
    if url:
        yield url
        return
    # Not pytest's own folder, which is closed to everybody else: started by root, the server runs as nobody.
    with tempfile.TemporaryDirectory(prefix="quart-tenants-tests-", dir=_find_fast_folder()) as folder:
        Path(folder).chmod(0o711)
        server = EmbeddedPostgres(Path(folder) / "postgres", options=FAST_AND_FORGETFUL)
        asyncio.run(server.start())
        try:
            yield server.url
        finally:
            asyncio.run(server.stop())


def _find_fast_folder() -> Path | None:
    """Return a folder in memory with room for many databases, or None, which means the usual temporary folder.

    Most tests make a database and drop it. A disk that others write to makes that ten times slower.
    """
    memory = Path("/dev/shm")  # noqa: S108  (what is made in it has a random name and is closed to others)
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < _ROOM:
        return None
    return memory


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


async def drop_with_roles(server_url: str, name: str, prefixes: Iterable[str]) -> None:
    """Drop the database *name*, and then all roles whose names begin with one of *prefixes*.

    Roles belong to the whole server, so they stay when a database is dropped.
    """
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        for prefix in prefixes:
            for role in await connection.fetch(_LIST_ROLES, prefix):
                await connection.execute(f'DROP ROLE IF EXISTS "{role["name"]}"')
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
        self._dropped: list[Future[str]] = []

    def __enter__(self) -> Self:
        self._connection = self._thread.submit(self._runner.run, asyncpg.connect(self._server_url)).result()
        self._next = self._thread.submit(self._make)
        return self

    def __exit__(self, *_: object) -> None:
        self.drop(self._next.result())
        self.wait_for_drops()
        self._thread.submit(self._runner.run, self._connection.close()).result()
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()

    async def take(self) -> str:
        """Return the name of a copy that nobody else has."""
        ready, self._next = self._next, self._thread.submit(self._make)
        return await asyncio.wrap_future(ready)

    def drop(self, name: str) -> None:
        """Drop a copy soon, with whoever is still connected."""
        dropping = self._connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self._dropped.append(self._thread.submit(self._runner.run, dropping))

    def wait_for_drops(self) -> None:
        """Wait until all copies are gone that were to be dropped soon."""
        for dropped in self._dropped:
            dropped.result()

    def _make(self) -> str:
        name = make_name()
        self._runner.run(copy_database(self._connection, name, self._template))
        return name
