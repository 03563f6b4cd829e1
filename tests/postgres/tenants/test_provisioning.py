"""Tenants are created, adopted and dropped in one transaction each: all of it, or nothing."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from quart_tenants.errors import (
    InvalidNameError,
    InvalidSlugError,
    MigrationFailedError,
    MigrationFileError,
    RecentlyDroppedError,
    SchemaExistsError,
    TenantError,
    TenantExistsError,
    UnknownSchemaError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant, init_registry, list_tenants
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant, parse_schema_name, parse_slug
from tests.postgres.conftest import Role
from tests.support.databases import REFERENCE_FILES, drop_for_good, let_names_rest

pytestmark = pytest.mark.slow

ACME, NEWCO, OLDCO = parse_slug("acme"), parse_slug("newco"), parse_slug("oldco")

LIST_SCHEMAS = "SELECT oid, nspname, nspowner, nspacl FROM pg_catalog.pg_namespace ORDER BY oid"
LIST_REGISTRY = {
    "tenants": "SELECT id, slug, schema_name, display_name FROM quart_tenants.tenants ORDER BY id",
    "changes": "SELECT revision, tenant_id FROM quart_tenants.changes ORDER BY revision",
    "migrations": "SELECT schema_name, version, name, sha256 FROM quart_tenants.applied_migrations ORDER BY 1, 2",
}
# What says that a schema is the same to the byte: xmin and ctid change with the least update of a row.
LIST_INSIDE = {
    "schema": "SELECT xmin::text, n::text FROM pg_catalog.pg_namespace AS n WHERE n.oid = $1::text::regnamespace",
    "relations": """
        SELECT xmin::text, c::text FROM pg_catalog.pg_class AS c
        WHERE relnamespace = $1::text::regnamespace ORDER BY oid
    """,
    "columns": """
        SELECT a.xmin::text, a::text FROM pg_catalog.pg_attribute AS a
        JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid AND c.relnamespace = $1::text::regnamespace
        ORDER BY attrelid, attnum
    """,
    "constraints": """
        SELECT xmin::text, c::text FROM pg_catalog.pg_constraint AS c
        WHERE connamespace = $1::text::regnamespace ORDER BY oid
    """,
    "functions": """
        SELECT xmin::text, p::text FROM pg_catalog.pg_proc AS p
        WHERE pronamespace = $1::text::regnamespace ORDER BY oid
    """,
}
OLD_TABLES = """
CREATE SCHEMA "Old Co";
CREATE TABLE "Old Co".app_user (id serial PRIMARY KEY, username text UNIQUE, password text);
CREATE TABLE "Old Co"."Its Own" (id int);
INSERT INTO "Old Co".app_user (username, password) VALUES ('ann', 'hash'), ('bob', 'hash');
CREATE FUNCTION "Old Co".answer() RETURNS int LANGUAGE sql RETURN 42;
"""


@pytest.fixture
def broken_settings(settings: Settings, tmp_path: Path) -> Settings:
    """Settings whose second migration fails."""
    (tmp_path / "0001_fine.sql").write_text("CREATE TABLE fine (id int)")
    (tmp_path / "0002_broken.sql").write_text("CREATE TABLE more (id int); INSERT INTO no_such_table VALUES (1)")
    return replace(settings, migrations_dir=tmp_path)


@pytest.fixture
async def new_fleet(empty_database_url: str) -> AsyncIterator[Database]:
    """A pool on a database with a registry and no tenants: the first may have migrations of any kind."""
    async with await Database.open(
        Settings(migrations_dir=REFERENCE_FILES, database_url=empty_database_url)
    ) as database:
        await init_registry(database)
        yield database


@pytest.fixture
async def old_schema(database: Database) -> SchemaName:
    """A schema that exists, is no tenant's, and has two users."""
    async with database.connection() as connection:
        await connection.execute(OLD_TABLES)
    return parse_schema_name("Old Co")


@pytest.fixture
async def limited_database(settings: Settings, database: Database, role: Role) -> AsyncIterator[Database]:
    """A pool whose role may keep the registry, and use no schema."""
    async with database.connection() as connection:
        await connection.execute(f"GRANT USAGE ON SCHEMA quart_tenants TO {role.name}")
        await connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA quart_tenants TO {role.name}")
    limited = replace(settings, database_url=role.put_into(settings.required_database_url))
    async with await Database.open(limited) as database:
        yield database


async def list_everything(database: Database) -> dict[str, list[Any]]:
    """Return all schemas, and all rows of the registry."""
    async with database.connection() as connection:
        return {name: await connection.fetch(query) for name, query in {"": LIST_SCHEMAS, **LIST_REGISTRY}.items()}


async def list_inside(database: Database, schema: SchemaName) -> dict[str, list[Any]]:
    """Return all that the catalogs say about *schema*, and its users as they lie on the disk."""
    async with database.connection() as connection:
        users = f"SELECT ctid, xmin::text, xmax::text, u::text FROM {schema.quoted}.app_user AS u"
        inside = {"users": await connection.fetch(users)}
        for name, query in LIST_INSIDE.items():
            inside[name] = await connection.fetch(query, schema.quoted)
        return inside


async def list_tables(database: Database, tenant: Tenant) -> list[str]:
    """Return the tables in the schema of *tenant*."""
    query = "SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = $1 ORDER BY 1"
    async with database.connection() as connection:
        return [row["tablename"] for row in await connection.fetch(query, tenant.schema.name)]


async def list_migrations(database: Database, schema: str) -> list[int]:
    """Return the versions recorded for *schema*."""
    query = "SELECT version FROM quart_tenants.applied_migrations WHERE schema_name = $1 ORDER BY 1"
    async with database.connection() as connection:
        return [row["version"] for row in await connection.fetch(query, schema)]


# Create


async def test_created_tenant_has_a_schema_with_its_tables(database: Database, settings: Settings) -> None:
    """Creating makes the schema of that name, runs every migration in it and registers the tenant."""
    tenant = await create_tenant(database, NEWCO, "  New Co ", settings=settings)

    assert tenant == await get_tenant(database, NEWCO)
    assert (tenant.slug, str(tenant.schema), tenant.name) == ("newco", "newco", "New Co")
    assert await list_tables(database, tenant) == ["app_user", "company_data"]
    assert await list_migrations(database, "newco") == [1]


async def test_tenants_own_migrations_are_run_in_order(new_fleet: Database, settings: Settings, tmp_path: Path) -> None:
    """An app's own files make its tables, and each is recorded."""
    (tmp_path / "0001_orders.sql").write_text("CREATE TABLE orders (id int PRIMARY KEY)")
    (tmp_path / "0002_lines.sql").write_text("CREATE TABLE lines (order_id int REFERENCES orders (id))")

    tenant = await create_tenant(new_fleet, NEWCO, "New Co", settings=replace(settings, migrations_dir=tmp_path))

    assert await list_tables(new_fleet, tenant) == ["lines", "orders"]
    assert await list_migrations(new_fleet, "newco") == [1, 2]
    assert tenant.version == 2
    assert tenant == await get_tenant(new_fleet, NEWCO)


async def test_first_rows_are_in_the_tenants_tables(database: Database, settings: Settings) -> None:
    """The first rows are written into the new schema."""
    tenant = await create_tenant(
        database, NEWCO, "New Co", settings=settings, first_rows="INSERT INTO company_data (description) VALUES ('x')"
    )

    async with database.tenant_connection(tenant) as connection:
        assert await connection.fetchval("SELECT description FROM company_data") == "x"


async def test_slug_with_hyphens_and_digits_is_a_schema(database: Database, settings: Settings) -> None:
    """A slug that SQL would read as a sum is quoted everywhere."""
    tenant = await create_tenant(database, parse_slug("4-u"), "For you", settings=settings)
    assert await list_tables(database, tenant) == ["app_user", "company_data"]

    await drop_tenant(database, tenant.slug)

    assert await list_tables(database, tenant) == []


async def test_failing_migration_leaves_nothing_behind(new_fleet: Database, broken_settings: Settings) -> None:
    """A migration that fails takes schema, registry row and the earlier migrations with it, and is named."""
    before = await list_everything(new_fleet)

    with pytest.raises(MigrationFailedError, match="no_such_table") as caught:
        await create_tenant(new_fleet, NEWCO, "New Co", settings=broken_settings)

    assert await list_everything(new_fleet) == before
    assert caught.value.migration == "0002_broken.sql"
    assert caught.value.schema == "newco"


async def test_failing_first_rows_leave_nothing_behind(database: Database, settings: Settings) -> None:
    """Rows that cannot be written take the tenant with them."""
    before = await list_everything(database)

    with pytest.raises(MigrationFailedError, match=r"first_rows failed .*no_such_table"):
        await create_tenant(
            database, NEWCO, "New Co", settings=settings, first_rows="INSERT INTO no_such_table VALUES (1)"
        )

    assert await list_everything(database) == before


async def test_existing_schema_is_left_alone(database: Database, settings: Settings) -> None:
    """A schema that is there already is not taken over: the error says how to adopt it."""
    async with database.connection() as connection:
        await connection.execute("CREATE SCHEMA newco")
    before = await list_everything(database)

    with pytest.raises(SchemaExistsError, match="`adopt newco`"):
        await create_tenant(database, NEWCO, "New Co", settings=settings)

    assert await list_everything(database) == before


async def test_taken_slug_leaves_everything_as_it_was(database: Database, settings: Settings) -> None:
    """The second tenant of a name is refused, and the first keeps its schema."""
    before = await list_everything(database)

    with pytest.raises(TenantExistsError, match="tenant 'acme' exists already"):
        await create_tenant(database, ACME, "Another", settings=settings)

    assert await list_everything(database) == before


async def test_schema_of_another_tenant_is_taken(
    database: Database, settings: Settings, old_schema: SchemaName
) -> None:
    """A slug whose schema another tenant has adopted is refused, with that tenant's name."""
    async with database.connection() as connection:
        await connection.execute("CREATE SCHEMA newco")
    await adopt_schemas(database, {OLDCO: parse_schema_name("newco")}, settings=settings, version=0)

    with pytest.raises(TenantExistsError, match="tenant 'oldco' exists already"):
        await create_tenant(database, NEWCO, "New Co", settings=settings)


async def test_of_two_creates_at_once_one_wins(database: Database, settings: Settings) -> None:
    """Two operators who take one name at the same time make one tenant."""
    results = await asyncio.gather(
        *(create_tenant(database, NEWCO, "New Co", settings=settings) for _ in range(4)), return_exceptions=True
    )

    assert sorted(type(result).__name__ for result in results) == ["Tenant"] + ["TenantExistsError"] * 3


@pytest.mark.parametrize("slug", ["admin", "api", "app", "mail", "static", "www"])
async def test_reserved_slug_is_refused(database: Database, settings: Settings, slug: str) -> None:
    """By default the names that a site needs itself are nobody's."""
    with pytest.raises(InvalidSlugError, match="TENANTS_RESERVED_SLUGS"):
        await create_tenant(database, parse_slug(slug), "x", settings=settings)


async def test_reserved_slugs_are_the_settings(database: Database, settings: Settings) -> None:
    """Which names are reserved is the operator's choice."""
    settings = replace(settings, reserved_slugs=frozenset({"newco"}))

    with pytest.raises(InvalidSlugError, match="TENANTS_RESERVED_SLUGS"):
        await create_tenant(database, NEWCO, "New Co", settings=settings)
    assert (await create_tenant(database, parse_slug("www"), "x", settings=settings)).slug == "www"


async def test_wrong_display_name_is_refused(database: Database, settings: Settings) -> None:
    """A name that cannot be shown in one line makes no tenant."""
    before = await list_everything(database)

    with pytest.raises(InvalidNameError):
        await create_tenant(database, NEWCO, "New\nCo", settings=settings)

    assert await list_everything(database) == before


async def test_wrong_migration_file_is_found_before_anything_is_done(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    """Files that cannot be understood make no tenant."""
    (tmp_path / "orders.sql").write_text("CREATE TABLE orders (id int)")
    before = await list_everything(database)

    with pytest.raises(MigrationFileError, match=r"orders\.sql"):
        await create_tenant(database, NEWCO, "New Co", settings=replace(settings, migrations_dir=tmp_path))

    assert await list_everything(database) == before


async def test_migration_cannot_reach_another_tenant_by_an_unqualified_name(
    new_fleet: Database, settings: Settings, tmp_path: Path
) -> None:
    """A migration sees the new schema alone: neither `public` nor the registry."""
    async with new_fleet.connection() as connection:
        await connection.execute("CREATE TABLE public.shared (id int)")
    for name in ("shared", "tenants"):
        (tmp_path / "0001_first.sql").write_text(f"INSERT INTO {name} DEFAULT VALUES")

        with pytest.raises(MigrationFailedError, match=f'relation "{name}" does not exist'):
            await create_tenant(new_fleet, NEWCO, "New Co", settings=replace(settings, migrations_dir=tmp_path))


# Adopt


async def test_adopted_schema_is_not_touched(database: Database, settings: Settings, old_schema: SchemaName) -> None:
    """Adopting writes into the registry alone: the schema is the same in every catalog and every row."""
    before = await list_inside(database, old_schema)
    assert all(before.values())

    await adopt_schemas(database, {OLDCO: old_schema}, settings=settings, version=1)

    assert await list_inside(database, old_schema) == before


async def test_adopted_schema_is_served(database: Database, settings: Settings, old_schema: SchemaName) -> None:
    """An adopted tenant is a tenant: its connection sees its own tables."""
    (tenant,) = await adopt_schemas(database, {OLDCO: old_schema}, settings=settings, version=1)

    async with database.tenant_connection(tenant) as connection:
        names = await connection.fetch("SELECT username FROM app_user ORDER BY 1")

    assert [row["username"] for row in names] == ["ann", "bob"]
    assert tenant == await get_tenant(database, OLDCO)
    assert tenant.name == "oldco"


@pytest.mark.parametrize("version", [0, 1, 2])
async def test_adopted_schema_has_the_migrations_that_were_named(
    database: Database, settings: Settings, old_schema: SchemaName, tmp_path: Path, version: int
) -> None:
    """The migrations up to the given version count as applied, and none is run."""
    for number in (1, 2):
        (tmp_path / f"000{number}_broken.sql").write_text("SELECT * FROM no_such_table")

    await adopt_schemas(
        database, {OLDCO: old_schema}, settings=replace(settings, migrations_dir=tmp_path), version=version
    )

    assert await list_migrations(database, "Old Co") == [1, 2][:version]


@pytest.mark.parametrize("version", [-1, 2])
async def test_adopting_at_a_version_that_does_not_exist_is_refused(
    database: Database, settings: Settings, old_schema: SchemaName, version: int
) -> None:
    """A version beyond the files is an error that names the newest."""
    with pytest.raises(UnknownSchemaError, match=r"the newest is 0001_users_and_data\.sql"):
        await adopt_schemas(database, {OLDCO: old_schema}, settings=settings, version=version)


@pytest.mark.parametrize(
    "name", ["AcmeCorp", "acme corp", 'we"ird', "we=ird", "x';--", "Ünïcödé", "a.b", "select", "a" * 63]
)
async def test_schema_with_an_odd_name_is_adopted_and_dropped(
    database: Database, settings: Settings, name: str
) -> None:
    """Whatever PostgreSQL takes for a name can be a tenant's schema, at a subdomain of another name."""
    schema = parse_schema_name(name)
    async with database.connection() as connection:
        await connection.execute(f"CREATE SCHEMA {schema.quoted} CREATE TABLE app_user (username text)")

    (tenant,) = await adopt_schemas(database, {OLDCO: schema}, settings=settings, version=1)
    async with database.tenant_connection(tenant) as connection:
        await connection.execute("INSERT INTO app_user VALUES ('ann')")
    assert await list_tables(database, tenant) == ["app_user"]
    await drop_tenant(database, OLDCO)

    assert await list_tables(database, tenant) == []


async def refuse_adoption(
    database: Database, settings: Settings, schemas: dict[Slug, SchemaName], error: type[TenantError], match: str
) -> None:
    """Assert that adopting *schemas* raises *error* and leaves everything as it was."""
    before = await list_everything(database)

    with pytest.raises(error, match=match):
        await adopt_schemas(database, schemas, settings=settings, version=1)

    assert await list_everything(database) == before


async def test_missing_schema_is_not_adopted(database: Database, settings: Settings) -> None:
    """A schema that is not there is an error, also where another one differs by its case only."""
    await refuse_adoption(
        database, settings, {OLDCO: parse_schema_name("ACME")}, UnknownSchemaError, "there is none of that name"
    )


async def test_schema_of_a_tenant_is_not_adopted(database: Database, settings: Settings) -> None:
    """No two tenants share a schema."""
    await refuse_adoption(
        database, settings, {OLDCO: parse_schema_name("acme")}, TenantExistsError, "tenant 'acme' exists already"
    )


async def test_slug_of_a_tenant_is_not_adopted(database: Database, settings: Settings, old_schema: SchemaName) -> None:
    """No two tenants share a subdomain."""
    await refuse_adoption(database, settings, {ACME: old_schema}, TenantExistsError, "tenant 'acme' exists already")


async def test_reserved_slug_is_not_adopted(database: Database, settings: Settings, old_schema: SchemaName) -> None:
    """What is reserved is reserved for schemas that exist, too."""
    await refuse_adoption(
        database, settings, {parse_slug("www"): old_schema}, InvalidSlugError, "TENANTS_RESERVED_SLUGS"
    )


async def test_one_schema_is_not_adopted_twice(database: Database, settings: Settings, old_schema: SchemaName) -> None:
    """One call that names a schema twice adopts none."""
    await refuse_adoption(
        database, settings, {OLDCO: old_schema, NEWCO: old_schema}, TenantExistsError, "tenant 'oldco' exists already"
    )


async def test_all_schemas_are_adopted_or_none(database: Database, settings: Settings, old_schema: SchemaName) -> None:
    """One schema that cannot be used keeps the others from being adopted."""
    await refuse_adoption(
        database, settings, {OLDCO: old_schema, NEWCO: parse_schema_name("gone")}, UnknownSchemaError, "'gone'"
    )


async def test_schema_that_the_role_may_not_use_is_not_adopted(
    database: Database, limited_database: Database, settings: Settings, old_schema: SchemaName
) -> None:
    """A tenant that every request would fail at is refused, with the right that is missing."""
    before = await list_everything(database)

    with pytest.raises(UnknownSchemaError, match="GRANT USAGE ON SCHEMA"):
        await adopt_schemas(limited_database, {OLDCO: old_schema}, settings=settings, version=1)

    assert await list_everything(database) == before


async def test_schema_of_another_owner_is_adopted(
    database: Database, limited_database: Database, settings: Settings, old_schema: SchemaName, role: Role
) -> None:
    """The right to use a schema is enough to adopt it."""
    async with database.connection() as connection:
        await connection.execute(f"GRANT USAGE ON SCHEMA {old_schema.quoted} TO {role.name}")

    await adopt_schemas(limited_database, {OLDCO: old_schema}, settings=settings, version=1)

    assert (await get_tenant(database, OLDCO)).schema == old_schema


# Drop


async def test_dropped_tenant_is_out_of_reach(database: Database) -> None:
    """Its schema, its row and its record of migrations are in the trash; every other tenant's stay as they were."""
    before = await list_everything(database)

    dropped = await drop_tenant(database, ACME)

    after = await list_everything(database)
    gone = {name: [row for row in rows if row not in after[name]] for name, rows in before.items()}
    new = {name: [row for row in rows if row not in before[name]] for name, rows in after.items()}
    trash = f"quart_tenants_trash_{dropped.id}"
    assert [row["nspname"] for row in gone[""]] == ["acme"]
    assert [row["nspname"] for row in new[""]] == [trash]
    assert [(row["id"], row["slug"]) for row in gone["tenants"]] == [(dropped.id, "acme")]
    assert [(row["id"], row["slug"], row["schema_name"]) for row in new["tenants"]] == [(dropped.id, "acme", trash)]
    assert [row["schema_name"] for row in gone["migrations"]] == ["acme"]
    assert [row["schema_name"] for row in new["migrations"]] == [trash]
    assert [row["tenant_id"] for row in new["changes"]] == [dropped.id]
    assert "acme" not in [tenant.slug for tenant in await list_tenants(database)]


async def test_dropped_tenant_is_told(database: Database) -> None:
    """Dropping returns what the tenant was."""
    tenant = await get_tenant(database, ACME)

    assert await drop_tenant(database, ACME) == tenant


async def test_unknown_tenant_cannot_be_dropped(database: Database, old_schema: SchemaName) -> None:
    """Only tenants are dropped: never a schema that nobody registered."""
    async with database.connection() as connection:
        await connection.execute("CREATE SCHEMA newco")
    before = await list_everything(database)

    with pytest.raises(UnknownTenantError, match="'newco'"):
        await drop_tenant(database, NEWCO)

    assert await list_everything(database) == before


async def test_tenant_whose_schema_is_gone_can_be_dropped(database: Database) -> None:
    """A schema that somebody dropped by hand does not keep its tenant alive."""
    async with database.connection() as connection:
        await connection.execute("DROP SCHEMA acme CASCADE")

    await drop_tenant(database, ACME)

    assert "acme" not in [tenant.slug for tenant in await list_tenants(database)]


async def test_schema_that_the_role_may_not_drop_keeps_its_tenant(
    database: Database, limited_database: Database
) -> None:
    """A drop that PostgreSQL refuses leaves the tenant as it was."""
    before = await list_everything(database)

    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="must be owner of schema acme"):
        await drop_tenant(limited_database, ACME)

    assert await list_everything(database) == before


async def test_number_of_a_tenant_is_never_used_again(database: Database, settings: Settings) -> None:
    """A tenant made anew under an old name, or after a failure, has a number that no tenant had."""
    numbers = [tenant.id for tenant in await list_tenants(database)]
    for _ in range(3):
        await drop_for_good(database, ACME)
        with pytest.raises(MigrationFailedError, match=r"first_rows failed .*no_such_table"):
            await create_tenant(
                database, ACME, "Acme", settings=settings, first_rows="INSERT INTO no_such_table VALUES (1)"
            )
        numbers.append((await create_tenant(database, ACME, "Acme", settings=settings)).id)

    assert len(set(numbers)) == len(numbers)


async def test_number_cannot_be_chosen(database: Database) -> None:
    """The database itself hands the numbers out: no program can give an old one to a new tenant."""
    with pytest.raises(asyncpg.GeneratedAlwaysError):
        async with database.connection() as connection:
            await connection.execute(
                "INSERT INTO quart_tenants.tenants (id, slug, schema_name, display_name) VALUES (1, 'x', 'x', 'x')"
            )


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("CREATE TABLE half (); COMMIT;", "line 1: it ends the transaction"),
        ("CREATE TABLE half (); COMMIT; BEGIN;", "line 1: it ends the transaction"),
        ("CREATE TABLE half (); ROLLBACK;", "line 1: it ends the transaction"),
        ("CREATE TABLE half ();\nROLLBACK; BEGIN;", "line 2: it ends the transaction"),
        ("CREATE TABLE half (); SET LOCAL search_path TO public;", "line 1: it changes search_path"),
        ("CREATE TABLE half ();\nSET SCHEMA 'public';", "line 2: it changes search_path"),
        ("CREATE TABLE half (); RESET ALL;", "line 1: it changes search_path"),
    ],
)
async def test_file_that_would_leave_its_transaction_or_its_schema_never_runs(
    new_fleet: Database, settings: Settings, tmp_path: Path, sql: str, reason: str
) -> None:
    """A file that says so is refused with its line before a statement of any file has run."""
    (tmp_path / "0001_other.sql").write_text("SELECT * FROM no_such_table;")
    (tmp_path / "0002_half.sql").write_text(sql)
    before = await list_everything(new_fleet)

    with pytest.raises(MigrationFileError, match=rf"0002_half\.sql: {reason}"):
        await create_tenant(new_fleet, NEWCO, "New Co", settings=replace(settings, migrations_dir=tmp_path))

    assert await list_everything(new_fleet) == before


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("CREATE TABLE half (); SELECT set_config('search_path', 'public', false);", "changes search_path"),
        ("CREATE TABLE half (); SELECT set_config('search_path', 'public', true);", "changes search_path"),
        ("CREATE TABLE half (); DO 'BEGIN COMMIT; END';", "invalid transaction termination"),
        ("CREATE TABLE half (); DO 'BEGIN ROLLBACK; END';", "invalid transaction termination"),
    ],
)
async def test_file_that_leaves_its_transaction_or_its_schema_unseen_fails(
    new_fleet: Database, settings: Settings, tmp_path: Path, sql: str, reason: str
) -> None:
    """What a parser cannot see fails when it has run, and leaves nothing behind."""
    (tmp_path / "0001_half.sql").write_text(sql)
    (tmp_path / "0002_other.sql").write_text("CREATE TABLE other ();")
    before = await list_everything(new_fleet)

    with pytest.raises(MigrationFailedError, match=reason):
        await create_tenant(
            new_fleet, parse_slug("halfway"), "Halfway", settings=replace(settings, migrations_dir=tmp_path)
        )

    async with new_fleet.connection() as connection:
        left = await connection.fetchval("SELECT count(*) FROM pg_catalog.pg_class WHERE relname IN ('half', 'other')")
    assert left == 0
    assert await list_everything(new_fleet) == before


async def test_purged_name_rests(database: Database, settings: Settings) -> None:
    """A name is taken again only after every worker has surely forgotten its last tenant."""
    settings = replace(settings, registry_max_age=3600.0)
    await drop_tenant(database, ACME)
    await purge_trash(database, settings=settings, slugs=[ACME])
    for slug, schema in ((ACME, "other"), (parse_slug("other"), "acme")):
        async with database.connection() as connection:
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        with pytest.raises(RecentlyDroppedError, match=r"try again in 3(60[01]|5\d\d) s"):
            await adopt_schemas(database, {slug: SchemaName(schema)}, settings=settings, version=0)
    async with database.connection() as connection:
        await connection.execute("DROP SCHEMA acme")
    with pytest.raises(RecentlyDroppedError):
        await create_tenant(database, ACME, "Acme", settings=settings)

    await let_names_rest(database)

    assert (await create_tenant(database, ACME, "Acme", settings=settings)).slug == ACME


async def test_schema_name_rests_while_a_transaction_of_then_is_open(
    database: Database, settings: Settings, acme: Tenant
) -> None:
    """A job of a dropped tenant whose transaction is still open would read the rows of the next."""
    # The seconds of the rest are over at once.
    settings = replace(settings, registry_max_age=-1.0)
    rows = "SELECT description FROM company_data"
    first_rows = "INSERT INTO company_data (description) VALUES ('of the next')"
    other = parse_slug("other")
    async with database.tenant_connection(acme) as job:
        await job.fetch(rows)
        await drop_tenant(database, ACME)
        with pytest.raises(RecentlyDroppedError, match=r"'newco' .* transaction that began then is still open"):
            await create_tenant(database, NEWCO, "x", settings=settings, schema=acme.schema)
    new = await create_tenant(database, NEWCO, "x", settings=settings, schema=acme.schema)

    # Negative control: the name does not rest.
    async with database.tenant_connection(new) as job:
        await job.fetch(rows)
        await drop_tenant(database, NEWCO)
        await let_names_rest(database)
        await create_tenant(database, other, "x", settings=settings, schema=acme.schema, first_rows=first_rows)
        # Another text: what was prepared before still means the old table.
        assert await job.fetchval("SELECT max(description) FROM company_data") == "of the next"


async def test_syntax_error_is_told_with_its_line(new_fleet: Database, settings: Settings, tmp_path: Path) -> None:
    """A migration that is no SQL is named with the line, and one that fails with that of its statement's fault."""
    settings = replace(settings, migrations_dir=tmp_path)
    (tmp_path / "0001_typo.sql").write_text("-- Größe\nCREATE TABLE fine ();\nCREAT TABLE typo ();\n")
    with pytest.raises(MigrationFileError, match=r"0001_typo\.sql: line 3: syntax error"):
        await create_tenant(new_fleet, NEWCO, "New Co", settings=settings)

    (tmp_path / "0001_typo.sql").write_text("-- Größe\nCREATE TABLE fine ();\nSELECT 'ü',\n  typo FROM fine;\n")
    with pytest.raises(MigrationFailedError, match=r'0001_typo\.sql .*: line 4: column "typo" does not exist'):
        await create_tenant(new_fleet, NEWCO, "New Co", settings=settings)


async def test_edited_migration_makes_no_tenant(database: Database, settings: Settings, tmp_path: Path) -> None:
    """A file that ran with another text for some tenant is refused for the next, with the tenants' names."""
    (tmp_path / "0001_edited.sql").write_text("CREATE TABLE app_user ()")
    before = await list_everything(database)

    with pytest.raises(MigrationFileError, match=r"0001_edited\.sql \(by acme, company1, company2, globex\)"):
        await create_tenant(database, NEWCO, "New Co", settings=replace(settings, migrations_dir=tmp_path))

    assert await list_everything(database) == before
