"""What people really have in their schemas is backed up, restored beside and in place, and copied."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from quart_tenants.errors import BackupFileError
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.migrated_shapes import is_same_later
from quart_tenants.postgres.backups.restore import copy_tenant, restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.migrations.migration_files import Migration
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from tests.postgres.backups.corpus import GROUPS, get_file, get_schema, list_groups
from tests.postgres.backups.parts import ACME, fetch, fill, photograph, run_program
from tests.support.databases import REFERENCE_FILES

pytestmark = pytest.mark.slow

BESIDE, COPY = Slug("besides"), Slug("copied")

# What is left to pg_dump: rows alone would not bring it back as it was, or nobody describes it.
LEFT_TO_PG_DUMP = frozenset(
    {
        *("text_search", "collations", "a_type_with_operators", "operator_class", "names_of_the_servers_own"),
        *("aggregates_of_simple_functions", "partitions_by_range", "partitions_that_were_attached", "inheritance"),
        *("partition_key_of_a_function", "check_of_a_parent_that_reads_another_table", "domains"),
        *("domain_of_functions", "domain_that_reads_a_table", "constraints_that_old_rows_break"),
        *("keys_that_nobody_enforces", "names_of_not_null", "index_of_functions_with_a_path"),
    }
)
GET_VERSION = "SELECT current_setting('server_version_num')::integer"


async def ask_version(database: Database) -> int:
    """Return the version of the server, for example 180001."""
    async with database.connection() as connection:
        version: int = await connection.fetchval(GET_VERSION)
    return version


@pytest.mark.parametrize("group", GROUPS)
async def test_schema_comes_back_as_it_was(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path, group: int
) -> None:
    """A schema that is restored beside, in place, or copied has every object and every row of the original."""
    for file in list_groups(await ask_version(database))[group]:
        await fill(database, acme, file.read_text(encoding="utf-8"))
    original = await photograph(database, settings, ACME)
    backup = tmp_path / "acme.tar"

    await backup_tenant(database, ACME, backup, settings=settings, verify=True)
    assert await photograph(database, settings, ACME) == original
    await restore_tenant(database, backup, BESIDE, settings=settings)
    assert await photograph(database, settings, BESIDE) == original
    await restore_tenant(database, backup, ACME, settings=settings, replace=True)
    assert await photograph(database, settings, ACME) == original
    await copy_tenant(database, ACME, COPY, "A copy", settings=settings)
    assert await photograph(database, settings, COPY) == original


@pytest.mark.parametrize("group", GROUPS)
async def test_schema_of_migrations_comes_back_as_it_was(
    database: Database, settings: Settings, tmp_path: Path, group: int
) -> None:
    """A tenant that is what its migrations made is restored from its rows, and copied, with all of the original."""
    settings, files = write_migrations(
        settings, tmp_path / "migrations", list_groups(await ask_version(database))[group]
    )
    tenant = await create_tenant(database, Slug("made"), "Made", settings=settings)
    for number, file in enumerate(files, start=1):
        # Rows that no migration wrote, and a sequence that has gone on.
        await fill(database, tenant, f"INSERT INTO company_data (description) VALUES ('{number} {file.stem}')")
    original = await photograph(database, settings, tenant.slug)
    backup = tmp_path / "made.tar"

    made = await backup_tenant(database, tenant.slug, backup, settings=settings, verify=True)
    assert made.rows is not None
    await restore_tenant(database, backup, BESIDE, settings=settings)
    assert await photograph(database, settings, BESIDE) == original
    await restore_tenant(database, backup, tenant.slug, settings=settings, replace=True)
    assert await photograph(database, settings, tenant.slug) == original
    await copy_tenant(database, tenant.slug, COPY, "A copy", settings=settings)
    assert await photograph(database, settings, COPY) == original


@pytest.mark.parametrize(
    ("statement", "same"),
    {
        "CREATE TABLE t (at timestamptz DEFAULT now(), on_day date DEFAULT current_date)": True,
        "CREATE TABLE t (at timestamptz DEFAULT 'now')": False,
        "CREATE TABLE t (on_day date DEFAULT date ' Today')": False,
        "CREATE VIEW v AS SELECT * FROM app_user": False,
        "DO $$ BEGIN CREATE TABLE t (); END $$": False,
    }.items(),
)
def test_only_what_depends_on_the_moment_makes_other_tables_later(statement: str, same: bool) -> None:
    """now() as a default is called for each row, and the literal 'now' is read once."""
    assert is_same_later(Migration(2, "0002_t.sql", statement), 180000) is same


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TYPE co_point RENAME ATTRIBUTE x TO first",
        "ALTER TABLE co_lines ALTER COLUMN points SET STATISTICS 7",
        "REVOKE ALL ON TABLE co_lines FROM CURRENT_USER",
        "COMMENT ON COLUMN co_lines.line IS 'by hand'",
        "CREATE FUNCTION by_hand() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE co_lines ADD CONSTRAINT by_hand CHECK (line IS NOT NULL)",
        "CREATE AGGREGATE by_hand (integer) (SFUNC = int4pl, STYPE = integer)",
    ],
)
async def test_schema_that_was_changed_by_hand_is_dumped(
    database: Database, settings: Settings, tmp_path: Path, statement: str
) -> None:
    """Whatever differs from what the migrations make, rows alone would lose it."""
    settings, _ = write_migrations(settings, tmp_path / "migrations", [get_file("composites")])
    tenant = await create_tenant(database, Slug("made"), "Made", settings=settings)
    before = await backup_tenant(database, tenant.slug, tmp_path / "before.tar", settings=settings)

    await fill(database, tenant, statement)
    after = await backup_tenant(database, tenant.slug, tmp_path / "after.tar", settings=settings)

    assert before.rows is not None
    assert after.rows is None


def write_migrations(settings: Settings, folder: Path, files: Sequence[Path]) -> tuple[Settings, list[Path]]:
    """Write the reference app's migrations and *files*, as far as they make the same tables whenever they run."""
    shutil.copytree(settings.migrations_dir or REFERENCE_FILES, folder)
    taken = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        if file.stem not in LEFT_TO_PG_DUMP and is_same_later(Migration(2, file.name, text), 180000):
            taken.append(file)
            (folder / f"{len(taken) + 1:04}_{file.stem}.sql").write_text(text, encoding="utf-8")
    return replace(settings, migrations_dir=folder), taken


@pytest.mark.parametrize(
    "name",
    [
        "generated_column",
        "check_of_functions",
        "domain_of_functions",
        "check_that_reads_another_table",
        "dynamic_function",
    ],
)
async def test_pg_dump_alone_cannot_be_restored(
    database: Database, settings: Settings, acme: Tenant, name: str
) -> None:
    """Negative control: what pg_dump writes of such a schema fails, because its path is empty and its order another."""
    await fill(database, acme, get_schema(name))

    dumped = await run_program(settings, "pg_dump", "--schema=acme")
    await fetch(database, "ALTER SCHEMA acme RENAME TO away")
    poured = await run_program(settings, "psql", "--set=ON_ERROR_STOP=1", "--quiet", stdin=dumped.stdout)

    assert dumped.returncode == 0
    assert poured.returncode == 3
    assert b"does not exist" in poured.stderr or b"violates check constraint" in poured.stderr


async def test_check_that_old_rows_break_comes_back_for_new_ones(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    """A CHECK that was right when its rows were written is restored as NOT VALID, and the operator is told."""
    await fill(database, acme, get_schema("check_that_reads_another_table") + "; UPDATE ct_zones SET open = id = 1")
    file = tmp_path / "acme.tar"
    notices: list[str] = []

    await backup_tenant(database, ACME, file, settings=settings)
    restored = await restore_tenant(database, file, BESIDE, settings=settings, on_notice=notices.append)

    (notice,) = notices
    assert 'ADD CONSTRAINT "in an open zone"' in notice
    async with database.tenant_connection(restored) as connection:
        assert await connection.fetchval("SELECT array_agg(zone ORDER BY zone) FROM ct_a_shops") == [1, 2]
    with pytest.raises(asyncpg.CheckViolationError):
        await fill(database, restored, "INSERT INTO ct_a_shops VALUES (2)")


async def test_materialized_view_that_fails_on_todays_rows_stays_empty(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    """It does not stop the restore of all else. The operator is told why, also of a view that reads it."""
    await fill(
        database,
        acme,
        """
        CREATE TABLE shares (n integer); INSERT INTO shares VALUES (1);
        CREATE MATERIALIZED VIEW portions AS SELECT 1 / n AS portion FROM shares;
        CREATE MATERIALIZED VIEW halves AS SELECT portion / 2 AS half FROM portions;
        CREATE MATERIALIZED VIEW others AS SELECT n FROM shares; UPDATE shares SET n = 0
        """,
    )
    file = tmp_path / "acme.tar"
    notices: list[str] = []

    with pytest.raises(BackupFileError, match=r"lacks \(relation,halves.*portions stays empty: division by zero"):
        await backup_tenant(database, ACME, file, settings=settings, verify=True)
    await backup_tenant(database, ACME, file, settings=settings)
    restored = await restore_tenant(database, file, BESIDE, settings=settings, on_notice=notices.append)

    assert sorted(notice.rpartition(" stays empty: ")[2] for notice in notices) == [
        "division by zero",
        'materialized view "portions" has not been populated',
    ]
    async with database.tenant_connection(restored) as connection:
        assert await connection.fetchval("SELECT n FROM others") == 0


async def test_rows_in_partitions_by_the_hash_of_an_enum_come_back(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    """A value of an enum has another hash after a restore, so each row may belong into another partition."""
    await fill(
        database,
        acme,
        """
        CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'glad', 'cross', 'calm', 'keen', 'shy');
        CREATE TABLE days (moods mood[], mood mood) PARTITION BY HASH (moods);
        CREATE TABLE days_0 PARTITION OF days FOR VALUES WITH (MODULUS 2, REMAINDER 0) PARTITION BY HASH (mood);
        CREATE TABLE days_0_0 PARTITION OF days_0 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
        CREATE TABLE days_1 PARTITION OF days FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO days
            SELECT ARRAY[a, b], a FROM unnest(enum_range(NULL::mood)) AS a, unnest(enum_range(a, NULL)) AS b
        """,
    )
    file = tmp_path / "acme.tar"

    await backup_tenant(database, ACME, file, settings=settings, verify=True)
    restored = await restore_tenant(database, file, BESIDE, settings=settings)

    read = "SELECT array_agg(days::text ORDER BY days) FROM days"
    async with database.tenant_connection(acme) as connection:
        original = await connection.fetchval(read)
    async with database.tenant_connection(restored) as connection:
        assert await connection.fetchval(read) == original
        assert await connection.fetchval("SELECT count(*) FROM days WHERE moods = ARRAY['sad', 'ok']::mood[]") == 1


async def test_function_of_an_index_that_lost_its_way_is_named(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    """What the function calls is in the backup, so to create it would help nobody."""
    if await ask_version(database) < 170000:
        pytest.skip("before PostgreSQL 17 functions of indexes run with the path of the session")
    await fill(
        database,
        acme,
        """
        CREATE FUNCTION helper(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower(t)';
        CREATE FUNCTION key(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN lower(t); END';
        CREATE TABLE words (t text); INSERT INTO words VALUES ('A'); CREATE INDEX ON words (key(t));
        CREATE OR REPLACE FUNCTION key(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN helper(t); END'
        """,
    )
    file = tmp_path / "acme.tar"
    await backup_tenant(database, ACME, file, settings=settings)

    with pytest.raises(BackupFileError, match=r"function helper\(text\) does not exist; function \S*key\S* calls it"):
        await restore_tenant(database, file, BESIDE, settings=settings)


async def test_rights_that_are_the_default_are_no_difference(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    """PostgreSQL writes them down after a grant that is revoked again, and no dump has them."""
    await fill(
        database,
        acme,
        "GRANT SELECT ON app_user TO PUBLIC; REVOKE SELECT ON app_user FROM PUBLIC; CREATE TYPE mood AS ENUM ('sad');"
        "GRANT USAGE ON TYPE mood TO PUBLIC; CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1';"
        "GRANT EXECUTE ON FUNCTION f() TO PUBLIC; CREATE SEQUENCE s; GRANT ALL ON SEQUENCE s TO CURRENT_USER",
    )

    await backup_tenant(database, ACME, tmp_path / "acme.tar", settings=settings, verify=True)

    await fill(database, acme, "REVOKE EXECUTE ON FUNCTION f() FROM PUBLIC")
    await backup_tenant(database, ACME, tmp_path / "beside.tar", settings=settings, verify=True)


# What a restore cannot bring back, and what `verify` says of it.
NOT_THE_SAME = {
    # A function that says IMMUTABLE and is not: when its table is loaded, the other one is still empty.
    r"has other rows in acme\.a_bills: 2 rows came back, and 2 were backed up": """
        CREATE TABLE z_rates (rate integer);
        INSERT INTO z_rates VALUES (7);
        CREATE FUNCTION price(n integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE
            AS 'BEGIN RETURN n * (SELECT max(rate) FROM z_rates); END';
        CREATE TABLE a_bills (n integer, cents integer GENERATED ALWAYS AS (price(n)) STORED);
        INSERT INTO a_bills VALUES (1), (2)
    """,
    r"lacks \(constraint,ct_a_shops,": (
        f"{get_schema('check_that_reads_another_table')}; UPDATE ct_zones SET open = false"
    ),
}


@pytest.mark.parametrize(("words", "statements"), NOT_THE_SAME.items())
async def test_verified_backup_that_would_not_come_back_as_it_was_is_none(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path, words: str, statements: str
) -> None:
    """With `verify` the difference is named and there is no file; without it, nobody would know."""
    await fill(database, acme, statements)
    original = await photograph(database, settings, ACME)
    file = tmp_path / "acme.tar"

    with pytest.raises(BackupFileError, match=words):
        await backup_tenant(database, ACME, file, settings=settings, verify=True)

    assert list(tmp_path.iterdir()) == []
    assert await photograph(database, settings, ACME) == original
    await backup_tenant(database, ACME, file, settings=settings)
    await restore_tenant(database, file, BESIDE, settings=settings)
    assert await photograph(database, settings, BESIDE) != original


NOT_CARRIED = {
    r"the extension citext; .*: ALTER EXTENSION citext SET SCHEMA public": "CREATE EXTENSION citext SCHEMA acme",
    r"the foreign table acme\.far; its rows are on another server": """
        CREATE EXTENSION postgres_fdw SCHEMA public; CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw;
        CREATE FOREIGN TABLE far (id integer) SERVER other
    """,
    r"the cast from acme\.mood to integer; .* write a function": """
        CREATE TYPE mood AS ENUM ('sad'); CREATE FUNCTION count_mood(mood) RETURNS integer LANGUAGE sql AS 'SELECT 1';
        CREATE CAST (mood AS integer) WITH FUNCTION count_mood
    """,
    r"acme\.own, which inherits from globex\.theirs; .*both must be in the tenant's": """
        CREATE TABLE globex.theirs (id integer); CREATE TABLE own () INHERITS (globex.theirs)
    """,
    r"globex\.own, which inherits from acme\.theirs; ": """
        CREATE TABLE theirs (id integer) PARTITION BY LIST (id);
        CREATE TABLE globex.own PARTITION OF theirs FOR VALUES IN (1)
    """,
    r"publication sent, which publishes the schema; .*take it out": "CREATE PUBLICATION sent FOR TABLES IN SCHEMA acme",
    r"the key lines_bill_fkey of acme\.lines, which is switched off; .*: ALTER TABLE acme\.lines ENABLE": """
        CREATE TABLE bills (id integer PRIMARY KEY); CREATE TABLE lines (bill integer REFERENCES bills);
        ALTER TABLE lines DISABLE TRIGGER ALL
    """,
    r"large objects in acme\.lists\.contents; .*bytea": """
        CREATE DOMAIN large AS oid; CREATE DOMAIN larges AS large[]; CREATE TABLE lists (contents larges);
        INSERT INTO lists VALUES (ARRAY[1, lo_from_bytea(0, 'x')])
    """,
    r"large objects in acme\.files\.content; .*bytea": """
        CREATE DOMAIN large AS oid; CREATE TABLE files (content large); INSERT INTO files VALUES (lo_from_bytea(0, 'x'))
    """,
}


@pytest.mark.parametrize(("words", "statements"), NOT_CARRIED.items())
async def test_schema_with_what_a_dump_leaves_out_is_not_backed_up(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path, words: str, statements: str
) -> None:
    """What belongs to the tenant and would not come back is named before anything is written, with what to do."""
    async with database.tenant_connection(acme) as connection:
        await connection.execute(statements)

    with pytest.raises(BackupFileError, match=words):
        await backup_tenant(database, ACME, tmp_path / "acme.tar", settings=settings)

    assert list(tmp_path.iterdir()) == []


async def test_numbers_that_are_no_large_objects_are_backed_up(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    """A column of type oid is refused only where it holds the number of a large object."""
    await fill(database, acme, "SELECT lo_create(77); CREATE TABLE numbers (n oid); INSERT INTO numbers VALUES (78)")

    backup = await backup_tenant(database, ACME, tmp_path / "acme.tar", settings=settings)

    assert backup.size > 0
