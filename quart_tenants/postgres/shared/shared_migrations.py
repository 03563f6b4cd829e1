"""Run the migrations of the shared schemas, once for all tenants."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg

from quart_tenants.argument_checks import check_arguments
from quart_tenants.connection import Connection
from quart_tenants.errors import MigrationFailedError, TenantError
from quart_tenants.postgres.blocks.blockers import Watch, watch_waits
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.short_waits import has_waited
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.migrations.migration_alone import half_explained, run_alone
from quart_tenants.postgres.migrations.migration_files import (
    SHARED_LEDGER,
    Migration,
    get_shared_migrations,
    list_applied,
    plan_migrations,
)
from quart_tenants.postgres.migrations.migration_runs import explain_path, record_migrations, run_scripts
from quart_tenants.postgres.migrations.migration_tries import (
    GRACE,
    choose_pause,
    format_limits,
    limit_on_all_nodes,
    may_succeed_later,
)
from quart_tenants.postgres.migrations.transactions import count_committed_first, take_together
from quart_tenants.postgres.registry.registry_tables import ALL_TENANTS, announce_changes, check_registry
from quart_tenants.postgres.roles.owner_role import get_owner
from quart_tenants.postgres.shared.shared_access import grant_shared, make_shared_schemas, note_ledger_schema
from quart_tenants.postgres.shared.shared_names import SHARED_LOCK_KEY, refuse_shared_names
from quart_tenants.settings import Settings

# Only one command at a time changes the shared schemas.
_LOCK = f"SELECT pg_catalog.pg_advisory_xact_lock({SHARED_LOCK_KEY})"
_LOCK_SESSION = f"SELECT pg_catalog.pg_advisory_lock({SHARED_LOCK_KEY})"
# Seconds for which one waits for the other. Only new tenants wait behind that, and nobody who is served.
_PATIENCE = 2.0


async def plan_shared(database: Database, *, settings: Settings) -> tuple[Migration, ...]:
    """Return the shared migrations that did not run yet. This changes nothing.

    Raises:
        MigrationFileError: A file is no SQL, or was changed after it ran.
        RegistryNotReadyError: There is no registry yet.
    """
    migrations = get_shared_migrations(settings)
    if not migrations:
        return ()
    for migration in migrations:
        migration.check()
    async with database.connection() as connection:
        await check_registry(connection)
        return plan_migrations(migrations, await list_applied(connection, SHARED_LEDGER))


@check_arguments
async def migrate_shared(database: Database, *, settings: Settings) -> tuple[Migration, ...]:
    """Make the shared schemas, run the missing migrations there, and let the tenants' roles read. Return what ran.

    Files that follow one another run in one transaction, as for a tenant. They run as the role that has logged in,
    which owns the shared tables. A lock, a deadlock or a lost connection is tried again, as often as
    `TENANTS_MIGRATION_ATTEMPTS` says. A cancellation rolls back what has begun.

    Args:
        database: Needs one connection.
        settings: They name the schemas and the folder, and say how long a migration may take.

    Raises:
        MigrationFileError: A file is no SQL, or was changed after it ran. Nothing was run.
        MigrationFailedError: A statement failed.
        SharedNameError: A name would be in a tenant's schema and in a shared one.
        RegistryNotReadyError: There is no registry yet, or a schema cannot be made.
        RolesNotReadyError: Tenants have roles, and these cannot be given what is shared.

    Example:
        ```python
        for migration in await migrate_shared(database, settings=settings):
            print(migration.name)
        ```
    """
    if not settings.shared_schemas:
        return ()
    await plan_shared(database, settings=settings)
    ran: list[Migration] = []
    for attempt in itertools.count(1):
        try:
            async with _locked(database, database.connection(), settings) as connection:
                await check_registry(connection)
                await make_shared_schemas(connection, settings=settings)
            # Asked again each time: another command may run them, too.
            while missing := await plan_shared(database, settings=settings):
                ran += await _run_next(database, missing, settings)
            async with _locked(database, database.connection(), settings) as connection:
                await refuse_shared_names(connection, settings=settings)
                if settings.role_per_tenant:
                    await grant_shared(connection, await get_owner(connection), settings=settings)
        except TenantError as error:
            if not may_succeed_later(error) or attempt >= settings.migration_attempts:
                raise
            await asyncio.sleep(choose_pause(attempt))
        else:
            break
    return tuple(ran)


@asynccontextmanager
async def _locked(
    database: Database,
    block: AbstractAsyncContextManager[Connection],
    settings: Settings,
    files: Sequence[Migration] = (),
) -> AsyncIterator[Connection]:
    """Lend the connection of *block* while no other command changes the shared schemas.

    Raises:
        MigrationFailedError: PostgreSQL refused something. If a lock was not free, the error says who has it.
    """
    names = ", ".join(migration.name for migration in files) or "of the shared schemas"
    watch = Watch()
    try:
        async with block as connection, watch_waits(database, connection) as watch:
            await connection.execute(format_limits(settings, _PATIENCE, local=True))
            await connection.execute(_LOCK)
            await limit_on_all_nodes(connection, settings)
            yield connection
    except asyncpg.PostgresError as error:
        reason = f"{describe_refusal(error)}{_tell(watch, error)}"
        raise MigrationFailedError(settings.shared_schemas[0].name, names, reason) from error
    except MigrationFailedError as error:
        if not (told := _tell(watch, error)):
            raise
        raise MigrationFailedError(error.schema, error.migration, f"{error.reason}{told}") from error.__cause__


def _tell(watch: Watch, error: Exception) -> str:
    return f"; in the way: {watch.seen}" if watch.seen and has_waited(error) else ""


async def _run_next(database: Database, missing: Sequence[Migration], settings: Settings) -> Sequence[Migration]:
    """Run those of *missing* that go together, or the next one that runs alone. Return what was not run by another."""
    while together := take_together(missing):
        try:
            return await _run_together(database, together, settings)
        except MigrationFailedError as error:
            if not (first := count_committed_first(error, together)):
                raise
            missing = together[:first]
    return await _run_alone(database, missing[0], settings)


async def _run_together(database: Database, files: Sequence[Migration], settings: Settings) -> Sequence[Migration]:
    schema = settings.shared_schemas[0].name
    async with _locked(database, database.shared_connection(), settings, files) as connection:
        # Another command may have run them while this one waited.
        missing = await _list_missing(connection, files)
        await run_scripts(connection, schema, missing, seconds=settings.migration_statement_timeout + GRACE)
        path = await record_migrations(connection, SHARED_LEDGER, missing)
        if path != settings.shared_names:
            raise explain_path(schema, missing)
        await note_ledger_schema(connection, settings=settings)
        await refuse_shared_names(connection, settings=settings)
        await announce_changes(connection, ALL_TENANTS)
    return missing


async def _run_alone(database: Database, migration: Migration, settings: Settings) -> Sequence[Migration]:
    with half_explained(settings.shared_schemas[0].name, migration):
        async with database.session() as connection:
            await connection.execute(format_limits(settings, _PATIENCE, local=False))
            await connection.execute(_LOCK_SESSION)
            if not await _list_missing(connection, [migration]):
                return ()
            # An index that is built concurrently waits for transactions to end, and blocks nobody.
            limit = 0 if migration.script.batch_rows is None else settings.migration_lock_timeout
            await connection.execute(format_limits(settings, limit, local=False))
            await run_alone(connection, migration, settings.shared_names, settings=settings)
            await refuse_shared_names(connection, settings=settings)
            async with connection.transaction():
                await record_migrations(connection, SHARED_LEDGER, [migration])
                await note_ledger_schema(connection, settings=settings)
                await announce_changes(connection, ALL_TENANTS)
    return (migration,)


async def _list_missing(connection: Connection | DriverConnection, files: Sequence[Migration]) -> Sequence[Migration]:
    return plan_migrations(files, await list_applied(connection, SHARED_LEDGER))
