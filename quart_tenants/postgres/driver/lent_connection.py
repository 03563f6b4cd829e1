"""What a block's handler holds: a connection for the time of the block."""

from typing import TYPE_CHECKING, Any

from asyncpg.pool import PoolConnectionProxy

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.block_connection import BlockConnection


class LentConnection(PoolConnectionProxy):
    """asyncpg's own handle on a pooled connection, which is useless afterwards to whoever has kept it.

    asyncpg makes one each time that a connection is acquired; ours stay acquired between two blocks.
    """

    __slots__ = ()
    _con: Any
    _holder: Any

    def __init__(self, connection: "BlockConnection") -> None:
        self.change_to(connection)

    def change_to(self, connection: "BlockConnection") -> None:
        """Stand for *connection* from now on."""
        self._con = connection
        self._holder = connection.pool_proxy._holder  # noqa: SLF001  (what asyncpg's own handle knows)
        # Whom asyncpg shows to listeners.
        connection._proxy = self  # noqa: SLF001

    def take_back(self) -> None:
        """Stand for no connection any more."""
        connection, self._con = self._con, None
        if connection is not None:
            connection._proxy = connection.pool_proxy  # noqa: SLF001
