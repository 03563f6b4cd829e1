"""Run a PostgreSQL with tenants of ours, and a copy of them for the peers."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from passlib.hash import pbkdf2_sha256

from benchmarks.folders import temporary_folder
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.tenants.provisioning import create_tenants
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug

OURS = "ours"
PEERS = "peers"
USER, PASSWORD = "user", "foo"
_OPTIONS = {
    "max_connections": "400",
    "shared_buffers": "512MB",
    # Reading is what is measured: nothing waits for a disk, and nothing else runs.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    # 10,000 schemas are copied and vacuumed at once.
    "max_locks_per_transaction": "256",
    "max_wal_size": "8GB",
}
_AT_ONCE = 200
_EVERY_TENANT = """
CREATE TABLE all_data (tenant text, id bigint, description text NOT NULL, PRIMARY KEY (tenant, id))
"""


def get_slug(number: int) -> str:
    """Return the slug of tenant *number*, which is its schema's name, too."""
    return f"t{number:05}"


class Server:
    """A PostgreSQL of our own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.embedded = EmbeddedPostgres(folder / "postgres", options=_OPTIONS)

    @property
    def pid(self) -> int:
        """Of the process whose children are the backends."""
        return int((self.folder / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0])

    def url(self, database: str, user: str = "postgres") -> str:
        """Return the address of *database*. Each contender has a user of its own, by whom its backends are known."""
        parts = urlsplit(self.embedded.url)
        return parts._replace(netloc=f"{user}@", path=f"/{database}").geturl()

    async def execute(self, database: str, *statements: str) -> None:
        """Run *statements*, each by itself."""
        connection = await asyncpg.connect(self.url(database))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def fetch(self, database: str, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Return the rows of *query*."""
        connection = await asyncpg.connect(self.url(database))
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    async def add_user(self, name: str) -> None:
        """Make a user who may do everything, if there is none."""
        if not await self.fetch("postgres", "SELECT FROM pg_roles WHERE rolname = $1", name):
            await self.execute("postgres", f"CREATE ROLE {name} SUPERUSER LOGIN")

    async def list_backends(self, user: str) -> list[int]:
        """Return the process numbers of the backends of *user*."""
        rows = await self.fetch("postgres", "SELECT pid FROM pg_stat_activity WHERE usename = $1", user)
        return [row["pid"] for row in rows]


@asynccontextmanager
async def running_server() -> AsyncIterator[Server]:
    """Start PostgreSQL in a folder of its own, and remove it afterwards."""
    task = asyncio.current_task()
    if task is not None:
        # As by Ctrl-C: servers have sessions of their own and would outlive us.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with temporary_folder() as folder:
        server = Server(folder)
        async with server.embedded:
            yield server


async def make_tenants(server: Server, tenants: int, rows: int, database: str = OURS) -> list[str]:
    """Make a database with so many tenants of so many rows; return their slugs."""
    print(f"making {tenants} tenants with {rows} rows each", file=sys.stderr)
    await server.execute("postgres", f"CREATE DATABASE {database}")
    settings = Settings(migrations_dir=get_resource_path("sql/tenant"), database_url=server.url(database))
    slugs = [get_slug(number) for number in range(tenants)]
    async with await Database.open(settings, max_size=4, for_many_tenants=True) as opened:
        await init_registry(opened)
        await create_tenants(opened, {parse_slug(slug): slug for slug in slugs}, settings=settings, jobs=4)
    # One round: no login is measured.
    password = pbkdf2_sha256.using(rounds=1).hash(PASSWORD)
    for begin in range(0, tenants, _AT_ONCE):
        await server.execute(database, "; ".join(_fill(slug, rows, password) for slug in slugs[begin:][:_AT_ONCE]))
    await server.execute(database, "VACUUM (ANALYZE)", "CHECKPOINT")
    return slugs


def _fill(slug: str, rows: int, password: str) -> str:
    return (
        f"INSERT INTO {slug}.app_user (username, password) VALUES ('{USER}', '{password}'); "
        f"INSERT INTO {slug}.company_data (description) "
        f"SELECT '{slug} row ' || number FROM generate_series(1, {rows}) AS number"
    )


async def copy_for_peers(server: Server, slugs: Sequence[str]) -> None:
    """Copy the tenants into a database of the peers, and their rows into one table, too."""
    print("copying them for the peers", file=sys.stderr)
    await server.execute("postgres", f"CREATE DATABASE {PEERS} TEMPLATE {OURS} STRATEGY file_copy")
    copies = [
        "; ".join(
            f"INSERT INTO all_data SELECT '{slug}', id, description FROM {slug}.company_data"
            for slug in slugs[begin:][:_AT_ONCE]
        )
        for begin in range(0, len(slugs), _AT_ONCE)
    ]
    await server.execute(PEERS, _EVERY_TENANT, *copies, "VACUUM ANALYZE all_data")
