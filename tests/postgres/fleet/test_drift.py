"""A tenant whose tables differ from the majority's at its version is found, and the difference named."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet import drift as drift_module
from quart_tenants.postgres.fleet.drift import LOOP_OVER_INDEXES, Majority, find_drift
from quart_tenants.postgres.registry.registry_tables import list_tenants
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.resources import read_statement
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant, parse_schema_name, parse_slug

# Schemas that a careless replacement of their names would tell apart: `t` ends other words, `acm` begins a
# tenant's name, the others need quotes, or look like a part of what is in the tables.
ODD_SCHEMAS = ("t", "e", "acm", "Acme Corp", 'the "best"', "o'brien", "back\\slash", "a.b", "app_user", "(x|y)*", "ünï")
# Everything in which PostgreSQL writes the schema's name down, and texts that look as if it had.
RICH_TABLES = """
CREATE TYPE state AS ENUM ('open', 'it''s shut');
CREATE TYPE "odd 'state'" AS ENUM ('x');
CREATE COLLATION german (provider = libc, locale = 'C');
CREATE SEQUENCE "odd 'numbers'";
CREATE TABLE "e.x t.y ""Acme Corp"".z" (id serial PRIMARY KEY, acme int UNIQUE);
CREATE TABLE orders (
    id serial PRIMARY KEY,
    number bigint DEFAULT nextval('"odd ''numbers''"'),
    state state NOT NULL DEFAULT 'open' CHECK (state <> 'it''s shut'),
    states state[] DEFAULT ARRAY['open']::state[],
    odd "odd 'state'" DEFAULT 'x',
    site text COLLATE german DEFAULT 'see t.example.com, acm.example.com and "Acme Corp".example.com, it''s e.x',
    doubled text GENERATED ALWAYS AS (site || ' a.b e.x o''brien.x') STORED,
    parent int REFERENCES "e.x t.y ""Acme Corp"".z" (id) ON DELETE CASCADE,
    thing int REFERENCES list.things (id),
    "userName" text REFERENCES app_user (username),
    "e.x it's t.x" text CHECK ("e.x it's t.x" <> "userName"),
    EXCLUDE USING btree (number WITH =)
);
CREATE INDEX orders_open ON orders (lower(site), state) WHERE state = 'open' AND site <> 't.x';
"""
# Of the texts of all defaults and constraints.
NAIVE_DIGESTS = """
SELECT nspname, md5(string_agg({}, ',' ORDER BY relname, name)) AS digest
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relkind = 'r'
JOIN (
    SELECT adrelid AS relid, adnum::text AS name, pg_get_expr(adbin, adrelid) AS text FROM pg_catalog.pg_attrdef
    UNION ALL
    SELECT conrelid, conname, pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint WHERE contype <> 'n'
) AS x ON x.relid = c.oid
WHERE nspname = ANY ($1) GROUP BY nspname
"""


# Each begins with what is known of a schema, a table, or a part of it.
GOOD_INDEXES = {
    "pg_namespace_nspname_index",
    "pg_depend_reference_index",
    "pg_class_oid_index",
    "pg_attribute_relid_attnum_index",
    "pg_type_oid_index",
    "pg_attrdef_adrelid_adnum_index",
    "pg_index_indrelid_index",
    "pg_constraint_conrelid_contypid_conname_index",
}


async def run_in(database: Database, statements: str, *tenants: Tenant) -> None:
    """Change the tables of *tenants*."""
    for tenant in tenants:
        async with database.tenant_connection(tenant) as connection:
            await connection.execute(statements)


async def look_for_drift(
    database: Database, tenants: Sequence[Tenant] | None = None
) -> tuple[list[Majority], dict[str, tuple[str, ...]]]:
    """Return what the tenants, by default all, are compared with, and the differences of those that have any."""
    if tenants is None:
        tenants = await list_tenants(database)
    majorities, drifts = await find_drift(database, tenants, settings=database._settings)
    return majorities, {drift.slug: drift.differences for drift in drifts}


@pytest.mark.parametrize(
    ("statements", "differences"),
    [
        ("ALTER TABLE app_user ADD nickname text", ["extra column app_user.nickname (text)"]),
        ("ALTER TABLE company_data DROP description", ["missing column company_data.description (text NOT NULL)"]),
        (
            "ALTER TABLE app_user ALTER username TYPE varchar(80)",
            ["column app_user.username: character varying(80) NOT NULL, by the majority text NOT NULL"],
        ),
        (
            "ALTER TABLE app_user ALTER password DROP NOT NULL, ALTER password SET DEFAULT 'x'",
            ["column app_user.password: text DEFAULT 'x'::text, by the majority text NOT NULL"],
        ),
        (
            'ALTER TABLE company_data ALTER description TYPE text COLLATE "C"',
            ['column company_data.description: text COLLATE "C" NOT NULL, by the majority text NOT NULL'],
        ),
        (
            "ALTER TABLE company_data ALTER id SET GENERATED ALWAYS",
            [
                "column company_data.id: bigint NOT NULL GENERATED ALWAYS AS IDENTITY,"
                " by the majority bigint NOT NULL GENERATED BY DEFAULT AS IDENTITY"
            ],
        ),
        ("DROP TABLE company_data", ["missing table company_data"]),
        ('CREATE TABLE "Extra" (id int PRIMARY KEY, x int UNIQUE)', ['extra table "Extra"']),
        (
            "CREATE UNIQUE INDEX early ON app_user (lower(username)) WHERE id < 9",
            ["extra index early: CREATE UNIQUE INDEX early ON app_user USING btree (lower(username)) WHERE (id < 9)"],
        ),
        (
            "ALTER TABLE app_user DROP CONSTRAINT app_user_username_key, ADD CHECK (id > 0) NOT VALID",
            [
                "extra constraint app_user.app_user_id_check: CHECK ((id > 0)) NOT VALID",
                "missing constraint app_user.app_user_username_key: UNIQUE (username)",
            ],
        ),
        (
            "ALTER TABLE app_user ADD CONSTRAINT one_line CHECK (CASE WHEN id > 0 THEN username > '' ELSE false END)",
            [
                "extra constraint app_user.one_line: CHECK ("
                " CASE WHEN (id > 0) THEN (username > ''::text) ELSE false END)"
            ],
        ),
        (
            "CREATE TABLE company_data2 (); ALTER TABLE company_data RENAME TO app_data;"
            " ALTER TABLE app_user RENAME CONSTRAINT app_user_pkey TO users_pkey",
            [
                "extra table app_data",
                "missing table company_data",
                "extra table company_data2",
                "missing constraint app_user.app_user_pkey: PRIMARY KEY (id)",
                "extra constraint app_user.users_pkey: PRIMARY KEY (id)",
            ],
        ),
    ],
)
async def test_each_difference_is_named(
    database: Database, globex: Tenant, statements: str, differences: list[str]
) -> None:
    """One tenant of four was changed: it drifts, and each line says in what."""
    await run_in(database, statements, globex)

    majorities, drift = await look_for_drift(database)

    assert drift == {"globex": tuple(differences)}
    assert majorities == [Majority(1, parse_slug("acme"), count=3, compared=4, tied=False)]


async def test_what_the_others_have_is_missing(database: Database, acme: Tenant) -> None:
    """The majority is right, also against the oldest tenant, which alone was not changed; a broken index is told."""
    others = [tenant for tenant in await list_tenants(database) if tenant != acme]
    await run_in(database, "CREATE INDEX by_text ON company_data (description)", *others)
    await run_in(database, "CREATE INDEX by_text ON company_data (description)", acme)
    await run_in(database, "ALTER TABLE app_user ADD nickname text", *others)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE pg_catalog.pg_index SET indisvalid = false WHERE indexrelid = 'acme.by_text'::regclass"
        )

    _, drift = await look_for_drift(database)

    index = "CREATE INDEX by_text ON company_data USING btree (description)"
    assert drift == {
        "acme": (
            "missing column app_user.nickname (text)",
            f"index by_text: {index} (invalid), by the majority {index}",
        )
    }


async def create_odd_tenants(database: Database, settings: Settings) -> list[Tenant]:
    """Make tenants with odd schemas and the rich tables, acme's included."""
    for number, schema in enumerate(ODD_SCHEMAS):
        await create_tenant(
            database, parse_slug(f"odd{number}"), schema, settings=settings, schema=parse_schema_name(schema)
        )
    tenants = [tenant for tenant in await list_tenants(database) if tenant.slug.startswith(("odd", "acme"))]
    async with database.connection() as connection:
        # Shared by all; its name ends like a tenant's.
        await connection.execute("CREATE SCHEMA list; CREATE TABLE list.things (id int PRIMARY KEY)")
    await run_in(database, RICH_TABLES, *tenants)
    return tenants


async def test_tenants_are_equal_whatever_their_schema_is_called(database: Database, settings: Settings) -> None:
    """The schema's name is no difference, wherever PostgreSQL writes it down; what only looks like it stays."""
    tenants = await create_odd_tenants(database, settings)

    majorities, drift = await look_for_drift(database, tenants)

    assert drift == {}
    assert [majority.count for majority in majorities] == [len(ODD_SCHEMAS) + 1]


@pytest.mark.parametrize("taken_out", ["text", "replace(text, quote_ident(nspname) || '.', '')"])
async def test_naive_digests_call_equal_tenants_different(
    database: Database, settings: Settings, taken_out: str
) -> None:
    """Negative control: the same tenants differ where the name is left inside, or replaced as plain text."""
    tenants = await create_odd_tenants(database, settings)

    async with database.connection() as connection:
        digests = await connection.fetch(NAIVE_DIGESTS.format(taken_out), [tenant.schema.name for tenant in tenants])

    assert len(digests) == len(ODD_SCHEMAS) + 1
    assert len({row["digest"] for row in digests}) > 1


async def test_a_text_that_looks_like_the_schema_is_compared(database: Database, acme: Tenant) -> None:
    """What is in a literal counts, though it begins with the tenant's own name."""
    tenants = await list_tenants(database)
    await run_in(database, "ALTER TABLE app_user ADD site text DEFAULT 'example.com'", *tenants)
    await run_in(database, "ALTER TABLE app_user ALTER site SET DEFAULT 'acme.example.com'", acme)

    _, drift = await look_for_drift(database)

    assert drift == {
        "acme": (
            "column app_user.site: text DEFAULT 'acme.example.com'::text,"
            " by the majority text DEFAULT 'example.com'::text",
        )
    }


async def test_another_tenants_tables_are_a_difference(database: Database, acme: Tenant) -> None:
    """A reference that leaves the tenant's schema is no part of what is taken out."""
    tenants = await list_tenants(database)
    await run_in(database, "CREATE TABLE child (parent bigint REFERENCES app_user, n serial)", *tenants)
    await run_in(
        database,
        "ALTER TABLE child DROP CONSTRAINT child_parent_fkey, ADD FOREIGN KEY (parent) REFERENCES globex.app_user,"
        " ALTER n SET DEFAULT nextval('globex.child_n_seq')",
        acme,
    )

    _, drift = await look_for_drift(database)

    assert drift == {
        "acme": (
            "column child.n: integer NOT NULL DEFAULT nextval('globex.child_n_seq'::regclass),"
            " by the majority integer NOT NULL DEFAULT nextval('child_n_seq'::regclass)",
            "constraint child.child_parent_fkey: FOREIGN KEY (parent) REFERENCES globex.app_user(id),"
            " by the majority FOREIGN KEY (parent) REFERENCES app_user(id)",
        )
    }


async def test_order_of_columns_does_not_matter(database: Database, acme: Tenant) -> None:
    """A column that was dropped and added again is the same."""
    await run_in(
        database,
        "CREATE TABLE notes (a int, b text); CREATE INDEX by_b ON notes (b)",
        *[tenant for tenant in await list_tenants(database) if tenant != acme],
    )
    await run_in(database, "CREATE TABLE notes (b text, x int, a int); CREATE INDEX by_b ON notes (b)", acme)
    await run_in(database, "ALTER TABLE notes DROP x", acme)

    _, drift = await look_for_drift(database)

    assert drift == {}


async def test_versions_are_compared_apart(database: Database) -> None:
    """Tenants at different versions have different tables, and that is right; a tie is told and the oldest counts."""
    acme, company1, company2, globex = await list_tenants(database)
    await run_in(database, "ALTER TABLE app_user ADD nickname text", globex, company2)
    async with database.connection() as connection:
        await connection.execute(
            "INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256)"
            " VALUES ('globex', 2, '0002_nickname.sql', ''), ('company1', 2, '0002_nickname.sql', '')"
        )

    majorities, drift = await look_for_drift(database)

    assert majorities == [
        Majority(1, acme.slug, count=1, compared=2, tied=True),
        Majority(2, globex.slug, count=1, compared=2, tied=True),
    ]
    assert drift == {
        company1.slug: ("missing column app_user.nickname (text)",),
        company2.slug: ("extra column app_user.nickname (text)",),
    }


async def test_missing_schema_is_told(database: Database) -> None:
    """A schema that somebody dropped by hand is no reason to compare; an empty one has no tables."""
    async with database.connection() as connection:
        await connection.execute("DROP SCHEMA globex CASCADE; DROP SCHEMA acme CASCADE; CREATE SCHEMA acme")

    majorities, drift = await look_for_drift(database)

    assert drift == {
        "acme": ("missing table app_user", "missing table company_data"),
        "globex": ("schema globex is missing",),
    }
    assert majorities == [Majority(1, parse_slug("company1"), count=2, compared=3, tied=False)]


async def test_views_functions_and_triggers_are_not_looked_at(database: Database, acme: Tenant) -> None:
    """They hold nobody's rows."""
    await run_in(
        database,
        "CREATE VIEW names AS SELECT username FROM app_user;"
        " CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        " CREATE CONSTRAINT TRIGGER nothing AFTER INSERT ON app_user FOR EACH ROW EXECUTE FUNCTION nothing()",
        acme,
    )

    assert (await look_for_drift(database))[1] == {}


async def test_batches_are_not_seen_in_the_result(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tenants at a time are compared with all the others, on a new connection for each batch."""
    tenants = await list_tenants(database)
    await run_in(database, "ALTER TABLE app_user ADD x int", tenants[0])
    await run_in(database, "CREATE TABLE more ()", tenants[3])
    expected = await look_for_drift(database)
    monkeypatch.setattr(drift_module, "_TABLES_AT_ONCE", 6)
    pids: list[int] = []
    open_database = Database.open

    async def open_and_note(*arguments: Any, **options: Any) -> Database:
        fresh = await open_database(*arguments, **options)
        async with fresh.connection() as connection:
            pids.append(await connection.fetchval("SELECT pg_backend_pid()"))
        return fresh

    monkeypatch.setattr(Database, "open", open_and_note)
    compared: list[int] = []

    found = await find_drift(database, tenants, settings=database._settings, on_compared=compared.append)

    assert (found[0], {one.slug: one.differences for one in found[1]}) == expected
    assert set(expected[1]) == {"acme", "globex"}
    # Each has two tables, but for the last, which has three.
    assert compared == [2, 1, 1]
    assert len(set(pids)) == 3


async def test_tenant_that_changes_meanwhile_is_taken_as_it_is(database: Database) -> None:
    """A version and the tables of it are read together, and a tenant that was dropped is left out."""
    tenants = await list_tenants(database)
    async with database.connection() as connection:
        await connection.execute(
            "ALTER TABLE globex.app_user ADD nickname text;"
            " INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256)"
            " VALUES ('globex', 2, '0002_nickname.sql', '')"
        )
    await drop_tenant(database, parse_slug("company2"))

    majorities, drifts = await look_for_drift(database, tenants)

    assert drifts == {}
    assert [(majority.version, majority.count) for majority in majorities] == [(1, 2), (2, 1)]


@pytest.mark.parametrize("naive", [False, True])
async def test_describing_reads_no_whole_catalogue(database: Database, naive: bool) -> None:
    """Every catalogue is read by an index, so that one tenant costs the same among many.

    Negative control: the naive query finds the tables of a schema in pg_class, which has no index for that.
    """
    query = read_statement("describe_schemas")
    if naive:
        query = query.replace("ON d.refclassid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND", "ON")
        query = query.replace("c.oid = d.objid AND", "c.relnamespace = s.oid AND")
    async with database.connection() as connection:
        await connection.execute(LOOP_OVER_INDEXES)
        # As if there were many tenants: without it the planner reads small catalogues whole.
        await connection.execute("SET LOCAL enable_seqscan TO off")
        plan = await connection.fetch(f"EXPLAIN {query}", ["acme"], [])

    indexes = set(re.findall(r"pg_\w+_index", "\n".join(line for (line,) in plan)))
    assert not any("Seq Scan" in line for (line,) in plan)
    assert (indexes <= GOOD_INDEXES) != naive, indexes
