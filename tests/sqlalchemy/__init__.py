"""Sessions of SQLAlchemy in the blocks of tenants."""
