"""Send messages of ours in one packet with asyncpg's: some ahead of its own, some behind.

Each packet wakes the server's process, and its answer wakes ours. That is most of what a short statement costs.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from asyncpg.protocol.protocol import BaseProtocol

_Factory: TypeAlias = Callable[[], Any]

# asyncpg ends each of its statements with this message.
_SYNC = b"S\0\0\0\4"
# What asyncpg calls again and again on the event loop.
_OFTEN = ("call_at", "call_later", "call_soon", "create_future", "create_task", "time")


class PacketTransport(asyncio.Transport):
    """A transport that can add messages to the next packet. All else is passed on to the real one."""

    __slots__ = ("_ahead", "_before_sync", "_transport", "_write")

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        super().__init__()
        self._transport = transport
        self._write = transport.write
        self._ahead = b""
        self._before_sync = b""

    def put_ahead(self, messages: bytes) -> None:
        """Let *messages* begin the next packet."""
        self._ahead += messages

    def put_before_sync(self, messages: bytes) -> None:
        """Let *messages* go before the next Sync, as the end of what is answered together."""
        self._before_sync = messages

    def drop(self) -> bool:
        """Forget the messages that were not sent; return whether any was to begin a packet."""
        dropped = bool(self._ahead)
        self._ahead = self._before_sync = b""
        return dropped

    def write(self, data: "bytes | bytearray | memoryview[int]") -> None:
        """Send *data*, with what was to go with it."""
        if self._ahead or self._before_sync:
            data = bytes(data)
            if self._before_sync and data.endswith(_SYNC):
                data = data[: -len(_SYNC)] + self._before_sync + _SYNC
                self._before_sync = b""
            data = self._ahead + data
            self._ahead = b""
        self._write(data)


def _pass_on(name: str) -> Callable[..., Any]:
    def call(transport: PacketTransport, *args: Any, **options: Any) -> Any:
        return getattr(transport._transport, name)(*args, **options)  # noqa: SLF001  (a method of its own)

    return call


# Not by a `__getattr__`: a class that has one looks up all its attributes slowly.
for _name in vars(asyncio.BaseTransport) | vars(asyncio.ReadTransport) | vars(asyncio.WriteTransport):
    if not _name.startswith("_") and _name not in vars(PacketTransport):
        setattr(PacketTransport, _name, _pass_on(_name))


class PacketLoop:
    """An event loop whose connections to PostgreSQL have a `PacketTransport`.

    asyncpg offers no other way to give its connections one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        for name in _OFTEN:
            setattr(self, name, getattr(loop, name))

    async def create_connection(self, factory: _Factory, *args: Any, **options: Any) -> tuple[Any, Any]:
        """Connect by TCP."""
        transport, protocol = await self._loop.create_connection(_wrap(factory), *args, **options)
        # Where TLS is asked for first, asyncpg's own protocol takes the transport over later.
        return transport if isinstance(protocol, BaseProtocol) else PacketTransport(transport), protocol

    async def create_unix_connection(self, factory: _Factory, *args: Any, **options: Any) -> tuple[Any, Any]:
        """Connect by a socket of this machine."""
        return await self._loop.create_unix_connection(_wrap(factory), *args, **options)

    async def start_tls(self, transport: Any, *args: Any, **options: Any) -> Any:
        """Speak TLS from now on."""
        real = getattr(transport, "_transport", transport)
        encrypted = await self._loop.start_tls(real, *args, **options)
        return None if encrypted is None else PacketTransport(encrypted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def find_packet_transport(protocol: Any, transport: Any) -> PacketTransport | None:
    """Return what *protocol* writes to, if it was made by a `PacketLoop`."""
    if isinstance(transport, PacketTransport):
        return transport
    found: PacketTransport | None = getattr(protocol, "packet_transport", None)
    return found


def _wrap(factory: _Factory) -> _Factory:
    def make() -> Any:
        protocol: Any = factory()
        if isinstance(protocol, BaseProtocol):
            made: Any = protocol

            def connection_made(transport: asyncio.WriteTransport) -> None:
                made.packet_transport = PacketTransport(transport)
                type(made).connection_made(made, made.packet_transport)

            made.connection_made = connection_made
        return protocol

    return make
