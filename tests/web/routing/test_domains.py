"""Domains of a tenant's own, and the old addresses of renamed tenants, on an app of one's own."""

import functools
from collections.abc import AsyncIterator
from urllib.parse import urljoin, urlsplit

import pytest
from quart import Quart, Response, ResponseReturnValue, url_for
from quart.testing import WebsocketResponseError

from quart_tenants import QuartTenants, get_session, start_session
from quart_tenants.admin import Slug
from quart_tenants.domain import parse_domain
from quart_tenants.errors import DomainNotVerifiedError
from quart_tenants.postgres.tenants.domains import add_domain, remove_domain
from quart_tenants.postgres.tenants.lifecycle import rename_tenant, resume_tenant, suspend_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.tenant import parse_slug
from quart_tenants.web import context
from tests.support.databases import let_names_rest
from tests.support.name_server import run_name_server
from tests.web.test_extension import get_json, make_app

pytestmark = pytest.mark.slow

SHOP = "shop.example.com"
ASK = "/.well-known/tenants/ask"
ACME, GLOBEX, NEWCO = parse_slug("acme"), parse_slug("globex"), parse_slug("newco")


@pytest.fixture
async def app(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Quart]:
    """An app with sessions that serves, with a DNS where nothing is."""
    with run_name_server() as name_server:
        monkeypatch.setenv("QUART_TENANTS_DNS_SERVERS", name_server.address)
        app, tenants = make_app(database_url)
        app.secret_key = "a key of a decent length"

        @app.post("/login", host=tenants.host)
        async def login() -> ResponseReturnValue:
            await start_session("ada")
            return {}

        @app.get("/me", host=tenants.host)
        async def me() -> ResponseReturnValue:
            return {"user": get_session().user}

        @app.get("/to/<slug>", host=tenants.host)
        async def to(slug: str) -> ResponseReturnValue:
            return {"url": url_for("count", tenant=slug)}

        @app.get("/orders/", host=tenants.host)
        async def orders() -> ResponseReturnValue:
            return {}

        @app.get("/pages/", defaults={"page": 1}, host=tenants.host)
        @app.get("/pages/<int:page>", host=tenants.host)
        async def pages(page: int) -> ResponseReturnValue:
            return {"page": page}

        async with app.test_app():
            yield app


@pytest.fixture
def tenants(app: Quart) -> QuartTenants:
    """The app's extension."""
    extension = app.extensions["quart_tenants"]
    assert isinstance(extension, QuartTenants)
    return extension


async def give(tenants: QuartTenants, slug: Slug, domain: str = SHOP) -> None:
    """Let a tenant have *domain*, and this worker know it."""
    await add_domain(tenants.database, slug, parse_domain(domain), settings=tenants.settings, trusted=True)
    await tenants.registry.refresh()


async def rename(tenants: QuartTenants, slug: Slug, new_slug: Slug, *, redirect_days: float | None = None) -> None:
    """Rename a tenant, and let this worker know it."""
    await rename_tenant(tenants.database, slug, new_slug, settings=tenants.settings, redirect_days=redirect_days)
    await tenants.registry.refresh()


async def send(app: Quart, host: str, path: str, *, scheme: str = "http", raw_path: bytes | None = None) -> Response:
    """Return what *host* answers."""
    scope = {} if raw_path is None else {"raw_path": raw_path}
    client = app.test_client()
    return await client.get(path, headers={"Host": host}, scheme=scheme, scope_base=scope)


# Domains of a tenant's own


@pytest.mark.parametrize(
    "host", [SHOP, "SHOP.Example.COM", f"{SHOP}.", f"{SHOP}:5000", f"{SHOP}.:443", "xn--mnchen-3ya.de", "example.co"]
)
async def test_own_domain_leads_to_the_tenant(app: Quart, tenants: QuartTenants, host: str) -> None:
    """Case, port and one trailing dot make no difference, as for subdomains; the subdomain stays."""
    await give(tenants, ACME, host.partition(":")[0])

    for at in (host, "acme.localhost"):
        assert await get_json(app, at, "/count") == {"status": 200, "tenant": "acme", "rows": 0}
    assert (await get_json(app, host, "/peek/globex"))["code"] == "internal_server_error"


async def test_claimed_domain_is_served_only_when_it_is_verified(app: Quart, tenants: QuartTenants) -> None:
    """A claim is answered as a host that nobody knows; the same check sees a verified one."""

    async def is_told_apart(host: str) -> bool:
        await tenants.registry.refresh()
        known, unknown = await send(app, host, "/count"), await send(app, "evil.org", "/count")
        assert unknown.status_code == 404
        return (known.status_code, await known.get_data()) != (404, await unknown.get_data())

    with pytest.raises(DomainNotVerifiedError):
        await add_domain(tenants.database, ACME, parse_domain(SHOP), settings=tenants.settings)
    claimed = await is_told_apart(SHOP)
    # Negative control: believing the claim.
    await give(tenants, ACME)
    verified = await is_told_apart(SHOP)

    assert (claimed, verified) == (False, True)
    for near in (
        f"x{SHOP}",
        f"a.{SHOP}",
        f"{SHOP}.evil.org",
        f"{SHOP}..",
        f"{SHOP}:x",
        f"{SHOP}:123456",
        "example.com",
    ):
        assert not await is_told_apart(near)


async def test_urls_stay_at_the_own_domain(app: Quart, tenants: QuartTenants) -> None:
    """`url_for` and the redirects of routing name the domain that was asked; other tenants are at their subdomains."""
    await give(tenants, ACME)

    answer = await get_json(app, f"{SHOP}:5000", "/links")

    assert answer == {
        "status": 200,
        "here": "/count",
        "absolute": f"http://{SHOP}:5000/count",
        "other": "http://globex.localhost:5000/count",
        "apex": "http://localhost:5000/",
        "probe": "/probe",
    }
    for port in ("", ":5000"):
        for slug in ("acme", "globex"):
            url = (await get_json(app, SHOP + port, f"/to/{slug}"))["url"]
            assert url == f"http://{slug}.localhost{port}/count"
    for host in (f"{SHOP}:5000", "acme.localhost:5000"):
        for path, target in {"/orders": "/orders/", "/pages/1": "/pages/", "/orders//": "/orders/"}.items():
            redirect = await send(app, host, path)
            assert (redirect.status_code, redirect.headers["Location"]) == (308, f"http://{host}{target}")


async def test_own_domain_is_checked_as_the_subdomain_is(app: Quart, tenants: QuartTenants) -> None:
    """Suspended: 400. Tables behind, or a worker that cannot know: 503. All of it for websockets, too."""
    await give(tenants, ACME)

    async def get_codes() -> set[tuple[object, object]]:
        answers = [await get_json(app, host, "/count") for host in (SHOP, "acme.localhost")]
        with pytest.raises(WebsocketResponseError) as caught:
            async with app.test_client().websocket("/talk", headers={"Host": SHOP}) as talk:
                await talk.receive()
        assert caught.value.response.status_code == answers[0]["status"]
        return {(answer["status"], answer["code"]) for answer in answers}

    async with app.test_client().websocket("/talk", headers={"Host": SHOP}) as talk:
        assert await talk.receive() == "acme: 0"
    await suspend_tenant(tenants.database, ACME)
    await tenants.registry.refresh()
    assert await get_codes() == {(400, "unknown_tenant")}
    await resume_tenant(tenants.database, ACME)
    await tenants.registry.refresh()
    tenants.registry._minimum_version = 9999
    assert await get_codes() == {(503, "schema_behind")}
    tenants.registry._read_at = float("-inf")
    assert await get_codes() == {(503, "registry_stale")}


async def test_session_does_not_move_with_the_domain(app: Quart, tenants: QuartTenants) -> None:
    """A cookie of the tenant that had the domain before is worth nothing to the next one; it is for that host only."""
    await give(tenants, ACME)
    login = await app.test_client().post("/login", headers={"Host": SHOP})
    cookie = login.headers["Set-Cookie"]
    headers = {"Cookie": cookie.partition(";")[0], "Host": SHOP}
    here = await app.test_client().get("/me", headers=headers)
    at_subdomain = await app.test_client().get("/me", headers=headers | {"Host": "acme.localhost"})

    await remove_domain(tenants.database, parse_domain(SHOP))
    await let_names_rest(tenants.database)
    await give(tenants, GLOBEX)
    moved = await app.test_client().get("/me", headers=headers)

    assert "domain" not in cookie.lower()
    assert await here.get_json() == await at_subdomain.get_json() == {"user": "ada"}
    assert (moved.status_code, (await moved.get_json())["code"]) == (400, "wrong_tenant")


async def visit_after_removal(app: Quart, tenants: QuartTenants) -> tuple[list[int], list[int]]:
    """Return what hosts answer that were visited before, and after the domain was removed and the tenant dropped."""
    await give(tenants, ACME)
    hosts = (SHOP, "acme.localhost", "globex.localhost")
    before = [(await send(app, host, "/count")).status_code for host in hosts]
    await remove_domain(tenants.database, parse_domain(SHOP))
    await drop_tenant(tenants.database, GLOBEX)
    await tenants.registry.refresh()
    return before, [(await send(app, host, "/count")).status_code for host in hosts]


async def test_known_host_of_nobody_is_not_served(app: Quart, tenants: QuartTenants) -> None:
    """A host that was served a thousand times is served no more when its tenant does not have it any longer."""
    before, after = await visit_after_removal(app, tenants)

    assert before == [200, 200, 200]
    assert after == [404, 200, 400]


async def test_memory_of_the_hosts_tenants_serves_a_removed_domain(
    app: Quart, tenants: QuartTenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: who remembers whose a host is, and not only how it reads, still serves it."""
    monkeypatch.setattr(context, "find_slug_of_host", functools.cache(context.find_slug_of_host))

    before, after = await visit_after_removal(app, tenants)

    assert before == [200, 200, 200]
    assert after == [200, 200, 400]


async def test_app_that_does_not_serve_has_no_own_domains(database_url: str) -> None:
    """Without a registry a foreign host is a foreign host, and no error."""
    app, _ = make_app(database_url)

    assert (await send(app, SHOP, "/count")).status_code == 404
    assert (await send(app, "localhost", f"{ASK}?domain=localhost")).status_code == 200


async def test_proxy_says_the_own_domain(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy of ours X-Forwarded-Host is the host; from a stranger it is not."""
    monkeypatch.setenv("QUART_TENANTS_TRUSTED_PROXIES", "10.0.0.1")
    app, tenants = make_app(database_url)
    headers = {"Host": "inside", "X-Forwarded-Host": f"{SHOP}:8443", "X-Forwarded-Proto": "https"}

    async with app.test_app():
        await give(tenants, ACME)
        answers = [
            await app.test_client().get("/links", headers=headers, scope_base={"client": (address, 1)})
            for address in ("10.0.0.1", "10.0.0.2")
        ]

    assert [answer.status_code for answer in answers] == [200, 404]
    assert (await answers[0].get_json())["absolute"] == f"https://{SHOP}:8443/count"


# Which hosts may have a certificate


async def test_proxy_is_told_which_hosts_are_served(app: Quart, tenants: QuartTenants) -> None:
    """200 for the domain itself, tenants, old addresses that lead on and verified domains; 404 for all else."""
    await give(tenants, ACME)
    await rename(tenants, GLOBEX, NEWCO)
    await rename(tenants, parse_slug("company2"), parse_slug("newer"), redirect_days=0)
    await give(tenants, parse_slug("company1"), "suspended.example.com")
    await suspend_tenant(tenants.database, parse_slug("company1"))
    with pytest.raises(DomainNotVerifiedError):
        await add_domain(tenants.database, ACME, parse_domain("claimed.example.com"), settings=tenants.settings)
    await tenants.registry.refresh()

    async def ask(query: str, host: str = "localhost") -> int:
        return (await send(app, host, f"{ASK}{query}")).status_code

    for served in ("localhost", "acme.localhost", "ACME.localhost.", "globex.localhost", "newco.localhost", SHOP):
        assert await ask(f"?domain={served}") == 200, served
    for name in ("nobody", "company1", "company2"):
        assert await ask(f"?domain={name}.localhost") == 404, name
    for name in ("claimed.example.com", "suspended.example.com", "example.com"):
        assert await ask(f"?domain={name}") == 404, name
    for malformed in ("", "?domain=", "?domain=acme.localhost:80", "?domain=127.0.0.1", "?domain=*.localhost"):
        assert await ask(malformed) == 400, malformed
    for host in ("acme.localhost", SHOP, "evil.org", "127.0.0.1"):
        assert await ask("?domain=acme.localhost", host) == 404, host
    # Whoever needs it from here on fails.
    await tenants.database.close()
    await tenants.registry._database.close()
    assert await ask("?domain=acme.localhost") == 200
    for name in ("a.acme.localhost", "xlocalhost"):
        assert await ask(f"?domain={name}") == 404, name
    tenants.registry._minimum_version = 9999
    assert await ask("?domain=acme.localhost") == 200
    tenants.registry._read_at = float("-inf")
    assert await ask("?domain=acme.localhost") == 503


async def test_proxy_on_this_machine_may_name_any_host(app: Quart, tenants: QuartTenants) -> None:
    """It asks at the address of the worker, as Caddy does; from elsewhere that is no address of ours."""
    await give(tenants, ACME)

    async def ask(domain: str, host: str, client: tuple[str, int] | None) -> int:
        answer = await app.test_client().get(
            f"{ASK}?domain={domain}", headers={"Host": host}, scope_base={"client": client}
        )
        return answer.status_code

    for here in (("127.0.0.1", 5), ("::1", 5), None):
        assert await ask(SHOP, "127.0.0.1:8000", here) == 200
        assert await ask("evil.org", "127.0.0.1:8000", here) == 404
    assert await ask(SHOP, "10.0.0.1:8000", ("10.0.0.2", 5)) == 404
    assert await ask(SHOP, "localhost", ("10.0.0.2", 5)) == 200


# Old addresses


async def test_old_address_leads_to_the_new_one(app: Quart, tenants: QuartTenants) -> None:
    """308, to the same path and query as they were sent, on the same scheme and port, and not to be remembered."""
    await rename(tenants, ACME, NEWCO)
    cases = {
        ("http", "acme.localhost", "/count"): "http://newco.localhost/count",
        ("http", "ACME.localhost.:5000", "/count?a=1&b=%2F%20"): "http://newco.localhost:5000/count?a=1&b=%2F%20",
        ("https", "acme.localhost", "/peek/x"): "https://newco.localhost/peek/x",
        ("https", "acme.localhost:8443", "/peek/x?"): "https://newco.localhost:8443/peek/x",
    }
    for (scheme, host, path), target in cases.items():
        answer = await send(app, host, path, scheme=scheme)
        assert (answer.status_code, answer.headers["Location"]) == (308, target)
        assert answer.headers["Cache-Control"] == "no-store"
        assert await answer.get_data() == b""
    post = await app.test_client().post("/login", headers={"Host": "acme.localhost"})
    assert (post.status_code, "Set-Cookie" in post.headers) == (308, False)
    assert (await send(app, "acme.localhost", "/nothing")).status_code == 404
    assert (await get_json(app, "newco.localhost", "/count"))["tenant"] == "newco"


@pytest.mark.parametrize(
    "raw_path",
    [
        b"//evil.org/peek",
        rb"/\evil.org",
        b"/%2F%2Fevil.org",
        b"/@evil.org",
        b"/.evil.org",
        b"",
    ],
)
async def test_old_address_leads_nowhere_else(app: Quart, tenants: QuartTenants, raw_path: bytes) -> None:
    """Whatever the path, the target's host is the new address; the naive target is read as another host."""
    await rename(tenants, ACME, NEWCO)

    answer = await send(app, "acme.localhost:5000", "/peek/x", raw_path=raw_path)
    target = answer.headers["Location"]

    assert answer.status_code == 308
    assert urlsplit(target).netloc == "newco.localhost:5000"
    # A browser reads a \ as a /.
    assert "\\" not in target
    # Negative control.
    if raw_path.startswith(b"//"):
        assert urlsplit(urljoin("http://newco.localhost:5000", raw_path.decode())).netloc == "evil.org"


@pytest.mark.parametrize("raw_path", [b"http://evil.org/", b":1", b"acme.localhost:5000"])
async def test_target_that_names_another_host_is_not_redirected(
    app: Quart, tenants: QuartTenants, raw_path: bytes
) -> None:
    """A request line and a Host header that disagree are refused before anything else."""
    await rename(tenants, ACME, NEWCO)

    answer = await send(app, "acme.localhost:5000", "/peek/x", raw_path=raw_path)

    assert answer.status_code == 400
    assert "Location" not in answer.headers


async def test_escapes_reach_the_new_address_as_sent(app: Quart, tenants: QuartTenants) -> None:
    """What was escaped stays so: a decoded %2F or %3F would be another path."""
    await rename(tenants, ACME, NEWCO)
    raw_path = b"/peek/a%2Fb%3Fc%20d;e=%C3%A9~(f)%25"

    answer = await send(app, "acme.localhost", "/peek/x?q=%23%26+1?2", raw_path=raw_path)

    assert answer.headers["Location"] == f"http://newco.localhost{raw_path.decode()}?q=%23%26+1?2"


async def test_old_address_ends(app: Quart, tenants: QuartTenants) -> None:
    """After its days it is no tenant's address; a websocket, which no browser redirects, never gets that far."""
    await rename(tenants, ACME, NEWCO, redirect_days=0)
    await rename(tenants, GLOBEX, parse_slug("newer"))

    assert (await get_json(app, "acme.localhost", "/count"))["code"] == "unknown_tenant"
    with pytest.raises(WebsocketResponseError) as caught:
        async with app.test_client().websocket("/talk", headers={"Host": "globex.localhost"}) as talk:
            await talk.receive()
    assert caught.value.response.status_code == 400
    tenants.registry._read_at = float("-inf")
    assert (await send(app, "globex.localhost", "/count")).status_code == 503


async def test_own_domain_outlives_a_rename(app: Quart, tenants: QuartTenants) -> None:
    """A renamed tenant keeps its domains, without a redirect."""
    await give(tenants, ACME)
    await rename(tenants, ACME, NEWCO)

    assert await get_json(app, SHOP, "/count") == {"status": 200, "tenant": "newco", "rows": 0}
