"""Sessions of SQLAlchemy that see one tenant's tables. Needs `pip install quart-tenants[sqlalchemy]`."""

from importlib.util import find_spec

if find_spec("sqlalchemy") is None:
    raise ModuleNotFoundError("SQLAlchemy is not installed: pip install 'quart-tenants[sqlalchemy]'", name="sqlalchemy")

from quart_tenants.sqlalchemy.sessions import session_on, shared_session, tenant_session

__all__ = ["session_on", "shared_session", "tenant_session"]
