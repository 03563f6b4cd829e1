"""Nobody but its own tenant reaches a schema after any command, whether roles are on, off, or were on."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quart_tenants.postgres.backups import restore_scripts
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import copy_tenant, restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import State, find_leaks
from quart_tenants.postgres.fleet.role_setup import give_roles, make_owner
from quart_tenants.postgres.tenants.lifecycle import rename_tenant, resume_tenant, suspend_tenant
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant, list_trash, undrop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, parse_slug
from tests.support.databases import execute, let_names_rest

pytestmark = pytest.mark.slow

ACME, BESIDE, COPY, NEW, OLD, ZENITH = map(parse_slug, ("acme", "beside", "copy", "new", "old", "zenith"))
# Of each schema of a tenant: who may look into it, but for its owner.
LIST_GRANTEES = """
SELECT t.slug, x.grantee::regrole::text AS grantee, t.role_name
FROM quart_tenants.tenants AS t JOIN pg_namespace AS n ON n.nspname = t.schema_name
CROSS JOIN aclexplode(n.nspacl) AS x
WHERE x.grantee <> n.nspowner AND t.dropped_at IS NOT NULL
"""


@pytest.fixture(params=["on", "off", "on, then off"])
async def life_settings(
    request: pytest.FixtureRequest, login_settings: Settings, settings: Settings
) -> AsyncIterator[Settings]:
    """Settings of a database with acme and globex, in each state that the setting may be in."""
    if request.param == "off":
        yield settings
    else:
        yield replace(login_settings, role_per_tenant=request.param == "on")


async def find_problems(database: Database, settings: Settings) -> list[str]:
    """Return what doctor's checks of the catalogue find, but for warnings, and who looks into the trash of another."""
    findings = await find_leaks(database, settings=settings)
    async with database.connection() as connection:
        strangers = [
            f"{row['grantee']} on {row['slug']}"
            for row in await connection.fetch(LIST_GRANTEES)
            if row["grantee"] != row["role_name"]
        ]
    return [finding.seen for finding in findings if finding.state in (State.LEAK, State.FAILED)] + strangers


async def test_doctor_finds_nothing_after_any_command(life_settings: Settings, tmp_path: Path) -> None:
    """What a tenant's role reaches is that tenant's, after each command of a tenant's life."""
    settings, file = life_settings, tmp_path / "acme.tar"
    async with await Database.open(settings, max_size=2) as database:
        await execute(settings.required_database_url, "CREATE SCHEMA old", "CREATE TABLE old.things ()")
        await backup_tenant(database, ACME, file, settings=settings)

        async def replace_acme() -> None:
            await restore_tenant(database, file, ACME, settings=settings, replace=True)

        async def undrop_replaced() -> None:
            await undrop_tenant(database, (await list_trash(database))[0].slug, settings=settings)

        commands: dict[str, Callable[[], Awaitable[object]]] = {
            "create": lambda: create_tenant(database, NEW, "New", settings=settings),
            "adopt": lambda: adopt_schemas(database, {OLD: SchemaName("old")}, settings=settings, version=0),
            "copy": lambda: copy_tenant(database, ACME, COPY, "Copy", settings=settings),
            "restore": lambda: restore_tenant(database, file, BESIDE, settings=settings),
            "replace": replace_acme,
            "undrop what was replaced": undrop_replaced,
            "replace once more": replace_acme,
            "suspend": lambda: suspend_tenant(database, ACME),
            "resume": lambda: resume_tenant(database, ACME),
            "rename": lambda: rename_tenant(database, ACME, ZENITH, settings=settings),
            "drop": lambda: drop_tenant(database, ZENITH),
            "undrop": lambda: undrop_tenant(database, ZENITH, settings=settings),
            "drop again": lambda: drop_tenant(database, ZENITH),
            "purge": lambda: purge_trash(database, settings=settings, older_than_days=0),
        }
        assert await find_problems(database, settings) == []
        for name, command in commands.items():
            await command()
            assert (name, await find_problems(database, settings)) == (name, [])
            await let_names_rest(database)
        assert await list_trash(database) == []


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "negative control: left open"])
async def test_role_of_a_replaced_tenant_does_not_follow_its_tables(
    login_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """Roles were on, are off, and are on again: the trash is shut meanwhile, and then open to its own role alone."""
    off, file = replace(login_settings, role_per_tenant=False), tmp_path / "acme.tar"
    if not closed:
        monkeypatch.setattr(restore_scripts, "_CLOSE_SCHEMA", "SELECT 'SELECT 1' WHERE $1::text IS NULL")
    async with await Database.open(off, max_size=2) as database:
        await backup_tenant(database, ACME, file, settings=off)
        await restore_tenant(database, file, ACME, settings=off, replace=True)

        found = await find_problems(database, off)

        assert bool(found) == (not closed)
        if not closed:
            assert "roles with USAGE that must not have it" in found[0]

    async with await Database.open(login_settings, max_size=2) as database:
        owner, without = await make_owner(database)
        await give_roles(database, owner, without, on_done=lambda *_: None)
        assert await find_problems(database, login_settings) == []
