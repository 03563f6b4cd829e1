"""Promise: a connection carries nothing from one tenant to the next.

Each trace is left by acme and looked for by globex on the same connection: by our blocks, where it
must be gone, and by the naive lender of the seed, where the same look finds it.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import asyncpg
import pytest

from quart_tenants.errors import UnknownTenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Tenant, parse_slug
from tests.isolation.lenders import Lender, open_naive_pool, set_path_and_forget
from tests.isolation.soak import register
from tests.support.web_lender import WebLender

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection, DriverConnection

Act = Callable[["Connection"], Awaitable[object]]


def run(statement: str) -> Act:
    """Return an act that executes *statement*."""
    return lambda connection: connection.execute(statement)


def ask(query: str) -> Act:
    """Return an act that fetches one value."""
    return lambda connection: connection.fetchval(query)


# What acme leaves behind, how globex looks for it, and what globex finds on a clean connection.
TRACES: dict[str, tuple[Act, Act, object]] = {
    "path": (run("SET search_path TO acme, public"), ask("SELECT current_schemas(false)::text"), "{globex}"),
    "setting": (run("SET statement_timeout TO 54321"), ask("SHOW statement_timeout"), "0"),
    "custom setting": (
        run("SET app.secret TO 'acme'"),
        ask("SELECT coalesce(current_setting('app.secret', true), '')"),
        "",
    ),
    "role": (run("SET ROLE pg_monitor"), ask("SELECT current_user = session_user"), True),
    "session user": (
        run("SET SESSION AUTHORIZATION pg_monitor"),
        ask("SELECT session_user <> 'pg_monitor'"),
        True,
    ),
    "temporary table": (
        run("CREATE TEMP TABLE company_notes AS SELECT 'acme' AS owner"),
        ask("SELECT to_regclass('pg_temp.company_notes')::text"),
        None,
    ),
    "advisory lock": (
        ask("SELECT pg_advisory_lock(42)::text"),
        ask("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"),
        0,
    ),
    "listener": (run("LISTEN acme_news"), ask("SELECT count(*) FROM pg_listening_channels()"), 0),
    "cursor": (
        run("DECLARE all_data CURSOR WITH HOLD FOR SELECT * FROM company_data"),
        ask("SELECT count(*) FROM pg_cursors WHERE name = 'all_data'"),
        0,
    ),
    "prepared statement": (
        run("PREPARE list_data AS SELECT * FROM company_data"),
        ask("SELECT count(*) FROM pg_prepared_statements WHERE from_sql"),
        0,
    ),
}


@pytest.fixture
async def naive_lender(database_url: str) -> AsyncIterator[Lender]:
    """The seed's way, on one connection."""
    pool = await open_naive_pool(database_url, 1)
    yield set_path_and_forget(pool)
    await pool.close()


async def leave_and_look(lend: Lender, acme: Tenant, globex: Tenant, trace: str) -> object:
    """Let acme leave *trace*; return what globex finds."""
    leave, look, _ = TRACES[trace]
    async with lend(acme) as connection:
        await leave(connection)
    async with lend(globex) as connection:
        return await look(connection)


@pytest.mark.parametrize("trace", TRACES)
async def test_returned_connection_forgets(
    one_connection_database: Database, acme: Tenant, globex: Tenant, trace: str
) -> None:
    """Nothing that a handler can leave on a connection reaches the next tenant."""
    found = await leave_and_look(one_connection_database.tenant_connection, acme, globex, trace)

    assert found == TRACES[trace][2]


@pytest.mark.parametrize("trace", [name for name in TRACES if name != "path"])
async def test_naive_connection_remembers(naive_lender: Lender, acme: Tenant, globex: Tenant, trace: str) -> None:
    """Negative control: on a connection that is only given back, globex finds what acme left."""
    found = await leave_and_look(naive_lender, acme, globex, trace)

    assert found != TRACES[trace][2]


async def test_sequence_state_does_not_cross(one_connection_database: Database, acme: Tenant, globex: Tenant) -> None:
    """`lastval()` of a tenant that inserted nothing is an error, and no number of another tenant."""
    async with one_connection_database.tenant_connection(acme) as connection:
        await connection.execute("INSERT INTO company_data (description) VALUES ('x')")
        assert await connection.fetchval("SELECT lastval()") == 1

    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
        async with one_connection_database.tenant_connection(globex) as connection:
            await connection.fetchval("SELECT lastval()")


async def test_naive_sequence_state_crosses(naive_lender: Lender, acme: Tenant, globex: Tenant) -> None:
    """Negative control: without a full reset globex reads the number of acme's row."""
    async with naive_lender(acme) as connection:
        await connection.execute("INSERT INTO company_data (description) VALUES ('x')")

    async with naive_lender(globex) as connection:
        assert await connection.fetchval("SELECT lastval()") == 1


async def test_trace_left_before_an_error_is_gone_too(
    one_connection_database: Database, acme: Tenant, globex: Tenant
) -> None:
    """A block that fails cleans its connection as well as one that succeeds."""
    with pytest.raises(ZeroDivisionError):
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.fetchval("SELECT pg_advisory_lock(42)::text")
            raise ZeroDivisionError

    async with one_connection_database.tenant_connection(globex) as connection:
        assert await TRACES["advisory lock"][1](connection) == 0


async def test_two_tenants_see_their_own_rows(database: Database, acme: Tenant, globex: Tenant) -> None:
    """The same query at the same time reads each tenant's own table."""
    for tenant in (acme, globex):
        async with database.tenant_connection(tenant) as connection:
            await connection.execute("INSERT INTO company_data (description) VALUES ($1)", tenant.slug)

    async with database.tenant_connection(acme) as first, database.tenant_connection(globex) as second:
        query = "SELECT description FROM company_data"
        assert [row["description"] for row in await first.fetch(query)] == ["acme"]
        assert [row["description"] for row in await second.fetch(query)] == ["globex"]


async def test_rolled_back_savepoint_keeps_the_tenant(database: Database, acme: Tenant) -> None:
    """The path was set before every savepoint, so no rollback to one takes it back."""
    async with database.tenant_connection(acme) as connection:
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                await connection.execute("SET LOCAL search_path TO globex")
                raise ZeroDivisionError

        assert await connection.fetchval("SELECT current_schemas(false)::text") == "{acme}"


async def test_dropped_schema_reads_nothing(database: Database, acme: Tenant) -> None:
    """A tenant whose schema is gone gets an error, also where public has a table of that name."""
    async with database.connection() as connection:
        await connection.execute("DROP SCHEMA acme CASCADE; CREATE TABLE public.company_data (description text)")

    with pytest.raises(UnknownTenantError) as caught:
        async with database.tenant_connection(acme) as connection:
            await connection.fetch("SELECT description FROM company_data")
    assert isinstance(caught.value.__cause__, asyncpg.UndefinedTableError)


async def test_public_on_the_path_reads_somebody_elses_rows(database: Database) -> None:
    """Negative control: with `public` behind the schema the same query quietly reads shared rows."""
    async with database.connection() as connection:
        await connection.execute(
            "DROP SCHEMA acme CASCADE; CREATE TABLE public.company_data (description text);"
            "INSERT INTO public.company_data VALUES ('shared')"
        )
        await connection.execute("SET LOCAL search_path TO acme, public")

        assert await connection.fetchval("SELECT description FROM company_data") == "shared"


@pytest.mark.parametrize("name", ['"', 'a"b', "x'; DROP SCHEMA acme; --", "Ünï", "a,b", "a b", "$users"])
async def test_odd_schema_name_is_one_name(database: Database, name: str) -> None:
    """An adopted schema may be called anything; the path still holds exactly that one."""
    schema = SchemaName(name)
    tenant = Tenant(99, parse_slug("odd"), schema, "Odd")
    async with database.connection() as connection:
        await connection.execute(f"CREATE SCHEMA {schema.quoted}")
        await register(connection, tenant)

    async with database.tenant_connection(tenant) as connection:
        assert await connection.fetchval("SELECT current_schemas(false)") == [name]


@pytest.mark.parametrize(("name", "read_as"), [("acme,globex", ["acme", "globex"]), ("ACME", ["acme"])])
async def test_unquoted_name_is_read_as_others(database: Database, name: str, read_as: list[str]) -> None:
    """Negative control: given as it is, a schema's name is a list, and loses its case."""
    async with database.connection() as connection:
        await connection.execute(f"CREATE SCHEMA {SchemaName(name).quoted}")
        await connection.execute("SELECT set_config('search_path', $1, true)", name)

        assert await connection.fetchval("SELECT current_schemas(false)") == read_as


async def test_codec_of_one_tenant_reaches_no_other(
    one_connection_database: Database, acme: Tenant, globex: Tenant
) -> None:
    """What asyncpg keeps in the client ends with the block: its connection is closed."""
    async with one_connection_database.tenant_connection(acme) as connection:
        await connection.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=_shout)
        assert await connection.fetchval("SELECT 1") == "1!"

    async with one_connection_database.tenant_connection(globex) as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_codec_stays_on_a_connection_that_nobody_closes(database_url: str) -> None:
    """Negative control: asyncpg's own pool passes it on, with its own full reset, too."""
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
        async with pool.acquire() as connection:
            await connection.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=_shout)
        async with pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == "1!"


async def test_codec_of_the_app_is_on_every_connection(settings: Settings, acme: Tenant) -> None:
    """What is set when a connection is opened stays, and costs no connection."""

    async def set_up(connection: "DriverConnection") -> None:
        await connection.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=_shout)

    seen = set()
    async with await WebLender.open(settings, max_size=1, set_up=set_up) as database:
        for _ in range(2):
            async with database.tenant_connection(acme) as connection:
                assert await connection.fetchval("SELECT 1") == "1!"
                seen.add(connection.get_server_pid())

    assert len(seen) == 1


async def test_copy_writes_json_by_the_codec_of_the_app(settings: Settings, acme: Tenant) -> None:
    """A codec that writes and reads texts, as asyncpg's manual has it, serves COPY and arrays, too."""

    async def set_up(connection: "DriverConnection") -> None:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)

    value = {"a": [1, None, "ü"]}
    async with await WebLender.open(settings, max_size=1, set_up=set_up) as database:
        async with database.tenant_connection(acme) as connection:
            await connection.execute("CREATE TABLE facts (plain json, better jsonb, many jsonb[])")
            await connection.copy_records_to_table("facts", records=[(value, value, [value, None])])
            await connection.execute("INSERT INTO facts VALUES ($1, $1::json::jsonb, ARRAY[$2::jsonb])", value, value)
        async with database.tenant_connection(acme) as connection:
            rows = await connection.fetch("SELECT * FROM facts")

    assert [tuple(row) for row in rows] == [(value, value, [value, None]), (value, value, [value])]


async def test_copy_of_asyncpgs_own_refuses_json_beside_a_codec(database_url: str) -> None:
    """Negative control: asyncpg copies in binary, and such a codec writes texts."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.set_type_codec("json", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        await connection.execute("CREATE TEMPORARY TABLE facts (plain json)")
        with pytest.raises(asyncpg.InternalClientError, match="no binary format encoder for type json"):
            await connection.copy_records_to_table("facts", records=[({},)])
    finally:
        await connection.close()


def _shout(text: str) -> str:
    return f"{text}!"
