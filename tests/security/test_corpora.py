"""Hosts, cookies and other headers that nobody sends by accident."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from quart import Quart
from quart.sessions import SecureCookieSessionInterface
from werkzeug.sansio.http import parse_cookie

from quart_tenants import QuartTenants, current_tenant
from quart_tenants.app import create_app
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.sessions.session_ends import end_user_sessions
from quart_tenants.tenant import parse_slug
from quart_tenants.testing.databases import new_database_between_loops
from quart_tenants.web.sessions.session_cookies import SessionCookies, issue_session
from quart_tenants.web.sessions.tenant_sessions import get_session
from tests.support.databases import REFERENCE_FILES
from tests.support.patience import DEADLINE
from tests.support.processes import QUICK_PASSWORDS, SECRET_KEY, Server, run_server
from tests.support.raw_requests import Header, call

OLD_KEY = "an older key 0123456789"
# The numbers that the template's registry gave them; 0 is the domain itself.
HOSTS = {"localhost": 0, "acme.localhost": 1, "globex.localhost": 2}
COMPANY1, COMPANY2 = 3, 4


@pytest.fixture(scope="module")
def server(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The reference app on Hypercorn, one process."""
    with (
        new_database_between_loops(server_url, template) as url,
        run_server(url, tmp_path_factory.mktemp("server"), **QUICK_PASSWORDS) as server,
    ):
        yield server


def make_request(host_lines: bytes, target: bytes = b"/data", version: bytes = b"HTTP/1.1") -> bytes:
    """Return a request by somebody who is logged in to both companies: whose data comes shows who is meant."""
    cookies = SessionCookies(SECRET_KEY)
    both = [cookies.sign(issue_session(tenant, "ada", 0, 3600)) for tenant in (COMPANY1, COMPANY2)]
    cookie = "; ".join(f"session={one}" for one in both).encode()
    lines = [b"GET " + target + b" " + version, *([host_lines] if host_lines else []), b"Connection: close"]
    return b"\r\n".join([*lines, b"Cookie: " + cookie, b"", b""])


def at(host: bytes) -> bytes:
    """Return a request with *host* as its Host header."""
    return make_request(b"Host: " + host)


OF_COMPANY1 = [
    at(b"company1.localhost"),
    at(b"company1.localhost:5000"),
    at(b"company1.localhost:65535"),
    at(b"company1.localhost."),
    at(b"company1.localhost.:443"),
    at(b"COMPANY1.LOCALHOST"),
    at(b"cOMPANY1.lOCALHOST.:80"),
    at(b"\t company1.localhost \t"),
    make_request(b"hOST:company1.localhost"),
    make_request(b"Host: company1.localhost", version=b"HTTP/1.0"),
    make_request(b"Host: company1.localhost", b"http://company1.localhost/data"),
    make_request(b"Host: Company1.localhost:80", b"http://company1.LOCALHOST:80/data"),
    make_request(b"Host: company1.localhost\r\nX-Forwarded-Host: company2.localhost"),
    make_request(b"Host: company1.localhost\r\nForwarded: host=company2.localhost"),
    make_request(
        b"Host: company1.localhost\r\nX-Host: company2.localhost\r\nX-Original-Url: http://company2.localhost/"
    ),
]
OF_COMPANY2 = [
    at(b"company2.localhost"),
    at(b"COMPANY2.localhost.:8080"),
    make_request(b"Host: company2.localhost\r\nX-Forwarded-Host: company1.localhost"),
]
OF_NOBODY = [
    # Of the right form, or nearly so.
    at(b"company3.localhost"),
    at(b"xn--company1.localhost"),
    at(b"xn--cmpany1-bua.localhost"),
    at(b"company1"),
    at(b"localhost"),
    at(b"company1.localhost.localhost"),
    at(b"www.company1.localhost"),
    at(b"company2.company1.localhost"),
    at(b"company1.localhost.evil.org"),
    at(b"company1.localhost.."),
    at(b"company1..localhost"),
    at(b".company1.localhost"),
    at(b"company1localhost"),
    at(b"company1.localhostx"),
    at(b"company1.xlocalhost"),
    at(b"company1.localhost:"),
    at(b"company1.localhost:+80"),
    at(b"company1.localhost:5000:5000"),
    at(b"company1.localhost:123456"),
    at(b"company1.localhost.:"),
    # Addresses.
    at(b"127.0.0.1"),
    at(b"127.1"),
    at(b"2130706433"),
    at(b"0x7f000001"),
    at(b"[::1]"),
    at(b"[::1]:5000"),
    at(b"[::ffff:127.0.0.1]"),
    at(b"[::1"),
    at(b"::1"),
    at(b"[company1.localhost]"),
    # What other texts are told to be like.
    at("\u212aompany1.localhost".encode()),
    at("company1.loca\u017fhost".encode()),
    at("company1\u3002localhost".encode()),
    at("company1\u00ad.localhost".encode()),
    at("\uff43ompany1.localhost".encode()),
    at(b"company1\xe9.localhost"),
    at(b"\xff\xfe.localhost"),
    at(b"%63ompany1.localhost"),
    at(b"company1%2elocalhost"),
    # What else may stand in an address.
    at(b"user@company1.localhost"),
    at(b"company2.localhost@company1.localhost"),
    at(b"company1.localhost@evil.org"),
    at(b"http://company1.localhost"),
    at(b"//company1.localhost"),
    at(b"company1.localhost/"),
    at(b"company1.localhost/data?x=#y"),
    at(b"company1.localhost\\"),
    at(b"company1.localhost,company2.localhost"),
    at(b"company1.localhost, company2.localhost"),
    at(b"company1.localhost;company2.localhost"),
    at(b"company1.localhost company2.localhost"),
    at(b"'company1.localhost'"),
    at(b'"company1.localhost"'),
    at(b"*.localhost"),
    at(b"null"),
    # Control characters.
    at(b"company1.localhost\0"),
    at(b"company1\0.localhost"),
    at(b"company1.localhost\x0b"),
    at(b"company1.localhost\x7f"),
    at(b"company1.local\thost"),
    at(b"company1.localhost\r"),
    at(b"company1.localhost\r\n .evil.org"),
    at(b"\r\n company1.localhost"),
    # Of no length, and of too much.
    at(b""),
    at(b"."),
    at(b"a" * 64 + b".localhost"),
    at(b"a" * 255 + b".company1.localhost"),
    at(b"company1." * 3000 + b"localhost"),
    at(b"a" * 100_000 + b".localhost"),
    # No Host header, more than one, or one that is none.
    make_request(b""),
    make_request(b"", version=b"HTTP/1.0"),
    make_request(b"Host: company1.localhost\r\nHost: company1.localhost"),
    make_request(b"Host: company1.localhost\r\nHost: company2.localhost"),
    make_request(b"Host: company1.localhost\r\nhost: company2.localhost", version=b"HTTP/1.0"),
    make_request(b"Host : company1.localhost"),
    make_request(b" Host: company1.localhost"),
    make_request(b"Host company1.localhost"),
    make_request(b"X-Forwarded-Host: company1.localhost"),
    make_request(b"", b"http://company1.localhost/data", b"HTTP/1.0"),
    # A request line that names another host, or nothing.
    make_request(b"Host: company1.localhost", b"http://company2.localhost/data"),
    make_request(b"Host: evil.org", b"http://company1.localhost/data"),
    make_request(b"Host: company1.localhost", b"http://evil.org/data"),
    make_request(b"Host: company1.localhost", b"http://company1.localhost@evil.org/data"),
    make_request(b"Host: company1.localhost", b"http://[/data"),
    make_request(b"Host: company1.localhost", b"http:/data"),
    make_request(b"Host: company1.localhost", b"http:///data"),
    make_request(b"Host: company1.localhost", b"company1.localhost/data"),
    make_request(b"Host: company1.localhost", b"data"),
    make_request(b"Host: company1.localhost", b"?limit=1"),
    make_request(b"Host: company1.localhost", b"#"),
    make_request(b"Host: company1.localhost", b"*"),
    make_request(b"Host: company1.localhost", b"//company1.localhost/data"),
    make_request(b"Host: company1.localhost", b""),
]


async def send(port: int, request: bytes) -> tuple[int, bytes]:
    """Return the status and the rest of what the server says to *request*."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(DEADLINE):
            answer = await reader.read()
    finally:
        writer.close()
    return int(answer.split()[1]), answer


async def send_all(server: Server, requests: list[bytes]) -> list[tuple[bytes, int, bytes]]:
    """Return each request with its answer."""
    answers = await asyncio.gather(*(send(server.port, request) for request in requests))
    return [(request, *answer) for request, answer in zip(requests, answers, strict=True)]


@pytest.mark.slow
async def test_host_is_that_very_tenants_or_nobodys(server: Server) -> None:
    """Of many ways to name a host those that name a tenant get its data; nobody gets an error of ours."""
    for requests, data in ((OF_COMPANY1, b"company 1 data"), (OF_COMPANY2, b"company 2 data")):
        for request, status, answer in await send_all(server, requests):
            assert (status, data in answer) == (200, True), request
    for request, status, answer in await send_all(server, OF_NOBODY):
        assert status in (400, 404, 431), request
        assert b"company 1 data" not in answer, request
        assert b"company 2 data" not in answer, request

    assert "Traceback" not in server.log.read_text()


@dataclass(frozen=True)
class Issued:
    """A session of which a cookie is about.

    Attributes:
        owner: The number of its tenant; 0 for the domain itself.
        says: What the app says to whoever has it.
        alive: Whether it is neither too old nor ended.
    """

    owner: int
    says: bytes
    alive: bool = True


class Jar:
    """Cookies of all kinds.

    Attributes:
        issued: What each is about. Any other text is about nothing.
        cookies: Those, and some that look like them.
    """

    def __init__(self) -> None:
        self.issued: dict[str, Issued] = {}
        self.cookies: list[str] = []

    async def fill(self, tenants: QuartTenants) -> None:
        """Make sessions of three hosts, and end some of them."""
        new, old = SessionCookies(SECRET_KEY), SessionCookies(OLD_KEY)
        stranger = SessionCookies("a stranger's key 0123456789")
        for tenant in HOSTS.values():
            for name, signer in (("ada", new), ("bob", old), ("", new)):
                self._add(signer, tenant, name)
            self._add(new, tenant, "late", began=-50_000)
            self._add(new, tenant, "idle", began=-10_000, signed=-9000)
            ended = self._add(new, tenant, "ended", alive=False)
            tenants.registry.ended_sessions.add(next(iter(new.list_signed([ended]))).issued)
            self.cookies.append(stranger.sign(issue_session(tenant, "ada", 0, 3600)))
        self._add(new, HOSTS["acme.localhost"], "gone", alive=False)
        await end_user_sessions(tenants.database, await get_tenant(tenants.database, parse_slug("acme")), "gone")
        await tenants.registry.refresh()
        genuine = list(self.issued)
        for cookie in genuine[:6]:
            payload, _, signature = cookie.rpartition(".")
            # The last bits of a base64 text are no bits of the value.
            self._respell(cookie, f"{payload}.{signature[:-1]}{chr(ord(signature[-1]) + 1)}")
            # What is no base64 would be left out by a lenient reader.
            self.cookies += [f"{cookie}=", f"{cookie}&", f"{payload}.!{signature}"]
            self.cookies += [cookie.swapcase(), cookie[:-5], f"x{cookie}", f"{payload}.", f".{signature}", cookie * 2]
            self.cookies += [genuine[-1].rpartition(".")[0] + "." + signature]
        plain = Quart("plain")
        plain.secret_key = SECRET_KEY
        serializer = SecureCookieSessionInterface().get_signing_serializer(plain)
        assert serializer is not None
        self.cookies += [str(serializer.dumps({"user": "ada", "_session": [1, "ada", "x", 0, 0, 2**33]}))]
        self.cookies += ["", ".", "..", "e30.e30.e30", "\xff\xfe", "\0", "x" * 5000, "." * 200, "%00", "null", "\u00e9"]

    def _add(
        self, signer: SessionCookies, tenant: int, user: str, began: int = 0, signed: int = 0, *, alive: bool = True
    ) -> str:
        now = time.time()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "time", lambda: now + began)
            session = issue_session(tenant, user, 0, 43200)
            patch.setattr(time, "time", lambda: now + signed)
            token = f"token {len(self.issued)}"
            cookie = signer.sign(replace(session, content={"token": token}))
        self.issued[cookie] = Issued(tenant, f"{user or None} {token}".encode(), alive and not began)
        self.cookies.append(cookie)
        return cookie

    def _respell(self, cookie: str, spelling: str) -> None:
        if SessionCookies(SECRET_KEY, [OLD_KEY]).list_signed([spelling]):
            self.issued[spelling] = self.issued[cookie]
        self.cookies.append(spelling)


# How a cookie may be written, and what may stand beside one. The first is a browser's way.
PAIRS = [
    *["{name}={value}"] * 12,
    '{name}="{value}"',
    " {name} = {value} ",
    "\t{name}\t=\t{value}",
    "={name}={value}",
    "={value}",
    "{value}",
    "{name}",
    "{name}=",
    "{name}=={value}",
    "{name}={value}=",
    "{name}={value} x",
    '{name}="{value}',
    '{name}={value}"',
    'x="{name}={value}',
    'x="; {name}={value}; y="',
    "{name}={value},{name}={value}",
    "x={name}={value}",
    "{upper}={value}",
    "session={value}",
    "__Host-session={value}",
    "__Secure-session={value}",
    "\xa0{name}={value}",
    "\x0b{name}={value}",
    "{name}\0={value}",
    "{name}={value}\0",
    "{name}[]={value}",
    "$Version=1",
    "$Path=/",
    "theme=dark",
    "\xff\xfe=\x80",
]
SEPARATORS = ["; "] * 6 + [";", " ; ", ";;", ", ", ",", "&", "\t;\t", ";\x0b", ";\0"]


def write_cookies(jar: Jar, owner: int, name: str, random: Random) -> list[bytes]:
    """Return the values of up to three Cookie headers with up to seven cookies each."""
    # Few at a time, so that the same one comes twice. Half of them are the host's own.
    own = [cookie for cookie, issued in jar.issued.items() if issued.owner == owner and issued.alive]
    cookies = [*random.sample(jar.cookies, 2), *[random.choice(own)] * 2]
    headers = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        text = ""
        for _ in range(random.choice((1, 1, 2, 2, 3, 5, 7))):
            pair = random.choice(PAIRS).format(name=name, upper=name.upper(), value=random.choice(cookies))
            text += (random.choice(SEPARATORS) if text else "") + pair
        headers.append(text.encode("latin-1"))
    return headers


def expect(jar: Jar, owner: int, name: str, headers: list[bytes]) -> tuple[int, bytes | None]:
    """Return the status and the answer: the rule about several cookies of one name, said once more."""
    sent = parse_cookie(";".join(header.decode("latin-1") for header in headers)).getlist(name)
    known = [jar.issued[cookie] for cookie in sent if cookie in jar.issued and len(sent) <= 4]
    own = {session for session in known if session.owner == owner}
    if known and not own:
        return 400, None
    if len(own) == 1 and all(session.alive for session in own):
        return 200, own.pop().says
    return 200, b"None None"


@pytest.fixture
async def app(database_url: str) -> AsyncIterator[Quart]:
    """An app that says whose session it was shown, in one worker."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
        SECRET_KEY=SECRET_KEY,
        SECRET_KEY_FALLBACKS=[OLD_KEY],
        TENANTS_MIGRATIONS_DIR=REFERENCE_FILES,
        TENANTS_DATABASE_URL=database_url,
    )
    tenants = QuartTenants(app)

    @app.get("/who", host=tenants.host)
    async def who() -> str:
        return f"{current_tenant.id} {get_session().user} {get_session().get('token')}"

    @app.get("/who", host=tenants.apex_host, endpoint="apex_who")
    async def apex_who() -> str:
        return f"0 {get_session().user} {get_session().get('token')}"

    async with app.test_app():
        yield app


@pytest.fixture
async def jar(app: Quart) -> Jar:
    """Cookies for the app."""
    jar = Jar()
    await jar.fill(app.extensions["quart_tenants"])
    return jar


# Together 10,000 headers, and 50,000 with "--hypothesis-profile thorough": each number becomes one.
# A smaller number makes no simpler header, so a failure is not made smaller.
@pytest.mark.slow
@settings(phases=[Phase.reuse, Phase.generate], suppress_health_check=list(HealthCheck))
@given(seeds=st.lists(st.integers(0, 2**64 - 1), min_size=100, max_size=100))
async def test_identity_is_what_the_cookies_say_or_nobodys(app: Quart, jar: Jar, seeds: list[int]) -> None:
    """Whatever is sent as cookies, who is served is whose one living session of this very host was among them."""
    for seed in seeds:
        random = Random(seed)  # noqa: S311
        host, owner = random.choice(list(HOSTS.items()))
        scheme, name = random.choice((("http", "session"), ("https", "__Host-session")))
        headers = write_cookies(jar, owner, name, random)

        answer = await call(app, host, "/who", *((b"cookie", header) for header in headers), scheme=scheme)

        status, says = expect(jar, owner, name, headers)
        assert answer[0] == status, (host, scheme, headers)
        assert says is None or answer[1] == b"%d %b" % (owner, says), (host, scheme, headers)


JSON, FORM = (b"content-type", b"application/json"), (b"content-type", b"application/x-www-form-urlencoded")
ODD_HEADERS: list[list[Header]] = [
    [JSON, FORM],
    [FORM, JSON],
    [(b"content-type", b"")],
    [(b"content-type", b";")],
    [(b"content-type", b"application/json; charset=utf-7; charset=\xff")],
    [(b"content-type", b"application/x-www-form-urlencoded; charset=none")],
    [(b"content-type", b"multipart/form-data")],
    [(b"content-type", b"multipart/form-data; boundary=")],
    [(b"content-type", b"multipart/form-data; boundary=" + b"x" * 5000)],
    [(b"content-type", b"multipart/form-data; boundary=\xe9\xff")],
    [(b"content-type", b"\xff\xfe/\0")],
    [(b"content-type", b"a" * 60_000)],
    [JSON, (b"content-encoding", b"gzip")],
    [(b"x-" + b"a" * 1000, b"b" * 60_000)],
    [(b"x-%d" % number, b"y") for number in range(2000)],
    [(b"\xe9-header", b"\xff\xfe\xfd")],
    [(b"accept", b"\xff" * 100), (b"accept-language", b"q=;;;,,,=")],
    [(b"accept-encoding", b"*;q=nan")],
    [(b"authorization", b"Basic \xff")],
    [(b"authorization", b"Basic ====")],
    [(b"authorization", b"Digest x")],
    [(b"authorization", b"")],
    [(b"cookie", b"\xff\xfe=\xfd")],
    [(b"date", b"never")],
    [(b"if-modified-since", b"Mon, 99 Foo 99999 99:99:99 GMT")],
    [(b"if-modified-since", b"\xff")],
    [(b"if-none-match", b'W/"'), (b"if-none-match", b'"\xff')],
    [(b"range", b"bytes=9999999999999999999999-")],
    [(b"range", b"bytes=5-1")],
    [(b"range", b"bytes=--1,0-,\xff")],
    [(b"if-range", b"\xff"), (b"range", b"bytes=0-1")],
    [(b"origin", b"null")],
    [(b"origin", b"http://[")],
    [(b"origin", b"http://\xff:99999999")],
    [(b"origin", b"http://acme.localhost"), (b"origin", b"http://globex.localhost")],
    [(b"sec-fetch-site", b"same-origin"), (b"sec-fetch-site", b"cross-site")],
    [(b"sec-fetch-site", b"")],
    [(b"sec-fetch-site", b"\xff")],
    [(b"referer", b"http://[")],
    [(b"user-agent", b"\0\x1b[31m")],
    [(b"expect", b"200-maybe")],
    [(b"upgrade", b"websocket"), (b"connection", b"upgrade")],
    [(b"x-forwarded-for", b"\xff, ,,"), (b"x-forwarded-proto", b"gopher"), (b"x-forwarded-host", b"[")],
    [(b"x-request-id", b"%0d%0aSet-Cookie: a=b\x85\x0b\x0c")],
    [(b"remote-addr", b"\xff"), (b"remote-addr", b"127.0.0.1")],
    [(b"content-length", b"0"), (b"content-length", b"0")],
    [(b"max-forwards", b"-1"), (b"te", b"\xff"), (b"trailer", b"host")],
]
BODIES = [
    b"",
    b"{}",
    b"uname=%ff&passwd=%00",
    b'{"uname": "\\ud800", "passwd": "\\u0000"}',
    b"--x\r\n\r\n\xff",
    b"\xff\xfe",
]


@pytest.mark.slow
async def test_odd_header_is_no_error_of_ours(database_url: str) -> None:
    """Whatever headers come with whatever body, the answer is never a 500."""
    app = create_app({"SECRET_KEY": SECRET_KEY, "TENANTS_DATABASE_URL": database_url, "TENANTS_LOGIN_ATTEMPTS": 1000})
    cookie = SessionCookies(SECRET_KEY).sign(issue_session(HOSTS["acme.localhost"], "ada", 0, 3600))
    logged_in = b"cookie", f"session={cookie}".encode()
    async with app.test_app():
        for headers in ODD_HEADERS:
            for method, host, path in (
                ("GET", "acme.localhost", "/data"),
                ("GET", "acme.localhost", "/static/style.css"),
                ("GET", "localhost", "/"),
                ("GET", "127.0.0.1", "/readyz"),
                ("OPTIONS", "acme.localhost", "/data"),
                ("POST", "acme.localhost", "/password"),
            ):
                status, body = await call(app, host, path, logged_in, *headers, method=method)
                assert 200 <= status < 500, (method, host, path, headers, body)
            for sent in BODIES:
                status, body = await call(app, "acme.localhost", "/login", *headers, method="POST", body=sent)
                assert 400 <= status < 500, (headers, sent, body)


async def test_two_host_headers_are_refused(app: Quart) -> None:
    """Also behind a server that lets them pass, a request with two Host headers is nobody's, whatever they say."""
    for second in (b"globex.localhost", b"acme.localhost", b""):
        assert (await call(app, "acme.localhost", "/who", (b"host", second)))[0] == 400
