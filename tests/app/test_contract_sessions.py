"""The contract, part three: the session cookie."""

import time
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from pathlib import Path

import httpx
import pytest
from itsdangerous import URLSafeTimedSerializer

from quart_tenants.web.sessions.session_cookies import SessionCookies, issue_session
from tests.support.processes import QUICK_PASSWORDS, SECRET_KEY, Server, run_server

pytestmark = pytest.mark.slow

# The number that the template's registry gave it.
COMPANY1 = 3
RIGHT = {"uname": "user_1", "passwd": "foo"}


@pytest.fixture
async def cookie(server: Server) -> str:
    """The value of a session cookie of company1."""
    async with server.member() as client:
        return client.cookies["session"]


@pytest.fixture
async def visitor(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody at company1 without a cookie."""
    async with server.tenant("company1") as client:
        yield client


async def test_cookie_is_for_this_host_and_no_script(visitor: httpx.AsyncClient) -> None:
    """Over http: HttpOnly, SameSite=Lax, the whole site, host-only."""
    answer = await visitor.post("/login", data=RIGHT)

    morsel = SimpleCookie(answer.headers["set-cookie"])["session"]
    assert (morsel["httponly"], morsel["samesite"], morsel["path"]) == (True, "Lax", "/")
    assert (morsel["domain"], morsel["secure"]) == ("", "")


async def test_nobody_gets_401(visitor: httpx.AsyncClient) -> None:
    """Without a session the data is 401."""
    answer = await visitor.get("/data")

    assert (answer.status_code, answer.json()["code"]) == (401, "not_logged_in")


async def test_tampered_cookie_gets_401(visitor: httpx.AsyncClient, cookie: str) -> None:
    """Changing any one character of the cookie makes it worthless."""
    for place in range(0, len(cookie), 7):
        if cookie[place] == ".":
            continue
        # Not the last bit of a base64 text, which may be no bit of the value.
        other = "A" if cookie[place] not in "AQgw" else "7"
        tampered = cookie[:place] + other + cookie[place + 1 :]
        answer = await visitor.get("/data", headers={"Cookie": f"session={tampered}"})

        assert answer.status_code == 401, tampered


async def test_cookie_of_another_key_gets_401(visitor: httpx.AsyncClient) -> None:
    """A cookie that somebody else signed is no session."""
    forged = URLSafeTimedSerializer("another key of a decent length", salt="quart-tenants-session")

    answer = await visitor.get(
        "/data", headers={"Cookie": f"session={forged.dumps({'user': 'user_1', '_tenant': 1})!s}"}
    )

    assert answer.status_code == 401


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"rubbish",
        b"\x80\x81\xfe\xff",
        b"\xc3\x28",
        b'"',
        b'"unfinished',
        b"a=b=c",
        b";;;",
        b"e30",
        b"e30.e30.e30",
        b".....",
        b"." * 4000,
        b"%00%ff",
        b"eyJ1c2VyIjoidXNlcl8xIn0.99999999999999999999.x",
        b"A" * 8000,
    ],
)
async def test_rubbish_in_the_cookie_gets_401(visitor: httpx.AsyncClient, value: bytes) -> None:
    """Whatever bytes come as a cookie, they are no session and no bug."""
    answer = await visitor.get("/data", headers=[(b"Cookie", b"session=" + value)])

    assert answer.status_code == 401


async def test_session_of_another_tenant_gets_400(server: Server, cookie: str) -> None:
    """A session opens its own tenant only: 400 wrong_tenant on another, for every use of it."""
    async with server.tenant("company2") as client:
        for method, path in (("GET", "/data"), ("POST", "/logout")):
            answer = await client.request(method, path, headers={"Cookie": f"session={cookie}"})

            assert (answer.status_code, answer.json()["code"]) == (400, "wrong_tenant")


async def test_login_replaces_a_session_of_another_tenant(server: Server, cookie: str) -> None:
    """A foreign cookie keeps nobody from logging in."""
    async with server.tenant("company2") as client:
        answer = await client.post(
            "/login", data={"uname": "user_2", "passwd": "foo"}, headers={"Cookie": f"session={cookie}"}
        )

        assert answer.status_code == 200
        assert (await client.get("/data")).json()["data"][0]["description"] == "company 2 data"


async def test_session_of_another_tenant_does_not_matter_to_files(server: Server, cookie: str) -> None:
    """A page that reads no session serves whoever asks."""
    async with server.tenant("company2") as client:
        answer = await client.get("/static/style.css", headers={"Cookie": f"session={cookie}"})

    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("began", "signed", "status"),
    [(0, 0, 200), (43100, 0, 200), (7100, 7100, 200), (43300, 0, 401), (7300, 7300, 401)],
    ids=["new", "old and used", "unused", "too old", "unused for too long"],
)
async def test_session_lives_as_long_as_the_settings_say(
    server: Server, monkeypatch: pytest.MonkeyPatch, began: int, signed: int, status: int
) -> None:
    """Twelve hours after the login a session is over, and two hours after its last use."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - began)
    session = issue_session(COMPANY1, "user_1", 0, 43200)
    monkeypatch.setattr(time, "time", lambda: now - signed)
    cookie = SessionCookies(SECRET_KEY).sign(session)
    monkeypatch.undo()

    async with server.tenant("company1") as client:
        answer = await client.get("/data", headers={"Cookie": f"session={cookie}"})

    assert answer.status_code == status


async def test_session_survives_a_restart(
    module_database_url: str, server: Server, tmp_path: Path, cookie: str
) -> None:
    """Any worker with the key knows the session."""
    with run_server(module_database_url, tmp_path, **QUICK_PASSWORDS) as another_server:
        async with another_server.tenant("company1") as client:
            answer = await client.get("/data", headers={"Cookie": f"session={cookie}"})

    assert answer.status_code == 200
    assert SECRET_KEY not in cookie


@pytest.fixture
async def behind_proxy(module_database_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    """A server that believes the proxies of this machine."""
    with run_server(
        module_database_url,
        tmp_path,
        QUART_TENANTS_TRUSTED_PROXIES="127.0.0.0/8",
        **QUICK_PASSWORDS,
    ) as server:
        yield server


async def test_cookie_over_https_is_secure_and_bound_to_the_host(behind_proxy: Server) -> None:
    """Behind a TLS proxy: Secure, and the prefix __Host-, which a sibling subdomain cannot plant."""
    async with behind_proxy.client("company1.localhost") as client:
        answer = await client.post("/login", data=RIGHT, headers={"X-Forwarded-Proto": "https"})

        name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
        assert name == "__Host-session"
        assert "; Secure" in answer.headers["set-cookie"]
        assert "Domain" not in answer.headers["set-cookie"]
        for cookie, status in ((f"__Host-session={value}", 200), (f"session={value}", 401)):
            shown = await client.get("/data", headers={"X-Forwarded-Proto": "https", "Cookie": cookie})
            assert shown.status_code == status


async def test_tenant_is_found_behind_a_proxy(behind_proxy: Server) -> None:
    """A proxy may name the host that was asked for, without a port or with its own."""
    for host in ("company1.localhost", "company1.localhost:443"):
        async with behind_proxy.client("127.0.0.1") as client:
            answer = await client.get("/data", headers={"X-Forwarded-Host": host, "X-Forwarded-Proto": "https"})

        assert answer.status_code == 401


async def test_strangers_forwarded_headers_are_ignored(server: Server) -> None:
    """Without a trusted proxy nobody can name another host or scheme by a header."""
    async with server.client("evil.org") as client:
        answer = await client.get("/data", headers={"X-Forwarded-Host": "company1.localhost"})
    async with server.tenant("company1") as client:
        login = await client.post("/login", data=RIGHT, headers={"X-Forwarded-Proto": "https"})

    assert answer.status_code == 404
    assert login.headers["set-cookie"].startswith("session=")


async def test_answer_that_depends_on_the_session_says_so(visitor: httpx.AsyncClient) -> None:
    """What depends on the cookie varies by it, so that no cache mixes visitors up."""
    assert "cookie" in (await visitor.get("/data")).headers["vary"].lower()
    assert "vary" not in (await visitor.get("/static/style.css")).headers
