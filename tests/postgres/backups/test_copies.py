"""A copy of a tenant has everything, reaches into nothing, and is refused where it would."""

import re
from pathlib import Path

import pytest

from quart_tenants.errors import (
    BackupFileError,
)
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import copy_tenant, restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant
from tests.postgres.backups.parts import ACME, COPY, EVERYTHING, describe, fetch, fill, remember
from tests.postgres.conftest import Role

pytestmark = pytest.mark.slow


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
