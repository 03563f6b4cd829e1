"""The contract, for a tenant that is suspended and resumed while several workers serve."""

import functools
from pathlib import Path

import httpx
import pytest

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.tenants.lifecycle import resume_tenant, suspend_tenant
from quart_tenants.tenant import parse_slug
from tests.support.patience import measure_until
from tests.support.processes import QUICK_PASSWORDS, Server, run_server

# New connections, of which each worker takes about half: that all of them reach one of two is no chance any more.
ENOUGH = 20


async def ask_every_worker(server: Server, session: str) -> set[int]:
    """Return the statuses of many answers, each on a connection of its own."""
    statuses = set()
    for _ in range(ENOUGH):
        async with server.tenant("company1") as client:
            statuses.add((await client.get("/data", headers={"Cookie": session})).status_code)
    return statuses


@pytest.mark.slow
async def test_suspension_reaches_every_worker_within_two_seconds(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    """Both workers refuse the tenant and its sessions soon after, and serve them again when it is resumed."""
    config = tmp_path / "hypercorn.toml"
    config.write_text('bind = "127.0.0.1:0"\nworkers = 2\nworker_class = "uvloop"\n')
    slug = parse_slug("company1")

    with run_server(database_url, tmp_path, "--config", str(config), **QUICK_PASSWORDS) as server:
        async with server.member(1) as member:
            session = f"session={member.cookies['session']}"
        assert await ask_every_worker(server, session) == {httpx.codes.OK}

        async def all_answer(status: int) -> bool:
            return await ask_every_worker(server, session) == {status}

        await suspend_tenant(database, slug)
        suspended = await measure_until(functools.partial(all_answer, httpx.codes.BAD_REQUEST))
        await resume_tenant(database, slug)
        resumed = await measure_until(functools.partial(all_answer, httpx.codes.OK))

    assert suspended.is_within(2.0)
    assert resumed.is_within(2.0)
