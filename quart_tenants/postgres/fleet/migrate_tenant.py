"""Migrate one tenant to a version, also if another process tries the same."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import NamedTuple

import asyncpg

from quart_tenants.connection import Connection
from quart_tenants.errors import (
    DatabaseRefusedError,
    MigrationFailedError,
    TenantBusyError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.block import find_reported_path, list_path
from quart_tenants.postgres.blocks.database import Database, list_tenant_path
from quart_tenants.postgres.driver.connection_types import DriverConnection
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.postgres.migrations.migration_alone import half_explained, run_alone
from quart_tenants.postgres.migrations.migration_files import Migration
from quart_tenants.postgres.migrations.migration_runs import (
    AfterStatement,
    explain_path,
    record_migrations,
    run_scripts,
)
from quart_tenants.postgres.migrations.migration_tries import GRACE, format_limits, limit_on_all_nodes
from quart_tenants.postgres.migrations.transactions import count_committed_first, take_together
from quart_tenants.postgres.registry.registry_tables import announce_changes
from quart_tenants.postgres.registry.tenant_locks import LOCK_KEY, lock_session
from quart_tenants.postgres.roles.owner_role import as_owner
from quart_tenants.postgres.shared.shared_names import refuse_shared_names
from quart_tenants.settings import Settings
from quart_tenants.tenant import Tenant

# Also says whether the schema exists and whether this role may use it.
_FIND_STANDING = """
SELECT t.version, n.oid IS NOT NULL AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS usable
FROM quart_tenants.living_tenants AS t LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schema_name
WHERE t.id = $1 AND t.schema_name = $2
"""
# All statements go in one message, without parameters. Parameters would cost eight more messages for each tenant, which
# is as long as a small migration takes. Only numbers, names that match the pattern of a migration file, and digests in
# hex are put in.
#
# No row is inserted if another process has the lock, or if the tenant was dropped. If the tenant is at another version
# by now, the table refuses the rows: they are there already, or an earlier one is missing.
_CLAIM = """
{limits};
INSERT INTO quart_tenants.changes (tenant_id) VALUES ({id:d});
INSERT INTO quart_tenants.applied_migrations (schema_name, version, name, sha256)
SELECT t.schema_name, m.version, m.name, m.sha256
FROM quart_tenants.tenants AS t CROSS JOIN (VALUES {rows}) AS m (version, name, sha256)
WHERE t.id = {id:d} AND t.schema_name = pg_catalog.current_schema() AND pg_catalog.pg_try_advisory_xact_lock({key})
"""


class Reached(NamedTuple):
    """Where a tenant stands after `migrate_tenant`.

    Attributes:
        version: The version of its tables.
        by_us: Whether this call ran the last file, and not another process.
    """

    version: int
    by_us: bool


class _StandsElsewhereError(Exception):
    """The tenant is at another version than expected, because another process was faster."""


async def migrate_tenant(
    database: Database,
    tenant: Tenant,
    migrations: Sequence[Migration],
    *,
    settings: Settings,
    last_together: dict[int, int] | None = None,
    on_citus: bool = False,
    after: AfterStatement | None = None,
) -> Reached:
    """Run the missing ones of *migrations* in the tenant's schema, and return its new version.

    Files that follow one another run in one transaction, together with the rows that record them. If one of them uses
    an enum value that an earlier one adds, the earlier files run in a transaction of their own first. A file that says
    `-- quart-tenants: no transaction` runs statement by statement on its own connection. If a statement of it fails,
    the ones before it stay, and the next try runs the file from its start. So does a file in batches.

    The caller must make sure that no file was changed after it ran (`refuse_edited`).

    A cancellation rolls back what has begun. If two processes migrate one tenant, the second one waits and then finds
    nothing to do.

    Args:
        database: Needs one connection.
        tenant: As the registry knows it.
        migrations: All files up to the version to reach.
        settings: They say how long a migration may take.
        last_together: Which versions go together in one transaction, the last one by the first one. This function adds
            what it finds out, so that it does not try in vain for the next tenant.
        on_citus: Whether the limits must reach the nodes of a Citus cluster, too.
        after: Called after each statement.

    Raises:
        MigrationFileError: A file is no SQL.
        MigrationFailedError: A statement failed. Files that were committed before stay.
        TenantBusyError: Another process migrates or changes the tenant.
        UnknownTenantError: The tenant was dropped meanwhile.
        DatabaseUnavailableError: The connection was lost. What was recorded is done, and all else is not.
        RolesNotReadyError: The files must run as the owner role, which `init` has not made yet.
    """
    version = tenant.version
    by_us = False
    last_together = {} if last_together is None else last_together
    while missing := migrations[version:]:
        together = take_together(missing)
        if version + 1 in last_together:
            together = together[: last_together[version + 1] - version]
        try:
            if together:
                await _run_together(database, tenant, together, settings, after, on_citus)
            else:
                await _run_alone(database, tenant, missing[0], settings, after)
        except _StandsElsewhereError:
            by_us = False
            async with database.connection() as connection:
                version = await _check_usable(connection, tenant)
        except MigrationFailedError as error:
            if not (first := count_committed_first(error, together)):
                raise
            last_together[version + 1] = version + first
        else:
            version += len(together) or 1
            by_us = True
    return Reached(version, by_us)


async def _run_together(
    database: Database,
    tenant: Tenant,
    migrations: Sequence[Migration],
    settings: Settings,
    after: AfterStatement | None = None,
    on_citus: bool = False,
) -> None:
    """Run files in one transaction with the rows that record them."""
    rows = ", ".join(f"({migration.version:d}, '{migration.name}', '{migration.sha256}')" for migration in migrations)
    claim = _CLAIM.format(
        limits=format_limits(settings, settings.migration_lock_timeout, local=True),
        key=LOCK_KEY.format(tenant.id),
        id=tenant.id,
        rows=rows,
    )
    seconds = settings.migration_statement_timeout + GRACE
    try:
        # The claim itself asks whether the tenant has its schema.
        block = database.tenant_connection(tenant, first=claim, without_role=True, is_known=True)
        async with AsyncExitStack() as stack:
            try:
                connection = await stack.enter_async_context(block)
            except (asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError) as error:
                raise _StandsElsewhereError from error
            if block.status != f"INSERT 0 {len(migrations)}":
                await _check_usable(connection, tenant)
                raise TenantBusyError(tenant.slug)
            if on_citus:
                await limit_on_all_nodes(connection, settings)
            told = find_reported_path(connection)
            async with as_owner(connection, wanted=settings.role_per_tenant):
                await run_scripts(connection, tenant.schema.name, migrations, seconds=seconds, after=after)
            path = list_tenant_path(tenant.schema, settings)
            if told in (tenant.schema.name, tenant.schema.quoted):
                # This server reports every change of the path, because it has reported this path.
                same = find_reported_path(connection) == told
            else:
                same = await list_path(connection) == path
            if not same:
                raise explain_path(tenant.schema.name, migrations)
            await refuse_shared_names(connection, tenant.schema, settings=settings)
    except asyncpg.PostgresError as error:
        # For example, a constraint that is checked at the commit.
        names = ", ".join(migration.name for migration in migrations)
        raise MigrationFailedError(tenant.schema.name, names, describe_refusal(error)) from error


async def _run_alone(
    database: Database, tenant: Tenant, migration: Migration, settings: Settings, after: AfterStatement | None = None
) -> None:
    """Run a file that PostgreSQL refuses in a transaction."""
    with half_explained(tenant.schema.name, migration):
        async with database.session(tenant.schema) as connection:
            await connection.execute(format_limits(settings, settings.migration_lock_timeout, local=False))
            await lock_session(connection, tenant.id, tenant.slug, settings.migration_lock_timeout)
            if await _check_usable(connection, tenant) != migration.version - 1:
                raise _StandsElsewhereError
            # An index that is built concurrently waits for transactions to end, and blocks nobody. So it has no limit
            # for locks: if it were stopped half-way, it would leave an invalid index.
            # A batch waits for rows as any other statement does.
            limit = 0 if migration.script.batch_rows is None else settings.migration_lock_timeout
            await connection.execute(format_limits(settings, limit, local=False))
            path = list_tenant_path(tenant.schema, settings)
            async with as_owner(connection, wanted=settings.role_per_tenant, local=False):
                await run_alone(connection, migration, path, settings=settings, after=after)
            await refuse_shared_names(connection, tenant.schema, settings=settings)
            async with connection.transaction():
                await record_migrations(connection, tenant.schema.name, [migration])
                await announce_changes(connection, tenant.id)


async def _check_usable(connection: Connection | DriverConnection, tenant: Tenant) -> int:
    """Make sure that the tenant exists and that this role may use its schema; return its version."""
    standing = await connection.fetchrow(_FIND_STANDING, tenant.id, tenant.schema.name)
    if standing is None:
        # Its schema has another name now: it is in the trash, or a backup has replaced it.
        raise UnknownTenantError(tenant.slug)
    if not standing["usable"]:
        raise DatabaseRefusedError(f"schema {tenant.schema.name!r} is missing, or this role may not use it")
    return int(standing["version"])
