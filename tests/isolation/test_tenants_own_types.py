"""Promise: types of a tenant's own schema, in results and parameters, show the right rows or a clear error."""

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from quart_tenants import Row
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.block_statements import TenantKey
from quart_tenants.postgres.driver.fast.statement_cache import StatementCache
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.support.timings import WARM
from tests.support.web_lender import WebLender

if TYPE_CHECKING:
    from collections.abc import Callable

    from quart_tenants.postgres.driver.connection_types import Connection

pytestmark = pytest.mark.slow

# The types of a schema, older and newer.
TYPES = (
    """
    CREATE TYPE mood AS ENUM ('glad', 'sad');
    CREATE DOMAIN amount AS int CHECK (VALUE >= 0);
    CREATE TYPE pair AS (a int, b text);
    CREATE TYPE span AS RANGE (subtype = int4);
    """,
    """
    CREATE TYPE mood AS ENUM ('calm', 'glad', 'sad');
    CREATE DOMAIN amount AS bigint CHECK (VALUE >= 0);
    CREATE TYPE pair AS (a bigint, b text);
    CREATE TYPE span AS RANGE (subtype = int8);
    """,
)
COLUMNS = {
    "mood": "'glad'", "mood[]": "ARRAY['glad', 'sad']::mood[]", "amount": "7", "amount[]": "ARRAY[7, 8]::amount[]",
    "pair": "ROW(1, {owner})::pair", "pair[]": "ARRAY[ROW(1, {owner})]::pair[]", "span": "'[1,5)'",
    "span[]": "ARRAY['[1,5)']::span[]", "text": "{owner}",
}  # fmt: skip
STATEMENTS = (
    "SELECT owner, value FROM things",
    "SELECT * FROM things WHERE id > $1",
    "SELECT owner, value FROM things FOR UPDATE",
    "INSERT INTO things (id, owner, value) VALUES ($1, {owner}, {value}) RETURNING owner, value",
    "UPDATE things SET id = id + $1 RETURNING *",
    "DELETE FROM things WHERE id > $1 + 1000 RETURNING owner, value",
    "WITH added AS (INSERT INTO things VALUES ($1, {owner}, {value}) RETURNING *) SELECT owner, value FROM added",
)
# A wrong row is none of these.
CLEAR_ERRORS = (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError)


@pytest.fixture
def timings() -> Timings:
    """Let connections stay warm however slow the machine is, and let nobody tidy meanwhile."""
    return WARM


@pytest.fixture(params=["at two versions", "changed by hand"])
async def tenants(database: Database, acme: Tenant, globex: Tenant, request: pytest.FixtureRequest) -> list[Tenant]:
    """Two tenants with different types of the same names, at different versions or, by somebody's hand, at one."""
    made = [acme, replace(globex, version=globex.version + (request.param == "at two versions"))]
    for tenant, types in zip(made, TYPES, strict=True):
        async with database.tenant_connection(tenant) as connection:
            await connection.execute(types)
    return made


async def make_table(database: Database, tenants: list[Tenant], column: str) -> None:
    """Give each tenant a table `things` with a row of its own."""
    for tenant in tenants:
        value = COLUMNS[column].format(owner=f"'{tenant.slug}'")
        async with database.tenant_connection(tenant) as connection:
            await connection.execute(
                f"DROP TABLE IF EXISTS things; CREATE TABLE things (id int, owner text, value {column});"
                f"INSERT INTO things VALUES (1, '{tenant.slug}', {value})"
            )


async def run(connection: "Connection", statement: str) -> list[Row]:
    """Run *statement*, which takes a number or nothing."""
    return await (connection.fetch(statement, 0) if "$1" in statement else connection.fetch(statement))


async def fuzz(database: Database, other: Database, tenants: list[Tenant], column: str) -> list[str]:
    """Run every statement for both tenants in a random order on one warm connection; return what was wrong."""
    await make_table(other, tenants, column)
    chance = random.Random(column)  # noqa: S311
    wrong = []
    jobs = [(tenant, statement) for tenant in tenants for statement in STATEMENTS] * 3
    chance.shuffle(jobs)
    for tenant, template in jobs:
        # The text is the same for all tenants.
        value = COLUMNS[column].replace("{owner}", "current_schema()")
        statement = template.replace("{owner}", "current_schema()").replace("{value}", value)
        try:
            async with database.tenant_connection(tenant) as connection:
                rows = await run(connection, statement)
            async with other.tenant_connection(tenant) as connection:
                expected: Any = await connection.fetchval(f"SELECT {value}::{column} -- {chance.random()}")
        except CLEAR_ERRORS as error:
            wrong.append(f"{tenant.slug}: {statement}: {error!r}")
            continue
        wrong += [f"{tenant.slug}: {statement}: {row}" for row in rows if row["owner"] != tenant.slug]
        wrong += [f"{tenant.slug}: {statement}: {row}" for row in rows if row["value"] != expected]
    return wrong


@pytest.mark.parametrize("column", COLUMNS)
async def test_each_tenant_gets_the_rows_of_its_own_types(
    one_connection_database: Database, database: Database, tenants: list[Tenant], column: str
) -> None:
    """Whatever runs before on the connection, a tenant's types are its own: no foreign row, and no error."""
    assert await fuzz(one_connection_database, database, tenants, column) == []


@pytest.mark.usefixtures("alone_only")
@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "text"])
async def test_shared_statements_fail_in_the_same_fuzz(
    settings: Settings,
    database: Database,
    tenants: list[Tenant],
    column: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: where all tenants share the statements of a connection, the second one gets an error."""
    turn_to: Callable[[StatementCache, TenantKey], None] = StatementCache.turn_to
    monkeypatch.setattr(StatementCache, "turn_to", lambda cache, _: turn_to(cache, TenantKey(1, 1)))

    async with await WebLender.open(settings, max_size=1, timings=WARM) as sharing:
        assert await fuzz(sharing, database, tenants, column) != []
