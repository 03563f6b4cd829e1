"""Requests from elsewhere: what another site's page sends in a visitor's name changes nothing."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from quart import Quart, websocket
from quart.testing import WebsocketResponseError
from werkzeug.datastructures import Headers

from quart_tenants import QuartTenants, allow_from_elsewhere
from quart_tenants.web.guards.origins import refuse_from_elsewhere
from tests.support.databases import REFERENCE_FILES

OURS = "acme.localhost:5000"
HARMLESS = ("GET", "HEAD", "OPTIONS", "TRACE")
CHANGING = ("POST", "PUT", "PATCH", "DELETE")
PROXY = "192.0.2.1"

# Sec-Fetch-Site, Origin, and whether a request that may change something is served at http://acme.localhost:5000.
MATRIX: list[tuple[Sequence[str], Sequence[str], bool]] = [
    # Scripts and curl.
    ([], [], True),
    # Where there is Sec-Fetch-Site, it decides; the browser says it of every request, also without an Origin.
    (["same-origin"], [], True),
    (["same-origin"], ["http://acme.localhost:5000"], True),
    (["none"], [], True),
    (["same-site"], [], False),
    (["same-site"], ["http://acme.localhost:5000"], False),
    (["cross-site"], [], False),
    (["cross-site"], ["null"], False),
    (["Same-Origin"], [], False),
    (["same-origin, same-origin"], [], False),
    (["same-origin", "same-origin"], [], False),
    (["same-origin", "cross-site"], [], False),
    (["same-origin-allow-popups"], [], False),
    ([""], [], False),
    # Else the Origin, as a whole.
    ([], ["http://acme.localhost:5000"], True),
    ([], ["http://ACME.localhost:5000"], True),
    ([], ["http://globex.localhost:5000"], False),
    ([], ["http://localhost:5000"], False),
    ([], ["http://a.acme.localhost:5000"], False),
    ([], ["http://acme.localhost"], False),
    ([], ["http://acme.localhost:5001"], False),
    ([], ["https://acme.localhost:5000"], False),
    ([], ["ws://acme.localhost:5000"], False),
    ([], ["http://acme.localhost:5000.evil.test"], False),
    ([], ["http://evil.test#http://acme.localhost:5000"], False),
    ([], ["http://acme.localhost:5000@evil.test"], False),
    ([], ["http://evil.test@acme.localhost:5000"], False),
    ([], ["http://acme.localhost:5000/"], False),
    ([], ["http://acme.localhost:port"], False),
    ([], ["acme.localhost:5000"], False),
    ([], ["null"], False),
    ([], [""], False),
    ([], ["http://"], False),
    ([], ["http://[::1"], False),
    ([], ["http://acme.localhost:5000", "http://acme.localhost:5000"], False),
    ([], ["http://acme.localhost:5000 http://evil.test"], False),
]

# Scheme and host of the request, its Origin, and whether that is the same place.
PLACES = [
    ("http", "acme.localhost", "http://acme.localhost", True),
    ("http", "acme.localhost:80", "http://acme.localhost", True),
    ("http", "acme.localhost", "http://acme.localhost:80", True),
    ("http", "acme.localhost", "http://acme.localhost:443", False),
    ("http", "ACME.LocalHost", "http://acme.localhost", True),
    ("https", "acme.localhost", "https://acme.localhost", True),
    ("https", "acme.localhost:443", "https://acme.localhost", True),
    ("https", "acme.localhost", "https://acme.localhost:443", True),
    ("https", "acme.localhost", "https://acme.localhost:80", False),
    ("https", "acme.localhost", "http://acme.localhost", False),
    ("https", "acme.localhost:8443", "https://acme.localhost:8443", True),
    ("https", "acme.localhost", "https://globex.localhost", False),
]


@asynccontextmanager
async def serving(database_url: str, *, hook: bool = True) -> AsyncIterator[Quart]:
    """Yield an app with tenants and three routes, which trusts one proxy."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
        TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url, TENANTS_TRUSTED_PROXIES=PROXY
    )
    tenants = QuartTenants(app)

    @app.route("/thing", host=tenants.host, methods=[*HARMLESS, *CHANGING], provide_automatic_options=False)
    async def thing() -> str:
        return ""

    @app.post("/saml", host=tenants.host)
    @allow_from_elsewhere
    async def saml() -> str:
        return ""

    @app.websocket("/talk", host=tenants.host)
    async def talk() -> None:
        await websocket.accept()
        await websocket.send("hello")

    @app.websocket("/open", host=tenants.host)
    @allow_from_elsewhere
    async def open_to_all() -> None:
        await websocket.accept()
        await websocket.send("hello")

    if not hook:
        app.before_request_funcs[None].remove(refuse_from_elsewhere)
        app.before_websocket_funcs[None].remove(refuse_from_elsewhere)
    async with app.test_app():
        yield app


def make_headers(host: str, sites: Sequence[str], origins: Sequence[str], **more: str) -> Headers:
    """Return the headers that a browser, or somebody else, sends."""
    headers = Headers({"Host": host, **more})
    for site in sites:
        headers.add("Sec-Fetch-Site", site)
    for origin in origins:
        headers.add("Origin", origin)
    return headers


async def ask(
    app: Quart, method: str, path: str, headers: Headers, scheme: str = "http", client: str = "127.0.0.1"
) -> int:
    """Return the status of the answer."""
    peer: dict[str, Any] = {"scope_base": {"client": (client, 1)}}
    answer = await app.test_client().open(path, method=method, headers=headers, scheme=scheme, **peer)
    return answer.status_code


async def can_talk(app: Quart, path: str, headers: Headers, scheme: str = "ws") -> bool:
    """Return whether a websocket opens; a refusal must be 403."""
    try:
        async with app.test_client().websocket(path, headers=headers, scheme=scheme) as talk:
            return bool(await talk.receive() == "hello")
    except WebsocketResponseError as error:
        if error.response.status_code != 403:
            raise
        return False


async def test_change_needs_a_page_of_this_very_origin(database_url: str) -> None:
    """Sec-Fetch-Site decides, else Origin; with neither it is no browser. Reading is everybody's."""
    async with serving(database_url) as app:
        wrong = [
            (method, sites, origins)
            for sites, origins, good in MATRIX
            for method in (*HARMLESS, *CHANGING)
            if await ask(app, method, "/thing", make_headers(OURS, sites, origins))
            != (200 if good or method in HARMLESS else 403)
        ]

    assert wrong == []


async def test_websocket_needs_a_page_of_this_very_origin(database_url: str) -> None:
    """A handshake is a GET that carries cookies: the same table holds for it, for ws and wss."""
    async with serving(database_url) as app:
        wrong = [
            (sites, origins)
            for sites, origins, good in MATRIX
            if await can_talk(app, "/talk", make_headers(OURS, sites, origins)) is not good
        ]
        secure = make_headers("acme.localhost", [], ["https://acme.localhost"])
        plain = make_headers("acme.localhost", [], ["http://acme.localhost"])

        assert wrong == []
        assert await can_talk(app, "/talk", secure, "wss")
        assert not await can_talk(app, "/talk", plain, "wss")


async def test_origin_is_compared_as_the_visitor_sees_it(database_url: str) -> None:
    """Default ports and case make no difference, and what a trusted proxy forwarded counts."""
    async with serving(database_url) as app:
        for scheme, host, origin, good in PLACES:
            status = 200 if good else 403
            case = (scheme, host, origin)
            assert await ask(app, "POST", "/thing", make_headers(host, [], [origin]), scheme) == status, case

            forwarded = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": scheme, "X-Forwarded-Host": host}
            headers = make_headers("inside:8000", [], [origin], **forwarded)
            assert await ask(app, "POST", "/thing", headers, client=PROXY) == status, case

            # A stranger's forwarded headers count for nothing: that is a host of nobody's.
            assert await ask(app, "POST", "/thing", headers, client="192.0.2.2") == 404, case


async def test_marked_view_takes_what_comes_from_elsewhere(database_url: str) -> None:
    """The mark opens one view or websocket, and no other."""
    headers = make_headers(OURS, ["cross-site"], ["https://idp.test"])
    async with serving(database_url) as app:
        assert await ask(app, "POST", "/saml", headers) == 200
        assert await ask(app, "POST", "/thing", headers) == 403
        assert await can_talk(app, "/open", headers)
        assert not await can_talk(app, "/talk", headers)


async def test_what_is_not_there_is_answered_as_before(database_url: str) -> None:
    """An unknown path, host or tenant and a wrong method are told from elsewhere, too."""
    cases = [
        ("POST", "/nowhere", OURS, 404),
        ("GET", "/saml", OURS, 405),
        ("DELETE", "/saml", OURS, 405),
        ("POST", "/thing", "evil.test", 404),
        ("POST", "/thing", "nobody.localhost", 400),
    ]
    async with serving(database_url) as app:
        for method, path, host, status in cases:
            assert await ask(app, method, path, make_headers(host, ["cross-site"], [])) == status, (path, host)


async def test_refusal_says_what_it_is(database_url: str) -> None:
    """The answer is the problem that the documentation names."""
    headers: Mapping[str, str] = {"Host": OURS, "Origin": "http://globex.localhost:5000"}
    async with serving(database_url) as app:
        answer = await app.test_client().post("/thing", headers=headers)

    assert (answer.status_code, (await answer.get_json())["code"]) == (403, "request_from_elsewhere")


async def test_app_without_the_hook_serves_a_sibling(database_url: str) -> None:
    """The hook, and nothing else, keeps a sibling's request out."""
    headers = make_headers(OURS, ["same-site"], ["http://globex.localhost:5000"])
    async with serving(database_url, hook=False) as app:
        assert await ask(app, "POST", "/thing", headers) == 200
        assert await can_talk(app, "/talk", headers)
