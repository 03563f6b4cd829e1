"""Test an app with tenants: a pytest plugin with a database, tenants and clients, and a hunt for leaks."""

from quart_tenants.testing.clients import TenantClient
from quart_tenants.testing.leaks import LeakFoundError, hunt_leaks

__all__ = ["LeakFoundError", "TenantClient", "hunt_leaks"]
