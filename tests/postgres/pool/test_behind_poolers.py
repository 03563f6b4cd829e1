"""What a pool does where a pooler stands between it and the server: it is found out, and reads take one message."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from time import monotonic
from typing import Any

import asyncpg
import pytest

from quart_tenants.errors import DatabaseUnavailableError, LeakError, TenantError
from quart_tenants.postgres.blocks import database as database_module
from quart_tenants.postgres.blocks.database import DEFAULTS, Database
from quart_tenants.postgres.doctor.catalogue_checks import refuse_leaks
from quart_tenants.postgres.driver.fast import fast_connection
from quart_tenants.postgres.driver.fast.described_statements import DescriptionListener
from quart_tenants.postgres.driver.fast.fast_connection import FastConnection
from quart_tenants.postgres.driver.fast.messages import write_statements
from quart_tenants.postgres.driver.server_process import GET_SERVER_PROCESS, has_to_itself
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant
from tests.support.patience import wait_until
from tests.support.pgbouncer import SWALLOWS_PATH, can_track, empty_default_path, needs_pgbouncer, run_pgbouncer
from tests.support.pooler import naive_pooler
from tests.support.tcp_proxy import TcpProxy
from tests.support.timings import WARM
from tests.support.web_lender import WebLender

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("alone_only")]

READ = "SELECT description FROM company_data"
ADD = "INSERT INTO company_data (description) VALUES ($1)"


@asynccontextmanager
async def pgbouncer(url: str) -> AsyncIterator[str]:
    """Run PgBouncer before *url* as docs/pooler.md says; yield its URL."""
    await empty_default_path(url)
    async with run_pgbouncer(url, **SWALLOWS_PATH) as bouncer:
        yield bouncer.url(url)


POOLERS = pytest.mark.parametrize("pooled", [naive_pooler, pytest.param(pgbouncer, marks=needs_pgbouncer)])


@asynccontextmanager
async def open_patient(settings: Settings, url: str, size: int = 1) -> AsyncIterator[Database]:
    """Open a pool at *url* whose connections stay warm. On a busy machine the pooler's one turn is waited for."""
    patient = replace(settings, database_url=url, connect_timeout=60)
    async with await WebLender.open(patient, max_size=size, timings=WARM) as database:
        yield database


@pytest.fixture
async def pooled_url(settings: Settings) -> AsyncIterator[str]:
    """The URL of a PgBouncer before the test's database."""
    async with pgbouncer(settings.required_database_url) as url:
        yield url


@pytest.fixture
async def pooled(settings: Settings, pooled_url: str) -> AsyncIterator[Database]:
    """A pool of one connection behind PgBouncer."""
    async with open_patient(settings, pooled_url) as database:
        yield database


async def read(database: Database, tenant: Tenant, query: str = READ, *arguments: object) -> tuple[list[Any], int]:
    """Return the first column of what a block of *tenant* reads, and how many messages were sent for it."""
    async with database.tenant_connection(tenant) as connection:
        driver: FastConnection = connection._con  # type: ignore[attr-defined]
        rows = await connection.fetch(query, *arguments)
    return [row[0] for row in rows], driver.record.round_trips


async def add(database: Database, *tenants: Tenant) -> None:
    """Give each of *tenants* a row that names it."""
    for tenant in tenants:
        async with database.tenant_connection(tenant) as connection:
            await connection.execute(ADD, tenant.slug)


async def use_all_ways(database: Database, tenant: Tenant) -> list[str]:
    """Read and write in one block after the other; return the rows that were seen."""
    seen = []
    for _ in range(4):
        async with database.tenant_connection(tenant) as connection:
            seen += [row["description"] for row in await connection.fetch(READ)]
        async with database.tenant_connection(tenant) as connection:
            await connection.execute(ADD, tenant.slug)
            seen += [row["description"] for row in await connection.fetch(f"{READ} WHERE id > $1", 0)]
    return seen


async def use_together(url: str, settings: Settings, *tenants: Tenant) -> tuple[list[str], set[bool]]:
    """Return what *tenants* saw of each other through two pools at *url*, and whether connections are alone."""
    async with AsyncExitStack() as stack:
        pools = [await stack.enter_async_context(open_patient(settings, url, size=2)) for _ in range(2)]
        jobs = [(tenant, database) for tenant in tenants for database in pools]
        outcomes = await asyncio.gather(*(use_all_ways(database, tenant) for tenant, database in jobs))
        strange = [
            f"{tenant.slug} saw {row}"
            for (tenant, _), rows in zip(jobs, outcomes, strict=True)
            for row in rows
            if row != tenant.slug
        ]
        alone = set()
        for database in pools:
            async with database.tenant_connection(tenants[0]) as connection:
                alone.add(connection._con.is_alone)  # type: ignore[attr-defined]
                await connection.fetch(READ)
        return strange, alone


@POOLERS
async def test_pooler_is_found_out(
    settings: Settings, acme: Tenant, globex: Tenant, pooled: Callable[[str], Any]
) -> None:
    """Whoever makes up the number of the server process, or lends an old one, is a pooler; rows are right behind it."""
    async with pooled(settings.required_database_url) as url:
        strange, alone = await use_together(url, settings, acme, globex)

    assert strange == []
    assert alone == {False}


async def test_straight_to_the_server_connections_are_alone(settings: Settings, acme: Tenant, globex: Tenant) -> None:
    """Negative control: without a pooler the same look says so."""
    strange, alone = await use_together(settings.required_database_url, settings, acme, globex)

    assert strange == []
    assert alone == {True}


async def seems_alone(url: str, path: str = DEFAULTS["search_path"]) -> bool:
    """Return whether a new connection to *url* passes for one without a pooler, if the answer took an hour."""
    opened_at = monotonic() - 3600
    connection = await asyncpg.connect(url, statement_cache_size=0, server_settings=DEFAULTS)
    try:
        return has_to_itself(connection, await connection.fetchrow(GET_SERVER_PROCESS), opened_at, path)
    finally:
        connection.terminate()


@POOLERS
async def test_pooler_is_found_out_whose_answer_takes_long(settings: Settings, pooled: Callable[[str], Any]) -> None:
    """By its age, a process that was started a moment before passes for ours where the answer takes that moment."""
    async with pooled(settings.required_database_url) as url:
        assert not await seems_alone(url)
    assert await seems_alone(settings.required_database_url)


async def test_pooler_that_knows_the_path_passes_for_the_server(settings: Settings) -> None:
    """Negative control: with the path that the pooler's own connection has, the same look is taken in by its age."""
    async with naive_pooler(settings.required_database_url) as url:
        assert await seems_alone(url, '"$user", public')


async def test_pooler_that_was_not_found_out_shows_no_foreign_row(
    settings: Settings, acme: Tenant, globex: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a pooler pass for the server: blocks may be slow, or fail, but nobody reads another tenant's rows."""
    seen: dict[str, set[str]] = {"acme": set(), "globex": set()}

    async def may_work(connection: FastConnection, opened_at: float, path: str) -> bool:
        connection.is_alone = True
        return True

    async def use(database: Database, tenant: Tenant) -> None:
        for _ in range(6):
            with contextlib.suppress(TenantError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with database.tenant_connection(tenant) as connection:
                    seen[tenant.slug] |= {row["description"] for row in await connection.fetch(READ)}

    impatient = replace(settings, command_timeout=1, acquire_timeout=2)
    async with await WebLender.open(settings, max_size=1, timings=WARM) as straight:
        await add(straight, acme, globex)
    monkeypatch.setattr(FastConnection, "may_work", may_work)
    async with naive_pooler(settings.required_database_url) as url, AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(
                await WebLender.open(replace(impatient, database_url=url), max_size=1, timings=WARM)
            )
            for _ in range(2)
        ]
        await asyncio.gather(*(use(database, tenant) for database in pools for tenant in (acme, globex)))

    assert seen["acme"] <= {"acme"}
    assert seen["globex"] <= {"globex"}


# How many messages a read takes.


@POOLERS
async def test_read_takes_two_messages_once_and_one_from_then_on(
    settings: Settings, acme: Tenant, globex: Tenant, pooled: Callable[[str], Any]
) -> None:
    """The types of a statement are asked for once by each connection for each tenant. Nothing stays prepared."""
    async with pooled(settings.required_database_url) as url, open_patient(settings, url) as database:
        await add(database, acme, globex)
        seen = [await read(database, tenant, f"{READ} WHERE id > $1", 0) for _ in range(3) for tenant in (acme, globex)]

        assert await read(database, acme, "SELECT count(*) FROM pg_prepared_statements") == ([0], 2)

    assert [rows for rows, _ in seen] == [["acme"], ["globex"]] * 3
    assert [messages for _, messages in seen] == [2, 2, 1, 1, 1, 1]


@needs_pgbouncer
async def test_remembered_statements_are_limited(settings: Settings, pooled_url: str, acme: Tenant) -> None:
    """TENANTS_STATEMENT_CACHE_SIZE says of how many statements a connection remembers the types."""
    small = replace(settings, statement_cache_size=1)
    async with open_patient(small, pooled_url) as database:
        messages = [(await read(database, acme, f"{READ} -- {number}"))[1] for number in (1, 1, 2, 2, 1)]
    async with open_patient(replace(small, statement_cache_size=0), pooled_url) as database:
        messages += [(await read(database, acme))[1] for _ in range(2)]

    assert messages == [2, 1, 2, 1, 2, 2, 2]


async def count_messages(settings: Settings, tenant: Tenant) -> tuple[int, int]:
    """Return how many messages the server sends to PgBouncer, and PgBouncer to us, for a read that it knows."""
    url = settings.required_database_url
    await empty_default_path(url)
    async with (
        TcpProxy(url) as behind,
        run_pgbouncer(behind.url, **SWALLOWS_PATH) as bouncer,
        TcpProxy(bouncer.url(url)) as before,
        open_patient(settings, before.url) as database,
    ):
        for _ in range(2):
            await read(database, tenant)
        behind.watch()
        before.watch()
        assert (await read(database, tenant))[1] == 1
        return behind.counts["server"], before.counts["server"]


@needs_pgbouncer
async def test_pgbouncer_adds_nothing_to_a_read(settings: Settings, acme: Tenant) -> None:
    """Before PgBouncer and behind it a read is the same messages: nothing has to be set for the transaction."""
    to_pgbouncer, to_us = await count_messages(settings, acme)

    assert to_pgbouncer == to_us


@needs_pgbouncer
@pytest.mark.skipif(can_track(), reason="PgBouncer 1.24 compares better than 1.18")
async def test_encoding_as_the_driver_writes_it_is_set_before_each_read(
    settings: Settings, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: asyncpg's own client_encoding has quotes, which PgBouncer finds to be different each time."""
    monkeypatch.delitem(database_module.DEFAULTS, "client_encoding")

    to_pgbouncer, to_us = await count_messages(settings, acme)

    assert to_pgbouncer > to_us


# What it has to be told.


@needs_pgbouncer
@pytest.mark.parametrize("mode", ["auto", "plain"])
@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({}, "set ignore_startup_parameters = search_path in PgBouncer"),
        (SWALLOWS_PATH | {"pool_mode": "statement"}, "set pool_mode = transaction in PgBouncer"),
    ],
)
async def test_pgbouncer_that_cannot_serve_is_told_what_to_set(
    settings: Settings, acme: Tenant, options: dict[str, str], remedy: str, mode: str
) -> None:
    """The error names the setting, and nobody guesses at the URL."""
    async with run_pgbouncer(settings.required_database_url, **options) as bouncer:
        own = replace(settings, database_url=bouncer.url(settings.required_database_url), driver_mode=mode)
        with pytest.raises(DatabaseUnavailableError, match=remedy) as caught:
            async with await WebLender.open(own, max_size=1) as database:
                await read(database, acme)

    assert "is it running" not in str(caught.value)


async def drop_connections(url: str) -> None:
    """End PgBouncer's connections to the server, which have the old default path."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()


@needs_pgbouncer
async def test_session_mode_serves(settings: Settings, acme: Tenant, globex: Tenant) -> None:
    """Where PgBouncer gives each client a server process, blocks work as in transaction mode."""
    url = settings.required_database_url
    async with run_pgbouncer(url, pool_mode="session", default_pool_size="4", **SWALLOWS_PATH) as bouncer:
        strange, alone = await use_together(bouncer.url(url), settings, acme, globex)

    assert strange == []
    assert alone == {False}


@pytest.mark.skipif(not can_track(), reason="needs PgBouncer 1.20 or newer, for track_extra_parameters")
async def test_pgbouncer_that_tracks_the_path_serves(settings: Settings, acme: Tenant, globex: Tenant) -> None:
    """PgBouncer makes a statement of the empty path. A reset brings the server's own back, which must be empty, too."""
    url = settings.required_database_url
    async with run_pgbouncer(url, track_extra_parameters="search_path") as bouncer:
        strange, _ = await use_together(bouncer.url(url), settings, acme, globex)
        async with open_patient(settings, bouncer.url(url)) as database:
            with pytest.raises(LeakError, match="default path"):
                await refuse_leaks(database, settings=settings)
            await empty_default_path(url)
            await drop_connections(url)
            await refuse_leaks(database, settings=settings)

    assert strange == []


# What is remembered may be outdated.


async def change_by_hand(database: Database, tenant: Tenant) -> None:
    """Let a number have another type in as many bytes."""
    await change(database, tenant, "DROP TABLE measured; CREATE TABLE measured AS SELECT 1.5::float8 AS value")


async def change(database: Database, tenant: Tenant, statement: str) -> None:
    """Execute *statement* in a block of its own."""
    async with database.tenant_connection(tenant) as connection:
        await connection.execute(statement)


async def remember(database: Database, tenant: Tenant, query: str) -> None:
    """Make the table, and read it until the read is remembered."""
    await make_measured(database, tenant)
    for _ in range(2):
        await read(database, tenant, query)


async def make_measured(database: Database, tenant: Tenant) -> None:
    """Make a table with a number."""
    await change(database, tenant, "CREATE TABLE measured AS SELECT 15::int8 AS value")


@needs_pgbouncer
async def test_table_that_was_changed_by_hand_is_read_by_its_new_types(pooled: Database, acme: Tenant) -> None:
    """A read by an old description is thrown away and run again: an int8 became a float8, and both have eight bytes."""
    await make_measured(pooled, acme)
    before = [await read(pooled, acme, "SELECT value FROM measured") for _ in range(2)]
    await change_by_hand(pooled, acme)

    rows = pooled._pool.measures.show_blocks().rows
    after = [await read(pooled, acme, "SELECT value FROM measured") for _ in range(2)]

    assert pooled._pool.measures.show_blocks().rows - rows == 2
    assert before == [([15], 2), ([15], 1)]
    assert after == [([1.5], 3), ([1.5], 1)]


@needs_pgbouncer
async def test_description_that_nobody_compares_gives_wrong_values(
    pooled: Database, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: where each description passes for the old one, the same read returns a wrong number."""
    await make_measured(pooled, acme)
    monkeypatch.setattr(DescriptionListener, "heard", property(lambda _: b"always the same", lambda *_: None))
    await read(pooled, acme, "SELECT value FROM measured")
    await change_by_hand(pooled, acme)

    values, _ = await read(pooled, acme, "SELECT value FROM measured")

    assert values == [4609434218613702656]


@needs_pgbouncer
async def test_parameter_that_has_another_type_now_is_encoded_anew(pooled: Database, acme: Tenant) -> None:
    """A parameter that the server cannot read any more is no error of the handler's."""
    query = "SELECT value FROM measured WHERE value = $1"
    await make_measured(pooled, acme)
    assert await read(pooled, acme, query, 15) == ([15], 2)
    assert await read(pooled, acme, query, 15) == ([15], 1)
    await change(pooled, acme, "ALTER TABLE measured ALTER COLUMN value TYPE numeric")

    assert (await read(pooled, acme, query, 15))[0] == [15]


@needs_pgbouncer
async def test_column_that_was_renamed_by_hand_has_its_new_name(pooled: Database, acme: Tenant) -> None:
    """The names of the columns are a part of the description."""
    await remember(pooled, acme, "SELECT * FROM measured")
    await change(pooled, acme, "ALTER TABLE measured RENAME COLUMN value TO amount")

    async with pooled.tenant_connection(acme) as connection:
        rows = await connection.fetch("SELECT * FROM measured")

    assert [dict(row) for row in rows] == [{"amount": 15}]


@needs_pgbouncer
async def test_table_that_is_gone_is_the_servers_own_error(pooled: Database, acme: Tenant) -> None:
    """A remembered statement fails as a new one does, and the connection goes on."""
    await remember(pooled, acme, "SELECT value FROM measured")
    await change(pooled, acme, "DROP TABLE measured")

    for _ in range(2):
        with pytest.raises(asyncpg.UndefinedTableError):
            await read(pooled, acme, "SELECT value FROM measured")
    assert await read(pooled, acme) == ([], 2)


# What a read leaves to other clients of the pooler.

_SLY = (
    "CREATE FUNCTION leave() RETURNS int LANGUAGE plpgsql AS "
    "$$BEGIN PERFORM set_config('app.secret', 'mine', false); EXECUTE 'PREPARE left_behind AS SELECT 1';"
    " CREATE TEMPORARY TABLE IF NOT EXISTS left_behind (); RETURN 1; END$$; CREATE VIEW sly AS SELECT leave() AS one"
)
_LOOK = (
    "SELECT coalesce(nullif(current_setting('app.secret', true), ''), 'nothing') AS setting,"
    " (SELECT count(*) FROM pg_prepared_statements) AS statements,"
    " (SELECT count(*) FROM pg_class WHERE relname = 'left_behind') AS tables"
)


async def find_left(settings: Settings, acme: Tenant) -> tuple[str, int, int]:
    """Let a read do what its view hides, behind a PgBouncer of one connection; return what another program finds."""
    url = settings.required_database_url
    await empty_default_path(url)
    async with (
        run_pgbouncer(url, default_pool_size="1", **SWALLOWS_PATH) as bouncer,
        open_patient(settings, bouncer.url(url)) as database,
    ):
        async with database.tenant_connection(acme) as connection:
            await connection.execute(_SLY)
        assert (await read(database, acme, "SELECT one FROM sly"))[0] == [1]
        stranger = await asyncpg.connect(bouncer.url(url), statement_cache_size=0)
        try:
            found = await stranger.fetchrow(_LOOK)
        finally:
            await stranger.close()
    assert found is not None
    return tuple(found)


@needs_pgbouncer
async def test_read_leaves_nothing_to_other_clients_of_the_pooler(settings: Settings, acme: Tenant) -> None:
    """The reset goes in the read's own message, before the pooler lends the server process to somebody else."""
    assert await find_left(settings, acme) == ("nothing", 0, 0)


@needs_pgbouncer
async def test_read_without_its_reset_is_seen_by_other_clients(
    settings: Settings, acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: with a COMMIT alone, as without a pooler, the same look finds all of it."""
    monkeypatch.setattr(fast_connection, "_COMMIT_AND_RESET_MESSAGE", write_statements("COMMIT", prepared=False))

    assert await find_left(settings, acme) == ("mine", 1, 1)


# A pooler that is restarted.


async def read_through_restarts(settings: Settings, *tenants: Tenant, away: float) -> tuple[Counter[str], int]:
    """Read all the time while PgBouncer is killed and started three times; return the errors, and how many reads."""
    url = settings.required_database_url
    await empty_default_path(url)
    errors: Counter[str] = Counter()
    reads = 0
    over = asyncio.Event()

    async def read_on(database: Database, tenant: Tenant) -> None:
        nonlocal reads
        while not over.is_set():
            try:
                rows, _ = await read(database, tenant)
            except TenantError as error:
                errors[error.code] += 1
                await asyncio.sleep(0.01)
            else:
                reads += 1
                if rows != [tenant.slug]:
                    errors[f"{tenant.slug} read {rows}"] += 1

    async with run_pgbouncer(url, **SWALLOWS_PATH) as bouncer:
        own = replace(settings, database_url=bouncer.url(url), connect_timeout=60, acquire_timeout=60, pool_max_size=4)
        timings = replace(WARM, away=away)
        async with await WebLender.open(own, timings=timings) as database, asyncio.TaskGroup() as tasks:
            await add(database, *tenants)
            enough = 0

            async def is_served() -> bool:
                return reads >= enough

            async def is_missed() -> bool:
                return database._pool._away_since is not None

            for tenant in tenants * 4:
                tasks.create_task(read_on(database, tenant))
            for _ in range(3):
                enough = reads + 100
                await wait_until(is_served)
                bouncer.kill()
                await wait_until(is_missed)
                await bouncer.start()
            over.set()
    return errors, reads


@needs_pgbouncer
async def test_reads_wait_for_a_pooler_that_is_restarted(settings: Settings, acme: Tenant, globex: Tenant) -> None:
    """No read fails: what was under way is read again, and what comes meanwhile waits until somebody answers."""
    errors, reads = await read_through_restarts(settings, acme, globex, away=60)

    assert errors == Counter()
    assert reads >= 300


@needs_pgbouncer
async def test_reads_that_do_not_wait_fail_in_the_same_restarts(
    settings: Settings, acme: Tenant, globex: Tenant
) -> None:
    """Negative control: where a refused connection is an error at once, reads fail."""
    errors, _ = await read_through_restarts(settings, acme, globex, away=0)

    assert errors["database_unavailable"] > 0
