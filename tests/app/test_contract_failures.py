"""The contract, part four: what goes wrong on our side."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from quart_tenants.testing.databases import FAST_AND_FORGETFUL
from tests.support.databases import REFERENCE_FILES, fill_template
from tests.support.patience import measure_until, wait_until
from tests.support.processes import QUICK_PASSWORDS, Server, run_server

pytestmark = pytest.mark.slow


@pytest.fixture
async def small_server(database_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    """A server with one connection, patient for a short time only."""
    with run_server(
        database_url,
        tmp_path,
        QUART_TENANTS_POOL_MAX_SIZE="1",
        QUART_TENANTS_ACQUIRE_TIMEOUT="0.3",
        QUART_TENANTS_COMMAND_TIMEOUT="5",
    ) as server:
        yield server


@contextlib.asynccontextmanager
async def locked_data(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Keep every query of company1's data waiting."""
    blocker = await asyncpg.connect(database_url)
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE company1.company_data")
            yield blocker
    finally:
        await blocker.close()


def assert_try_again(answer: httpx.Response, code: str) -> None:
    """Assert that *answer* is a 503 problem with *code*, and says when to come back."""
    assert (answer.status_code, answer.json()["code"]) == (503, code)
    assert int(answer.headers["retry-after"]) > 0


async def test_exhausted_pool_gets_503(small_server: Server, database_url: str) -> None:
    """With every connection in use the next request is 503, and the one after that is served."""
    async with small_server.member() as client, small_server.tenant("company1") as other:
        other.cookies = client.cookies
        async with locked_data(database_url) as blocker:
            waiting = asyncio.create_task(client.get("/data"))
            await _wait_for_lock_waiter(blocker)
            refused = await other.get("/data")
        served = await waiting

        assert_try_again(refused, "pool_exhausted")
        assert served.status_code == 200
        assert (await client.get("/data")).status_code == 200


async def test_disconnected_client_leaves_no_connection_behind(small_server: Server, database_url: str) -> None:
    """A client that goes away cancels its query, and the only connection serves the next one."""
    async with small_server.member() as client, locked_data(database_url) as blocker:
        async with small_server.tenant("company1") as leaving:
            leaving.cookies = client.cookies
            request = asyncio.create_task(leaving.get("/data"))
            await _wait_for_lock_waiter(blocker)
            request.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await request
        # Another table, so this needs the connection only.
        answer = await client.post("/login", data={"uname": "user_1", "passwd": "foo"})

    assert answer.status_code == 200


async def test_slow_statement_gets_503(database_url: str, tmp_path: Path) -> None:
    """A statement that takes longer than the command timeout is cancelled and answered 503."""
    with run_server(database_url, tmp_path, QUART_TENANTS_COMMAND_TIMEOUT="0.3", **QUICK_PASSWORDS) as server:
        async with server.member() as client, locked_data(database_url):
            answer = await client.get("/data")

    assert_try_again(answer, "database_timeout")


async def test_bug_gets_500_with_a_fixed_text(small_server: Server, database_url: str) -> None:
    """A bug's answer says nothing but where to look: the log has the details under the same request id."""
    async with small_server.member() as client:
        connection = await asyncpg.connect(database_url)
        await connection.execute("ALTER TABLE company1.company_data RENAME COLUMN description TO secret_plan")
        await connection.close()

        answer = await client.get("/data")

    problem = answer.json()
    request_id = problem.pop("request_id")
    assert answer.status_code == 500
    assert problem == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Something went wrong on our side; it was written down under this request_id.",
        "code": "internal_server_error",
    }
    log = small_server.log.read_text()
    assert f"request {request_id} failed: GET /data" in log
    assert "UndefinedColumnError" in log


async def test_registry_that_is_gone_gets_503(small_server: Server, database_url: str) -> None:
    """Without its registry a server is not ready; the probe of the process still answers."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("DROP SCHEMA quart_tenants CASCADE")
    await connection.close()

    async with small_server.client("127.0.0.1") as client:
        assert_try_again(await client.get("/readyz"), "registry_not_ready")
        assert (await client.get("/healthz")).status_code == 200


async def test_database_that_goes_away_gets_503_until_it_is_back(tmp_path: Path) -> None:
    """While the database is down every use of it is 503; the same process serves when it is back."""
    postgres = EmbeddedPostgres(tmp_path / "postgres", options=FAST_AND_FORGETFUL)
    await postgres.start()
    try:
        await fill_template(postgres.url)
        with run_server(postgres.url, tmp_path) as server:
            async with server.member() as client:
                assert (await client.get("/data")).status_code == 200

                await postgres.stop()
                assert_try_again(await client.get("/data"), "database_unavailable")
                assert_try_again(await client.get("/readyz"), "database_unavailable")
                assert (await client.get("/healthz")).status_code == 200

                await postgres.start()
                assert (await client.get("/data")).status_code == 200
                assert (await client.get("/readyz")).status_code == 200
    finally:
        await postgres.stop()


async def test_tenant_made_by_a_command_is_served_within_two_seconds(small_server: Server, database_url: str) -> None:
    """A running worker learns of a change by any other process: made, and dropped again."""
    settings = Settings(migrations_dir=REFERENCE_FILES, database_url=database_url)
    slug = parse_slug("initech")
    async with await Database.open(settings, max_size=1) as database, small_server.tenant("initech") as client:
        assert (await client.get("/data")).status_code == 400

        async def answers(status: int) -> bool:
            return (await client.get("/data")).status_code == status

        await create_tenant(database, slug, "Initech", settings=settings)
        made = await measure_until(functools.partial(answers, 401))
        await drop_tenant(database, slug)
        dropped = await measure_until(functools.partial(answers, 400))

    assert made.is_within(2.0)
    assert dropped.is_within(2.0)


async def _wait_for_lock_waiter(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Return when some statement of this database waits for a lock."""
    query = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
    """

    async def is_waiting() -> bool:
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        return bool(await connection.fetchval(query))

    await wait_until(is_waiting)
