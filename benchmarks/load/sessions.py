"""Get sessions for the load: by logging in at the peers, and by signing them for this project."""

import asyncio
from collections.abc import Sequence

from benchmarks.load.cluster import PASSWORD, USER, Server
from benchmarks.load.serving import SECRET_KEY, Running, ask
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.sessions.session_ends import get_generation
from quart_tenants.settings import Settings
from quart_tenants.web.sessions.session_cookies import SessionCookies, issue_session

_LOGINS_AT_ONCE = 8


async def log_in(running: Running, slugs: Sequence[str], server: Server) -> list[tuple[str, str]]:
    """Return each tenant with the cookie of a session there."""
    if not running.contender.session:
        return [(slug, "-") for slug in slugs]
    if running.contender.is_ours:
        return await _sign_sessions(slugs, server.url(running.contender.database))
    cookies = {}
    left = iter(slugs)

    async def log_in_to_the_rest() -> None:
        for slug in left:
            cookies[slug] = await _log_in(running, slug)

    await asyncio.gather(*(log_in_to_the_rest() for _ in range(_LOGINS_AT_ONCE)))
    return [(slug, cookies[slug]) for slug in slugs]


async def _log_in(running: Running, slug: str) -> str:
    body = f"uname={USER}&passwd={PASSWORD}"
    status, head = await ask(
        running.port,
        f"POST /login HTTP/1.1\r\nHost: {slug}.localhost\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n\r\n{body}",
    )
    if status != 200:
        raise RuntimeError(f"{running.contender.name} answers the login at {slug} with {status}")
    lines = (line.partition(": ") for line in head.split("\r\n"))
    return next(value for name, _, value in lines if name.lower() == "set-cookie").partition(";")[0]


async def _sign_sessions(slugs: Sequence[str], url: str) -> list[tuple[str, str]]:
    """Sign as the app does after a login: 1,000 real ones would hash passwords for a minute."""
    settings = Settings(database_url=url)
    async with await Database.open(settings, max_size=1) as database, database.connection() as connection:
        generation = await get_generation(connection)
        rows = await connection.fetch("SELECT id, slug FROM quart_tenants.living_tenants")
    ids = {row["slug"]: row["id"] for row in rows}
    cookies = SessionCookies(SECRET_KEY)
    return [
        (slug, "session=" + cookies.sign(issue_session(ids[slug], USER, generation, settings.session_lifetime)))
        for slug in slugs
    ]
