"""Start a real Chromium, where the system has one, and look at a page as people do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, Page, async_playwright

_CHROMIUM = Path("/usr/bin/chromium")

WIDE, NARROW = 1280, 390
WINDOWS: list[tuple[int, Literal["light", "dark"]]] = [(WIDE, "light"), (NARROW, "dark")]
"""Pixels of a window, with the colours that its user likes."""

FITS = "() => document.documentElement.scrollWidth <= innerWidth"
"""Whether the page fits into its window."""

needs_chromium = pytest.mark.skipif(not _CHROMIUM.exists(), reason=f"{_CHROMIUM} is not installed here")


@asynccontextmanager
async def run_chromium(*arguments: str) -> AsyncIterator[Browser]:
    """Start Chromium with *arguments*, and end it afterwards."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=str(_CHROMIUM), args=["--no-sandbox", *arguments])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def open_page(
    browser: Browser, width: int, colours: Literal["light", "dark"] = "light", *, scripts: bool = True
) -> AsyncIterator[Page]:
    """Open a window of *width* pixels with no history. Whatever the policy stops in it is an error."""
    context = await browser.new_context(
        viewport={"width": width, "height": 600}, color_scheme=colours, java_script_enabled=scripts
    )
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    yield page
    await context.close()
    # Chromium writes a line for each answer from 400 on as well.
    assert [text for text in complaints if "Failed to load resource" not in text] == []


async def assert_no_barrier(page: Page, name: str) -> None:
    """Assert that nothing keeps people from using the page *name*, and that it fits into its window."""
    assert await find_barriers(page) == [], name
    assert await page.evaluate(FITS), name
    assert await page.evaluate("document.documentElement.lang") == "en", name
    assert await page.locator("h1").count() == 1, name


async def find_barriers(page: Page) -> list[str]:
    """Return what axe-core finds on the page by the rules that it has on by default."""
    axe: Any = pytest.importorskip("axe_playwright_python.async_playwright", reason="needs axe-playwright-python")
    found = await axe.Axe().run(page)
    return [f"{one['id']}: {node['html']}" for one in found.response["violations"] for node in one["nodes"]]
