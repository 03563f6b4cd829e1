"""A database whose tenants have roles of their own, by each kind of login role."""

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.role_setup import make_owner, revoke_public_rights
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.tenants.provisioning import create_tenants
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from quart_tenants.testing.databases import name_database, new_database
from tests.support.databases import execute
from tests.support.roles import dropping_roles, new_login


@pytest.fixture
def migrations_dir(tmp_path: Path) -> Path:
    """A folder with the reference app's first files, for more of them."""
    folder = tmp_path / "migrations"
    shutil.copytree(get_resource_path("sql/tenant"), folder)
    return folder


@pytest.fixture(params=["superuser", "owner of the database"])
async def login_settings(
    request: pytest.FixtureRequest, server_url: str, migrations_dir: Path
) -> AsyncIterator[Settings]:
    """Settings of a new database with a registry, roles and the tenants acme and globex, by each kind of login role."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(new_database(server_url))
        login_url = url
        if request.param != "superuser":
            login = await stack.enter_async_context(new_login(server_url, "CREATEROLE"))
            name = url.partition("?")[0].rpartition("/")[2]
            login_url = name_database(login, name)
            await execute(url, f"ALTER DATABASE {name} OWNER TO {login.partition('//')[2].partition(':')[0]}")
        await stack.enter_async_context(dropping_roles(server_url, url))
        settings = Settings(database_url=login_url, role_per_tenant=True, migrations_dir=migrations_dir)
        async with await Database.open(settings, max_size=2) as database:
            await init_registry(database)
            owner, _ = await make_owner(database)
            # What only a superuser may do.
            for statement in await revoke_public_rights(database, owner):
                await execute(url, statement)
            assert await revoke_public_rights(database, owner) == []
            slugs = parse_slug("acme"), parse_slug("globex")
            await create_tenants(database, dict(zip(slugs, slugs, strict=True)), settings=settings, jobs=2)
        yield settings
