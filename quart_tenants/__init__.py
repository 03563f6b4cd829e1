"""One customer = one subdomain = one PostgreSQL schema, for Quart and asyncpg."""

from quart_tenants.errors import (
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    InvalidSlugError,
    NoTenantError,
    PoolExhaustedError,
    RegistryNotReadyError,
    RegistryStaleError,
    SettingError,
    TenantError,
    TenantExistsError,
    TransactionLostError,
    UnknownTenantError,
    WrongTenantError,
)
from quart_tenants.tenant import SchemaName, Slug, Tenant, parse_slug
from quart_tenants.web.context import current_tenant, tenant_connection
from quart_tenants.web.extension import QuartTenants
from quart_tenants.web.sessions import start_session

__all__ = [
    "DatabaseTimeoutError",
    "DatabaseUnavailableError",
    "InvalidSlugError",
    "NoTenantError",
    "PoolExhaustedError",
    "QuartTenants",
    "RegistryNotReadyError",
    "RegistryStaleError",
    "SchemaName",
    "SettingError",
    "Slug",
    "Tenant",
    "TenantError",
    "TenantExistsError",
    "TransactionLostError",
    "UnknownTenantError",
    "WrongTenantError",
    "current_tenant",
    "parse_slug",
    "start_session",
    "tenant_connection",
]
