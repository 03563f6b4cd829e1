"""Back up one tenant into one file while it is being served."""

import asyncio
import os
import subprocess
from pathlib import Path

from quart_tenants.connection import Connection
from quart_tenants.errors import BackupFileError, ClientProgramError, DatabaseRefusedError, DatabaseUnavailableError
from quart_tenants.postgres.backups.backup_files import (
    AppliedMigration,
    Backup,
    FormerSlug,
    OwnDomain,
    Piped,
    refuse_existing,
    write_backup,
)
from quart_tenants.postgres.backups.client_programs import (
    build_environment,
    find_client_programs,
    start_program,
)
from quart_tenants.postgres.backups.pipes import Measure, Pipe, write_through
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import check_registry
from quart_tenants.postgres.registry.tenant_locks import lock_tenant
from quart_tenants.postgres.roles.owner_role import find_owner
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug

# This connection is idle while pg_dump or psql works.
WAIT_FOR_EVER = "SET LOCAL idle_in_transaction_session_timeout TO 0"
GET_SERVER_VERSION = "SELECT pg_catalog.current_setting('server_version_num')::integer"
# pg_dump --schema leaves extensions out, and then columns of their types cannot be restored.
_FIND_EXTENSION = """
SELECT pg_catalog.quote_ident(e.extname) FROM pg_catalog.pg_extension AS e
JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
WHERE n.nspname = $1 ORDER BY e.extname LIMIT 1
"""

# This statement and pg_dump use the same snapshot. So a transaction that commits meanwhile is in both or in neither.
_TAKE_SNAPSHOT = """
SELECT
    t.id, t.slug, t.schema_name, t.display_name, t.created_at, clock_timestamp() AS made_at,
    pg_catalog.pg_export_snapshot() AS snapshot,
    coalesce(m.versions, '{}') AS versions, coalesce(m.names, '{}') AS names, coalesce(m.digests, '{}') AS digests,
    ARRAY(
        SELECT ROW (d.domain, d.token) FROM quart_tenants.domains AS d
        WHERE d.tenant_id = t.id AND d.verified_at IS NOT NULL ORDER BY d.domain
    ) AS domains,
    ARRAY(
        SELECT ROW (f.slug, f.redirect_until) FROM quart_tenants.former_slugs AS f
        WHERE f.tenant_id = t.id AND f.redirect_until > now() ORDER BY f.slug
    ) AS former_slugs
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
    database: Database, slug: Slug, file: Path, *, settings: Settings, force: bool = False, pipe: Pipe | None = None
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
        pipe: A program that the dump is piped through, such as one that encrypts it. The dump itself never touches the
            disk then. What the file says about itself is not piped: slug, name, domains, versions, times.

    Raises:
        UnknownTenantError: There is no such tenant.
        TenantInTrashError: The tenant is in the trash.
        TenantBusyError: The tenant is being migrated or changed.
        BackupFileError: *file* exists or cannot be written, or the schema holds an extension.
        ClientProgramError: PostgreSQL's programs are missing, too old, or do not run; or *pipe* failed.
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
        extension = await connection.fetchval(_FIND_EXTENSION, tenant.schema.name)
        if extension is not None:
            raise BackupFileError(
                f"tenant {slug!r}",
                f"cannot be backed up: its schema {tenant.schema} holds the extension {extension}, which belongs to "
                f"the whole database; move it to a shared one: ALTER EXTENSION {extension} SET SCHEMA "
                f"{settings.shared_schemas[0].quoted if settings.shared_schemas else 'public'}",
            )
        backup, snapshot = await _take_snapshot(connection, tenant.id, tenant.schema, version, pipe)
        # If tenants have or had roles of their own, the dump has no grants: they name this tenant's role, and a restore
        # makes its own grants.
        roles = await find_owner(connection) is not None
        with write_backup(file, backup, force=force) as writer:
            plain = Measure()
            async with (
                start_program(
                    programs.dump(tenant.schema, snapshot, privileges=not roles),
                    build_environment(settings.required_database_url, os.environ),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                ) as pg_dump,
                write_through(pipe, writer.write) as write,
            ):
                while chunk := await pg_dump.read():
                    plain.add(chunk)
                    await write(chunk)
                status, words = await pg_dump.wait()
                if status != 0:
                    # A status below 0 means that it was killed. Otherwise it repeats the error of the server.
                    refused = ClientProgramError if status < 0 else DatabaseRefusedError
                    raise refused(f"tenant {slug!r} was not backed up: {describe_failure('pg_dump', words)}")
            return await asyncio.to_thread(writer.finish, None if pipe is None else plain.tell(pipe.name))


def describe_failure(name: str, words: str) -> str:
    """Return the first line of a program's error. Later lines may hold rows of a table."""
    lines = words.splitlines() or ["it ended without a word"]
    line = next((line for line in lines if "error:" in line), lines[0])
    return f"{name}: {line.removeprefix(f'{name}: ').removeprefix('error: ')}"


async def _take_snapshot(
    connection: Connection, tenant_id: int, schema: SchemaName, server_version: int, pipe: Pipe | None
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
        domains=tuple(OwnDomain(*domain) for domain in row["domains"]),
        former_slugs=tuple(FormerSlug(*former) for former in row["former_slugs"]),
        piped=None if pipe is None else Piped(pipe.name),
    )
    return backup, row["snapshot"]
