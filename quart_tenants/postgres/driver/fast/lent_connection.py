"""The handle on a fast connection that a block's handler holds, for the time of the block."""

from typing import TYPE_CHECKING, Any

from asyncpg.pool import PoolConnectionProxy

if TYPE_CHECKING:
    from quart_tenants.postgres.driver.fast.fast_connection import FastConnection


class LentConnection(PoolConnectionProxy):
    """asyncpg's own handle on a pooled connection, which is useless after the block to whoever has kept it.

    asyncpg makes one each time that a connection is acquired; fast connections stay acquired between two blocks.
    """

    __slots__ = ()
    _con: Any
    _holder: Any

    def __init__(self, connection: "FastConnection") -> None:
        self.change_to(connection)

    def change_to(self, connection: "FastConnection") -> None:
        """Stand for *connection* from now on."""
        self._con = connection
        self._holder = connection.proxy._holder  # noqa: SLF001  (asyncpg's own handle knows it)
        # asyncpg shows this handle to listeners.
        connection._proxy = self  # noqa: SLF001

    def take_back(self) -> None:
        """Stand for no connection any more."""
        connection, self._con = self._con, None
        if connection is not None:
            connection._proxy = connection.proxy  # noqa: SLF001
