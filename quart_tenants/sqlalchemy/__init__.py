"""Sessions of SQLAlchemy that see one tenant's tables. Needs `pip install quart-tenants[sqlalchemy]`."""

from quart_tenants.sqlalchemy.sessions import session_on, shared_session, tenant_session

__all__ = ["session_on", "shared_session", "tenant_session"]
