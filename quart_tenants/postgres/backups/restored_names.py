"""Give a restored tenant the domains and former slugs of its backup, where they are free."""

from dataclasses import dataclass, field

from quart_tenants.argument_checks import check_arguments
from quart_tenants.connection import Connection
from quart_tenants.domain import Domain, parse_domain
from quart_tenants.errors import DomainTakenError, InvalidDomainError, TenantError
from quart_tenants.postgres.backups.manifests import Backup, FormerSlug, OwnDomain
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import announce_changes
from quart_tenants.postgres.registry.resting_names import let_names_rest
from quart_tenants.postgres.registry.tenant_locks import lock_tenant
from quart_tenants.postgres.tenants.domains import check_outside, claim_domain
from quart_tenants.postgres.tenants.free_names import check_free, check_not_reserved
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant, parse_slug

# Days until the redirect ends; null if it has ended.
_COUNT_DAYS = """
SELECT (extract(epoch FROM $1::timestamptz - now()) / 86400)::float8 WHERE $1::timestamptz > now()
"""
# A redirect that has ended may still have its row.
_REDIRECT = """
INSERT INTO quart_tenants.former_slugs (slug, tenant_id, redirect_until) VALUES ($1, $2, $3)
ON CONFLICT (slug) DO UPDATE SET tenant_id = excluded.tenant_id, redirect_until = excluded.redirect_until
WHERE former_slugs.redirect_until <= now()
RETURNING slug
"""


@dataclass(slots=True)
class RestoredNames:
    """What became of the names in a backup.

    Attributes:
        claimed: Domains that the tenant claims now. They are served when DNS has proved them again.
        redirected: Former slugs that lead to the tenant.
        refused: Names that the tenant did not get, each with the reason.

    Example:
        ```python
        backup = await backup_tenant(database, parse_slug("acme"), Path("acme.tar"), settings=settings)
        tenant = await restore_tenant(database, Path("acme.tar"), parse_slug("restored"), settings=settings)
        names = await restore_names(database, backup, tenant, settings=settings)
        print(names.claimed, names.redirected, names.refused)
        ```
    """

    claimed: list[Domain] = field(default_factory=list)
    redirected: list[Slug] = field(default_factory=list)
    refused: dict[str, TenantError] = field(default_factory=dict)


@check_arguments
async def restore_names(database: Database, backup: Backup, tenant: Tenant, *, settings: Settings) -> RestoredNames:
    """Give *tenant*, which was restored as a new one, the domains and former slugs of *backup*, in one transaction.

    A domain becomes a claim: since the backup was made, it may have become somebody else's. Former slugs
    whose redirect has ended are left out.

    Args:
        database: The database of the tenant.
        backup: From `read_backup` or `backup_tenant`.
        tenant: From `restore_tenant`.
        settings: They say which names are reserved, and how long a name rests.

    Raises:
        UnknownTenantError: The tenant was renamed or dropped meanwhile.
        TenantInTrashError: The tenant was dropped meanwhile.
        TenantBusyError: The tenant is being migrated or changed.

    Example:
        ```python
        backup = await backup_tenant(database, parse_slug("acme"), Path("acme.tar"), settings=settings)
        tenant = await restore_tenant(database, Path("acme.tar"), parse_slug("restored"), settings=settings)
        names = await restore_names(database, backup, tenant, settings=settings)
        print(names.claimed, names.redirected, names.refused)
        ```
    """
    names = RestoredNames()
    if not backup.domains and not backup.former_slugs:
        return names
    async with database.connection() as connection:
        await lock_tenant(connection, tenant.slug)
        for own in backup.domains:
            try:
                names.claimed.append(await _claim(connection, tenant, own, settings))
            except (InvalidDomainError, DomainTakenError) as error:
                names.refused[own.domain] = error
        for former in backup.former_slugs:
            days = await connection.fetchval(_COUNT_DAYS, former.redirect_until)
            if days is None or former.slug == tenant.slug:
                continue
            try:
                names.redirected.append(await _redirect(connection, tenant, former, days, settings))
            except TenantError as error:
                names.refused[former.slug] = error
        await announce_changes(connection, tenant.id)
    return names


async def _claim(connection: Connection, tenant: Tenant, own: OwnDomain, settings: Settings) -> Domain:
    domain = parse_domain(own.domain)
    check_outside(domain, settings)
    # With the token of before, because its record may still be in DNS.
    return (await claim_domain(connection, tenant, domain, own.token)).domain


async def _redirect(
    connection: Connection, tenant: Tenant, former: FormerSlug, days: float, settings: Settings
) -> Slug:
    slug = parse_slug(former.slug)
    check_not_reserved(slug, settings)
    await check_free(connection, {slug: None}, settings)
    if await connection.fetchval(_REDIRECT, slug, tenant.id, former.redirect_until) is None:
        # Another tenant was renamed from this slug a moment ago. This raises the error that says which one.
        await check_free(connection, {slug: None}, settings)
    await let_names_rest(connection, tenant.id, [slug], days=days)
    return slug
