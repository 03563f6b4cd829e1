"""Connections to a PostgreSQL that is reached by TLS: the same promises, in as few packets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
import uvloop

from quart_tenants.errors import DatabaseUnavailableError, SettingError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant, parse_slug
from tests.support.patience import DEADLINE
from tests.support.tcp_proxy import TcpProxy
from tests.support.timings import WARM
from tests.support.tls_front import TlsFront
from tests.support.web_lender import WebLender

READ = "SELECT description FROM company_data"
ADD = "INSERT INTO company_data (description) VALUES ($1)"
MODES = ["require", "verify-full"]


@pytest.fixture
def timings() -> Timings:
    """Let connections stay warm however slow the machine is, and let nobody tidy meanwhile."""
    return WARM


@pytest.fixture
async def front(database_url: str, tmp_path: Path) -> AsyncIterator[TlsFront]:
    """TLS in front of the test's database."""
    async with TlsFront(database_url, tmp_path) as front:
        yield front


@pytest.fixture(params=MODES)
async def encrypted(request: pytest.FixtureRequest, front: TlsFront, settings: Settings) -> AsyncIterator[Database]:
    """A pool of one connection, which is encrypted."""
    url = f"{front.url}?sslmode={request.param}"
    if request.param == "verify-full":
        url += f"&sslrootcert={front.authority}"
    async with await WebLender.open(replace(settings, database_url=url), max_size=1, timings=WARM) as database:
        yield database


async def read(database: Database, tenant: Tenant) -> list[str]:
    """Return *tenant*'s rows, in a block of their own."""
    async with database.tenant_connection(tenant) as connection:
        return [row["description"] for row in await connection.fetch(READ)]


async def add(database: Database, tenant: Tenant, description: str) -> None:
    """Give *tenant* a row."""
    async with database.tenant_connection(tenant) as connection:
        await connection.execute(ADD, description)


@pytest.mark.usefixtures("fast_driver_only")
async def test_encrypted_read_waits_once(front: TlsFront, encrypted: Database, acme: Tenant, globex: Tenant) -> None:
    """BEGIN and path go ahead of a read and COMMIT behind, in what is encrypted, also when the tenant changes."""
    for tenant in (acme, globex, acme, globex):
        await read(encrypted, tenant)
    front.count_answers()

    for tenant in (acme, acme, globex, acme, globex):
        await read(encrypted, tenant)

    assert front.count_answers() == 5
    assert front.sessions == 1
    # Negative control: what writes waits for its BEGIN, its statement and its COMMIT.
    async with encrypted.tenant_connection(acme) as connection:
        await connection.execute("INSERT INTO company_data (description) VALUES ('x')")
    assert front.count_answers() == 3


async def test_tenants_alternate_on_an_encrypted_connection(
    front: TlsFront, encrypted: Database, acme: Tenant, globex: Tenant
) -> None:
    """Each block sees the rows of its tenant, whether it reads or writes and whoever came before."""
    seen = []
    for number in range(4):
        for tenant in (acme, globex):
            await add(encrypted, tenant, f"{tenant.slug} {number}")
            seen.append(await read(encrypted, tenant))

    assert seen == [[f"{slug} {n}" for n in range(last + 1)] for last in range(4) for slug in ("acme", "globex")]
    assert front.sessions == 1


async def test_encrypted_block_that_fails_is_undone(encrypted: Database, acme: Tenant, globex: Tenant) -> None:
    """An error, of the server or of the handler, takes back what its block wrote, and the connection stays well."""
    with pytest.raises(asyncpg.UndefinedTableError):
        async with encrypted.tenant_connection(acme) as connection:
            await connection.execute(ADD, "lost")
            await connection.execute("SELECT FROM no_table")
    with pytest.raises(asyncpg.UndefinedTableError):
        async with encrypted.tenant_connection(acme) as connection:
            await connection.fetch("SELECT FROM no_table")
    with pytest.raises(LookupError):
        async with encrypted.tenant_connection(acme) as connection:
            await connection.execute(ADD, "lost")
            raise LookupError

    assert await read(encrypted, acme) == await read(encrypted, globex) == []


async def test_encrypted_block_that_is_cancelled_is_undone(
    encrypted: Database, database: Database, acme: Tenant, globex: Tenant
) -> None:
    """A cancellation ends the server's work, by a second encrypted connection, and takes back what was written."""
    backend = asyncio.get_running_loop().create_future()

    async def sleep() -> None:
        async with encrypted.tenant_connection(acme) as connection:
            await connection.execute(ADD, "lost")
            backend.set_result(connection.get_server_pid())
            await connection.execute("SELECT pg_sleep(600)")

    task = asyncio.create_task(sleep())
    pid = await backend
    async with asyncio.timeout(DEADLINE), database.connection() as connection:
        while not await connection.fetchval("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1", pid):
            await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await read(encrypted, acme) == await read(encrypted, globex) == []
    async with asyncio.timeout(DEADLINE), database.connection() as connection:
        while await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state <> 'idle'", pid
        ):
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("fast_driver_only")
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_each_event_loop_encrypts(
    database_url: str, tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """What goes ahead does so on the loop of Python and on the fast one."""

    async def use() -> tuple[int, int]:
        async with TlsFront(database_url, tmp_path) as front:
            settings = Settings(database_url=f"{front.url}?sslmode=verify-full&sslrootcert={front.authority}")
            async with await WebLender.open(settings, max_size=1, timings=WARM) as database:
                acme = await get_tenant(database, parse_slug("acme"))
                for _ in range(2):
                    await read(database, acme)
                front.count_answers()
                await read(database, acme)
                return front.count_answers(), front.sessions

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(use()) == (1, 1)


@pytest.mark.parametrize("certificate", ["other name", "other authority"])
async def test_stranger_is_refused(database_url: str, settings: Settings, tmp_path: Path, certificate: str) -> None:
    """With `verify-full` a server must have a certificate for its name, from who is trusted."""
    name = "db.example.com" if certificate == "other name" else "127.0.0.1"
    async with TlsFront(database_url, tmp_path, name=name) as front:
        authority = front.authority
        if certificate == "other authority":
            (tmp_path / "other").mkdir()
            authority = TlsFront(database_url, tmp_path / "other").authority
        url = f"{front.url}?sslmode=verify-full&sslrootcert={authority}"

        with pytest.raises(DatabaseUnavailableError, match="certificate verify failed"):
            await WebLender.open(replace(settings, database_url=url), max_size=1, timings=WARM)

        # Negative control: without the check it is let in.
        blind = replace(settings, database_url=f"{front.url}?sslmode=require")
        async with (
            await WebLender.open(blind, max_size=1, timings=WARM) as database,
            database.connection() as connection,
        ):
            assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
async def test_missing_root_certificate_is_named(
    front: TlsFront, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Where the server is to be verified by nothing, the error names the certificate, and where to write its path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    url = f"{front.url}?sslmode={mode}"

    with pytest.raises(SettingError, match=r"no root certificate .* add sslrootcert="):
        await WebLender.open(replace(settings, database_url=url))

    # Control: another mistake in the URL is another error.
    with pytest.raises(SettingError, match="check its port and its options"):
        await WebLender.open(replace(settings, database_url=f"{front.url}?sslmode=nonsense"))
    with pytest.raises(DatabaseUnavailableError, match="with the files that it names"):
        await WebLender.open(replace(settings, database_url=f"{url}&sslrootcert={tmp_path}/missing"))


async def test_server_without_tls_is_refused_where_it_is_required(database_url: str, settings: Settings) -> None:
    """`sslmode=require` never falls back to plain text, which asyncpg's default for TCP does."""
    async with TcpProxy(database_url) as proxy:
        bare = proxy.url.partition("?")[0]

        with pytest.raises(DatabaseUnavailableError):
            await WebLender.open(replace(settings, database_url=f"{bare}?sslmode=require"), max_size=1, timings=WARM)

        # Negative control.
        async with (
            await WebLender.open(replace(settings, database_url=bare), max_size=1, timings=WARM) as database,
            database.connection() as connection,
        ):
            assert await connection.fetchval("SELECT 1") == 1
