"""Let a client that is still sending read the answer.

A server may answer before the whole request has arrived, such as with 413. If it then closes the connection while bytes
of the request are still on their way, the system resets the connection, and many clients never see the answer.
"""

import asyncio
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent, Scope

from quart_tenants.web.guards.framing import has_body

_LINGER = 2.0
"""Seconds. How long the end of the answer waits for the rest of its request, which is thrown away."""


class LingeringClose:
    """ASGI middleware: the answer goes out at once, but its end waits for the end of the request, at most two seconds.

    For the app, a body of more than *max_body_bytes* ends where it becomes too large. None means no limit.
    """

    def __init__(self, app: Any, max_body_bytes: int | None) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Pass the request on, and watch where it ends."""
        if scope["type"] != "http" or not has_body(scope):
            await self._app(scope, receive, send)
            return
        ended = asyncio.Event()

        received = 0

        async def receive_and_watch() -> ASGIReceiveEvent:
            # Quart goes on receiving until its answer is sent, also what nobody reads.
            nonlocal received
            while True:
                event = await receive()
                if event["type"] != "http.request":
                    ended.set()
                    return event
                if not event["more_body"]:
                    ended.set()
                before, received = received, received + len(event["body"])
                if self._max_body_bytes is None or received <= self._max_body_bytes:
                    return event
                if before <= self._max_body_bytes:
                    # The body is too large, so the app shall answer now. Quart 0.23 checks only the size of a whole
                    # body, and keeps it in memory until then. The rest is thrown away here.
                    return {**event, "more_body": False}

        async def send_and_linger(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.body" and not event["more_body"] and not ended.is_set():
                await send({**event, "more_body": True})
                try:
                    await asyncio.wait_for(ended.wait(), _LINGER)
                except TimeoutError:
                    # The client has had its time.
                    ended.set()
                event = {**event, "body": b""}
            await send(event)

        await self._app(scope, receive_and_watch, send_and_linger)
