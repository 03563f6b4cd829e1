"""Many blocks of many tenants on few connections, disturbed in every way that is known, with every row checked."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg

from quart_tenants.errors import DatabaseUnavailableError, PoolExhaustedError, TenantError, TenantOverShareError
from quart_tenants.postgres.driver.connection_types import DRIVER_ERRORS
from quart_tenants.tenant import Tenant
from tests.isolation.probes import find_traces
from tests.support.patience import DEADLINE

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection
    from tests.isolation.lenders import Lender

SABOTEUR = "saboteur"
"""The application_name of who kills backends, and is left alone."""

_STAMPS = "SELECT owner FROM stamps LIMIT 20"
_MISTAKE = "SELECT 1 / (count(*) - count(*)) FROM stamps"
_ADD_STAMP = "INSERT INTO stamps (owner) VALUES ($1)"
_KILL_ONE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> $1
ORDER BY random() LIMIT 1
"""

# What careless handlers leave on their connection. Each on its own, so that each is missed by some reset.
_CARELESS = (
    "SET statement_timeout TO 54321",
    "SET app.secret TO 'mine'",
    "SET search_path TO public",
    "SELECT set_config('search_path', 'public', false)",
    "PREPARE mine AS SELECT owner FROM stamps",
    "LISTEN my_news",
    "SELECT pg_try_advisory_lock(42)",
    "DECLARE my_rows CURSOR WITH HOLD FOR SELECT owner FROM stamps LIMIT 1",
    "CREATE TEMP TABLE stamps_of_mine (owner text)",
)
_CARELESS_SUPERUSER = ("SET ROLE pg_monitor", "SET SESSION AUTHORIZATION pg_monitor")


@dataclass(frozen=True)
class Mix:
    """How often what happens, of one block. Times in seconds.

    Attributes:
        probe: Blocks that look for what was left on their connection.
        write: Blocks that add a row.
        careless: Blocks that leave something on their connection.
        savepoint: Blocks that change the path in a savepoint, which is rolled back or released.
        mistake: Blocks of which a statement fails, the first one or a later one.
        fail: Blocks that end by an exception.
        cancel: Blocks that are cancelled at a random moment, which some do not live to see.
        cancel_within: The latest such moment.
        abort: Blocks whose socket is broken under them.
        kill_every: Blocks after which somebody kills a random backend.
        exhaust_every: Blocks after which somebody has the whole pool for a while.
        exhaust_for: How long.
    """

    probe: float = 0.05
    write: float = 0.03
    careless: float = 0.02
    savepoint: float = 0.02
    mistake: float = 0.02
    fail: float = 0.05
    cancel: float = 0.16
    cancel_within: float = 0.006
    abort: float = 0.002
    kill_every: int = 500
    exhaust_every: int = 10_000
    exhaust_for: float = 0.15


@dataclass
class Findings:
    """What a soak saw.

    Attributes:
        blocks: Blocks begun.
        finished: Blocks that ended by themselves.
        cancelled: Blocks that were cut off.
        failed: Blocks that ended by an error of their own, as some are to.
        lost: Blocks whose connection was killed or broken.
        refused: Blocks that found the pool, or their tenant's share of it, exhausted.
        killed: Backends that were killed.
        aborted: Sockets that were broken.
        probed: Blocks that looked for traces.
        foreign_rows: Rows read that another tenant had written.
        traces: What blocks found on their connection, by its kind.
        lost_slots: Connections of the pool that could not be had in the end.
        errors: Any other error that ended a block, by its type.
        first: The first finding, and the seconds until then.
    """

    blocks: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    lost: int = 0
    refused: int = 0
    killed: int = 0
    aborted: int = 0
    probed: int = 0
    foreign_rows: int = 0
    traces: Counter[str] = field(default_factory=Counter)
    lost_slots: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    first: tuple[str, float] | None = None
    _began: float = field(default_factory=time.monotonic, repr=False)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return self.first is None

    def find(self, what: str) -> None:
        """Remember the first finding."""
        if self.first is None:
            self.first = what, time.monotonic() - self._began

    def report(self) -> dict[str, Any]:
        """Return the figures."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


async def register(connection: Any, tenant: Tenant) -> None:
    """Write *tenant*, whose schema may be called anything, into the registry as it is."""
    await connection.execute(
        "INSERT INTO quart_tenants.tenants (id, slug, schema_name, display_name) OVERRIDING SYSTEM VALUE "
        "VALUES ($1, $2, $3, $2)",
        tenant.id,
        tenant.slug,
        tenant.schema.name,
    )


class _MeantError(Exception):
    """What a handler of the app might raise."""


async def make_stamps(url: str, tenants: Sequence[Tenant]) -> None:
    """Give each tenant a row in the registry, a table whose one row names it, and its role what it needs for that."""
    connection = await asyncpg.connect(url)
    try:
        for tenant in tenants:
            schema = tenant.schema.quoted
            await connection.execute(
                f"CREATE SCHEMA IF NOT EXISTS {schema};"
                f"CREATE TABLE {schema}.stamps (owner text NOT NULL);"
                f"INSERT INTO {schema}.stamps VALUES ('{tenant.slug}')"
            )
            await register(connection, tenant)
            if tenant.role is not None:
                role = tenant.role.quoted
                await connection.execute(
                    f"CREATE ROLE {role} NOLOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};"
                    f"GRANT SELECT, INSERT ON {schema}.stamps TO {role}"
                )
    finally:
        await connection.close()


async def count_misplaced_stamps(url: str, tenants: Sequence[Tenant]) -> int:
    """Return how many rows lie in another tenant's table than the one that they name."""
    connection = await asyncpg.connect(url)
    try:
        misplaced = 0
        for tenant in tenants:
            misplaced += await connection.fetchval(
                f"SELECT count(*) FROM {tenant.schema.quoted}.stamps WHERE owner <> $1", str(tenant.slug)
            )
        return misplaced
    finally:
        await connection.close()


class Soak:
    """One soak: *lend* is tried by blocks of *tenants* in a pool of *size* on the database at *url*."""

    def __init__(
        self,
        lend: "Lender",
        tenants: Sequence[Tenant],
        *,
        url: str,
        size: int,
        seed: int,
        mix: Mix | None = None,
        naive: bool = False,
    ) -> None:
        self._lend = lend
        self._tenants = tenants
        self._url = url
        self._naive = naive
        self._size = size
        self._chance = random.Random(seed)  # noqa: S311
        self._mix = mix or Mix()
        self._login = ""
        self._careless: tuple[str, ...] = _CARELESS
        # A few large customers and many small ones (Zipf's law).
        weights = [1 / rank for rank in range(1, len(tenants) + 1)]
        self._drawn = self._chance.choices(tenants, weights, k=10_000)
        self.findings = Findings()

    async def run(self, blocks: int, *, concurrency: int = 16) -> Findings:
        """Run *blocks* blocks, *concurrency* at a time; then look at every connection of the pool.

        The first finding is enough.
        """
        saboteur = await asyncpg.connect(self._url, server_settings={"application_name": SABOTEUR})
        try:
            self._login = await saboteur.fetchval("SELECT session_user")
            if await saboteur.fetchval("SELECT usesuper FROM pg_user WHERE usename = session_user"):
                self._careless += _CARELESS_SUPERUSER
            async with asyncio.TaskGroup() as tasks:
                workers = [tasks.create_task(self._work(blocks)) for _ in range(concurrency)]
                others = [tasks.create_task(self._kill(saboteur)), tasks.create_task(self._exhaust())]
                await asyncio.wait(workers)
                for other in others:
                    other.cancel()
        finally:
            saboteur.terminate()
        if self.findings.clean:
            await self._use_all_connections()
        return self.findings

    async def _work(self, blocks: int) -> None:
        loop = asyncio.get_running_loop()
        findings, chance, mix = self.findings, self._chance, self._mix
        while findings.blocks < blocks and findings.clean:
            findings.blocks += 1
            task = asyncio.create_task(self._run_block(chance.choice(self._drawn)))
            if chance.random() < mix.cancel:
                loop.call_later(chance.random() * mix.cancel_within, task.cancel)
            try:
                await task
                findings.finished += 1
            except asyncio.CancelledError:
                findings.cancelled += 1
            except _MeantError:
                findings.failed += 1
            except (PoolExhaustedError, TenantOverShareError):
                findings.refused += 1
            except DatabaseUnavailableError:
                findings.lost += 1
            except (TenantError, *DRIVER_ERRORS) as error:
                # What a naive lender says to a killed backend is not what it is tried for.
                if not self._naive:
                    findings.errors[repr(error)] += 1
                    findings.find(f"an error: {error!r}")

    async def _run_block(self, tenant: Tenant) -> None:
        chance, mix = self._chance, self._mix
        async with self._lend(tenant) as connection:
            if chance.random() < mix.mistake / 2:
                await self._err(connection, tenant)
            if chance.random() < mix.probe:
                await self._probe(connection, tenant)
            await self._read(connection, tenant)
            draw = chance.random()
            for share, act in (
                (mix.fail, self._fail),
                (mix.write, self._write),
                (mix.careless, self._be_careless),
                (mix.savepoint, self._use_savepoint),
                (mix.mistake / 2, self._err),
                (mix.abort, self._abort),
            ):
                if draw < share:
                    await act(connection, tenant)
                    break
                draw -= share

    async def _read(self, connection: "Connection", tenant: Tenant) -> None:
        rows = await connection.fetch(_STAMPS)
        foreign = sum(row["owner"] != tenant.slug for row in rows)
        if foreign:
            self.findings.foreign_rows += foreign
            self.findings.find(f"a row of another tenant: {tenant.slug} read {rows[0]['owner']!r}")

    async def _probe(self, connection: "Connection", tenant: Tenant) -> None:
        role = None if tenant.role is None else tenant.role.name
        traces = await find_traces(connection, tenant, self._login, role)
        self.findings.probed += 1
        for name, value in traces.items():
            self.findings.traces[name] += 1
            self.findings.find(f"a connection that was not clean: {name} was {value!r} in a block of {tenant.slug}")

    async def _fail(self, connection: "Connection", tenant: Tenant) -> None:
        raise _MeantError

    async def _write(self, connection: "Connection", tenant: Tenant) -> None:
        await connection.execute(_ADD_STAMP, tenant.slug)

    async def _be_careless(self, connection: "Connection", tenant: Tenant) -> None:
        await connection.execute(self._chance.choice(self._careless))

    async def _use_savepoint(self, connection: "Connection", tenant: Tenant) -> None:
        with contextlib.suppress(_MeantError):
            async with connection.transaction():
                await connection.execute("SET LOCAL search_path TO public")
                if self._chance.random() < 0.5:
                    raise _MeantError
                return
        # The path is back where it was.
        await self._read(connection, tenant)

    async def _err(self, connection: "Connection", tenant: Tenant) -> None:
        try:
            await connection.fetch(_MISTAKE)
        except asyncpg.DivisionByZeroError as error:
            raise _MeantError from error

    async def _abort(self, connection: "Connection", tenant: Tenant) -> None:
        self.findings.aborted += 1
        getattr(connection, "_transport").abort()  # noqa: B009  (asyncpg's own)
        await connection.fetch(_STAMPS)

    async def _kill(self, saboteur: "asyncpg.Connection[asyncpg.Record]") -> None:
        killed_at = 0
        while True:
            if self.findings.blocks - killed_at >= self._mix.kill_every:
                killed_at = self.findings.blocks
                self.findings.killed += bool(await saboteur.fetchval(_KILL_ONE, SABOTEUR))
            await asyncio.sleep(0.01)

    async def _exhaust(self) -> None:
        exhausted_at = 0
        while True:
            await asyncio.sleep(0.01)
            if self.findings.blocks - exhausted_at >= self._mix.exhaust_every:
                exhausted_at = self.findings.blocks
                await asyncio.gather(*map(self._hold, self._tenants[: self._size]), return_exceptions=True)

    async def _hold(self, tenant: Tenant) -> None:
        async with self._lend(tenant):
            await asyncio.sleep(self._mix.exhaust_for)

    async def _use_all_connections(self) -> None:
        """Hold every connection of the pool at the same time, each for another tenant, and look at each."""
        outcomes: list[BaseException | None] = []
        try:
            async with asyncio.timeout(DEADLINE):
                # On a busy machine a new connection, or an answer of the registry, may take longer than a block waits.
                # Then all begin again: whoever did so alone would wait for the others for ever.
                passing = DatabaseUnavailableError, asyncio.BrokenBarrierError
                while not outcomes or (
                    any(outcomes) and all(outcome is None or isinstance(outcome, passing) for outcome in outcomes)
                ):
                    outcomes = await self._hold_all_connections()
                    await asyncio.sleep(0.01)
        except TimeoutError as error:
            outcomes.append(error)
        for outcome in outcomes:
            if outcome is not None:
                self.findings.lost_slots += 1
                self.findings.find(f"a lost connection: {outcome!r}")

    async def _hold_all_connections(self) -> list[BaseException | None]:
        together = asyncio.Barrier(self._size)

        async def look(tenant: Tenant) -> None:
            try:
                async with self._lend(tenant) as connection:
                    await together.wait()
                    await self._probe(connection, tenant)
            except BaseException:
                # The others need not wait for this one.
                await together.abort()
                raise

        return await asyncio.gather(*(look(tenant) for tenant in self._tenants[: self._size]), return_exceptions=True)
