"""The contract, part two: routes on a tenant's host."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx
import pytest

import quart_tenants.app
from tests.support.processes import Server

pytestmark = pytest.mark.slow

RIGHT = {"uname": "user_1", "passwd": "foo"}
SESSION_COOKIE = "session"


@pytest.fixture
async def visitor(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody at company1 who is not logged in."""
    async with server.tenant("company1") as client:
        yield client


@pytest.fixture
async def member(visitor: httpx.AsyncClient) -> httpx.AsyncClient:
    """Somebody who is logged in to company1."""
    answer = await visitor.post("/login", data=RIGHT)
    assert answer.status_code == 200
    return visitor


async def test_login_by_form_succeeds(visitor: httpx.AsyncClient) -> None:
    """The right name and password give 200, the message and the session cookie."""
    answer = await visitor.post("/login", data=RIGHT)

    assert (answer.status_code, answer.json()) == (200, {"msg": "login successful"})
    assert SESSION_COOKIE in answer.cookies


async def test_login_by_multipart_form_succeeds(visitor: httpx.AsyncClient) -> None:
    """A multipart form is a form, too."""
    answer = await visitor.post("/login", files={name: (None, text) for name, text in RIGHT.items()})

    assert answer.status_code == 200


async def test_login_by_json_succeeds(visitor: httpx.AsyncClient) -> None:
    """The same two names are accepted as a JSON object."""
    answer = await visitor.post("/login", json=RIGHT)

    assert (answer.status_code, answer.json()) == (200, {"msg": "login successful"})


WRONG_FIELDS: list[dict[str, str]] = [
    {"uname": "user_1", "passwd": "bar"},
    {"uname": "nobody", "passwd": "foo"},
    {"uname": "user_2", "passwd": "foo"},
    {"uname": "user_1"},
    {"passwd": "foo"},
    {},
    {"uname": "", "passwd": ""},
    {"uname": "USER_1", "passwd": "foo"},
    {"uname": "user_1", "passwd": "foo "},
    {"uname": "user_1\0", "passwd": "foo"},
    {"uname": "x" * 10_000, "passwd": "foo"},
    {"uname": "user_1' OR '1'='1", "passwd": "foo"},
]


@pytest.mark.parametrize("fields", WRONG_FIELDS)
async def test_wrong_credentials_get_401(visitor: httpx.AsyncClient, fields: dict[str, str]) -> None:
    """Whatever is wrong or missing, the answer is the same 401, without a cookie."""
    by_form = await visitor.post("/login", data=fields)
    by_json = await visitor.post("/login", json=fields)

    for answer in (by_form, by_json):
        assert answer.status_code == 401
        assert answer.json()["code"] == "invalid_credentials"
        assert "set-cookie" not in answer.headers
    assert by_form.content == by_json.content


async def test_all_wrong_credentials_get_the_same_body(visitor: httpx.AsyncClient) -> None:
    """The body does not tell whether the user exists."""
    bodies = {(await visitor.post("/login", data=fields)).content for fields in WRONG_FIELDS}

    assert len(bodies) == 1


async def test_login_without_a_body_gets_401(visitor: httpx.AsyncClient) -> None:
    """Nothing at all is a missing name and password."""
    answer = await visitor.post("/login")

    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_credentials")


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "application/octet-stream", "text/html"])
async def test_login_body_of_wrong_type_gets_415(visitor: httpx.AsyncClient, kind: str) -> None:
    """A body that is neither a form nor JSON is 415."""
    answer = await visitor.post("/login", content=b"uname=user_1&passwd=foo", headers={"Content-Type": kind})

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_login_body_without_a_type_gets_415(visitor: httpx.AsyncClient) -> None:
    """A body that does not say what it is is not guessed at."""
    answer = await visitor.post("/login", content=b"uname=user_1&passwd=foo")

    assert answer.status_code == 415


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"uname"',
        b"1",
        b"null",
        b'{"uname": 1, "passwd": "x"}',
        b'{"uname": ["user_1"]}',
        b"\xff",
        b"[" * 60_000,
    ],
)
async def test_malformed_json_gets_400(visitor: httpx.AsyncClient, body: bytes) -> None:
    """JSON that is broken, or no object of texts, is 400."""
    answer = await visitor.post("/login", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 400


async def test_half_a_surrogate_pair_is_only_wrong(visitor: httpx.AsyncClient) -> None:
    """Text that no database can hold is a wrong name or password, and no bug."""
    for fields in ({"uname": "\ud800", "passwd": "foo"}, {"uname": "user_1", "passwd": "\ud800"}):
        body = json.dumps(fields).encode()
        answer = await visitor.post("/login", content=body, headers={"Content-Type": "application/json"})

        assert answer.status_code == 401


@pytest.mark.parametrize("length", [4097, 60_000])
async def test_too_long_password_gets_400(visitor: httpx.AsyncClient, length: int) -> None:
    """More than 4,096 characters are refused before any work is done."""
    answer = await visitor.post("/login", data={"uname": "user_1", "passwd": "x" * length})

    assert (answer.status_code, answer.json()["code"]) == (400, "password_too_long")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/json", "text/plain"])
async def test_body_of_20_megabytes_gets_413(visitor: httpx.AsyncClient, kind: str) -> None:
    """A body beyond the limit is refused by its announced length."""
    answer = await visitor.post("/login", content=b"x" * 20_000_000, headers={"Content-Type": kind})

    assert (answer.status_code, answer.json()["code"]) == (413, "request_entity_too_large")


async def test_body_without_an_end_gets_413(visitor: httpx.AsyncClient) -> None:
    """A body that announces no length is refused when it has grown too large."""

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    answer = await visitor.post("/login", content=drip(), headers={"Content-Type": "application/x-www-form-urlencoded"})

    assert answer.status_code == 413


async def test_data_shows_the_companys_rows(member: httpx.AsyncClient) -> None:
    """A member sees the rows of the own company."""
    answer = await member.get("/data")

    assert answer.status_code == 200
    assert answer.json() == {"data": [{"id": 1, "description": "company 1 data"}]}
    assert "link" not in answer.headers


async def test_each_company_sees_its_own_rows(server: Server) -> None:
    """The same route at another host is another company's data."""
    async with server.tenant("company2") as client:
        await client.post("/login", data={"uname": "user_2", "passwd": "foo"})
        answer = await client.get("/data")

    assert answer.json() == {"data": [{"id": 1, "description": "company 2 data"}]}


async def test_data_comes_in_pages(server: Server, module_database_url: str) -> None:
    """`limit` and `after` page through the rows in order of id, and Link names the next page."""
    connection = await asyncpg.connect(module_database_url)
    await connection.execute(
        "INSERT INTO acme.company_data (description) SELECT 'row ' || n FROM generate_series(1, 1001) n"
    )
    await connection.execute(
        "INSERT INTO acme.app_user (username, password) SELECT username, password FROM company1.app_user"
    )
    await connection.close()
    async with server.tenant("acme") as client:
        await client.post("/login", data=RIGHT)
        first = await client.get("/data?limit=400")
        second = await client.get(first.links["next"]["url"])
        third = await client.get(second.links["next"]["url"])
        unlimited = await client.get("/data")

    pages = [[row["id"] for row in page.json()["data"]] for page in (first, second, third)]
    assert pages == [list(range(1, 401)), list(range(401, 801)), list(range(801, 1002))]
    assert "next" not in third.links
    assert parse_qs(urlsplit(first.links["next"]["url"]).query) == {"limit": ["400"], "after": ["400"]}
    assert len(unlimited.json()["data"]) == 1000
    assert unlimited.links["next"]["url"].endswith("/data?limit=1000&after=1000")


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "limit=1.5", "limit=%D9%A1", "limit=%2B5"),
        *("limit=1_0", "after=x", "after=", "after=9223372036854775808", "after=1e3", f"after={'9' * 5000}"),
    ],
)
async def test_bad_page_gets_400(member: httpx.AsyncClient, query: str) -> None:
    """A limit outside 1 to 1000, or anything that is no whole number, is 400."""
    answer = await member.get(f"/data?{query}")

    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert query.partition("=")[0] in answer.json()["detail"]


@pytest.mark.parametrize("query", ["limit=1", "limit=1000", "after=0", "after=-9223372036854775808", "limit=1&after=0"])
async def test_page_at_the_edge_is_served(member: httpx.AsyncClient, query: str) -> None:
    """Both ends of the ranges are inside."""
    answer = await member.get(f"/data?{query}")

    assert answer.json() == {"data": [{"id": 1, "description": "company 1 data"}]}


async def test_page_after_the_last_row_is_empty(member: httpx.AsyncClient) -> None:
    """Behind the end there is nothing, and no error."""
    answer = await member.get("/data?after=9223372036854775807")

    assert (answer.status_code, answer.json()) == (200, {"data": []})


async def test_export_shows_all_rows(server: Server, module_database_url: str) -> None:
    """`/data/export` has every row once and in order, more than a page of them, and no other company's."""
    connection = await asyncpg.connect(module_database_url)
    await connection.execute(
        "INSERT INTO company2.company_data (description) SELECT 'exported ' || n FROM generate_series(1, 3000) AS n"
    )
    expected = [dict(row) for row in await connection.fetch("SELECT * FROM company2.company_data ORDER BY id")]

    async with server.member(2) as second, server.member(1) as first:
        answer, others = await second.get("/data/export"), await first.get("/data/export")
    # Other tests of this module count the rows, whatever order they run in.
    await connection.execute("DELETE FROM company2.company_data WHERE description LIKE 'exported %'")
    await connection.close()

    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {"data": expected}
    assert len(expected) >= 3000
    assert "exported" not in others.text


async def test_export_needs_a_session(visitor: httpx.AsyncClient, server: Server) -> None:
    """Nobody and another company's members are refused, as by `/data`."""
    async with server.member(2) as stranger:
        headers = {"Host": visitor.headers["Host"], "Cookie": f"session={stranger.cookies['session']}"}
        foreign = await stranger.get("/data/export", headers=headers)

    assert (await visitor.get("/data/export")).status_code == 401
    assert (foreign.status_code, foreign.json()["code"]) == (400, "wrong_tenant")


async def test_logout_ends_the_session(member: httpx.AsyncClient) -> None:
    """After the logout the cookie is gone and the data is 401."""
    answer = await member.post("/logout")

    assert (answer.status_code, answer.json()) == (200, {"msg": "logout successful"})
    assert SESSION_COOKIE not in member.cookies
    assert (await member.get("/data")).status_code == 401


async def test_logout_succeeds_for_nobody(visitor: httpx.AsyncClient) -> None:
    """Logging out without being logged in is no error."""
    answer = await visitor.post("/logout")

    assert (answer.status_code, answer.json()) == (200, {"msg": "logout successful"})


@pytest.mark.parametrize("cookie", ["rubbish", "e30.awNKCQ.x", "\x80\x90\xff", "\tx", "", "a" * 5000])
async def test_logout_clears_a_cookie_of_rubbish(visitor: httpx.AsyncClient, cookie: str) -> None:
    """Whatever the cookie is, logging out deletes it."""
    answer = await visitor.post("/logout", headers={b"Cookie": f"session={cookie}".encode("latin1")})

    assert answer.status_code == 200
    assert "expires=thu, 01 jan 1970" in answer.headers["set-cookie"].lower()


async def test_cookie_with_a_control_character_is_no_request(visitor: httpx.AsyncClient) -> None:
    """A header may not hold the character DEL (RFC 9110, section 5.5), so the server itself answers 400."""
    answer = await visitor.post("/logout", headers={b"Cookie": b"session=\t\x7f"})

    assert answer.status_code == 400


async def test_static_file_is_the_same_everywhere(server: Server) -> None:
    """The one shared file: the same bytes on every tenant's host and on the domain."""
    bodies = set()
    for host in ("company1.localhost", "company2.localhost", "localhost"):
        async with server.client(host) as client:
            answer = await client.get("/static/style.css")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/css; charset=utf-8")
        bodies.add(answer.content)

    assert bodies == {(Path(quart_tenants.app.__file__).parent / "static" / "style.css").read_bytes()}


@pytest.mark.parametrize(
    "path",
    [
        "/static/../__init__.py",
        "/static/%2e%2e/__init__.py",
        "/static/..%2f__init__.py",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/",
        "/static/nothing.css",
        "/static/style.css%00",
        "/static/..\\__init__.py",
    ],
)
async def test_nothing_outside_the_static_folder_is_served(visitor: httpx.AsyncClient, path: str) -> None:
    """A path that leads out of the folder finds nothing."""
    # httpx would tidy the path up; a target is sent as it is.
    request = visitor.build_request("GET", "/")
    request.extensions["target"] = path.encode()
    answer = await visitor.send(request)

    assert answer.status_code in (308, 404)
    assert "import" not in answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/login"),
        ("PUT", "/login"),
        ("GET", "/logout"),
        ("POST", "/data"),
        ("DELETE", "/data"),
        ("POST", "/healthz"),
    ],
)
async def test_wrong_method_gets_405(visitor: httpx.AsyncClient, method: str, path: str) -> None:
    """A known path by a wrong method is 405, with the methods that it has."""
    answer = await visitor.request(method, path)

    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"]


@pytest.mark.parametrize("path", ["/nothing", "/data/", "/DATA", "/login/x", "/admin"])
async def test_unknown_path_gets_404(visitor: httpx.AsyncClient, path: str) -> None:
    """An unknown path is 404."""
    assert (await visitor.get(path)).status_code == 404


async def test_error_is_a_problem_document(visitor: httpx.AsyncClient) -> None:
    """Errors are RFC 9457 problem documents with our stable code."""
    answer = await visitor.get("/data")

    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "detail": "log in first",
        "code": "not_logged_in",
    }


async def test_name_longer_than_any_file_gets_404(visitor: httpx.AsyncClient) -> None:
    """A path that the file system refuses is only unknown."""
    for path in (f"/static/{'a' * 300}", f"/static/{'a/' * 2000}x"):
        assert (await visitor.get(path)).status_code == 404
