"""The doctor: silent where all is well, through a naive pooler too, and loud where a leak would happen."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import cast

import asyncpg
import pytest

from quart_tenants.errors import LeakError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.doctor.catalogue_checks import Finding, State, refuse_leaks
from quart_tenants.postgres.doctor.examination import examine
from quart_tenants.postgres.doctor.probe_tenants import attack, make_probes, read_probe
from quart_tenants.postgres.roles.owner_role import get_owner
from quart_tenants.postgres.tenants.ready_making import prepare_tenants
from quart_tenants.settings import Settings
from quart_tenants.tenant import RoleName, Tenant
from quart_tenants.testing.databases import new_database
from tests.postgres.conftest import Role
from tests.support.pgbouncer import SWALLOWS_PATH, empty_default_path, needs_pgbouncer, run_pgbouncer
from tests.support.pooler import naive_pooler

pytestmark = pytest.mark.slow

_LIST_LEFT = """
SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, 'quart_tenants_probe_')
UNION ALL SELECT rolname::text FROM pg_roles, quart_tenants.role_setup
WHERE starts_with(rolname, replace(owner_name, '_owner', '_probe'))
"""
_PUBLIC_PATH = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path TO public', current_database()); END $$"
_EMPTY_PATH = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path TO %L', current_database(), ''); END $$"


async def examine_all(settings: Settings) -> dict[str, Finding]:
    """Return what the doctor finds, by check."""
    async with await Database.open(settings, max_size=1) as database:
        return {finding.check: finding async for finding in examine(database, settings=settings)}


def list_checks(findings: dict[str, Finding], *states: State) -> set[str]:
    """Return the checks that came to one of *states*."""
    return {finding.check for finding in findings.values() if finding.state in states}


async def execute(database: Database, statement: str) -> None:
    """Run *statement* as the login role."""
    async with database.connection() as connection:
        await connection.execute(statement)


async def test_doctor_finds_nothing_where_tenants_have_roles(
    roles_settings: Settings, roles_database: Database
) -> None:
    """On a direct connection with roles all checks are well, and no probe stays, nor one of a run that was killed."""
    await execute(roles_database, "CREATE SCHEMA quart_tenants_probe_1_ab_a; CREATE SCHEMA quart_tenants_probe_mine")

    findings = await examine_all(roles_settings)

    assert list_checks(findings, State.LEAK, State.FAILED) == set()
    # The tests log in as a superuser.
    assert list_checks(findings, State.WARNING) == {"login role"}
    assert "each client on a server process of its own" in findings["blocks"].seen
    async with roles_database.connection() as connection:
        assert [row[0] for row in await connection.fetch(_LIST_LEFT)] == ["quart_tenants_probe_mine"]


async def test_probes_go_when_the_doctor_is_interrupted(roles_settings: Settings, roles_database: Database) -> None:
    """A Ctrl-C while the probes are there leaves none of them."""
    inside = asyncio.Event()

    async def probe() -> None:
        async with (
            await Database.open(roles_settings, max_size=1) as database,
            make_probes(database, settings=roles_settings),
        ):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(probe())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async with roles_database.connection() as connection:
        assert await connection.fetch(_LIST_LEFT) == []


@pytest.mark.parametrize("with_roles", [True, False])
async def test_naive_pooler_is_found_out_and_harmless_to_blocks(
    roles_settings: Settings, roles_database: Database, with_roles: bool
) -> None:
    """Behind a pooler that resets nothing sessions leak, which is a warning, and blocks on one backend do not."""
    url = roles_settings.required_database_url
    # On a busy machine the pooler's one turn is waited for.
    settings = replace(roles_settings, connect_timeout=60, role_per_tenant=with_roles)
    async with naive_pooler(url) as pooled_url:
        naive = await examine_all(replace(settings, database_url=pooled_url))
    await execute(roles_database, _EMPTY_PATH)
    async with naive_pooler(url) as pooled_url:
        mended = await examine_all(replace(settings, database_url=pooled_url))

    # It drops the empty path that we ask for when we connect.
    assert list_checks(naive, State.LEAK, State.FAILED) == {"default path"}
    for findings in (naive, mended):
        assert findings["session settings"].state is State.WARNING
        assert findings["prepared statements"].state is State.WARNING
        assert findings["prepared statements"].remedy.startswith("none needed")
        assert findings["blocks"].state is State.OK
        assert "on shared server processes" in findings["blocks"].seen
    assert list_checks(mended, State.LEAK, State.FAILED) == set()


async def test_own_sessions_are_looked_for(settings: Settings, server_url: str, direct_url: str) -> None:
    """Behind a pooler the other URL has to be set, and to lead to the same database."""
    await empty_default_path(direct_url)
    async with naive_pooler(direct_url) as url, new_database(server_url) as elsewhere:
        pooled = replace(settings, database_url=url)
        unset, right, wrong = [
            (await examine_all(replace(pooled, direct_database_url=direct)))["own sessions"]
            for direct in (None, direct_url, elsewhere)
        ]

    assert (unset.state, right.state, wrong.state) == (State.WARNING, State.OK, State.FAILED)
    assert "TENANTS_DIRECT_DATABASE_URL" in unset.remedy
    assert "TENANTS_DIRECT_DATABASE_URL leads to database" in wrong.seen


@needs_pgbouncer
@pytest.mark.parametrize(("mode", "state"), [("transaction", State.OK), ("session", State.WARNING)])
async def test_mode_of_pgbouncer_is_seen(settings: Settings, direct_url: str, mode: str, state: State) -> None:
    """In transaction mode nothing leaks, and the doctor is content; session mode is named by what it does."""
    await empty_default_path(direct_url)
    async with run_pgbouncer(direct_url, pool_mode=mode, default_pool_size="4", **SWALLOWS_PATH) as bouncer:
        findings = await examine_all(replace(settings, database_url=bouncer.url(direct_url), driver_mode="auto"))

    assert list_checks(findings, State.LEAK, State.FAILED) == set()
    assert findings["pooler"].state is state
    assert ("set pool_mode = transaction" in findings["pooler"].remedy) is (mode == "session")


class RememberingDatabase:
    """A naive database: it sets the path for the session, and remembers for which tenant it did so last."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection
        self._tenant: Tenant | None = None

    @asynccontextmanager
    async def tenant_connection(self, tenant: Tenant) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """Lend the connection."""
        if self._tenant != tenant:
            await self._connection.execute(f"SET search_path TO {tenant.schema.quoted}")
            self._tenant = tenant
        yield self._connection


async def test_naive_blocks_are_caught_on_a_shared_backend(settings: Settings, database: Database) -> None:
    """The probes see a foreign row where a client remembers the path that it has set, and a pooler stands between."""
    async with AsyncExitStack() as stack:
        pooled_url = await stack.enter_async_context(naive_pooler(settings.required_database_url))
        probes = await stack.enter_async_context(make_probes(database, settings=settings))
        naive = []
        for _ in range(2):
            connection = await asyncpg.connect(pooled_url, statement_cache_size=0)
            stack.push_async_callback(connection.close)
            naive.append(RememberingDatabase(connection))

        rows = [
            await read_probe(cast("Database", client), probe)
            for client, probe in (*zip(naive, probes, strict=True), (naive[0], probes[0]))
        ]

    assert len({row["backend"] for row in rows}) == 1
    assert [row["stamps"] for row in rows] == [[probes[0].stamp], [probes[1].stamp], [probes[1].stamp]]


async def test_attack_without_roles_succeeds(settings: Settings, database: Database) -> None:
    """What the doctor tries against a role succeeds where there is none."""
    async with make_probes(database, settings=settings) as (probe, victim):
        succeeded = await attack(database, probe, victim)

    assert len(succeeded) == 6


async def test_clocks_that_differ_are_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions and the trash go by both clocks, so an operator should know."""
    assert (await examine_all(settings))["clocks"].state is State.OK
    true = time.time

    monkeypatch.setattr(time, "time", lambda: true() - 90)

    clocks = (await examine_all(settings))["clocks"]
    assert clocks.state is State.WARNING
    assert "behind the server's" in clocks.seen


async def test_ready_tenant_is_looked_at_like_any_other(settings: Settings, database: Database) -> None:
    """Whoever may look into it would see the rows of the tenant that takes it."""
    await prepare_tenants(database, settings=replace(settings, ready_tenants=1))
    assert (await examine_all(settings))["grants"].state is State.OK

    await execute(database, "GRANT USAGE ON SCHEMA quart_tenants_ready_1 TO PUBLIC")

    grants = (await examine_all(settings))["grants"]
    assert grants.state is State.LEAK
    assert "PUBLIC on quart_tenants_ready_1" in grants.seen


async def test_open_grants_are_leaks(settings: Settings, database: Database, role: Role) -> None:
    """What everybody may look into is a leak, and what another role may, a warning."""
    await refuse_leaks(database, settings=settings)
    await execute(database, f"GRANT USAGE ON SCHEMA acme TO {role.name}")
    assert (await examine_all(settings))["grants"].state is State.WARNING
    await refuse_leaks(database, settings=settings)
    assert "path settings" not in await examine_all(settings)

    await execute(database, f"GRANT USAGE ON SCHEMA acme TO PUBLIC; {_PUBLIC_PATH}")

    findings = await examine_all(settings)
    grants = findings["grants"]
    # Connections of ours ask for an empty path. Those of others do not.
    assert findings["path settings"].state is State.WARNING
    assert findings["default path"].state is State.OK
    assert grants.state is State.LEAK
    assert "PUBLIC on acme" in grants.seen
    with pytest.raises(LeakError, match="REVOKE"):
        await refuse_leaks(database, settings=settings)


async def test_doctor_without_rights_tells_so(settings: Settings, database: Database, role: Role) -> None:
    """A role that may not make schemas gets every other check, and a warning for the probes."""
    await execute(
        database,
        f"GRANT USAGE ON SCHEMA quart_tenants TO {role.name}; "
        f"GRANT SELECT ON ALL TABLES IN SCHEMA quart_tenants TO {role.name}",
    )

    findings = await examine_all(replace(settings, database_url=role.put_into(settings.required_database_url)))

    assert findings["probes"].state is State.WARNING
    assert findings["login role"].state is State.OK
    # It could not serve: a login writes.
    assert list_checks(findings, State.LEAK, State.FAILED) == {"registry's rights"}


async def test_table_of_another_role_is_told_beside_a_missing_role(
    roles_settings: Settings, roles_database: Database
) -> None:
    """What somebody made by hand in one tenant's schema is a warning, also while another tenant has no role."""
    await execute(roles_database, "CREATE TABLE acme.by_hand ()")
    alone = await examine_all(roles_settings)

    await execute(roles_database, "UPDATE quart_tenants.tenants SET role_name = NULL WHERE slug = 'globex'")
    both = await examine_all(roles_settings)

    assert list_checks(alone, State.LEAK, State.FAILED) == set()
    assert list_checks(both, State.LEAK) == {"tenants' roles"}
    for findings in (alone, both):
        assert findings["tenants' tables"].state is State.WARNING
        assert findings["tenants' tables"].seen.endswith("another owner: acme")


async def test_lost_right_of_the_owner_is_no_leak(roles_settings: Settings, roles_database: Database) -> None:
    """Where only we lack what everybody has lost, the doctor says so, and nobody is kept from serving."""
    async with roles_database.connection() as connection:
        owner = await get_owner(connection)
    await execute(
        roles_database,
        f"REVOKE EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) FROM {owner.quoted}",
    )

    rights = (await examine_all(roles_settings))["everybody's rights"]

    assert rights.state is State.FAILED
    assert "lacks set_config()" in rights.seen
    assert "GRANT EXECUTE" in rights.remedy
    await refuse_leaks(roles_database, settings=roles_settings)


async def test_tenants_role_with_more_rights_is_a_leak(roles_settings: Settings, roles_database: Database) -> None:
    """Whatever one tenant's role was given keeps everybody from serving, and the remedy that is told mends it."""
    async with roles_database.connection() as connection:
        rows = await connection.fetch("SELECT role_name FROM quart_tenants.tenants ORDER BY id")
        first, second = (RoleName(row["role_name"]).quoted for row in rows[:2])
        database_name = await connection.fetchval("SELECT current_database()")
    assert (await examine_all(roles_settings))["roles' rights"].state is State.OK

    for strength, told in (
        (f"GRANT {second} TO {first}", "is a member of"),
        (f"GRANT pg_read_all_data TO {first}", "is a member of pg_read_all_data"),
        (f"ALTER ROLE {first} SUPERUSER", "has SUPERUSER"),
        (f"ALTER ROLE {first} BYPASSRLS LOGIN", "has BYPASSRLS, LOGIN"),
        (f"ALTER ROLE {first} CREATEROLE", "has CREATEROLE"),
        (
            f"GRANT EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) TO {first}",
            r"has EXECUTE on FUNCTION .*set_config\(",
        ),
        (f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) TO {first}", "pg_read_file"),
        (f"GRANT UPDATE ON pg_catalog.pg_settings TO {first}", "has UPDATE on pg_catalog.pg_settings"),
        (f"GRANT TEMPORARY ON DATABASE {database_name} TO {first}", "has TEMPORARY on DATABASE"),
    ):
        await execute(roles_database, strength)
        with pytest.raises(LeakError, match=told) as raised:
            await refuse_leaks(roles_database, settings=roles_settings)

        remedy = str(raised.value).partition("superuser run: ")[2].removesuffix(" (the command doctor tells all)")
        await execute(roles_database, remedy)
        await refuse_leaks(roles_database, settings=roles_settings)
