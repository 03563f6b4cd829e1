"""Promise: what one block leaves on a warm connection reaches no later block, neither the tenant's own nor another's.

A warm connection is not reset after a block that only read, and the next block's path goes ahead of its first
statement. So each act is done on a warm connection, and the look after it begins with such a read.
"""

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import pytest

from quart_tenants.errors import TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.fast.statement_effects import Effect, StatementEffects
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.postgres.pool.pooled_connection import PooledConnection
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Tenant, parse_slug
from tests.isolation.lenders import Lender
from tests.isolation.probes import LEAVE_TRACES, find_traces
from tests.isolation.soak import register
from tests.isolation.test_protocol_messages import (
    Body,
    Field,
    Findings,
    disturb_at_every_message,
    ground,
    open_behind,
    read,
    run_block,
)
from tests.support.roles import new_login
from tests.support.timings import WARM
from tests.support.web_lender import WebLender

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

pytestmark = pytest.mark.slow

__all__ = ["ground"]

Act = Callable[["Connection"], Awaitable[object]]

ADD = "INSERT INTO company_data (description) VALUES ($1)"
# Of these the driver knows that they only read, so that they take BEGIN and path along.
LIST = "SELECT description FROM company_data"
SEE_PATH = "SELECT current_schemas(false)::text[]"
SEE_WITH_ROLES = """
SELECT current_user::text, current_schemas(false)::text[], current_setting('statement_timeout'),
    (SELECT string_agg(relname, ',') FROM pg_class WHERE relnamespace = pg_my_temp_schema())
"""
COUNT_NAMES = "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"


@pytest.fixture
def timings() -> Timings:
    """Let connections stay warm however slow the machine is, and let nobody tidy meanwhile."""
    return WARM


def run(statement: str) -> Act:
    """Return an act that executes *statement*."""
    return lambda connection: connection.execute(statement)


def ask(query: str) -> Act:
    """Return an act that fetches one value."""
    return lambda connection: connection.fetchval(query)


async def _roll_back_to_savepoint(connection: "Connection") -> None:
    with contextlib.suppress(LookupError):
        async with connection.transaction():
            await connection.execute("SET LOCAL search_path TO company1")
            await connection.fetch(SEE_PATH)
            raise LookupError


async def _catch_error(connection: "Connection") -> None:
    with contextlib.suppress(asyncpg.PostgresError):
        await connection.fetch("SELECT 1 FROM nowhere")


async def _commit_and_go_on(connection: "Connection") -> None:
    await connection.execute("COMMIT")
    await connection.execute("SET search_path TO company1; SET app.secret TO 'mine'")


async def _prepare(connection: "Connection") -> None:
    await (await connection.prepare("SELECT set_config('app.secret', 'mine', false)")).fetch()


async def _open_cursor(connection: "Connection") -> None:
    cursor = await connection.cursor("SELECT set_config('app.secret', 'mine', false)")
    await cursor.fetch(1)


async def _call_function(connection: "Connection") -> None:
    await connection.execute(
        "CREATE FUNCTION leave() RETURNS void LANGUAGE plpgsql AS "
        "$$BEGIN EXECUTE 'PRE' || 'PARE my_rows AS SELECT 1'; PERFORM set_config('app.secret', 'mine', false); END$$"
    )
    await connection.fetch("SELECT leave()")


async def _listen(connection: "Connection") -> None:
    with pytest.raises(asyncpg.InterfaceError, match=r"use quart_tenants\.subscribe\(\)"):
        await connection.add_listener("my_news", lambda *_: None)


async def _log(connection: "Connection") -> None:
    connection.add_query_logger(_shown.append)
    connection.add_log_listener(lambda *seen: _shown.append(seen))


async def _reset(connection: "Connection") -> None:
    await connection.execute("SET app.secret TO 'mine'")
    await connection.reset()


# What loggers of a block that has ended were told.
_shown: list[object] = []


# What a careless, or a hostile, handler does.
ACTS: dict[str, Act] = {
    "reads": ask(LIST),
    "settings, temporary table, listener, lock": run(LEAVE_TRACES),
    "setting": run("SET app.secret TO 'mine'"),
    "setting in a SELECT": ask("SELECT set_config('app.secret', 'mine', false)"),
    "local setting": run("SET LOCAL statement_timeout TO 54321"),
    "local setting in a SELECT": ask("SELECT set_config('app.secret', 'mine', true)"),
    "path": run("SET search_path TO company1"),
    "local path": run("SET LOCAL search_path TO company1"),
    "path in a SELECT": ask("SELECT set_config('search_path', 'company1', false)"),
    "local path in a SELECT": ask("SELECT set_config('search_path', 'company1', true)"),
    "path reset": run("RESET search_path"),
    "path rolled back to a savepoint": _roll_back_to_savepoint,
    "temporary table": run("CREATE TEMP TABLE company_data AS SELECT 'temporary'::text AS description"),
    "advisory lock": ask("SELECT pg_advisory_lock(42)::text"),
    "advisory lock without waiting": ask("SELECT pg_try_advisory_lock(42)"),
    "listener": _listen,
    "PREPARE": run("PREPARE my_rows AS SELECT description FROM company_data"),
    "PREPARE in DO": run("DO $$BEGIN EXECUTE 'PRE' || 'PARE my_rows AS SELECT 1'; END$$"),
    "PREPARE in a function": _call_function,
    "DEALLOCATE ALL": run("DEALLOCATE ALL"),
    "DEALLOCATE ALL in DO": run("DO $$BEGIN EXECUTE 'DEALL' || 'OCATE ALL'; END$$"),
    "DISCARD PLANS": run("DISCARD PLANS"),
    "cursor WITH HOLD": run("DECLARE my_rows CURSOR WITH HOLD FOR SELECT 1"),
    "prepared statement": _prepare,
    "cursor": _open_cursor,
    "loggers": _log,
    "role": run("SET ROLE pg_monitor"),
    "local role": run("SET LOCAL ROLE pg_monitor"),
    "session user": run("SET SESSION AUTHORIZATION pg_monitor"),
    "session's characteristics": run("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"),
    "caught error": _catch_error,
    "COMMIT": _commit_and_go_on,
    "ROLLBACK": run("ROLLBACK"),
    "another transaction": run("COMMIT; SET search_path TO company1; SET app.secret TO 'mine'; BEGIN"),
    "COMMIT AND CHAIN": run("SET app.secret TO 'mine'; COMMIT AND CHAIN"),
    "reset": _reset,
}


@pytest.fixture(autouse=True)
def _no_records() -> None:
    """Forget what loggers of earlier tests were told."""
    _shown.clear()


@pytest.fixture
async def company(database: Database) -> Tenant:
    """A third tenant, which has rows."""
    return await get_tenant(database, parse_slug("company1"))


async def fill(database: Database, *tenants: Tenant) -> None:
    """Give each of *tenants* a row with its name, and let the connection know them."""
    for tenant in tenants:
        async with database.tenant_connection(tenant) as connection:
            await connection.execute(ADD, tenant.slug)
        for _ in range(2):
            await look(database.tenant_connection, tenant)


async def look(lend: Lender, tenant: Tenant) -> dict[str, object]:
    """Return what is not as it must be in a block of *tenant* that begins with plain reads."""
    wrong: dict[str, object] = {}
    async with lend(tenant) as connection:
        rows = [row["description"] for row in await connection.fetch(LIST)]
        path = await connection.fetchval(SEE_PATH)
    async with lend(tenant) as connection:
        if (first_path := await connection.fetchval(SEE_PATH)) != path:
            wrong["path that changed"] = first_path
        login = await connection.fetchval("SELECT session_user")
        wrong |= await find_traces(connection, tenant, login)
        if names := await connection.fetchval(COUNT_NAMES):
            wrong["names"] = names
        if await connection.fetchval("SHOW transaction_read_only") != "off":
            wrong["read only"] = True
        await connection.execute("DO $$BEGIN RAISE NOTICE 'for this tenant only'; END$$")
        await connection.fetch(LIST)
    if _shown:
        wrong["shown"] = _shown
    if rows != [tenant.slug]:
        wrong["rows"] = rows
    if path != [tenant.schema.name]:
        wrong["path"] = path
    return wrong


@pytest.mark.parametrize("after_a_read", [True, False], ids=["after a read", "at once"])
@pytest.mark.parametrize("act", ACTS)
async def test_next_block_is_clean(
    one_connection_database: Database, acme: Tenant, globex: Tenant, act: str, after_a_read: bool
) -> None:
    """Whatever a handler does, the next block sees its own rows and no trace, be it the same tenant's or another's."""
    await fill(one_connection_database, acme, globex)

    for heir in (acme, globex):
        with contextlib.suppress(TenantError):
            async with one_connection_database.tenant_connection(acme) as connection:
                if after_a_read:
                    await connection.fetch(LIST)
                await ACTS[act](connection)
                if act == "PREPARE in a function":
                    await connection.execute("DROP FUNCTION leave()")
        assert await look(one_connection_database.tenant_connection, heir) == {}


@pytest.mark.parametrize("ending", [LookupError, TimeoutError])
@pytest.mark.parametrize("act", ["reads", "setting in a SELECT", "path", "temporary table", "PREPARE in DO", "COMMIT"])
async def test_block_after_a_failed_one_is_clean(
    one_connection_database: Database, acme: Tenant, globex: Tenant, act: str, ending: type[Exception]
) -> None:
    """A block that its handler leaves by an exception cleans up as well."""
    await fill(one_connection_database, acme, globex)

    for heir in (acme, globex):
        with contextlib.suppress(ending, TenantError):
            async with one_connection_database.tenant_connection(acme) as connection:
                await ACTS[act](connection)
                raise ending
        assert await look(one_connection_database.tenant_connection, heir) == {}


@pytest.mark.usefixtures("alone_only")
@pytest.mark.parametrize("act", ["setting in a SELECT", "advisory lock"])
async def test_same_look_finds_what_counts_as_a_read(
    one_connection_database: Database,
    acme: Tenant,
    globex: Tenant,
    act: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: where every SELECT counts as a plain read, the next block finds what the last did."""
    await fill(one_connection_database, acme, globex)
    find = StatementEffects.find
    monkeypatch.setattr(
        StatementEffects,
        "find",
        lambda effects, text: Effect.READS if text.startswith("SELECT") else find(effects, text),
    )

    async with one_connection_database.tenant_connection(acme) as connection:
        await ACTS[act](connection)

    assert await look(one_connection_database.tenant_connection, acme) != {}


async def test_tenant_without_a_reset_keeps_its_trace_from_the_next(
    one_connection_database: Database, acme: Tenant, globex: Tenant
) -> None:
    """What hides behind a view counts as a read, and another tenant still gets a connection that is reset."""
    await fill(one_connection_database, acme, globex)
    async with one_connection_database.tenant_connection(acme) as connection:
        await connection.execute("CREATE VIEW sly AS SELECT set_config('app.secret', 'mine', false) AS secret")

    async with one_connection_database.tenant_connection(acme) as connection:
        assert await connection.fetchval("SELECT secret FROM sly") == "mine"

    assert await look(one_connection_database.tenant_connection, globex) == {}


async def test_statements_deallocated_behind_a_view_are_not_noticed(
    one_connection_database: Database, acme: Tenant, globex: Tenant
) -> None:
    """Even the COMMIT that was prepared may be gone unseen: the next block gets another connection."""
    await fill(one_connection_database, acme, globex)
    async with one_connection_database.tenant_connection(acme) as connection:
        await connection.execute(
            "CREATE FUNCTION forget() RETURNS int LANGUAGE plpgsql AS "
            "$$BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN 1; END$$;"
            "CREATE VIEW sly AS SELECT forget() AS one"
        )

    for heir in (globex, acme, globex):
        async with one_connection_database.tenant_connection(acme) as connection:
            assert await connection.fetchval("SELECT one FROM sly") == 1
        assert await look(one_connection_database.tenant_connection, heir) == {}


@pytest.mark.parametrize("name", ["user", "Ünï", 'a"b', "a,b", "$users", "_x1", "ä", "select", "pg catalog", "1"])
async def test_path_goes_ahead_for_every_name(one_connection_database: Database, name: str) -> None:
    """The server's own word about the path is understood for every name that a schema may have."""
    schema = SchemaName(name)
    odd = Tenant(99, parse_slug("odd"), schema, "Odd")
    async with one_connection_database.connection() as connection:
        await connection.execute(f"CREATE SCHEMA {schema.quoted}")
        await register(connection, odd)

    pids = set()
    for _ in range(3):
        async with one_connection_database.tenant_connection(odd) as connection:
            assert await connection.fetchval(SEE_PATH) == [name]
            pids.add(connection.get_server_pid())
    assert len(pids) == 1


async def read_after_another(field: Field, lend: Lender, body: Body, stamp: str, *, other: Tenant) -> None:
    """Let *other* read on acme's connection, and acme after it."""
    async with lend(other) as connection:
        await connection.fetch(LIST)
    await run_block(field, lend, body, stamp)


async def test_disturbed_read_behind_another_tenants_leaves_nothing(
    ground: Field,
    settings: Settings,
    company: Tenant,
) -> None:
    """Killed or cancelled at each message from one tenant's read to the next one's: no trace, no foreign row."""

    async def run_both(field: Field, lend: Lender, body: Body, stamp: str) -> None:
        await read_after_another(field, lend, body, stamp, other=company)

    async with await open_behind(ground.proxy, settings) as database:
        findings = await disturb_at_every_message(ground, database.tenant_connection, read, run_both)

    assert findings == Findings(runs=findings.runs, completed=findings.completed)
    assert findings.runs > 40


@pytest.fixture
async def tenants_with_roles(roles_database: Database) -> tuple[Tenant, Tenant]:
    """Two tenants that have roles of their own."""
    acme, globex = [await get_tenant(roles_database, parse_slug(slug)) for slug in ("acme", "globex")]
    return acme, globex


@pytest.mark.parametrize("act", ["reads", "rolled back", "temporary table", "local setting", "caught error"])
async def test_next_block_with_roles_is_clean(
    roles_database: Database, tenants_with_roles: tuple[Tenant, Tenant], act: str
) -> None:
    """With a role per tenant the pipelined block acts as its tenant's role, and ends with it."""
    acme, globex = tenants_with_roles
    for tenant in tenants_with_roles:
        async with roles_database.tenant_connection(tenant) as connection:
            await connection.execute(ADD, tenant.slug)

    for heir in (acme, globex, acme):
        with contextlib.suppress(TenantError, asyncpg.PostgresError):
            async with roles_database.tenant_connection(acme) as connection:
                await connection.fetch(LIST)
                await ACTS.get(act, _roll_back_to_savepoint)(connection)
        async with roles_database.tenant_connection(heir) as connection:
            rows = [row["description"] for row in await connection.fetch(LIST)]
            seen = await connection.fetchrow(SEE_WITH_ROLES)
        assert rows == [heir.slug]
        assert seen is not None
        assert tuple(seen) == (heir.role and heir.role.name, [heir.schema.name], "0", None)


async def test_role_of_another_tenant_reads_nothing(
    roles_database: Database, tenants_with_roles: tuple[Tenant, Tenant]
) -> None:
    """A pipelined read of the neighbour's table by its full name is refused by PostgreSQL."""
    acme, globex = tenants_with_roles
    for tenant in tenants_with_roles:
        async with roles_database.tenant_connection(tenant) as connection:
            await connection.fetch(LIST)

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with roles_database.tenant_connection(acme) as connection:
            await connection.fetch(f"SELECT description FROM {globex.schema.quoted}.company_data")


@pytest.mark.parametrize("act", ["reads", "loggers", "listener", "setting in a SELECT", "temporary table", "COMMIT"])
async def test_connection_that_was_weighed_is_clean(
    one_connection_database: Database, acme: Tenant, globex: Tenant, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two blocks the server process is weighed now and then; that lets nothing through, either."""
    await fill(one_connection_database, acme, globex)
    weighed = []

    def is_time(connection: PooledConnection) -> int:
        weighed.append(connection)
        return 0

    monkeypatch.setattr(PooledConnection, "weigh_at", property(is_time, lambda *_: None))

    for heir in (acme, globex):
        with contextlib.suppress(TenantError):
            async with one_connection_database.tenant_connection(acme) as kept:
                await ACTS[act](kept)
                transaction = kept.transaction()
        assert await look(one_connection_database.tenant_connection, heir) == {}
        with pytest.raises(asyncpg.InterfaceError):
            await transaction.start()


async def test_name_prepared_unseen_is_forgotten_where_nobody_may_look(
    settings: Settings, database: Database, server_url: str, acme: Tenant, globex: Tenant
) -> None:
    """A login that may not ask for prepared statements drops all of them wherever one may have been made unseen."""
    async with new_login(server_url, "") as login_url:
        login = urlsplit(login_url)
        name = login.username
        async with database.connection() as connection:
            await connection.execute(
                f"GRANT ALL ON SCHEMA acme, globex TO {name}; GRANT ALL ON ALL TABLES IN SCHEMA acme, globex TO {name};"
                f"GRANT ALL ON ALL SEQUENCES IN SCHEMA acme, globex TO {name};"
                "REVOKE EXECUTE ON FUNCTION pg_prepared_statement() FROM PUBLIC"
            )
        reached = urlsplit(settings.required_database_url)
        user, _, server = login.netloc.rpartition("@")
        url = reached._replace(netloc=f"{user}@{reached.netloc.rpartition('@')[2] or server}").geturl()
        async with await WebLender.open(replace(settings, database_url=url), max_size=1, timings=WARM) as own:
            for tenant in (acme, globex):
                for _ in range(2):
                    async with own.tenant_connection(tenant) as connection:
                        await connection.fetch(LIST)
            async with own.tenant_connection(acme) as connection:
                await ACTS["PREPARE in DO"](connection)

            with pytest.raises(asyncpg.InvalidSQLStatementNameError):
                async with own.tenant_connection(globex) as connection:
                    await connection.execute("EXECUTE my_rows")
            async with own.tenant_connection(globex) as connection:
                await connection.execute(ADD, "globex")
                assert [row["description"] for row in await connection.fetch(LIST)] == ["globex"]
        async with database.connection() as connection:
            await connection.execute(f"DROP OWNED BY {name}")
