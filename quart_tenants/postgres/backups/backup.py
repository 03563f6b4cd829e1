"""Back up one tenant into one file while it is being served."""

import asyncio
import os
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from quart_tenants.connection import Connection
from quart_tenants.errors import BackupFileError, ClientProgramError, DatabaseRefusedError, DatabaseUnavailableError
from quart_tenants.postgres.backups.backup_files import (
    AppliedMigration,
    Backup,
    BackupWriter,
    refuse_existing,
    write_backup,
)
from quart_tenants.postgres.backups.client_programs import (
    Program,
    build_environment,
    describe_failure,
    find_client_programs,
    start_program,
)
from quart_tenants.postgres.backups.rows_only import Shapes, plan_rows_only
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import check_registry
from quart_tenants.postgres.registry.tenant_locks import lock_tenant
from quart_tenants.postgres.roles.owner_role import find_owner
from quart_tenants.resources import read_statement
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant

# This connection is idle while pg_dump or psql works.
WAIT_FOR_EVER = "SET LOCAL idle_in_transaction_session_timeout TO 0"
_GZIP = 31  # zlib's name for a whole gzip file
GET_SERVER_VERSION = "SELECT pg_catalog.current_setting('server_version_num')::integer"
# This statement and pg_dump use the same snapshot. So a transaction that commits meanwhile is in both or in neither.
_TAKE_SNAPSHOT = """
SELECT
    t.id, t.slug, t.schema_name, t.display_name, t.created_at, clock_timestamp() AS made_at,
    pg_catalog.pg_export_snapshot() AS snapshot,
    coalesce(m.versions, '{}') AS versions, coalesce(m.names, '{}') AS names, coalesce(m.digests, '{}') AS digests
FROM quart_tenants.tenants AS t
CROSS JOIN (
    SELECT
        array_agg(version ORDER BY version) AS versions,
        array_agg(name ORDER BY version) AS names,
        array_agg(sha256 ORDER BY version) AS digests
    FROM quart_tenants.applied_migrations WHERE schema_name = $2
) AS m
WHERE t.id = $1
"""


async def backup_tenant(
    database: Database,
    slug: Slug,
    file: Path,
    *,
    settings: Settings,
    force: bool = False,
    shapes: Shapes | None = None,
) -> Backup:
    """Write a tenant's schema, and its rows in the registry, into *file* with mode 0600.

    The backup shows one moment. Nobody can migrate, rename or drop the tenant meanwhile, and requests go on. After a
    failure or a cancellation there is no new file, and an older *file* is unchanged.

    Args:
        database: The database of the tenant.
        slug: The slug of the tenant.
        file: A tar for `restore_tenant`. It holds password hashes, as the tables do.
        settings: They have the address of the database.
        force: Whether *file* may exist already; it is replaced at the end.
        shapes: The same dictionary for all backups of one run saves most of their time in the database.

    Raises:
        UnknownTenantError: There is no such tenant.
        TenantInTrashError: The tenant is in the trash.
        TenantBusyError: The tenant is being migrated or changed.
        BackupFileError: *file* exists or cannot be written, or the schema holds what a dump leaves out: an extension, a
            cast, a foreign table, a large object, a table that inherits from one of another schema.
        ClientProgramError: PostgreSQL's programs are missing, too old, or do not run.
        DatabaseRefusedError: PostgreSQL refused it, for example for a lack of rights.
        RegistryNotReadyError: There is no registry yet.
    """
    refuse_existing(file, force=force)
    async with database.connection() as connection:
        await check_registry(connection)
        await connection.execute(WAIT_FOR_EVER)
        version = await connection.fetchval(GET_SERVER_VERSION)
        programs = await find_client_programs(version // 10000)
        # The lock comes first: the snapshot must not show a migration that is half done.
        tenant = await lock_tenant(connection, slug)
        await _check_carried(connection, tenant, settings)
        backup, snapshot = await _take_snapshot(connection, tenant.id, tenant.schema, version)
        # If tenants have or had roles of their own, the dump has no grants: they name this tenant's role, and a restore
        # makes its own grants.
        roles = await find_owner(connection) is not None
        plan = await plan_rows_only(
            connection,
            tenant,
            backup.migrations,
            settings=settings,
            privileges=not roles,
            server_version=version,
            shapes={} if shapes is None else shapes,
        )
        environment = build_environment(settings.required_database_url, os.environ)
        if plan is None:
            backup = replace(
                backup,
                shadows=await connection.fetchval(read_statement("shadows_server_functions"), tenant.schema.name),
            )
            program = start_program(
                programs.dump(tenant.schema, snapshot, privileges=not roles),
                environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
        else:
            backup = replace(backup, rows=plan.rows)
            program = start_program(programs.read_rows(), environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with write_backup(file, backup, force=force) as writer:
            async with program as running:
                if plan is None:
                    await _read_all(running, writer.write)
                else:
                    await _read_rows(running, plan.write_script(snapshot), writer)
                status, words = await running.wait()
            if status != 0:
                # A status below 0 means that it was killed. Otherwise it repeats the error of the server.
                refused = ClientProgramError if status < 0 else DatabaseRefusedError
                raise refused(f"tenant {slug!r} was not backed up: {describe_failure(running.name, words)}")
            return await asyncio.to_thread(writer.finish)


async def _read_rows(psql: Program, script: str, writer: BackupWriter) -> None:
    """Compress what psql prints. pg_dump compresses its own."""
    compressor = zlib.compressobj(wbits=_GZIP)
    # psql reads its script as it goes on, and would wait for us to read what it prints.
    feeding = asyncio.create_task(psql.write_all(script.encode()))
    try:
        await _read_all(psql, lambda chunk: writer.write(compressor.compress(chunk)))
        await feeding
    finally:
        feeding.cancel()
    await asyncio.to_thread(writer.write, compressor.flush())


async def _read_all(program: Program, write: Callable[[bytes], object]) -> None:
    while chunk := await program.read():
        await asyncio.to_thread(write, chunk)


async def _check_carried(connection: Connection, tenant: Tenant, settings: Settings) -> None:
    """Refuse a schema that holds something that would not be in the dump."""
    shared = settings.shared_schemas[0].name if settings.shared_schemas else "public"
    found = await connection.fetchrow(read_statement("list_not_carried"), tenant.schema.name, shared)
    if found is not None:
        name, remedy = found
        raise _cannot_be_backed_up(tenant, f"holds {name}", remedy)
    for question, name in await connection.fetch(read_statement("list_large_object_columns"), tenant.schema.name):
        if await connection.fetchval(question):
            raise _cannot_be_backed_up(
                tenant,
                f"has large objects in {name}",
                "they belong to the whole database; keep their bytes in a column of type bytea",
            )


def _cannot_be_backed_up(tenant: Tenant, why: str, remedy: str) -> BackupFileError:
    return BackupFileError(
        f"tenant {tenant.slug!r}", f"cannot be backed up: its schema {tenant.schema} {why}; {remedy}"
    )


async def _take_snapshot(
    connection: Connection, tenant_id: int, schema: SchemaName, server_version: int
) -> tuple[Backup, str]:
    row = await connection.fetchrow(_TAKE_SNAPSHOT, tenant_id, schema.name)
    if row is None:
        raise DatabaseUnavailableError("the tenant's row was removed by hand")
    backup = Backup(
        id=row["id"],
        slug=row["slug"],
        schema=schema,
        name=row["display_name"],
        created_at=row["created_at"],
        made_at=row["made_at"],
        server_version=server_version,
        migrations=tuple(
            AppliedMigration(*applied) for applied in zip(row["versions"], row["names"], row["digests"], strict=True)
        ),
    )
    return backup, row["snapshot"]
