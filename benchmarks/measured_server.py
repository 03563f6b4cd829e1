"""`quart-tenants serve` with a clock in its event loop: `python -m benchmarks.measured_server serve …`.

`/lag` on any host answers how late a timer of one millisecond was each time since the last question, and
`MEASURED_HASHING` says how passwords are checked: `threads` as they are, or `inline` in the event loop.
"""

import asyncio
import json
import os
from typing import Any

from quart import Quart

from quart_tenants.app import cli, create_app
from quart_tenants.app.passwords import PasswordCheck, PasswordHasher

_INTERVAL = 0.001  # seconds


class LagMeter:
    """ASGI middleware that answers `/lag`."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._milliseconds: list[float] = []

    def start(self) -> None:
        """Begin to measure, in the event loop that runs."""
        loop = asyncio.get_running_loop()

        def tick(due: float) -> None:
            now = loop.time()
            self._milliseconds.append((now - due) * 1000)
            loop.call_at(now + _INTERVAL, tick, now + _INTERVAL)

        tick(loop.time())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer `/lag`, pass the rest on."""
        if scope["type"] != "http" or scope["path"] != "/lag":
            await self._app(scope, receive, send)
            return
        body = json.dumps(self._milliseconds).encode()
        self._milliseconds.clear()
        headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def create_measured_app() -> Quart:
    """Return the reference app with the meter around it."""
    app = create_app()
    meter = LagMeter(app.asgi_app)
    app.asgi_app = meter  # type: ignore[method-assign]

    @app.before_serving
    async def start() -> None:
        meter.start()

    if os.environ.get("MEASURED_HASHING") == "inline":
        hasher: PasswordHasher = app.extensions["password_hasher"]

        async def check(password: str, stored: str | None) -> PasswordCheck:
            return hasher._check(password, stored)  # noqa: SLF001  (what the threads run)

        hasher.check = check  # type: ignore[method-assign]
    return app


if __name__ == "__main__":
    cli.create_app = create_measured_app  # type: ignore[assignment, attr-defined]
    cli.main()
