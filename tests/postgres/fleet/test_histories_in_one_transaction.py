"""Files that run one by one in an old tenant also run one behind the other, in one transaction."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from quart_tenants.connection import Connection
from quart_tenants.errors import MigrationFailedError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.migrations import migration_runs
from quart_tenants.postgres.shared.shared_migrations import migrate_shared
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug
from tests.postgres.fleet.parts import ALL, Add, migrate, read_versions

pytestmark = pytest.mark.slow

TABLES = (
    "CREATE TABLE owners (id bigint PRIMARY KEY);"
    "CREATE TABLE pets (id bigint PRIMARY KEY,"
    " owner bigint CONSTRAINT has_owner REFERENCES owners (id) DEFERRABLE INITIALLY DEFERRED,"
    " twin bigint CONSTRAINT has_twin REFERENCES pets (id) DEFERRABLE INITIALLY IMMEDIATE)"
)
ROWS = "INSERT INTO pets VALUES (1, 7, NULL); INSERT INTO owners VALUES (7)"
ALTER = "ALTER TABLE pets ADD COLUMN name text; ALTER TABLE owners ADD COLUMN name text"
# It passes only if has_owner is deferred again.
ROWS_AGAIN = (
    "INSERT INTO pets VALUES (2, 8, 1); INSERT INTO owners VALUES (8); "
    "UPDATE pets SET twin = 2 WHERE id = 1; DROP INDEX IF EXISTS nothing"
)
CHAIN = {
    "0002_tables.sql": TABLES,
    "0003_rows.sql": ROWS,
    "0004_alter.sql": ALTER,
    "0005_rows_again.sql": ROWS_AGAIN,
    # It passes only if has_twin is checked at once, as it was declared.
    "0006_try.sql": "DO $$ BEGIN UPDATE pets SET twin = 99; EXCEPTION WHEN foreign_key_violation THEN NULL; END $$",
    "0007_ring.sql": "CREATE TABLE rings (id bigint PRIMARY KEY, next bigint NOT NULL REFERENCES rings (id)"
    " DEFERRABLE INITIALLY DEFERRED); INSERT INTO rings VALUES (1, 2); INSERT INTO rings VALUES (2, 1)",
    "0008_drop.sql": "DROP TABLE rings",
    # These rows are new to the transaction of a new tenant, where their update waits for a check that is not needed.
    "0009_fill_in.sql": "UPDATE pets SET name = 'x'; ALTER TABLE pets ALTER name SET NOT NULL",
    "0010_index.sql": "UPDATE pets SET name = 'y'; CREATE INDEX by_name ON pets (name)",
    "0011_empty.sql": "UPDATE pets SET name = 'z'; TRUNCATE pets",
    "0012_more.sql": "INSERT INTO pets (id, owner, name) SELECT id, id, '' FROM owners",
    "0013_remove.sql": "UPDATE pets SET name = 'x'; DROP TABLE pets",
}


async def skip_settling(connection: Connection, tables: Sequence[str] | None = None) -> None:
    """Leave what is deferred to the commit, as a naive program does."""


async def test_table_with_deferred_rows_is_altered_by_the_next_file(
    database: Database, settings: Settings, add: Add
) -> None:
    """A new tenant, and one that lacks all files, get what a tenant got that ran each file by itself."""
    for name, sql in CHAIN.items():
        add(name, sql)
    for version in range(2, 14):
        assert (await migrate(database, settings, slugs=[Slug("acme")], to=version)).failed == []

    report = await migrate(database, settings)
    newco = await create_tenant(database, Slug("newco"), "Newco", settings=settings)

    assert report.failed == []
    assert await read_versions(database) == dict.fromkeys([*ALL, "newco"], 13)
    for slug in ("acme", "globex", newco.slug):
        async with database.connection() as connection:
            assert await connection.fetchval(f'SELECT count(*) FROM "{slug}".owners') == 2


async def test_naive_chain_of_files_fails(
    database: Database, settings: Settings, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: without a check after each file, PostgreSQL refuses the chain in one transaction."""
    for name, sql in CHAIN.items():
        add(name, sql)
    monkeypatch.setattr(migration_runs, "settle_constraints", skip_settling)

    with pytest.raises(MigrationFailedError, match="pending trigger events"):
        await create_tenant(database, Slug("newco"), "Newco", settings=settings)


@pytest.mark.parametrize(
    "naive", ["SET CONSTRAINTS ALL IMMEDIATE", "SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED"]
)
async def test_naive_mode_for_all_constraints_fails(
    database: Database, settings: Settings, add: Add, monkeypatch: pytest.MonkeyPatch, naive: str
) -> None:
    """The negative control: ALL leaves constraints in another mode than the one of their declaration."""
    for name, sql in CHAIN.items():
        add(name, sql)

    async def settle_all(connection: Connection, tables: Sequence[str] | None = None) -> None:
        await connection.execute(naive)

    assert (await create_tenant(database, Slug("newco"), "Newco", settings=settings)).version == 13
    monkeypatch.setattr(migration_runs, "settle_constraints", settle_all)
    with pytest.raises(MigrationFailedError):
        await create_tenant(database, Slug("naive"), "Naive", settings=settings)


async def test_violated_deferred_constraint_names_its_file(database: Database, settings: Settings, add: Add) -> None:
    """The file that wrote the row is named, and not the one after it or all of them."""
    add("0002_tables.sql", TABLES)
    add("0003_rows.sql", "INSERT INTO pets VALUES (1, 7, NULL)")
    add("0004_alter.sql", ALTER)

    report = await migrate(database, settings)

    assert {outcome.migration for outcome in report.failed} == {"0003_rows.sql"}
    assert all("has_owner" in (outcome.error or "") for outcome in report.failed)
    assert await read_versions(database) == dict.fromkeys(ALL, 1)


async def test_first_rows_and_fill_may_alter_what_the_files_have_filled(
    database: Database, settings: Settings, add: Add
) -> None:
    """Nothing of the files is pending when the app's own rows are written."""
    add("0002_tables.sql", TABLES)
    add("0003_rows.sql", ROWS)

    async def fill(connection: Connection) -> None:
        await connection.execute("ALTER TABLE owners ADD COLUMN name text")

    tenant = await create_tenant(
        database,
        Slug("newco"),
        "Newco",
        settings=settings,
        first_rows="ALTER TABLE pets ADD name text; INSERT INTO pets VALUES (2, 8, 2); INSERT INTO owners VALUES (8)",
        fill=fill,
    )

    async with database.tenant_connection(tenant) as connection:
        assert await connection.fetchval("SELECT array_agg(owner ORDER BY owner) FROM pets") == [7, 8]


async def test_shared_tables_are_altered_as_well(
    database: Database, settings: Settings, database_url: str, tmp_path: Path
) -> None:
    """The files of the shared schemas follow the same rule."""
    (folder := tmp_path / "shared").mkdir()
    for number, sql in enumerate((TABLES, ROWS, ALTER), start=1):
        (folder / f"{number:04}_x.sql").write_text(sql)
    shared = Settings(
        database_url=database_url,
        migrations_dir=settings.migrations_dir,
        shared_schemas=(SchemaName("common"),),
        shared_migrations_dir=folder,
    )
    async with await Database.open(shared, max_size=2) as database:
        ran = await migrate_shared(database, settings=shared)

    assert len(ran) == 3
