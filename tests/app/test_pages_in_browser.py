"""The pages in a real Chromium: at two widths, without JavaScript, by keyboard, and through the eyes of axe-core.

`SCREENSHOTS=docs/pages` makes the pictures of the manual anew.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Literal

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from quart_tenants.testing.databases import new_database_between_loops
from tests.support.browsers import (
    FITS,
    NARROW,
    WIDE,
    WINDOWS,
    assert_no_barrier,
    find_barriers,
    needs_chromium,
    open_page,
    run_chromium,
)
from tests.support.processes import QUICK_PASSWORDS, Server, run_server

pytestmark = [pytest.mark.slow, needs_chromium, pytest.mark.asyncio(loop_scope="module")]

PICTURED = ("sign-up", "sign-in", "data", "unknown-host")
# Which elements of the page the keyboard reaches, one after the other.
FOCUSED = "() => { const it = document.activeElement; return it.name || it.textContent.trim() }"


@pytest.fixture(scope="module")
def server(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The reference app, where strangers may sign up."""
    with (
        new_database_between_loops(server_url, template) as url,
        run_server(url, tmp_path_factory.mktemp("server"), QUART_TENANTS_SIGN_UP="true", **QUICK_PASSWORDS) as server,
    ):
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One browser. Each test opens a window in it that knows nothing of the others."""
    async with run_chromium() as browser:
        yield browser


async def fill(page: Page, button: str, **fields: str) -> int:
    """Fill in a form by the labels of its fields, send it, and return the status of what comes."""
    for label, text in fields.items():
        await page.get_by_label(label.replace("_", " "), exact=True).fill(text)
    async with page.expect_navigation() as arrived:
        await page.get_by_role("button", name=button).click()
    answer = await arrived.value
    assert answer is not None
    return answer.status


async def sign_in(page: Page, server: Server, tenant: str, user: str, password: str) -> int:
    """Sign in at *tenant*, and return the status of what comes."""
    await page.goto(f"http://{tenant}.localhost:{server.port}/")
    return await fill(page, "Sign in", User_name=user, Password=password)


@pytest.mark.parametrize("width", [WIDE, NARROW])
async def test_customer_comes_goes_and_comes_back(browser: Browser, server: Server, width: int) -> None:
    """Sign up, sign in, see the data, change the password, sign out, sign in by the new one: all without JavaScript."""
    slug = f"customer{width}"
    fields = {"Name of your company": "Customer Ltd", "Address": slug.upper(), "Your user name": "ada"}
    passwords = {"Password": "first", "Password, once more": "first"}
    async with open_page(browser, width, scripts=False) as page:
        await page.goto(f"http://localhost:{server.port}/")
        await page.get_by_role("link", name="Make a site of your own").click()
        assert await fill(page, "Make the site", **fields, **passwords) == 201
        await page.get_by_role("link", name=f"http://{slug}.localhost:{server.port}/").click()
        assert await page.title() == "Sign in - Customer Ltd"

        assert await fill(page, "Sign in", User_name="ada", Password="wrong") == 401
        assert await page.get_by_role("alert").text_content() == "The user name or the password is wrong."
        assert await fill(page, "Sign in", User_name="ada", Password="first") == 200
        assert await page.title() == "Data - Customer Ltd"
        assert "You are signed in as ada." in await page.inner_text("main")

        await page.get_by_role("link", name="Change password").click()
        changed = {"Present password": "first", "New password": "second", "New password, once more": "second"}
        assert await fill(page, "Change password", **changed) == 200
        assert "Your password was changed." in await page.inner_text("main")
        assert await fill(page, "Sign out") == 200
        assert await page.title() == "Sign in - Customer Ltd"

        assert await fill(page, "Sign in", User_name="ada", Password="first") == 401
        assert await fill(page, "Sign in", User_name="ada", Password="second") == 200


async def test_customer_sees_the_own_data_alone(browser: Browser, server: Server) -> None:
    """Two companies in one browser: each shows its own rows, and its session is none at the other."""
    async with open_page(browser, WIDE) as page:
        for number in (1, 2):
            await sign_in(page, server, f"company{number}", f"user_{number}", "foo")
            assert await page.locator("td").all_inner_texts() == ["1", f"company {number} data"]
        await page.goto(f"http://company1.localhost:{server.port}/")
        assert await page.locator("td").all_inner_texts() == ["1", "company 1 data"]


async def show_every_page(page: Page, server: Server) -> AsyncIterator[str]:
    """Open one page after the other; yield the name of each, by which its picture is called."""
    apex, tenant = f"http://localhost:{server.port}", f"http://company1.localhost:{server.port}"
    for name, address in (
        ("public", f"{apex}/"),
        ("sign-up-empty", f"{apex}/sign-up"),
        ("sign-in-empty", f"{tenant}/"),
        ("not-signed-in", f"{tenant}/change-password"),
        ("not-found", f"{tenant}/nothing"),
        ("unknown-tenant", f"http://nobody.localhost:{server.port}/"),
        ("unknown-host", f"http://127.0.0.1:{server.port}/"),
    ):
        await page.goto(address)
        yield name
    await page.goto(f"{apex}/sign-up")
    fields = {"Name of your company": "Globex Corporation", "Address": "globex", "Your user name": "hank"}
    assert await fill(page, "Make the site", **fields, **{"Password": "x", "Password, once more": "x"}) == 409
    yield "sign-up"
    slug = f"new{os.urandom(4).hex()}"
    # No blank, at which the line could break.
    changed = {"Name of your company": "W" * 200, "Address": slug, "Password": "x", "Password, once more": "x"}
    assert await fill(page, "Make the site", **changed) == 201
    yield "signed-up"
    assert await sign_in(page, server, "company1", "user_1", "wrong") == 401
    yield "sign-in"
    assert await sign_in(page, server, "company1", "user_1", "foo") == 200
    yield "data"
    await page.get_by_role("link", name="Change password").click()
    yield "change-password-empty"
    passwords = {"Present password": "foo", "New password": "x", "New password, once more": "y"}
    assert await fill(page, "Change password", **passwords) == 400
    yield "change-password"


@pytest.mark.parametrize(("width", "colours"), WINDOWS)
async def test_no_page_has_a_barrier(
    browser: Browser, server: Server, tmp_path: Path, width: int, colours: Literal["light", "dark"]
) -> None:
    """axe-core finds nothing, the page fits into its window, and has a language, one heading and a title of its own."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    titles = []
    async with open_page(browser, width, colours) as page:
        async for name in show_every_page(page, server):
            await assert_no_barrier(page, name)
            titles.append(await page.title())
            if name in PICTURED:
                await page.screenshot(path=folder / f"{name}-{width}.png")

    # The form that comes back is the same page; nobody can tell an unknown host from an unknown tenant by the title.
    assert len(set(titles)) == len(titles) - 4


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("document.querySelector('label').remove()", "label"),
        ("document.querySelector('#error').style.color = '#eee'", "color-contrast"),
        ("document.documentElement.lang = ''", "html-has-lang"),
        ("document.title = ''", "document-title"),
        ("document.querySelector('[aria-describedby]').setAttribute('aria-describedby', 'nothing')", None),
    ],
)
async def test_barrier_is_found(browser: Browser, server: Server, change: str, rule: str | None) -> None:
    """Negative control: the same page with one barrier in it."""
    async with open_page(browser, WIDE) as page:
        await sign_in(page, server, "company1", "user_1", "wrong")
        assert await describe_fields(page) == ["The user name or the password is wrong."] * 2
        await page.evaluate(f"() => {{ {change} }}")

        # axe-core takes a description that leads nowhere for a thing to be looked at by a person.
        if rule is None:
            assert await describe_fields(page) != ["The user name or the password is wrong."] * 2
        else:
            assert any(barrier.startswith(f"{rule}: ") for barrier in await find_barriers(page))


async def describe_fields(page: Page) -> list[str | None]:
    """Return by what each field of the page is described, as a screen reader says it."""
    return list(
        await page.evaluate(
            """() => [...document.querySelectorAll("main input")].map(
                field => document.getElementById(field.getAttribute("aria-describedby"))?.textContent.trim() ?? null)"""
        )
    )


async def test_page_that_is_too_wide_is_found(browser: Browser, server: Server) -> None:
    """Negative control for what fits into a window."""
    async with open_page(browser, NARROW) as page:
        await page.goto(f"http://localhost:{server.port}/")
        assert await page.evaluate(FITS)
        await page.evaluate("() => { document.querySelector('main').style.width = '400px' }")
        assert not await page.evaluate(FITS)


async def test_keyboard_goes_through_the_page_in_its_order(browser: Browser, server: Server) -> None:
    """The fields come one after the other, then the button; after an error the first wrong field has the focus."""
    async with open_page(browser, WIDE) as page:
        await page.goto(f"http://company1.localhost:{server.port}/sign-in")
        order = []
        for _ in range(3):
            await page.keyboard.press("Tab")
            order.append(await page.evaluate(FOCUSED))
        await sign_in(page, server, "company1", "user_1", "wrong")
        focused = await page.evaluate(FOCUSED)
        await sign_in(page, server, "company1", "user_1", "foo")
        reached = []
        for _ in range(4):
            await page.keyboard.press("Tab")
            reached.append(await page.evaluate(FOCUSED))

    assert order == ["uname", "passwd", "Sign in"]
    assert focused == "uname"
    assert reached == ["Data", "Change password", "Sign out", "All rows as JSON"]
