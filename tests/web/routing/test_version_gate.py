"""A tenant whose tables are older than the app is answered 503, and nobody else is."""

from dataclasses import replace
from pathlib import Path

import pytest
from quart import Quart, ResponseReturnValue

from quart_tenants import QuartTenants, tenant_connection
from quart_tenants.errors import MigrationFileError, SchemaBehindError, SettingError, UnknownSchemaError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_plan import plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import migrate_fleet
from quart_tenants.postgres.fleet.status import get_fleet_status
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant
from quart_tenants.resources import get_resource_path
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two migrations, of which all tenants have the first."""
    first = get_resource_path("sql/tenant/0001_users_and_data.sql")
    (tmp_path / first.name).write_bytes(first.read_bytes())
    (tmp_path / "0002_nickname.sql").write_text("ALTER TABLE app_user ADD COLUMN nickname text")
    return tmp_path


def make_app(settings: Settings, folder: Path, **config: object) -> tuple[Quart, QuartTenants]:
    """Return an app that needs the newest of the files in *folder*."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_DATABASE_URL=settings.database_url, TENANTS_MIGRATIONS_DIR=folder, **config)
    tenants = QuartTenants(app)

    @app.get("/count", host=tenants.host)
    async def count() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            return {"rows": await connection.fetchval("SELECT count(*) FROM company_data")}

    return app, tenants


async def get(app: Quart, slug: str) -> tuple[int, str | None, str | None]:
    """Return status, code and Retry-After of the tenant's answer."""
    answer = await app.test_client().get("/count", headers={"Host": f"{slug}.localhost"})
    return answer.status_code, (await answer.get_json()).get("code"), answer.headers.get("Retry-After")


async def migrate(database: Database, settings: Settings, folder: Path, slug: str) -> None:
    """Bring one tenant to the newest version."""
    settings = replace(settings, migrations_dir=folder)
    plan = await plan_fleet(database, settings=settings, slugs=[Slug(slug)])
    await migrate_fleet(database, plan, settings=settings)


async def test_only_the_tenant_that_is_behind_is_answered_503(
    database: Database, settings: Settings, folder: Path
) -> None:
    """New code runs before the migration: who is migrated is served at once, who is not is asked to wait."""
    await migrate(database, settings, folder, "acme")
    app, tenants = make_app(settings, folder)

    async with app.test_app():
        assert await get(app, "acme") == (200, None, None)
        assert await get(app, "globex") == (503, "schema_behind", "2")

        await migrate(database, settings, folder, "globex")
        await tenants.registry.refresh()

        assert await get(app, "globex") == (200, None, None)


async def test_old_code_serves_migrated_tenants(database: Database, settings: Settings, folder: Path) -> None:
    """The version that is replaced goes on serving while the fleet is migrated under it."""
    app, tenants = make_app(settings, folder, TENANTS_MINIMUM_VERSION=1)

    async with app.test_app():
        await migrate(database, settings, folder, "acme")
        await tenants.registry.refresh()

        assert await get(app, "acme") == (200, None, None)
        assert await get(app, "globex") == (200, None, None)


async def test_gate_left_out_lets_a_request_fail(settings: Settings, folder: Path) -> None:
    """The negative control: code that needs the new column meets tables without it."""
    app, tenants = make_app(settings, folder, TENANTS_MINIMUM_VERSION=0)

    @app.get("/nicknames", host=tenants.host)
    async def nicknames() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            return {"names": len(await connection.fetch("SELECT nickname FROM app_user"))}

    async with app.test_app():
        answer = await app.test_client().get("/nicknames", headers={"Host": "acme.localhost"})

    assert answer.status_code == 500


async def test_job_is_refused_as_a_request_is(settings: Settings, folder: Path) -> None:
    """Work outside a request asks for its connection the same way."""
    app, _ = make_app(settings, folder)

    async with app.test_app(), app.app_context():
        with pytest.raises(SchemaBehindError, match=r"acme.*at version 0001.*needs 0002.*`migrate`"):
            async with tenant_connection("acme"):
                pass


async def test_app_without_its_files_does_not_start(settings: Settings, tmp_path: Path) -> None:
    """What the app needs is the newest file; without files the setting says it."""
    app, _ = make_app(settings, tmp_path)
    with pytest.raises(MigrationFileError, match="has no file named like"):
        await app.startup()

    app, _ = make_app(settings, tmp_path, TENANTS_MINIMUM_VERSION=1)
    async with app.test_app():
        assert await get(app, "acme") == (200, None, None)

    with pytest.raises(SettingError, match="TENANTS_MINIMUM_VERSION"):
        make_app(settings, tmp_path, TENANTS_MINIMUM_VERSION=-1)


async def test_own_app_names_its_files(database: Database, settings: Settings) -> None:
    """Without them nothing is made or adopted: the tables of the reference app are nobody else's."""
    bare = replace(settings, migrations_dir=None)
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_DATABASE_URL=settings.database_url)
    QuartTenants(app)
    async with database.connection() as connection:
        await connection.execute("CREATE SCHEMA old")
    for act in (
        app.startup(),
        create_tenant(database, Slug("newco"), "Newco", settings=bare),
        adopt_schemas(database, {Slug("old"): SchemaName("old")}, settings=bare, version=1),
        plan_fleet(database, settings=bare),
        get_fleet_status(database, settings=bare),
    ):
        with pytest.raises(SettingError, match=r"TENANTS_MIGRATIONS_DIR is not set.*TENANTS_MINIMUM_VERSION=0"):
            await act


@pytest.mark.parametrize("folder_is_named", [True, False])
async def test_tables_may_be_made_by_something_else(
    database: Database, settings: Settings, tmp_path: Path, folder_is_named: bool
) -> None:
    """With a minimum of 0 there may be no file: a tenant begins with an empty schema, and is served."""
    bare = replace(settings, migrations_dir=tmp_path if folder_is_named else None, minimum_version=0)
    tenant = await create_tenant(database, Slug("newco"), "Newco", settings=bare)
    assert tenant.version == 0
    async with database.connection() as connection:
        await connection.execute("CREATE SCHEMA old; CREATE TABLE newco.company_data ()")
    await adopt_schemas(database, {Slug("old"): SchemaName("old")}, settings=bare, version=0)
    with pytest.raises(UnknownSchemaError, match="no migration 0001; the newest is none"):
        await adopt_schemas(database, {Slug("older"): SchemaName("old")}, settings=bare, version=1)
    plan = await plan_fleet(database, settings=bare)
    assert (plan.behind, plan.target_version, plan.target_file) == ((), 0, "none")
    assert (await get_fleet_status(database, settings=bare)).newest_file == "none"

    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_DATABASE_URL=settings.database_url, TENANTS_MINIMUM_VERSION=0)
    if folder_is_named:
        app.config["TENANTS_MIGRATIONS_DIR"] = tmp_path
    tenants = QuartTenants(app)

    @app.get("/count", host=tenants.host)
    async def count() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            return {"rows": await connection.fetchval("SELECT count(*) FROM company_data")}

    async with app.test_app():
        assert await get(app, "newco") == (200, None, None)
