"""A session of its own: what needs one is refused behind a pooler, and has it at TENANTS_DIRECT_DATABASE_URL."""

import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from quart_tenants.errors import DatabaseRefusedError, SettingError, TenantError
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.messages.message_hub import MessageHub
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from quart_tenants.testing.databases import new_database
from tests.support.pooler import naive_pooler
from tests.support.web_lender import WebLender

pytestmark = pytest.mark.slow

_LOCK = "SELECT pg_advisory_lock(7)"
_LIST_LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


@pytest.fixture
async def pooled(settings: Settings, direct_url: str) -> AsyncIterator[Settings]:
    """Settings whose database is behind a pooler."""
    async with naive_pooler(direct_url) as url:
        yield replace(settings, database_url=url)


async def use_session(settings: Settings, tenant: Tenant) -> list[str]:
    """Return what a session of *tenant* sees."""
    async with await WebLender.open(settings, max_size=1) as database, database.session(tenant.schema) as session:
        return list(await session.fetchval("SELECT current_schemas(false)"))


async def test_session_goes_around_the_pooler(pooled: Settings, direct_url: str, acme: Tenant) -> None:
    """Where the other URL is set, it serves what runs outside a transaction, and programs."""
    direct = replace(pooled, direct_database_url=direct_url)

    assert await use_session(direct, acme) == ["acme"]
    async with await WebLender.open(direct, max_size=1) as database:
        assert await database.get_own_url("a test") == direct_url


async def test_session_behind_a_pooler_is_refused(pooled: Settings, acme: Tenant) -> None:
    """Without the other URL nothing is set on a session that others use, too; the error names the setting."""
    with pytest.raises(DatabaseRefusedError, match="TENANTS_DIRECT_DATABASE_URL"):
        await use_session(pooled, acme)


async def test_lock_of_a_session_stays_at_the_pooler(pooled: Settings, direct_url: str) -> None:
    """Negative control: whoever does not ask strands its lock on a session of the pooler's."""
    naive = await asyncpg.connect(pooled.required_database_url, statement_cache_size=0)
    await naive.execute(_LOCK)
    naive.terminate()

    watching = await asyncpg.connect(direct_url)
    assert await watching.fetchval(_LIST_LOCKS) == 1
    await watching.close()


async def test_other_url_that_leads_to_a_pooler_is_refused(pooled: Settings, acme: Tenant) -> None:
    """Both URLs may not lead to poolers."""
    both = replace(pooled, direct_database_url=pooled.database_url)

    with pytest.raises(SettingError, match="TENANTS_DIRECT_DATABASE_URL leads to a pooler"):
        await use_session(both, acme)


async def test_other_url_of_another_database_is_refused(pooled: Settings, server_url: str, acme: Tenant) -> None:
    """Neither a migration, nor a backup, nor a listener works in a database that is not the tenants'."""
    async with new_database(server_url) as url:
        elsewhere = replace(pooled, direct_database_url=url)
        for use in (use_session, _back_up, _listen):
            with pytest.raises(SettingError, match="TENANTS_DIRECT_DATABASE_URL leads to database"):
                await use(elsewhere, acme)


async def test_backup_goes_around_the_pooler(pooled: Settings, direct_url: str, acme: Tenant) -> None:
    """The snapshot is the pooled transaction's, and the program that reads it has a session of its own."""
    with pytest.raises(TenantError, match="TENANTS_DIRECT_DATABASE_URL"):
        await _back_up(pooled, acme)

    assert await _back_up(replace(pooled, direct_database_url=direct_url), acme) > 0


async def _back_up(settings: Settings, tenant: Tenant) -> int:
    """Return how many bytes the backup has."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "acme.tar"
        async with await WebLender.open(settings, max_size=1) as database:
            await backup_tenant(database, tenant.slug, file, settings=settings)
        return file.stat().st_size


async def _listen(settings: Settings, tenant: Tenant) -> None:
    hub = MessageHub(settings, "quart_tenants_test")
    try:
        await hub.subscribe(tenant.id, "topic", lambda: True)
    finally:
        await hub.close()
