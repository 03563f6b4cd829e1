"""Suspend, resume and rename tenants, and change their settings."""

import json
from collections.abc import Mapping
from typing import Any

import asyncpg

from quart_tenants.argument_checks import check_arguments
from quart_tenants.errors import InvalidSettingsError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import announce_changes
from quart_tenants.postgres.registry.resting_names import let_names_rest, wake_name
from quart_tenants.postgres.registry.tenant_locks import get_living_tenant, lock_tenant, tries_on
from quart_tenants.postgres.tenants.free_names import check_free, check_not_reserved
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant

_SUSPEND = "UPDATE quart_tenants.tenants SET suspended_at = now() WHERE id = $1"
_RESUME = "UPDATE quart_tenants.tenants SET suspended_at = NULL WHERE id = $1"
# $4 bytes at most, as text.
_CHANGE_SETTINGS = """
UPDATE quart_tenants.tenants AS t SET settings = changed.settings
FROM (
    SELECT (settings || $2::jsonb) - $3::text[] AS settings FROM quart_tenants.tenants WHERE id = $1
) AS changed
WHERE t.id = $1 AND pg_catalog.octet_length(changed.settings::text) <= $4 RETURNING true
"""
_MOST_SETTINGS = 16384
_RENAME = "UPDATE quart_tenants.tenants SET slug = $2 WHERE id = $1"
# A tenant may have its own former slug back: a worker that remembers it leads to the same tenant.
_FORGET_FORMER_SLUG = "DELETE FROM quart_tenants.former_slugs WHERE tenant_id = $1 AND slug = $2"
# $3 days, by the clock and not from the start of the transaction. An older row of another tenant has expired.
_REDIRECT = """
INSERT INTO quart_tenants.former_slugs (tenant_id, slug, redirect_until)
VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3 * 86400))
ON CONFLICT (slug) DO UPDATE SET tenant_id = excluded.tenant_id, redirect_until = excluded.redirect_until
"""


@check_arguments
async def suspend_tenant(database: Database, slug: Slug) -> Tenant:
    """Stop serving a tenant and keep its data. Every worker obeys within two seconds.

    Doing it again does no harm. A suspended tenant is still migrated.

    Raises:
        UnknownTenantError: There is no such tenant.
        TenantInTrashError: The tenant is in the trash.
        TenantBusyError: The tenant is being migrated or changed.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        tenant = await suspend_tenant(database, parse_slug("acme"))
        print(tenant.suspended)
        ```
    """
    return await _change(database, slug, _SUSPEND)


@check_arguments
async def resume_tenant(database: Database, slug: Slug) -> Tenant:
    """Serve a suspended tenant again, within two seconds.

    Raises:
        UnknownTenantError: There is no such tenant.
        TenantInTrashError: The tenant is in the trash.
        TenantBusyError: The tenant is being migrated or changed.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        await suspend_tenant(database, parse_slug("acme"))
        tenant = await resume_tenant(database, parse_slug("acme"))
        ```
    """
    return await _change(database, slug, _RESUME)


@check_arguments
async def change_tenant_settings(database: Database, slug: Slug, changes: Mapping[str, Any]) -> Tenant:
    """Change what the app remembers about a tenant, and return the tenant. Every worker knows it within two seconds.

    Args:
        database: The database of the tenant.
        slug: The slug of the tenant.
        changes: New values by name, as JSON has them. None removes a name. Other names keep their values.

    Raises:
        InvalidSettingsError: A name or a value is no JSON, or all of them together are longer than 16 kB.
        UnknownTenantError: There is no such tenant.
        TenantInTrashError: The tenant is in the trash.
        TenantBusyError: The tenant is being migrated or changed.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        tenant = await change_tenant_settings(database, parse_slug("acme"), {"plan": "large", "trial_until": None})
        print(tenant.settings["plan"])
        ```
    """
    kept = {name: value for name, value in changes.items() if value is not None}
    removed = [name for name, value in changes.items() if value is None]
    try:
        text = json.dumps(kept, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidSettingsError(f"a tenant's settings must be JSON: {error}") from error
    if "" in changes or "\\u0000" in text:
        raise InvalidSettingsError("a tenant's setting needs a name, and no text in it may have a NUL")
    tries = tries_on(database, slug)
    while True:
        async with tries.try_once() as connection:
            tenant = await lock_tenant(connection, slug)
            if not await connection.fetchval(_CHANGE_SETTINGS, tenant.id, text, removed, _MOST_SETTINGS):
                raise InvalidSettingsError(
                    f"the settings of tenant {slug!r} would be longer than {_MOST_SETTINGS} bytes, and every worker "
                    "keeps them in memory; put what is long into a table of the tenant's"
                )
            await announce_changes(connection, tenant.id)
            return await get_living_tenant(connection, tenant.id, slug)


@check_arguments
async def rename_tenant(
    database: Database, slug: Slug, new_slug: Slug, *, settings: Settings, redirect_days: float | None = None
) -> Tenant:
    """Give a tenant another subdomain. Its schema keeps its name, so that no request is lost.

    Args:
        database: The database of the tenant.
        slug: The slug until now.
        new_slug: The new slug. A former slug of the tenant itself is allowed.
        settings: They say which slugs are reserved and how long a name rests.
        redirect_days: How many days the old address answers 308 to the new one. No other tenant can take it
            meanwhile. Default: `TENANTS_REDIRECT_DAYS`.

    Raises:
        UnknownTenantError: There is no such tenant.
        InvalidSlugError: *new_slug* is reserved by `TENANTS_RESERVED_SLUGS`.
        TenantExistsError: *new_slug* is taken, or it is the tenant's slug now.
        TenantInTrashError: The tenant, or another one with the slug *new_slug*, is in the trash.
        FormerSlugError: *new_slug* still leads to another tenant.
        RecentlyDroppedError: *new_slug* was another tenant's until a moment ago.
        TenantBusyError: The tenant is being migrated or changed.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        await rename_tenant(database, parse_slug("acme"), parse_slug("acme-ltd"), settings=settings, redirect_days=7)
        ```
    """
    check_not_reserved(new_slug, settings)
    days = settings.redirect_days if redirect_days is None else redirect_days
    tries = tries_on(database, slug)
    while True:
        async with tries.try_once() as connection:
            tenant = await lock_tenant(connection, slug)
            await connection.execute(_FORGET_FORMER_SLUG, tenant.id, new_slug)
            await wake_name(connection, tenant.id, new_slug)
            await check_free(connection, {new_slug: None}, settings)
            try:
                async with connection.transaction():
                    await connection.execute(_RENAME, tenant.id, new_slug)
            except asyncpg.UniqueViolationError:
                # Another process took the slug a moment ago. This raises the error that says which tenant has it.
                await check_free(connection, {new_slug: None}, settings)
                raise
            await connection.execute(_REDIRECT, tenant.id, slug, days)
            await let_names_rest(connection, tenant.id, [slug], days=days)
            await announce_changes(connection, tenant.id)
            return await get_living_tenant(connection, tenant.id, new_slug)


async def _change(database: Database, slug: Slug, statement: str) -> Tenant:
    tries = tries_on(database, slug)
    while True:
        async with tries.try_once() as connection:
            tenant = await lock_tenant(connection, slug)
            await connection.execute(statement, tenant.id)
            await announce_changes(connection, tenant.id)
            return await get_living_tenant(connection, tenant.id, slug)
