"""Back up one tenant into one file while it is being served."""

import asyncio
import json
import os
import subprocess
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from quart_tenants.argument_checks import check_arguments
from quart_tenants.connection import Connection
from quart_tenants.errors import BackupFileError, ClientProgramError, DatabaseRefusedError, DatabaseUnavailableError
from quart_tenants.postgres.backups.backup_files import open_backup, refuse_existing, write_backup
from quart_tenants.postgres.backups.client_programs import (
    Program,
    build_environment,
    describe_failure,
    find_client_programs,
    start_program,
)
from quart_tenants.postgres.backups.manifests import AppliedMigration, Backup, FormerSlug, OwnDomain, Piped
from quart_tenants.postgres.backups.migrated_shapes import Shapes
from quart_tenants.postgres.backups.pipes import Measure, Pipe, write_through
from quart_tenants.postgres.backups.pouring import Dump
from quart_tenants.postgres.backups.restore_scripts import GET_PLACE, Restoration
from quart_tenants.postgres.backups.rows_only import plan_rows_only
from quart_tenants.postgres.backups.verifying import take_picture, verify_backup
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.long_work import stay_open
from quart_tenants.postgres.registry.tenant_locks import lock_tenant
from quart_tenants.postgres.roles.owner_role import find_owner
from quart_tenants.resources import read_statement
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant

_GZIP = 31  # zlib's name for a whole gzip file
GET_SERVER_VERSION = "SELECT pg_catalog.current_setting('server_version_num')::integer"
# The hash of a value of an enum, or of an array of them, is another one after a restore.
_HAS_HASH_PARTITIONS = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_partitioned_table AS p
    JOIN pg_catalog.pg_class AS c ON c.oid = p.partrelid
    WHERE p.partstrat = 'h' AND c.relnamespace = $1::text::regnamespace
)
"""
# This statement and pg_dump use the same snapshot. So a transaction that commits meanwhile is in both or in neither.
# Lower numbers are of PostgreSQL's own objects (FirstNormalObjectId), of which thousands have a comment.
_TAKE_SNAPSHOT = """
SELECT
    t.id, t.slug, t.schema_name, t.display_name, t.settings::text, t.created_at, clock_timestamp() AS made_at,
    pg_catalog.pg_export_snapshot() AS snapshot,
    EXISTS (SELECT FROM pg_catalog.pg_description WHERE objoid >= 16384) AS has_comments,
    EXISTS (SELECT FROM pg_catalog.pg_seclabel) AS has_labels,
    (
        SELECT jsonb_agg(jsonb_build_array(a.version, a.name, a.sha256) ORDER BY a.version)
        FROM quart_tenants.applied_migrations AS a WHERE a.schema_name = $2
    ) AS migrations,
    (
        SELECT jsonb_agg(jsonb_build_array(d.domain, d.token) ORDER BY d.domain)
        FROM quart_tenants.domains AS d WHERE d.tenant_id = t.id AND d.verified_at IS NOT NULL
    ) AS domains,
    (
        SELECT jsonb_agg(jsonb_build_array(f.slug, f.redirect_until) ORDER BY f.slug)
        FROM quart_tenants.former_slugs AS f WHERE f.tenant_id = t.id AND f.redirect_until > now()
    ) AS former_slugs
FROM quart_tenants.tenants AS t
WHERE t.id = $1
"""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A moment of the database.

    Attributes:
        name: From `pg_export_snapshot()`.
        has_comments: Whether anything in the database has a comment, but for what PostgreSQL has made itself.
        has_labels: Whether anything in the database has a security label.
    """

    name: str
    has_comments: bool
    has_labels: bool


@check_arguments
async def backup_tenant(
    database: Database,
    slug: Slug,
    file: Path,
    *,
    settings: Settings,
    force: bool = False,
    pipe: Pipe | None = None,
    verify: bool = False,
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
        pipe: A program that the dump is piped through, such as one that encrypts it. The dump itself never touches the
            disk then. What the file says about itself is not piped: slug, name, domains, versions, times. So the
            tenant's settings are left out.
        verify: Whether to restore the backup in a transaction that is rolled back, and to compare every object and
            every row, but for materialized views. It is not possible with *pipe*.
        shapes: The same one for all backups of a run saves most of their time in the database.

    Raises:
        UnknownTenantError: There is no such tenant.
        TenantInTrashError: The tenant is in the trash.
        TenantBusyError: The tenant is being migrated or changed.
        BackupFileError: *file* exists or cannot be written, or the schema holds what a dump leaves out: an extension, a
            cast, a foreign table, a large object, a table that inherits from one of another schema; or what comes
            back is not what was backed up.
        ClientProgramError: PostgreSQL's programs are missing, too old, or do not run; or *pipe* failed.
        DatabaseRefusedError: PostgreSQL refused it, for example for a lack of rights.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        await backup_tenant(database, parse_slug("acme"), Path("acme.tar"), settings=settings, verify=True)
        ```
    """
    if verify and pipe is not None:
        raise BackupFileError(
            str(file), "cannot be verified while it is piped: what undoes the program is not known here"
        )
    refuse_existing(file, force=force)
    # Before there is a transaction: a pooler may have one connection.
    environment = build_environment(await database.get_own_url("a backup"), os.environ)
    async with database.connection() as connection:
        # The lock comes first: the snapshot must not show a migration that is half done.
        tenant = await lock_tenant(connection, slug)
        # This connection is idle while pg_dump or psql works.
        await stay_open(connection)
        version = await connection.fetchval(GET_SERVER_VERSION)
        programs = await find_client_programs(version // 10000)
        await _check_carried(connection, tenant, settings)
        backup, snapshot = await _take_snapshot(connection, tenant.id, tenant.schema, version, pipe)
        # If tenants have or had roles of their own, the dump has no grants: they name this tenant's role, and a restore
        # makes its own grants.
        privileges = await find_owner(connection) is None
        plan = await plan_rows_only(
            connection,
            tenant,
            backup.migrations,
            settings=settings,
            privileges=privileges,
            server_version=version,
            shapes=Shapes() if shapes is None else shapes,
        )
        picture = None
        if verify:
            picture = await take_picture(
                connection,
                tenant.schema,
                snapshot.name,
                programs,
                environment,
                settings=settings,
                privileges=privileges,
            )
        if plan is None:
            shadows = await connection.fetchval(read_statement("shadows_server_functions"), tenant.schema.name)
            backup = replace(backup, shadows=shadows)
            by_root = await connection.fetchval(_HAS_HASH_PARTITIONS, tenant.schema.quoted)
            command = programs.dump(
                tenant.schema,
                snapshot.name,
                privileges=privileges,
                by_root=by_root,
                comments=snapshot.has_comments,
                labels=snapshot.has_labels,
            )
            script = b""
        else:
            backup = replace(backup, rows=plan.rows)
            command, script = programs.read_rows(), plan.write_script(snapshot.name).encode()
        with write_backup(file, backup, force=force) as writer:
            plain = Measure()
            async with (
                start_program(command, environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running,
                write_through(pipe, writer.write) as write,
            ):
                # pg_dump compresses its own.
                compressor = None if plan is None else zlib.compressobj(wbits=_GZIP)
                async for chunk in _read(running, script, compressor):
                    plain.add(chunk)
                    await write(chunk)
                status, words = await running.wait()
                if status != 0:
                    # A status below 0 means that it was killed. Otherwise it repeats the error of the server.
                    refused = ClientProgramError if status < 0 else DatabaseRefusedError
                    raise refused(f"tenant {slug!r} was not backed up: {describe_failure(running.name, words)}")
            backup = await asyncio.to_thread(writer.finish, None if pipe is None else plain.tell(pipe.name))
            if picture is not None:
                restoration = Restoration(
                    tenant,
                    tenant.schema,
                    (),
                    aside=True,
                    rows=backup.rows,
                    statements=() if plan is None else plan.statements,
                    privileges=privileges,
                    shadows=backup.shadows,
                    place=await connection.fetchval(GET_PLACE),
                    shared=settings.shared_schemas,
                )
                with open_backup(writer.path) as (_, opened):
                    await verify_backup(
                        database,
                        connection,
                        restoration,
                        Dump(opened, programs),
                        picture,
                        environment,
                        source=f"the backup of tenant {slug!r}",
                        server_version=version,
                    )
            return backup


async def _read(program: Program, script: bytes, compressor: "zlib._Compress | None") -> AsyncIterator[bytes]:
    """Yield what *program* prints while it reads *script*, compressed if there is a *compressor*."""
    async for chunk in program.print_for(script):
        if compressor is None:
            yield chunk
        elif compressed := await asyncio.to_thread(compressor.compress, chunk):
            yield compressed
    if compressor is not None:
        yield compressor.flush()


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
    connection: Connection, tenant_id: int, schema: SchemaName, server_version: int, pipe: Pipe | None
) -> tuple[Backup, _Snapshot]:
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
        migrations=tuple(AppliedMigration(*applied) for applied in json.loads(row["migrations"] or "[]")),
        domains=tuple(OwnDomain(*domain) for domain in json.loads(row["domains"] or "[]")),
        former_slugs=tuple(
            FormerSlug(slug, datetime.fromisoformat(until)) for slug, until in json.loads(row["former_slugs"] or "[]")
        ),
        piped=None if pipe is None else Piped(pipe.name),
        # A program that encrypts the dump does not see them, and they may say whom to write to.
        settings=json.loads(row["settings"]) if pipe is None else {},
    )
    return backup, _Snapshot(row["snapshot"], row["has_comments"], row["has_labels"])
