"""Start a real Chromium, where the system has one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

_CHROMIUM = Path("/usr/bin/chromium")

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
