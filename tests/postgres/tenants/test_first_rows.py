"""The app's own first rows of a tenant are in the transaction that makes it: all or nothing."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from quart_tenants.connection import Connection
from quart_tenants.errors import TransactionLostError, UnknownTenantError
from quart_tenants.postgres.blocks.block import list_path
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.fast.fast_connection import FastConnection
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.support.roles import dropping_roles, set_up_roles

NEWCO = parse_slug("newco")
Made = tuple[Database, Settings]
ADD_ROW = "INSERT INTO company_data (description) VALUES ($1)"


@pytest.fixture(params=["one role", "a role per tenant"])
async def made_in(server_url: str, settings: Settings, request: pytest.FixtureRequest) -> AsyncIterator[Made]:
    """A pool of one connection, and its settings, in both role modes."""
    settings = replace(settings, role_per_tenant=request.param != "one role")
    async with (
        dropping_roles(server_url, settings.required_database_url),
        await Database.open(settings, max_size=1) as database,
    ):
        if settings.role_per_tenant:
            await set_up_roles(database)
        yield database, settings


async def is_there(database: Database) -> bool:
    """Return whether newco has a row in the registry, or a schema."""
    async with database.connection() as connection:
        if await connection.fetchval("SELECT pg_catalog.to_regnamespace('newco') IS NOT NULL"):
            return True
    try:
        await get_tenant(database, NEWCO)
    except UnknownTenantError:
        return False
    return True


async def test_first_rows_are_the_tenants(made_in: Made) -> None:
    """What the function writes is there when the tenant is, on the path and with the role of its blocks."""
    database, settings = made_in
    seen = []

    async def look(connection: Connection) -> None:
        seen.append((await list_path(connection), await connection.fetchval("SELECT current_user")))

    async def fill(connection: Connection) -> None:
        await look(connection)
        await connection.execute(ADD_ROW, "first")
        await connection.copy_records_to_table("company_data", records=[("second",)], columns=["description"])

    tenant = await create_tenant(database, NEWCO, "Newco", settings=settings, fill=fill)

    async with database.tenant_connection(tenant) as connection:
        rows = await connection.fetch("SELECT description FROM company_data ORDER BY id")
        await look(connection)
    assert [row["description"] for row in rows] == ["first", "second"]
    assert seen[0] == seen[1]


async def test_first_rows_that_fail_leave_no_tenant(made_in: Made) -> None:
    """The error comes back as it is, and the slug is free at once."""
    database, settings = made_in

    async def fail(connection: Connection) -> None:
        await connection.execute(ADD_ROW, "lost")
        raise LookupError("the plan is sold out")

    with pytest.raises(LookupError, match="sold out"):
        await create_tenant(database, NEWCO, "Newco", settings=settings, fill=fail)

    assert not await is_there(database)
    await create_tenant(database, NEWCO, "Newco", settings=settings)
    assert await is_there(database)


async def test_first_rows_need_an_async_function(made_in: Made) -> None:
    """Another one is named as the mistake, and there is no tenant."""
    database, settings = made_in
    plain: Any = lambda connection: None  # noqa: E731
    with pytest.raises(TypeError, match="async def fill"):
        await create_tenant(database, NEWCO, "Newco", settings=settings, fill=plain)
    assert not await is_there(database)


async def test_cancelled_first_rows_leave_no_tenant(made_in: Made) -> None:
    """A sign-up whose visitor leaves in the middle has not happened."""
    database, settings = made_in
    begun = asyncio.Event()

    async def hang(connection: Connection) -> None:
        await connection.execute(ADD_ROW, "lost")
        begun.set()
        await asyncio.Event().wait()

    sign_up = asyncio.create_task(create_tenant(database, NEWCO, "Newco", settings=settings, fill=hang))
    await begun.wait()
    sign_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sign_up

    assert not await is_there(database)


async def test_first_rows_that_swallow_an_error_leave_no_tenant(made_in: Made) -> None:
    """PostgreSQL has given the transaction up, and nobody believes that the tenant was made."""
    database, settings = made_in

    async def swallow(connection: Connection) -> None:
        with pytest.raises(asyncpg.UndefinedTableError):
            await connection.execute("INSERT INTO nowhere VALUES (1)")

    with pytest.raises(TransactionLostError):
        await create_tenant(database, NEWCO, "Newco", settings=settings, fill=swallow)

    assert not await is_there(database)


async def test_savepoint_saves_first_rows_from_an_error(made_in: Made) -> None:
    """A step that may fail stands in a transaction of its own inside, as in every block."""
    database, settings = made_in

    async def fill(connection: Connection) -> None:
        with pytest.raises(asyncpg.UndefinedTableError):
            async with connection.transaction():
                await connection.execute("INSERT INTO nowhere VALUES (1)")
        await connection.execute(ADD_ROW, "kept")

    tenant = await create_tenant(database, NEWCO, "Newco", settings=settings, fill=fill)

    async with database.tenant_connection(tenant) as connection:
        assert await connection.fetchval("SELECT description FROM company_data") == "kept"


async def test_first_rows_cannot_reach_another_tenant(roles_database: Database, roles_settings: Settings) -> None:
    """With roles the function has the rights of the new tenant, also when its text tries to leave the role."""

    async def peek(connection: Connection) -> None:
        await connection.fetch("SELECT * FROM acme.company_data")

    async def escape(connection: Connection) -> None:
        await connection.execute("RESET ROLE; SELECT * FROM acme.company_data")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await create_tenant(roles_database, NEWCO, "Newco", settings=roles_settings, fill=peek)
    with pytest.raises(asyncpg.PostgresSyntaxError, match="multiple commands"):
        await create_tenant(roles_database, NEWCO, "Newco", settings=roles_settings, fill=escape)


async def test_first_rows_of_one_tenant_after_the_other_have_their_own_types(made_in: Made, tmp_path: Path) -> None:
    """The same statements on the same connection meet other types in each new schema."""
    database, settings = made_in
    first = get_resource_path("sql/tenant/0001_users_and_data.sql")
    (tmp_path / first.name).write_bytes(first.read_bytes())
    (tmp_path / "0002_moods.sql").write_text(
        "CREATE TYPE mood AS ENUM ('well', 'ill'); CREATE TABLE moods (id integer, mood mood);"
    )
    told = []

    async def fill(connection: Connection) -> None:
        told.append(await connection.fetchval("INSERT INTO moods VALUES (1, $1) RETURNING mood", "well"))
        told.append(await connection.fetchval("SELECT mood FROM moods"))

    settings = replace(settings, migrations_dir=tmp_path)
    for slug in ("one", "two", "three"):
        await create_tenant(database, parse_slug(slug), slug, settings=settings, fill=fill)

    assert told == ["well"] * 6


@pytest.mark.usefixtures("fast_driver_only")
async def test_statements_of_commands_would_meet_another_tenants_types(
    one_connection_database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: in a common block the second tenant meets the statement of the first."""
    monkeypatch.setattr(FastConnection, "go_on_as", lambda *_: None)

    with pytest.raises(asyncpg.PostgresError):
        await test_first_rows_of_one_tenant_after_the_other_have_their_own_types(
            (one_connection_database, settings), tmp_path
        )
