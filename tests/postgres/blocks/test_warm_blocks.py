"""Blocks on connections that were used a moment ago: fewer messages, and the same promises."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import pytest

from quart_tenants.errors import DatabaseUnavailableError, TransactionLostError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.driver.fast.statement_effects import Effect, StatementEffects
from quart_tenants.postgres.driver.timings import Timings
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.support.patience import DEADLINE
from tests.support.tcp_proxy import Direction, TcpProxy
from tests.support.timings import WARM
from tests.support.web_lender import WebLender

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

pytestmark = pytest.mark.slow


READ = "SELECT description FROM company_data"
ADD = "INSERT INTO company_data (description) VALUES ($1)"
COUNT_OPEN = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
"""
Act = Callable[["Connection"], Awaitable[object]]


@pytest.fixture
def timings() -> Timings:
    """Let connections stay warm however slow the machine is, and let nobody tidy meanwhile."""
    return WARM


class Wire(TcpProxy):
    """A network that notes who spoke."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.spoke: list[Direction] = []

    async def _meet(self, link: object, direction: Direction) -> None:
        self.spoke.append(direction)
        await super()._meet(link, direction)  # type: ignore[arg-type]

    def count_answers(self) -> int:
        """Return how often the server answered since the last question."""
        count = [who for who, _ in itertools.groupby(self.spoke)].count("server")
        self.spoke.clear()
        return count


@pytest.fixture
async def wire(database_url: str) -> AsyncIterator[Wire]:
    """A network in front of the test's database."""
    async with Wire(database_url) as wire:
        yield wire


@pytest.fixture
async def far(wire: Wire, settings: Settings) -> AsyncIterator[Database]:
    """A pool of one connection behind it."""
    async with await WebLender.open(replace(settings, database_url=wire.url), max_size=1, timings=WARM) as database:
        yield database


async def read(database: Database, tenant: Tenant) -> list[str]:
    """Return *tenant*'s rows, in a block of their own."""
    async with database.tenant_connection(tenant) as connection:
        return [row["description"] for row in await connection.fetch(READ)]


async def warm(database: Database, *tenants: Tenant) -> None:
    """Let the connection know what each of *tenants* reads."""
    for tenant in tenants:
        for _ in range(2):
            await read(database, tenant)


async def get_state(database: Database, pid: int) -> str:
    """Return what PostgreSQL says about the server process *pid*."""
    async with database.connection() as connection:
        state = await connection.fetchval("SELECT state FROM pg_stat_activity WHERE pid = $1", pid)
    return str(state)


@pytest.mark.usefixtures("fast_driver_only")
async def test_warm_read_waits_once(wire: Wire, far: Database, acme: Tenant) -> None:
    """A block with one read waits for one answer: BEGIN and path go ahead of it, and COMMIT behind."""
    await warm(far, acme)
    wire.count_answers()

    for _ in range(5):
        await read(far, acme)

    assert wire.count_answers() == 5


@pytest.mark.usefixtures("fast_driver_only")
async def test_warm_read_of_another_tenant_waits_once(wire: Wire, far: Database, acme: Tenant, globex: Tenant) -> None:
    """The reset between two tenants goes ahead, too."""
    await warm(far, acme, globex)
    wire.count_answers()

    for tenant in (acme, globex, acme, globex):
        await read(far, tenant)

    assert wire.count_answers() == 4


async def test_write_waits_for_its_begin_and_its_commit(wire: Wire, far: Database, acme: Tenant) -> None:
    """BEGIN, the statement, and COMMIT with the reset: what writes is never sent ahead, nor left unheard."""
    await warm(far, acme)
    wire.count_answers()

    async with far.tenant_connection(acme) as connection:
        await connection.execute("INSERT INTO company_data (description) VALUES ('x')")

    assert wire.count_answers() == 3
    assert await read(far, acme) == ["x"]


@pytest.mark.usefixtures("fast_driver_only")
async def test_block_without_a_statement_sends_nothing(wire: Wire, far: Database, acme: Tenant, globex: Tenant) -> None:
    """Entering a warm block and leaving it costs no message, whosever it is and however it ends."""
    await warm(far, acme)
    wire.spoke.clear()

    for tenant in (acme, globex, acme):
        async with far.tenant_connection(tenant):
            pass
        with pytest.raises(LookupError):
            async with far.tenant_connection(tenant):
                raise LookupError

    assert wire.spoke == []
    assert await read(far, acme) == []


@pytest.mark.usefixtures("fast_driver_only")
async def test_read_is_over_with_its_answer(far: Database, database: Database, acme: Tenant) -> None:
    """Inside the block nothing is open any more after a read: no transaction, no lock, no snapshot."""
    await warm(far, acme)

    async with far.tenant_connection(acme) as connection:
        await connection.fetch(READ)
        assert await get_state(database, connection.get_server_pid()) == "idle"
        # Negative control: what does more begins the transaction that lasts to the block's end.
        await connection.execute("SELECT 1")
        assert await get_state(database, connection.get_server_pid()) == "idle in transaction"


# What looks like a read.
DISGUISED = {
    "function that writes": "SELECT add_one()",
    "function in a condition": "SELECT 1 WHERE add_one() IS NULL",
    "WITH that writes": "WITH added AS (INSERT INTO once VALUES (1) RETURNING id) SELECT id FROM added",
    "row lock": "SELECT id FROM once FOR UPDATE",
    "sequence": "SELECT nextval('company_data_id_seq')",
    "advisory lock": "SELECT pg_advisory_xact_lock(1)::text",
    "news": "SELECT pg_notify('news', 'x')::text",
    "setting": "SELECT set_config('app.secret', 'x', true)",
}


async def make_once(database: Database, tenant: Tenant) -> None:
    """Make a table that COMMIT looks after, with one row, and a function that adds the same one."""
    async with database.tenant_connection(tenant) as connection:
        await connection.execute(
            """
            CREATE TABLE once (id int UNIQUE DEFERRABLE INITIALLY DEFERRED);
            INSERT INTO once VALUES (1);
            CREATE FUNCTION add_one() RETURNS int LANGUAGE sql AS 'INSERT INTO once VALUES (1) RETURNING id';
            """
        )


@pytest.mark.parametrize("disguise", DISGUISED)
async def test_disguised_write_is_waited_for(far: Database, database: Database, acme: Tenant, disguise: str) -> None:
    """A block with more than plain reads is not left before its COMMIT is answered and everything is reset."""
    await make_once(far, acme)
    await warm(far, acme)

    with contextlib.suppress(asyncpg.UniqueViolationError):
        async with far.tenant_connection(acme) as connection:
            await connection.fetch(READ)
            await connection.fetchval(DISGUISED[disguise])
            pid = connection.get_server_pid()

    assert await get_state(database, pid) == "idle"


async def _fetch_prepared(connection: "Connection", query: str) -> None:
    statement = await connection.prepare(query)
    await statement.fetch()


async def _fetch_cursor(connection: "Connection", query: str) -> None:
    cursor = await connection.cursor(query)
    await cursor.fetch(2)


async def _write_in_savepoint(connection: "Connection") -> None:
    async with connection.transaction():
        await connection.fetchval("SELECT add_one()")


WRITES: dict[str, Act] = {
    "function": lambda connection: connection.fetchval("SELECT add_one()"),
    "WITH": lambda connection: connection.fetchrow(DISGUISED["WITH that writes"]),
    "RETURNING": lambda connection: connection.fetch("INSERT INTO once VALUES (1) RETURNING id"),
    "execute": lambda connection: connection.execute("INSERT INTO once VALUES (1)"),
    "executemany": lambda connection: connection.executemany("INSERT INTO once VALUES ($1)", [(1,)]),
    "copy": lambda connection: connection.copy_records_to_table("once", records=[(1,)], columns=["id"]),
    "prepared": lambda connection: _fetch_prepared(connection, "INSERT INTO once VALUES (1) RETURNING id"),
    "cursor": lambda connection: _fetch_cursor(connection, "SELECT add_one()"),
    "savepoint": _write_in_savepoint,
}


@pytest.mark.parametrize("way", WRITES)
@pytest.mark.parametrize("after", ["first", "after a read"])
async def test_error_of_commit_is_raised(far: Database, acme: Tenant, way: str, after: str) -> None:
    """A constraint that COMMIT looks after fails the block, by whatever way the row came."""
    await make_once(far, acme)
    await warm(far, acme)

    with pytest.raises(asyncpg.UniqueViolationError):
        async with far.tenant_connection(acme) as connection:
            if after != "first":
                await connection.fetch(READ)
            await WRITES[way](connection)

    assert await read(far, acme) == []


async def test_error_of_commit_is_heard_even_of_what_counts_as_read(
    far: Database, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COMMIT is answered with the statement: nothing depends on knowing for certain what only reads."""
    await make_once(far, acme)
    await warm(far, acme)
    monkeypatch.setattr(StatementEffects, "find", lambda *_: Effect.READS)

    with pytest.raises(asyncpg.UniqueViolationError):
        async with far.tenant_connection(acme) as connection:
            await connection.fetchval("SELECT add_one()")

    async with far.tenant_connection(acme) as connection:
        assert await connection.fetchval("SELECT count(*) FROM once") == 1


async def test_read_only_block_that_was_made_writable_is_waited_for(far: Database, acme: Tenant) -> None:
    """That the server refused to write at first says nothing about the end of the block."""
    await make_once(far, acme)
    await warm(far, acme)

    with pytest.raises(asyncpg.UniqueViolationError):
        async with far.tenant_connection(acme, read_only=True) as connection:
            await connection.execute("SET TRANSACTION READ WRITE")
            await connection.execute("INSERT INTO once VALUES (1)")


async def test_read_only_block_cannot_be_made_writable_by_a_select(far: Database, acme: Tenant) -> None:
    """PostgreSQL refuses that once something was read, so that set_config in a SELECT needs no suspicion."""
    await warm(far, acme)

    with pytest.raises(asyncpg.ActiveSQLTransactionError):
        async with far.tenant_connection(acme, read_only=True) as connection:
            await connection.fetchval("SELECT set_config('transaction_read_only', 'off', true)")


async def test_serializable_transactions_are_waited_for(
    wire: Wire, settings: Settings, database: Database, acme: Tenant
) -> None:
    """Where transactions are serializable by default, what was read is true only if COMMIT says so."""
    async with database.connection() as connection:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation TO serializable")

    async with await WebLender.open(replace(settings, database_url=wire.url), max_size=1, timings=WARM) as far:
        await warm(far, acme)
        async with far.tenant_connection(acme) as connection:
            await connection.fetch(READ)
            pid = connection.get_server_pid()

    assert await get_state(database, pid) == "None"


@pytest.mark.parametrize("way", ["fetch", "prepare", "execute"])
async def test_caught_error_does_not_pass_for_success(far: Database, acme: Tenant, way: str) -> None:
    """A failed first statement that the handler caught dooms the block as any other, and the next one is well."""
    await warm(far, acme)

    with pytest.raises(TransactionLostError):
        async with far.tenant_connection(acme) as connection:
            with pytest.raises(asyncpg.UndefinedTableError):
                await getattr(connection, way)("SELECT 1 FROM nowhere")

    assert await read(far, acme) == []


@pytest.mark.parametrize("caught", [True, False])
async def test_refused_argument_of_the_first_statement_harms_nobody(far: Database, acme: Tenant, caught: bool) -> None:
    """What the driver refuses to send is the handler's error; the block goes on, and the next one, too."""
    query = "SELECT description FROM company_data WHERE id = $1"
    for _ in range(2):
        async with far.tenant_connection(acme) as connection:
            await connection.fetch(query, 1)

    with contextlib.nullcontext() if caught else pytest.raises(asyncpg.DataError):
        async with far.tenant_connection(acme) as connection:
            for argument in ("one", 2**70):
                with pytest.raises(asyncpg.DataError) if caught else contextlib.nullcontext():
                    await connection.fetch(query, argument)
            await connection.execute(ADD, "x")

    assert await read(far, acme) == (["x"] if caught else [])


SLOW = "SELECT count(*) FROM generate_series(1, 2000000)"
# Twice as long a server process may need to begin on a busy machine. The read takes longer.
IMPATIENT = Timings(fresh=60, known=60, tidy_every=60, silence=0.05)


async def test_slow_first_read_keeps_its_connection(settings: Settings, acme: Tenant) -> None:
    """A read that takes long is run once, on the connection that its block has, though others wait for one."""
    eager = replace(settings, acquire_timeout=5)
    async with await WebLender.open(eager, max_size=1, timings=IMPATIENT) as database:
        await warm(database, acme)
        runs = 0

        async def read_slowly() -> tuple[object, bool]:
            nonlocal runs
            async with database.tenant_connection(acme) as connection:
                pid = connection.get_server_pid()
                runs += 1
                return await connection.fetchval(SLOW), connection.get_server_pid() == pid

        outcomes = await asyncio.gather(*(read_slowly() for _ in range(3)))

    assert outcomes == [(2_000_000, True)] * 3


@pytest.mark.usefixtures("fast_driver_only")
async def test_read_cut_off_by_its_time_out_lets_the_block_go_on(far: Database, acme: Tenant) -> None:
    """After a time-out that was caught, what follows is done in the block's transaction, and saved."""
    await warm(far, acme)

    async with far.tenant_connection(acme) as connection:
        pid = connection.get_server_pid()
        with pytest.raises(TimeoutError):
            await connection.fetchval("SELECT count(*) FROM generate_series(1, 100000000)", timeout=0.05)
        assert await connection.fetchval("SELECT current_schemas(false)::text[]") == ["acme"]
        await connection.execute(ADD, "x")
        assert connection.get_server_pid() == pid

    assert await read(far, acme) == ["x"]


async def test_time_out_caught_in_a_slow_network_costs_no_connection(wire: Wire, far: Database, acme: Tenant) -> None:
    """The server may take a second to hear of a cancellation: the block goes on, on its own connection."""
    await warm(far, acme)

    async with far.tenant_connection(acme) as connection:
        pid = connection.get_server_pid()
        await connection.execute(ADD, "x")
        wire.delay_connections(0.6)
        with pytest.raises(TimeoutError):
            async with connection.transaction():
                await connection.execute("SELECT pg_sleep(60)", timeout=0.05)
        await connection.execute(ADD, "y")
        assert connection.get_server_pid() == pid

    assert await read(far, acme) == ["x", "y"]


@pytest.mark.usefixtures("fast_driver_only")
async def test_cancellation_that_overtakes_its_statement_is_sent_again(wire: Wire, far: Database, acme: Tenant) -> None:
    """A request to cancel that reaches the server before its statement does nothing; a later one does."""
    await warm(far, acme)

    async with far.tenant_connection(acme) as connection:
        pid = connection.get_server_pid()
        await connection.execute(ADD, "x")
        with pytest.raises(TimeoutError):
            async with connection.transaction():
                await connection.execute("SELECT 1")
                wire.hold_back(0.4)
                await connection.execute("SELECT pg_sleep(60)", timeout=0.1)
        assert connection.get_server_pid() == pid
        await connection.execute(ADD, "y")

    assert await read(far, acme) == ["x", "y"]


async def _add_in_savepoint(connection: "Connection") -> None:
    async with connection.transaction():
        await connection.execute(ADD, "x")


FIRST: dict[str, Act] = {
    "read": lambda connection: connection.fetch(READ),
    "read with another record": lambda connection: connection.fetch(READ, record_class=asyncpg.Record),
    "write": lambda connection: connection.execute("INSERT INTO company_data (description) VALUES ('x')"),
    "write with arguments": lambda connection: connection.execute(ADD, "x"),
    "write with an answer": lambda connection: connection.fetchval(f"{ADD} RETURNING id", "x"),
    "savepoint": _add_in_savepoint,
}


@pytest.mark.parametrize("first", FIRST)
async def test_connection_lost_between_two_blocks_is_not_noticed(
    wire: Wire, far: Database, acme: Tenant, first: str
) -> None:
    """A connection that turns out to be dead at the first message is replaced: nothing had been done on it."""
    await warm(far, acme)
    wire.watch()
    wire.reset_at("client", 1 + wire.counts["client"])

    async with far.tenant_connection(acme) as connection:
        await FIRST[first](connection)
        assert len(await connection.fetch(READ)) == ("read" not in first)

    assert len(await read(far, acme)) == ("read" not in first)


@pytest.mark.parametrize("first", [name for name in FIRST if name != "savepoint"])
async def test_savepoint_moves_with_its_block(wire: Wire, far: Database, acme: Tenant, first: str) -> None:
    """One that was asked for before the connection turned out to be dead is made where the block has begun."""
    await warm(far, acme)
    wire.watch()
    wire.reset_at("client", 1 + wire.counts["client"])

    async with far.tenant_connection(acme) as connection:
        savepoint = connection.transaction()
        await FIRST[first](connection)
        with pytest.raises(LookupError):
            async with savepoint:
                await connection.execute(ADD, "not saved")
                raise LookupError

    assert len(await read(far, acme)) == ("read" not in first)


@pytest.mark.usefixtures("fast_driver_only")
@pytest.mark.parametrize("first", ["write", "write with arguments"])
async def test_connection_known_to_be_closed_is_replaced(
    far: Database, database: Database, acme: Tenant, first: str
) -> None:
    """Where the server ended after the block was entered, and before its first statement, a write finds another one."""
    await warm(far, acme)

    async with far.tenant_connection(acme) as connection:
        async with database.connection() as other:
            assert await other.fetchval("SELECT pg_terminate_backend($1, 5000)", connection.get_server_pid())
        async with asyncio.timeout(DEADLINE):
            while not connection.is_closed():
                await asyncio.sleep(0.01)
        await FIRST[first](connection)

    assert await read(far, acme) == ["x"]


@pytest.mark.usefixtures("fast_driver_only")
@pytest.mark.parametrize("first", ["prepare", "cursor", "copy", "executemany"])
async def test_connection_lost_before_what_cannot_move_is_an_error(
    wire: Wire, far: Database, acme: Tenant, first: str
) -> None:
    """What is bound to its connection is told that it is lost, which a request answers with 503, and leaves nothing."""
    await warm(far, acme)
    wire.watch()
    wire.reset_at("client", 1 + wire.counts["client"])

    with pytest.raises(DatabaseUnavailableError):
        async with far.tenant_connection(acme) as connection:
            if first == "prepare":
                await connection.prepare(READ)
            elif first == "cursor":
                await connection.cursor(READ)
            elif first == "copy":
                await connection.copy_records_to_table("company_data", records=[("x",)], columns=["description"])
            else:
                await connection.executemany(ADD, [("x",)])

    assert await read(far, acme) == []


@pytest.mark.parametrize("first", FIRST)
async def test_backend_killed_after_a_read_is_not_noticed(
    far: Database, database: Database, acme: Tenant, first: str
) -> None:
    """The server may end between two blocks: the next one begins elsewhere."""
    await warm(far, acme)
    async with far.tenant_connection(acme) as connection:
        await connection.fetch(READ)
        pid = connection.get_server_pid()
    async with database.connection() as connection:
        assert await connection.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)

    async with far.tenant_connection(acme) as connection:
        await FIRST[first](connection)

    assert len(await read(far, acme)) == ("read" not in first)


async def test_connection_is_of_no_use_after_its_block(far: Database, acme: Tenant, globex: Tenant) -> None:
    """What a handler keeps of its connection reaches no later block, which may be another tenant's."""
    await warm(far, acme, globex)
    async with far.tenant_connection(acme) as kept:
        transaction = kept.transaction()
        statement = await kept.prepare(ADD)
        cursor = kept.cursor(READ)
        iterator = await kept.cursor(READ)
    async with far.tenant_connection(acme) as unused:
        pass
    uses: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: kept.fetch(READ),
        lambda: kept.execute(ADD, "mine"),
        lambda: unused.fetch(READ),
        lambda: unused.execute(ADD, "mine"),
        transaction.start,
        lambda: statement.fetch("mine"),
        lambda: iterator.fetch(1),
        lambda: _exhaust(cursor),
    )

    async with far.tenant_connection(globex) as connection:
        assert await connection.fetch(READ) == []
        for use in uses:
            with pytest.raises(asyncpg.InterfaceError):
                await use()
        assert await connection.fetch(READ) == []


async def _exhaust(cursor: object) -> list[object]:
    return [row async for row in cursor]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("fast_driver_only")
async def test_replaced_connection_is_of_no_use_after_its_block(wire: Wire, far: Database, acme: Tenant) -> None:
    """What a handler was lent stays its own where the connection behind it changed, and ends with the block."""
    await warm(far, acme)
    wire.watch()
    wire.reset_at("client", 1 + wire.counts["client"])

    async with far.tenant_connection(acme) as kept:
        pid = kept.get_server_pid()
        await kept.fetch(READ)
        assert kept.get_server_pid() != pid

    with pytest.raises(asyncpg.InterfaceError):
        await kept.fetch(READ)


@pytest.mark.parametrize("text", ["a new text", "a known text"])
@pytest.mark.parametrize("steps", range(5))
async def test_statement_that_outlives_its_block_reaches_no_other(
    far: Database, acme: Tenant, globex: Tenant, text: str, steps: int
) -> None:
    """A task that still runs a statement when its block ends fails that block, and disturbs no later one."""
    async with far.tenant_connection(globex) as connection:
        await connection.execute(ADD, "globex")
    await warm(far, acme, globex)

    rest = []
    with contextlib.suppress(asyncpg.InterfaceError, TransactionLostError):
        async with far.tenant_connection(acme) as connection:
            await connection.fetch(READ)
            rest.append(asyncio.create_task(connection.fetch(f"{READ} -- new" if text == "a new text" else READ)))
            for _ in range(steps):
                await asyncio.sleep(0)

    assert await read(far, globex) == ["globex"]
    [outcome] = await asyncio.gather(*rest, return_exceptions=True)
    assert isinstance(outcome, Exception) or outcome == []


@pytest.mark.parametrize("before", ["opened", "read", "written", "names forgotten", "reset ahead"])
async def test_idle_connection_holds_no_transaction(
    settings: Settings, database: Database, acme: Tenant, globex: Tenant, before: str
) -> None:
    """Between two blocks nothing is open: the next one begins at its own time."""
    async with await WebLender.open(settings, max_size=1, timings=WARM) as own:
        if before == "read":
            await warm(own, acme)
        elif before == "written":
            async with own.tenant_connection(acme) as connection:
                await connection.execute(ADD, "x")
        elif before == "names forgotten":
            async with own.tenant_connection(acme) as connection:
                await connection.execute("PREPARE my_rows AS SELECT 1")
        elif before == "reset ahead":
            await warm(own, acme, globex)

        async with database.connection() as connection:
            async with asyncio.timeout(DEADLINE):
                while await connection.fetchval(COUNT_OPEN):
                    await asyncio.sleep(0.01)
        async with own.tenant_connection(acme) as connection:
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await connection.fetch(READ)
