"""Commands that the console runs: the very ones of an operator, live, a few at a time, and ended with the console."""

import json
import logging
import os
import signal
import sys
from pathlib import Path

import pytest
from quart.typing import TestClientProtocol as Browser

from quart_tenants.console.runs import Run, Runs
from quart_tenants.errors import ConsoleBusyError
from quart_tenants.postgres.backups.backup_files import read_backup
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.tenant import parse_slug
from tests.console.conftest import OwnConsole
from tests.console.pages import confirm, find_command, find_token, read
from tests.support.databases import execute

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("foreground")]

WAITS = "import signal, sys\nprint('migrating: 3 of 9, 1 a second', file=sys.stderr, flush=True)\nsignal.pause()"


async def wait_for_end(run: Run) -> None:
    """Return when the command has ended."""
    async for _ in run.watch():
        pass


async def wait_for_line(run: Run, line: str) -> None:
    """Return when the command has said *line*."""
    async for _ in run.watch():
        if any(line in one for one in run.lines):
            return
    raise AssertionError(list(run.lines))


async def test_tenant_is_backed_up_and_restored_beside(
    own: OwnConsole, client: Browser, database: Database, tmp_path: Path
) -> None:
    """A backup is made and restored as a new tenant by the commands that the pages show."""
    file = tmp_path / "acme's.tar"
    asked = await read(await client.get(f"/tenants/acme/backup?file={file}"))
    assert find_command(asked) == f"quart-tenants backup acme '--output={tmp_path}/acme'\"'\"'s.tar'"

    started = await confirm(client, "/tenants/acme/backup", file=str(file))
    assert started.headers["Location"] == "/runs/1"
    runs = own.console.runs
    assert runs is not None
    await wait_for_end(runs.list()[0])
    assert runs.list()[0].status == 0, list(runs.list()[0].lines)
    assert read_backup(file).slug == "acme"
    assert "backed up acme to" in await read(await client.get("/runs/1"))

    await confirm(client, "/fleet/restore", file=str(file), slug="beside")
    await wait_for_end(runs.list()[0])
    assert (await get_tenant(database, parse_slug("beside"))).slug == "beside"


async def test_fleet_is_migrated_and_compared(
    own: OwnConsole, client: Browser, database: Database, database_url: str
) -> None:
    """A migration brings who is behind forward, and a comparison shows who has drifted, and in what."""
    await execute(database_url, "ALTER TABLE globex.app_user ADD COLUMN nick text")
    runs = own.console.runs
    assert runs is not None

    await confirm(client, "/fleet/migrate")
    await wait_for_end(runs.list()[0])
    assert any(line.startswith("nothing to do: 4 tenants") for line in runs.list()[0].lines)

    assert "were not compared" in await read(await client.get("/tenants/globex"))
    await confirm(client, "/fleet/compare")
    await wait_for_end(runs.list()[0])
    narrowed = await read(await client.get("/?state=drift"))
    assert ("globex" in narrowed, "/tenants/acme" in narrowed) == (True, False)
    assert "app_user.nick" in await read(await client.get("/tenants/globex"))
    assert "None, as of" in await read(await client.get("/tenants/acme"))


async def test_failed_command_is_shown_with_its_error(
    own: OwnConsole, client: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """A command that fails ends with its status, the page has what it says, and the audit has who began it."""
    caplog.set_level(logging.INFO, "quart_tenants.audit")
    await confirm(client, "/tenants/acme/backup", file="/nowhere/acme.tar")
    runs = own.console.runs
    assert runs is not None
    await wait_for_end(runs.list()[0])
    page = await read(await client.get("/runs/1"))

    assert "ended with status 1" in page
    assert "/nowhere" in page
    assert (await client.get("/runs/2")).status_code == 404
    told = "command='quart-tenants backup acme --output=/nowhere/acme.tar' operator='ann'"
    assert f"console_run_ended {told} status=1" in caplog.text


async def test_trash_is_emptied_by_who_types_the_number(own: OwnConsole, client: Browser, database_url: str) -> None:
    """The page names whom it is about and asks for the number; where there is nobody, there is no button."""
    assert "There is nothing to do." in await read(await client.get("/fleet/purge?next=yes"))
    for slug in ("acme", "globex"):
        await confirm(client, f"/tenants/{slug}/drop", answer=slug, next="yes")
    await execute(
        database_url,
        "UPDATE quart_tenants.tenants SET dropped_at = now() - interval '99 days' WHERE dropped_at IS NOT NULL",
    )
    asked = await read(await client.get("/fleet/purge?next=yes"))
    assert "2 tenants: acme, globex." in asked

    assert (await confirm(client, "/fleet/purge", answer="3", next="yes")).status_code == 400
    await confirm(client, "/fleet/purge", answer="2", next="yes")
    runs = own.console.runs
    assert runs is not None
    await wait_for_end(runs.list()[0])
    assert {"purged acme", "purged globex"} < set(runs.list()[0].lines)
    assert "The trash is empty." in await read(await client.get("/trash"))


async def test_progress_comes_live(own: OwnConsole, client: Browser) -> None:
    """The events of a run tell its lines and its numbers while it runs, and end with it."""
    runs = own.console.runs
    assert runs is not None
    runs._program = (sys.executable, "-c")
    run = runs.start([WAITS], "waits", "ann")
    await wait_for_line(run, "migrating")

    async with client.request("/runs/1/events") as connection:
        await connection.send_complete()
        first = json.loads((await connection.receive()).decode().removeprefix("data: "))
        token = find_token(await read(await client.get("/runs/1")))
        assert (await client.post("/runs/1", form={"token": token})).status_code == 303
        last = first
        while last["running"]:
            last = json.loads((await connection.receive()).decode().removeprefix("data: "))

    assert (first["running"], first["done"], first["total"]) == (True, 3, 9)
    assert first["lines"] == ["migrating: 3 of 9, 1 a second"]
    assert last["state"] == f"ended with status {-signal.SIGINT}"


async def test_no_page_has_the_password_of_the_database(
    own: OwnConsole, client: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a command says of a database that it cannot reach, and every other page, is without its password."""
    secret = "planted-database-password"
    monkeypatch.setenv("QUART_TENANTS_DATABASE_URL", f"postgresql://postgres:{secret}@127.0.0.1:1/nowhere")
    await confirm(client, "/fleet/migrate")
    runs = own.console.runs
    assert runs is not None
    await wait_for_end(runs.list()[0])

    assert runs.list()[0].status == 1
    for path in ("/", "/runs", "/runs/1", "/load", "/fleet/migrate"):
        assert secret not in await read(await client.get(path))


async def test_few_commands_run_at_a_time_and_end_with_the_console() -> None:
    """A fourth command is refused by an error that names the three; the end of the console ends them as Ctrl-C does."""
    runs = Runs(["-c"])
    started = [runs.start([WAITS], f"number {number}", "ann") for number in range(3)]
    with pytest.raises(ConsoleBusyError, match="number 0; number 1; number 2"):
        runs.start([WAITS], "one too many", "ann")
    for run in started:
        await wait_for_line(run, "migrating")
    pids = [run.process.pid for run in started if run.process is not None]
    assert len(pids) == 3

    await runs.close()

    assert [run.status for run in started] == [-signal.SIGINT] * 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_command_that_does_not_hear_ctrl_c_ends_with_the_console() -> None:
    """It is killed when the console has waited for it, and its end is noted."""
    runs = Runs(["-c"], patience=0.1)
    run = runs.start([f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{WAITS}"], "deaf", "ann")
    await wait_for_line(run, "migrating")
    assert run.process is not None

    await runs.close()

    assert run.status == 1
    assert await run.process.wait() == -signal.SIGKILL


async def test_output_of_any_size_is_read() -> None:
    """A line that is longer than any sensible one, and more lines than are kept, hold nothing up."""
    runs = Runs(["-c"])
    run = runs.start(["print('x' * 3_000_000); print('y\\n' * 1000); print('end')"], "talks", "ann")
    await wait_for_end(run)

    assert run.status == 0
    assert run.lines[-1] == "end"
    assert len(run.lines) == 200
    await runs.close()


async def test_old_runs_are_forgotten() -> None:
    """Only the newest runs are kept, so a console that is open for weeks does not grow."""
    runs = Runs(["-c"])
    for number in range(53):
        await wait_for_end(runs.start(["pass"], f"number {number}", "ann"))

    assert [run.number for run in runs.list()] == list(range(53, 3, -1))
