"""A role without rights, for the rooms that speak SQL."""

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import asyncpg
import pytest

from quart_tenants.testing.databases import DatabaseStock


@dataclass(frozen=True)
class Role:
    """A role that may log in and owns nothing.

    Attributes:
        name: Needs no quotes.
        password: For servers that ask for one.
    """

    name: str
    password: str

    def put_into(self, url: str) -> str:
        """Return *url* with this role as its user."""
        parts = urlsplit(url)
        server = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=f"{self.name}:{self.password}@{server}").geturl()


@pytest.fixture(scope="session")
def role(server_url: str, stock: DatabaseStock) -> Iterator[Role]:
    """Lend one role to all tests: what it is granted in a test's database goes with that database."""
    role = Role(f"qt_{secrets.token_hex(6)}", secrets.token_hex(12))
    asyncio.run(_execute(server_url, f"CREATE ROLE {role.name} LOGIN PASSWORD '{role.password}'"))
    yield role
    # The last of them may still be there.
    stock.wait_for_drops()
    asyncio.run(_execute(server_url, f"DROP ROLE {role.name}"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
