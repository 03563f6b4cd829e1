"""The registry: made once, followed by every worker, trusted only while it can be read."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import asyncpg
import pytest

from quart_tenants.errors import (
    DatabaseUnavailableError,
    MigrationFailedError,
    RegistryNotReadyError,
    RegistryStaleError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.registry.registry_tables import announce_changes, get_tenant, init_registry, list_tenants
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, parse_schema_name, parse_slug
from quart_tenants.testing.databases import new_database
from tests.postgres.conftest import Role
from tests.support.databases import BREAKING_REGISTRY, NEWER_REGISTRY, REFERENCE_FILES, drop_for_good
from tests.support.patience import DEADLINE

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.connection_types import Connection

pytestmark = pytest.mark.slow

ACME, GLOBEX, NEWCO = parse_slug("acme"), parse_slug("globex"), parse_slug("newco")
UNREADABLE = "ALTER TABLE quart_tenants.changes RENAME TO changes_elsewhere"
READABLE = "ALTER TABLE quart_tenants.changes_elsewhere RENAME TO changes"


class WatchedRegistry(Registry):
    """A registry that counts its loads, and tells when it has tried to refresh."""

    def __init__(self, database: Database, settings: Settings, *, catch_up_pause: float = 0.0) -> None:
        super().__init__(database, settings, catch_up_pause=catch_up_pause)
        self.loads = 0
        self.tries = 0
        self._tried = asyncio.Condition()

    async def _load(self) -> None:
        self.loads += 1
        await super()._load()

    async def refresh(self) -> None:
        """Refresh, and tell."""
        try:
            await super().refresh()
        finally:
            async with self._tried:
                self.tries += 1
                self._tried.notify_all()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when *condition* is true; asked now and after each refresh."""
        async with asyncio.timeout(DEADLINE), self._tried:
            await self._tried.wait_for(condition)

    async def wait_for_tries(self, count: int) -> None:
        """Return when it was tried to refresh *count* times more."""
        enough = self.tries + count
        await self.wait_until(lambda: self.tries >= enough)

    def knows(self, slug: Slug) -> bool:
        """Return whether there is a tenant at *slug*."""
        try:
            self.get_tenant(slug)
        except UnknownTenantError:
            return False
        return True

    def is_stale(self) -> bool:
        """Return whether no tenant is served at all."""
        try:
            self.get_tenant(ACME)
        except RegistryStaleError:
            return True
        return False


@pytest.fixture
async def registry(database: Database, settings: Settings) -> WatchedRegistry:
    """A registry that has read all tenants."""
    registry = WatchedRegistry(database, settings)
    await registry.load()
    return registry


@pytest.fixture
async def other_process(settings: Settings) -> AsyncIterator[Database]:
    """A pool as another process has one: nothing but the database is shared."""
    async with await Database.open(settings) as database:
        yield database


@pytest.fixture
async def empty_database(empty_database_url: str) -> AsyncIterator[Database]:
    """A pool on a database with nothing in it."""
    async with await Database.open(
        Settings(migrations_dir=REFERENCE_FILES, database_url=empty_database_url)
    ) as database:
        yield database


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Lend a connection that is in no pool and in no transaction."""
    connection = await asyncpg.connect(settings.required_database_url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def following(registry: Registry) -> AsyncIterator["asyncio.Task[None]"]:
    """Let *registry* follow the feed inside the block."""
    task: asyncio.Task[None] = asyncio.create_task(registry.follow())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def execute(database: Database, statement: str) -> None:
    """Run one statement in a transaction of its own."""
    async with database.connection() as connection:
        await connection.execute(statement)


# Making


async def test_init_makes_the_registry(empty_database: Database) -> None:
    """After `init` there is a registry without tenants."""
    assert await init_registry(empty_database) > 0

    assert await list_tenants(empty_database) == []


async def test_second_init_changes_nothing(database: Database) -> None:
    """Doing it again runs no migration and keeps every tenant."""
    before = await list_tenants(database)

    assert await init_registry(database) == 0

    assert await list_tenants(database) == before


async def test_two_inits_at_once_make_one_registry(empty_database: Database) -> None:
    """Of several programs that start together one makes the registry, and none fails."""
    counts = await asyncio.gather(*(init_registry(empty_database) for _ in range(4)))

    assert sorted(count > 0 for count in counts) == [False, False, False, True]


async def test_missing_registry_names_the_command(empty_database: Database) -> None:
    """Whoever needs the registry and finds none is told how to make one."""
    registry = Registry(empty_database, Settings(migrations_dir=REFERENCE_FILES))
    settings = Settings(migrations_dir=REFERENCE_FILES)
    calls = (
        registry.load(),
        registry.check(),
        list_tenants(empty_database),
        get_tenant(empty_database, ACME),
        create_tenant(empty_database, ACME, "Acme", settings=settings),
        adopt_schemas(empty_database, {ACME: parse_schema_name("acme")}, settings=settings, version=1),
        drop_tenant(empty_database, ACME),
    )

    for call in calls:
        with pytest.raises(RegistryNotReadyError, match="quart-tenants init"):
            await call


async def test_older_registry_names_the_command(database: Database) -> None:
    """A registry that lacks a migration of this program is not used."""
    await execute(database, "DELETE FROM quart_tenants.applied_migrations WHERE schema_name = 'quart_tenants'")

    with pytest.raises(RegistryNotReadyError, match="older than this program: run quart-tenants init"):
        await list_tenants(database)


async def test_newer_registry_is_used(registry: WatchedRegistry, database: Database) -> None:
    """During a deployment the old program goes on with the registry of the new one, which has only been added to."""
    await execute(database, NEWER_REGISTRY)

    assert await list_tenants(database)
    assert await init_registry(database) == 0
    await registry.check()
    await registry.refresh()
    assert registry.knows(ACME)


async def test_registry_that_means_something_else_is_refused(
    registry: WatchedRegistry, database: Database, settings: Settings
) -> None:
    """A program that would read the registry of a newer one wrongly says so everywhere, and what to do."""
    await execute(database, NEWER_REGISTRY)
    await execute(database, BREAKING_REGISTRY)

    calls: list[Awaitable[object]] = [
        init_registry(database),
        list_tenants(database),
        get_tenant(database, ACME),
        Registry(database, settings).load(),
        # Of a worker that runs already.
        registry.check(),
        registry.refresh(),
    ]
    for call in calls:
        with pytest.raises(RegistryNotReadyError, match="install the newer program, and restart"):
            await call


async def test_worker_that_is_too_old_stops_serving(registry: WatchedRegistry, database: Database) -> None:
    """A worker that runs hears of a newer program's registry by the feed, and does not trust its memory any longer."""
    registry._settings = replace(registry._settings, registry_poll_interval=0.05, registry_max_age=0.2)
    async with following(registry):
        await registry.wait_for_tries(1)
        await execute(database, NEWER_REGISTRY)
        await execute(database, BREAKING_REGISTRY)
        await registry.wait_until(registry.is_stale)

    assert registry.is_stale()


async def test_init_without_rights_says_which_one(empty_database_url: str, role: Role) -> None:
    """A role that may not create schemas is told what to grant."""
    async with await Database.open(
        Settings(migrations_dir=REFERENCE_FILES, database_url=role.put_into(empty_database_url))
    ) as database:
        with pytest.raises(RegistryNotReadyError, match="GRANT CREATE ON DATABASE"):
            await init_registry(database)


# Reading


async def test_loaded_registry_knows_every_tenant(registry: WatchedRegistry, database: Database) -> None:
    """After loading, each tenant of the database is known, as it stands there."""
    tenants = await list_tenants(database)

    assert {tenant.slug for tenant in tenants} == {"acme", "globex", "company1", "company2"}
    assert [registry.get_tenant(tenant.slug) for tenant in tenants] == tenants


async def test_unknown_slug_is_an_error(registry: WatchedRegistry, database: Database) -> None:
    """A name that nobody registered is no tenant, in memory and in the database."""
    with pytest.raises(UnknownTenantError, match="'newco'"):
        registry.get_tenant(NEWCO)
    with pytest.raises(UnknownTenantError, match="'newco'"):
        await get_tenant(database, NEWCO)


async def test_registry_that_was_never_loaded_is_stale(database: Database, settings: Settings) -> None:
    """Before the first reading no tenant is known, and none is denied either."""
    with pytest.raises(RegistryStaleError):
        Registry(database, settings).get_tenant(ACME)


async def test_look_up_needs_no_database(registry: WatchedRegistry, database: Database) -> None:
    """A known tenant is found without a query."""
    await database.close()

    assert registry.get_tenant(ACME).slug == "acme"


async def test_refresh_sees_another_process_create(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """A tenant that another process made is known after the next refresh, and not by a load."""
    tenant = await create_tenant(other_process, NEWCO, "New Co", settings=settings)

    await registry.refresh()

    assert registry.get_tenant(NEWCO) == tenant
    assert registry.loads == 1


async def test_refresh_sees_another_process_adopt(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """Adopted tenants are all known after one refresh."""
    await execute(other_process, 'CREATE SCHEMA "Old A"')
    await execute(other_process, 'CREATE SCHEMA "Old B"')
    schemas = {parse_slug("old-a"): parse_schema_name("Old A"), parse_slug("old-b"): parse_schema_name("Old B")}
    tenants = await adopt_schemas(other_process, schemas, settings=settings, version=0)

    await registry.refresh()

    assert [registry.get_tenant(slug) for slug in schemas] == tenants
    assert registry.loads == 1


async def test_refresh_sees_another_process_drop(registry: WatchedRegistry, other_process: Database) -> None:
    """A dropped tenant is unknown after the next refresh; the others stay."""
    await drop_tenant(other_process, ACME)

    await registry.refresh()

    assert not registry.knows(ACME)
    assert registry.knows(GLOBEX)
    assert registry.loads == 1


async def test_refresh_sees_a_tenant_made_anew(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """A tenant dropped and made again between two refreshes is the new one, with its new number."""
    old = registry.get_tenant(ACME)
    await drop_for_good(other_process, ACME)
    new = await create_tenant(other_process, ACME, "Acme again", settings=settings)

    await registry.refresh()

    assert registry.get_tenant(ACME) == new
    assert new.id != old.id


async def test_refresh_forgets_a_tenant_made_and_dropped_meanwhile(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """What came and went between two refreshes is not known."""
    await create_tenant(other_process, NEWCO, "New Co", settings=settings)
    await drop_tenant(other_process, NEWCO)

    await registry.refresh()

    assert not registry.knows(NEWCO)


async def test_rolled_back_change_is_not_seen(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """What was not committed leaves no trace in the feed, and the feed goes on without a gap."""
    with pytest.raises(MigrationFailedError, match=r"first_rows failed .*no_such_table"):
        await create_tenant(
            other_process, NEWCO, "New Co", settings=settings, first_rows="INSERT INTO no_such_table VALUES (1)"
        )
    await registry.refresh()
    assert not registry.knows(NEWCO)

    await create_tenant(other_process, NEWCO, "New Co", settings=settings)
    await registry.refresh()

    assert registry.knows(NEWCO)
    assert registry.loads == 1


async def test_replaced_database_is_loaded_anew(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """Where the last revision is gone, as after restoring a backup, all tenants are read again."""
    await create_tenant(other_process, NEWCO, "New Co", settings=settings)
    await registry.refresh()
    # What a backup from before that looks like.
    await execute(other_process, "DELETE FROM quart_tenants.tenants WHERE slug = 'newco'")
    await execute(
        other_process,
        "DELETE FROM quart_tenants.changes WHERE revision = (SELECT max(revision) FROM quart_tenants.changes)",
    )

    await registry.refresh()

    assert not registry.knows(NEWCO)
    assert registry.knows(ACME)
    assert registry.loads == 2


async def test_feed_that_lost_its_beginning_is_loaded_anew(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """Where old revisions were deleted, a reader that had not come so far misses none of them."""
    await create_tenant(other_process, NEWCO, "New Co", settings=settings)
    await drop_tenant(other_process, ACME)
    await execute(
        other_process,
        "DELETE FROM quart_tenants.changes WHERE revision < (SELECT max(revision) FROM quart_tenants.changes)",
    )

    await registry.refresh()

    assert registry.knows(NEWCO)
    assert not registry.knows(ACME)
    assert registry.loads == 2


async def test_database_without_a_registry_is_not_trusted(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """Where the tables themselves are gone, the refresh fails and nothing is forgotten by it."""
    await execute(other_process, "TRUNCATE quart_tenants.changes")
    await execute(other_process, "DELETE FROM quart_tenants.applied_migrations")

    with pytest.raises(RegistryNotReadyError):
        await registry.refresh()

    assert registry.knows(ACME)


# Following


async def test_follower_sees_changes_by_itself(database: Database, other_process: Database, settings: Settings) -> None:
    """A worker that follows learns of a new tenant, and of its end, without being asked."""
    registry = WatchedRegistry(database, replace(settings, registry_poll_interval=0.01))
    await registry.load()
    async with following(registry):
        await create_tenant(other_process, NEWCO, "New Co", settings=settings)
        await registry.wait_until(lambda: registry.knows(NEWCO))

        await drop_tenant(other_process, NEWCO)
        await registry.wait_until(lambda: not registry.knows(NEWCO))


async def test_follower_ends_by_cancellation(database: Database, settings: Settings) -> None:
    """Nothing but its cancellation ends the follower."""
    registry = WatchedRegistry(database, replace(settings, registry_poll_interval=0.01))
    await registry.load()
    async with following(registry) as task:
        await registry.wait_for_tries(2)
        assert not task.done()

    assert task.cancelled()


async def test_unreadable_feed_fails_closed_and_recovers(
    database: Database, other_process: Database, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """When the feed cannot be read for long enough no tenant is served; when it can again, all are."""
    registry = WatchedRegistry(database, replace(settings, registry_poll_interval=0.01, registry_max_age=0.2))
    await registry.load()
    with caplog.at_level(logging.WARNING, "quart_tenants"):
        async with following(registry):
            await execute(other_process, UNREADABLE)
            await registry.wait_until(registry.is_stale)
            for slug in (ACME, NEWCO):
                with pytest.raises(RegistryStaleError):
                    registry.get_tenant(slug)

            await execute(other_process, READABLE)
            await registry.wait_until(lambda: not registry.is_stale())

    # One line each, however many times it was tried.
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("the tenant registry cannot be read")
    assert lines[1] == "the tenant registry can be read again"


async def test_lost_connection_does_not_end_the_follower(
    database: Database, other_process: Database, settings: Settings
) -> None:
    """A server that throws the follower out, again and again, is asked anew."""
    registry = WatchedRegistry(database, replace(settings, registry_poll_interval=0.01))
    await registry.load()
    async with following(registry), connect(settings) as killer:
        for _ in range(5):
            await killer.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await registry.wait_for_tries(2)

        await create_tenant(other_process, NEWCO, "New Co", settings=settings)
        await registry.wait_until(lambda: registry.knows(NEWCO))


async def test_unreachable_database_is_an_error_of_ours(server_url: str, template: str) -> None:
    """A database that went away raises `DatabaseUnavailableError`, whichever way it is read."""
    async with new_database(server_url, template) as url:
        settings = Settings(migrations_dir=REFERENCE_FILES, database_url=url, acquire_timeout=1.0)
        database = await Database.open(settings)
        registry = Registry(database, settings)
        await registry.load()
    try:
        for read in (registry.refresh, registry.load, registry.check):
            with pytest.raises(DatabaseUnavailableError):
                await read()
    finally:
        await database.close()


# The feed


async def test_twenty_creates_at_once_are_all_seen(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """A reader that refreshes all the time misses none of many tenants that are made at the same time."""
    slugs = [parse_slug(f"new{number}") for number in range(20)]
    patient = replace(settings, acquire_timeout=DEADLINE)

    async with await Database.open(patient, max_size=8) as writers:
        creating = asyncio.gather(*(create_tenant(writers, slug, slug, settings=settings) for slug in slugs))
        refreshes = 0
        while not creating.done():
            await registry.refresh()
            refreshes += 1
        await creating
    await registry.refresh()

    assert refreshes > 1
    assert [slug for slug in slugs if not registry.knows(slug)] == []
    assert registry.loads == 1


async def commit_in_the_other_order(
    settings: Settings, slugs: tuple[Slug, Slug], read: Callable[[], Awaitable[object]]
) -> None:
    """Rename two tenants; the one that is announced first is committed last, and *read* is called after each commit."""
    async with await Database.open(settings) as database:
        async with database.connection() as slow:
            await change_name(slow, slugs[0])
            async with database.connection() as fast:
                await change_name(fast, slugs[1])
            await read()
        await read()


async def change_name(connection: "Connection", slug: Slug) -> None:
    """Call a tenant "Changed", and tell the workers."""
    tenant_id = await connection.fetchval(
        "UPDATE quart_tenants.tenants SET display_name = 'Changed' WHERE slug = $1 RETURNING id", slug
    )
    await announce_changes(connection, tenant_id)


async def test_reader_misses_no_change_however_commits_are_ordered(
    registry: WatchedRegistry, settings: Settings
) -> None:
    """A change is read after its commit, also when a later one was committed and read before."""
    seen: list[tuple[str, str]] = []

    async def read() -> None:
        await registry.refresh()
        seen.append((registry.get_tenant(ACME).name, registry.get_tenant(GLOBEX).name))

    await commit_in_the_other_order(settings, (ACME, GLOBEX), read)

    assert seen == [("Acme", "Changed"), ("Changed", "Changed")]
    assert registry.loads == 1


async def test_change_from_a_server_that_was_further_is_read_once(
    database: Database, settings: Settings, database_url: str
) -> None:
    """A dump brings rows with transaction numbers that this server has yet to reach: they are no news at every look."""
    await execute(
        database,
        "INSERT INTO quart_tenants.changes (tenant_id, transaction) SELECT id, '99999999999'::xid8"
        " FROM quart_tenants.tenants",
    )
    registry = Registry(database, settings)
    await registry.load()
    before = registry.get_tenant(parse_slug("acme"))

    await registry.refresh()

    # Read anew it would be another object.
    assert registry.get_tenant(parse_slug("acme")) is before


async def test_reader_that_remembers_the_last_revision_would_miss_one(settings: Settings) -> None:
    """Negative control: whoever asks for higher numbers never sees the change that took its number first."""
    async with connect(settings) as reader:
        started_at = last_seen = await reader.fetchval("SELECT max(revision) FROM quart_tenants.changes")
        seen: list[int] = []

        async def read() -> None:
            nonlocal last_seen
            rows = await reader.fetch(
                "SELECT revision FROM quart_tenants.changes WHERE revision > $1 ORDER BY 1", last_seen
            )
            seen.extend(row["revision"] for row in rows)
            last_seen = max([last_seen, *seen])

        await commit_in_the_other_order(settings, (ACME, GLOBEX), read)
        changes = await reader.fetch(
            "SELECT revision FROM quart_tenants.changes WHERE revision > $1 ORDER BY 1", started_at
        )

    assert len(changes) == 2
    assert seen == [changes[1]["revision"]]


async def test_writers_wait_for_nobody(settings: Settings) -> None:
    """A change is committed while another one, announced before, is not: the disk serves many at once."""
    async with await Database.open(settings) as database, database.connection() as slow:
        await change_name(slow, ACME)

        async with asyncio.timeout(DEADLINE), database.connection() as fast:
            await change_name(fast, GLOBEX)

        assert (await get_tenant(database, GLOBEX)).name == "Changed"


async def test_restarted_server_is_read_anew(registry: WatchedRegistry, database: Database) -> None:
    """Numbers of transactions mean nothing to another start of the server, such as from an older copy."""
    position = registry._position
    assert position is not None
    started_at = position["started_at"] - timedelta(seconds=1)
    registry._position = cast("asyncpg.Record", {**position, "started_at": started_at})

    await registry.refresh()

    assert registry.loads == 2


async def test_readers_do_not_wait_for_writers(registry: WatchedRegistry, settings: Settings) -> None:
    """A transaction that has announced a change and goes on delays nobody who reads."""
    async with await Database.open(settings) as writers, writers.connection() as connection:
        await announce_changes(connection, 1001)

        async with asyncio.timeout(DEADLINE):
            await registry.refresh()
            await registry.load()


async def test_feed_that_lost_a_commit_is_loaded_anew(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """A failover may lose the last change and give its number to another one: everything is read again."""
    await create_tenant(other_process, NEWCO, "New Co", settings=settings)
    await registry.refresh()
    async with other_process.connection() as connection:
        # As if the commit had never been, and another one came in its place.
        await connection.execute(
            "DELETE FROM quart_tenants.tenants WHERE slug = 'newco';"
            "DELETE FROM quart_tenants.changes WHERE revision = (SELECT max(revision) FROM quart_tenants.changes)"
        )
    await drop_tenant(other_process, ACME)

    await registry.refresh()

    assert not registry.knows(NEWCO)
    assert not registry.knows(ACME)


async def test_checks_at_the_same_time_share_one_answer(
    registry: WatchedRegistry, other_process: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many probes ask at once, the database is asked once, and the feed keeps its connection."""
    asked = 0
    original = Registry._check

    async def count(self: Registry) -> None:
        nonlocal asked
        asked += 1
        await original(self)

    monkeypatch.setattr(Registry, "_check", count)

    await asyncio.gather(*(registry.check() for _ in range(500)))
    await registry.check()

    assert asked == 2


async def test_cancelled_check_leaves_the_others_their_answer(registry: WatchedRegistry) -> None:
    """A probe whose client goes away does not take the answer from those who wait with it."""
    checks = [asyncio.create_task(registry.check()) for _ in range(3)]
    await asyncio.sleep(0)
    checks[0].cancel()

    results = await asyncio.gather(*checks, return_exceptions=True)

    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [None, None]


# Catching up


@pytest.fixture
def slow_registry(database: Database, settings: Settings) -> WatchedRegistry:
    """A registry that reads for visitors once, and then not within the time of a test."""
    return WatchedRegistry(database, settings, catch_up_pause=3600)


async def test_visitor_is_told_what_was_committed_before(
    registry: WatchedRegistry, other_process: Database, settings: Settings
) -> None:
    """A name that another process has made is known to whoever asks after that."""
    await create_tenant(other_process, NEWCO, "Newco", settings=settings)
    assert not registry.knows(NEWCO)

    await registry.catch_up()

    assert registry.knows(NEWCO)


async def test_visitors_who_ask_at_once_share_one_read(slow_registry: WatchedRegistry) -> None:
    """A thousand made-up names cost one look at the database."""
    await slow_registry.load()

    await asyncio.gather(*(slow_registry.catch_up() for _ in range(1000)))

    assert slow_registry.tries == 1


async def test_next_visitor_waits_for_the_next_read(slow_registry: WatchedRegistry) -> None:
    """A read that began before the question is no answer to it, and the next one is not made at once."""
    await slow_registry.load()
    await slow_registry.catch_up()

    late = asyncio.create_task(slow_registry.catch_up())
    done, _ = await asyncio.wait([late], timeout=0.05)
    assert not done
    # What the feed reads meanwhile is as good.
    later = asyncio.create_task(slow_registry.catch_up())
    await asyncio.sleep(0)
    await slow_registry.refresh()
    late.cancel()
    await later

    assert slow_registry.tries == 2


async def test_visitor_who_leaves_does_not_take_the_read_away(registry: WatchedRegistry) -> None:
    """Of several who wait for one read the first may leave; the others are answered."""
    first, *others = (asyncio.create_task(registry.catch_up()) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()

    await asyncio.gather(*others)

    assert first.cancelled() or first.cancelling()
    assert registry.tries


async def test_visitors_are_told_together_that_nothing_can_be_read(
    registry: WatchedRegistry, database: Database
) -> None:
    """A read that fails is tried once for all who wait, and again for whoever comes later."""
    await execute(database, UNREADABLE)

    results = await asyncio.gather(*(registry.catch_up() for _ in range(50)), return_exceptions=True)
    assert [type(result) for result in results] == [RegistryStaleError] * 50
    assert registry.tries == 1

    await execute(database, READABLE)
    await registry.catch_up()


async def test_visitor_does_not_wait_for_a_read_that_hangs(
    database: Database, settings: Settings, other_process: Database
) -> None:
    """After half of the time for which the memory is trusted the answer is that nobody knows."""
    registry = WatchedRegistry(database, replace(settings, registry_max_age=0.4))
    await registry.load()
    async with other_process.connection() as connection:
        await connection.execute("LOCK TABLE quart_tenants.changes")
        results = await asyncio.gather(*(registry.catch_up() for _ in range(5)), return_exceptions=True)

    assert [str(result) for result in results] == ["the feed of changes cannot be read in time"] * 5
