"""Promise: a block may be killed or cancelled at every message of its protocol, and nothing is lost or left behind.

A proxy counts the messages of one undisturbed block. Then the same block is disturbed once at each of them.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import asyncpg
import pytest

from quart_tenants.errors import DatabaseUnavailableError, TenantError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.isolation.lenders import Lender, open_naive_pool, set_path_and_forget
from tests.isolation.probes import LEAVE_TRACES, find_traces
from tests.support.tcp_proxy import Direction, TcpProxy
from tests.support.web_lender import WebLender

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

SIZE = 2
SHARE = 1
ADD = "INSERT INTO company_data (description) VALUES ($1)"
COUNT = "SELECT count(*) FROM company_data WHERE description = $1"
LIST = "SELECT description FROM company_data"

_stamps = itertools.count()


async def read(connection: "Connection", stamp: str) -> None:
    """Only look."""
    await connection.fetch(LIST)


async def write(connection: "Connection", stamp: str) -> None:
    """Add a row, and be careless with the connection."""
    await connection.execute(ADD, stamp)
    await connection.execute(LEAVE_TRACES)


async def fail_in_a_savepoint(connection: "Connection", stamp: str) -> None:
    """Add a row, and do what goes wrong in a savepoint."""
    await connection.execute(ADD, stamp)
    with contextlib.suppress(asyncpg.UndefinedTableError):
        async with connection.transaction():
            await connection.execute(ADD, f"{stamp} undone")
            await connection.execute("SELECT 1 FROM nowhere")


Body = Callable[["Connection", str], Awaitable[None]]
Run = Callable[["Field", Lender, Body, str], Awaitable[None]]
ROWS_OF: dict[Body, int] = {read: 0, write: 1, fail_in_a_savepoint: 1}


@dataclass
class Findings:
    """What went wrong, by the message at which the block was disturbed."""

    runs: int = 0
    completed: int = 0
    traces: dict[str, dict[str, str]] = field(default_factory=dict)
    foreign_rows: list[str] = field(default_factory=list)
    lost_slots: list[str] = field(default_factory=list)
    wrong_rows: list[str] = field(default_factory=list)


@dataclass
class Field:
    """Where the blocks run: a proxy, tenants, and a look at the tables past the proxy."""

    proxy: TcpProxy
    acme: Tenant
    globex: Tenant
    direct: "asyncpg.Connection[asyncpg.Record]"
    login: str


@pytest.fixture
async def ground(database_url: str, direct_url: str, acme: Tenant, globex: Tenant) -> AsyncIterator[Field]:
    """A proxy in front of the test's database."""
    direct = await asyncpg.connect(direct_url)
    async with TcpProxy(database_url) as proxy:
        yield Field(proxy, acme, globex, direct, await direct.fetchval("SELECT session_user"))
    await direct.close()


async def run_block(ground: Field, lend: Lender, body: Body, stamp: str) -> None:
    """Run *body* in one block of acme."""
    async with lend(ground.acme) as connection:
        await body(connection, stamp)


async def run_until_it_succeeds(ground: Field, lend: Lender, body: Body, stamp: str) -> None:
    """Do what nobody may who writes: try again when the connection was lost."""
    with contextlib.suppress(DatabaseUnavailableError):
        await run_block(ground, lend, body, stamp)
        return
    await run_block(ground, lend, body, stamp)


async def disturb_at_every_message(ground: Field, lend: Lender, body: Body, run: Run = run_block) -> Findings:
    """Run *body* in a block of acme undisturbed, and again for each of its messages; then look with globex's eyes."""
    findings = Findings()
    await _use_all_slots(ground, lend, findings, "the start")
    ground.proxy.watch()
    await run(ground, lend, body, "undisturbed")
    counts = dict(ground.proxy.counts)
    directions: tuple[Direction, ...] = ("client", "server")
    for direction in directions:
        for number in range(1, counts[direction] + 1):
            for act in ("kill", "cancel"):
                moment = f"{act} at message {number} of the {direction}"
                stamp = f"row {next(_stamps)}"
                ground.proxy.watch()
                block = asyncio.ensure_future(run(ground, lend, body, stamp))
                if act == "kill":
                    ground.proxy.reset_at(direction, number)
                else:
                    ground.proxy.call_at(direction, number, block.cancel)
                [outcome] = await asyncio.gather(block, return_exceptions=True)
                ground.proxy.unwatch()
                if isinstance(outcome, BaseException) and not isinstance(outcome, _EXPECTED):
                    raise outcome
                findings.runs += 1
                findings.completed += outcome is None
                rows = await ground.direct.fetchval(
                    f"SELECT count(*) FROM acme.company_data WHERE description = '{stamp}'"
                )
                if rows > ROWS_OF[body] or (outcome is None and rows != ROWS_OF[body]):
                    findings.wrong_rows.append(f"{moment}: {rows} rows")
                await _use_all_slots(ground, lend, findings, moment)
    return findings


_EXPECTED = (asyncio.CancelledError, TenantError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


@asynccontextmanager
async def _ending(together: asyncio.Barrier) -> AsyncIterator[None]:
    """Let nobody wait at *together* for whoever fails in the block."""
    try:
        yield
    except BaseException:
        await together.abort()
        raise


async def _use_all_slots(ground: Field, lend: Lender, findings: Findings, moment: str) -> None:
    """Let both tenants have their whole share of the pool at the same time, and look around on each connection."""
    tenants = (ground.acme, ground.globex)
    together = asyncio.Barrier(len(tenants))

    async def look(tenant: Tenant) -> None:
        async with _ending(together), lend(tenant) as connection:
            await together.wait()
            if traces := await find_traces(connection, tenant, ground.login):
                findings.traces[moment] = traces
            # The rows are acme's.
            if tenant is ground.globex and await connection.fetchval("SELECT count(*) FROM company_data"):
                findings.foreign_rows.append(moment)

    outcomes = await asyncio.gather(*map(look, tenants), return_exceptions=True)
    findings.lost_slots += [f"{moment}: {outcome!r}" for outcome in outcomes if outcome is not None]


async def open_behind(proxy: TcpProxy, settings: Settings) -> Database:
    """Return a pool behind *proxy*."""
    return await WebLender.open(replace(settings, database_url=proxy.url, pool_max_size=SIZE, tenant_pool_share=SHARE))


@pytest.mark.parametrize("body", ROWS_OF, ids=lambda body: body.__name__)
async def test_disturbed_block_leaves_nothing_and_loses_nothing(ground: Field, settings: Settings, body: Body) -> None:
    """Killed or cancelled at each message: no lost slot, no trace, no foreign row, and a row at most once."""
    async with await open_behind(ground.proxy, settings) as database:
        findings = await disturb_at_every_message(ground, database.tenant_connection, body)
        shares = database._shares
    print(findings)  # noqa: T201  (shown by pytest -n 0 -s)

    assert shares is not None
    assert len(shares) == 0
    assert findings == Findings(runs=findings.runs, completed=findings.completed)
    # Messages before the first and after the last one of the caller's statements are among them.
    assert findings.runs > 40


async def test_naive_block_is_caught_by_the_same_disturbance(ground: Field, direct_url: str) -> None:
    """Negative control: a session-level SET on a connection that is only given back leaves its traces."""
    # Behind a pooler that is shared, such a block may fail before anybody has disturbed it.
    async with TcpProxy(direct_url) as proxy:
        pool = await open_naive_pool(proxy.url, SIZE)
        try:
            findings = await disturb_at_every_message(replace(ground, proxy=proxy), set_path_and_forget(pool), write)
        finally:
            pool.terminate()

    assert findings.traces


async def test_retried_write_is_caught_by_the_same_disturbance(ground: Field, settings: Settings) -> None:
    """Negative control: a write that is tried again after a loss is there twice when only COMMIT's answer was lost."""
    async with await open_behind(ground.proxy, settings) as database:
        findings = await disturb_at_every_message(ground, database.tenant_connection, write, run_until_it_succeeds)

    assert any(finding.endswith("2 rows") for finding in findings.wrong_rows)
