"""A real Chromium: what pages at a sibling subdomain and at a foreign site can do to a visitor who is logged in."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from playwright.async_api import Browser, BrowserContext, Page
from quart import websocket

from quart_tenants import QuartTenants
from quart_tenants.app import create_app
from quart_tenants.testing.databases import new_database_between_loops
from quart_tenants.web.guards.origins import refuse_from_elsewhere
from tests.support.browsers import needs_chromium, run_chromium
from tests.support.fixed_answers import attackers
from tests.support.processes import QUICK_PASSWORDS, SECRET_KEY, Server, run_server
from tests.support.serving import serving_here as serving_app_here

# The other tenant, and a stranger. Ports make no other site.
SIBLING = "company2.example.test"
FOREIGN = "www.evil.test"

_PATIENCE = 10.0  # seconds, where a browser would wait for ever

pytestmark = [pytest.mark.slow, needs_chromium]

# Each tries something at the address that it is given, and returns what it got hold of.
ATTACKS = {
    "fetch": """url => fetch(url + "/logout", {method: "POST", credentials: "include"})
        .then(answer => answer.text(), () => null)""",
    "fetch without cors": """url => fetch(url + "/logout", {method: "POST", mode: "no-cors", credentials: "include"})
        .then(async answer => await answer.text() || null, () => null)""",
    "fetch of a type that is asked for first": """url => fetch(url + "/logout", {method: "POST",
        credentials: "include", headers: {"Content-Type": "application/json"}})
        .then(answer => answer.text(), () => null)""",
    "beacon": """url => { navigator.sendBeacon(url + "/logout", "x"); return null }""",
    "xhr": """url => new Promise(done => {
        const asked = new XMLHttpRequest(); asked.open("POST", url + "/logout"); asked.withCredentials = true;
        asked.onload = () => done(asked.responseText); asked.onerror = () => done(null); asked.send() })""",
    "read": """url => fetch(url + "/data", {credentials: "include"}).then(answer => answer.text(), () => null)""",
    "read without cors": """url => fetch(url + "/data", {mode: "no-cors", credentials: "include"})
        .then(async answer => await answer.text() || null, () => null)""",
    "image": """url => new Promise(done => {
        const it = new Image(); it.onload = () => done("shown"); it.onerror = () => done(null);
        it.src = url + "/data" })""",
    "script": """url => new Promise(done => {
        const it = document.createElement("script"); it.onload = () => done("ran"); it.onerror = () => done(null);
        it.src = url + "/data"; document.head.append(it) })""",
    "frame": """url => new Promise(done => {
        const it = document.createElement("iframe"); it.src = url + "/data"; document.body.append(it);
        it.onload = () => { try { done(it.contentDocument && it.contentDocument.body.innerText || null) }
                            catch { done(null) } } })""",
}
FORM = """([url, fields]) => {
    const form = document.createElement("form"); form.method = "post"; form.action = url;
    for (const name in fields) {
        const field = document.createElement("input"); field.name = name; field.value = fields[name];
        form.append(field) }
    document.body.append(form); form.submit() }"""
TALK = """url => new Promise(done => {
    const talk = new WebSocket(url); talk.onmessage = said => done(said.data); talk.onerror = () => done(null) })"""
LOGIN = """() => fetch("/login", {method: "POST", body: new URLSearchParams({uname: "user_1", passwd: "foo"})})
    .then(answer => answer.status)"""
CREDENTIALS = {"uname": "user_1", "passwd": "foo"}


@dataclass
class Site:
    """The tenant under attack.

    Attributes:
        port: Of the server.
        host: company1's, with the port.
        elsewhere: The port at which the attackers' pages are.
    """

    port: int
    host: str
    elsewhere: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}"

    def page(self, host: str) -> str:
        """Return the address of an attacker's page."""
        return f"http://{host}:{self.elsewhere}/"


@pytest.fixture(scope="module")
def server(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The reference app at example.test."""
    with (
        new_database_between_loops(server_url, template) as url,
        run_server(
            url, tmp_path_factory.mktemp("server"), QUART_TENANTS_DOMAIN="example.test", **QUICK_PASSWORDS
        ) as server,
    ):
        yield server


@asynccontextmanager
async def open_browser(port: int, *, trustworthy: bool = False) -> AsyncIterator[tuple[Browser, Site]]:
    """Start Chromium; browsers send Sec-Fetch-Site to *trustworthy* addresses only, such as those of https."""
    host = f"company1.example.test:{port}"
    arguments = [
        "--host-resolver-rules=MAP example.test 127.0.0.1, MAP *.example.test 127.0.0.1, MAP *.evil.test 127.0.0.1",
    ]
    if trustworthy:
        arguments.append(f"--unsafely-treat-insecure-origin-as-secure=http://{host}")
    async with attackers() as elsewhere, run_chromium(*arguments) as browser:
        yield browser, Site(port, host, elsewhere)


@asynccontextmanager
async def own_page(context: BrowserContext, site: Site) -> AsyncIterator[Page]:
    """Open a page of the tenant's own, of which scripts may ask everything that its origin may."""
    page = await context.new_page()
    await page.goto(f"{site.url}/healthz")
    yield page
    await page.close()


async def find_cookie(context: BrowserContext) -> str | None:
    """Return the session cookie as a header, if there is one for the tenant."""
    cookies = [cookie for cookie in await context.cookies() if cookie["domain"] == "company1.example.test"]
    return "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in cookies) or None


async def is_logged_in(context: BrowserContext, site: Site) -> bool:
    """Return whether the browser's session still opens the tenant's data."""
    cookie = await find_cookie(context)
    async with httpx.AsyncClient(verify=False) as client:  # noqa: S501  (http only)
        answer = await client.get(
            f"http://127.0.0.1:{site.port}/data", headers={"Host": site.host, "Cookie": cookie or ""}
        )
    return answer.status_code == 200


async def post_form(context: BrowserContext, page_url: str, url: str, **fields: str) -> tuple[int, str | None]:
    """Let a page at *page_url* send a form to *url*; return the status, and which Sec-Fetch-Site was sent."""
    page = await context.new_page()
    await page.goto(page_url)
    async with page.expect_navigation(url=url) as arrived:
        await page.evaluate(FORM, [url, fields])
    answer = await arrived.value
    assert answer is not None
    site = await answer.request.header_value("Sec-Fetch-Site")
    await page.close()
    return answer.status, site


@pytest.mark.parametrize("trustworthy", [False, True], ids=["by-origin", "by-sec-fetch-site"])
async def test_pages_elsewhere_change_and_read_nothing(server: Server, trustworthy: bool) -> None:
    """Neither a sibling's page nor a stranger's ends a session, begins one or reads; the tenant's own page does."""
    async with open_browser(server.port, trustworthy=trustworthy) as (browser, site):
        # The app's own policy would keep even its own pages from asking.
        context = await browser.new_context(bypass_csp=True)
        async with own_page(context, site) as own:
            assert await own.evaluate(LOGIN) == 200
        assert await is_logged_in(context, site)

        for host, relation in ((SIBLING, "same-site"), (FOREIGN, "cross-site")):
            refused = (403, relation if trustworthy else None)
            page = await context.new_page()
            await page.goto(site.page(host))
            for name, attack in ATTACKS.items():
                async with asyncio.timeout(_PATIENCE):
                    assert await page.evaluate(attack, site.url) is None, (name, host)
            await page.close()
            assert await post_form(context, site.page(host), f"{site.url}/logout") == refused
            assert await post_form(context, site.page(host), f"{site.url}/login", **CREDENTIALS) == refused
            assert await is_logged_in(context, site), host

        async with own_page(context, site) as own:
            assert "company 1 data" in await own.evaluate(ATTACKS["read"], site.url)
            assert "logout successful" in await own.evaluate(ATTACKS["fetch"], site.url)
        assert not await is_logged_in(context, site)

        # Logged out by now: nobody else's form logs the visitor in, as whoever made the page.
        fresh = await browser.new_context()
        assert (await post_form(fresh, site.page(SIBLING), f"{site.url}/login", **CREDENTIALS))[0] == 403
        assert await find_cookie(fresh) is None


async def test_public_page_keeps_to_its_own_policy(server: Server) -> None:
    """The public page has its style, and the browser reports nothing that the policy had to stop."""
    async with open_browser(server.port) as (browser, site):
        page = await browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        await page.add_init_script(
            "addEventListener('securitypolicyviolation', event => console.error('stopped: ' + event.blockedURI))"
        )
        await page.goto(f"http://example.test:{site.port}/")

        assert await page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "640px"
        assert [text for text in complaints if "stopped" in text] == []
        # The policy is in force: what the page does not need is stopped.
        await page.evaluate(
            "() => { const it = document.createElement('script'); it.src = '/x.js'; document.head.append(it) }"
        )
        await page.wait_for_event("console", predicate=lambda message: "stopped" in message.text)


@asynccontextmanager
async def serving_here(database_url: str, *, hook: bool) -> AsyncIterator[int]:
    """Serve the reference app and a websocket from this process; yield the port."""
    app = create_app({"TENANTS_DATABASE_URL": database_url, "TENANTS_DOMAIN": "example.test", "SECRET_KEY": SECRET_KEY})

    @app.websocket("/talk", host=QuartTenants.host)
    async def talk() -> None:
        await websocket.accept()
        await websocket.send("secret")

    if not hook:
        app.before_request_funcs[None].remove(refuse_from_elsewhere)
        app.before_websocket_funcs[None].remove(refuse_from_elsewhere)
    async with serving_app_here(app) as port:
        yield port


@pytest.mark.parametrize("hook", [True, False], ids=["with-the-hook", "without"])
async def test_only_the_hook_keeps_a_sibling_out(database_url: str, hook: bool) -> None:
    """Without it the browser's cookie goes along from a sibling, which is the same site: the visitor is logged out."""
    async with (
        serving_here(database_url, hook=hook) as port,
        open_browser(port) as (browser, site),
    ):
        context = await browser.new_context(bypass_csp=True)
        async with own_page(context, site) as own:
            assert await own.evaluate(LOGIN) == 200
            assert await own.evaluate(TALK, f"ws://{site.host}/talk") == "secret"
        page = await context.new_page()
        await page.goto(site.page(SIBLING))

        heard = await page.evaluate(TALK, f"ws://{site.host}/talk")
        status, _ = await post_form(context, site.page(SIBLING), f"{site.url}/logout")

        assert (heard, status) == ((None, 403) if hook else ("secret", 200))
        assert await is_logged_in(context, site) is hook
