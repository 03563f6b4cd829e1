"""SQL injection with a role per tenant: no row of another tenant, through parameters and through naive formatting."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import asyncpg
import pytest

from quart_tenants.errors import DatabaseTimeoutError, TransactionLostError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant, parse_slug

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

SECRET = "globex-secret-5c1e"
"""Globex's only row, in a column that acme's own table has, too."""

# What an attacker types into `SELECT description FROM company_data WHERE description = '…'`. Each ends in a comment.
UNIONS = [
    f"' UNION ALL {select} --"
    for select in (
        "SELECT description FROM globex.company_data",
        "SELECT username || password FROM globex.app_user",
        "SELECT slug FROM quart_tenants.tenants",
        "SELECT schema_name FROM quart_tenants.living_tenants",
        "SELECT owner_name FROM quart_tenants.role_setup",
        "SELECT set_config('role', 'none', true)",
        "SELECT set_config('role', 'none', false)",
        "SELECT set_config('session_authorization', 'postgres', false)",
        "SELECT set_config('search_path', 'globex', true)",
        "SELECT set_config('search_path', 'globex', false) || (SELECT string_agg(description, '') FROM company_data)",
        "SELECT pg_catalog.set_config(name, 'none', true) FROM pg_settings WHERE name = 'role'",
        "SELECT query_to_xml('SELECT * FROM globex.company_data', true, true, '')::text",
        "SELECT query_to_xml('SELECT set_config(''role'', ''none'', true)', true, true, '')::text"
        " || query_to_xml('SELECT * FROM globex.company_data', true, true, '')::text",
        "SELECT query_to_xml('SELECT set_config(''search_path'', ''globex'', true)', true, true, '')::text"
        " || query_to_xml('SELECT * FROM company_data', true, true, '')::text",
        "SELECT query_to_xml('RESET ROLE', true, true, '')::text",
        "SELECT query_to_xml('RESET ROLE; SELECT * FROM globex.company_data', true, true, '')::text",
        "SELECT table_to_xml('globex.company_data', true, true, '')::text",
        "SELECT schema_to_xml('globex', true, true, '')::text",
        "SELECT database_to_xml(true, true, '')::text",
        "SELECT word FROM ts_stat('SELECT to_tsvector(description) FROM globex.company_data')",
        "SELECT ts_rewrite('a'::tsquery, 'SELECT ''a''::tsquery, description::tsquery FROM globex.company_data')::text",
        "SELECT pg_read_file('PG_VERSION')",
        "SELECT pg_ls_dir('.')",
        "SELECT lo_import('/etc/hostname')::text",
        "SELECT lo_export(1, '/tmp/quart-tenants-injected')::text",
        "SELECT pg_stat_file('PG_VERSION')::text",
        "SELECT query FROM pg_stat_activity",
        "SELECT pg_stat_get_backend_activity(1)",
        "SELECT statement FROM pg_prepared_statements",
        "SELECT most_common_vals::text FROM pg_stats WHERE schemaname = 'globex'",
        "SELECT stavalues1::text FROM pg_statistic",
        "SELECT rolpassword FROM pg_authid",
        "SELECT passwd FROM pg_shadow",
        "SELECT nextval('globex.company_data_id_seq')::text",
        "SELECT nextval((SELECT oid FROM pg_class WHERE relname = 'company_data_id_seq'"
        " AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'globex'))::regclass)::text",
        "SELECT last_value::text FROM pg_sequences WHERE schemaname = 'globex'",
        "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
        "SELECT pg_cancel_backend(pid)::text FROM pg_stat_activity WHERE pid <> pg_backend_pid()",
        "SELECT dblink('dbname=postgres', 'SELECT 1')::text",
        "SELECT * FROM dblink('dbname=postgres', 'SELECT description FROM globex.company_data') AS x (d text)",
        "SELECT pg_reload_conf()::text",
        "SELECT pg_logical_emit_message(true, 'x', 'y')::text",
        "SELECT pg_notify('quart_tenants', 'x')::text",
        "SELECT currval('globex.company_data_id_seq')::text",
        "SELECT has_table_privilege('globex.company_data', 'SELECT')::text",
        "SELECT 'globex.company_data'::regclass::text",
        "SELECT description FROM pg_temp.company_data",
        "(WITH stolen AS (SELECT description FROM globex.company_data) SELECT description FROM stolen)",
        "(WITH gone AS (DELETE FROM globex.company_data RETURNING description) SELECT description FROM gone)",
        "(SELECT description FROM globex.company_data FOR UPDATE)",
    )
]
# What he types to end the statement and begin another.
STACKED = [
    f"'; {statement} --"
    for statement in (
        "RESET ROLE; SELECT description FROM globex.company_data",
        "SET ROLE NONE; SELECT description FROM globex.company_data",
        "SET SESSION AUTHORIZATION DEFAULT; SELECT description FROM globex.company_data",
        "SET LOCAL search_path TO globex; SELECT description FROM company_data",
        "RESET ROLE; UPDATE globex.company_data SET description = 'changed'",
        "COMMIT; RESET ALL; SELECT description FROM globex.company_data",
        "DO $$ BEGIN EXECUTE 'RESET ROLE'; UPDATE globex.company_data SET description = 'changed'; END $$",
        "UPDATE pg_settings SET setting = 'none' WHERE name = 'role'",
        "PREPARE stolen AS SELECT description FROM globex.company_data; EXECUTE stolen",
        "DEALLOCATE ALL",
        "COPY globex.company_data TO STDOUT",
        "COPY (SELECT 1) TO PROGRAM 'touch /tmp/quart-tenants-injected'",
        "COPY company_data FROM PROGRAM 'echo 1'",
        "CREATE TABLE injected (description text)",
        "CREATE TEMPORARY TABLE company_data (description text)",
        "CREATE FUNCTION lower(text) RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT $1'",
        "CREATE EXTENSION dblink",
        "CREATE SCHEMA injected",
        "GRANT ALL ON SCHEMA acme TO PUBLIC",
        "GRANT USAGE ON SCHEMA globex TO CURRENT_USER",
        "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "LISTEN quart_tenants",
        "LOCK TABLE globex.company_data",
        "DROP SCHEMA globex CASCADE",
        "ALTER SYSTEM SET ssl TO off",
    )
]
# The same as a whole statement of its own: what is formatted into nothing. Without set_config() and with a role that
# owns nothing, only what leaves the role by its own statement is left; see docs/security.md.
ATTACKS = [*UNIONS, *STACKED]


@dataclass
class Outcome:
    """What an attack has come to.

    Attributes:
        rows: All that it read, as one text.
        error: What stopped it.
    """

    rows: str = ""
    error: BaseException | None = None


@dataclass
class Target:
    """A database with one connection, and what nobody may see in acme's blocks."""

    database: Database
    acme: Tenant
    secrets: list[str] = field(default_factory=list)

    async def find_escape(self, attack: str, outcome: Outcome) -> str | None:
        """Return how *attack* got out, or None."""
        if any(secret in outcome.rows for secret in self.secrets):
            return f"{attack} read {outcome.rows[:80]}"
        async with self.database.connection() as connection:
            rows = await connection.fetch("SELECT description FROM globex.company_data")
            made = await connection.fetch(
                "SELECT FROM pg_class WHERE relname = 'injected' UNION ALL"
                " SELECT FROM pg_namespace WHERE nspname = 'injected'"
            )
        if [row["description"] for row in rows] != [SECRET] or made:
            return f"{attack} changed what is not its own"
        return None


@pytest.fixture
async def targets(roles_settings: Settings) -> AsyncIterator[tuple[Target, Target]]:
    """The same tenants through blocks with a role, and for comparison without one."""
    without = replace(roles_settings, role_per_tenant=False)
    async with (
        await Database.open(roles_settings, max_size=1) as with_roles,
        await Database.open(without, max_size=1) as open_database,
    ):
        acme = await get_tenant(with_roles, parse_slug("acme"))
        async with with_roles.tenant_connection(await get_tenant(with_roles, parse_slug("globex"))) as connection:
            await connection.execute("INSERT INTO company_data (description) VALUES ($1)", SECRET)
            await connection.execute("INSERT INTO app_user (username, password) VALUES ($1, 'x')", SECRET)
            # A naive handler of globex leaves a secret in the text of a statement that the driver keeps prepared.
            await connection.fetch(f"SELECT id FROM company_data WHERE description = '{SECRET}'")
        async with with_roles.connection() as connection:
            await connection.execute("ANALYZE globex.company_data")
        secrets = [SECRET, "globex", "quart_tenants_"]
        yield Target(with_roles, acme, secrets), Target(open_database, acme, secrets)


async def attack_fetch(target: Target, sql: str, *arguments: str) -> Outcome:
    """Run *sql* by fetch in one of acme's blocks."""
    return await _attack(target, lambda connection: connection.fetch(sql, *arguments))


async def attack_execute(target: Target, sql: str, *arguments: str) -> Outcome:
    """Run *sql* by execute in one of acme's blocks."""
    return await _attack(target, lambda connection: connection.execute(sql, *arguments))


async def _attack(target: Target, run: "Callable[[Connection], Awaitable[object]]") -> Outcome:
    outcome = Outcome()
    try:
        async with target.database.tenant_connection(target.acme) as connection:
            before = await connection.fetchrow("SELECT current_user, current_setting('search_path')")
            answer = await run(connection)
            rows = answer if isinstance(answer, list) else []
            outcome.rows = " ".join(str(value) for row in rows for value in row.values())
            # A handler that goes on in the same block.
            rows = await connection.fetch("SELECT description FROM company_data")
            outcome.rows += " ".join(row["description"] for row in rows)
            if await connection.fetchrow("SELECT current_user, current_setting('search_path')") != before:
                outcome.rows += " quart_tenants_ role or path changed"
    except (asyncpg.PostgresError, asyncpg.InterfaceError, TransactionLostError, DatabaseTimeoutError) as error:
        outcome.error = error
    return outcome


async def test_no_attack_gets_around_the_role(targets: tuple[Target, Target]) -> None:
    """Bound or naively formatted, by fetch or by execute, no attack reads or changes what is another tenant's."""
    with_roles, _ = targets
    escapes = []

    for attack in ATTACKS:
        formatted = f"SELECT description FROM company_data WHERE description = '{attack}'"
        bound = "SELECT description FROM company_data WHERE description = $1"
        for outcome in (
            await attack_fetch(with_roles, bound, attack),
            await attack_execute(with_roles, bound, attack),
        ):
            assert outcome == Outcome()
        for outcome in (await attack_fetch(with_roles, formatted), await attack_execute(with_roles, formatted)):
            escapes.append(await with_roles.find_escape(attack, outcome))
            if attack in STACKED:
                assert "multiple commands" in str(outcome.error)

    assert [escape for escape in escapes if escape is not None] == []


async def test_attacks_without_roles_succeed(targets: tuple[Target, Target]) -> None:
    """The same attacks read the other tenant's row where only the path keeps tenants apart, so the corpus can see."""
    _, without = targets

    async def escapes(attack: str, run: Callable[[Target, str], Awaitable[Outcome]]) -> bool:
        outcome = await run(without, f"SELECT description FROM company_data WHERE description = '{attack}'")
        return await without.find_escape(attack, outcome) is not None

    assert await escapes("' UNION ALL SELECT description FROM globex.company_data --", attack_fetch)
    assert await escapes("' UNION ALL SELECT slug FROM quart_tenants.tenants --", attack_fetch)
    assert await escapes("' UNION ALL SELECT set_config('search_path', 'globex', true) --", attack_fetch)
    assert await escapes(
        "' UNION ALL SELECT query_text FROM globex.company_data AS x (id, query_text) --", attack_fetch
    )
    assert await escapes("'; SET LOCAL search_path TO globex --", attack_execute)
    assert await escapes("'; CREATE TABLE injected () --", attack_execute)


async def test_open_set_config_gets_around_the_role(targets: tuple[Target, Target]) -> None:
    """With set_config() left to everybody, as PostgreSQL has it, one SELECT leaves the role: so it is taken away."""
    with_roles, _ = targets
    attack = (
        "' UNION ALL SELECT set_config('role', 'none', true)"
        " UNION ALL SELECT set_config('search_path', 'globex', true) --"
    )
    sql = f"SELECT description FROM company_data WHERE description = '{attack}'"
    assert await with_roles.find_escape(attack, await attack_fetch(with_roles, sql)) is None

    async with with_roles.database.connection() as connection:
        await connection.execute("GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) TO PUBLIC")

    assert await with_roles.find_escape(attack, await attack_fetch(with_roles, sql)) is not None
