"""Test an app with tenants: a pytest plugin with a database, tenants and clients, and a hunt for leaks."""

from quart_tenants.testing.clients import ClientMaker, TenantClient
from quart_tenants.testing.leaks import LeakFoundError, hunt_leaks

__all__ = ["ClientMaker", "LeakFoundError", "TenantClient", "hunt_leaks"]
