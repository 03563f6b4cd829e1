"""Who gets into a console on loopback: whoever has the address that it has printed, and nobody else."""

import pytest

from tests.console.conftest import OwnConsole
from tests.console.pages import find_token, read

pytestmark = pytest.mark.slow

PATHS = ["/", "/tenants/acme", "/tenants/acme/suspend", "/trash", "/runs", "/static/console.css", "/nothing"]


async def test_console_shows_nothing_without_the_key(own: OwnConsole) -> None:
    """Without a cookie of the console every address answers 403 by the same page, which names no tenant."""
    client = own.client()
    closed = await read(await client.get("/anything?key=wrong"))
    assert "acme" not in closed

    for path in PATHS:
        for ask in (client.get, client.post):
            answer = await ask(path)
            assert answer.status_code == 403
            assert await read(answer) == closed


async def test_key_opens_the_console_for_one_browser(own: OwnConsole) -> None:
    """The key is exchanged once for a strict cookie, and the terminal then has the next one."""
    first = own.told[-1]
    client = own.client()
    opened = await client.get(first)
    cookie = opened.headers["Set-Cookie"]

    assert opened.status_code == 200
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert first.partition("=")[2] not in cookie
    assert "acme" in await read(await client.get("/"))
    assert (await own.client().get(first)).status_code == 403
    assert (await own.client().get(own.told[-1])).status_code == 200
    assert len(set(own.told)) == 3


async def test_address_of_an_old_console_opens_nothing(own: OwnConsole) -> None:
    """A key and a cookie of another start are told to be worth nothing, and how to get on."""
    other = OwnConsole(own.console.settings)
    async with other.app.test_app():
        key = await own.client().get(other.told[-1])
        stranger = await other.open()
    cookies = [f"{one.name}={one.value}" for one in stranger.cookie_jar or ()]
    cookie = await own.client().get("/", headers={"Cookie": "; ".join(cookies)})

    assert cookies
    assert (key.status_code, cookie.status_code) == (403, 403)
    assert "the terminal of the console has\na new one" in await read(key)


async def test_other_name_of_the_machine_is_refused(own: OwnConsole) -> None:
    """A site that lets its own name lead to 127.0.0.1 gets nothing, not even with the key or the cookie."""
    client = await own.open()

    for host in ["evil.test", "127.0.0.1.evil.test:80", "acme.localhost", "[::2]", "10.0.0.1"]:
        assert (await client.get("/", headers={"Host": host})).status_code == 403
        assert (await client.get(own.told[-1], headers={"Host": host})).status_code == 403
    assert (await client.get("/", headers={"Host": "127.0.0.1:9"})).status_code == 200


async def test_page_of_another_origin_gets_nothing(own: OwnConsole) -> None:
    """Another program on the same machine is another origin: it neither reads nor posts, cookie or not."""
    client = await own.open()
    path = "/tenants/acme/suspend"
    token = find_token(await read(await client.get(path)))

    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
    ):
        assert (await client.get("/", headers=headers)).status_code == 403
        assert (await client.post(path, form={"token": token}, headers=headers)).status_code == 403

    # Negative control: the same form from the console's own page.
    own_page = {"Sec-Fetch-Site": "same-origin"}
    assert (await client.post(path, form={"token": token}, headers=own_page)).status_code == 303


async def test_every_answer_is_kept_by_nobody_and_runs_nothing_from_elsewhere(own: OwnConsole) -> None:
    """The policy allows the console's own files only, there is no CORS header, and nothing is cached or framed."""
    client = await own.open()
    for path in ("/", "/static/run.js", "/?key=wrong", "/nothing"):
        headers = (await client.get(path)).headers
        assert "default-src 'none'; style-src 'self'; script-src 'self'" in headers["Content-Security-Policy"], path
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        assert not [name for name in headers.keys() if name.lower().startswith("access-control")]  # noqa: SIM118
