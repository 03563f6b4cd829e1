"""Give the app what it receives of a request, and tell it when its client goes away."""

import asyncio
from collections.abc import Callable

from hypercorn.typing import ASGIReceiveEvent


class RequestReceive:
    """The `receive` that the app of one request is called with.

    Attributes:
        has_body: Whether the client sends a body.
    """

    def __init__(self, max_messages: int, *, has_body: bool) -> None:
        self.has_body = has_body
        # Where there is no body, nothing can come but the end.
        self._messages: asyncio.Queue[ASGIReceiveEvent] | None = asyncio.Queue(max_messages) if has_body else None
        self._is_read = False
        self._end: asyncio.Event | None = None
        self._gone = False
        # Whether nothing more of the client reaches the app.
        self._is_cut = False
        self._watcher: Callable[[], None] | None = None

    async def __call__(self) -> ASGIReceiveEvent:
        """Return the next piece of the body; after the body wait, and say that the client has gone."""
        if self._messages is None:
            return await self._receive_end()
        message = await self._messages.get()
        if message["type"] == "http.disconnect":
            # For whoever asks again, or waits beside this one.
            self._messages.put_nowait(message)
        return message

    def watch_client(self, callback: Callable[[], None] | None) -> None:
        """Call *callback* when the client has gone, at once if it has gone before. None ends the watch.

        The end of the answer counts as the client's going away, as it does for `http.disconnect`.
        """
        self._watcher = callback
        if self._gone and callback is not None:
            callback()

    def disconnect(self) -> None:
        """Let the app believe that its client has gone, although an answer can still be sent."""
        if self._is_cut:
            return
        self._is_cut = self._is_read = True
        if self._messages is not None:
            while not self._messages.empty():
                self._messages.get_nowait()
            self._messages.put_nowait({"type": "http.disconnect"})
        self._note_end()

    async def put(self, message: ASGIReceiveEvent) -> None:
        """Keep *message* for the app. Wait while the app has not taken those before."""
        if self._is_cut:
            return
        if message["type"] == "http.disconnect":
            self._note_end()
        if self._messages is not None:
            await self._messages.put(message)

    async def _receive_end(self) -> ASGIReceiveEvent:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if not self._gone:
            self._end = self._end or asyncio.Event()
            await self._end.wait()
        return {"type": "http.disconnect"}

    def _note_end(self) -> None:
        self._gone = True
        if self._end is not None:
            self._end.set()
        if self._watcher is not None:
            self._watcher()
