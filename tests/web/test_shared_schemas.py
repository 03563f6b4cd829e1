"""An app with shared tables: its pages, its version gate and its commands."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from quart import Quart, ResponseReturnValue

from quart_tenants import QuartTenants, Tenant, shared_connection, tenant_connection
from quart_tenants.errors import RegistryNotReadyError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.settings import Settings, read_settings
from tests.support.databases import REFERENCE_FILES
from tests.support.feeds import RARE_NEWS
from tests.web.commands.runs import Run, execute

pytestmark = pytest.mark.slow

PLANS = "CREATE TABLE plans (id integer, name text); INSERT INTO plans VALUES (1, 'free');"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The folder of the shared files."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "0001_plans.sql").write_text(PLANS)
    return folder


@pytest.fixture
def config(files: Path, database_url: str) -> dict[str, object]:
    """What the app is configured with."""
    return {
        **RARE_NEWS,
        "TENANTS_DATABASE_URL": database_url,
        "TENANTS_MIGRATIONS_DIR": REFERENCE_FILES,
        "TENANTS_SHARED_SCHEMAS": ["common"],
        "TENANTS_SHARED_MIGRATIONS_DIR": files,
    }


@pytest.fixture
def shared_settings(config: dict[str, object]) -> Settings:
    """The settings of the app."""
    return read_settings(config)


@asynccontextmanager
async def serving(config: dict[str, object]) -> AsyncIterator[Quart]:
    """Serve an app whose every page reads a shared table."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(config)
    tenants = QuartTenants(app)

    @app.get("/plan", host=tenants.host)
    async def plan() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            # The read comes second, so that it cannot be run again by itself: the transaction would be lost.
            await connection.execute("UPDATE company_data SET description = ''")
            row = await connection.fetchrow("SELECT * FROM plans WHERE id = $1", 1)
            return {"plan": None if row is None else dict(row)}

    @app.post("/plan/<name>", host=tenants.apex_host)
    async def rename(name: str) -> ResponseReturnValue:
        async with shared_connection() as connection:
            await connection.execute("UPDATE plans SET name = $1", name)
        return {}

    async with app.test_app():
        yield app


async def get_plan(app: Quart, slug: str = "acme") -> object:
    """Return what the tenant's page says of the plan, or the code of the error."""
    answer = await app.test_client().get("/plan", headers={"Host": f"{slug}.localhost"})
    content = await answer.get_json() or {}
    return content["plan"] if answer.status_code == 200 else (answer.status_code, content.get("code"))


async def test_page_of_the_operator_changes_what_tenants_read(
    config: dict[str, object], shared_settings: Settings
) -> None:
    """`shared_connection()` writes, and every tenant reads it."""
    async with await Database.open(shared_settings, max_size=1) as database:
        await migrate_shared(database, settings=shared_settings)
    async with serving(config) as app:
        assert await get_plan(app) == {"id": 1, "name": "free"}
        await app.test_client().post("/plan/large", headers={"Host": "localhost"})
        assert await get_plan(app, "globex") == {"id": 1, "name": "large"}


async def test_app_is_answered_503_until_the_shared_files_have_run(
    config: dict[str, object], shared_settings: Settings, files: Path
) -> None:
    """New code before the migration asks visitors to wait, and is served as soon as the file has run."""
    async with await Database.open(shared_settings, max_size=1) as database:
        await migrate_shared(database, settings=shared_settings)
        async with serving(config) as old:
            assert await get_plan(old) == {"id": 1, "name": "free"}
            (files / "0002_price.sql").write_text("ALTER TABLE plans ADD COLUMN price integer")
            async with serving(config) as new:
                assert await get_plan(new) == (503, "shared_schema_behind")
                await migrate_shared(database, settings=shared_settings)
                for _ in range(2):
                    assert await get_plan(new) == {"id": 1, "name": "free", "price": None}


async def test_shared_column_that_changes_costs_no_request_an_error(
    config: dict[str, object], shared_settings: Settings, files: Path
) -> None:
    """A worker that has prepared statements of the old table reads the new one, also where it is no plain read."""
    config |= {"TENANTS_POOL_MAX_SIZE": 1}
    async with await Database.open(shared_settings, max_size=1) as database, AsyncExitStack() as stack:
        await migrate_shared(database, settings=shared_settings)
        app = await stack.enter_async_context(serving(config))
        tenants = app.extensions["quart_tenants"]
        for slug in ("acme", "globex", "acme"):
            assert await get_plan(app, slug) == {"id": 1, "name": "free"}
        (files / "0002_price.sql").write_text("ALTER TABLE plans ADD COLUMN price integer")
        await migrate_shared(database, settings=shared_settings)
        await tenants.registry.refresh()

        for slug in ("acme", "globex", "acme"):
            assert await get_plan(app, slug) == {"id": 1, "name": "free", "price": None}


async def test_statements_of_the_old_shared_tables_would_cost_an_error(
    config: dict[str, object], shared_settings: Settings, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: statements that are kept whatever the version of the shared tables."""
    lend = Database.tenant_connection

    def lend_without_version(database: Database, tenant: Tenant, **options: Any) -> object:
        return lend(database, tenant, **options | {"shared_version": 0})

    monkeypatch.setattr(Database, "tenant_connection", lend_without_version)

    with pytest.raises(AssertionError):
        await test_shared_column_that_changes_costs_no_request_an_error(config, shared_settings, files)


async def test_missing_shared_schema_is_told_at_start(config: dict[str, object]) -> None:
    """Without `init` there is no such schema, and the error says what to run."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(config)

    with pytest.raises(RegistryNotReadyError, match="shared schema common is missing: run quart-tenants init"):
        async with QuartTenants(app).running():
            pass


# Commands


@pytest.fixture
def run_shared(run: Run, files: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run commands of an app with shared files."""
    monkeypatch.setenv("QUART_TENANTS_SHARED_SCHEMAS", "common")
    monkeypatch.setenv("QUART_TENANTS_SHARED_MIGRATIONS_DIR", str(files))
    return run


def test_init_runs_the_shared_files(run_shared: Run) -> None:
    """It says on stderr which; a second run says nothing of them."""
    first, second = run_shared("init"), run_shared("init")

    assert (first.status, first.out) == (0, "registry is up to date\n")
    assert first.err == "shared schema common: ran 0001_plans.sql\n"
    assert (second.status, second.err) == (0, "")


def test_migrate_runs_the_shared_files_before_the_tenants(run_shared: Run, files: Path) -> None:
    """A dry run names them and runs nothing."""
    run_shared("init")
    (files / "0002_rates.sql").write_text("CREATE TABLE rates ()")

    dry = run_shared("migrate", "--dry-run")
    assert (dry.status, dry.err) == (0, "would run in the shared schema first: 0002_rates.sql\n")
    done = run_shared("migrate")
    assert (done.status, done.err) == (0, "shared schema common: ran 0002_rates.sql\n")
    assert "shared tables: at 0002" in run_shared("status").out


def test_name_in_both_is_told_by_every_command(run_shared: Run, database_url: str) -> None:
    """`migrate` refuses, `status` shows it, and `doctor` calls it a leak."""
    run_shared("init")
    execute(database_url, "CREATE TABLE acme.plans ()")

    refused = run_shared("migrate")
    assert refused.status == 1
    assert "relation plans of schema acme" in refused.err
    assert "relation acme.plans, also in common" in run_shared("status").out
    doctor = run_shared("doctor")
    assert doctor.status == 1
    assert "LEAK" in doctor.out
    assert "shared names" in doctor.out


def test_shared_file_that_fails_is_one_clear_line(run_shared: Run, files: Path) -> None:
    """The line of the file is named, and the status is 1."""
    (files / "0001_plans.sql").write_text("CREATE TABLE plans ();\nSELECT 1 / 0;")

    failed = run_shared("init")

    assert failed.status == 1
    assert "0001_plans.sql failed in schema 'common' and was rolled back: line 2: division by zero" in failed.err
