"""Clients that write and read the notes of a tenant all the time, and count what becomes of their requests."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from tests.support.processes import Server

DEADLINE = 120.0  # seconds; no more than a hanging test takes


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        sent: How many requests were sent.
        answers: How many were answered, by status and by the app's version.
        lost: What the clients of the others saw.
        written: The notes whose writing was answered 200.
        ending: Whether the clients are to stop after the request that they wait for.
    """

    sent: int = 0
    answers: Counter[tuple[int, int]] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    ending: bool = False
    _progress: asyncio.Event = field(default_factory=asyncio.Event)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when *condition* holds. It is looked at after each request."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._progress.clear()
                await self._progress.wait()

    async def until_more(self, number: int) -> None:
        """Return when *number* more requests were answered."""
        goal = self.answers.total() + number
        await self.until(lambda: self.answers.total() >= goal)

    async def work(self, server: Server, *, keep_alive: bool) -> None:
        """Send one request after the other, all on one connection or each on a new one."""
        limits = httpx.Limits() if keep_alive else httpx.Limits(max_keepalive_connections=0)
        async with server.client("acme.localhost:{port}", limits=limits) as client:
            while not self.ending:
                body = str(next(self._numbers))
                if await self._send(client, "POST", f"/notes/{body}"):
                    self.written.append(body)
                await self._send(client, "GET", "/notes")

    async def _send(self, client: httpx.AsyncClient, method: str, path: str) -> bool:
        self.sent += 1
        try:
            answer = await client.request(method, path)
        except httpx.TransportError as error:
            self.lost.append(repr(error))
            return False
        finally:
            self._progress.set()
        self.answers[answer.status_code, answer.json().get("version", 0)] += 1
        return answer.status_code == 200


@asynccontextmanager
async def under_load(server: Server) -> AsyncIterator[Load]:
    """Yield the load of three clients that keep their connections and of three that do not."""
    load = Load()
    clients = [asyncio.create_task(load.work(server, keep_alive=number < 3)) for number in range(6)]
    try:
        await load.until_more(50)
        yield load
    finally:
        load.ending = True
        await asyncio.gather(*clients)
