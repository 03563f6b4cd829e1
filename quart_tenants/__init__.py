"""One customer = one subdomain = one PostgreSQL schema, for Quart and asyncpg: what an app uses every day.

What operates a fleet of tenants is in `quart_tenants.admin`, and every error is in `quart_tenants.errors`.
"""

from quart_tenants.connection import Connection, Row
from quart_tenants.errors import (
    DatabaseUnavailableError,
    InvalidCredentialsError,
    NoTenantError,
    NotLoggedInError,
    PoolExhaustedError,
    TenantError,
    UnknownTenantError,
)
from quart_tenants.postgres.sessions.session_ends import end_user_sessions
from quart_tenants.tenant import Tenant
from quart_tenants.web.answers.problems import answer_tenant_error
from quart_tenants.web.answers.retrying import retry_reads
from quart_tenants.web.answers.row_json import RowJSONProvider, embed_json
from quart_tenants.web.answers.row_streams import stream_rows
from quart_tenants.web.context import current_tenant, find_tenant, shared_connection, tenant_connection
from quart_tenants.web.extension import QuartTenants
from quart_tenants.web.guards.origins import allow_from_elsewhere
from quart_tenants.web.lifecycle_hooks import TenantEvent
from quart_tenants.web.messages import publish, subscribe
from quart_tenants.web.routing.host_routing import tenant_url
from quart_tenants.web.sessions.login_required import get_next_path, login_required
from quart_tenants.web.sessions.logins import LoginAttempt, login_attempt
from quart_tenants.web.sessions.tenant_sessions import TenantSession, end_session, get_session, start_session
from quart_tenants.web.tenant_loops import for_each_tenant

__all__ = [
    "Connection",
    "DatabaseUnavailableError",
    "InvalidCredentialsError",
    "LoginAttempt",
    "NoTenantError",
    "NotLoggedInError",
    "PoolExhaustedError",
    "QuartTenants",
    "Row",
    "RowJSONProvider",
    "Tenant",
    "TenantError",
    "TenantEvent",
    "TenantSession",
    "UnknownTenantError",
    "allow_from_elsewhere",
    "answer_tenant_error",
    "current_tenant",
    "embed_json",
    "end_session",
    "end_user_sessions",
    "find_tenant",
    "for_each_tenant",
    "get_next_path",
    "get_session",
    "login_attempt",
    "login_required",
    "publish",
    "retry_reads",
    "shared_connection",
    "start_session",
    "stream_rows",
    "subscribe",
    "tenant_connection",
    "tenant_url",
]
