"""Let a client that is still sending read the answer.

A server that answers early, such as 413, and closes while bytes of the request are still on their
way makes the system reset the connection, and many clients then never see the answer.
"""

import asyncio
from typing import Any

from hypercorn.typing import ASGIReceiveCallable, ASGIReceiveEvent, ASGISendCallable, ASGISendEvent, Scope

_LINGER = 2.0
"""Seconds. How long an answer that is sent waits for the rest of its request, which is thrown away."""


class LingeringClose:
    """ASGI middleware: the answer goes out at once, its end only after the request's, or two seconds later."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Pass the request on, and watch where it ends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ended = asyncio.Event()

        async def receive_and_watch() -> ASGIReceiveEvent:
            # Quart goes on receiving until its answer is sent, also what nobody reads.
            event = await receive()
            if event["type"] != "http.request" or not event["more_body"]:
                ended.set()
            return event

        async def send_and_linger(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.body" and not event["more_body"] and not ended.is_set():
                await send({**event, "more_body": True})
                try:
                    await asyncio.wait_for(ended.wait(), _LINGER)
                except TimeoutError:
                    # The client had its time.
                    ended.set()
                event = {**event, "body": b""}
            await send(event)

        await self._app(scope, receive_and_watch, send_and_linger)
