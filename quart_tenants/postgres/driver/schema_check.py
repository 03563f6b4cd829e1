"""Know until when the tenant of a block surely has its schema, and ask the server after that.

A name rests for a while after a drop, or while a transaction of then is open. A block that only reads has no
transaction open between two reads, whoever gave us the tenant may have kept it for long, and a message may wait on its
way. So the question is asked before a transaction that begins late, and after an answer that comes late.
"""

from collections.abc import Callable
from time import monotonic

import asyncpg

from quart_tenants.errors import RegistryNotReadyError, UnknownTenantError
from quart_tenants.postgres.driver.block_statements import Beginning
from quart_tenants.postgres.driver.noting_connection import NotingConnection
from quart_tenants.postgres.driver.refusals import describe_refusal
from quart_tenants.tenant import Tenant, quote_literal

# The operator may have dropped the schema by hand.
_HAS_SCHEMA = """
SELECT FROM quart_tenants.tenants AS t JOIN pg_catalog.pg_namespace AS n ON n.nspname = t.schema_name
WHERE t.id = {id:d} AND t.schema_name = {schema}
"""
NO_REGISTRY_ERRORS = (
    asyncpg.UndefinedTableError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.InsufficientPrivilegeError,
)
"""Of a registry that is missing, or that this role may not read."""


class SchemaCheck:
    """What one block knows about the schema of its tenant."""

    __slots__ = ("_clock", "_known_until", "_seconds", "_tenant")

    def __init__(
        self,
        tenant: Tenant | None,
        clock: Callable[[], float] = monotonic,
        seconds: float = 0.0,
        *,
        is_known: bool = False,
    ) -> None:
        """Begin to know.

        Args:
            tenant: Whose schema it is; None for no tenant's. One with the number 0 stands in no registry.
            clock: Returns seconds.
            seconds: For how long an answer holds.
            is_known: Whether the registry has just said that the tenant has its schema.
        """
        self._tenant = tenant if tenant is not None and tenant.id else None
        self._clock = clock
        self._seconds = seconds
        if self._tenant is None:
            self._known_until = float("inf")
        else:
            self._known_until = clock() + seconds if is_known else float("-inf")

    @property
    def question(self) -> str:
        """SQL that finds a row if the tenant has its schema; empty if there is nothing to ask."""
        if self._tenant is None:
            return ""
        return _HAS_SCHEMA.format(id=self._tenant.id, schema=quote_literal(self._tenant.schema.name))

    def must_ask(self) -> bool:
        """Return whether the server has to be asked."""
        return self._clock() >= self._known_until

    async def ask_if_due(self, driver: NotingConnection, within: float, begun: Beginning | None = None) -> None:
        """Ask the server if the last answer is too old.

        Args:
            driver: The connection of the block.
            within: Seconds that the answer may take.
            begun: How the open transaction of the block has begun; None if there is none. Its BEGIN may have waited on
                its way for longer than a name rests, so the server begins it once more, at once after it was asked.

        Raises:
            UnknownTenantError: The tenant has its schema no longer.
            RegistryNotReadyError: There is no registry, or this role may not read it.

        Raises the driver's errors, too.
        """
        tenant, now = self._tenant, self._clock()
        if tenant is None or now < self._known_until:
            return
        if begun is not None:
            found = await driver.begins_again(begun, self.question, within)
        else:
            try:
                found = await driver.finds(self.question, within)
            except NO_REGISTRY_ERRORS as error:
                raise RegistryNotReadyError(
                    f"this role cannot ask whether tenant {tenant.slug!r} still has its schema: "
                    f"{describe_refusal(error)}; run quart-tenants doctor, which says what the registry lacks"
                ) from error
        if not found:
            raise UnknownTenantError(tenant.slug)
        self._known_until = now + self._seconds


UNCHECKED = SchemaCheck(None)
"""For blocks of no tenant, and where somebody else asks."""
