"""Remember how the server described a statement, and hear whether it still does, for connections behind a pooler.

There no statement can stay prepared: the next transaction may run on another server process. So a read is prepared
anew in each message, together with its BEGIN and COMMIT. The driver has to know the types of its parameters before, and
takes them from the last time. The server's own description comes back with the rows. Where it differs, such as after a
change of the table by hand, the rows are thrown away, and the read is run once more.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

from quart_tenants.postgres.driver.block_statements import TenantKey
from quart_tenants.postgres.driver.fast.statement_cache import Statement

_HEADER = 5  # bytes: the type of a message, and its length without the type
_PARAMETERS, _ROWS, _NO_ROWS, _ERROR, _READY = b"tTnEZ"


class DescriptionListener:
    """Hears the descriptions that a server sends to one of asyncpg's connections.

    Attributes:
        heard: The first description since `listen`, byte by byte; empty if none came, or not all of it.
    """

    __slots__ = ("_listening", "_parameters", "_pass_on", "_waiting", "heard")

    def __init__(self, protocol: Any, transport: Any) -> None:
        self.heard = b""
        self._listening = False
        self._parameters = b""
        # The beginning of a message that is not complete.
        self._waiting = b""
        self._pass_on = protocol.data_received
        protocol.data_received = self._receive
        # An event loop may have asked the protocol for its method once, when the connection was made.
        transport.set_protocol(protocol)

    def listen(self) -> None:
        """Forget what was heard, and hear the next description."""
        self.heard = self._waiting = b""
        self._listening = True

    def _receive(self, received: bytes) -> None:
        if self._listening:
            self._look(self._waiting + received)
        self._pass_on(received)

    def _look(self, received: bytes) -> None:
        at = 0
        while len(received) >= at + _HEADER:
            end = at + 1 + int.from_bytes(received[at + 1 : at + _HEADER])
            if len(received) < end:
                break
            kind = received[at]
            if kind == _PARAMETERS:
                self._parameters = received[at:end]
            elif kind in (_ROWS, _NO_ROWS):
                self.heard = self._parameters + received[at:end]
            if kind in (_ROWS, _NO_ROWS, _ERROR, _READY):
                self._listening = False
                return
            at = end
        self._waiting = received[at:]


class DescribedStatement(NamedTuple):
    """A statement that is prepared no longer, and what the server said of its parameters and columns."""

    statement: Statement
    description: bytes


class DescribedStatements:
    """At most *size* statements: those that were used last, each of one tenant at one version."""

    __slots__ = ("_kept", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[TenantKey, str], DescribedStatement] = OrderedDict()

    def find(self, tenant: TenantKey, query: str) -> DescribedStatement | None:
        """Return the statement of that text, if it is remembered."""
        found = self._kept.get((tenant, query))
        if found is not None:
            self._kept.move_to_end((tenant, query))
        return found

    def keep(self, tenant: TenantKey, query: str, described: DescribedStatement) -> None:
        """Remember a statement, and forget the one that was not used for the longest time if there are too many."""
        self._kept[tenant, query] = described
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def forget(self, tenant: TenantKey, query: str) -> None:
        """Forget the statement of that text."""
        self._kept.pop((tenant, query), None)

    def forget_all(self) -> None:
        """Forget all: types have other codecs now, or other attributes."""
        self._kept.clear()
