"""Restore a tenant from its backup: as a new tenant, in place of a living one, or as a copy of one.

A dump has the name of its schema in every line, but the new schema may need another name, or that name may be taken.
So one transaction renames schemas: it moves the schema with the dump's name away, restores the dump, and gives both
schemas their final names. No other transaction sees this before the commit.
"""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace as replace_fields
from pathlib import Path

from quart_tenants.argument_checks import check_arguments
from quart_tenants.connection import Connection
from quart_tenants.errors import (
    BackupFileError,
    TenantBusyError,
)
from quart_tenants.postgres.backups.backup import GET_SERVER_VERSION, backup_tenant
from quart_tenants.postgres.backups.backup_files import get_reader_version, open_backup
from quart_tenants.postgres.backups.client_programs import build_environment, find_client_programs
from quart_tenants.postgres.backups.manifests import Backup
from quart_tenants.postgres.backups.migrated_shapes import list_statements
from quart_tenants.postgres.backups.pipes import Pipe, open_dump
from quart_tenants.postgres.backups.pouring import Dump, run_restoration
from quart_tenants.postgres.backups.restore_scripts import GET_PLACE, Replaced, Restoration
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.blocks.long_work import stay_open
from quart_tenants.postgres.migrations.migration_files import Migration, describe_newest, get_tenant_migrations
from quart_tenants.postgres.registry.registry_tables import check_registry
from quart_tenants.postgres.registry.tenant_locks import lock_tenant
from quart_tenants.postgres.roles.owner_role import find_owner, get_owner
from quart_tenants.postgres.roles.schema_access import name_role
from quart_tenants.postgres.tenants.dependents import Dependent, check_dependents
from quart_tenants.postgres.tenants.free_names import check_free, check_not_reserved
from quart_tenants.settings import Settings
from quart_tenants.tenant import SchemaName, Slug, Tenant, parse_display_name, parse_schema_name, parse_slug

_NEXT_ID = "SELECT pg_catalog.nextval(pg_catalog.pg_get_serial_sequence('quart_tenants.tenants', 'id'))"
_SCHEMA_EXISTS = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)"
_GET_CREATED_AT = "SELECT created_at FROM quart_tenants.tenants WHERE id = $1"
# $1 the name of a schema. Without this lock, two restores could make the same schema if it is no living tenant's.
_TRY_LOCK_SCHEMA = (
    "SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('quart_tenants schema ' || $1::text, 0))"
)
_FIND_SLUG = "SELECT slug FROM quart_tenants.living_tenants WHERE schema_name = $1"


@check_arguments
async def restore_tenant(
    database: Database,
    file: Path,
    slug: Slug,
    *,
    settings: Settings,
    replace: bool = False,
    on_replaced: Callable[[Slug], object] | None = None,
    on_notice: Callable[[str], object] | None = None,
    including_dependents: bool = False,
    pipe: Pipe | None = None,
) -> Tenant:
    """Restore the backup *file* as the tenant *slug*, in one transaction.

    The tables belong to the role that restores, and grants are kept. With `TENANTS_ROLE_PER_TENANT` they belong to the
    owner role, and only the tenant's role may use them. If that setting was on and is off now, grants are lost. A
    backup runs SQL of its own, so restore only a backup that you trust.

    Args:
        database: The database for the tenant.
        file: From `backup_tenant`.
        slug: The slug of a new tenant, unless *replace* is true.
        settings: They have the address of the database, the reserved slugs, and the folder of the migrations.
        replace: Whether the backup replaces the living tenant *slug*. That tenant keeps its number, name, domains and
            sessions, so the backup must be of this very tenant. Its old tables go into the trash as a tenant of their
            own. A transaction that is open at that moment may see the old tables first and then the new ones, and
            what it writes may end in the trash.
        on_replaced: Called with the slug of the tenant in the trash.
        on_notice: Called with a sentence for each CHECK that old rows break. It is restored as NOT VALID.
        including_dependents: Whether views and foreign keys outside the replaced schema that depend on it are dropped.
            A view would go on to show the rows in the trash.
        pipe: The program that undoes what the dump was piped through.

    Raises:
        DependentsError: Something outside the replaced schema depends on it.
        BackupFileError: *file* is no backup, is damaged, is newer than this database or this app, is of
            another tenant than the one to replace, names its schema in a text, or needs something that the
            database lacks.
        UnknownTenantError: There is no tenant to replace.
        InvalidSlugError: *slug* is reserved by `TENANTS_RESERVED_SLUGS`.
        TenantExistsError: *slug* is taken.
        TenantInTrashError: *slug*, or the tenant to replace, is in the trash.
        FormerSlugError: *slug* still leads to a tenant that was renamed.
        RecentlyDroppedError: *slug*, or the schema's name, was another tenant's until a moment ago.
        SchemaExistsError: There is a schema of that name, which is no tenant's.
        TenantBusyError: The tenant, or the one that has the schema of the backup, is being migrated or changed, or
            another backup of that schema is being restored.
        ClientProgramError: PostgreSQL's programs are missing, too old, or do not run; or *pipe* failed.
        DatabaseRefusedError: PostgreSQL refused it, such as for a lack of rights.
        RegistryNotReadyError: There is no registry yet.
        RolesNotReadyError: Tenants are to have roles of their own, which are not set up.

    Example:
        ```python
        await backup_tenant(database, parse_slug("acme"), Path("acme.tar"), settings=settings)
        tenant = await restore_tenant(database, Path("acme.tar"), parse_slug("restored"), settings=settings)
        ```
    """
    restored = await _restore_file(
        database,
        file,
        str(file),
        slug,
        settings,
        replace=replace,
        including_dependents=including_dependents,
        on_notice=on_notice,
        pipe=pipe,
    )
    if restored.replaced is not None and on_replaced is not None:
        on_replaced(restored.replaced.slug)
    return restored.tenant


@check_arguments
async def copy_tenant(
    database: Database,
    template: Slug,
    slug: Slug,
    name: str,
    *,
    settings: Settings,
    schema: SchemaName | None = None,
    on_notice: Callable[[str], object] | None = None,
) -> Tenant:
    """Make a tenant with everything that *template* has in its schema, in one transaction.

    The template is served meanwhile, but nobody can migrate, rename or drop it.

    Args:
        database: The database of the template.
        template: The slug of a living tenant.
        slug: The slug of the new tenant.
        name: The display name of the new tenant.
        settings: They have the address of the database, the reserved slugs, and the folder of the migrations.
        schema: The name of the new schema; default: the slug.
        on_notice: Called with a sentence for each CHECK that old rows break. The copy has it as NOT VALID.

    Raises what `create_tenant`, `backup_tenant` and `restore_tenant` raise.

    Example:
        ```python
        await copy_tenant(database, parse_slug("acme"), parse_slug("acme-copy"), "A copy", settings=settings)
        ```
    """
    name = parse_display_name(name)
    # All of this is checked before the work begins.
    async with database.connection() as connection:
        await check_registry(connection)
        schema = await _check_new(connection, slug, schema, settings)
    with tempfile.TemporaryDirectory(prefix="quart-tenants-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "template.tar"
        await backup_tenant(database, template, file, settings=settings)
        source = f"tenant {template!r}"
        restored = await _restore_file(
            database, file, source, slug, settings, name=name, schema=schema, on_notice=on_notice
        )
    return restored.tenant


async def _restore_file(
    database: Database,
    file: Path,
    source: str,
    slug: Slug,
    settings: Settings,
    *,
    name: str | None = None,
    schema: SchemaName | None = None,
    replace: bool = False,
    including_dependents: bool = False,
    on_notice: Callable[[str], object] | None = None,
    pipe: Pipe | None = None,
) -> Restoration:
    """Restore *file*; errors call it *source*."""
    async with contextlib.AsyncExitStack() as stack:
        # In a thread, because reading the file to its end takes time.
        backup, stored = await asyncio.to_thread(stack.enter_context, open_backup(file))
        opened = await stack.enter_async_context(open_dump(source, backup, stored, pipe))
        # Before there is a transaction: a pooler may have one connection.
        environment = build_environment(await database.get_own_url("a restore"), os.environ)
        async with database.connection() as connection:
            await check_registry(connection)
            await stay_open(connection)
            server_version = await connection.fetchval(GET_SERVER_VERSION)
            _check_age(backup, source, slug, server_version, settings)
            # The programs that wrote the file may have been newer than the server.
            reader_version = get_reader_version(opened) if backup.rows is None else 0
            programs = await find_client_programs(max(server_version // 10000, reader_version))
            if replace:
                restoration = await _plan_replacing(connection, backup, source, slug, including=including_dependents)
            else:
                # The lock comes first: another copy to the same slug may have held it until now.
                aside = await _lock_namesake(connection, backup.schema, slug)
                schema = await _check_new(connection, slug, schema, settings)
                tenant_id = await connection.fetchval(_NEXT_ID)
                # A copy is another customer: what the app remembers of the template is not its own.
                remembered = backup.settings if name is None else {}
                tenant = Tenant(tenant_id, slug, schema, name or backup.name, backup.version, settings=remembered)
                restoration = Restoration(tenant, backup.schema, backup.migrations, aside=aside)
            if settings.role_per_tenant:
                owner = await get_owner(connection)
                role = name_role(owner, restoration.tenant.id)
                restoration = replace_fields(
                    restoration, owner=owner, tenant=replace_fields(restoration.tenant, role=role)
                )
            place = await connection.fetchval(GET_PLACE)
            # Also if roles are switched off: grants in a dump would open the new tables to the role of the dumped
            # tenant.
            privileges = await find_owner(connection) is None
            restoration = replace_fields(
                restoration,
                shared=settings.shared_schemas,
                place=place,
                shadows=backup.shadows,
                rows=backup.rows,
                statements=() if backup.rows is None else tuple(list_statements(_choose(backup, settings))),
                privileges=privileges,
                same_server=backup.server_version // 10000 == server_version // 10000,
            )
            dump = Dump(opened, programs)
            # psql uses another connection. This one holds the locks until psql has committed.
            await run_restoration(
                database,
                connection,
                restoration,
                dump,
                environment,
                source=source,
                server_version=server_version,
                on_notice=on_notice,
            )
    return restoration


def _check_age(backup: Backup, source: str, slug: Slug, server_version: int, settings: Settings) -> None:
    """Refuse a backup from a newer PostgreSQL, or with migrations that this app does not have."""
    if backup.server_version // 10000 > server_version // 10000:
        raise BackupFileError(
            source,
            f"cannot become tenant {slug!r}: it was made from PostgreSQL {backup.server_version // 10000}, "
            f"and this server is {server_version // 10000}; restore it into one that is not older",
        )
    migrations = get_tenant_migrations(settings)
    if backup.version > len(migrations):
        raise BackupFileError(
            source,
            f"cannot become tenant {slug!r}: its tables are at version {backup.version:04}, and this app's newest "
            f"migration is {describe_newest(migrations)}; restore it with the app that made it, or a newer one",
        )
    by_version = {migration.version: migration for migration in migrations}
    for applied in backup.migrations:
        if applied.version not in by_version or by_version[applied.version].sha256 != applied.sha256:
            raise BackupFileError(
                source,
                f"cannot become tenant {slug!r}: migration {applied.name} ran there with another text than its file "
                "has now; put the file back, and write a new one for what is to change",
            )


def _choose(backup: Backup, settings: Settings) -> list[Migration]:
    """Return the files of the migrations that had run. `_check_age` has found each of them."""
    migrations = get_tenant_migrations(settings)
    return [migrations[applied.version - 1] for applied in backup.migrations]


async def _check_new(connection: Connection, slug: Slug, schema: SchemaName | None, settings: Settings) -> SchemaName:
    check_not_reserved(slug, settings)
    schema = schema or parse_schema_name(slug)
    await check_free(connection, {slug: schema}, settings)
    return schema


async def _plan_replacing(
    connection: Connection, backup: Backup, source: str, slug: Slug, *, including: bool
) -> Restoration:
    tenant = await lock_tenant(connection, slug)
    await _check_same(connection, backup, source, tenant)
    replaced = None
    dependents: Sequence[Dependent] = ()
    # Somebody may have dropped the schema by hand.
    if await connection.fetchval(_SCHEMA_EXISTS, tenant.schema.name):
        dependents = await check_dependents(connection, slug, tenant.schema, including=including)
        replaced_id = await connection.fetchval(_NEXT_ID)
        replaced = Replaced(replaced_id, parse_slug(f"{slug[:40]}-replaced-{replaced_id}"))
    aside = await _lock_namesake(connection, backup.schema, slug)
    return Restoration(
        Tenant(tenant.id, slug, tenant.schema, tenant.name, backup.version, tenant.suspended, settings=tenant.settings),
        backup.schema,
        backup.migrations,
        aside=aside,
        replaces=True,
        replaced=replaced,
        dependents=dependents,
    )


async def _check_same(connection: Connection, backup: Backup, source: str, tenant: Tenant) -> None:
    """Refuse another tenant's backup: sessions and tokens with this tenant's number would read its rows."""
    created_at = await connection.fetchval(_GET_CREATED_AT, tenant.id)
    # Both are compared: schemas adopted together have the same time, and another database has the same numbers.
    if (backup.id, backup.created_at) != (tenant.id, created_at):
        raise BackupFileError(
            source,
            f"cannot replace tenant {tenant.slug!r} (number {tenant.id}, made {created_at:%Y-%m-%d %H:%M:%S}): it is "
            f"of tenant {backup.slug!r} (number {backup.id}, made {backup.created_at:%Y-%m-%d %H:%M:%S}), whose rows "
            f"the sessions of {tenant.slug!r} would read; restore it beside with another --as, then rename",
        )


async def _lock_namesake(connection: Connection, schema: SchemaName, restored: Slug) -> bool:
    """Lock *schema* against renames and other restores until *restored* is done; return whether it exists."""
    slug = await connection.fetchval(_FIND_SLUG, schema.name)
    if slug is not None:
        await lock_tenant(connection, slug)
    if not await connection.fetchval(_TRY_LOCK_SCHEMA, schema.name):
        raise TenantBusyError(restored)
    exists: bool = await connection.fetchval(_SCHEMA_EXISTS, schema.name)
    return exists
