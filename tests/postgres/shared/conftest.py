"""An app with shared tables and extensions, in both role modes."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.role_setup import make_owner, revoke_public_rights
from quart_tenants.postgres.registry.registry_tables import init_registry
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName
from quart_tenants.testing.databases import name_database, new_database
from tests.postgres.shared.parts import ACME, GLOBEX, SHARED_FILES, TENANT_FILES, App, write_files
from tests.support.databases import execute
from tests.support.roles import dropping_roles, new_login

_MODES = ["one role", "a role per tenant", "a role per tenant, and a login that is no superuser"]


@pytest.fixture(params=_MODES)
async def app(request: pytest.FixtureRequest, server_url: str, tmp_path: Path) -> AsyncIterator[App]:
    """The tenants acme and globex, who share plans and extensions. The login owns the database at least."""
    shared, own = tmp_path / "shared", tmp_path / "tenant"
    for folder, files in ((shared, SHARED_FILES), (own, TENANT_FILES)):
        folder.mkdir()
        write_files(folder, files)
    async with AsyncExitStack() as stack:
        superuser_url = login_url = await stack.enter_async_context(new_database(server_url))
        if request.param == _MODES[2]:
            login = await stack.enter_async_context(new_login(server_url, "CREATEROLE"))
            name = superuser_url.partition("?")[0].rpartition("/")[2]
            login_url = name_database(login, name)
            owner = login.partition("//")[2].partition(":")[0]
            await execute(superuser_url, f"ALTER DATABASE {name} OWNER TO {owner}")
        await stack.enter_async_context(dropping_roles(server_url, superuser_url))
        settings = Settings(
            database_url=login_url,
            connect_timeout=60.0,
            acquire_timeout=60.0,
            migrations_dir=own,
            shared_migrations_dir=shared,
            shared_schemas=(SchemaName("common"), SchemaName("More things")),
            role_per_tenant=request.param != _MODES[0],
        )
        database = await stack.enter_async_context(await Database.open(settings, max_size=2))
        await init_registry(database)
        if settings.role_per_tenant:
            role, _ = await make_owner(database)
            for statement in await revoke_public_rights(database, role):
                await execute(superuser_url, statement)
        await migrate_shared(database, settings=settings)
        for slug in (ACME, GLOBEX):
            await create_tenant(database, slug, slug.title(), settings=settings)
        yield App(database, settings, superuser_url)
