"""Dropping, purging and replacing a tenant deletes what is the tenant's, and nothing of anybody else's."""

import asyncio
import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from quart_tenants.errors import DependentsError
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.client_programs import build_environment, find_client_programs
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.tenants.dependents import list_dependents
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant, list_trash, undrop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, parse_slug

pytestmark = pytest.mark.slow

ACME, GLOBEX = parse_slug("acme"), parse_slug("globex")

# What acme has. {acme} is its schema, which has another name in the trash.
OF_ACME = [
    "CREATE TYPE acme.mood AS ENUM ('glad', 'sad')",
    "CREATE TYPE acme.pair AS (a int, b int)",
    "CREATE DOMAIN acme.positive AS int CHECK (VALUE > 0)",
    "CREATE EXTENSION citext SCHEMA acme",
    "CREATE FUNCTION acme.twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1'",
    "CREATE FUNCTION acme.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "CREATE TABLE acme.orders (id int PRIMARY KEY, mood acme.mood, plan int REFERENCES common.plans)",
    "CREATE VIEW acme.own AS SELECT * FROM acme.orders",
    "INSERT INTO acme.orders VALUES (1, 'glad', 1)",
]
OF_OTHERS = [
    "CREATE SCHEMA common",
    "CREATE TABLE common.plans (id int PRIMARY KEY)",
    "INSERT INTO common.plans VALUES (1)",
    "CREATE TABLE globex.rows (id int PRIMARY KEY, n int DEFAULT 1, plan int REFERENCES common.plans)",
    "INSERT INTO globex.rows VALUES (1, 7, 1)",
]
# What somebody else may have made, and what the error calls it.
KEPT = {
    "column of an enum": ("ALTER TABLE globex.rows ADD mood {acme}.mood", "table column globex.rows.mood"),
    "column of an array": ("ALTER TABLE globex.rows ADD moods {acme}.mood[]", "table column globex.rows.moods"),
    "column of an extension's type": (
        "ALTER TABLE globex.rows ADD mail {acme}.citext",
        "table column globex.rows.mail",
    ),
    "column of a domain": ("ALTER TABLE common.plans ADD n {acme}.positive", "table column common.plans.n"),
    "table of a type": ("CREATE TABLE globex.pairs OF {acme}.pair", "table globex.pairs"),
    "table that inherits": ("CREATE TABLE globex.heirs () INHERITS ({acme}.orders)", "table globex.heirs"),
    "function": (
        "CREATE FUNCTION globex.read({acme}.orders) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "function globex.read({acme}.orders)",
    ),
    "default": ("ALTER TABLE globex.rows ALTER n SET DEFAULT {acme}.twice(1)", "default value for globex.rows.n"),
    "check": (
        "ALTER TABLE globex.rows ADD CONSTRAINT c CHECK ({acme}.twice(n) > 0)",
        "table constraint c on globex.rows",
    ),
    "index": ("CREATE INDEX twice ON globex.rows ({acme}.twice(n))", "index globex.twice"),
    "trigger": (
        "CREATE TRIGGER touch BEFORE INSERT ON globex.rows FOR EACH ROW EXECUTE FUNCTION {acme}.touch()",
        "trigger touch on globex.rows",
    ),
    "policy": ("CREATE POLICY p ON globex.rows USING ({acme}.twice(1) = 2)", "policy p on globex.rows"),
}
REMOVABLE = {
    "view": ("CREATE VIEW public.report AS SELECT id FROM {acme}.orders", "view public.report"),
    "view of a view": (
        "CREATE VIEW public.report AS SELECT id FROM {acme}.own UNION SELECT id FROM globex.rows;"
        "CREATE VIEW globex.top AS SELECT * FROM public.report",
        "view globex.top",
    ),
    "materialized view": (
        "CREATE MATERIALIZED VIEW common.sums AS SELECT count(*) FROM {acme}.orders",
        "materialized view common.sums",
    ),
    "foreign key": (
        "ALTER TABLE globex.rows ADD CONSTRAINT k FOREIGN KEY (plan) REFERENCES {acme}.orders",
        "table constraint k on globex.rows",
    ),
}


async def run(database: Database, *statements: str, schema: str = "acme") -> None:
    """Run *statements*, in which {acme} is *schema*."""
    async with database.connection() as connection:
        for statement in statements:
            await connection.execute(statement.replace("{acme}", schema))


@pytest.fixture
async def real_database(database: Database) -> Database:
    """Two tenants and a common schema, as people have them."""
    await run(database, *OF_OTHERS, *OF_ACME)
    return database


async def digest_others(database: Database) -> str:
    """Return a digest of all that pg_dump writes of what is neither acme's nor the registry's: definitions and rows."""
    async with database.connection() as connection:
        version = await connection.fetchval("SELECT current_setting('server_version_num')::int")
    programs = await find_client_programs(version // 10000)
    # The extension is in acme's schema.
    options = ("--exclude-schema=acme*", "--exclude-schema=quart_tenants*", "--exclude-extension=citext")
    environment = build_environment(database._settings.required_database_url, os.environ)

    def dump() -> str:
        command = [str(programs.folder / "pg_dump"), *options]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout

    text = await asyncio.to_thread(dump)
    assert "COPY globex.rows" in text
    # Each dump has a random word of its own in these lines.
    lines = [line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


async def test_tenant_without_dependents_is_deleted(real_database: Database, settings: Settings) -> None:
    """Its foreign key to a shared table, and its views of its own tables, are its own."""
    before = await digest_others(real_database)
    await drop_tenant(real_database, ACME)
    await purge_trash(real_database, settings=settings, slugs=[ACME])

    assert await digest_others(real_database) == before


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize("including", [False, True])
async def test_what_is_somebody_elses_is_never_deleted(
    real_database: Database, settings: Settings, kind: str, including: bool
) -> None:
    """Drop and purge name it and change nothing, whatever the operator allows."""
    statement, name = KEPT[kind]
    await run(real_database, statement)
    before = await digest_others(real_database)
    with pytest.raises(DependentsError) as refused:
        await drop_tenant(real_database, ACME, including_dependents=including)
    assert name.replace("{acme}", "acme") in str(refused.value)
    assert (await get_tenant(real_database, ACME)).schema.name == "acme"
    assert await digest_others(real_database) == before


@pytest.mark.parametrize("kind", KEPT)
async def test_purge_deletes_nothing_of_somebody_elses(real_database: Database, settings: Settings, kind: str) -> None:
    """It was made while the tenant was in the trash. Nothing is half deleted, and the tenant can come back."""
    await drop_tenant(real_database, ACME)
    ((trashed),) = await list_trash(real_database)
    statement, name = KEPT[kind]
    await run(real_database, statement, schema=trashed.schema.quoted)
    before = await digest_others(real_database)

    with pytest.raises(DependentsError) as refused:
        await purge_trash(real_database, settings=settings, slugs=[ACME], including_dependents=True)

    assert name.replace("{acme}", trashed.schema.name) in str(refused.value).replace('"quart', "quart").replace(
        '"."', '".'
    )
    assert await digest_others(real_database) == before
    await undrop_tenant(real_database, ACME, settings=settings)


@pytest.mark.parametrize("kind", REMOVABLE)
async def test_what_is_nobodys_data_is_dropped_if_the_operator_says_so(
    real_database: Database, settings: Settings, kind: str
) -> None:
    """Otherwise it is named, and nothing changes. After a drop it would show the dropped rows."""
    clean = await digest_others(real_database)
    statement, name = REMOVABLE[kind]
    await run(real_database, *statement.split(";"))
    before = await digest_others(real_database)

    with pytest.raises(DependentsError, match="--including-dependents") as refused:
        await drop_tenant(real_database, ACME)
    assert name in str(refused.value)
    assert await digest_others(real_database) == before
    await drop_tenant(real_database, ACME, including_dependents=True)

    assert await digest_others(real_database) == clean
    await purge_trash(real_database, settings=settings, slugs=[ACME])
    assert await digest_others(real_database) == clean


@pytest.mark.parametrize("kind", KEPT | REMOVABLE)
async def test_cascade_deletes_it_without_a_word(real_database: Database, kind: str) -> None:
    """Negative control: this is what a purge did."""
    statement, name = (KEPT | REMOVABLE)[kind]
    await run(real_database, *statement.split(";"))
    before = await digest_others(real_database)
    async with real_database.connection() as connection:
        listed = await list_dependents(connection, SchemaName("acme"))
    await run(real_database, "DROP SCHEMA acme CASCADE")

    assert name.replace("{acme}", "acme") in [str(one) for one in listed]
    assert await digest_others(real_database) != before


async def test_replaced_tenants_view_is_named_and_dropped(
    real_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """It would go on to read the tables in the trash."""
    file = tmp_path / "acme.tar"
    await run(real_database, "DROP EXTENSION citext")
    await run(real_database, "DROP TABLE acme.orders CASCADE")
    await backup_tenant(real_database, ACME, file, settings=settings)
    await run(real_database, "CREATE VIEW public.report AS SELECT * FROM acme.company_data")

    with pytest.raises(DependentsError, match=r"view public\.report"):
        await restore_tenant(real_database, file, ACME, settings=settings, replace=True)
    await restore_tenant(real_database, file, ACME, settings=settings, replace=True, including_dependents=True)

    async with real_database.connection() as connection:
        assert await connection.fetchval("SELECT to_regclass('public.report')") is None


@pytest.fixture
async def backup_file(database: Database, settings: Settings, tmp_path: Path) -> Path:
    """A backup of acme from before it had what others depend on."""
    file = tmp_path / "acme.tar"
    await backup_tenant(database, ACME, file, settings=settings)
    return file


@pytest.mark.parametrize("kind", KEPT)
async def test_replacing_changes_nothing_of_somebody_elses(
    backup_file: Path, real_database: Database, settings: Settings, kind: str
) -> None:
    """What is somebody else's would go on to use the tables in the trash, so it is named, whatever is allowed."""
    statement, name = KEPT[kind]
    await run(real_database, statement)
    before = await digest_others(real_database)

    with pytest.raises(DependentsError) as refused:
        await restore_tenant(
            real_database, backup_file, ACME, settings=settings, replace=True, including_dependents=True
        )

    assert name.replace("{acme}", "acme") in str(refused.value)
    assert await digest_others(real_database) == before
    assert await list_trash(real_database) == []


@pytest.mark.parametrize("kind", REMOVABLE)
async def test_replacing_drops_what_is_nobodys_data_and_changes_nothing_else(
    backup_file: Path, real_database: Database, settings: Settings, kind: str
) -> None:
    """Views and foreign keys go if the operator says so; a purge of the replaced tables changes nothing either."""
    clean = await digest_others(real_database)
    statement, _ = REMOVABLE[kind]
    await run(real_database, *statement.split(";"))
    before = await digest_others(real_database)
    assert before != clean

    with pytest.raises(DependentsError, match="--including-dependents"):
        await restore_tenant(real_database, backup_file, ACME, settings=settings, replace=True)
    assert await digest_others(real_database) == before
    await restore_tenant(real_database, backup_file, ACME, settings=settings, replace=True, including_dependents=True)

    assert await digest_others(real_database) == clean
    await purge_trash(real_database, settings=settings, older_than_days=0)
    assert await list_trash(real_database) == []
    assert await digest_others(real_database) == clean


async def test_digest_sees_any_change(real_database: Database) -> None:
    """Negative control: a row, a right, a default or a comment of somebody else's changes the digest."""
    seen = {await digest_others(real_database)}
    changes = (
        "UPDATE globex.rows SET n = 8",
        "GRANT SELECT ON common.plans TO PUBLIC",
        "ALTER TABLE globex.rows ALTER n SET DEFAULT 2",
        "COMMENT ON COLUMN common.plans.id IS 'a comment'",
    )
    for change in changes:
        await run(real_database, change)
        seen.add(await digest_others(real_database))

    assert len(seen) == len(changes) + 1


async def test_view_follows_the_replaced_tables_into_the_trash(real_database: Database) -> None:
    """Negative control: a view knows its tables by number, and reads them whatever their schema is called."""
    await run(real_database, "CREATE VIEW public.report AS SELECT id FROM acme.orders")
    await run(real_database, "ALTER SCHEMA acme RENAME TO old")
    async with real_database.connection() as connection:
        assert await connection.fetchval("SELECT id FROM public.report") == 1
