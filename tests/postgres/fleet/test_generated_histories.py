"""Whatever a tenant's history, the same files give it the same tables: new, migrated from any version, or restored."""

import random
from pathlib import Path

import pytest

from quart_tenants.connection import Connection
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.status import get_fleet_status
from quart_tenants.postgres.migrations import migration_runs
from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.postgres.tenants.provisioning import create_tenant, create_tenants
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug
from tests.postgres.fleet.parts import Add, migrate

pytestmark = pytest.mark.slow

CHAINS = 30
RESTORED = (13,)
"""Chains whose tenants are also restored from backups of earlier versions, which takes longer."""

# Each story is files in their order. A chain mixes the files of two stories.
STORIES = {
    "deferred keys": [
        "CREATE TABLE owners (id int PRIMARY KEY); CREATE TABLE pets (id int PRIMARY KEY,"
        " owner int REFERENCES owners DEFERRABLE INITIALLY DEFERRED, twin int REFERENCES pets DEFERRABLE)",
        "INSERT INTO pets VALUES (1, 7, 1), (2, 7, 1); INSERT INTO owners VALUES (7)",
        "ALTER TABLE pets ADD name text; UPDATE pets SET name = 'x'; ALTER TABLE pets ALTER name SET NOT NULL",
    ],
    "deferred trigger": [
        "CREATE TABLE logs (what text); CREATE TABLE acts (id int);"
        "CREATE FUNCTION note_act() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO logs VALUES (TG_OP); RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON acts DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION note_act()",
        "INSERT INTO acts VALUES (1), (2)",
        "ALTER TABLE acts ADD size int NOT NULL DEFAULT 4; ALTER TABLE logs ALTER what SET NOT NULL",
    ],
    "all constraints": [
        "SET CONSTRAINTS ALL IMMEDIATE; CREATE TABLE before_ring (x int)",
        "CREATE TABLE rings (id int PRIMARY KEY, next int NOT NULL REFERENCES rings DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO rings VALUES (1, 2); INSERT INTO rings VALUES (2, 1)",
        "DROP TABLE before_ring; ALTER TABLE rings ADD label text DEFAULT 'r'",
    ],
    "enum": [
        "CREATE TYPE mood AS ENUM ('sad', 'mad'); CREATE TABLE moods (m mood)",
        "ALTER TYPE mood ADD VALUE 'glad' BEFORE 'mad'; ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
        "ALTER TABLE moods ADD other mood DEFAULT 'glad'; INSERT INTO moods DEFAULT VALUES",
    ],
    "composite": [
        "CREATE TYPE addr AS (street text, city text); CREATE TABLE homes (at addr);"
        "INSERT INTO homes VALUES (('a', 'b'))",
        "ALTER TYPE addr ADD ATTRIBUTE zip text",
        "UPDATE homes SET at.zip = 'z'; CREATE VIEW zips AS SELECT (at).zip FROM homes",
    ],
    "names": [
        "CREATE TABLE old_names (a int, b text); INSERT INTO old_names VALUES (1, 'x')",
        "ALTER TABLE old_names RENAME a TO c; CREATE VIEW names AS SELECT c FROM old_names",
        "ALTER TABLE old_names RENAME TO new_names; DROP VIEW names; ALTER TABLE new_names DROP b, ADD d int DEFAULT 2",
    ],
    "trigger": [
        "CREATE TABLE notes (id int PRIMARY KEY, body text, size int); CREATE FUNCTION measure() RETURNS trigger"
        " LANGUAGE plpgsql AS $$ BEGIN NEW.size := length(NEW.body); RETURN NEW; END $$;"
        "CREATE TRIGGER measure BEFORE INSERT OR UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION measure()",
        "INSERT INTO notes VALUES (1, 'abc')",
        "CREATE OR REPLACE FUNCTION measure() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.size := 2 * length(NEW.body); RETURN NEW; END $$; UPDATE notes SET body = 'four'",
    ],
    "batches": [
        "CREATE TABLE sums (id int PRIMARY KEY, total int); INSERT INTO sums SELECT n FROM generate_series(1, 20) AS n",
        "-- quart-tenants: in batches of 7\n"
        "UPDATE sums SET total = 2 * id WHERE id IN (SELECT id FROM sums WHERE total IS NULL LIMIT $1)",
        "ALTER TABLE sums ALTER total SET NOT NULL",
    ],
    "index": [
        "CREATE TABLE words (w text); INSERT INTO words VALUES ('a'), ('b')",
        "-- quart-tenants: no transaction\nDROP INDEX CONCURRENTLY IF EXISTS words_once;\n"
        "CREATE UNIQUE INDEX CONCURRENTLY words_once ON words (w)",
        "ALTER TABLE words ADD CONSTRAINT words_once UNIQUE USING INDEX words_once DEFERRABLE INITIALLY DEFERRED",
    ],
    "domain": [
        "CREATE DOMAIN amount AS int CONSTRAINT low CHECK (VALUE >= 0); CREATE TABLE bills (a amount)",
        "ALTER DOMAIN amount DROP CONSTRAINT low; ALTER DOMAIN amount ADD CONSTRAINT lower CHECK (VALUE > -5)",
        "INSERT INTO bills VALUES (-1)",
    ],
    "partitions": [
        "CREATE TABLE events (at int, x text) PARTITION BY RANGE (at);"
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10)",
        "INSERT INTO events VALUES (1, 'x')",
        "CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20);"
        "ALTER TABLE events ADD y int DEFAULT 3",
    ],
}  # fmt: skip

# Everything in a schema that a migration may make. The name of the schema is taken out of the texts.
DESCRIBE = """
SELECT line FROM (
    SELECT 'column ' || concat_ws(
        ' ', c.relkind, c.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull,
        pg_catalog.pg_get_expr(d.adbin, d.adrelid)
    ) AS line
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 'constraint ' || concat_ws(
        ' ', conrelid::regclass, contypid::regtype, conname, pg_get_constraintdef(oid), condeferrable, condeferred
    )
    FROM pg_constraint WHERE connamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 'index ' || pg_get_indexdef(i.indexrelid) || i.indisvalid FROM pg_index AS i JOIN pg_class AS c
    ON c.oid = i.indrelid WHERE c.relnamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 'view ' || relname || pg_get_viewdef(oid) FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'v'
    UNION ALL
    SELECT 'function ' || pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
    UNION ALL
    SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    WHERE c.relnamespace = current_schema()::regnamespace AND NOT t.tgisinternal
    UNION ALL
    SELECT 'label ' || t.typname || row_number() OVER (PARTITION BY t.oid ORDER BY e.enumsortorder) || e.enumlabel
    FROM pg_enum AS e JOIN pg_type AS t ON t.oid = e.enumtypid WHERE t.typnamespace = current_schema()::regnamespace
) AS lines ORDER BY line
"""
LIST_TABLES = """
SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'v')
    AND relname NOT IN ('app_user', 'company_data')
"""


def mix(seed: int) -> list[str]:
    """Return the files of two stories, mixed by chance, each story in its own order."""
    chance = random.Random(seed)  # noqa: S311
    # Each story is in several chains, and each chain has another pair.
    names = sorted(STORIES)
    first = names[seed % len(names)]
    second = names[(seed + 1 + seed // len(names)) % len(names)]
    left = [list(STORIES[first]), list(STORIES[second])]
    files = []
    while any(left):
        files.append(chance.choice([story for story in left if story]).pop(0))
    return files


async def describe(database: Database) -> dict[str, list[str]]:
    """Return for each tenant what is in its schema, rows included."""
    described: dict[str, list[str]] = {}
    for tenant in await list_tenants(database):
        async with database.tenant_connection(tenant) as connection:
            lines = [row["line"] for row in await connection.fetch(DESCRIBE)]
            for row in await connection.fetch(LIST_TABLES):
                rows = await connection.fetch(f'SELECT t::text AS line FROM "{row["relname"]}" AS t ORDER BY 1')
                lines += [f"row of {row['relname']} {each['line']}" for each in rows]
        described[tenant.slug] = sorted(
            line.replace(f"{tenant.schema.quoted}.", "").replace(f"{tenant.schema}.", "") for line in lines
        )
    return described


async def live_through(database: Database, settings: Settings, add: Add, files: list[str], folder: Path | None) -> None:
    """Let there be a tenant that stood at each version, and a new one, all at the newest version in the end.

    With *folder* each of those versions is also backed up there, restored as another tenant, and migrated.
    """
    slugs = [tenant.slug for tenant in await list_tenants(database)]
    more = {Slug(f"more{number}"): "More" for number in range(len(files) - len(slugs))}
    await create_tenants(database, more, settings=settings, jobs=2)
    for number, sql in enumerate(files, start=2):
        add(f"{number:04}_file.sql", sql)
    # One of them goes on from each version: the first from 1, the second from 2, …
    going = [*slugs, *more]
    for number in range(2, len(files) + 2):
        going = going[1:]
        if going:
            assert (await migrate(database, settings, slugs=going, to=number)).failed == []
        if folder is not None and going and number % 2:
            file = folder / f"{number}.tar"
            await backup_tenant(database, going[0], file, settings=settings)
            await restore_tenant(database, file, Slug(f"restored{number}"), settings=settings)
    report = await migrate(database, settings)
    assert [outcome.error for outcome in report.failed] == []
    await create_tenant(database, Slug("newco"), "Newco", settings=settings)


@pytest.mark.parametrize("seed", range(CHAINS))
async def test_every_history_ends_with_the_same_tables(
    database: Database, settings: Settings, add: Add, tmp_path: Path, seed: int
) -> None:
    """A new tenant, one from each earlier version, and one restored at a version do not differ in anything."""
    files = mix(seed)

    await live_through(database, settings, add, files, tmp_path if seed in RESTORED else None)

    described = await describe(database)
    assert len(described) >= len(files) + 1
    expected = described["newco"]
    assert {slug: sorted(set(lines) ^ set(expected)) for slug, lines in described.items() if lines != expected} == {}
    assert (await get_fleet_status(database, settings=settings)).drift == ()


async def test_naive_program_fails_in_the_same_histories(
    database: Database, settings: Settings, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: without a check of deferred constraints after each file a chain breaks."""

    async def skip(connection: Connection, tables: object = None) -> None:
        pass

    monkeypatch.setattr(migration_runs, "settle_constraints", skip)

    with pytest.raises(AssertionError, match="pending trigger events"):
        await live_through(database, settings, add, STORIES["deferred keys"] + STORIES["domain"], None)


async def test_difference_is_seen(database: Database, settings: Settings, add: Add) -> None:
    """The negative control: a label, a row, a mode of a constraint, or a function that differs is described."""
    await live_through(database, settings, add, STORIES["enum"] + STORIES["deferred keys"], None)
    before = await describe(database)
    changes = [
        "ALTER TYPE mood ADD VALUE 'odd'",
        "INSERT INTO moods VALUES ('blue')",
        "ALTER TABLE pets ALTER CONSTRAINT pets_owner_fkey DEFERRABLE INITIALLY IMMEDIATE",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ]
    for tenant, change in zip(await list_tenants(database), changes, strict=False):
        async with database.tenant_connection(tenant) as connection:
            await connection.execute(change)
        after = await describe(database)
        assert after[tenant.slug] != before[tenant.slug], change
