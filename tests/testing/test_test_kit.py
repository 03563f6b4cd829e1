"""What an adopter's tests get: a database, tenants, clients that are logged in, and a hunt for leaks."""

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from quart import Quart, ResponseReturnValue, render_template_string, request

from quart_tenants import QuartTenants, Tenant, current_tenant, get_session, tenant_connection
from quart_tenants.connection import Connection
from quart_tenants.errors import TenantExistsError
from quart_tenants.testing import LeakFoundError, hunt_leaks
from quart_tenants.testing.clients import ClientMaker
from quart_tenants.testing.databases import DatabaseStock
from quart_tenants.testing.plugin import NewTenant
from tests.support.processes import make_environment

pytestmark = pytest.mark.slow

ADD_ROW = "INSERT INTO company_data (description) VALUES ($1)"
SECRET = "ada's secret plan"

# Tenants, databases and clients


@pytest.mark.parametrize("number", [1, 2])
async def test_each_test_has_a_database_of_its_own(first_tenant: Tenant, tenants: QuartTenants, number: int) -> None:
    """What one test writes, the next does not find."""
    async with tenants.database.tenant_connection(first_tenant) as connection:
        assert await connection.fetchval("SELECT count(*) FROM company_data") == 0
        await connection.execute(ADD_ROW, f"of test {number}")


def test_template_is_in_nobodys_environment(tenants_database_stock: DatabaseStock) -> None:
    """Tests of the same session that do not use the kit have their own databases."""
    assert [name for name in os.environ if name.startswith("QUART_")] == []


async def test_client_is_logged_in_without_a_password(
    client_for: ClientMaker, first_tenant: Tenant, second_tenant: Tenant, tenants: QuartTenants
) -> None:
    """Each client is at its tenant's host, with cookies of its own."""
    async with tenants.database.tenant_connection(first_tenant) as connection:
        await connection.execute(ADD_ROW, SECRET)

    ada = await client_for(first_tenant, user="ada")
    eve = await client_for(second_tenant, user="eve")
    nobody = await client_for(first_tenant)

    assert (await (await ada.get("/data")).get_json())["data"][0]["description"] == SECRET
    assert await (await eve.get("/data")).get_json() == {"data": []}
    assert (await nobody.get("/data")).status_code == 401
    assert (await ada.get("/data", headers={"Host": "globex.localhost"})).status_code == 400


async def test_client_is_for_a_tenant(client_for: ClientMaker) -> None:
    """A slug is no tenant, and the error says where there is one."""
    slug: Any = "acme"
    with pytest.raises(TypeError, match="first_tenant"):
        await client_for(slug)


async def test_more_tenants_are_made_on_demand(new_tenant: NewTenant, client_for: ClientMaker) -> None:
    """With a slug and first rows, or with neither."""

    async def fill(connection: Connection) -> None:
        await connection.execute(ADD_ROW, "first")

    newco, other = await new_tenant("newco", fill=fill), await new_tenant()

    assert newco.slug == "newco"
    assert other.slug != newco.slug
    assert len((await (await (await client_for(newco, user="x")).get("/data")).get_json())["data"]) == 1
    with pytest.raises(TenantExistsError):
        await new_tenant("newco")


# The hunt


def add_notes(app: Quart, tenants: QuartTenants, *, leaky: bool) -> None:
    """Give the app notes; *leaky* with a cache that all tenants share."""
    cache: dict[str, object] = {}

    @app.post("/notes", host=tenants.host)
    async def add() -> ResponseReturnValue:
        async with tenant_connection() as connection:
            await connection.execute(ADD_ROW, (await request.get_json())["text"])
        return {}

    @app.get("/notes", host=tenants.host)
    async def notes() -> ResponseReturnValue:
        if leaky and request.path in cache:
            return {"notes": cache[request.path]}
        async with tenant_connection() as connection:
            rows = await connection.fetch("SELECT description FROM company_data")
        cache[request.path] = [row["description"] for row in rows]
        return {"notes": cache[request.path]}

    @app.get("/echo/<name>", host=tenants.host)
    async def echo(name: str) -> ResponseReturnValue:
        return {"tenant": current_tenant.slug, "name": name, "found": request.args.get("q"), "user": get_session().user}


@pytest.mark.parametrize("leaky", [False, True])
async def test_hunt_finds_the_view_with_a_global_cache(
    tenants_app: Quart,
    tenants: QuartTenants,
    client_for: ClientMaker,
    first_tenant: Tenant,
    second_tenant: Tenant,
    leaky: bool,
) -> None:
    """The negative control is found, with its request and its text; the same app without the cache has no leak."""
    add_notes(tenants_app, tenants, leaky=leaky)
    ada = await client_for(first_tenant, user="ada")
    await ada.post("/notes", json={"text": SECRET, "number": 1234567890})
    await ada.get("/notes")
    await ada.get(f"/echo/{uuid.uuid4()}?q=a text in the path")
    await ada.get("/echo/x", query_string={"q": "another long text"})
    eve = await client_for(second_tenant, user="eve")

    if leaky:
        with pytest.raises(LeakFoundError, match=rf"GET /notes, asked by globex .*shows \"{SECRET}\""):
            await hunt_leaks(ada, eve)
    else:
        # Three visitors make the one request that writes, and each of the three that read twice.
        assert await hunt_leaks(ada, eve) == 21


async def test_hunt_reads_before_it_writes(
    tenants_app: Quart, tenants: QuartTenants, client_for: ClientMaker, first_tenant: Tenant, second_tenant: Tenant
) -> None:
    """A cache that the other tenant's own writing would refresh is found as it was."""
    cache: dict[int, str] = {}

    @tenants_app.post("/by-id/<int:number>", host=tenants.host)
    async def write(number: int) -> ResponseReturnValue:
        cache[number] = (await request.get_json())["text"]
        return {}

    @tenants_app.get("/by-id/<int:number>", host=tenants.host)
    async def read(number: int) -> ResponseReturnValue:
        return {"text": cache[number]}

    ada, eve = await client_for(first_tenant, user="ada"), await client_for(second_tenant, user="eve")
    await ada.post("/by-id/1", json={"text": SECRET})
    await ada.get("/by-id/1")

    with pytest.raises(LeakFoundError, match="GET /by-id/1"):
        await hunt_leaks(ada, eve)


@pytest.mark.parametrize("text", [SECRET, 'say "plan B" loudly', "noël & friends", "two\nlines of it"])
@pytest.mark.parametrize("kind", ["html", "json", "location"])
async def test_hunt_reads_html_json_and_addresses(
    tenants_app: Quart,
    tenants: QuartTenants,
    client_for: ClientMaker,
    first_tenant: Tenant,
    second_tenant: Tenant,
    text: str,
    kind: str,
) -> None:
    """A text is found as the app has escaped it."""
    said: list[str] = []

    @tenants_app.post("/say", host=tenants.host)
    async def say() -> ResponseReturnValue:
        said.append((await request.get_json())["text"])
        return {}

    @tenants_app.get("/said", host=tenants.host)
    async def read() -> ResponseReturnValue:
        if kind == "json":
            return {"said": said}
        if kind == "location":
            return "", 204, {"Link": f"<?q={quote(said[0])}>"}
        return await render_template_string("{% for one in said %}<p>{{ one }}</p>{% endfor %}", said=said)

    ada, eve = await client_for(first_tenant, user="ada"), await client_for(second_tenant, user="eve")
    await ada.post("/say", json={"text": text})
    await ada.get("/said")

    with pytest.raises(LeakFoundError, match="ignore="):
        await hunt_leaks(ada, eve)


async def test_hunt_needs_clients_of_the_kit(tenants_app: Quart, client_for: ClientMaker, first_tenant: Tenant) -> None:
    """Another client knows no tenant."""
    plain: Any = tenants_app.test_client()
    with pytest.raises(TypeError, match="client_for"):
        await hunt_leaks(await client_for(first_tenant), plain)


async def test_hunt_finds_an_id_that_the_server_made(
    tenants_app: Quart, tenants: QuartTenants, client_for: ClientMaker, first_tenant: Tenant, second_tenant: Tenant
) -> None:
    """A token that the first tenant has read is in no answer to another."""
    token = uuid.uuid4().hex

    @tenants_app.get("/token", host=tenants.host)
    async def read_token() -> ResponseReturnValue:
        return {"token": token}

    ada, eve = await client_for(first_tenant, user="ada"), await client_for(second_tenant, user="eve")
    await ada.get("/token")

    with pytest.raises(LeakFoundError, match=token):
        await hunt_leaks(ada, eve)
    with pytest.raises(ValueError, match="nothing to look for"):
        await hunt_leaks(ada, eve, ignore=[token])


async def test_hunt_finds_nothing_in_the_reference_app(
    client_for: ClientMaker, first_tenant: Tenant, second_tenant: Tenant
) -> None:
    """Every route of it is asked."""
    ada, eve = await client_for(first_tenant, user="ada"), await client_for(second_tenant, user="eve")
    await ada.get("/data")
    await ada.get("/data/export")
    await ada.post("/login", form={"uname": "ada lovelace", "passwd": "a long password"})
    await ada.get("/static/style.css")
    await ada.get("/readyz")
    await ada.get("/nothing/7")
    await ada.post("/logout")

    assert await hunt_leaks(ada, eve) == 36


async def test_hunt_needs_two_tenants_and_something_to_look_for(
    client_for: ClientMaker, first_tenant: Tenant, second_tenant: Tenant
) -> None:
    """A hunt that could find nothing is an error."""
    ada, bob = await client_for(first_tenant, user="ada"), await client_for(first_tenant, user="bob")
    with pytest.raises(ValueError, match="of one tenant"):
        await hunt_leaks(ada, bob)
    with pytest.raises(ValueError, match="nothing to look for"):
        await hunt_leaks(ada, await client_for(second_tenant))


# The plugin, in a project of its own

NOTES = """
from pathlib import Path

from quart import Quart

from quart_tenants import QuartTenants, tenant_connection

tenants = QuartTenants()


def create_app():
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config["TENANTS_MIGRATIONS_DIR"] = Path(__file__).parent / "migrations"
    app.config["TENANTS_ROLE_PER_TENANT"] = True
    extension = QuartTenants(app)

    @app.get("/notes", host=extension.host)
    async def notes():
        async with tenant_connection() as connection:
            return {"notes": await connection.fetchval("SELECT count(*) FROM notes")}

    return app


def create_app_with_common_extension():
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config["TENANTS_MIGRATIONS_DIR"] = Path(__file__).parent / "migrations"
    tenants.init_app(app)
    return app
"""
CONFTEST = """
import pytest

import notes


@pytest.fixture(scope="session")
def tenants_app_factory():
    return notes.create_app
"""
TESTS = """
import pytest

import notes


async def test_two_tenants(client_for, first_tenant, second_tenant, tenants):
    async with tenants.database.tenant_connection(first_tenant) as connection:
        await connection.execute("INSERT INTO notes DEFAULT VALUES")
    assert await (await (await client_for(first_tenant)).get("/notes")).get_json() == {"notes": 1}
    assert await (await (await client_for(second_tenant)).get("/notes")).get_json() == {"notes": 0}
    assert first_tenant.role is not None


def test_sync_test(tenants_server_url):
    assert tenants_server_url.startswith("postgresql://")


def test_module_level_extension_says_why_not(monkeypatch):
    notes.create_app_with_common_extension()
    with pytest.raises(RuntimeError, match="make one QuartTenants for each app"):
        notes.create_app_with_common_extension()
"""


def test_project_of_its_own_needs_one_fixture(tmp_path: Path, server_url: str) -> None:
    """Nothing is imported for the plugin, and the roles of its tests are dropped."""
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_notes.sql").write_text(
        "CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)"
    )
    for name, text in {"notes.py": NOTES, "conftest.py": CONFTEST, "test_notes.py": TESTS}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")

    ran = run_pytest(tmp_path, server_url)

    assert "3 passed" in ran, ran


TWO_PROJECTS = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
addopts = --import-mode=importlib
pythonpath = project_x project_y
"""
TESTS_OF_TABLES = """
async def test_database_has_the_tables_of_its_app(tenants, first_tenant):
    async with tenants.database.tenant_connection(first_tenant) as connection:
        tables = await connection.fetch("SELECT DISTINCT tablename FROM pg_tables WHERE tablename IN ('x', 'y')")
    assert [row["tablename"] for row in tables] == ["{name}"]
"""


def test_projects_in_one_run_have_databases_of_their_own(tmp_path: Path, server_url: str) -> None:
    """A run over two apps fills a database for each, with its own migrations, whichever comes first."""
    for name in ("x", "y"):
        folder = tmp_path / f"project_{name}"
        (folder / "migrations").mkdir(parents=True)
        (folder / "migrations" / "0001_table.sql").write_text(f"CREATE TABLE {name} (id bigint PRIMARY KEY)")
        for file, text in {
            f"app_{name}.py": NOTES,
            "conftest.py": CONFTEST.replace("notes", f"app_{name}"),
            f"test_one_{name}.py": TESTS_OF_TABLES.format(name=name),
            f"test_other_{name}.py": TESTS_OF_TABLES.format(name=name),
        }.items():
            (folder / file).write_text(text)
    (tmp_path / "pytest.ini").write_text(TWO_PROJECTS)

    ran = run_pytest(
        tmp_path, server_url, *(f"project_{name}/test_{which}_{name}.py" for which in ("one", "other") for name in "xy")
    )

    assert "4 passed" in ran, ran


def test_project_without_the_fixture_is_told(tmp_path: Path, server_url: str) -> None:
    """The error names what to define, and where."""
    (tmp_path / "test_notes.py").write_text("def test_it(tenants_app_factory):\n    pass\n")

    ran = run_pytest(tmp_path, server_url)

    assert "tenants_app_factory is not defined: add a fixture of that name to conftest.py" in ran


def run_pytest(folder: Path, server_url: str, *files: str) -> str:
    """Return what pytest prints in *folder*, for all of its tests or those in *files*."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files],
        cwd=folder,
        env=make_environment(TEST_DATABASE_URL=server_url),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return ran.stdout + ran.stderr
