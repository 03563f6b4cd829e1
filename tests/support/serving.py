"""Serve an app by Hypercorn in this process, where a test can change it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart

from tests.support.processes import wait_for_answer


@asynccontextmanager
async def serving_here(app: Quart) -> AsyncIterator[int]:
    """Serve *app* on any free port; yield that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(app, config, shutdown_trigger=stop.wait))
        try:
            await asyncio.to_thread(wait_for_answer, port)
            yield port
        finally:
            stop.set()
