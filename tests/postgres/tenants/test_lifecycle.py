"""Tenants are suspended, resumed and renamed, and keep everything that is theirs."""

import asyncio

import pytest

from quart_tenants.errors import (
    FormerSlugError,
    InvalidSlugError,
    RecentlyDroppedError,
    TenantExistsError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.tenants.lifecycle import rename_tenant, resume_tenant, suspend_tenant
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant, parse_schema_name, parse_slug

ACME, GLOBEX, NEWCO, NEWER = parse_slug("acme"), parse_slug("globex"), parse_slug("newco"), parse_slug("newer")
ADD_ROW = "INSERT INTO company_data (description) VALUES ('ours')"


@pytest.fixture
async def workers(database: Database, settings: Settings) -> list[Registry]:
    """What two workers remember."""
    registries = [Registry(database, settings) for _ in range(2)]
    for registry in registries:
        await registry.load()
    return registries


async def poll(workers: list[Registry]) -> None:
    """Let each worker read what changed."""
    await asyncio.gather(*(worker.refresh() for worker in workers))


def find_served(workers: list[Registry], slug: Slug) -> list[Tenant | None]:
    """Return what each worker serves at *slug*."""

    def find(worker: Registry) -> Tenant | None:
        try:
            return worker.get_tenant(slug)
        except UnknownTenantError:
            return None

    return [find(worker) for worker in workers]


async def let_redirects_end(database: Database) -> None:
    """Let it be long ago that old addresses led anywhere."""
    async with database.connection() as connection:
        await connection.execute("UPDATE quart_tenants.former_slugs SET redirect_until = now() - interval '1 day'")
        await connection.execute("UPDATE quart_tenants.resting_names SET free_at = now() - interval '1 day'")


async def test_suspended_tenant_is_served_by_no_worker_until_it_is_resumed(
    database: Database, workers: list[Registry], acme: Tenant, globex: Tenant
) -> None:
    """Every worker obeys after its next poll, and every other tenant is served as before; twice does no harm."""
    for _ in range(2):
        await suspend_tenant(database, ACME)
    await poll(workers)
    assert find_served(workers, ACME) == [None, None]
    assert find_served(workers, GLOBEX) == [globex, globex]
    assert (await get_tenant(database, ACME)).suspended

    for _ in range(2):
        await resume_tenant(database, ACME)
    await poll(workers)

    assert find_served(workers, ACME) == [acme, acme]


async def test_unknown_tenant_cannot_be_changed(database: Database, settings: Settings) -> None:
    """Nobody is suspended, resumed or renamed who is not there."""
    for call in (
        suspend_tenant(database, NEWCO),
        resume_tenant(database, NEWCO),
        rename_tenant(database, NEWCO, NEWER, settings=settings),
    ):
        with pytest.raises(UnknownTenantError, match="'newco'"):
            await call


async def test_renamed_tenant_keeps_its_rows_and_its_schema(
    database: Database, settings: Settings, workers: list[Registry], acme: Tenant
) -> None:
    """Only the subdomain changes: a worker that has not heard of it still finds the rows by the old name."""
    async with database.tenant_connection(acme) as connection:
        await connection.execute(ADD_ROW)

    renamed = await rename_tenant(database, ACME, NEWCO, settings=settings)

    assert (renamed.id, renamed.slug, renamed.schema, renamed.name) == (acme.id, NEWCO, acme.schema, acme.name)
    for known in (acme, renamed):
        async with database.tenant_connection(known) as connection:
            assert await connection.fetchval("SELECT count(*) FROM company_data WHERE description = 'ours'") == 1
    await poll(workers)
    assert find_served(workers, NEWCO) == [renamed, renamed]
    assert find_served(workers, ACME) == [None, None]
    assert [worker.find_new_slug(ACME) for worker in workers] == [NEWCO, NEWCO]


async def test_old_address_is_nobodys_until_its_redirect_ends(database: Database, settings: Settings) -> None:
    """Links to the renamed tenant must not reach another one; then the name rests as a dropped one does."""
    await rename_tenant(database, ACME, NEWCO, settings=settings, redirect_days=7)
    async with database.connection() as connection:
        await connection.execute("CREATE SCHEMA other")
    own_schema = parse_schema_name("acme 2")

    async def take() -> list[type[Exception]]:
        """Return what each way to take the name raises."""
        results = await asyncio.gather(
            create_tenant(database, ACME, "x", settings=settings),
            create_tenant(database, ACME, "x", settings=settings, schema=own_schema),
            adopt_schemas(database, {ACME: SchemaName("other")}, settings=settings, version=0),
            rename_tenant(database, GLOBEX, ACME, settings=settings),
            return_exceptions=True,
        )
        return [type(result) for result in results if isinstance(result, Exception)]

    assert await take() == [FormerSlugError] * 4
    async with database.connection() as connection:
        await connection.execute("UPDATE quart_tenants.former_slugs SET redirect_until = now()")
        await connection.execute("UPDATE quart_tenants.resting_names SET free_at = now()")
    # The first one asks for the schema that the renamed tenant still has.
    assert await take() == [TenantExistsError] + [RecentlyDroppedError] * 3
    await let_redirects_end(database)

    taken = await create_tenant(database, ACME, "Another", settings=settings, schema=own_schema)

    assert (taken.slug, taken.schema) == (ACME, own_schema)


async def test_tenant_can_be_renamed_back(
    database: Database, settings: Settings, workers: list[Registry], acme: Tenant
) -> None:
    """Its own former names are free to it at once, and the way back leads to it."""
    await rename_tenant(database, ACME, NEWCO, settings=settings)
    await poll(workers)

    assert await rename_tenant(database, NEWCO, ACME, settings=settings) == acme

    await poll(workers)
    assert find_served(workers, ACME) == [acme, acme]
    assert [worker.find_new_slug(slug) for worker in workers for slug in (ACME, NEWCO)] == [None, ACME] * 2


async def test_every_former_name_leads_to_the_newest(
    database: Database, settings: Settings, workers: list[Registry]
) -> None:
    """After two renames both old addresses lead there directly, until their redirects end."""
    await rename_tenant(database, ACME, NEWCO, settings=settings)
    await rename_tenant(database, NEWCO, NEWER, settings=settings)
    await poll(workers)
    assert [worker.find_new_slug(slug) for worker in workers for slug in (ACME, NEWCO)] == [NEWER] * 4

    await let_redirects_end(database)
    late = Registry(database, settings)
    await late.load()

    assert [late.find_new_slug(slug) for slug in (ACME, NEWCO)] == [None, None]


async def test_name_that_is_taken_or_reserved_is_no_new_one(database: Database, settings: Settings) -> None:
    """A tenant gets no other's name, not its own again, and none that the site keeps for itself."""
    for slug, error in ((GLOBEX, TenantExistsError), (ACME, TenantExistsError), (Slug("www"), InvalidSlugError)):
        with pytest.raises(error):
            await rename_tenant(database, ACME, slug, settings=settings)

    assert (await get_tenant(database, ACME)).slug == ACME


async def test_two_tenants_do_not_get_one_name(database: Database, settings: Settings) -> None:
    """Of two renames to one name at once, one is refused."""
    results = await asyncio.gather(
        rename_tenant(database, ACME, NEWCO, settings=settings),
        rename_tenant(database, GLOBEX, NEWCO, settings=settings),
        return_exceptions=True,
    )

    assert sorted(type(result).__name__ for result in results) == ["Tenant", "TenantExistsError"]
