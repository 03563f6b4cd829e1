"""Backups: what is in the file, what a restore makes of it, and what both refuse without changing anything."""

import asyncio
import io
import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from quart_tenants.errors import (
    BackupFileError,
    ClientProgramError,
    DatabaseUnavailableError,
    InvalidSlugError,
    TenantBusyError,
    TenantError,
    TenantExistsError,
    TenantInTrashError,
    UnknownTenantError,
)
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.backup_files import get_reader_version, open_backup
from quart_tenants.postgres.backups.client_programs import ClientPrograms, build_environment, find_client_programs
from quart_tenants.postgres.backups.restore import copy_tenant, restore_tenant
from quart_tenants.postgres.backups.restore_scripts import quote_literal
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant, list_tenants
from quart_tenants.postgres.tenants.lifecycle import rename_tenant
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant, list_trash, undrop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant
from tests.postgres.conftest import Role

ACME, GLOBEX, COPY = Slug("acme"), Slug("globex"), Slug("copy")

# Everything that a schema can have of what a migration would put there. {role} may read.
EVERYTHING = """
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE TABLE authors (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text NOT NULL UNIQUE, mood mood DEFAULT 'glad',
    CHECK (email LIKE '%@%')
);
CREATE TABLE notes (
    id serial PRIMARY KEY, author_id bigint REFERENCES authors (id) ON DELETE CASCADE, body text,
    size integer GENERATED ALWAYS AS (length(body)) STORED
);
CREATE INDEX long_notes ON notes (author_id) WHERE size > 10;
CREATE VIEW authors_and_notes AS SELECT email, body FROM authors JOIN notes ON notes.author_id = authors.id;
CREATE SEQUENCE invoices START 100 INCREMENT 10;
CREATE FUNCTION count_notes() RETURNS bigint LANGUAGE sql SET search_path FROM CURRENT
    AS 'SELECT count(*) FROM notes';
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := upper(NEW.body); RETURN NEW; END $$;
CREATE TRIGGER shout BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION shout();
COMMENT ON TABLE notes IS 'what they write; it''s theirs';
INSERT INTO authors (email) VALUES ('a@acme.test'), ('b@acme.test'), ('c@acme.test');
DELETE FROM authors WHERE email = 'c@acme.test';
INSERT INTO notes (author_id, body) VALUES (1, E'tab\\t back\\\\slash'), (2, NULL), (1, '\\.');
SELECT nextval('invoices'), nextval('invoices');
GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT ON notes TO {role};
"""
# What the catalogue knows of schema $1, without the schema's name where that is only the place.
DESCRIBE = r"""
SELECT array_agg(line ORDER BY line) FROM (
    SELECT concat_ws(' ', 'relation', c.relname, c.relkind, c.relacl, obj_description(c.oid)) AS line
    FROM pg_class AS c WHERE c.relnamespace = $1::text::regnamespace
    UNION ALL
    SELECT concat_ws(
        ' ', 'column', c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
        a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid)
    )
    FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = $1::text::regnamespace
    UNION ALL
    SELECT concat_ws(' ', 'constraint', conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = $1::text::regnamespace
    UNION ALL
    SELECT concat_ws(' ', 'index', pg_get_indexdef(indexrelid))
    FROM pg_index JOIN pg_class AS c ON c.oid = indexrelid WHERE c.relnamespace = $1::text::regnamespace
    UNION ALL
    SELECT concat_ws(' ', 'view', pg_get_viewdef(oid))
    FROM pg_class WHERE relnamespace = $1::text::regnamespace AND relkind = 'v'
    UNION ALL
    SELECT concat_ws(' ', 'function', pg_get_functiondef(oid), proacl)
    FROM pg_proc WHERE pronamespace = $1::text::regnamespace
    UNION ALL
    SELECT concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid))
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
    WHERE c.relnamespace = $1::text::regnamespace AND NOT t.tgisinternal
    UNION ALL
    SELECT concat_ws(' ', 'sequence', sequencename, start_value, increment_by, last_value)
    FROM pg_sequences WHERE schemaname = $1
    UNION ALL
    SELECT concat_ws(' ', 'schema', nspacl) FROM pg_namespace WHERE nspname = $1
) AS described
"""
# Not pg_stat_activity, which stands still within a transaction.
FIND_WAITING = """
SELECT l.pid FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
WHERE NOT l.granted AND d.datname = current_database()
"""
LIST_SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' ORDER BY nspname"


@asynccontextmanager
async def outside(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Lend a connection that is no block of ours."""
    connection = await asyncpg.connect(database_url)
    try:
        yield connection
    finally:
        await connection.close()


async def fill(database: Database, tenant: Tenant, statements: str) -> None:
    """Run *statements* in the tenant's schema."""
    async with database.tenant_connection(tenant) as connection:
        await connection.execute(statements)


async def fetch(database: Database, question: str, *arguments: object) -> list[Any]:
    """Return the first column of what *question* answers. Every name in it is written in full."""
    async with database.connection() as connection:
        return [row[0] for row in await connection.fetch(question, *arguments)]


async def describe(database: Database, schema: str) -> list[str]:
    """Return all that the catalogue knows of *schema*, with the name of the schema written as @."""
    (lines,) = await fetch(database, DESCRIBE, schema)
    return sorted(line.replace(f"{schema}.", "@.").replace(f"'{schema}'", "'@'") for line in lines)


async def remember(database: Database) -> tuple[list[Tenant], list[str], list[Any]]:
    """Return what a failure must not change: tenants, schemas and the trash."""
    return await list_tenants(database), await fetch(database, LIST_SCHEMAS), await list_trash(database)


@pytest.fixture
async def backup_file(database: Database, settings: Settings, acme: Tenant, tmp_path: Path) -> Path:
    """A backup of acme with two users."""
    await fill(database, acme, "INSERT INTO app_user (username, password) VALUES ('a', 'hash a'), ('b', 'hash b')")
    file = tmp_path / "acme.tar"
    await backup_tenant(database, ACME, file, settings=settings)
    return file


# Copies


async def test_copy_has_everything_and_is_nobodys_but_its_own(
    database: Database, settings: Settings, acme: Tenant, role: Role
) -> None:
    """A copy has the template's rows, numbers, objects and grants, and not one object leads back to the template."""
    await fill(database, acme, EVERYTHING.format(role=role.name, schema="acme"))
    template = await describe(database, "acme")

    copy = await copy_tenant(database, ACME, COPY, "A copy", settings=settings)

    assert await describe(database, "copy") == template
    assert await describe(database, "acme") == template
    assert copy == await get_tenant(database, COPY)
    assert (copy.name, copy.version) == ("A copy", 1)
    async with database.tenant_connection(copy) as connection:
        assert await connection.fetchval("SELECT array_agg(body ORDER BY id) FROM notes") == [
            "TAB\t BACK\\SLASH",
            None,
            "\\.",
        ]
        assert await connection.fetchval("INSERT INTO authors (email) VALUES ('d@copy.test') RETURNING id") == 4
        assert await connection.fetchval("INSERT INTO notes (body) VALUES ('new') RETURNING id") == 4
        assert await connection.fetchval("SELECT nextval('invoices')") == 120
        assert await connection.fetchval("SELECT count_notes()") == 4
    async with database.tenant_connection(acme) as connection:
        assert await connection.fetchval("SELECT count_notes()") == 3
        assert await connection.fetchval("SELECT nextval('invoices')") == 120


async def test_naive_copy_does_not_pass_for_one(database: Database, acme: Tenant, role: Role) -> None:
    """Negative control: CREATE TABLE (LIKE ... INCLUDING ALL) is no copy, and the comparison above knows it."""
    await fill(database, acme, EVERYTHING.format(role=role.name, schema="acme"))

    async with database.connection() as connection:
        await connection.execute("CREATE SCHEMA copy")
        for table in ("app_user", "company_data", "authors", "notes"):
            await connection.execute(f"CREATE TABLE copy.{table} (LIKE acme.{table} INCLUDING ALL)")

    copy = await describe(database, "copy")
    assert copy != await describe(database, "acme")
    assert any("acme." in line for line in copy)
    assert not any("FOREIGN KEY" in line or line.startswith("view") for line in copy)


# By what the refusal is to call it: an object that reaches schema acme from wherever it is.
WAYS_BACK = {
    r"function prefix\(\)": """CREATE FUNCTION prefix() RETURNS bigint LANGUAGE sql
        AS 'SELECT count(*) FROM ACME . app_user'""",
    r"function joined\(text\)": """CREATE FUNCTION joined(t text) RETURNS void LANGUAGE plpgsql
        AS $$ BEGIN EXECUTE 'DELETE FROM "acme".' || t; END $$""",
    r"function formatted\(\)": """CREATE FUNCTION formatted() RETURNS void LANGUAGE plpgsql
        AS $$ BEGIN EXECUTE format('DELETE FROM %I.app_user', 'acme'); END $$""",
    r"function listed\(\)": """CREATE FUNCTION listed() RETURNS void LANGUAGE plpgsql
        AS $$ BEGIN PERFORM set_config('search_path', 'pg_temp, acme', true); END $$""",
    r"function entered\(\)": """CREATE FUNCTION entered() RETURNS void LANGUAGE plpgsql
        AS $$ BEGIN SET LOCAL search_path TO acme; END $$""",
    r"function setting\(\)": "CREATE FUNCTION setting() RETURNS void LANGUAGE sql SET app.place = 'acme' AS ''",
    r"function atomic\(\)": """CREATE FUNCTION atomic() RETURNS xml LANGUAGE sql
        BEGIN ATOMIC SELECT query_to_xml('SELECT id FROM acme.app_user', true, true, ''); END""",
    r"default value for column \w+ of table late": """CREATE SEQUENCE numbers;
        CREATE TABLE late (number bigint DEFAULT nextval('acme.numbers'::text::regclass))""",
    r"constraint checked on table app_user": """ALTER TABLE app_user
        ADD CONSTRAINT checked CHECK (to_regclass('acme.app_user') IS NOT NULL)""",
    r"policy own on table app_user": """CREATE POLICY own ON app_user
        USING (has_table_privilege('acme.app_user', 'SELECT'))""",
    r"rule _RETURN on view seen": "CREATE VIEW seen AS SELECT has_schema_privilege('acme', 'USAGE')",
    r"trigger told on table app_user": """CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN EXECUTE format('DELETE FROM %I.app_user', TG_ARGV[0]); RETURN NULL; END $$;
        CREATE TRIGGER told AFTER INSERT ON app_user EXECUTE FUNCTION told('acme')""",
}


async def test_copy_with_something_that_would_reach_into_the_template_is_refused(
    database: Database, settings: Settings, acme: Tenant
) -> None:
    """Whatever names the template's schema in a text would use the template's rows from the copy."""
    await fill(database, acme, "; ".join(WAYS_BACK.values()))
    before = await remember(database)

    left = dict(WAYS_BACK)
    while left:
        with pytest.raises(BackupFileError, match=r"tenant 'acme' cannot become tenant 'copy': its ") as caught:
            await copy_tenant(database, ACME, COPY, "A copy", settings=settings)
        (found,) = [name for name in left if re.search(f"its {name} names the schema acme", str(caught.value))]
        await fill(database, acme, remedy(left.pop(found)))

    assert await remember(database) == before
    assert await copy_tenant(database, ACME, COPY, "A copy", settings=settings) == await get_tenant(database, COPY)


def remedy(way: str) -> str:
    """Return what removes a way back."""
    kind, name = re.findall(r"(?:CREATE|ADD) (FUNCTION|TABLE|CONSTRAINT|POLICY|VIEW|TRIGGER) (\w+)", way)[-1]
    on_table = {"CONSTRAINT": f"ALTER TABLE app_user DROP CONSTRAINT {name}"} | {
        kind: f"DROP {kind} {name} ON app_user" for kind in ("POLICY", "TRIGGER")
    }
    return on_table.get(kind, f"DROP {kind} {name}")


async def test_copy_of_a_schema_with_a_common_name_is_not_refused(database: Database, settings: Settings) -> None:
    """A word that happens to be the schema's name is none of its ways: a column, an alias, NEW in a trigger."""
    for slug, statements in {
        "data": """CREATE TABLE users (data text DEFAULT 'more data here');
            CREATE VIEW aliased AS SELECT data.data FROM users AS data;
            CREATE FUNCTION f() RETURNS text LANGUAGE sql SET search_path = data, data
                AS $$ SELECT 'x' data UNION SELECT u.data FROM users AS u WHERE u.data > '' $$""",
        "new": """CREATE TABLE notes (body text);
            CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql
                AS $$ BEGIN NEW.body := upper(NEW.body); RETURN NEW; END $$;
            CREATE TRIGGER shout BEFORE INSERT ON notes FOR EACH ROW WHEN (NEW.body <> '') EXECUTE FUNCTION shout()""",
        "3": "CREATE FUNCTION pi() RETURNS numeric LANGUAGE sql AS 'SELECT 3.14'",
    }.items():
        await fill(database, await create_tenant(database, Slug(slug), "Common", settings=settings), statements)

        # The old name is a part of the new one.
        copy = await copy_tenant(database, Slug(slug), Slug(f"{slug}-2"), "A copy", settings=settings)

        assert copy.schema.name == f"{slug}-2"
    assert await fetch(database, "SELECT proconfig FROM pg_proc WHERE pronamespace = '\"data-2\"'::regnamespace") == [
        ['search_path="data-2", "data-2"']
    ]


async def test_tenant_with_an_extension_is_not_backed_up(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    """A dump leaves an extension out and could not be restored, so the backup says at once what to do."""
    await fill(database, acme, "CREATE EXTENSION citext SCHEMA acme; CREATE TABLE words (word acme.citext)")

    with pytest.raises(BackupFileError, match=r"extension citext.*: ALTER EXTENSION citext SET SCHEMA public"):
        await backup_tenant(database, ACME, tmp_path / "acme.tar", settings=settings)
    assert list(tmp_path.iterdir()) == []
    await fetch(database, "ALTER EXTENSION citext SET SCHEMA public")

    assert await copy_tenant(database, ACME, COPY, "A copy", settings=settings) == await get_tenant(database, COPY)


@pytest.mark.parametrize("schema", ["AcmeCorp", "a.b", "x*y", 'it\'s "quoted" \\ $1 :x', "größe ?[a-z]|"])
async def test_odd_schema_names_are_taken_literally(
    database: Database, settings: Settings, tmp_path: Path, schema: str
) -> None:
    """A name that is a pattern, or means something to a program, is that one schema's name and nothing more."""
    odd = await create_tenant(database, Slug("odd"), "O'Dd \\", settings=settings, schema=SchemaName(schema))
    await fill(database, odd, "INSERT INTO company_data (description) VALUES ('odd')")
    for decoy in ("acmecorp", "a", "xzy"):
        await fetch(database, f"CREATE SCHEMA {decoy}")

    backup = await backup_tenant(database, odd.slug, tmp_path / "odd.tar", settings=settings)
    restored = await restore_tenant(database, tmp_path / "odd.tar", COPY, settings=settings)
    replaced = await restore_tenant(database, tmp_path / "odd.tar", odd.slug, settings=settings, replace=True)

    assert (backup.schema, restored.name) == (odd.schema, odd.name)
    assert replaced == odd
    for tenant in (restored, odd):
        async with database.tenant_connection(tenant) as connection:
            assert await connection.fetchval("SELECT description FROM company_data") == "odd"


# The file


async def test_backup_is_a_private_tar_that_says_what_it_is(backup_file: Path, acme: Tenant) -> None:
    """The file is a plain tar of two members, and only its owner may read it: it holds password hashes."""
    with tarfile.open(backup_file, "r:") as tar:
        names = tar.getnames()
        manifest = json.load(tar.extractfile("tenant.json") or io.BytesIO())
        dump = (tar.extractfile("schema.dump") or io.BytesIO()).read()

    assert names == ["tenant.json", "schema.dump"]
    assert stat.S_IMODE(backup_file.stat().st_mode) == 0o600
    assert dump.startswith(b"PGDMP")
    assert (manifest["format"], manifest["slug"], manifest["schema"], manifest["name"]) == (1, "acme", "acme", "Acme")
    assert manifest["dump"]["size"] == len(dump)
    assert [migration["version"] for migration in manifest["migrations"]] == [1]
    assert [path.name for path in backup_file.parent.iterdir()] == ["acme.tar"]


async def test_programs_that_restore_are_as_new_as_those_that_wrote(backup_file: Path) -> None:
    """A server may be older than the programs that made the backup, and older ones cannot read what they wrote."""
    with open_backup(backup_file) as (_, dump):
        written_by = get_reader_version(dump)
        rest = dump.read(5)

    needed = [
        get_reader_version(io.BytesIO(b"PGDMP" + bytes(found)))
        for found in ((), (1, 14, 0), (1, 15, 0), (1, 16, 0), (1, 17, 0), (2, 0, 0))
    ]
    # PostgreSQL 17 and 18 write the same.
    assert (written_by, rest) == (17, b"PGDMP")
    assert needed == [12, 12, 16, 17, 18, 18]


async def test_existing_file_is_replaced_only_by_force(
    database: Database, settings: Settings, backup_file: Path
) -> None:
    """A backup never overwrites a file unless told to, and then in one step."""
    before = backup_file.read_bytes()

    with pytest.raises(BackupFileError, match="--force"):
        await backup_tenant(database, GLOBEX, backup_file, settings=settings)
    assert backup_file.read_bytes() == before
    backup = await backup_tenant(database, GLOBEX, backup_file, settings=settings, force=True)

    assert backup.slug == GLOBEX
    assert backup_file.read_bytes() != before


@pytest.mark.parametrize("kind", ["pipe", "link", "link to nothing"])
async def test_what_is_no_regular_file_is_never_replaced(
    database: Database, settings: Settings, tmp_path: Path, kind: str
) -> None:
    """A pipe, a device or a link such as /dev/stdout stays what it is, also with force."""
    file, target = tmp_path / "acme.tar", tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(target)
    if kind == "link":
        target.write_text("precious")
    before = file.lstat()

    for force in (False, True):
        with pytest.raises(BackupFileError, match="no regular file"):
            await backup_tenant(database, ACME, file, settings=settings, force=force)

    assert file.lstat() == before


async def test_backup_that_fails_or_is_cancelled_leaves_nothing(
    database: Database, database_url: str, settings: Settings, tmp_path: Path
) -> None:
    """Neither a half file nor a program stays behind when a backup does not come to its end."""
    file = tmp_path / "acme.tar"
    async with outside(database_url) as connection, connection.transaction():
        await connection.execute("LOCK TABLE acme.app_user IN ACCESS EXCLUSIVE MODE")
        backing_up = asyncio.create_task(backup_tenant(database, ACME, file, settings=settings))
        await wait_for_waiting(connection)
        assert [path.suffix for path in tmp_path.iterdir()] != []
        backing_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await backing_up
    assert list(tmp_path.iterdir()) == []

    with pytest.raises(UnknownTenantError):
        await backup_tenant(database, Slug("nobody"), file, settings=settings)
    with pytest.raises(BackupFileError, match="a folder that exists"):
        await backup_tenant(database, ACME, tmp_path / "nowhere" / "acme.tar", settings=settings)

    assert list(tmp_path.iterdir()) == []


async def test_backup_is_of_one_moment(database: Database, settings: Settings, acme: Tenant, tmp_path: Path) -> None:
    """What one transaction writes while the backup runs is in it as a whole, or not at all."""
    await fill(database, acme, "CREATE TABLE a_first (n integer); CREATE TABLE z_last (n integer)")
    written = 0
    done = asyncio.Event()

    async def write_pairs() -> None:
        nonlocal written
        while not done.is_set():
            await fill(database, acme, "INSERT INTO a_first VALUES (1); INSERT INTO z_last VALUES (1)")
            written += 1

    writing = asyncio.create_task(write_pairs())
    counts = []
    for number in range(3):
        file = tmp_path / f"{number}.tar"
        await backup_tenant(database, ACME, file, settings=settings)
        restored = await restore_tenant(database, file, Slug(f"copy{number}"), settings=settings)
        async with database.tenant_connection(restored) as connection:
            pair = await connection.fetchrow("SELECT (SELECT count(*) FROM a_first), (SELECT count(*) FROM z_last)")
        counts.append(tuple(pair or ()))
    done.set()
    await writing

    assert all(first == last for first, last in counts)
    assert 0 < counts[-1][0] < written
    assert counts == sorted(counts)


async def test_naive_backup_mixes_moments(database: Database, acme: Tenant) -> None:
    """Negative control: tables that are read one after the other do not belong together."""
    await fill(database, acme, "CREATE TABLE a_first (n integer); CREATE TABLE z_last (n integer)")

    first = await fetch(database, "SELECT n FROM acme.a_first")
    await fill(database, acme, "INSERT INTO a_first VALUES (1); INSERT INTO z_last VALUES (1)")
    last = await fetch(database, "SELECT n FROM acme.z_last")

    assert first != last


async def test_two_copies_to_one_name_make_one_tenant(database: Database, settings: Settings) -> None:
    """The slower of two gets to know that the name is taken, and has changed nothing."""
    outcomes = await asyncio.gather(
        *(copy_tenant(database, ACME, COPY, name, settings=settings) for name in ("one", "two")), return_exceptions=True
    )

    (copy,) = [outcome for outcome in outcomes if isinstance(outcome, Tenant)]
    (error,) = [outcome for outcome in outcomes if outcome is not copy]
    assert isinstance(error, TenantExistsError)
    assert copy == await get_tenant(database, COPY)


# In the place of a living tenant


async def test_replacing_is_one_step_for_readers_and_can_be_undone(
    database: Database, settings: Settings, acme: Tenant, backup_file: Path
) -> None:
    """A reader sees the old rows or the new ones; the tenant keeps its number, and the old rows come back beside it."""
    await fill(database, acme, "DELETE FROM app_user WHERE username = 'b'; UPDATE app_user SET username = 'changed'")
    seen: list[list[str]] = []
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            async with database.tenant_connection(acme) as connection:
                seen.append([row[0] for row in await connection.fetch("SELECT username FROM app_user ORDER BY id")])

    reading = asyncio.create_task(read())
    slugs: list[Slug] = []
    restored = await restore_tenant(
        database, backup_file, ACME, settings=settings, replace=True, on_replaced=slugs.append
    )
    done.set()
    await reading

    assert restored == acme
    assert seen[0] == ["changed"]
    assert {tuple(names) for names in seen} <= {("changed",), ("a", "b")}
    (trashed,) = await list_trash(database)
    assert slugs == [trashed.slug] == [f"acme-replaced-{trashed.id}"]
    async with database.tenant_connection(acme) as connection:
        assert await connection.fetchval("SELECT array_agg(username ORDER BY id) FROM app_user") == ["a", "b"]

    old = await undrop_tenant(database, trashed.slug, settings=settings)

    assert (old.name, old.version) == (acme.name, acme.version)
    async with database.tenant_connection(old) as connection:
        assert await connection.fetchval("SELECT array_agg(username) FROM app_user") == ["changed"]


async def test_replacing_in_two_steps_shows_a_gap(database: Database) -> None:
    """Negative control: when the old schema goes before the new one comes, a reader in between fails."""
    await fetch(database, "ALTER SCHEMA acme RENAME TO old")

    with pytest.raises(asyncpg.UndefinedTableError):
        await fetch(database, "SELECT username FROM acme.app_user")


async def test_replaced_functions_stay_with_their_own_rows(
    database: Database, settings: Settings, acme: Tenant, role: Role, tmp_path: Path
) -> None:
    """A function that keeps its schema's name as a text reads its own tenant's rows also after all the renaming."""
    await fill(database, acme, EVERYTHING.format(role=role.name, schema="acme"))
    await backup_tenant(database, ACME, tmp_path / "acme.tar", settings=settings)
    await fill(database, acme, "DELETE FROM notes")

    await restore_tenant(database, tmp_path / "acme.tar", ACME, settings=settings, replace=True)
    (trashed,) = await list_trash(database)
    old = await undrop_tenant(database, trashed.slug, settings=settings)

    for tenant, count in ((acme, 3), (old, 0)):
        async with database.tenant_connection(tenant) as connection:
            assert await connection.fetchval("SELECT count_notes()") == count


async def test_tenant_whose_schema_is_gone_is_restored_in_its_place(
    database: Database, settings: Settings, acme: Tenant, backup_file: Path
) -> None:
    """Somebody dropped the schema by hand: the backup takes its place, and there is nothing for the trash."""
    await fetch(database, "DROP SCHEMA acme CASCADE")

    restored = await restore_tenant(database, backup_file, ACME, settings=settings, replace=True)

    assert restored == acme == await get_tenant(database, ACME)
    assert await list_trash(database) == []
    assert await fetch(database, "SELECT username FROM acme.app_user ORDER BY id") == ["a", "b"]


async def test_backup_replaces_only_the_tenant_that_it_was_made_of(
    database: Database, settings: Settings, acme: Tenant, backup_file: Path
) -> None:
    """Sessions name a tenant's number, so no other customer's rows may come under it; a rename changes nothing."""
    # As schemas are that were adopted together.
    await fetch(database, "UPDATE quart_tenants.tenants SET created_at = '2026-01-01'")
    await backup_tenant(database, ACME, backup_file, settings=settings, force=True)
    before = await remember(database)

    with pytest.raises(BackupFileError, match=r"tenant 'globex' .* tenant 'acme' .* another --as, then rename"):
        await restore_tenant(database, backup_file, GLOBEX, settings=settings, replace=True)
    assert await remember(database) == before
    await rename_tenant(database, ACME, Slug("zenith"), settings=settings)
    restored = await restore_tenant(database, backup_file, Slug("zenith"), settings=settings, replace=True)
    # As it is in another database, where another customer has the number.
    await fetch(database, "UPDATE quart_tenants.tenants SET created_at = now() WHERE slug = 'zenith'")
    with pytest.raises(BackupFileError, match="another --as"):
        await restore_tenant(database, backup_file, Slug("zenith"), settings=settings, replace=True)

    assert (restored.id, restored.schema) == (acme.id, acme.schema)


async def test_two_restores_of_a_schema_that_nobody_has_do_not_meet(
    database: Database, settings: Settings, backup_file: Path
) -> None:
    """Both would make the schema of the dump; the one that comes later is told to come again."""
    await drop_tenant(database, ACME)

    async with database.connection() as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('quart_tenants schema acme', 0))")
        with pytest.raises(TenantBusyError):
            await restore_tenant(database, backup_file, COPY, settings=settings)
    restored = await restore_tenant(database, backup_file, COPY, settings=settings)

    assert restored == await get_tenant(database, COPY)


# What is refused


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a backup says about itself."""
    with tarfile.open(file, "r:") as tar:
        manifest = json.load(tar.extractfile("tenant.json") or io.BytesIO())
        dump = (tar.extractfile("schema.dump") or io.BytesIO()).read()
    change(manifest)
    with tarfile.open(file, "w:") as tar:
        for name, content in (("tenant.json", json.dumps(manifest).encode()), ("schema.dump", dump)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def add_migration(manifest: dict[str, Any]) -> None:
    """Let the backup be from an app that is newer by one migration."""
    manifest["migrations"].append({"version": 2, "name": "0002_new.sql", "sha256": "0" * 64})


BAD_MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown format": (lambda told: told.update(format=2), "has format 2"),
    "newer server": (lambda told: told.update(server_version=990001), "made from PostgreSQL 99"),
    "newer migration": (add_migration, "version 0002, and this app's newest migration is 0001_"),
    "edited migration": (lambda told: told["migrations"][0].update(sha256="0" * 64), "0001_.* another text"),
    "another sha256": (lambda told: told["dump"].update(sha256="0" * 64), "damaged: schema.dump has not the sha256"),
    "another size": (lambda told: told["dump"].update(size=5), "damaged: schema.dump has not the size"),
    "no slug": (lambda told: told.pop("slug"), "cannot be understood"),
    "the registry's schema": (lambda told: told.update(schema="quart_tenants"), "cannot be understood"),
    "another schema": (lambda told: told.update(schema="other"), 'schema "acme" already exists'),
}


async def test_bad_backup_is_refused_and_changes_nothing(
    database: Database, settings: Settings, backup_file: Path, tmp_path: Path
) -> None:
    """Whatever is wrong with a backup, the error names the file, and nothing has changed."""
    whole = backup_file.read_bytes()
    before = await remember(database)

    async def assert_refused(why: str, words: str) -> None:
        for replacing, slug in ((False, COPY), (True, ACME)):
            with pytest.raises(TenantError, match=words) as caught:
                await restore_tenant(database, backup_file, slug, settings=settings, replace=replacing)
            assert str(backup_file) in str(caught.value), why

    for why, (change, words) in BAD_MANIFESTS.items():
        backup_file.write_bytes(whole)
        rewrite(backup_file, change)
        await assert_refused(why, words)
    for length in (0, 100, 511, 512, 600, 1100, 2000, 3000, len(whole) - 2000):
        backup_file.write_bytes(whole[:length])
        await assert_refused(f"{length} bytes", "truncated|no backup")
    for position in (2000, len(whole) - 2000):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        backup_file.write_bytes(flipped)
        await assert_refused(f"byte {position}", "damaged")
    backup_file.write_bytes(os.urandom(4000))
    await assert_refused("noise", "no backup")
    backup_file.unlink()
    await assert_refused("missing", "cannot be read: No such file")

    assert await remember(database) == before


async def test_restore_asks_for_a_name_that_is_free_or_lives(
    database: Database, settings: Settings, backup_file: Path
) -> None:
    """A new tenant needs a free name, and only a living one can be replaced."""
    await drop_tenant(database, GLOBEX)
    before = await remember(database)

    async def assert_refused(error: type[TenantError], slug: str, *, replacing: bool = False) -> None:
        with pytest.raises(error):
            await restore_tenant(database, backup_file, Slug(slug), settings=settings, replace=replacing)

    await assert_refused(TenantExistsError, "acme")
    await assert_refused(TenantInTrashError, "globex")
    await assert_refused(TenantInTrashError, "globex", replacing=True)
    await assert_refused(UnknownTenantError, "nobody", replacing=True)
    await assert_refused(InvalidSlugError, "www")

    assert await remember(database) == before


async def test_grant_to_a_missing_role_is_refused(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    """A backup with grants to a role that the database lacks is restored when the role is there again."""
    name = f"qt_{secrets.token_hex(6)}"
    await fetch(database, f"CREATE ROLE {name}")
    await fill(database, acme, f"GRANT SELECT ON app_user TO {name}")
    file = tmp_path / "acme.tar"
    await backup_tenant(database, ACME, file, settings=settings)
    await fetch(database, f"DROP OWNED BY {name}")
    await fetch(database, f"DROP ROLE {name}")
    before = await remember(database)

    with pytest.raises(BackupFileError, match=f'"{name}" does not exist; create it'):
        await restore_tenant(database, file, COPY, settings=settings)

    assert await remember(database) == before


async def test_older_backup_leaves_the_tenant_behind(
    database: Database, settings: Settings, backup_file: Path, tmp_path: Path
) -> None:
    """A backup with fewer migrations than the app has is restored as it is, and the tenant's version says so."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for file in sorted((Path(__file__).parents[3] / "sql" / "tenant").iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "0002_new.sql").write_text("CREATE TABLE new (id integer)")

    restored = await restore_tenant(database, backup_file, COPY, settings=replace(settings, migrations_dir=folder))

    assert restored == await get_tenant(database, COPY)
    assert restored.version == 1


# What is killed


async def wait_for_waiting(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    """Return the process of the server that waits for a lock, as soon as there is one."""
    while (process := await connection.fetchval(FIND_WAITING)) is None:
        await asyncio.sleep(0.01)
    number: int = process
    return number


@pytest.mark.parametrize("whom", ["psql", "its server process", "the command"])
async def test_restore_that_is_killed_leaves_nothing(
    database: Database, database_url: str, settings: Settings, backup_file: Path, whom: str
) -> None:
    """Whoever is killed in the middle of a restore, all is as it was before."""
    before = await remember(database)
    async with outside(database_url) as connection:
        async with connection.transaction():
            # The restore writes there after the dump, just before it commits.
            await connection.execute("LOCK TABLE quart_tenants.applied_migrations IN SHARE MODE")
            restoring = asyncio.create_task(
                restore_tenant(database, backup_file, ACME, settings=settings, replace=True)
            )
            process = await wait_for_waiting(connection)
            if whom == "the command":
                restoring.cancel()
            elif whom == "psql":
                os.kill(find_child("psql"), signal.SIGKILL)
            else:
                await connection.execute("SELECT pg_terminate_backend($1)", process)
            with pytest.raises((ClientProgramError, DatabaseUnavailableError, asyncio.CancelledError)):
                await restoring
        # The server may still be busy with noticing.
        while await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", process):
            await asyncio.sleep(0.01)

    assert await remember(database) == before
    assert await fetch(database, "SELECT username FROM acme.app_user ORDER BY id") == ["a", "b"]


def find_child(name: str) -> int:
    """Return the number of this process's child called *name*."""
    listed = subprocess.run(["ps", "-A", "-o", "ppid=,pid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    (number,) = [int(pid) for parent, pid, command in rows if int(parent) == os.getpid() and command.endswith(name)]
    return number


async def test_end_of_input_is_no_commit(database: Database, database_url: str) -> None:
    """A script that ends before its COMMIT changes nothing; with psql's own --single-transaction it does."""
    programs = await find_client_programs(18)
    environment = build_environment(database_url, os.environ)

    for number, (script, options) in enumerate((("BEGIN;", []), ("", ["--single-transaction", "--file=-"]))):
        subprocess.run(
            [*programs.run_sql(), *options],
            input=f"{script} CREATE SCHEMA half{number};\n".encode(),
            env=environment,
            check=True,
        )

    assert await fetch(database, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'half%'") == ["half1"]


# Programs


def test_password_is_on_no_command_line() -> None:
    """Passwords travel in the environment, and of the user's own variables only those that the driver reads, too."""
    url = "postgresql://us%40er:p%3Aw@[::1]:5433,db.test/na%2Fme?sslmode=require&sslrootcert=/ca.pem"
    programs = ClientPrograms(Path("/bin"))

    environment = build_environment(
        url, {"PGSERVICE": "mine", "PGOPTIONS": "-c x=y", "PGPASSWORD": "mine", "HOME": "/"}
    )
    commands = [programs.dump(SchemaName("acme"), "1-1"), programs.write_sql(), programs.run_sql()]

    assert environment == {
        "HOME": "/",
        "LC_ALL": "C",
        "PGAPPNAME": "quart_tenants",
        "PGCLIENTENCODING": "UTF8",
        "PGHOST": "::1,db.test",
        "PGPORT": "5433,",
        "PGUSER": "us@er",
        "PGPASSWORD": "p:w",
        "PGDATABASE": "na/me",
        "PGSSLMODE": "require",
        "PGSSLROOTCERT": "/ca.pem",
    }
    assert not any("p:w" in str(argument) for command in commands for argument in command)


def test_socket_of_the_embedded_server_is_found() -> None:
    """A socket's folder stands behind the question mark; without any host the driver's own places are searched."""
    embedded = build_environment("postgresql://postgres@/qt?host=%2Frun%2Fa%20b&port=5432", {})
    default = build_environment("postgresql:///qt", {})

    assert (embedded["PGHOST"], embedded["PGPORT"], embedded["PGUSER"]) == ("/run/a b", "5432", "postgres")
    assert "PGPASSWORD" not in embedded
    assert default["PGHOST"].split(",")[0] == "/run/postgresql"
    assert "PGPORT" not in default


async def test_programs_are_not_older_than_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on PATH are taken if new enough, then the wheel's, which speak no TLS; else the remedy is named."""
    for name in ("pg_dump", "pg_restore", "psql"):
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\nprint('{name} (PostgreSQL) 16.1')\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    on_path = await find_client_programs(16)
    embedded = await find_client_programs(17)
    with pytest.raises(ClientProgramError, match=r"of PostgreSQL 99 or newer.*version 16, .*version 18; install"):
        await find_client_programs(99)

    assert on_path.folder == tmp_path
    assert (embedded.folder / "postgres").exists()


def test_literals_are_quoted_like_the_server_does() -> None:
    """No text ends its quotes early, whatever is in it."""
    assert quote_literal("it's") == "'it''s'"
    assert quote_literal("a\\'b") == "E'a\\\\''b'"
    assert quote_literal(7) == "7"
