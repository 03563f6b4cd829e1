"""Shared schemas in the hands of several commands, logins and operators."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import asyncpg
import pytest

from quart_tenants.connection import Connection
from quart_tenants.errors import MigrationFailedError, RegistryNotReadyError, SharedNameError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import Finding, State, find_leaks
from quart_tenants.postgres.shared.shared_access import check_shared_schemas
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName
from tests.postgres.shared.parts import ACME, COPY, GLOBEX, TENANT_FILES, TWIN, App, write_files
from tests.support.databases import execute

pytestmark = pytest.mark.slow

READ_PLANS = "SELECT count(*) FROM plans"

only_roles = pytest.mark.parametrize("app", ["a role per tenant"], indirect=True)
only_one_role = pytest.mark.parametrize("app", ["one role"], indirect=True)
no_superuser = pytest.mark.parametrize("app", ["a role per tenant, and a login that is no superuser"], indirect=True)


async def examine(app: App) -> dict[str, Finding]:
    """Return the doctor's findings by the name of their check."""
    return {finding.check: finding for finding in await find_leaks(app.database, settings=app.settings)}


async def find_readers(app: App) -> str:
    """Return the role of those who read the shared schemas."""
    role = (await app.get(ACME)).role
    assert role is not None
    return f"{role.name.rpartition('_')[0]}_readers"


@no_superuser
async def test_login_goes_on_after_a_superuser_has_migrated(app: App) -> None:
    """New tenants get their rights, and the doctor names what the login cannot change."""
    readers = await find_readers(app)
    await execute(app.superuser_url, f"DROP OWNED BY {readers}; DROP ROLE {readers}")
    write_files(app.shared_files, {"0003_rates.sql": "CREATE TABLE rates (n integer)"})
    settings = replace(app.settings, database_url=app.superuser_url)
    async with await Database.open(settings, max_size=1) as database:
        await migrate_shared(database, settings=settings)

    tenant = await create_tenant(app.database, COPY, "Copy", settings=app.settings)

    async with app.database.tenant_connection(tenant) as connection:
        assert await connection.fetchval(READ_PLANS) == 2
    finding = (await examine(app))["shared tables"]
    assert (finding.state, "table common.rates" in finding.seen) == (State.WARNING, True)


@only_roles
async def test_tenant_that_lacks_its_rights_is_found_and_healed(app: App) -> None:
    """Such as one that was made by an older worker while the first shared schema was set up."""
    tenant = await app.get(ACME)
    assert tenant.role is not None
    await execute(app.superuser_url, f"REVOKE {await find_readers(app)} FROM {tenant.role.quoted}")
    with pytest.raises(asyncpg.UndefinedTableError):
        async with app.database.tenant_connection(tenant) as connection:
            await connection.fetchval(READ_PLANS)
    finding = (await examine(app))["shared rights"]
    assert (finding.state, finding.remedy) == (State.WARNING, "run quart-tenants migrate")

    await migrate_shared(app.database, settings=app.settings)

    assert (await examine(app))["shared rights"].state is State.OK
    async with app.database.tenant_connection(tenant) as connection:
        assert await connection.fetchval(READ_PLANS) == 2


async def test_first_commands_at_once_make_one_schema(settings: Settings) -> None:
    """Of several programs that start together none fails."""
    settings = replace(settings, shared_schemas=(SchemaName("common"),))
    async with AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(await Database.open(settings, max_size=1)) for _ in range(4)]
        results = await asyncio.gather(*(migrate_shared(database, settings=settings) for database in databases))

    assert results == [()] * 4


@only_one_role
async def test_command_that_waited_does_not_pass_a_file_over(app: App) -> None:
    """The other one ran the first file and failed at the second; so does this one."""
    write_files(
        app.shared_files,
        {
            "0003_slow.sql": "CREATE TABLE slow (a integer); SELECT pg_sleep(0.3)",
            "0004_broken.sql": "-- quart-tenants: no transaction\nCREATE INDEX CONCURRENTLY slow_a ON nothing (a)",
        },
    )
    settings = replace(app.settings, migration_attempts=1)

    async def run() -> object:
        async with await Database.open(settings, max_size=1) as database:
            return await migrate_shared(database, settings=settings)

    results = await asyncio.gather(run(), run(), return_exceptions=True)

    assert [type(result) for result in results] == [MigrationFailedError] * 2
    assert all("0004_broken.sql" in str(result) for result in results)


@only_one_role
async def test_tenant_that_is_being_made_counts(app: App) -> None:
    """Neither transaction would see the name that the other makes, so one waits for the other."""
    own = app.tenant_files.parent / "new"
    own.mkdir()
    write_files(own, TENANT_FILES | {"0003_rates.sql": "CREATE TABLE rates ()"})
    write_files(app.shared_files, {"0003_rates.sql": "CREATE TABLE rates ()"})
    made, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_: Connection) -> None:
        made.set()
        await go_on.wait()

    settings = replace(app.settings, migrations_dir=own)
    creating = asyncio.create_task(create_tenant(app.database, COPY, "Copy", settings=settings, fill=hold))
    await made.wait()
    impatient = replace(app.settings, migration_attempts=1, migration_lock_timeout=0.1)
    async with await Database.open(impatient, max_size=1) as database:
        with pytest.raises(MigrationFailedError, match="lock timeout"):
            await migrate_shared(database, settings=impatient)
        go_on.set()
        await creating
        with pytest.raises(SharedNameError, match="relation rates of schema copy"):
            await migrate_shared(database, settings=impatient)


@only_one_role
async def test_other_shared_schema_is_refused_after_files_have_run(app: App) -> None:
    """Otherwise an empty schema would be made, and everything would be called up to date."""
    renamed = replace(app.settings, shared_schemas=(SchemaName("renamed"), SchemaName("More things")))
    with pytest.raises(RegistryNotReadyError, match=r"run in schema common.*begins with renamed: put common first"):
        await migrate_shared(app.database, settings=renamed)
    async with app.database.connection() as connection:
        with pytest.raises(RegistryNotReadyError, match="put common first"):
            await check_shared_schemas(connection, settings=renamed)
        assert await connection.fetchval("SELECT to_regnamespace('renamed')") is None

    await execute(app.superuser_url, "DROP SCHEMA common CASCADE")
    with pytest.raises(RegistryNotReadyError, match="common is gone, although files have run in it"):
        await migrate_shared(app.database, settings=app.settings)


@only_one_role
async def test_shared_schema_that_is_a_tenants_is_refused_at_start(app: App) -> None:
    """Every tenant would read that tenant's rows."""
    settings = replace(app.settings, shared_schemas=(SchemaName("common"), SchemaName("acme")))
    async with app.database.connection() as connection:
        with pytest.raises(RegistryNotReadyError, match="names the schema of tenant 'acme'"):
            await check_shared_schemas(connection, settings=settings)


@only_roles
@pytest.mark.parametrize(
    ("statement", "check", "state"),
    [
        ("GRANT pg_read_all_data TO {readers}", "roles' rights", State.LEAK),
        ("GRANT pg_write_all_data TO {readers}", "roles' rights", State.LEAK),
        ("ALTER ROLE {readers} BYPASSRLS", "roles' rights", State.LEAK),
        ("GRANT USAGE ON SCHEMA acme TO {readers}", "grants", State.LEAK),
        ("GRANT INSERT ON common.plans TO {readers}", "shared schemas", State.LEAK),
        ("GRANT UPDATE (name) ON common.plans TO PUBLIC", "shared schemas", State.LEAK),
        ("CREATE SEQUENCE common.n; GRANT UPDATE ON SEQUENCE common.n TO PUBLIC", "shared schemas", State.LEAK),
        ("GRANT CREATE ON SCHEMA common TO {readers}", "shared schemas", State.LEAK),
    ],
)
async def test_doctor_finds_rights_that_all_tenants_would_have(
    app: App, statement: str, check: str, state: State
) -> None:
    """All tenants' roles inherit what their common role may do."""
    assert (await examine(app))[check].state is State.OK

    await execute(app.superuser_url, statement.format(readers=await find_readers(app)))

    assert (await examine(app))[check].state is state


@no_superuser
async def test_parts_of_an_extension_block_nothing(app: App) -> None:
    """A view of an extension that a superuser has put there needs no grant of ours."""
    await execute(app.superuser_url, "CREATE EXTENSION pg_stat_statements SCHEMA common")

    assert await migrate_shared(app.database, settings=app.settings) == ()
    assert (await examine(app))["shared tables"].state is State.OK


@only_one_role
async def test_extension_with_a_schema_of_its_own_may_stand_in_a_tenants_file(app: App) -> None:
    """Such a file may have run for tenants before there were shared files, and does nothing the next time."""
    text = 'CREATE EXTENSION IF NOT EXISTS unaccent SCHEMA "More things";'
    write_files(app.tenant_files, {"0003_unaccent.sql": text})

    for slug in (COPY, TWIN):
        tenant = await create_tenant(app.database, slug, slug, settings=app.settings)
        async with app.database.tenant_connection(tenant) as connection:
            assert await connection.fetchval("SELECT unaccent('é')") == "e"


@only_one_role
@pytest.mark.parametrize(
    ("own", "shared", "kind"),
    [
        ("CREATE DOMAIN list AS integer[]", "CREATE DOMAIN list AS integer[]", "type"),
        ("CREATE TYPE thing AS ENUM ('a')", "CREATE TABLE thing ()", "type"),
        ("CREATE DOMAIN thing AS text", "CREATE TABLE thing ()", "type"),
        ('CREATE COLLATION mine FROM "C"', 'CREATE COLLATION mine FROM "C"', "collation"),
        (
            "CREATE TEXT SEARCH CONFIGURATION mine (PARSER = default)",
            "CREATE TEXT SEARCH CONFIGURATION mine (PARSER = default)",
            "text search configuration",
        ),
        (
            "CREATE OPERATOR === (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4eq)",
            "CREATE OPERATOR === (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4ne)",
            "operator",
        ),
    ],
)
async def test_every_kind_of_name_is_looked_at(app: App, own: str, shared: str, kind: str) -> None:
    """Whatever is found by the path could be found in the wrong schema."""
    await execute(app.superuser_url, f"SET search_path TO globex; {own}")
    write_files(app.shared_files, {"0003_more.sql": shared})

    with pytest.raises(SharedNameError, match=rf"{kind} \S+ of schema globex"):
        await migrate_shared(app.database, settings=app.settings)


@only_one_role
async def test_names_that_only_look_alike_are_no_clash(app: App) -> None:
    """Arrays have no names of their own, and operators of other types are others."""
    await execute(
        app.superuser_url,
        "SET search_path TO globex; CREATE TABLE _plans (); "
        " CREATE OPERATOR = (LEFTARG = point, RIGHTARG = point, FUNCTION = point_eq)",
    )

    assert await migrate_shared(app.database, settings=app.settings) == ()
    assert (await app.get(GLOBEX)).slug == "globex"
