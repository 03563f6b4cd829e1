"""A new customer's first page is served, whichever worker it reaches."""

import asyncio
from pathlib import Path

import pytest

from tests.server.notes_app import list_notes, serving, write_notes_app
from tests.support.processes import SECRET_KEY, Server

pytestmark = pytest.mark.slow

CUSTOMERS = 200
CONFIG = 'bind = "127.0.0.1:0"\nworkers = 4\n'


async def sign_up(server: Server, slug: str) -> tuple[int, int, int]:
    """Sign up, and go to the new address on a connection of its own. Return both statuses and the number of notes."""
    async with server.client("localhost:{port}") as visitor:
        made = await visitor.post(f"/sign-up/{slug}")
    async with server.tenant(slug) as member:
        answer = await member.get("/notes")
    return made.status_code, answer.status_code, answer.json().get("notes", 0)


async def test_every_sign_up_is_followed_by_its_page(tmp_path: Path, empty_database_url: str) -> None:
    """Four workers, each of which has heard of a quarter of the new tenants: all of 200 first pages are served."""
    await write_notes_app(tmp_path, empty_database_url)
    (tmp_path / "hypercorn.toml").write_text(CONFIG)
    environment = {"QUART_TENANTS_DATABASE_URL": empty_database_url, "QUART_SECRET_KEY": SECRET_KEY}
    with serving(tmp_path, environment) as server:
        answers = []
        for first in range(0, CUSTOMERS, 4):
            answers += await asyncio.gather(*(sign_up(server, f"c{first + number}") for number in range(4)))

    assert answers == [(200, 200, 1)] * CUSTOMERS
    assert await list_notes(empty_database_url, "c7") == ["welcome to c7"]
