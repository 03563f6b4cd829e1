"""Make a database for a moment, beside the one that is served, and drop it whatever happens."""

import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

from quart_tenants.errors import DatabaseRefusedError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.settings import Settings

_PREFIX = "quart_tenants_rehearsal_"
_FORGOTTEN_AFTER = 3600  # seconds
_GET_LOCALE = """
SELECT pg_catalog.format(
    'ENCODING %L LC_COLLATE %L LC_CTYPE %L', pg_catalog.pg_encoding_to_char(encoding), datcollate, datctype
) FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()
"""
_LIST_SCRATCH = (
    "SELECT datname::text AS name FROM pg_catalog.pg_database WHERE pg_catalog.starts_with(datname::text, $1)"
)


@contextlib.asynccontextmanager
async def scratch_database(database: Database, *, settings: Settings) -> AsyncIterator[tuple[Database, Settings]]:
    """Lend a new database with a registry and the shared schemas, and the settings for it.

    Tenants have no roles of their own in it. It is dropped after the block, also after an error or a cancellation. What
    a killed process leaves is dropped by the first call an hour later or more.

    Args:
        database: It stands on the server for the new one.
        settings: Of *database*.

    Raises:
        DatabaseRefusedError: This role may not create databases.
    """
    own_url = await database.get_own_url("a rehearsal")
    name = f"{_PREFIX}{int(time.time())}_{secrets.token_hex(4)}"
    async with database.plain_session() as connection:
        await _drop_forgotten(connection)
        locale = await connection.fetchval(_GET_LOCALE)
        try:
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 {locale}", timeout=None)
        except asyncpg.InsufficientPrivilegeError as error:
            raise DatabaseRefusedError(
                "a rehearsal copies tenants into a database of its own, which this role may not create: "
                "ALTER ROLE … CREATEDB, or name another role in TENANTS_DATABASE_URL for this command"
            ) from error
        try:
            own = replace(settings, database_url=name_database(own_url, name))
            own = replace(own, direct_database_url=None, role_per_tenant=False)
            async with await Database.open(own, max_size=2) as scratch:
                await init_registry(scratch)
                await migrate_shared(scratch, settings=own)
                yield scratch, own
        finally:
            # The server may have a limit for sessions that are idle, as the first one was all the time.
            async with database.plain_session() as last:
                await last.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def _drop_forgotten(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    for row in await connection.fetch(_LIST_SCRATCH, _PREFIX):
        made_at, _, random_part = row["name"].removeprefix(_PREFIX).partition("_")
        if random_part.isalnum() and made_at.isdigit() and int(made_at) < time.time() - _FORGOTTEN_AFTER:
            # It is in use where a rehearsal takes longer.
            with contextlib.suppress(asyncpg.ObjectInUseError, asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"DROP DATABASE IF EXISTS {_PREFIX}{made_at}_{random_part}")


def name_database(url: str, name: str) -> str:
    """Return *url* with the database *name*."""
    parts = urlsplit(url)
    query = urlencode([pair for pair in parse_qsl(parts.query) if pair[0] not in ("dbname", "database")])
    return parts._replace(path=f"/{name}", query=query).geturl()
