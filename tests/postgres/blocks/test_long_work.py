"""Transactions and sessions beside which work is done for long, where the server has limits for them."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from quart_tenants.connection import Connection
from quart_tenants.errors import TenantError
from quart_tenants.postgres.backups import restore_scripts, rows_only
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.long_work import LIFT_LIMITS, stay_open
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.fleet.migrate_tenant import migrate_tenant
from quart_tenants.postgres.migrations import migration_tries
from quart_tenants.postgres.migrations.migration_files import Migration, get_tenant_migrations
from quart_tenants.postgres.rehearsal.scratch_database import scratch_database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from tests.support.databases import set_default

# On a busy machine a process may wait for its turn for longer than half of it.
SHORT = "1s"
LIMITS = ("idle_in_transaction_session_timeout", "idle_session_timeout", "transaction_timeout")
GET_LIMITS = "SELECT name, setting FROM pg_settings WHERE name = ANY ($1::text[])"
WAIT = "DO 'BEGIN PERFORM pg_catalog.pg_sleep(1.3); END'"
GET_VERSION = "SELECT current_setting('server_version_num')::int"


async def read_limits(connection: Connection | DriverConnection) -> dict[str, str]:
    """Return the limits that this version of PostgreSQL has, in milliseconds."""
    return {row["name"]: row["setting"] for row in await connection.fetch(GET_LIMITS, LIMITS)}


@pytest.fixture
async def has_transaction_timeout(database: Database) -> None:
    """Skip where the server has no such limit."""
    async with database.connection() as connection:
        if await connection.fetchval(GET_VERSION) < 170000:
            pytest.skip("transaction_timeout came with PostgreSQL 17")


@pytest.fixture(params=["a block", "a session"])
async def limited(
    request: pytest.FixtureRequest, database_url: str, settings: Settings
) -> AsyncIterator[Callable[[], AbstractAsyncContextManager[Connection | DriverConnection]]]:
    """What lends a connection under all limits that the server has, for which an hour is set."""
    async with await Database.open(settings, max_size=1) as database, database.connection() as connection:
        names = await read_limits(connection)
    for name in names:
        await set_default(database_url, name, "1h")
    async with await Database.open(settings, max_size=1) as database:
        yield database.connection if request.param == "a block" else database.plain_session


async def test_stay_open_lifts_the_limits_of_its_transaction(
    limited: Callable[[], AbstractAsyncContextManager[Connection | DriverConnection]],
) -> None:
    """None of the server's limits ends it. The next transaction has them again."""
    async with limited() as connection:
        before = await read_limits(connection)
        async with connection.transaction():
            await stay_open(connection)
            inside = await read_limits(connection)
    async with limited() as connection:
        after = await read_limits(connection)

    assert {"idle_in_transaction_session_timeout", "idle_session_timeout"} <= set(before)
    assert set(before.values()) == set(after.values()) == {"3600000"}
    assert set(inside.values()) == {"0"}


@pytest.mark.slow
async def test_session_of_our_own_has_no_limits(database_url: str, settings: Settings, alone_only: None) -> None:
    """A session that waits for messages, or builds an index, lives as long as it likes."""
    await set_default(database_url, "idle_session_timeout", "1h")
    async with await Database.open(settings, max_size=1) as database, database.session() as connection:
        assert set((await read_limits(connection)).values()) == {"0"}


@pytest.mark.slow
@pytest.mark.usefixtures("has_transaction_timeout", "alone_only")
@pytest.mark.parametrize("lifted", ["backup restore", ""])
async def test_backup_and_restore_take_longer_than_a_transaction_may(
    database_url: str, settings: Settings, acme: Tenant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifted: str
) -> None:
    """The transactions of psql lift the limit for themselves, too. Negative control: else it ends them."""
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    done = []
    async with await Database.open(settings, max_size=1) as database:
        await backup_tenant(database, acme.slug, first, settings=settings)
        # Each transaction of psql then takes longer than the limit.
        lift = LIFT_LIMITS if lifted else "SELECT WHERE false"
        monkeypatch.setattr(rows_only, "LIFT_LIMITS", f"{lift};\n{WAIT}")
        begin = restore_scripts._BEGIN.replace(LIFT_LIMITS, lift)
        monkeypatch.setattr(restore_scripts, "_BEGIN", f"{begin}{WAIT};\n")
        await set_default(database_url, "transaction_timeout", SHORT)
        with contextlib.suppress(TenantError):
            await backup_tenant(database, acme.slug, second, settings=settings)
            done.append("backup")
        with contextlib.suppress(TenantError):
            await restore_tenant(database, first, Slug("copy"), settings=settings)
            done.append("restore")

    assert " ".join(done) == lifted


@pytest.mark.slow
async def test_rehearsal_leaves_no_database_where_idle_sessions_end(
    database_url: str, settings: Settings, alone_only: None
) -> None:
    """Its first session is idle all the time, so the database is dropped by another one."""
    async with await Database.open(settings, max_size=1) as database:
        await set_default(database_url, "idle_session_timeout", SHORT)
        async with scratch_database(database, settings=settings), database.connection() as connection:
            await connection.execute("SELECT pg_sleep(1.3)")
        async with database.connection() as connection:
            left = await connection.fetch(
                "SELECT datname FROM pg_database WHERE datname LIKE 'quart_tenants_rehearsal%'"
            )

    assert left == []


@pytest.mark.slow
@pytest.mark.usefixtures("has_transaction_timeout")
@pytest.mark.parametrize("is_lifted", [True, False])
async def test_migration_takes_longer_than_a_transaction_may(
    database_url: str,
    settings: Settings,
    acme: Tenant,
    monkeypatch: pytest.MonkeyPatch,
    is_lifted: bool,
) -> None:
    """Its own limits hold, and not those of the server. Negative control: the server's limit ends it otherwise."""
    migrations = [*get_tenant_migrations(settings), Migration(acme.version + 1, "0002_slow.sql", WAIT)]
    if not is_lifted:
        limits = migration_tries._LIMITS.replace("transaction_timeout", "no setting")
        monkeypatch.setattr(migration_tries, "_LIMITS", limits)
    await set_default(database_url, "transaction_timeout", SHORT)
    async with await Database.open(settings, max_size=1) as database:
        if is_lifted:
            assert (await migrate_tenant(database, acme, migrations, settings=settings)).version == acme.version + 1
        else:
            with pytest.raises(TenantError, match="transaction timeout"):
                await migrate_tenant(database, acme, migrations, settings=settings)
