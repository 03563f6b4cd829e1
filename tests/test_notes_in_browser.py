"""The example of the tutorial is served by two workers, and used in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browsers import needs_chromium, run_chromium
from tests.support.processes import (
    PROGRAM,
    SECRET_KEY,
    make_environment,
    run_warm,
    run_warm_program,
    wait_for_answer,
    wait_for_line,
)

pytestmark = [pytest.mark.slow, needs_chromium]

NOTES = Path(__file__).parents[1] / "examples" / "notes"
CONFIG = 'bind = "127.0.0.1:0"\nworkers = 2\n'
WINDOWS = 6


@pytest.fixture
def port(empty_database_url: str, tmp_path: Path) -> Iterator[int]:
    """Where the example is served."""
    environment = {"QUART_TENANTS_DATABASE_URL": empty_database_url, "QUART_SECRET_KEY": SECRET_KEY}
    for command in (["init"], ["migrate"]):
        quart = PROGRAM.with_name("quart")
        done = run_warm(quart, "--app", "notes", "tenants", *command, cwd=NOTES, env=make_environment(**environment))
        done.check_returncode()
    config, log = tmp_path / "hypercorn.toml", tmp_path / "log"
    config.write_text(CONFIG)
    serve = ("serve", "--app", "notes", "--config", str(config))
    with run_warm_program(*serve, log=log, cwd=NOTES, **environment) as process:
        port = int(wait_for_line(process, "serving on", log).rpartition(":")[2])
        wait_for_answer(port)
        yield port


async def test_customer_signs_up_and_sees_notes_at_once_in_every_window(port: int) -> None:
    """A note that is written in one window appears in all of them, whichever worker each talks to."""
    async with run_chromium() as browser:
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(f"http://localhost:{port}/")
        await page.get_by_label("A short name, which becomes the address:").fill("newco")
        await page.get_by_label("E-mail:").fill("ada@newco.test")
        await page.get_by_label("Password:").fill("a long password")
        await page.get_by_role("button", name="Sign up").click()
        await page.get_by_role("link", name=f"http://newco.localhost:{port}/").click()
        await page.get_by_label("E-mail:").fill("ada@newco.test")
        await page.get_by_label("Password:").fill("a long password")
        await page.get_by_role("button", name="Sign in").click()
        await page.get_by_text("Nothing yet.").wait_for()
        windows = [await context.new_page() for _ in range(WINDOWS)]
        for window in windows:
            await window.goto(f"http://newco.localhost:{port}/")
            await window.locator("html[data-live]").wait_for(state="attached")
        writer = windows.pop()
        await writer.get_by_label("New note:").fill("half a note")

        await page.get_by_label("New note:").fill("seen by all")
        await page.get_by_role("button", name="Write").click()

        for window in windows:
            await window.get_by_text("seen by all").wait_for()
        # Where something is being written, the page says that there is more, and keeps what is written.
        await writer.get_by_text("There are new notes.").wait_for()
        assert await writer.get_by_label("New note:").input_value() == "half a note"
        await writer.get_by_role("link", name="Show them").click()
        await writer.get_by_text("seen by all").wait_for()
        await page.get_by_role("button", name="Sign out").click()
        assert await page.title() == "Sign in"
