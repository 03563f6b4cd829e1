"""Databases whose tenants have roles of their own, which belong to the whole server and so are dropped with them."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.role_setup import TenantWithoutRole, give_roles, make_owner, revoke_public_rights
from quart_tenants.tenant import RoleName
from quart_tenants.testing.databases import drop_with_roles

# A test may have changed the name behind it.
_PREFIX_LENGTH = len("quart_tenants_0123456")
_LIST_OWNERS = "SELECT owner_name FROM quart_tenants.role_setup"


async def set_up_roles(database: Database) -> RoleName:
    """Do what `init` does with `TENANTS_ROLE_PER_TENANT`, as a superuser may; return the owner."""
    owner, tenants = await make_owner(database)
    failures = []

    def note(tenant: TenantWithoutRole, failure: Exception | None) -> None:
        if failure is not None:
            failures.append(failure)

    await give_roles(database, owner, tenants, on_done=note)
    assert failures == []
    assert await revoke_public_rights(database, owner) == []
    return owner


@asynccontextmanager
async def dropping_roles(server_url: str, database_url: str) -> AsyncIterator[None]:
    """Drop the database and the roles that were made for it in the block; its maker does not miss it."""
    try:
        yield
    finally:
        owners = await _list(database_url, _LIST_OWNERS)
        name = urlsplit(database_url).path.removeprefix("/")
        await drop_with_roles(server_url, name, [owner[:_PREFIX_LENGTH] for owner in owners])


@asynccontextmanager
async def new_login(server_url: str, rights: str) -> AsyncIterator[str]:
    """Make a role that may log in with *rights*, yield *server_url* with it, and drop it."""
    name, password = f"qt_{secrets.token_hex(6)}", secrets.token_hex(12)
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}' {rights}")
        parts = urlsplit(server_url)
        try:
            yield parts._replace(netloc=f"{name}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()
        finally:
            await connection.execute(f"DROP ROLE {name}")
    finally:
        await connection.close()


async def _list(url: str, query: str) -> list[str]:
    try:
        connection = await asyncpg.connect(url)
    except asyncpg.InvalidCatalogNameError:
        return []
    try:
        return [row[0] for row in await connection.fetch(query)]
    except asyncpg.UndefinedTableError:
        return []
    finally:
        await connection.close()
