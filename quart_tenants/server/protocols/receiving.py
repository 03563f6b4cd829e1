"""Give the app what it receives of a request, and tell it when its client goes away."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, Scope, TaskGroup


class RequestReceive:
    """The `receive` that the app of one request is called with.

    Attributes:
        has_body: Whether the client sends a body.
    """

    def __init__(self, max_messages: int, *, has_body: bool) -> None:
        self.has_body = has_body
        self._messages: asyncio.Queue[ASGIReceiveEvent] = asyncio.Queue(max_messages)
        self._gone = False
        # Whether nothing more of the client reaches the app.
        self._is_cut = False
        self._watcher: Callable[[], None] | None = None

    async def __call__(self) -> ASGIReceiveEvent:
        """Return the next piece of the body; after the body wait, and say that the client has gone."""
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
        self._is_cut = True
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
        await self._messages.put(message)

    def _note_end(self) -> None:
        self._gone = True
        if self._watcher is not None:
            self._watcher()


class RequestTasks:
    """Hypercorn's task group of a connection, whose requests receive by `RequestReceive`.

    Attributes:
        has_body: Whether the request that is started next has a body.
    """

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self.has_body = False

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Let *app* answer the request of *scope* in a task; return what gives it messages."""
        if scope["type"] != "http" or not isinstance(app, ASGIWrapper):
            return await self._group.spawn_app(app, config, scope, send)
        receive = RequestReceive(config.max_app_queue_size, has_body=self.has_body)
        self._group.spawn(_run, app.app, config, scope, receive, send)
        return receive.put

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run *function* in a task."""
        self._group.spawn(function, *arguments)


async def _run(app: Any, config: Config, scope: Scope, receive: RequestReceive, send: Any) -> None:
    try:
        await app(scope, receive, send)
    except Exception:  # noqa: BLE001  (As Hypercorn does: an error of the app ends its request, not the server.)
        await config.log.exception("Error in ASGI Framework")
    finally:
        await send(None)
