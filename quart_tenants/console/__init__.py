"""The operator's console: pages that show the fleet and act on it, on loopback or in an app of one's own."""

from quart_tenants.console.mounting import make_blueprint

__all__ = ["make_blueprint"]
