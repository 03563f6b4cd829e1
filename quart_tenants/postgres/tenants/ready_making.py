"""Make tenants in advance, so many as `TENANTS_READY_TENANTS` wants, and throw away those that no longer fit."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import asyncpg

from quart_tenants.argument_checks import check_arguments
from quart_tenants.connection import Connection
from quart_tenants.errors import (
    DatabaseTimeoutError,
    DependentsError,
    MigrationFailedError,
    MigrationFileError,
    TenantError,
)
from quart_tenants.long_lists import name_some
from quart_tenants.postgres.blocks.database import Database, enter_schema, list_tenant_path
from quart_tenants.postgres.blocks.short_waits import ShortWaits, wait_long
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.migrations.migration_files import Migration, get_tenant_migrations, refuse_edited
from quart_tenants.postgres.migrations.migration_runs import apply_migrations
from quart_tenants.postgres.migrations.transactions import count_committed_first, take_together
from quart_tenants.postgres.registry.registry_tables import check_registry
from quart_tenants.postgres.roles.owner_role import get_owner
from quart_tenants.postgres.shared.shared_names import refuse_shared_names
from quart_tenants.postgres.tenants.dependents import list_dependents
from quart_tenants.postgres.tenants.new_tenant import wait_for_turn
from quart_tenants.postgres.tenants.ready_tenants import count_ready, find_recipe, name_ready
from quart_tenants.postgres.tenants.schema_moves import FORGET_MIGRATIONS, move_schema
from quart_tenants.resources import read_statement
from quart_tenants.settings import Settings
from quart_tenants.tenant import REGISTRY_SCHEMA, RoleName, SchemaName

logger = logging.getLogger(__name__)

# Only one process at a time makes ready tenants, or there would be too many. The number is arbitrary: "ready" as bytes.
_LOCK = "SELECT pg_catalog.pg_advisory_xact_lock(491327153273)"
_TRY_LOCK = "SELECT pg_catalog.pg_try_advisory_xact_lock(491327153273)"
# $1 the recipe. Rows that a new tenant is taking are not seen.
_LIST = """
SELECT r.id, r.version, r.recipe = $1 AND n.oid IS NOT NULL AS fits
FROM quart_tenants.ready_schemas AS r
LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = ('quart_tenants_ready_' || r.id)::name
ORDER BY r.id FOR UPDATE OF r SKIP LOCKED
"""
_ADD = "INSERT INTO quart_tenants.ready_schemas (version, recipe) VALUES ($1, $2) RETURNING id"
_FORGET = "DELETE FROM quart_tenants.ready_schemas WHERE id = $1"
# Lists queries that find a table of schema $1 with a row that holds the text $2.
_LIST_SEARCHES = """
SELECT pg_catalog.format(
    'SELECT %L WHERE EXISTS (SELECT FROM %I.%I AS t WHERE pg_catalog.strpos(t::text, %L) > 0)',
    c.relname, n.nspname, c.relname, $2::text
) AS query
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_depend AS d
    ON d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid
    AND d.classid = 'pg_catalog.pg_class'::regclass
JOIN pg_catalog.pg_class AS c ON c.oid = d.objid AND c.relkind IN ('r', 'm')
WHERE n.nspname = $1
"""
_LOOK_EVERY = 10.0  # seconds between two looks of a worker, for another process may have taken some


@dataclass(slots=True)
class ReadyReport:
    """What was done about the ready tenants.

    Attributes:
        made: How many were made.
        removed: How many were thrown away, because they no longer fit or were too many.
        ready: How many there are that a new tenant can take.

    Example:
        ```python
        report = await prepare_tenants(database, settings=settings)
        print(report.made, report.removed, report.ready)
        ```
    """

    made: int = 0
    removed: int = 0
    ready: int = 0


@check_arguments
async def prepare_tenants(database: Database, *, settings: Settings, wait: bool = True) -> ReadyReport:
    """Make ready tenants until there are as many as `TENANTS_READY_TENANTS` says, and throw away what does not fit.

    One that was made from other files, or beside other shared tables, is thrown away and made anew. If there is one of
    a newer program, nothing is done, because that program looks after them. Each is made in a transaction of its own: a
    cancellation leaves those that are complete.

    Args:
        database: The database; its role needs CREATE on it.
        settings: They say how many, and where the migrations are.
        wait: Whether to wait for another process that makes some. Otherwise this leaves it to that process.

    Raises:
        MigrationFileError: A file is no SQL, was changed after it ran for a tenant, or needs a transaction of its own.
        MigrationFailedError: A migration failed, or it writes the schema's name where no renaming reaches it.
        SharedNameError: A name is in the tenant's schema and in a shared one.
        DatabaseTimeoutError: A table that the files lock, or what is dropped, is in use. The error says by whom.
        DependentsError: Something outside depends on a schema that does not fit any more.
        RegistryNotReadyError: There is no registry yet.
        RolesNotReadyError: Each tenant must have a role, but roles are not set up.

    Example:
        ```python
        report = await prepare_tenants(database, settings=replace(settings, ready_tenants=2))
        print(report.ready)
        ```
    """
    migrations = get_tenant_migrations(settings)
    # In a thread: the parser is loaded, and a worker serves meanwhile.
    together = await asyncio.to_thread(take_together, migrations, new_tables=True)
    if settings.ready_tenants and len(together) < len(migrations):
        raise _explain_steps(migrations[len(together)])
    report = ReadyReport()
    while await _do_next(database, migrations, settings, report, wait=wait):
        pass
    return report


async def keep_ready(
    database: Database, wanted: asyncio.Event, *, settings: Settings, look_every: float = _LOOK_EVERY
) -> NoReturn:
    """Call `prepare_tenants` when *wanted* is set, and in every *look_every* seconds, until this is cancelled.

    Args:
        database: The pool of a worker. The tenants are made on a connection of their own.
        wanted: Set when a ready tenant was taken.
        settings: The settings of the worker.
        look_every: In seconds.
    """
    failed = False
    while True:
        try:
            async with database.connection() as connection:
                count = await count_ready(connection, get_tenant_migrations(settings), settings=settings)
            if count != settings.ready_tenants:
                async with await Database.open(settings, max_size=1) as maker:
                    await prepare_tenants(maker, settings=settings, wait=False)
        except Exception as error:
            # No error may end this task, and none stops a sign-up: without a ready tenant it makes its own.
            if not failed:
                known = isinstance(error, TenantError)
                logger.warning("no tenant can be made in advance: %s", error, exc_info=None if known else error)
            failed = True
        else:
            failed = False
        try:
            async with asyncio.timeout(look_every):
                await wanted.wait()
        except TimeoutError:
            continue
        wanted.clear()


async def _do_next(
    database: Database, migrations: Sequence[Migration], settings: Settings, report: ReadyReport, *, wait: bool
) -> bool:
    """Throw one ready tenant away, make one, or both, in one transaction. Return whether there may be more to do.

    Both go together: a program of before, which runs at the same time, sees the new one and leaves it alone.
    """
    tries = ShortWaits(
        database, lambda in_the_way: DatabaseTimeoutError(f"no tenant was made in advance: {in_the_way}")
    )
    while True:
        async with tries.try_once() as connection:
            await check_registry(connection)
            if wait:
                await wait_long(connection, _LOCK)
            elif not await connection.fetchval(_TRY_LOCK):
                return False
            await refuse_edited(connection, migrations)
            owner = await get_owner(connection) if settings.role_per_tenant else None
            recipe = await find_recipe(connection, migrations, owner, settings=settings)
            rows = await connection.fetch(_LIST, recipe)
            fitting = [row["id"] for row in rows if row["fits"]]
            if any(row["version"] > len(migrations) for row in rows):
                report.ready = len(fitting)
                return False
            useless = [row["id"] for row in rows if not row["fits"]] + fitting[settings.ready_tenants :]
            lacking = len(fitting) < settings.ready_tenants
            if lacking:
                await wait_for_turn(connection, tries)
                await _make(connection, migrations, recipe, owner, settings)
            # Second, because nobody reads a shared table while a foreign key to it is dropped, until the commit.
            if useless:
                await _remove(connection, useless[0])
            break
    report.removed += bool(useless)
    report.made += lacking
    report.ready = min(len(fitting) + lacking, settings.ready_tenants)
    return bool(useless) or lacking


async def _make(
    connection: Connection, migrations: Sequence[Migration], recipe: str, owner: RoleName | None, settings: Settings
) -> None:
    number = await connection.fetchval(_ADD, len(migrations), recipe)
    # It is made under another name, and renamed as it will be when it is taken. So what a renaming does not reach is
    # found now, and not in a tenant that reads another one's rows.
    making = SchemaName(f"{REGISTRY_SCHEMA}_making_{number}")
    await connection.execute(f"CREATE SCHEMA {making.quoted}")
    if owner is not None:
        await connection.execute(f"ALTER SCHEMA {making.quoted} OWNER TO {owner.quoted}")
    await enter_schema(connection, making, settings=settings)
    path = list_tenant_path(making, settings)
    try:
        await apply_migrations(connection, making.name, migrations, path=path, owner=owner is not None)
    except MigrationFailedError as error:
        if first := count_committed_first(error, migrations):
            raise _explain_steps(migrations[first]) from error
        raise
    await connection.execute("SET LOCAL search_path TO ''")
    await refuse_shared_names(connection, making, settings=settings)
    ready = name_ready(number)
    await move_schema(connection, making, ready)
    await _refuse_name_in_texts(connection, ready, making, migrations)


def _explain_steps(migration: Migration) -> MigrationFileError:
    return MigrationFileError(
        f"{migration.name}: no tenant can be made in advance, because in a new one this file cannot run in the "
        "transaction of the files before it; set TENANTS_READY_TENANTS to 0, or, if it uses an enum value that an "
        "earlier file adds to a type of the tenant's own, take PostgreSQL 17 or newer"
    )


async def _refuse_name_in_texts(
    connection: Connection, schema: SchemaName, name: SchemaName, migrations: Sequence[Migration]
) -> None:
    """Make sure that nothing in *schema* holds *name*, which it had before, as a text.

    Raises:
        MigrationFailedError: Something does.
    """
    names = name_some([migration.name for migration in migrations])
    try:
        for (statement,) in await connection.fetch(read_statement("refuse_old_schema_name"), schema.name, name.name):
            await connection.execute(statement)
    except asyncpg.PostgresError as error:
        raise MigrationFailedError(schema.name, names, describe_refusal(error)) from error
    searches = [row["query"] for row in await connection.fetch(_LIST_SEARCHES, schema.name, name.name)]
    found = [table for (table,) in await connection.fetch(" UNION ALL ".join(searches))] if searches else []
    if found:
        reason = f"a row of {name_some(found)} holds the schema's name, which the tenant will not have"
        raise MigrationFailedError(schema.name, names, reason)


async def _remove(connection: Connection, number: int) -> None:
    """Drop a ready schema. One transaction has made it, so one has locks enough to drop it."""
    schema = name_ready(number)
    dependents = await list_dependents(connection, schema)
    if dependents:
        raise DependentsError(schema.name, name_some([str(one) for one in dependents]), removable=False)
    await connection.execute(f"DROP SCHEMA IF EXISTS {schema.quoted} CASCADE")
    await connection.execute(FORGET_MIGRATIONS, schema.name)
    await connection.execute(_FORGET, number)
