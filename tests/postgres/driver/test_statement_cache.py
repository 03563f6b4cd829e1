"""Prepared statements that are kept: each for one tenant, one version and what its parameters take as it is."""

import asyncio
import contextlib
import datetime
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import asyncpg
import asyncpg.pgproto.pgproto
import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.block_statements import TenantKey
from quart_tenants.postgres.driver.fast import statement_cache
from quart_tenants.postgres.driver.fast.statement_cache import _LOSSLESS, FoundTypes, StatementCache
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant, parse_slug
from tests.support.timings import WARM
from tests.support.web_lender import WebLender

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

pytestmark = pytest.mark.slow


OFTEN = 10
"""So often a tenant has read when it has a statement of its own."""
EXACT = 1.0000000001
"""More than a float4 can hold."""
NOON = datetime.datetime(2026, 1, 1, 12)  # noqa: DTZ001  (in nobody's zone)
NOON_UTC = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)


@pytest.fixture
def timings() -> Timings:
    """Let connections stay warm however slow the machine is, and let nobody tidy meanwhile."""
    return WARM


@pytest.fixture
async def small(settings: Settings) -> AsyncIterator[Database]:
    """A pool of one connection that keeps few statements."""
    async with await WebLender.open(replace(settings, statement_cache_size=5), max_size=1, timings=WARM) as database:
        yield database


async def run(database: Database, tenant: Tenant, statement: str) -> None:
    """Execute *statement* for *tenant*, without arguments."""
    async with database.tenant_connection(tenant) as connection:
        await connection.execute(statement)


async def fetch(database: Database, tenant: Tenant, query: str, *arguments: object) -> list[tuple[object, ...]]:
    """Return the rows of *query* in a block of its own."""
    async with database.tenant_connection(tenant) as connection:
        return [tuple(row) for row in await connection.fetch(query, *arguments)]


async def list_names(database: Database, tenant: Tenant) -> set[str]:
    """Return the names of the statements that the server has for the connection, but that of this query."""
    async with database.tenant_connection(tenant) as connection:
        # Another record, so that this is not kept itself.
        rows = await connection.fetch("SELECT name FROM pg_prepared_statements", record_class=asyncpg.Record)
    return {row["name"] for row in rows}


# Tenants whose tables differ.


async def make_measures(database: Database, tenant: Tenant, number: str) -> None:
    """Make a table with a column of the type *number*."""
    await run(database, tenant, f"CREATE TABLE measures (id int, value {number})")


async def add_measures(connection: "Connection") -> None:
    """Add one measure by each way that takes arguments."""
    await connection.execute("INSERT INTO measures VALUES (1, $1)", EXACT)
    await connection.fetch("INSERT INTO measures VALUES (2, $1) RETURNING id", EXACT)
    await connection.executemany("INSERT INTO measures VALUES (3, $1)", [(EXACT,)])


@pytest.mark.parametrize(
    "numbers", [("real", "double precision"), ("real", "numeric"), ("integer", "double precision")]
)
async def test_number_is_never_stored_narrower_than_the_tenants_column(
    one_connection_database: Database, acme: Tenant, globex: Tenant, numbers: tuple[str, str]
) -> None:
    """Two tenants with different types, written alternately on one connection, each store what their column holds."""
    for tenant, number in zip((acme, globex), numbers, strict=True):
        await make_measures(one_connection_database, tenant, number)

    for tenant in (acme, globex, acme, globex):
        async with one_connection_database.tenant_connection(tenant) as connection:
            await add_measures(connection)

    values = await fetch(one_connection_database, globex, "SELECT value::text FROM measures")
    wanted = str(EXACT) if numbers[1] != "numeric" else str(Decimal(EXACT))
    assert values == [(wanted,)] * 6


async def test_shared_statement_stores_narrower(database_url: str) -> None:
    """Negative control: asyncpg's own cache, in which tenants share a statement, cuts a double to a float."""
    query = "INSERT INTO measures VALUES (1, $1)"
    connection = await asyncpg.connect(database_url)
    try:
        for tenant, number in (("acme", "real"), ("globex", "double precision")):
            await connection.execute(f"SET search_path TO {tenant}; CREATE TABLE measures (id int, value {number})")
            await connection.execute(query, EXACT)
        value = await connection.fetchval("SELECT value FROM measures")
    finally:
        await connection.close()

    assert value != EXACT


DRIFTS = {
    # From, to, a value for each, and how the second is stored.
    "wider float": ("real", "double precision", 1.5, EXACT),
    "integer to numeric": ("bigint", "numeric", 7, Decimal("1.5")),
    "integer to double": ("integer", "double precision", 7, 1.5),
    "wider integer": ("smallint", "bigint", 7, 2**40),
    "text to integer": ("text", "integer", "seven", 7),
    "integer to text": ("integer", "text", 7, "seven"),
    "array": ("bigint[]", "numeric[]", [7], [Decimal("1.5")]),
    "nested array": ("bigint[]", "numeric[]", [[7]], [[Decimal("1.5")]]),
    "time to a date": ("date", "timestamp", datetime.date(2026, 1, 1), NOON),
    "zone to none": (
        "timestamptz", "timestamp",
        NOON_UTC, NOON,
    ),
    "interval": ("time", "interval", datetime.time(1), datetime.timedelta(days=3)),
    "uuid to text": ("uuid", "text", uuid.UUID(int=7), "SEVEN"),
    "bytes to text": ("bytea", "text", b"x", "x"),
    "json to text": ("jsonb", "text", "{}", '{"b":1,  "a":1}'),
}  # fmt: skip


@pytest.mark.parametrize("drift", DRIFTS)
async def test_column_retyped_by_hand_takes_the_right_value_or_an_error(
    one_connection_database: Database, database: Database, acme: Tenant, drift: str
) -> None:
    """After a change by hand a known statement stores what it was given, or fails once and then stores it."""
    old, new, old_value, new_value = DRIFTS[drift]
    await run(one_connection_database, acme, f"CREATE TABLE drifting (value {old})")
    add, find = "INSERT INTO drifting VALUES ($1)", "SELECT value FROM drifting WHERE value = $1"
    for _ in range(3):
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.execute(add, old_value)
        await fetch(one_connection_database, acme, find, old_value)

    async with database.connection() as connection:
        await connection.execute(f"TRUNCATE acme.drifting; ALTER TABLE acme.drifting ALTER value TYPE {new} USING NULL")

    failures = []
    for _ in range(3):
        try:
            async with one_connection_database.tenant_connection(acme) as connection:
                await connection.execute(add, new_value)
        except asyncpg.PostgresError as error:
            failures.append(error)
    stored = await fetch(one_connection_database, acme, "SELECT value FROM drifting")
    if drift == "json to text":
        # One JSON value may be written in two ways.
        assert {str(value).replace(" ", "") for (value,) in stored} <= {'{"b":1,"a":1}', '{"a":1,"b":1}'}
    else:
        assert stored == [(new_value,)] * (3 - len(failures))
    assert len(failures) <= 1

    found = []
    for _ in range(2):
        with contextlib.suppress(asyncpg.PostgresError):
            found.append(await fetch(one_connection_database, acme, find, new_value))
    assert found
    assert found[-1] == [row for row in stored if row == (new_value,)]


@pytest.mark.usefixtures("fast_driver_only")
async def test_statement_that_takes_any_argument_cuts_it(
    one_connection_database: Database, database: Database, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a kept statement that is used for whatever comes stores 1 where it was given 1.5."""
    monkeypatch.setattr(
        StatementCache,
        "find",
        lambda cache, query, _: cache._own.kept[query].statement if query in cache._own.kept else None,
    )
    await run(one_connection_database, acme, "CREATE TABLE drifting (value bigint)")
    for number in (7, 7, Decimal("1.5")):
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.execute("INSERT INTO drifting VALUES ($1)", number)
        async with database.connection() as connection:
            await connection.execute("ALTER TABLE acme.drifting ALTER value TYPE numeric")

    assert await fetch(one_connection_database, acme, "SELECT value FROM drifting") == [(7,), (7,), (1,)]


async def count_new(database: Database, tenant: Tenant, query: str, *arguments: object) -> int:
    """Return how many statements more the server has after *query*."""
    before = await list_names(database, tenant)
    await fetch(database, tenant, query, *arguments)
    return len(await list_names(database, tenant) - before)


# Statements that tenants share.


@pytest.fixture
async def pair(settings: Settings) -> AsyncIterator[Database]:
    """A pool of two connections: the first that globex uses, the second that acme uses."""
    async with await WebLender.open(settings, max_size=2, timings=WARM) as database:
        yield database


@asynccontextmanager
async def meeting(pair: Database) -> AsyncIterator[None]:
    """Let globex meet acme on acme's connection, for its own one is taken."""
    async with pair.tenant_connection(await get_tenant(pair, parse_slug("company2"))):
        yield


async def make_known(pair: Database, acme: Tenant, globex: Tenant, query: str, *arguments: object) -> None:
    """Let both tenants prepare *query*, each on its own connection."""
    for tenant in (globex, acme):
        await fetch(pair, tenant, query, *arguments)


@pytest.mark.usefixtures("fast_driver_only")
async def test_tenants_share_a_read_until_they_use_it_often(pair: Database, acme: Tenant, globex: Tenant) -> None:
    """A tenant that has prepared a read before reads a few times by the statement of another, and then has its own."""
    query = "SELECT description FROM company_data WHERE description = $1"
    await make_known(pair, acme, globex, query, "x")

    async with meeting(pair):
        assert [await count_new(pair, globex, query, "x") for _ in range(OFTEN)] == [0] * 8 + [1, 0]


@pytest.mark.usefixtures("fast_driver_only")
async def test_tenant_that_nobody_knows_yet_shares_no_statement(pair: Database, acme: Tenant, globex: Tenant) -> None:
    """PostgreSQL has not said yet which types the text has for this tenant."""
    query = "SELECT description FROM company_data WHERE id = $1"
    await fetch(pair, acme, query, 1)

    async with meeting(pair):
        assert await count_new(pair, globex, query, 1) == 1


@pytest.mark.usefixtures("fast_driver_only")
async def test_tenant_at_another_version_shares_no_statement(pair: Database, acme: Tenant, globex: Tenant) -> None:
    """A tenant that is migrated, or is to be, has statements of its own from the first read on."""
    query = "SELECT description FROM company_data WHERE id = $1"
    await make_known(pair, acme, globex, query, 1)

    async with meeting(pair):
        assert await count_new(pair, replace(globex, version=globex.version + 1), query, 1) == 1


NOT_SHARED: dict[str, tuple[str, object]] = {
    "row": ("SELECT t FROM company_data t WHERE id = $1", 7),
    "record": ("SELECT ROW(t.*) FROM company_data t WHERE id = $1", 7),
    "enum": ("SELECT mood FROM moods WHERE $1", True),
    "enums": ("SELECT array_agg(mood) FROM moods WHERE $1", True),
    "enum as argument": ("SELECT 1 FROM moods WHERE mood = $1", "glad"),
    "lock": ("SELECT id FROM company_data WHERE id = $1 FOR UPDATE", 7),
    "write": ("UPDATE company_data SET description = '' WHERE id = $1 RETURNING id", 7),
}


@pytest.mark.usefixtures("fast_driver_only")
@pytest.mark.parametrize("kind", NOT_SHARED)
async def test_what_is_no_plain_read_of_built_in_types_is_not_shared(
    pair: Database, acme: Tenant, globex: Tenant, kind: str
) -> None:
    """A write cannot be run again, and a type of a schema is another one in the next."""
    query, argument = NOT_SHARED[kind]
    for tenant in (acme, globex):
        await run(pair, tenant, "CREATE TYPE mood AS ENUM ('glad'); CREATE TABLE moods (mood mood)")
    await make_known(pair, acme, globex, query, argument)

    async with meeting(pair):
        assert await count_new(pair, globex, query, argument) == (kind != "enum as argument")


@pytest.mark.usefixtures("fast_driver_only")
async def test_read_in_a_transaction_shares_no_statement(pair: Database, acme: Tenant, globex: Tenant) -> None:
    """A transaction that a misfit would end is never begun by another tenant's statement."""
    query = "SELECT description FROM company_data WHERE id = $1"
    await make_known(pair, acme, globex, query, 1)

    async with meeting(pair):
        before = await list_names(pair, globex)
        async with pair.tenant_connection(globex) as connection:
            await connection.execute("SELECT 1")
            await connection.fetch(query, 1)
        assert len(await list_names(pair, globex) - before) == 1


# Of the same version, with other types by somebody's hand. A statement with acme's types would say something else.
DIFFERENT: dict[str, tuple[str, str, str, object]] = {
    "real": ("value integer", "value real", "value = $1", 16777217),
    "reals": ("value integer", "value real", "value = ANY($1)", [16777217]),
    "division": ("value integer, rate numeric", "value numeric, rate numeric", "value = $1 AND rate = $1 / 2", 7),
    "shift": ("value smallint, flags int", "value integer, flags int", "value = $1 AND flags = $1 << 20", 1),
    "blanks": ("value text", "value char(5)", "value = $1", "ab   "),
    "own operator": ("value integer", "value numeric", "value = $1", 7),
}
ROWS = {
    "real": "16777217", "reals": "16777217", "division": "7, 3.5", "shift": "1, 1048576", "blanks": "'ab   '",
    "own operator": "7",
}  # fmt: skip


async def find_different(pair: Database, acme: Tenant, globex: Tenant, kind: str) -> list[list[tuple[object, ...]]]:
    """Return what globex finds, again and again, where acme has asked the same of other types."""
    of_acme, of_globex, condition, argument = DIFFERENT[kind]
    query = f"SELECT note FROM things WHERE {condition}"
    for tenant, columns in ((acme, of_acme), (globex, of_globex)):
        await run(pair, tenant, f"CREATE TABLE things ({columns}, note text)")
    await run(
        pair,
        globex,
        "CREATE FUNCTION never(numeric, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT false';"
        "CREATE OPERATOR = (FUNCTION = never, LEFTARG = numeric, RIGHTARG = int);"
        f"INSERT INTO things VALUES ({ROWS[kind]}, 'found')",
    )
    await make_known(pair, acme, globex, query, argument)
    async with meeting(pair):
        return [await fetch(pair, globex, query, argument) for _ in range(3)]


@pytest.mark.parametrize("kind", DIFFERENT)
async def test_parameter_has_the_type_that_the_tenants_own_column_gives_it(
    pair: Database, acme: Tenant, globex: Tenant, kind: str
) -> None:
    """Tenants share no statement of which PostgreSQL has found other types for one of them."""
    assert await find_different(pair, acme, globex, kind) == [[("found",)]] * 3


@pytest.mark.usefixtures("fast_driver_only")
@pytest.mark.parametrize("kind", DIFFERENT)
async def test_statement_shared_without_a_look_at_its_types_finds_something_else(
    pair: Database, acme: Tenant, globex: Tenant, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: a statement that is shared by its text alone misses a row without an error."""

    class Anything(tuple[object, ...]):
        def __eq__(self, _: object) -> bool:
            return True

        def __ne__(self, _: object) -> bool:
            return False

        __hash__ = tuple.__hash__

    monkeypatch.setattr(statement_cache, "_list_types", lambda _: Anything())

    assert [("found",)] not in await find_different(pair, acme, globex, kind)


TERMINATE = """
import asyncio, sys, asyncpg

async def main(url, process):
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT pg_terminate_backend($1, 10000)", int(process))
    await connection.close()

asyncio.run(main(*sys.argv[1:]))
"""
CHANGED_SINCE = {
    # The type that globex's column gets after it was looked at, and what is looked for there.
    "bigint": (2**40, 2**40),
    "smallint": (7, 7),
    "numeric": (Decimal(7), 7),
    "double precision": (7.0, 7),
    "text": ("7", "7"),
    "uuid": (uuid.UUID(int=7), uuid.UUID(int=7)),
    "boolean": (True, True),
    "date": (datetime.date(2026, 1, 1), datetime.date(2026, 1, 1)),
}


@pytest.mark.parametrize("columns", ["value", "note"])
@pytest.mark.parametrize("column", CHANGED_SINCE)
async def test_table_changed_by_hand_is_read_right_through_a_shared_statement(
    pair: Database, acme: Tenant, globex: Tenant, column: str, columns: str
) -> None:
    """The server or the driver finds the misfit; the tenant never sees it, and the other one goes on."""
    stored, wanted = CHANGED_SINCE[column]
    query = f"SELECT {columns} FROM drifting WHERE value = $1"
    for tenant in (acme, globex):
        await run(pair, tenant, "CREATE TABLE drifting (value integer, note text)")
    await run(pair, acme, "INSERT INTO drifting VALUES (7, 'note')")
    await make_known(pair, acme, globex, query, 7)
    await run(pair, globex, f"ALTER TABLE drifting ALTER value TYPE {column} USING NULL")
    async with pair.tenant_connection(globex) as connection:
        await connection.execute("INSERT INTO drifting VALUES ($1, 'note')", stored)

    async with meeting(pair):
        for _ in range(3):
            assert await fetch(pair, acme, query, 7) == [(7,) if columns == "value" else ("note",)]
            assert await fetch(pair, globex, query, wanted) == [(stored,) if columns == "value" else ("note",)]


async def change_after_a_look(pair: Database, acme: Tenant, globex: Tenant, query: str) -> None:
    """Let both tenants prepare *query* on a table of one kind, and change that of globex."""
    for tenant in (acme, globex):
        await run(pair, tenant, "CREATE TABLE things (value integer)")
    await make_known(pair, acme, globex, query)
    await run(pair, globex, "ALTER TABLE things ALTER value TYPE text")


@pytest.mark.usefixtures("fast_driver_only")
async def test_text_that_some_tables_do_not_fit_is_shared_no_more(pair: Database, acme: Tenant, globex: Tenant) -> None:
    """After one refusal each tenant has its own statement, and no read is run twice again."""
    query = "SELECT * FROM things"
    await change_after_a_look(pair, acme, globex, query)

    async with meeting(pair):
        assert await count_new(pair, globex, query) == 1
        assert await count_new(pair, replace(globex, id=globex.id + 1000), query) == 1


async def test_block_whose_read_was_run_again_holds_no_transaction(
    pair: Database, database: Database, acme: Tenant, globex: Tenant
) -> None:
    """After a misfit the block is as after any plain read: another session can change the table."""
    query = "SELECT * FROM things"
    await change_after_a_look(pair, acme, globex, query)

    async with meeting(pair), pair.tenant_connection(globex) as connection:
        await connection.fetch(query)
        async with database.connection() as other:
            await other.execute("SET LOCAL lock_timeout = '5s'; ALTER TABLE globex.things ADD COLUMN more text")
        assert await connection.fetch(query) == []


@pytest.mark.usefixtures("fast_driver_only")
async def test_misfit_on_a_dead_connection_goes_on_on_another_one(
    pair: Database, database: Database, database_url: str, acme: Tenant, globex: Tenant
) -> None:
    """An argument that does not fit the shared statement is refused here, and the connection may be dead by then."""
    query = "SELECT value FROM things WHERE value = $1"
    for tenant in (acme, globex):
        await run(pair, tenant, "CREATE TABLE things (value integer)")
    await make_known(pair, acme, globex, query, 1)

    async with meeting(pair), pair.tenant_connection(globex) as connection:
        async with database.connection() as other:
            await other.execute("ALTER TABLE globex.things ALTER value TYPE bigint")
        # By another process, while this event loop stands still and hears nothing.
        subprocess.run([sys.executable, "-c", TERMINATE, database_url, str(connection.get_server_pid())], check=True)
        assert await connection.fetch(query, 2**40) == []


async def test_codec_of_a_block_reads_what_others_have_prepared(pair: Database, acme: Tenant, globex: Tenant) -> None:
    """Another tenant's statement has the decoders of before."""
    query = "SELECT value FROM things WHERE id = $1"
    for tenant in (acme, globex):
        await run(pair, tenant, "CREATE TABLE things (id int, value jsonb)")
        await run(pair, tenant, """INSERT INTO things VALUES (1, '{"a": 1}')""")
    await make_known(pair, acme, globex, query, 1)

    async with meeting(pair), pair.tenant_connection(globex) as connection:
        await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
        assert await connection.fetchval(query, 1) == {"a": 1}


async def test_error_of_a_shared_read_is_the_one_of_an_own_read(pair: Database, acme: Tenant, globex: Tenant) -> None:
    """What fails for a reason of its own fails with that reason, and leaves the block usable for a savepoint's end."""
    query = "SELECT 1 / (id - $1) FROM company_data"
    await run(pair, globex, "INSERT INTO company_data (description) VALUES ('x')")
    await run(pair, acme, "INSERT INTO company_data (description) VALUES ('x')")
    number = (await fetch(pair, globex, "SELECT max(id)::int FROM company_data"))[0][0]
    await make_known(pair, acme, globex, query, -1)

    async with meeting(pair):
        for _ in range(3):
            with pytest.raises(asyncpg.DivisionByZeroError):
                await fetch(pair, globex, query, number)
            assert await fetch(pair, globex, query, -1)


CHANGES = {
    "added": "ALTER TABLE acme.things ADD COLUMN more text DEFAULT 'more'",
    "removed": "ALTER TABLE acme.things DROP COLUMN note",
    "retyped": "ALTER TABLE acme.things ALTER note TYPE integer USING 5",
    "renamed": "ALTER TABLE acme.things RENAME note TO remark",
    "recreated": "DROP TABLE acme.things; CREATE TABLE acme.things (note text, id int); "
    "INSERT INTO acme.things VALUES ('new', 9)",
    "moved": "ALTER SCHEMA acme RENAME TO old; CREATE SCHEMA acme; "
    "CREATE TABLE acme.things (id bigint); INSERT INTO acme.things VALUES (9)",
    "view": "ALTER TABLE acme.things RENAME TO base; CREATE VIEW acme.things AS SELECT 9 AS nine",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_columns_changed_by_hand_are_read_right(
    one_connection_database: Database, database: Database, acme: Tenant, globex: Tenant, change: str
) -> None:
    """As the first statement of a block a read begins anew unnoticed; later ones fail clearly, and once."""
    query = "SELECT * FROM things"
    for tenant in (acme, globex):
        await run(
            one_connection_database,
            tenant,
            f"CREATE TABLE things (id int, note text); INSERT INTO things VALUES (1, '{tenant.slug}')",
        )
        for _ in range(OFTEN):
            await fetch(one_connection_database, tenant, query)
    async with database.connection() as connection:
        await connection.execute(CHANGES[change])
        wanted = [tuple(row) for row in await connection.fetch("SELECT * FROM acme.things")]

    assert await fetch(one_connection_database, acme, query) == wanted

    names = await list_names(one_connection_database, globex)
    assert await fetch(one_connection_database, globex, query) == [(1, "globex")]
    assert await list_names(one_connection_database, globex) == names


@pytest.mark.usefixtures("fast_driver_only")
async def test_columns_changed_within_a_block_are_read_right_or_a_clear_error(
    one_connection_database: Database, database: Database, acme: Tenant
) -> None:
    """What only reads begins anew; a transaction that has begun on the old table cannot go on on the new one."""
    query = "SELECT * FROM things"
    await run(one_connection_database, acme, "CREATE TABLE things (id int); INSERT INTO things VALUES (1)")
    await fetch(one_connection_database, acme, query)

    async with one_connection_database.tenant_connection(acme) as connection:
        await connection.fetchval("SELECT 1")
        await run(database, acme, "ALTER TABLE things ADD COLUMN note text")
        assert [tuple(row) for row in await connection.fetch(query)] == [(1, None)]
    with pytest.raises(asyncpg.InvalidCachedStatementError):
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.execute("SELECT 1")
            await run(database, acme, "ALTER TABLE things DROP COLUMN note")
            await connection.fetch(query)

    assert await fetch(one_connection_database, acme, query) == [(1,)]


@pytest.mark.usefixtures("fast_driver_only")
async def test_type_changed_by_hand_is_learned_anew(
    one_connection_database: Database, database: Database, acme: Tenant
) -> None:
    """What asyncpg remembers of a type of the tenant's own is not what it is for ever."""
    query = "SELECT pair FROM pairs"
    await run(
        one_connection_database,
        acme,
        "CREATE TYPE pair AS (a int, b int); CREATE TABLE pairs (pair pair); INSERT INTO pairs VALUES (ROW(1, 2))",
    )
    for _ in range(2):
        assert await fetch(one_connection_database, acme, query) == [((1, 2),)]

    async with database.connection() as connection:
        await connection.execute("ALTER TYPE acme.pair ADD ATTRIBUTE c int")

    assert await fetch(one_connection_database, acme, query) == [((1, 2, None),)]
    async with one_connection_database.tenant_connection(acme) as connection:
        assert await connection.fetchval("SELECT count(*) FROM pairs") == 1
        assert await connection.fetchval(query) == (1, 2, None)


async def test_types_of_each_tenants_own_are_parameters(
    one_connection_database: Database, acme: Tenant, globex: Tenant
) -> None:
    """Enum types of the same name in two schemas are two types, also for one text."""
    for tenant, moods in ((acme, "'glad', 'sad'"), (globex, "'sad', 'mad'")):
        await run(
            one_connection_database, tenant, f"CREATE TYPE mood AS ENUM ({moods}); CREATE TABLE moods (mood mood)"
        )

    for _ in range(3):
        for tenant, mood in ((acme, "glad"), (globex, "mad")):
            async with one_connection_database.tenant_connection(tenant) as connection:
                await connection.execute("INSERT INTO moods VALUES ($1)", mood)
            assert set(
                await fetch(one_connection_database, tenant, "SELECT mood FROM moods WHERE mood = $1", mood)
            ) == {(mood,)}


@pytest.mark.usefixtures("fast_driver_only")
async def test_tenant_at_another_version_has_statements_of_its_own(
    one_connection_database: Database, database: Database, acme: Tenant
) -> None:
    """After a migration none of the old statements is used, and a worker that has not heard of it reads right, too."""
    query = "SELECT * FROM company_data"
    old, new = acme, replace(acme, version=acme.version + 1)
    for _ in range(2):
        await fetch(one_connection_database, old, query)
    before = await list_names(one_connection_database, old)
    async with database.connection() as connection:
        await connection.execute("ALTER TABLE acme.company_data ADD COLUMN more text; INSERT INTO acme.company_data "
                                 "(description, more) VALUES ('x', 'y')")  # fmt: skip

    [row] = await fetch(one_connection_database, new, query)
    after = await list_names(one_connection_database, new)

    assert row[1:] == ("x", "y")
    assert len(after - before) == 1
    assert await fetch(one_connection_database, old, query) == [row]


async def test_renamed_and_returned_schema_is_read_by_its_name(
    one_connection_database: Database, database: Database, acme: Tenant
) -> None:
    """A statement reads the schema that has the name now, as it is after a restore."""
    query = "SELECT description FROM company_data"
    for _ in range(2):
        await fetch(one_connection_database, acme, query)

    async with database.connection() as connection:
        await connection.execute(
            "ALTER SCHEMA acme RENAME TO before; ALTER SCHEMA company1 RENAME TO acme; "
            "ALTER SCHEMA before RENAME TO company1"
        )

    assert await fetch(one_connection_database, acme, query) == await fetch(
        database, acme, "SELECT description FROM company_data -- once"
    )
    assert len(await fetch(one_connection_database, acme, query)) > 0


# Which types lose nothing.

VALUES: tuple[object, ...] = (
    True, 7, -1, 2**15, 2**31, 2**40, 2**70, 1.5, 0.1, EXACT, float("inf"), Decimal("1.5"), Decimal("1E-30"),
    Decimal("NaN"), "7", "text", "x" * 100, "{}", b"x", bytearray(b"x"), uuid.UUID(int=7), str(uuid.UUID(int=7)),
    asyncpg.pgproto.pgproto.UUID(str(uuid.UUID(int=7))), datetime.date(2026, 1, 1), NOON,
    NOON_UTC, datetime.time(1), datetime.timedelta(days=1), {"a": 1},
    (1, 2), [1],
)  # fmt: skip


@pytest.mark.parametrize("name", _LOSSLESS)
async def test_type_takes_a_value_as_it_is_or_not_at_all(database: Database, acme: Tenant, name: str) -> None:
    """Of what a kept statement takes for each type asyncpg writes all, or raises; and so in an array."""
    types = _LOSSLESS[name]
    async with database.tenant_connection(acme) as connection:
        for value in VALUES:
            if not isinstance(value, types) or (type(value) is bool and name != "bool"):
                continue
            for query, argument in ((f"SELECT $1::{name}", value), (f"SELECT $1::{name}[]", [value, None])):
                try:
                    async with connection.transaction():
                        written = await connection.fetchval(query, argument)
                except asyncpg.PostgresError:
                    continue
                # NaN is not equal to itself.
                assert written == argument or str(written) == str(argument)


@pytest.mark.parametrize("name", ["real", "double precision", "date", "time", "timestamp", "timestamptz", "interval"])
@pytest.mark.parametrize("array", ["", "[]"])
async def test_statement_with_a_parameter_that_may_lose_is_not_kept(
    one_connection_database: Database, acme: Tenant, name: str, array: str
) -> None:
    """Floats and times, and arrays of them, are prepared each time, and closed."""
    before = await list_names(one_connection_database, acme)

    for _ in range(3):
        await fetch(one_connection_database, acme, f"SELECT $1::{name}{array}", None)

    assert await list_names(one_connection_database, acme) == before


@pytest.mark.usefixtures("fast_driver_only")
@pytest.mark.parametrize("name", [*_LOSSLESS, *(f"{name}[]" for name in _LOSSLESS)])
async def test_statement_with_a_lossless_parameter_is_kept(
    one_connection_database: Database, acme: Tenant, name: str
) -> None:
    """The others are prepared once, and so are arrays of them."""
    query = f"SELECT $1::{name}"
    await fetch(one_connection_database, acme, query, None)
    before = await list_names(one_connection_database, acme)

    for _ in range(3):
        await fetch(one_connection_database, acme, query, None)

    assert await list_names(one_connection_database, acme) == before
    async with one_connection_database.tenant_connection(acme) as connection:
        assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE statement = $1", query) == 1


async def test_whole_number_given_as_another_is_never_cut_by_a_kept_statement(
    one_connection_database: Database, acme: Tenant
) -> None:
    """Asyncpg cuts 1.5 to 1 where the server wants a whole number; a kept statement is not used for it."""
    cache = StatementCache(5, FoundTypes(100))
    cache.turn_to(TenantKey(1, 1))
    async with one_connection_database.tenant_connection(acme) as connection:
        statement = await connection.prepare("SELECT $1::int8, $2::text, $3::int8[]")
        cache.keep("query", statement._state)  # type: ignore[attr-defined]

    assert cache.find("query", (1, "x", [1, None])) is not None
    assert cache.find("query", (None, None, None)) is not None
    for arguments in (
        (1.5, "x", [1]),
        (Decimal(1), "x", [1]),
        (True, "x", [1]),
        (1, 7, [1]),
        (1, "x", [1.5]),
        (1, "x"),
    ):
        assert cache.find("query", arguments) is None


# How many.


@pytest.mark.usefixtures("fast_driver_only")
async def test_names_are_unguessable(settings: Settings, acme: Tenant) -> None:
    """Two connections have different names for the same text: behind a pooler one finds nothing of the other's."""
    names = []
    for _ in range(2):
        async with await WebLender.open(settings, max_size=1, timings=WARM) as database:
            before = await list_names(database, acme)
            await fetch(database, acme, "SELECT description FROM company_data WHERE id = $1", 1)
            names.append(await list_names(database, acme) - before)

    assert len(names[0]) == len(names[1]) == 1
    assert not names[0] & names[1]


@pytest.mark.usefixtures("fast_driver_only")
async def test_kept_statements_are_bounded(small: Database, acme: Tenant, globex: Tenant) -> None:
    """The setting bounds them on the server; those of the tenant that was served longest ago go first."""
    before = await list_names(small, acme)

    for number in range(4):
        await fetch(small, acme, f"SELECT {number}")
    of_acme = await list_names(small, acme) - before
    for number in range(5, 8):
        await fetch(small, globex, f"SELECT {number}")
    await fetch(small, globex, "SELECT 5")
    left = await list_names(small, globex) - before

    assert len(of_acme) == 4
    assert len(left) == 3
    assert not left & of_acme


@pytest.mark.usefixtures("fast_driver_only")
async def test_texts_made_anew_each_time_leave_nothing(small: Database, acme: Tenant, globex: Tenant) -> None:
    """Thousands of blocks with texts of their own leave no more on the server, nor here, than the setting says."""
    before = await list_names(small, acme)

    for number in range(1_000):
        for tenant in (acme, globex):
            async with small.tenant_connection(tenant) as connection:
                assert await connection.fetchval(f"SELECT {number}") == number
                if number % 100 == 0:
                    await connection.execute(f"INSERT INTO company_data (description) VALUES ('{number}' || $1)", "x")

    assert len(await list_names(small, acme) - before) <= 5 + 1
    async with small.tenant_connection(acme) as connection:
        await connection.fetchval("SELECT 1")
        cache = connection._con._cache  # type: ignore[attr-defined]
    assert len(cache) <= 5 + 1
    assert len(cache._by_tenant) <= 5


@pytest.mark.parametrize("text", ["of its own", "of floats"])
async def test_long_block_leaves_nothing_either(small: Database, acme: Tenant, text: str) -> None:
    """The bound holds within one block, too."""
    before = await list_names(small, acme)

    async with small.tenant_connection(acme) as connection:
        for number in range(500):
            if text == "of its own":
                assert await connection.fetchval(f"SELECT {number}") == number
            else:
                assert await connection.fetchval("SELECT $1::float8", number / 7) == number / 7
        count = await connection.fetchval("SELECT count(*) FROM pg_prepared_statements")

    assert count <= len(before) + 5 + 2


async def test_interrupted_preparation_leaves_no_name(small: Database, database: Database, acme: Tenant) -> None:
    """A statement whose preparation is cancelled, or fails, is closed though nobody knows whether it is there."""
    await run(small, acme, "CREATE TYPE mood AS ENUM ('glad')")
    before = await list_names(small, acme)

    for number in range(12):
        task = asyncio.ensure_future(fetch(small, acme, f"SELECT 'glad'::mood, {number}"))
        for _ in range(number):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(asyncpg.PostgresError):
            await fetch(small, acme, "SELECT 1 FROM nowhere")

    assert len(await list_names(small, acme)) <= len(before) + 5


async def test_function_costs_no_kept_statement(
    one_connection_database: Database, acme: Tenant, globex: Tenant
) -> None:
    """After a function, which may have prepared anything, the server is asked, and what is well is kept."""
    await run(one_connection_database, acme, "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    for tenant in (acme, globex):
        await fetch(one_connection_database, tenant, "SELECT description FROM company_data")
    await fetch(one_connection_database, acme, "SELECT one()")
    before = await list_names(one_connection_database, acme)

    for _ in range(3):
        async with one_connection_database.tenant_connection(acme) as connection:
            await connection.fetch("SELECT one()")
            await connection.fetch("SELECT $1::float8", 1.5)
            async for _ in connection.cursor("SELECT one()"):
                pass
            await connection.prepare("SELECT one()", name="mine")

    assert await list_names(one_connection_database, acme) == before


async def test_no_cache_prepares_nothing_for_good(settings: Settings, acme: Tenant) -> None:
    """With a size of 0 the server keeps no statement of a handler's."""
    async with await WebLender.open(replace(settings, statement_cache_size=0), max_size=1, timings=WARM) as database:
        before = await list_names(database, acme)
        for _ in range(3):
            await fetch(database, acme, "SELECT description FROM company_data WHERE id = $1", 1)
        assert await list_names(database, acme) == before


@pytest.mark.usefixtures("fast_driver_only")
async def test_error_of_one_tenant_leaves_anothers_statements(
    one_connection_database: Database, acme: Tenant, globex: Tenant
) -> None:
    """A tenant whose table was changed prepares its statement anew; the others on its connection keep theirs."""
    for tenant in (acme, globex):
        for _ in range(OFTEN):
            await fetch(one_connection_database, tenant, "SELECT * FROM company_data")
    before = await list_names(one_connection_database, globex)

    async with one_connection_database.tenant_connection(acme) as connection:
        await connection.execute("ALTER TABLE company_data ADD COLUMN more text")
    await fetch(one_connection_database, acme, "SELECT * FROM company_data")
    await fetch(one_connection_database, globex, "SELECT * FROM company_data")

    after = await list_names(one_connection_database, globex)
    assert len(after - before) == len(before - after) == 1


async def test_refused_argument_costs_a_block_nothing(one_connection_database: Database, acme: Tenant) -> None:
    """A block that catches the error of an argument goes on, on its connection, and what it writes is saved."""
    async with one_connection_database.tenant_connection(acme) as connection:
        process = connection.get_server_pid()
        for query in ("SELECT $1::bigint", "SELECT id FROM company_data WHERE id = $1"):
            for _ in range(3):
                with pytest.raises(asyncpg.DataError):
                    await connection.fetch(query, "seven")
                assert [tuple(row) for row in await connection.fetch(query, 0)] in ([(0,)], [])
        assert connection.get_server_pid() == process

    async with one_connection_database.tenant_connection(acme) as connection:
        with pytest.raises(asyncpg.DataError):
            await connection.fetch("SELECT $1::smallint", "seven")
        await connection.execute("INSERT INTO company_data (description) VALUES ('after an error')")
        assert connection.get_server_pid() == process
    assert await fetch(
        one_connection_database, acme, "SELECT description FROM company_data WHERE description = $1", "after an error"
    )


async def test_refused_argument_forgets_no_statement_that_is_to_be_closed(
    one_connection_database: Database, acme: Tenant
) -> None:
    """An argument that asyncpg refuses sends nothing; what was to be closed is closed with the next statement."""
    query = "SELECT description FROM company_data WHERE id = $1"
    before = await list_names(one_connection_database, acme)
    async with one_connection_database.tenant_connection(acme) as connection:
        await connection.fetch(query, 7)
        # Kept until now, this one is dropped, and its name waits for the next packet.
        with pytest.raises(asyncpg.DataError):
            await connection.fetch(query, "seven")
        with pytest.raises(asyncpg.DataError):
            await connection.fetch("SELECT $1::bigint", "seven")
        with pytest.raises(asyncpg.DataError):
            await connection.fetch("SELECT $1::bigint", "seven")

    assert await list_names(one_connection_database, acme) == before
