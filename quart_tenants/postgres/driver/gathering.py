"""Send messages of ours in one packet with the driver's: some ahead of its own, some behind.

Each packet wakes the server's process up, and its answer ours; that is most of what a short statement costs.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from asyncpg.protocol.protocol import BaseProtocol

_Factory: TypeAlias = Callable[[], Any]

# What asyncpg ends each of its statements with.
_SYNC = b"S\0\0\0\4"
# Of the event loop, what asyncpg calls again and again.
_OFTEN = ("call_at", "call_later", "call_soon", "create_future", "create_task", "time")


class GatheringTransport:
    """A transport that puts what it was told around what is written next."""

    __slots__ = ("_ahead", "_before_sync", "_transport", "_write")

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._write = transport.write
        self._ahead = b""
        self._before_sync = b""

    def put_ahead(self, messages: bytes) -> None:
        """Let *messages* go ahead of what is written next."""
        self._ahead = messages

    def put_before_sync(self, messages: bytes) -> None:
        """Let *messages* go before the Sync that is written next, as the end of what is answered together."""
        self._before_sync = messages

    def drop(self) -> bool:
        """Forget what was not written; return whether that was something to go ahead."""
        dropped = bool(self._ahead)
        self._ahead = self._before_sync = b""
        return dropped

    def write(self, data: "bytes | bytearray | memoryview[int]") -> None:
        """Write it all."""
        if self._ahead or self._before_sync:
            data = bytes(data)
            if self._before_sync and data.endswith(_SYNC):
                data = data[: -len(_SYNC)] + self._before_sync + _SYNC
                self._before_sync = b""
            data = self._ahead + data
            self._ahead = b""
        self._write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class GatheringLoop:
    """The event loop, as asyncpg gets it to connect by: its connections have a `GatheringTransport`.

    asyncpg has no other place where a transport could be given to it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        for name in _OFTEN:
            setattr(self, name, getattr(loop, name))

    async def create_connection(self, factory: _Factory, *args: Any, **options: Any) -> tuple[Any, Any]:
        """Connect by TCP."""
        transport, protocol = await self._loop.create_connection(_gather(factory), *args, **options)
        # Where TLS is asked for first, asyncpg's own protocol takes the transport over.
        return transport if isinstance(protocol, BaseProtocol) else GatheringTransport(transport), protocol

    async def create_unix_connection(self, factory: _Factory, *args: Any, **options: Any) -> tuple[Any, Any]:
        """Connect by a socket of this machine."""
        return await self._loop.create_unix_connection(_gather(factory), *args, **options)

    async def start_tls(self, transport: Any, *args: Any, **options: Any) -> Any:
        """Speak TLS from now on."""
        real = getattr(transport, "_transport", transport)
        encrypted = await self._loop.start_tls(real, *args, **options)
        return None if encrypted is None else GatheringTransport(encrypted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def find_gathering(protocol: Any, transport: Any) -> GatheringTransport | None:
    """Return what *protocol* writes to, if it was made by a `GatheringLoop`."""
    if isinstance(transport, GatheringTransport):
        return transport
    found: GatheringTransport | None = getattr(protocol, "gathering", None)
    return found


def _gather(factory: _Factory) -> _Factory:
    def make() -> Any:
        protocol: Any = factory()
        if isinstance(protocol, BaseProtocol):
            made: Any = protocol

            def connection_made(transport: asyncio.WriteTransport) -> None:
                made.gathering = GatheringTransport(transport)
                type(made).connection_made(made, made.gathering)

            made.connection_made = connection_made
        return protocol

    return make
