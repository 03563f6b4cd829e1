"""One customer = one subdomain = one PostgreSQL schema, for Quart and asyncpg."""

from quart_tenants.domain import Domain, parse_domain
from quart_tenants.errors import (
    DatabaseTimeoutError,
    DatabaseUnavailableError,
    InvalidCredentialsError,
    InvalidSlugError,
    NoTenantError,
    NotLoggedInError,
    PoolExhaustedError,
    RegistryNotReadyError,
    RegistryStaleError,
    RequestFromElsewhereError,
    SchemaBehindError,
    SessionUncheckedError,
    SettingError,
    TenantError,
    TenantExistsError,
    TenantOverShareError,
    TooManyLoginsError,
    TransactionLostError,
    UnknownTenantError,
    WrongTenantError,
)
from quart_tenants.postgres.backups.backing_up import backup_tenant
from quart_tenants.postgres.backups.restores import copy_tenant, restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.fleet_migration import migrate_fleet, plan_fleet
from quart_tenants.postgres.fleet.status import get_fleet_status
from quart_tenants.postgres.registry.registry_tables import get_tenant, init_registry, list_tenants
from quart_tenants.postgres.sessions.session_ends import end_user_sessions
from quart_tenants.postgres.tenants.domains import add_domain, list_domains, remove_domain
from quart_tenants.postgres.tenants.lifecycle import rename_tenant, resume_tenant, suspend_tenant
from quart_tenants.postgres.tenants.provisioning import adopt_schemas, create_tenant, create_tenants
from quart_tenants.postgres.tenants.purge import purge_trash
from quart_tenants.postgres.tenants.trash import drop_tenant, list_trash, undrop_tenant
from quart_tenants.settings import Settings, read_settings
from quart_tenants.tenant import SchemaName, Slug, Tenant, parse_schema_name, parse_slug
from quart_tenants.web.answers.retrying import retry_reads
from quart_tenants.web.answers.row_json import RowJSONProvider, embed_json
from quart_tenants.web.answers.row_streams import stream_rows
from quart_tenants.web.context import current_tenant, tenant_connection
from quart_tenants.web.extension import QuartTenants
from quart_tenants.web.guards.origins import allow_from_elsewhere
from quart_tenants.web.logs.log_fields import LogFields, add_log_fields
from quart_tenants.web.sessions.logins import LoginAttempt, login_attempt
from quart_tenants.web.sessions.tenant_sessions import TenantSession, end_session, get_session, start_session

__all__ = [
    "Database",
    "DatabaseTimeoutError",
    "DatabaseUnavailableError",
    "Domain",
    "InvalidCredentialsError",
    "InvalidSlugError",
    "LogFields",
    "LoginAttempt",
    "NoTenantError",
    "NotLoggedInError",
    "PoolExhaustedError",
    "QuartTenants",
    "RegistryNotReadyError",
    "RegistryStaleError",
    "RequestFromElsewhereError",
    "RowJSONProvider",
    "SchemaBehindError",
    "SchemaName",
    "SessionUncheckedError",
    "SettingError",
    "Settings",
    "Slug",
    "Tenant",
    "TenantError",
    "TenantExistsError",
    "TenantOverShareError",
    "TenantSession",
    "TooManyLoginsError",
    "TransactionLostError",
    "UnknownTenantError",
    "WrongTenantError",
    "add_domain",
    "add_log_fields",
    "adopt_schemas",
    "allow_from_elsewhere",
    "backup_tenant",
    "copy_tenant",
    "create_tenant",
    "create_tenants",
    "current_tenant",
    "drop_tenant",
    "embed_json",
    "end_session",
    "end_user_sessions",
    "get_fleet_status",
    "get_session",
    "get_tenant",
    "init_registry",
    "list_domains",
    "list_tenants",
    "list_trash",
    "login_attempt",
    "migrate_fleet",
    "parse_domain",
    "parse_schema_name",
    "parse_slug",
    "plan_fleet",
    "purge_trash",
    "read_settings",
    "remove_domain",
    "rename_tenant",
    "restore_tenant",
    "resume_tenant",
    "retry_reads",
    "start_session",
    "stream_rows",
    "suspend_tenant",
    "tenant_connection",
    "undrop_tenant",
]
