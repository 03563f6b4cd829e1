"""Jobs over all tenants: each works as its tenant, and no failure stops the others."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable

import pytest
from click.testing import Result
from quart import Quart, ResponseReturnValue
from werkzeug.routing import BuildError

from quart_tenants import (
    PoolExhaustedError,
    QuartTenants,
    Tenant,
    current_tenant,
    find_tenant,
    for_each_tenant,
    tenant_connection,
    tenant_url,
)
from quart_tenants.admin import change_tenant_settings, create_tenant, get_tenant, parse_slug, suspend_tenant
from quart_tenants.errors import InvalidSettingsError, NoTenantError, OtherTenantError, SettingError
from quart_tenants.settings import read_settings
from tests.support.databases import REFERENCE_FILES
from tests.web.commands.runs import Run

pytestmark = pytest.mark.slow

ALL = ["acme", "company1", "company2", "globex"]
ACME = parse_slug("acme")


def make_app(database_url: str, **config: object) -> tuple[Quart, QuartTenants]:
    """Return an app with a page for each kind of host."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url, **config)
    tenants = QuartTenants(app)

    @app.get("/notes/<int:number>", host=tenants.host)
    async def note(number: int) -> ResponseReturnValue:
        return {"number": number}

    @app.get("/prices", host=tenants.apex_host)
    async def prices() -> ResponseReturnValue:
        return {"note": tenant_url("acme", "note", number=1)}

    @app.get("/everybody", host=tenants.any_host)
    async def everybody() -> ResponseReturnValue:
        return {"slugs": [result.value for result in await for_each_tenant(say_slug)]}

    return app, tenants


async def say_slug(tenant: Tenant) -> str:
    """Return the slug of the current tenant, as the database has it."""
    async with tenant_connection() as connection:
        slug: str = await connection.fetchval("SELECT current_schema()")
    assert slug == tenant.slug == current_tenant.slug
    return slug


@pytest.fixture
async def tenants(database_url: str) -> AsyncIterator[QuartTenants]:
    """The extension of an app, in a script."""
    app, tenants = make_app(database_url)
    async with app.app_context(), tenants.running():
        yield tenants


# Loops


async def test_each_tenant_is_worked_for_once(tenants: QuartTenants) -> None:
    """The results come in order of slug, and afterwards there is no current tenant."""
    results = await for_each_tenant(say_slug, jobs=2)

    assert [result.value for result in results] == ALL
    assert [result.error for result in results] == [None] * 4
    assert find_tenant() is None


async def test_failure_of_one_tenant_stops_no_other(tenants: QuartTenants) -> None:
    """Its exception is in its result."""

    async def fail_for_some(tenant: Tenant) -> str:
        if tenant.slug.startswith("company"):
            raise ValueError(tenant.slug)
        return tenant.slug

    results = await for_each_tenant(fail_for_some)

    assert [result.value for result in results] == ["acme", None, None, "globex"]
    assert [str(result.error) for result in results if result.error] == ["company1", "company2"]


async def test_suspended_are_left_out_and_new_ones_are_not(tenants: QuartTenants) -> None:
    """What another process changed before the call counts."""
    await suspend_tenant(tenants.database, ACME)
    await create_tenant(tenants.database, parse_slug("newco"), "Newco", settings=tenants.settings)

    results = await for_each_tenant(say_slug)

    assert [result.tenant.slug for result in results] == ["company1", "company2", "globex", "newco"]


async def test_so_many_jobs_run_at_a_time(tenants: QuartTenants) -> None:
    """`jobs` is the limit."""
    running = most = 0

    async def count(_: Tenant) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await for_each_tenant(count, jobs=3)

    assert most == 3
    with pytest.raises(ValueError, match="jobs is 0"):
        await for_each_tenant(count, jobs=0)


async def test_cancelled_loop_stops_all(tenants: QuartTenants) -> None:
    """A job that is ended leaves nothing running."""
    begun, ended = [], []

    async def hang(tenant: Tenant) -> None:
        begun.append(tenant.slug)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(tenant.slug)

    loop = asyncio.create_task(for_each_tenant(hang, jobs=2))
    while len(begun) < 2:
        await asyncio.sleep(0)
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop

    assert sorted(ended) == sorted(begun)
    assert len(begun) == 2


async def test_work_for_one_tenant_cannot_reach_another(tenants: QuartTenants) -> None:
    """Inside the loop the tenant is fixed, as in a request."""

    async def peek(tenant: Tenant) -> None:
        async with tenant_connection("globex" if tenant.slug == "acme" else "acme"):
            pass

    results = await for_each_tenant(peek)

    assert {type(result.error) for result in results} == {OtherTenantError}


async def test_page_of_a_tenant_cannot_loop_over_all(database_url: str) -> None:
    """The domain's own page may, a tenant's may not."""
    app, _ = make_app(database_url)
    async with app.test_app():
        client = app.test_client()
        apex = await client.get("/everybody", headers={"Host": "localhost"})
        own = await client.get("/everybody", headers={"Host": "acme.localhost"})

    assert await apex.get_json() == {"slugs": ALL}
    assert own.status_code == 500


# Commands


@pytest.fixture
def looping(database_url: str) -> Callable[..., Result]:
    """Run a command that greets each tenant, or fails for some of them."""
    app, tenants = make_app(database_url)

    @tenants.each_tenant_command("greet", jobs=2)
    async def greet(tenant: Tenant) -> str:
        """Greet each tenant."""
        if tenant.slug == os.environ.get("UNKIND_TO"):
            raise KeyError("name")
        if tenant.slug == os.environ.get("BUSY"):
            raise PoolExhaustedError("all are in use")
        return f"hello from {await say_slug(tenant)}"

    with pytest.raises(ValueError, match="there is a command 'migrate' already"):
        tenants.each_tenant_command("migrate")
    return lambda *args, **env: app.test_cli_runner().invoke(args=["tenants", *args], env=env)


def test_command_works_for_each_tenant(looping: Callable[..., Result]) -> None:
    """It prints a line for each, and its help is the function's docstring."""
    ran = looping("greet")

    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [f"{slug}: hello from {slug}" for slug in ALL]
    assert "Greet each tenant." in looping("greet", "--help").stdout


def test_command_goes_on_behind_a_tenant_that_fails(
    looping: Callable[..., Result], caplog: pytest.LogCaptureFixture
) -> None:
    """The others are worked for, the failures are named on stderr, and the log has the traceback of a bug only."""
    ran = looping("greet", UNKIND_TO="company1", BUSY="globex")

    assert ran.exit_code == 1
    assert [line.partition(":")[0] for line in ran.stdout.splitlines()] == ["acme", "company2"]
    assert ran.stderr.splitlines() == [
        "company1: 'name'",
        "globex: all are in use",
        "Error: 2 of 4 tenants failed",
    ]
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError]


# Addresses


async def test_address_is_built_in_a_script(database_url: str) -> None:
    """The setting says scheme and port; a tenant is named by its slug or as an object, the domain itself by None."""
    app, tenants = make_app(database_url, TENANTS_PUBLIC_URL="https://localhost:8443/")
    async with app.app_context(), tenants.running():
        acme = await get_tenant(tenants.database, ACME)
        assert tenant_url(acme, "note", number=7) == "https://acme.localhost:8443/notes/7"
        assert tenant_url("acme", "note", number=7, page=2) == "https://acme.localhost:8443/notes/7?page=2"
        assert tenant_url("globex", "everybody") == "https://globex.localhost:8443/everybody"
        assert tenant_url(None, "prices") == "https://localhost:8443/prices"
        for tenant, endpoint in (("acme", "nothing"), ("acme", "note"), (None, "note")):
            with pytest.raises(BuildError):
                tenant_url(tenant, endpoint)
        forgotten = get_tenant(tenants.database, ACME)
        with pytest.raises(TypeError, match="tenant is of type coroutine"):
            tenant_url(forgotten, "note", number=7)  # type: ignore[arg-type]
        await forgotten


async def test_address_in_a_request_has_its_port(database_url: str) -> None:
    """There the setting is not needed."""
    app, _ = make_app(database_url)
    async with app.test_app():
        answer = await app.test_client().get("/prices", headers={"Host": "localhost:5000"})

    assert await answer.get_json() == {"note": "http://acme.localhost:5000/notes/1"}


async def test_address_without_the_setting_names_it(tenants: QuartTenants) -> None:
    """A script is told which setting is missing."""
    with pytest.raises(SettingError, match="TENANTS_PUBLIC_URL is not set"):
        tenant_url("acme", "note", number=1)


def test_address_outside_an_app_is_an_error() -> None:
    """There is nobody to ask."""
    with pytest.raises(NoTenantError, match="app_context"):
        tenant_url("acme", "note", number=1)


@pytest.mark.parametrize(
    "value",
    ["localhost", "ftp://localhost", "https://", "https://localhost/app", "https://u:p@localhost", "https://x:y", 7],
)
def test_wrong_public_url_is_refused(value: object) -> None:
    """It is the address of the domain itself, and nothing else."""
    with pytest.raises(SettingError, match="TENANTS_PUBLIC_URL is"):
        read_settings({"TENANTS_PUBLIC_URL": value})


def test_public_url_of_another_domain_is_refused() -> None:
    """Links would lead elsewhere."""
    with pytest.raises(SettingError, match=r"whose host is not TENANTS_DOMAIN, example\.com"):
        read_settings({"TENANTS_PUBLIC_URL": "https://example.org", "TENANTS_DOMAIN": "example.com"})


# Settings of a tenant


async def test_settings_of_a_tenant_reach_the_worker(tenants: QuartTenants) -> None:
    """New values come, other names keep theirs, and None removes one. A reader cannot change them."""
    await change_tenant_settings(tenants.database, ACME, {"plan": "large", "seats": 5})
    changed = await change_tenant_settings(tenants.database, ACME, {"seats": None, "colours": ["red", "ä'\""]})
    await tenants.registry.refresh()

    known = tenants.registry.get_tenant(ACME)
    assert known == changed
    assert dict(known.settings) == {"plan": "large", "colours": ["red", "ä'\""]}
    assert dict(tenants.registry.get_tenant(parse_slug("globex")).settings) == {}
    with pytest.raises(TypeError):
        known.settings["plan"] = "free"  # type: ignore[index]


@pytest.mark.parametrize(
    "changes",
    [{"": 1}, {"a": float("nan")}, {"a": object()}, {"a": "\0"}, {"a": "x" * 17000}],
    ids=["no name", "NaN", "no JSON", "NUL", "too long"],
)
async def test_settings_that_are_no_json_are_refused(tenants: QuartTenants, changes: dict[str, object]) -> None:
    """Nothing is changed then."""
    with pytest.raises(InvalidSettingsError):
        await change_tenant_settings(tenants.database, ACME, {"good": 1} | changes)

    assert dict((await get_tenant(tenants.database, ACME)).settings) == {}


def test_command_shows_and_changes_settings(run: Run) -> None:
    """A value is JSON, or else a text; the answer is one JSON object."""
    assert run("settings", "acme").out == "{}\n"
    assert run("settings", "acme", "plan=large", "seats=5", 'list=["a"]').status == 0
    changed = run("settings", "acme", "seats=6", "--remove", "list")

    assert (changed.status, changed.out) == (0, '{"plan": "large", "seats": 6}\n')
    assert run("settings", "nobody").status == 1
    for wrong in (["plan"], ["=x"], ["a=1", "a=2"], ["a=1", "--remove", "a"]):
        assert run("settings", "acme", *wrong).status == 2
