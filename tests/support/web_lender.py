"""A database that lends connections as a request gets them."""

from typing import Any

from quart_tenants.postgres.blocks.block import Block
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.tenant import Tenant


class WebLender(Database):
    """Takes each tenant for one that the registry has just named, as a request does. Commands ask the server first."""

    def tenant_connection(self, tenant: Tenant, **options: Any) -> Block:
        """Return a block of *tenant*."""
        return super().tenant_connection(tenant, **{"is_known": True, **options})
