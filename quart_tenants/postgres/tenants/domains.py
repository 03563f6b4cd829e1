"""Give tenants domains of their own after DNS has proved that the domains are theirs."""

import secrets
from dataclasses import dataclass

import asyncpg

from quart_tenants.argument_checks import check_arguments
from quart_tenants.connection import Connection, Row
from quart_tenants.dns_lookup import find_text_records
from quart_tenants.domain import Domain, is_below
from quart_tenants.errors import (
    DomainNotVerifiedError,
    DomainTakenError,
    InvalidDomainError,
    UnknownDomainError,
    UnknownTenantError,
)
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import announce_changes, check_registry
from quart_tenants.postgres.registry.resting_names import check_rested, let_names_rest
from quart_tenants.postgres.registry.tenant_locks import lock_tenant, tries_on
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant

_RECORD_NAME = "_quart-tenants"
_RECORD_VALUE = "quart-tenants"
_TOKEN_BYTES = 16

# A tenant in the trash counts, because it may come back.
_IS_TAKEN = """
SELECT EXISTS (
    SELECT FROM quart_tenants.domains WHERE domain = $1 AND tenant_id <> $2 AND verified_at IS NOT NULL
)
"""
# An earlier claim keeps its token, because its record may be in DNS already. The update only serves to return the row.
_CLAIM = """
INSERT INTO quart_tenants.domains (domain, tenant_id, token) VALUES ($1, $2, $3)
ON CONFLICT (domain, tenant_id) DO UPDATE SET token = domains.token
RETURNING token, verified_at IS NOT NULL AS verified
"""
# $3 the token that DNS has shown: the claim may have been removed and made again meanwhile.
_VERIFY = """
UPDATE quart_tenants.domains SET verified_at = now() WHERE domain = $1 AND tenant_id = $2 AND token = $3
RETURNING domain
"""
_REMOVE = """
DELETE FROM quart_tenants.domains AS d USING quart_tenants.tenants AS t WHERE d.domain = $1 AND t.id = d.tenant_id
RETURNING d.domain, d.tenant_id, t.slug, d.token, d.verified_at IS NOT NULL AS verified
"""
_TENANT_EXISTS = "SELECT EXISTS (SELECT FROM quart_tenants.tenants WHERE slug = $1)"
_LIST_DOMAINS = """
SELECT d.domain, t.slug, d.token, d.verified_at IS NOT NULL AS verified
FROM quart_tenants.domains AS d JOIN quart_tenants.tenants AS t ON t.id = d.tenant_id
WHERE $1::text IS NULL OR t.slug = $1
ORDER BY d.domain, t.slug
"""


@dataclass(frozen=True, slots=True)
class CustomDomain:
    """A domain of a tenant's own, or a claim to one.

    Attributes:
        domain: The domain in lower case, without port and trailing dot.
        slug: The slug of the tenant.
        token: The text that the owner of the domain must put into DNS.
        verified: Whether DNS has shown the token, or an operator vouched for the domain. If not, it is not served.

    Example:
        ```python
        for domain in await list_domains(database):
            print(domain.domain, domain.record_name, domain.record_value, domain.verified)
        ```
    """

    domain: Domain
    slug: Slug
    token: str
    verified: bool

    @property
    def record_name(self) -> str:
        """The name of the TXT record that proves it."""
        return f"{_RECORD_NAME}.{self.domain}"

    @property
    def record_value(self) -> str:
        """The value of that record."""
        return f"{_RECORD_VALUE}={self.token}"


@check_arguments
async def add_domain(
    database: Database, slug: Slug, domain: Domain, *, settings: Settings, trusted: bool = False
) -> CustomDomain:
    """Serve a tenant at a domain of its own, if DNS proves that it is theirs. Workers know it within two seconds.

    The first call claims the domain and raises an error that names the DNS record to make. The same call succeeds when
    the record is there. Doing it again does no harm. The record may be removed afterwards.

    Args:
        database: The database of the tenant.
        slug: The slug of the tenant.
        domain: A domain outside `TENANTS_DOMAIN`. Several tenants may claim it.
        settings: They say `TENANTS_DOMAIN` and which DNS servers to ask.
        trusted: The caller knows that the domain is the tenant's, so DNS is not asked.

    Raises:
        InvalidDomainError: The domain is `TENANTS_DOMAIN`, or above or below it.
        DomainTakenError: The domain is another tenant's; that tenant may be in the trash.
        RecentlyDroppedError: The domain was another tenant's until a moment ago.
        DomainNotVerifiedError: The record is not there. The error says which one to make.
        DnsUnavailableError: DNS cannot be asked.
        UnknownTenantError: There is no such tenant.
        TenantInTrashError: The tenant was dropped.
        TenantBusyError: The tenant is being migrated or changed.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        domain = await add_domain(
            database, parse_slug("acme"), parse_domain("shop.acme.test"), settings=settings, trusted=True
        )
        print(domain.verified)
        ```
    """
    check_outside(domain, settings)
    tries = tries_on(database, slug)
    while True:
        async with tries.try_once() as connection:
            tenant = await lock_tenant(connection, slug)
            claim = await claim_domain(connection, tenant, domain)
            if claim.verified:
                return claim
            if trusted:
                return await _verify(connection, tenant, claim, settings)
            break
    # DNS is asked between two transactions: a DNS server that does not answer must not hold a connection and a lock.
    if claim.record_value not in await find_text_records(claim.record_name, settings):
        raise DomainNotVerifiedError(domain, claim.record_name, claim.record_value)
    tries = tries_on(database, slug)
    while True:
        async with tries.try_once() as connection:
            # The slug may be another tenant's by now. That tenant is not touched: the claim belongs to the first one.
            await lock_tenant(connection, slug)
            return await _verify(connection, tenant, claim, settings)


@check_arguments
async def remove_domain(database: Database, domain: Domain) -> list[CustomDomain]:
    """Stop serving a domain, delete all claims to it, and return them.

    Its tenant may have it back at once, and another tenant after `TENANTS_REGISTRY_MAX_AGE`.

    Args:
        database: The database of the tenant.
        domain: A domain that a tenant has or claims.

    Raises:
        UnknownDomainError: No tenant has or claims the domain.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        domain = parse_domain("shop.acme.test")
        await add_domain(database, parse_slug("acme"), domain, settings=settings, trusted=True)
        await remove_domain(database, domain)
        ```
    """
    async with database.connection() as connection:
        await check_registry(connection)
        rows = await connection.fetch(_REMOVE, domain)
        if not rows:
            raise UnknownDomainError(domain)
        for row in rows:
            if row["verified"]:
                await let_names_rest(connection, row["tenant_id"], [domain])
        await announce_changes(connection, *(row["tenant_id"] for row in rows))
    return [_read(row) for row in rows]


@check_arguments
async def list_domains(database: Database, slug: Slug | None = None) -> list[CustomDomain]:
    """Return the domains of one tenant or of all tenants in order of domain, also those of tenants in the trash.

    Raises:
        UnknownTenantError: There is no such tenant.
        RegistryNotReadyError: There is no registry yet.

    Example:
        ```python
        for domain in await list_domains(database, parse_slug("acme")):
            print(domain.domain, domain.verified)
        ```
    """
    async with database.connection() as connection:
        await check_registry(connection)
        if slug is not None and not await connection.fetchval(_TENANT_EXISTS, slug):
            raise UnknownTenantError(slug)
        return [_read(row) for row in await connection.fetch(_LIST_DOMAINS, slug)]


def check_outside(domain: Domain, settings: Settings) -> None:
    """Raise `InvalidDomainError` if *domain* is `TENANTS_DOMAIN`, or above or below it."""
    if is_below(domain, settings.domain) or is_below(settings.domain, domain):
        raise InvalidDomainError(domain, f"it must be outside {settings.domain}, where all tenants are")


async def claim_domain(
    connection: Connection, tenant: Tenant, domain: Domain, token: str | None = None
) -> CustomDomain:
    """Let *tenant* claim *domain* inside a block, and return the claim. An earlier claim keeps its token.

    Args:
        connection: Inside a block.
        tenant: The tenant.
        domain: The domain.
        token: What DNS is to show; default: a new one.

    Raises:
        DomainTakenError: The domain is another tenant's.
    """
    if await connection.fetchval(_IS_TAKEN, domain, tenant.id):
        raise DomainTakenError(domain)
    (row,) = await connection.fetch(_CLAIM, domain, tenant.id, token or secrets.token_hex(_TOKEN_BYTES))
    return CustomDomain(domain, tenant.slug, row["token"], row["verified"])


async def _verify(connection: Connection, tenant: Tenant, claim: CustomDomain, settings: Settings) -> CustomDomain:
    try:
        verified = await connection.fetchval(_VERIFY, claim.domain, tenant.id, claim.token)
    except asyncpg.UniqueViolationError as error:
        raise DomainTakenError(claim.domain) from error
    if verified is None:
        raise UnknownDomainError(claim.domain)
    await check_rested(connection, tenant.id, settings=settings, domain=claim.domain)
    await announce_changes(connection, tenant.id)
    return CustomDomain(claim.domain, tenant.slug, claim.token, verified=True)


def _read(row: Row) -> CustomDomain:
    return CustomDomain(Domain(row["domain"]), Slug(row["slug"]), row["token"], row["verified"])
