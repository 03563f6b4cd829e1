"""A worker whose memory is short: what it cannot do is an error, nothing is half done, and the next request is done."""

import os
import sys
from pathlib import Path

import httpx
import pytest

from tests.server.notes_app import NOTES, list_notes, serving, write_notes_app
from tests.server.test_supervision import find_workers
from tests.support.processes import SECRET_KEY, Server, wait_for_answer

if sys.platform == "linux":
    import resource

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits another process"),
]

ROOM = 64 << 20  # bytes
LARGE = 128 << 20
LATER = 5
HEAVY_ROUTES = f"""
    @app.post("/in-the-view", host=tenants.host)
    async def fill_memory():
        async with tenant_connection() as connection:
            await connection.execute("INSERT INTO notes (body) VALUES ('half done')")
            bytes({LARGE})
        return {{}}

    @app.post("/in-the-driver", host=tenants.host)
    async def read_too_much():
        async with tenant_connection() as connection:
            await connection.execute("INSERT INTO notes (body) VALUES ('half done')")
            await connection.fetchval("SELECT repeat('x', {LARGE})")
        return {{}}

    return app
"""


def limit_memory(pid: int, room: int) -> None:
    """Let a process get *room* bytes more of address space than it has, and no more."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + room
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


@pytest.mark.parametrize("path", ["/in-the-view", "/in-the-driver"])
async def test_short_memory_leaves_nothing_half_done(tmp_path: Path, empty_database_url: str, path: str) -> None:
    """A request that gets no memory is 5xx, its block is rolled back, and the next requests are served."""
    status, later = await run_out_of_memory(tmp_path, empty_database_url, path, HEAVY_ROUTES)

    assert status == (500 if path == "/in-the-view" else 503)
    assert later == [200] * LATER
    assert await list_notes(empty_database_url, "acme") == ["before", *["after"] * LATER]


async def test_worker_without_memory_would_go_on_and_serve_nobody(tmp_path: Path, empty_database_url: str) -> None:
    """Negative control: where nobody listens to the event loop, a worker drops each connection and stays."""
    deaf = "    import asyncio\n\n    asyncio.BaseEventLoop.set_exception_handler = lambda *_: None\n"

    _, later = await run_out_of_memory(tmp_path, empty_database_url, "/in-the-driver", deaf + HEAVY_ROUTES)

    assert 0 in later


async def run_out_of_memory(folder: Path, url: str, path: str, routes: str) -> tuple[int, list[int]]:
    """Serve the notes with *routes* by one worker of little memory; return the status of *path*, and of later requests.

    A request whose connection is dropped has status 0. Each is on a connection of its own.
    """
    await write_notes_app(folder, url)
    (folder / "notes.py").write_text(NOTES.replace("\n    return app\n", routes, 1))
    (folder / "hypercorn.toml").write_text('bind = "127.0.0.1:0"\nworkers = 1\ngraceful_timeout = 60\n')
    environment = {
        "QUART_TENANTS_DATABASE_URL": url,
        "QUART_SECRET_KEY": SECRET_KEY,
        # A busy machine may take long.
        "QUART_TENANTS_REQUEST_TIMEOUT": "120",
        "QUART_TENANTS_COMMAND_TIMEOUT": "120",
    }
    with serving(folder, environment) as server:
        wait_for_answer(server.port)
        assert await post(server, "/notes/before") == 200
        (worker,) = find_workers(server.process.pid)
        limit_memory(worker, ROOM)
        status = await post(server, path)
        return status, [await post(server, "/notes/after") for _ in range(LATER)]


async def post(server: Server, path: str) -> int:
    """Return the status of the answer; 0 if the connection was dropped."""
    async with server.tenant("acme") as client:
        try:
            return (await client.post(path)).status_code
        except httpx.TransportError:
            return 0
