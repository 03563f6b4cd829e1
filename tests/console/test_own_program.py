"""`quart-tenants console` as an operator starts it, and in a real Chromium.

`SCREENSHOTS=docs/pages` makes the pictures of the manual anew.
"""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import pytest
from playwright.async_api import Page, expect

from quart_tenants.testing.databases import new_database_between_loops
from tests.support.browsers import WIDE, WINDOWS, assert_no_barrier, needs_chromium, open_page, run_chromium
from tests.support.patience import DEADLINE
from tests.support.processes import PROGRAM, make_environment, run_warm, run_warm_program, wait_for_line
from tests.web.commands.runs import execute

pytestmark = pytest.mark.slow

PICTURED = ("console-fleet", "console-tenant", "console-drop", "console-run")
SAYS = "the console is at "


@dataclass
class Program:
    """A console that runs, whose terminal has a new address after each that was opened."""

    log: Path

    def find_address(self) -> str:
        """Return the newest address."""
        return self.log.with_name("log.out").read_text().splitlines()[-1].removeprefix(SAYS)


@pytest.fixture(scope="module")
def program(server_url: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The program, on a database with a tenant that failed, one that is suspended and one in the trash."""
    with new_database_between_loops(server_url, template) as url:
        execute(
            url,
            "INSERT INTO quart_tenants.migration_failures (tenant_id, version, migration, reason)"
            " SELECT id, 1, '0002_x.sql', 'relation x exists already' FROM quart_tenants.tenants WHERE slug = 'acme'",
        )
        execute(url, "UPDATE quart_tenants.tenants SET suspended_at = now() WHERE slug = 'globex'")
        log = tmp_path_factory.mktemp("console") / "log"
        with run_warm_program("console", log=log, QUART_TENANTS_DATABASE_URL=url) as process:
            wait_for_line(process, SAYS, log)
            yield Program(log)


async def test_program_serves_its_own_machine_alone(program: Program) -> None:
    """The address is on loopback, opens nothing without its key, and gives a cookie once."""
    address = program.find_address()
    assert address.startswith("http://127.0.0.1:")
    async with httpx.AsyncClient(timeout=DEADLINE) as client:
        root = address.partition("?")[0]
        assert (await client.get(root)).status_code == 403
        assert (await client.get(address)).status_code == 200
        opened = await client.get(root)
        assert opened.status_code == 200
        assert "acme" in opened.text
    async with httpx.AsyncClient(timeout=DEADLINE) as other:
        assert (await other.get(address)).status_code == 403
    assert program.find_address() != address


def test_program_says_what_is_missing(empty_database_url: str) -> None:
    """Without a registry there is no console: the error is the one of the commands, with status 1."""
    environment = make_environment(QUART_TENANTS_DATABASE_URL=empty_database_url)
    ended = run_warm(PROGRAM, "console", env=environment)

    assert ended.returncode == 1
    assert "run quart-tenants init" in ended.stderr
    assert ended.stdout == ""


async def show_every_page(page: Page, program: Program) -> AsyncIterator[str]:
    """Open one page after the other; yield the name of each, by which its picture is called."""
    address = program.find_address()
    root = address.partition("?")[0]
    await page.goto(address)
    await page.wait_for_url(root)
    while await page.get_by_text("is being looked for").count():
        await page.reload()
    yield "console-fleet"
    for name, path in (
        ("console-tenant", "tenants/acme"),
        ("console-trash", "trash"),
        ("console-domains", "domains"),
        ("console-logins", "logins"),
        ("console-rename", "tenants/acme/rename"),
        ("console-rename-wrong", "tenants/acme/rename?new=-&next=yes"),
        ("console-drop", "tenants/acme/drop?next=yes"),
        ("console-unknown", "tenants/nobody"),
        ("console-load", "load"),
        ("console-sizes", "sizes"),
        ("console-runs", "runs"),
    ):
        await page.goto(root + path)
        yield name
    await page.goto(root + "fleet/migrate")
    await page.get_by_role("button", name="Migrate all tenants").click()
    # It ends while the page is shown, and the script says so.
    await expect(page.locator("#state")).to_have_text("done", timeout=DEADLINE * 1000)
    yield "console-run"


@needs_chromium
@pytest.mark.parametrize(("width", "colours"), WINDOWS)
async def test_no_page_has_a_barrier(
    program: Program, tmp_path: Path, width: int, colours: Literal["light", "dark"]
) -> None:
    """axe-core finds nothing, and the page fits into its window, has a language, one heading and obeys its policy."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    async with run_chromium() as browser, open_page(browser, width, colours) as page:
        async for name in show_every_page(page, program):
            await assert_no_barrier(page, name)
            if name in PICTURED:
                await page.screenshot(path=folder / f"{name}-{width}.png")


@needs_chromium
async def test_operator_needs_no_scripts(program: Program) -> None:
    """Search, a confirmation, an action and what comes of it work in a browser that runs no scripts."""
    async with run_chromium() as browser, open_page(browser, WIDE, scripts=False) as page:
        address = program.find_address()
        await page.goto(address)
        await page.wait_for_url(address.partition("?")[0])
        await page.get_by_label("Slug, name or domain").fill("COMPANY2")
        await page.get_by_role("button", name="Show").click()
        await page.get_by_role("link", name="company2").click()
        await page.get_by_role("link", name="Suspend").click()
        assert await page.locator("pre").inner_text() == "quart-tenants suspend company2"
        await page.get_by_role("button", name="Suspend").click()

        assert await page.get_by_role("status").inner_text() == "suspended company2"
        await page.get_by_role("link", name="Resume").click()
        await page.get_by_role("button", name="Resume").click()
        assert await page.get_by_role("status").inner_text() == "resumed company2"
