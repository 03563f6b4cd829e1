"""A composite type that a migration has changed is read and written as it is now, also on a warm connection."""

from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.block_statements import TenantKey
from quart_tenants.postgres.driver.noting_connection import NotingConnection
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.support.timings import WARM
from tests.support.web_lender import WebLender

pytestmark = pytest.mark.slow

CHANGES = {
    "an attribute more": "ALTER TYPE addr ADD ATTRIBUTE zip text",
    # PostgreSQL and asyncpg find as many texts as before, so that nobody raises an error.
    "another attribute": "ALTER TYPE addr DROP ATTRIBUTE city, ADD ATTRIBUTE zip text",
    "another name": "ALTER TYPE addr RENAME ATTRIBUTE city TO zip",
}


@pytest.fixture(params=["auto", "plain"])
async def warm_database(settings: Settings, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """A pool of one connection of each kind, which nobody tidies."""
    async with await WebLender.open(replace(settings, driver_mode=request.param), max_size=1, timings=WARM) as database:
        yield database


async def use_addresses(database: Database, tenant: Tenant) -> dict[str, object]:
    """Read an address, give it back as a parameter, and return what the server and we see of it."""
    async with database.tenant_connection(tenant) as connection:
        await connection.execute("UPDATE homes SET at = at")
        home = await connection.fetchval("SELECT at FROM homes")
        await connection.fetchval("UPDATE homes SET at = $1 RETURNING 1", tuple(home))
    async with database.tenant_connection(tenant) as connection:
        told: object = await connection.fetchval("SELECT to_json(at)::text FROM homes")
    return {"names": list(home.keys()), "told": told}


async def change_types(database: Database, tenant: Tenant, change: str) -> Tenant:
    """Use the type on the warm connection, migrate the tenant on another one, and return it at its new version."""
    async with database.tenant_connection(tenant) as connection:
        await connection.execute(
            "CREATE TYPE addr AS (street text, city text); CREATE TABLE homes (at addr);"
            "INSERT INTO homes VALUES (ROW('Elm', 'Ulm'))"
        )
    assert await use_addresses(database, tenant) == {
        "names": ["street", "city"],
        "told": '{"street":"Elm","city":"Ulm"}',
    }
    async with database.tenant_connection(tenant) as connection:
        await connection.execute(CHANGES[change])
    return replace(tenant, version=tenant.version + 1)


EXPECTED = {
    "an attribute more": {"names": ["street", "city", "zip"], "told": '{"street":"Elm","city":"Ulm","zip":null}'},
    "another attribute": {"names": ["street", "zip"], "told": '{"street":"Elm","zip":null}'},
    "another name": {"names": ["street", "zip"], "told": '{"street":"Elm","zip":"Ulm"}'},
}


@pytest.mark.parametrize("change", CHANGES)
async def test_changed_type_is_read_and_written_anew(warm_database: Database, acme: Tenant, change: str) -> None:
    """From the first block at the new version on, names and order of the attributes are those of the server."""
    migrated = await change_types(warm_database, acme, change)

    assert await use_addresses(warm_database, migrated) == EXPECTED[change]


@pytest.mark.parametrize("change", CHANGES)
async def test_naive_connection_remembers_the_old_type(
    warm_database: Database, acme: Tenant, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: a connection that pays no heed to versions fails, or reads by a wrong name."""
    monkeypatch.setattr(NotingConnection, "note_versions", lambda connection, tenant: False)
    migrated = await change_types(warm_database, acme, change)

    try:
        seen: object = await use_addresses(warm_database, migrated)
    except Exception as error:  # noqa: BLE001  (which error depends on the change)
        seen = error
    assert seen != EXPECTED[change]


def test_version_of_one_tenant_costs_the_others_nothing() -> None:
    """Only where the tenant's own tables, or the shared ones, are at another version are types looked up anew."""
    connection = SimpleNamespace(_versions={})
    keys = [(1, 1, 0), (2, 5, 0), (1, 1, 0), (1, 2, 0), (2, 5, 0), (1, 2, 3)]

    seen = [NotingConnection.note_versions(connection, TenantKey(*key)) for key in keys]  # type: ignore[arg-type]

    assert seen == [False, False, False, True, False, True]
