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


class _Description(NamedTuple):
    """A statement that is prepared no longer, and what the server said of its parameters and columns."""

    statement: Statement
    heard: bytes


class DescribedStatements:
    """At most *size* statements: those that were used last, each of one tenant at one version. One read at a time."""

    __slots__ = ("_expected", "_kept", "_key", "_listener", "_size")

    def __init__(self, size: int, listener: DescriptionListener) -> None:
        self._size = size
        self._listener = listener
        self._kept: OrderedDict[tuple[TenantKey, str], _Description] = OrderedDict()
        # Of the present read.
        self._key: tuple[TenantKey, str] | None = None
        self._expected: _Description | None = None

    def begin(self, tenant: TenantKey, query: str, *, keeps: bool) -> Statement | None:
        """Begin a read, which hears the server's description; return its statement, if it is known.

        Args:
            tenant: Whose read it is.
            query: Its text.
            keeps: Whether the statement may be one that was kept, and may be kept.
        """
        self._listener.listen()
        self._key = (tenant, query) if keeps else None
        self._expected = None if self._key is None else self._kept.get(self._key)
        return None if self._expected is None else self._expected.statement

    def is_changed(self) -> bool:
        """Return whether the server has described the present read's statement in another way than it was known."""
        return self._expected is not None and self._listener.heard not in (b"", self._expected.heard)

    def end(self, statement: Statement) -> bool:
        """End the read, whose rows are here; return whether they are right. By an old description they may be wrong."""
        heard = self._listener.heard
        if self._expected is not None and heard != self._expected.heard:
            self.forget()
            return False
        if self._key is not None and heard:
            self._kept[self._key] = self._expected or _Description(statement, heard)
            self._kept.move_to_end(self._key)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return True

    def forget(self) -> None:
        """Forget the statement of the present read."""
        if self._key is not None:
            self._kept.pop(self._key, None)

    def forget_all(self) -> None:
        """Forget all: types have other codecs now, or other attributes."""
        self._kept.clear()
