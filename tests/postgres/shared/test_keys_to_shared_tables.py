"""A backup of rows only finds out what the migrations make without a touch of the shared tables."""

from pathlib import Path

import asyncpg
import pytest

from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.roles.owner_role import find_owner
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.tenant import Slug
from tests.postgres.backups.parts import outside
from tests.postgres.shared.parts import ACME, COPY, App, write_files
from tests.support.databases import execute

pytestmark = pytest.mark.slow

SHOP = Slug("shop")
GET_WEAK_LOGIN = "SELECT quote_ident(rolname) FROM pg_roles WHERE rolname = current_user AND NOT rolsuper"
SHARED = """
CREATE COLLATION odd FROM "C";
CREATE DOMAIN code AS text;
CREATE TABLE "Größen" (code code COLLATE odd, gone integer, "the size" numeric(9, 2), note text, PRIMARY KEY (code));
ALTER TABLE "Größen" DROP COLUMN gone, ADD UNIQUE ("the size", code) INCLUDE (note);
CREATE UNIQUE INDEX ON "Größen" (note) WHERE note <> '';
CREATE TABLE years (year integer PRIMARY KEY) PARTITION BY RANGE (year);
CREATE TABLE years_before PARTITION OF years DEFAULT;
CREATE TABLE without_keys (n integer);
INSERT INTO "Größen" VALUES ('xl', 2.5, ''); INSERT INTO years VALUES (1999);
"""
# Every way to write a key. The names of tables are also names of other things.
KEYS = """
CREATE TABLE "Maße" (plans integer REFERENCES plans ON DELETE SET NULL, size text REFERENCES common."Größen");
CREATE TABLE parts (
    id integer PRIMARY KEY, part integer REFERENCES parts,
    year integer CONSTRAINT "in a year" REFERENCES/**/years (year) ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED,
    size numeric(9, 2), code text, gone integer REFERENCES years,
    FOREIGN KEY (size, code) REFERENCES "common" . "Größen" ("the size", code) MATCH FULL
);
ALTER TABLE parts DROP COLUMN gone, ADD plan integer REFERENCES common.plans (id);
ALTER TABLE parts ADD FOREIGN KEY (plan) REFERENCES parts;
COMMENT ON CONSTRAINT "in a year" ON parts IS 'REFERENCES years';
INSERT INTO parts VALUES (1, 1, 1999, 2.5, 'xl', 1);
"""


async def test_backup_needs_no_shared_table_that_keys_lead_to(app: App, tmp_path: Path) -> None:
    """A backup of rows only is made at once while nobody can even read the shared table."""
    async with outside(app.superuser_url) as holder, holder.transaction():
        await holder.execute("LOCK TABLE common.plans IN ACCESS EXCLUSIVE MODE")

        backup = await backup_tenant(app.database, ACME, tmp_path / "acme.tar", settings=app.settings)

        # Negative control: what the migrations make has such a key.
        with pytest.raises(asyncpg.LockNotAvailableError):
            await execute(
                app.superuser_url, "SET lock_timeout TO '50ms'; CREATE TABLE own (plan integer REFERENCES common.plans)"
            )
    assert backup.rows is not None
    restored = await restore_tenant(app.database, tmp_path / "acme.tar", COPY, settings=app.settings)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        async with app.database.tenant_connection(restored) as connection:
            await connection.execute("INSERT INTO members (email, plan_id) VALUES ('a@b.test', 7)")


async def test_every_key_to_a_shared_table_is_that_of_the_migrations(app: App, tmp_path: Path) -> None:
    """However a key is written, rows alone bring it back, and a key that was changed by hand is found."""
    write_files(app.shared_files, {"0003_more.sql": SHARED})
    write_files(app.tenant_files, {"0003_keys.sql": KEYS})
    await migrate_shared(app.database, settings=app.settings)
    shop = await create_tenant(app.database, SHOP, "Shop", settings=app.settings)
    file = tmp_path / "shop.tar"

    backup = await backup_tenant(app.database, SHOP, file, settings=app.settings, verify=True)

    assert backup.rows is not None
    restored = await restore_tenant(app.database, file, COPY, settings=app.settings)
    for tenant in (shop, restored):
        async with app.database.tenant_connection(tenant) as connection:
            assert await connection.fetchval("SELECT code FROM parts") == "xl"
    await execute(
        app.superuser_url,
        'ALTER TABLE shop."Maße" DROP CONSTRAINT "Maße_plans_fkey", ADD FOREIGN KEY (plans) REFERENCES common.years',
    )
    changed = await backup_tenant(app.database, SHOP, tmp_path / "changed.tar", settings=app.settings)
    assert changed.rows is None


async def test_tables_that_nobody_may_make_again_are_dumped(app: App, tmp_path: Path) -> None:
    """Where the login may not add a key any more, the migrations fail, and so would a restore of rows only."""
    async with app.database.connection() as connection:
        owner = await find_owner(connection)
        login = await connection.fetchval(GET_WEAK_LOGIN)
    if owner is None or login is None:
        pytest.skip("a superuser may do anything")
    before = await backup_tenant(app.database, ACME, tmp_path / "before.tar", settings=app.settings)
    await execute(
        app.superuser_url,
        f"ALTER TABLE common.plans OWNER TO CURRENT_USER; REVOKE ALL ON common.plans FROM {login}, {owner.quoted}",
    )

    after = await backup_tenant(app.database, ACME, tmp_path / "after.tar", settings=app.settings)

    assert before.rows is not None
    assert after.rows is None
