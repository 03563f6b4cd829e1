"""A migration that waits says for whom, one that others have done is theirs, and a refused login is not tried again."""

import asyncio
from dataclasses import replace

import asyncpg
import pytest

from quart_tenants.errors import DatabaseUnavailableError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.fleet.fleet_plan import plan_fleet
from quart_tenants.postgres.fleet.migrate_fleet import migrate_fleet
from quart_tenants.postgres.migrations.migration_alone import _FIND_INVALID_INDEX
from quart_tenants.postgres.migrations.migration_tries import may_succeed_later
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from tests.postgres.conftest import Role
from tests.postgres.fleet.parts import ALL, NO_TRANSACTION, Add, migrate
from tests.support.databases import execute

pytestmark = pytest.mark.slow

ADD_NICKNAME = "ALTER TABLE app_user ADD COLUMN nickname text"
PATIENT = 600.0  # seconds; nobody waits so long
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_locks WHERE NOT granted AND relation = 'acme.app_user'::regclass"


async def migrate_acme(
    database: Database, settings: Settings, react: str, holder: DriverConnection
) -> tuple[list[str], list[str | None]]:
    """Migrate acme, and run *react* on *holder* when the migration waits. Return for whom it waited, and its errors."""
    heard: list[str] = []
    reacting: list[asyncio.Task[str]] = []

    def hear(tenant: Tenant, blockers: str) -> None:
        heard.append(f"{tenant.slug}: {blockers}")
        reacting.append(asyncio.create_task(holder.execute(react)))

    patient = replace(settings, migration_lock_timeout=PATIENT, migration_attempts=1)
    report = await migrate(database, patient, slugs=[Slug("acme")], on_blocked=hear)
    await asyncio.gather(*reacting)
    return heard, [outcome.error for outcome in report.failed]


async def test_migration_that_waits_names_the_transaction_in_its_way(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """The operator reads process, state and statement while it waits, and can act."""
    add("0002_nickname.sql", ADD_NICKNAME)
    holder = await asyncpg.connect(database_url)
    await holder.execute("BEGIN; UPDATE acme.app_user SET username = 'secret'")

    heard, errors = await migrate_acme(database, settings, "COMMIT", holder)

    (told,) = heard
    assert told.startswith(f"acme: table acme.app_user is in use by pid {holder.get_server_pid()} of role ")
    assert "idle in transaction: BEGIN; UPDATE acme.app_user SET username = " in told
    assert "secret" not in told
    assert errors == []
    await holder.close()


async def test_error_of_a_wait_names_the_transaction_in_its_way(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """Who has waited in vain reads for whom."""
    add("0002_nickname.sql", ADD_NICKNAME)
    holder = await asyncpg.connect(database_url)
    await holder.execute("BEGIN; LOCK TABLE acme.app_user IN ACCESS SHARE MODE")

    _, (error,) = await migrate_acme(database, settings, CANCEL, holder)

    assert error is not None
    assert f"; in the way: table acme.app_user is in use by pid {holder.get_server_pid()} of role " in error
    await holder.close()


async def test_index_build_names_the_transaction_that_it_waits_for(
    database: Database, settings: Settings, add: Add, database_url: str
) -> None:
    """It waits for transactions that hold no lock on its table, and does not stand still without a word."""
    add("0002_index.sql", f"{NO_TRANSACTION}CREATE INDEX CONCURRENTLY by_text ON company_data (description)")
    holder = await asyncpg.connect(database_url)
    await holder.execute("BEGIN; INSERT INTO acme.company_data (description) VALUES ('open')")

    heard, errors = await migrate_acme(database, settings, "COMMIT", holder)

    assert [told.partition(" of role")[0] for told in heard] == [
        f"acme: an older transaction is open by pid {holder.get_server_pid()}"
    ]
    assert errors == []
    await holder.close()


async def test_look_for_invalid_indexes_reads_this_tenants_tables_only(
    database: Database, settings: Settings, database_url: str
) -> None:
    """The server goes by indexes of its catalogue, and reads no list of all indexes."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("SET enable_seqscan TO off")
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {_FIND_INVALID_INDEX}", "acme"))
        naive = "\n".join(
            row[0]
            for row in await connection.fetch(
                "EXPLAIN SELECT FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
                " WHERE NOT i.indisvalid AND c.relnamespace = to_regnamespace('acme')"
            )
        )
    finally:
        await connection.close()

    assert "Seq Scan" not in plan
    assert "pg_index_indrelid_index" in plan
    assert "pg_index_indrelid_index" not in naive


async def test_tenant_that_another_run_has_migrated_is_not_counted(
    database: Database, settings: Settings, add: Add
) -> None:
    """A run counts as migrated whom it has migrated; the others were already there."""
    add("0002_nickname.sql", ADD_NICKNAME)
    plan = await plan_fleet(database, settings=settings)
    first = await migrate(database, settings)

    second = await migrate_fleet(database, plan, settings=settings)

    assert sorted(outcome.tenant.slug for outcome in first.migrated) == ALL
    assert second.migrated == []
    assert sorted(outcome.tenant.slug for outcome in second.by_others) == ALL


async def test_refused_login_is_tried_once(settings: Settings, add: Add, database_url: str, role: Role) -> None:
    """A role that may not log in will not be let in by the next try, and other tenants need not hear so, too."""
    add("0002_index.sql", f"{NO_TRANSACTION}CREATE INDEX CONCURRENTLY by_text ON company_data (description)")
    await execute(
        database_url,
        f"GRANT USAGE ON SCHEMA quart_tenants TO {role.name}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA quart_tenants TO {role.name}",
    )
    own = replace(settings, database_url=role.put_into(database_url), migration_attempts=5)
    try:
        async with await Database.open(own, max_size=1) as database:
            await execute(database_url, f"ALTER ROLE {role.name} NOLOGIN")
            report = await migrate(database, own, jobs=1)
    finally:
        await execute(database_url, f"ALTER ROLE {role.name} LOGIN", f"DROP OWNED BY {role.name}")

    (failed,) = report.failed
    assert failed.error is not None
    assert "not permitted to log in" in failed.error
    assert "tried" not in failed.error
    assert len(report.left) == 3


@pytest.mark.parametrize(
    ("cause", "may"),
    [
        (asyncpg.InvalidPasswordError("no"), False),
        (asyncpg.InvalidCatalogNameError("no"), False),
        (asyncpg.CannotConnectNowError("starting up"), True),
        (ConnectionRefusedError(), True),
    ],
)
def test_only_what_may_pass_is_tried_again(cause: Exception, may: bool) -> None:
    """A wrong password stays wrong; a server that starts is there soon."""
    error = DatabaseUnavailableError("cannot connect")
    error.__cause__ = cause

    assert may_succeed_later(error) is may
