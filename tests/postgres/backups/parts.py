"""What tests of backups share: a schema with everything in it, and ways to look at a database."""

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from quart_tenants.postgres.backups.client_programs import build_environment, find_client_programs
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant, list_tenants
from quart_tenants.postgres.tenants.trash import list_trash
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from tests.support.patience import wait_until

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
LIST_RELATIONS = """
SELECT array_agg(c.oid::regclass::text ORDER BY c.relname) FROM pg_class AS c
WHERE c.relnamespace = current_schema()::regnamespace
    AND (c.relkind IN ('r', 'p') OR c.relkind = 'm' AND c.relispopulated)
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


async def wait_for_waiting(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    """Return the process of the server that waits for a lock, as soon as there is one."""

    async def find() -> int | None:
        number: int | None = await connection.fetchval(FIND_WAITING)
        return number

    return await wait_until(find)


async def run_program(
    settings: Settings, name: str, *options: str, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run one of PostgreSQL's programs on the database of *settings*."""
    programs = await find_client_programs(18)
    command = [str(programs.folder / name), *options]
    environment = build_environment(settings.required_database_url, os.environ)
    return await asyncio.to_thread(subprocess.run, command, env=environment, input=stdin, capture_output=True)


async def photograph(database: Database, settings: Settings, slug: Slug) -> tuple[str, list[tuple[str, Any]]]:
    """Return a tenant's schema as pg_dump writes it, with its name as @, and what the tenant reads in each relation."""
    tenant = await get_tenant(database, slug)
    async with database.tenant_connection(tenant) as connection:
        rows = [
            (relation, await connection.fetchval(f"SELECT array_agg((r.*)::text) FROM {relation} AS r"))
            for relation in await connection.fetchval(LIST_RELATIONS)
        ]
    dumped = await run_program(
        settings, "pg_dump", f"--schema={tenant.schema.quoted}", "--restrict-key=x", "--no-owner"
    )
    assert dumped.returncode == 0, dumped.stderr
    return re.sub(rf"\b{tenant.schema.name}\b", "@", dumped.stdout.decode()), rows
