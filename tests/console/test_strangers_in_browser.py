"""A real Chromium: pages of others, tenants' visitors and old addresses get nothing of a console."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import BrowserContext, Page

from quart_tenants.console import door
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.console.conftest import OwnConsole, find_operator, make_app
from tests.support.browsers import needs_chromium, run_chromium
from tests.support.fixed_answers import attackers
from tests.support.patience import DEADLINE
from tests.support.serving import serving_here

pytestmark = [pytest.mark.slow, needs_chromium]

_RULES = "--host-resolver-rules=MAP *.evil.test 127.0.0.1"
# Another program of the same machine is the same site: a browser sends it strict cookies. A tenant's page and a
# stranger's are other sites.
ELSEWHERE = ("127.0.0.1", "acme.localhost", "www.evil.test")
READ = """url => fetch(url, {credentials: "include"}).then(answer => answer.text(), () => null)"""
FRAME = """url => new Promise(done => {
    const it = document.createElement("iframe"); it.src = url; document.body.append(it);
    it.onload = () => { try { done(it.contentDocument && it.contentDocument.body.innerText || null) }
                        catch { done(null) } } })"""
SCRIPT = """url => new Promise(done => {
    const it = document.createElement("script"); it.onload = () => done("ran"); it.onerror = () => done(null);
    it.src = url; document.head.append(it) })"""
LINK = """url => { const it = document.createElement("a"); it.href = url; document.body.append(it); it.click() }"""
FORM = """url => {
    const it = document.createElement("form"); it.method = "post"; it.action = url;
    document.body.append(it); it.submit() }"""
LOGIN = """() => fetch("/login/ann", {method: "POST"}).then(answer => answer.status)"""


@pytest.fixture
async def console(settings: Settings) -> AsyncIterator[OwnConsole]:
    """A console by itself, which is open and not served yet."""
    own = OwnConsole(settings)
    await own.console.open()
    yield own
    await own.console.close()


async def find_leaks(page: Page, url: str) -> list[str]:
    """Let *page*, which is somebody else's, try to get hold of *url*; return what it got, without what is shut."""
    found = []
    for attack in (READ, FRAME, SCRIPT):
        async with asyncio.timeout(DEADLINE):
            found.append(await page.evaluate(attack, url))
    return [text for text in found if text is not None]


async def go(page: Page, how: str, url: str) -> tuple[int, str]:
    """Let *page* lead the browser to *url*; return the status and what is shown there."""
    async with page.expect_navigation(url=url) as arrived:
        await page.evaluate(how, url)
    answer = await arrived.value
    assert answer is not None
    return answer.status, await page.inner_text("body")


async def open_at(context: BrowserContext, url: str) -> tuple[int, str]:
    """Type an address into a new window; return the status and what is shown."""
    page = await context.new_page()
    answer = await page.goto(url)
    assert answer is not None
    shown = answer.status, await page.inner_text("body")
    await page.close()
    return shown


async def is_suspended(database: Database) -> bool:
    """Return whether somebody has suspended acme."""
    return (await get_tenant(database, parse_slug("acme"))).suspended


async def test_pages_elsewhere_get_nothing_of_a_console(
    console: OwnConsole, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the operator's own browser, pages of other origins read nothing, show nothing and do nothing."""
    async with serving_here(console.app) as port, attackers() as elsewhere, run_chromium(_RULES) as browser:
        root = f"http://127.0.0.1:{port}"
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(root + console.told[-1])
        await page.wait_for_url(f"{root}/")
        assert "acme" in await page.inner_text("body")

        for host in ELSEWHERE:
            theirs = f"http://{host}:{elsewhere}/"
            await page.goto(theirs)
            assert await find_leaks(page, f"{root}/") == [], host
            for how, path in ((LINK, "/"), (LINK, "/tenants/acme"), (FORM, "/tenants/acme/suspend")):
                await page.goto(theirs)
                status, shown = await go(page, how, root + path)
                assert status == 403, (host, path)
                assert "This address opens nothing" in shown
                assert "acme" not in shown
        assert not await is_suspended(database)

        # Negative control: without the check the same link shows the page, because the cookie goes along.
        monkeypatch.setattr(door, "is_from_elsewhere", lambda request: False)
        await page.goto(f"http://{ELSEWHERE[0]}:{elsewhere}/")
        status, shown = await go(page, LINK, f"{root}/")
        assert status == 200
        assert "acme" in shown


async def test_browser_without_the_key_gets_nothing_of_a_console(
    console: OwnConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the bare address, nor an address that was opened before, nor a tenant's name for the machine opens it."""
    async with serving_here(console.app) as port, run_chromium(_RULES) as browser:
        root = f"http://127.0.0.1:{port}"
        used = console.told[-1]
        operator = await browser.new_context()
        assert (await open_at(operator, root + used))[0] == 200
        stranger = await browser.new_context()
        addresses = [f"{root}/", f"{root}/tenants/acme", root + used, f"http://acme.localhost:{port}/"]
        addresses += [f"http://{host}:{port}{console.told[-1]}" for host in ("acme.localhost", "www.evil.test")]

        for address in addresses:
            status, shown = await open_at(stranger, address)
            assert status == 403, address
            assert "This address opens nothing" in shown
        assert await stranger.cookies() == []

        # Negative control: without the check of the cookie the bare address shows the page.
        monkeypatch.setattr(door.Door, "_knows", lambda self, cookie: True)
        status, shown = await open_at(stranger, f"{root}/")
        assert status == 200
        assert "globex" in shown


async def test_session_of_a_tenant_opens_no_console_in_an_app(database_url: str, database: Database) -> None:
    """Who is called like an operator at a tenant gets nothing, nor does a tenant's page in an operator's browser."""
    async with serving_here(make_app(database_url, find_operator)) as port, run_chromium() as browser:
        tenant, apex = f"http://acme.localhost:{port}", f"http://localhost:{port}"
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(f"{tenant}/console/")
        assert await page.evaluate(LOGIN) == 200
        for address in (f"{tenant}/console/", f"{apex}/console/", f"{apex}/console/tenants/globex"):
            status, shown = await open_at(context, address)
            assert status == 404, address
            assert "globex" not in shown

        # Negative control: the same login at the domain itself is an operator's.
        operator = await context.new_page()
        await operator.goto(f"{apex}/console/")
        assert await operator.evaluate(LOGIN) == 200
        status, shown = await open_at(context, f"{apex}/console/")
        assert status == 200
        assert "globex" in shown

        # The operator's cookie is in this browser now, and the tenant's page still gets nothing.
        assert await find_leaks(page, f"{apex}/console/") == []
        status, _ = await go(page, FORM, f"{apex}/console/tenants/acme/suspend")
        assert status in (403, 404)
        assert not await is_suspended(database)
