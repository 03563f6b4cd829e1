"""Record every statement that goes to PostgreSQL, as the messages of the protocol say it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.tcp_proxy import Direction, Link, TcpProxy


@dataclass
class Recorded:
    """What one connection has sent.

    Attributes:
        options: The parameters with which it was opened.
        texts: What was executed, in order; a text of the simple protocol may hold several statements.
        parsed: What was prepared, in order.
    """

    options: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    parsed: list[str] = field(default_factory=list)
    _prepared: dict[bytes, str] = field(default_factory=dict)
    _bound: dict[bytes, str] = field(default_factory=dict)

    def note(self, kind: bytes, body: bytes) -> None:
        """Take in one message of the client."""
        if kind == b"":
            words = [word.decode() for word in body.split(b"\0")]
            self.options = dict(zip(words[::2], words[1::2], strict=False))
        elif kind == b"Q":
            self.texts.append(body.rstrip(b"\0").decode())
        elif kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._prepared[name] = text.decode()
            self.parsed.append(text.decode())
        elif kind == b"B":
            portal, name, _ = body.split(b"\0", 2)
            self._bound[portal] = self._prepared[name]
        elif kind == b"E":
            self.texts.append(self._bound[body.split(b"\0", 1)[0]])


class MessageRecorder(TcpProxy):
    """A proxy that remembers what it has passed on.

    Attributes:
        connections: In the order in which they were opened.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._by_link: dict[Link, Recorded] = {}

    @property
    def connections(self) -> list[Recorded]:
        """What each connection has sent until now."""
        return list(self._by_link.values())

    def _look_at(self, link: Link, direction: Direction, kind: bytes, body: bytes) -> None:
        if direction == "client":
            self._by_link.setdefault(link, Recorded()).note(kind, body)


@contextmanager
def record_messages(url: str) -> Iterator[MessageRecorder]:
    """Yield a proxy before the database at *url*, on a loop of its own: a test may wait for programs meanwhile."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    recorder = MessageRecorder(url)
    try:
        asyncio.run_coroutine_threadsafe(recorder.__aenter__(), loop).result()
        try:
            yield recorder
        finally:
            asyncio.run_coroutine_threadsafe(recorder.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
