"""What operators do is written down: who, what, and how it ended."""

import json
import logging
import os
import pwd
from typing import TYPE_CHECKING, Any

import click
import pytest

from quart_tenants.app.cli import main
from quart_tenants.errors import UnknownTenantError
from quart_tenants.web.commands.records import changes_nothing
from quart_tenants.web.commands.running import TenantGroup
from tests.support.processes import PROGRAM, make_environment, run_warm
from tests.test_conventions import walk

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.slow

QUART = PROGRAM.with_name("quart")
READING = {"lint", "check-portable", "list", "status", "nodes", "top", "domain list", "doctor", "user list"}
# These go on for as long as they serve, and have lines of their own for what is done by them.
SERVING = {"serve", "demo", "console"}
UNRECORDED = READING | SERVING


def run(
    *command: Any, stdin: str = "", **environment: str
) -> tuple["subprocess.CompletedProcess[str]", list[dict[str, Any]]]:
    """Run a command; return what it left, and the lines in JSON among what it says on stderr."""
    done = run_warm(*command, stdin=stdin, env=make_environment(**{"QUART_TENANTS_LOG_FORMAT": "json", **environment}))
    return done, [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]


def test_command_that_changes_something_is_recorded(database_url: str) -> None:
    """One line when it ends, with the operator, the database's role, the command, its arguments and the outcome."""
    url = database_url.replace("://", "://postgres:sesame@", 1) if "@" not in database_url else database_url
    settings = {"QUART_TENANTS_DATABASE_URL": url, "SUDO_USER": "ann"}

    made, (line,) = run(PROGRAM, "create", "newco", "--name", "New Co", **settings)
    again, (failure,) = run(QUART, "--app", "quart_tenants.app", "tenants", "create", "newco", **settings)

    assert (made.returncode, again.returncode) == (0, 1)
    assert line.pop("timestamp")
    assert line == {
        "level": "info",
        "logger": "quart_tenants.audit",
        "event": "command_ended",
        "command": "quart-tenants create",
        "arguments": "slug=newco name=New Co",
        "os_user": pwd.getpwuid(os.getuid()).pw_name,
        "sudo_user": "ann",
        "database_role": url.partition("://")[2].partition(":")[0].partition("@")[0],
        "outcome": "ok",
    }
    assert (failure["command"], failure["outcome"]) == ("quart tenants create", "tenant_exists")
    assert "sesame" not in made.stderr + again.stderr


def test_command_that_changes_nothing_is_not_recorded(database_url: str) -> None:
    """Neither what reads, nor a dry run, nor what was typed wrongly, nor where audit is off leaves a line."""
    settings = {"QUART_TENANTS_DATABASE_URL": database_url}

    for command in (["list"], ["status"], ["migrate", "--dry-run"], ["create"]):
        _, lines = run(PROGRAM, *command, **settings)
        assert lines == [], command
    assert run(PROGRAM, "suspend", "acme", QUART_TENANTS_AUDIT="false", **settings)[1] == []


def test_level_does_not_silence_the_record(database_url: str) -> None:
    """Who did what is written at any `TENANTS_LOG_LEVEL`."""
    settings = {"QUART_TENANTS_DATABASE_URL": database_url, "QUART_TENANTS_LOG_LEVEL": "error"}

    _, (line,) = run(PROGRAM, "suspend", "acme", **settings)

    assert line["event"] == "command_ended"


def test_every_command_is_recorded_unless_it_says_otherwise() -> None:
    """A new command is recorded without anybody thinking of it, in groups, too."""
    unrecorded = {path for path, command in walk(main) if not hasattr(command.callback, "_quart_tenants_recorded")}

    assert unrecorded <= UNRECORDED


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (SystemExit(0), "ok"),
        (UnknownTenantError("acme"), "unknown_tenant"),
        (click.ClickException("2 of 3 tenants failed"), "failed"),
        (SystemExit(1), "failed"),
        (click.UsageError("too many"), "usage"),
        (KeyboardInterrupt(), "interrupted"),
        (click.Abort(), "interrupted"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_outcome_says_how_the_command_ended(
    error: BaseException | None,
    outcome: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also an error that nobody foresaw and a Ctrl-C; a database's URL is never repeated."""
    monkeypatch.setenv("QUART_TENANTS_DATABASE_URL", "postgresql://ada:sesame@db/x")
    group = TenantGroup("tenants")

    @click.command("go")
    @click.argument("places", nargs=-1)
    def go(places: tuple[str, ...]) -> None:
        if error is not None:
            raise error

    group.add_command(go)
    with caplog.at_level(logging.INFO, "quart_tenants.audit"), pytest.raises((SystemExit, Exception)):
        group.main(["go", "postgresql://ada:sesame@db/x", "b"], prog_name="x")

    (record,) = caplog.records
    facts: dict[str, object] = vars(record)["facts"]
    assert facts["outcome"] == outcome
    assert facts["arguments"] == "places=postgresql://…,b"
    assert facts["database_role"] == "ada"


@pytest.mark.parametrize(("number", "told"), [(20, ""), (1000, " and 980 more")])
def test_long_lists_are_counted(number: int, told: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of a thousand arguments the line has the first twenty, and says how many more there are."""
    group = TenantGroup("tenants")

    @click.command("go")
    @click.argument("slugs", nargs=-1)
    def go(slugs: tuple[str, ...]) -> None:
        pass

    group.add_command(go)
    slugs = [f"tenant-{count}" for count in range(number)]
    with caplog.at_level(logging.INFO, "quart_tenants.audit"):
        group.main(["go", *slugs], prog_name="x", standalone_mode=False)

    (record,) = caplog.records
    assert vars(record)["facts"]["arguments"] == f"slugs={','.join(slugs[:20])}{told}"
    assert len(record.getMessage()) < 600


def test_mark_keeps_a_command_out(caplog: pytest.LogCaptureFixture) -> None:
    """`changes_nothing` is for an app's own commands that only read."""
    group = TenantGroup("tenants")

    @click.command("look")
    @changes_nothing
    def look() -> None:
        pass

    group.add_command(look)
    with caplog.at_level(logging.INFO, "quart_tenants.audit"):
        group.main(["look"], prog_name="x", standalone_mode=False)

    assert caplog.records == []
