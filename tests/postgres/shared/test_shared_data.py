"""What all tenants share: they read it, join it and refer to it, and cannot write it where each has a role."""

import re
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from quart_tenants.errors import MigrationFileError, SettingError, TenantBusyError, UnknownTenantError
from quart_tenants.postgres.backups import restore_scripts
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import copy_tenant, restore_tenant
from quart_tenants.postgres.blocks.block import list_path
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import State, find_leaks
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant, undrop_tenant
from quart_tenants.tenant import SchemaName, Slug
from tests.postgres.shared.parts import ACME, COPY, GLOBEX, TWIN, App
from tests.support.databases import execute

pytestmark = pytest.mark.slow

ADD_ADA = "INSERT INTO members (email, name, tags, plan_id) VALUES ('Ada@Example.com', 'Ada Lovelace', 'a=>1', 2)"
LIST_MEMBERS = """
SELECT m.email::text AS email, p.name AS plan, m.tags -> 'a' AS tag
FROM members AS m JOIN plans AS p ON p.id = m.plan_id WHERE m.email = $1
"""
ADA = [("Ada@Example.com", "large", "1")]


async def list_members(app: App, slug: Slug, email: str) -> list[tuple[str, str, str]]:
    """Return the tenant's members with that address, with the name of the plan."""
    async with app.database.tenant_connection(await app.get(slug)) as connection:
        return [tuple(row) for row in await connection.fetch(LIST_MEMBERS, email)]


async def add_ada(app: App) -> None:
    """Give acme one member."""
    async with app.database.tenant_connection(await app.get(ACME)) as connection:
        await connection.execute(ADD_ADA)


# Reading


async def test_shared_schemas_lie_behind_the_tenants(app: App) -> None:
    """The path of a block has the tenant's schema, and then the shared ones in their order."""
    async with app.database.tenant_connection(await app.get(ACME)) as connection:
        assert await list_path(connection) == ["acme", "common", "More things"]


async def test_tenants_read_what_is_shared_and_their_own_rows(app: App) -> None:
    """A join of a tenant's table with a shared one needs no name of a schema."""
    await add_ada(app)

    assert await list_members(app, ACME, "Ada@Example.com") == ADA
    assert await list_members(app, GLOBEX, "Ada@Example.com") == []


async def test_foreign_key_to_a_shared_table_holds(app: App) -> None:
    """A tenant's row cannot refer to a plan that does not exist, and a plan in use cannot be deleted."""
    await add_ada(app)
    async with app.database.tenant_connection(await app.get(ACME)) as connection:
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            async with connection.transaction():
                await connection.execute("INSERT INTO members (email, plan_id) VALUES ('b@x.test', 3)")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        async with app.database.shared_connection() as connection:
            await connection.execute("DELETE FROM plans WHERE id = 2")


async def test_citext_is_compared_without_case(app: App) -> None:
    """A parameter that is compared with a citext column is one: the extension's operators are on the path."""
    await add_ada(app)

    assert await list_members(app, ACME, "ADA@example.COM") == ADA
    with pytest.raises(asyncpg.UniqueViolationError):
        async with app.database.tenant_connection(await app.get(ACME)) as connection:
            await connection.execute("INSERT INTO members (email) VALUES ($1)", "ada@example.com")


async def test_trigrams_are_searched_by_their_index(app: App) -> None:
    """`%` and `similarity()` are found, and a tenant's index uses the shared operator class."""
    await add_ada(app)
    async with app.database.tenant_connection(await app.get(ACME)) as connection:
        await connection.execute("SET LOCAL enable_seqscan TO off")
        found = await connection.fetchval("SELECT name FROM members WHERE name % $1", "Ada Lovelance")
        assert found == "Ada Lovelace"
        assert await connection.fetchval("SELECT similarity('word', 'words')") > 0.5
        plan = await connection.fetch("EXPLAIN SELECT name FROM members WHERE name % 'Ada Lovelance'")
    assert any("members_by_name" in row[0] for row in plan)


# Writing


async def test_tenants_with_roles_cannot_write_what_is_shared(app: App) -> None:
    """Every way to change a shared table is refused in a tenant's block. Without roles none is, as the docs say."""
    refused = 0
    async with app.database.tenant_connection(await app.get(ACME)) as connection:
        for statement in (
            "INSERT INTO plans VALUES (3, 'mine')",
            "UPDATE plans SET name = 'mine'",
            "DELETE FROM plans",
            "TRUNCATE plans CASCADE",
            "SELECT * FROM plans FOR UPDATE",
            "CREATE TABLE common.mine ()",
            "DROP TABLE plans CASCADE",
        ):
            try:
                async with connection.transaction():
                    await connection.execute(statement)
                    raise LookupError
            except asyncpg.InsufficientPrivilegeError:
                refused += 1
            except LookupError:
                continue
    assert refused == (7 if app.settings.role_per_tenant else 0)


async def test_shared_connection_writes_what_all_tenants_read(app: App) -> None:
    """An operator's page changes a plan, and every tenant reads it."""
    async with app.database.shared_connection() as connection:
        assert await list_path(connection) == ["common", "More things"]
        await connection.execute("UPDATE plans SET name = $1 WHERE id = 2", "huge")
    for slug in (ACME, GLOBEX):
        async with app.database.tenant_connection(await app.get(slug)) as connection:
            assert await connection.fetchval("SELECT name FROM plans WHERE id = 2") == "huge"


async def test_shared_connection_without_shared_schemas_names_the_setting(one_connection_database: Database) -> None:
    """An app that shares nothing is told which setting is missing."""
    with pytest.raises(SettingError, match="TENANTS_SHARED_SCHEMAS names no schema"):
        one_connection_database.shared_connection()


async def test_table_that_is_made_by_hand_later_is_read_too(app: App) -> None:
    """The rights cover what the login makes later, without a migration."""
    await execute(app.settings.required_database_url, "CREATE TABLE common.currencies AS SELECT 'EUR' AS code")

    async with app.database.tenant_connection(await app.get(ACME)) as connection:
        assert await connection.fetchval("SELECT code FROM currencies") == "EUR"


async def test_doctor_finds_no_leak_and_a_shared_table_that_tenants_may_write(app: App) -> None:
    """All is well after `init`; a grant that lets tenants write is a leak."""
    findings = {finding.check: finding for finding in await find_leaks(app.database, settings=app.settings)}
    assert {name for name, one in findings.items() if one.state in (State.LEAK, State.FAILED)} == set()
    assert findings["shared names"].state is State.OK
    if not app.settings.role_per_tenant:
        return
    await execute(app.settings.required_database_url, "GRANT UPDATE ON common.plans TO PUBLIC")

    findings = {finding.check: finding for finding in await find_leaks(app.database, settings=app.settings)}

    assert findings["shared schemas"].state is State.LEAK
    assert "PUBLIC has UPDATE on TABLE common.plans" in findings["shared schemas"].seen
    assert findings["shared schemas"].remedy == "REVOKE UPDATE ON TABLE common.plans FROM PUBLIC"


# Life


async def test_backup_comes_back_with_its_links_to_what_is_shared(app: App, tmp_path: Path) -> None:
    """Backup, restore beside, restore in place and copy keep citext, hstore, the index and the foreign key."""
    await add_ada(app)
    file = tmp_path / "acme.tar"
    await backup_tenant(app.database, ACME, file, settings=app.settings)
    await restore_tenant(app.database, file, COPY, settings=app.settings)
    await copy_tenant(app.database, ACME, TWIN, "Twin", settings=app.settings)
    await restore_tenant(app.database, file, ACME, settings=app.settings, replace=True)

    for slug in (ACME, COPY, TWIN):
        assert await list_members(app, slug, "ada@example.com") == ADA
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            async with app.database.tenant_connection(await app.get(slug)) as connection:
                await connection.execute("UPDATE members SET plan_id = 3")


async def test_purge_leaves_what_is_shared(app: App) -> None:
    """A tenant goes with its rows and its foreign key; plans, extensions and the other tenant stay."""
    await add_ada(app)
    await drop_tenant(app.database, ACME)
    await undrop_tenant(app.database, ACME, settings=app.settings)
    assert await list_members(app, ACME, "ada@example.com") == ADA

    await drop_tenant(app.database, ACME)
    await purge_trash(app.database, settings=replace(app.settings, trash_days=0))

    async with app.database.shared_connection() as connection:
        assert await connection.fetchval("DELETE FROM plans WHERE id = 2 RETURNING name") == "large"
    assert await list_members(app, GLOBEX, "x") == []


async def test_adopted_schema_reads_what_is_shared(app: App) -> None:
    """A schema that exists already may become a tenant, and gets its rights to what is shared."""
    await execute(app.settings.required_database_url, "CREATE SCHEMA old")
    (tenant,) = await adopt_schemas(app.database, {COPY: SchemaName("old")}, settings=app.settings, version=0)

    async with app.database.tenant_connection(tenant) as connection:
        assert await connection.fetchval("SELECT count(*) FROM plans") == 2


async def test_extension_in_a_tenants_file_is_refused(app: App) -> None:
    """The first tenant's schema would swallow it; the error says where it belongs."""
    (app.tenant_files / "0003_more.sql").write_text("CREATE TABLE x ();\nCREATE EXTENSION unaccent;")

    with pytest.raises(MigrationFileError, match=r"line 2: an extension belongs.*TENANTS_SHARED_MIGRATIONS_DIR"):
        await create_tenant(app.database, COPY, "Copy", settings=app.settings)


async def test_restore_waits_for_no_reader_of_a_shared_table(app: App, tmp_path: Path) -> None:
    """A reader's open transaction on a shared table holds up neither a restore nor a copy, nor they the readers."""
    file = tmp_path / "acme.tar"
    backup = await backup_tenant(app.database, ACME, file, settings=app.settings)
    assert backup.rows is not None
    reader = await asyncpg.connect(app.superuser_url)
    try:
        async with reader.transaction():
            await reader.execute("SELECT * FROM common.plans")

            await restore_tenant(app.database, file, COPY, settings=app.settings)
            await copy_tenant(app.database, ACME, TWIN, "A twin", settings=app.settings)

            # Negative control: to drop a key, PostgreSQL locks also the table that it refers to.
            with pytest.raises(asyncpg.LockNotAvailableError):
                await execute(
                    app.superuser_url,
                    "SET lock_timeout TO '50ms'; ALTER TABLE copy.members DROP CONSTRAINT members_plan_id_fkey",
                )
    finally:
        await reader.close()


async def test_restore_says_who_writes_a_shared_table(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore that gives up names who is in its way: process, role, program, age and statement without values."""
    monkeypatch.setattr(restore_scripts, "_BEGIN", restore_scripts._BEGIN.replace("5s", "1s"))
    file = tmp_path / "acme.tar"
    await backup_tenant(app.database, ACME, file, settings=app.settings)
    writer = await asyncpg.connect(app.superuser_url, server_settings={"application_name": "the importer"})
    try:
        async with writer.transaction():
            await writer.execute("INSERT INTO common.plans VALUES (9, 'a secret')")

            with pytest.raises(TenantBusyError) as refusal:
                await restore_tenant(app.database, file, COPY, settings=app.settings)
    finally:
        await writer.close()

    told = refusal.value.in_the_way
    assert told.startswith(f"table common.plans is in use by pid {writer.get_server_pid()} of role ")
    # What another role does is shown to a superuser only.
    if "idle in transaction" in told:
        assert re.search(
            r" in the importer for \d+\.\d s \(idle in transaction: INSERT INTO common\.plans VALUES", told
        )
    else:
        assert app.settings.required_database_url != app.superuser_url
    assert "secret" not in told
    with pytest.raises(UnknownTenantError):
        await app.get(COPY)
