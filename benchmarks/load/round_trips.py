"""Count how often an app waits for its PostgreSQL, through a proxy between the two."""

import asyncio
import contextlib
from urllib.parse import parse_qs, urlsplit


class CountingProxy:
    """`async with CountingProxy(url) as proxy:` passes everything on; an app connects to `proxy.url`.

    Attributes:
        round_trips: How often a client has spoken after the server: what it sends in several pieces without waiting
            for an answer counts once.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.round_trips = 0
        self.url = ""

    async def __aenter__(self) -> "CountingProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user = self._target.netloc.rpartition("@")[0]
        # As a query, so that each of the drivers finds both in the same place.
        self.url = f"postgresql://{user}@/{self._target.path[1:]}?host=127.0.0.1&port={port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        query = parse_qs(self._target.query)
        server_reader, server_writer = await asyncio.open_unix_connection(
            f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
        )
        waiting = False

        async def pass_questions() -> None:
            nonlocal waiting
            while sent := await reader.read(65536):
                self.round_trips += not waiting
                waiting = True
                server_writer.write(sent)

        async def pass_answers() -> None:
            nonlocal waiting
            while sent := await server_reader.read(65536):
                waiting = False
                writer.write(sent)

        pumps = [asyncio.create_task(pass_questions()), asyncio.create_task(pass_answers())]
        try:
            with contextlib.suppress(OSError):
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            writer.close()
            server_writer.close()
