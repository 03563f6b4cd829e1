"""The commands as an operator runs them: processes with an exit status, two outputs and perhaps a terminal."""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from passlib.hash import argon2

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant, list_tenants
from quart_tenants.postgres.tenants.provisioning import create_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.support.patience import DEADLINE
from tests.support.processes import PROGRAM, make_environment, run_warm

pytestmark = pytest.mark.slow


# The program of this library, and the same commands as any Quart app has them.
OURS: list[str | Path] = [PROGRAM]
QUARTS: list[str | Path] = [PROGRAM.with_name("quart"), "--app", "quart_tenants.app", "tenants"]
PROGRAMS = [pytest.param(OURS, id="quart-tenants"), pytest.param(QUARTS, id="quart")]

# What each command says when all is well.
GOOD = [
    pytest.param(["init"], "", "registry is up to date\n", id="init"),
    pytest.param(
        ["create", "newco", "--name", "Ünï"], "", "created newco (schema newco, at newco.localhost)\n", id="create"
    ),
    pytest.param(["adopt", "oldco=Old Co"], "", "adopted oldco (schema Old Co, at oldco.localhost)\n", id="adopt"),
    pytest.param(
        ["list"],
        "",
        "acme\tacme\tAcme\t0001\tactive\ncompany1\tcompany1\tcompany1\t0001\tactive\n"
        "company2\tcompany2\tcompany2\t0001\tactive\nglobex\tglobex\tGlobex\t0001\tactive\n",
        id="list",
    ),
    pytest.param(["user", "add", "acme", "ann", "--password-stdin"], "sesame\n", "added ann to acme\n", id="user-add"),
    pytest.param(["suspend", "acme"], "", "suspended acme\n", id="suspend"),
]

# What each says when it cannot.
BAD = [
    pytest.param(OURS, ["create", "acme"], 1, "tenant 'acme' exists already", id="create"),
    pytest.param(OURS, ["adopt", "gone"], 1, "schema 'gone' cannot be used", id="adopt"),
    pytest.param(OURS, ["adopt"], 2, "Missing argument", id="usage"),
    pytest.param(OURS, ["drop", "acme"], 1, "there is no terminal; give --yes", id="drop"),
    pytest.param(OURS, ["user", "add", "newco", "ann"], 1, "no tenant answers at 'newco'", id="user-add"),
    pytest.param(QUARTS, ["user", "add", "newco", "ann"], 1, "no tenant answers at 'newco'", id="quart-user-add"),
    pytest.param(QUARTS, ["create"], 2, "Missing argument", id="quart-usage"),
]

# Makes the terminal on stdin the process's own, so that Ctrl-C and /dev/tty are the real ones.
# A suite that a shell has started in the background ignores Ctrl-C, and so would its children.
IN_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def run(
    program: list[str | Path], *arguments: str, stdin: str = "", **settings: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, without a terminal, and without audit lines among what it says."""
    return run_warm(*program, *arguments, stdin=stdin, env=make_environment(QUART_TENANTS_AUDIT="false", **settings))


def run_cold(program: list[str | Path], *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Do as `run` does, in a Python that has imported nothing."""
    return subprocess.run(
        [*program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
        env=make_environment(QUART_TENANTS_AUDIT="false", **settings),
        check=False,
    )


@dataclass
class Terminal:
    """A process that has a terminal of its own, as if a person sat there."""

    process: "subprocess.Popen[bytes]"
    keyboard_and_screen: int
    screen: str = field(default="", init=False)
    _read_so_far: int = field(default=0, init=False)

    def wait_for(self, text: str) -> None:
        """Return when *text* is on the screen, below what was waited for before."""
        deadline = time.monotonic() + DEADLINE
        while (found := self.screen.find(text, self._read_so_far)) < 0:
            assert self._read(deadline), f"the process ended; the screen shows {self.screen!r}"
        self._read_so_far = found + len(text)

    def type(self, keys: str) -> None:
        """Press *keys*."""
        os.write(self.keyboard_and_screen, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C, and again after a second: Python does not hear it in the instant before it waits for keys."""
        deadline = time.monotonic() + DEADLINE
        while "Aborted!" not in self.screen:
            assert time.monotonic() < deadline, f"nothing happens; the screen shows {self.screen!r}"
            self.type("\x03")
            patience = time.monotonic() + 1.0
            while (
                "Aborted!" not in self.screen
                and select.select([self.keyboard_and_screen], [], [], max(patience - time.monotonic(), 0.0))[0]
            ):
                if not self._read(deadline):
                    return

    def wait(self) -> int:
        """Return the exit status, as soon as the process has ended."""
        deadline = time.monotonic() + DEADLINE
        while self._read(deadline):
            pass
        return self.process.wait(DEADLINE)

    def _read(self, deadline: float) -> bool:
        """Put what the process writes on the screen; return False when it has ended."""
        ready, _, _ = select.select([self.keyboard_and_screen], [], [], deadline - time.monotonic())
        assert ready, f"nothing happens; the screen shows {self.screen!r}"
        try:
            said = os.read(self.keyboard_and_screen, 65536)
        except OSError:
            # How Linux says that nobody holds the terminal's other side any more.
            return False
        self.screen += said.decode().replace("\r\n", "\n")
        return bool(said)


@contextmanager
def open_terminal(*arguments: str, stdout: Path | None = None, **settings: str) -> Iterator[Terminal]:
    """Start `quart-tenants` in a terminal, with its results in the file *stdout* if there is one."""
    ours, its = os.openpty()
    results = None if stdout is None else stdout.open("wb")
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, PROGRAM, *arguments],
            stdin=its,
            stdout=its if results is None else results,
            stderr=its,
            env=make_environment(TERM="xterm", COLUMNS="80", **settings),
            start_new_session=True,
        )
    finally:
        os.close(its)
        if results is not None:
            results.close()
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait(DEADLINE)
        os.close(ours)


async def list_slugs(database: Database) -> list[str]:
    """Return the slugs of all tenants."""
    return [tenant.slug for tenant in await list_tenants(database)]


async def find_hash(database: Database, slug: str, username: str) -> str | None:
    """Return what is stored for a user's password."""
    tenant = await get_tenant(database, parse_slug(slug))
    async with database.tenant_connection(tenant) as connection:
        found: str | None = await connection.fetchval("SELECT password FROM app_user WHERE username = $1", username)
        return found


# Without a terminal


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("arguments", "stdin", "out"), GOOD)
async def test_command_says_its_result(
    database: Database, settings: Settings, program: list[str | Path], arguments: list[str], stdin: str, out: str
) -> None:
    """A command that did its work says so on stdout, nothing on stderr, and ends with status 0."""
    async with database.connection() as connection:
        await connection.execute('CREATE SCHEMA "Old Co"')

    done = run(program, *arguments, stdin=stdin, QUART_TENANTS_DATABASE_URL=settings.required_database_url)

    assert (done.returncode, done.stdout, done.stderr) == (0, out, "")


@pytest.mark.parametrize("program", PROGRAMS)
async def test_drop_names_the_command_that_brings_the_tenant_back(
    database: Database, settings: Settings, program: list[str | Path]
) -> None:
    """The result is on stdout; on stderr stands what to type, as the same program calls it."""
    url = settings.required_database_url

    done = run_cold(program, "drop", "acme", "--yes", QUART_TENANTS_DATABASE_URL=url)
    back = run_cold(program, "undrop", "acme", QUART_TENANTS_DATABASE_URL=url)

    assert (done.returncode, done.stdout) == (0, "dropped acme (schema acme)\n")
    ours = "quart-tenants" if program == OURS else "quart --app quart_tenants.app tenants"
    assert f"to bring one back: {ours} undrop SLUG" in done.stderr
    assert (back.returncode, back.stdout) == (0, "brought back acme (schema acme, at acme.localhost)\n")


@pytest.mark.parametrize(("program", "arguments", "status", "reason"), BAD)
def test_command_says_its_error(
    module_database_url: str, program: list[str | Path], arguments: list[str], status: int, reason: str
) -> None:
    """A command that failed says why on stderr, nothing on stdout, ends with 1 or 2, and shows no traceback."""
    done = run(program, *arguments, QUART_TENANTS_DATABASE_URL=module_database_url)

    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert status == 2 or done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["init"], ["list"]])
def test_wrong_setting_is_one_line(command: list[str]) -> None:
    """A wrong setting ends the program with its name, the remedy and no password."""
    done = run_cold(OURS, *command, QUART_TENANTS_DATABASE_URL="mysql://me:sesame@host/x")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: TENANTS_DATABASE_URL must be a URL such as postgresql://user:password@host:5432/database\n"
    )


# In a terminal


async def test_list_is_a_table_in_a_terminal(database: Database, settings: Settings) -> None:
    """A person gets columns with a heading, and each name as it is: none of it is markup."""
    await create_tenant(database, parse_slug("newco"), "[/x] [red]Co[/red] :smile:", settings=settings)

    with open_terminal("list", QUART_TENANTS_DATABASE_URL=settings.required_database_url) as terminal:
        assert terminal.wait() == 0

    lines = [re.split(" {2,}", line.strip()) for line in terminal.screen.splitlines()]
    assert ["newco", "newco", "[/x] [red]Co[/red] :smile:", "0001", "active"] in lines
    assert all(word in terminal.screen for word in ("tenant", "schema", "name", "version", "state"))


async def test_drop_asks_for_the_name(database: Database, settings: Settings, tmp_path: Path) -> None:
    """Who types the tenant's name drops it; the question does not mix with the result."""
    results = tmp_path / "results"
    url = settings.required_database_url

    with open_terminal("drop", "acme", stdout=results, QUART_TENANTS_DATABASE_URL=url) as terminal:
        terminal.wait_for("This stops serving acme. Type its name to go on")
        terminal.type("acme\n")
        assert terminal.wait() == 0

    assert results.read_text() == "dropped acme (schema acme)\n"
    assert "acme" not in await list_slugs(database)


async def test_drop_by_another_name_drops_nothing(database: Database, settings: Settings) -> None:
    """Any other answer ends with status 1 and leaves the tenant alone."""
    with open_terminal("drop", "acme", QUART_TENANTS_DATABASE_URL=settings.required_database_url) as terminal:
        terminal.wait_for("go on: ")
        terminal.type("yes\n")
        assert terminal.wait() == 1

    assert "Error: that is not acme; nothing was done" in terminal.screen
    assert "acme" in await list_slugs(database)


async def test_ctrl_c_drops_nothing(database: Database, settings: Settings) -> None:
    """Ctrl-C instead of an answer ends with status 1 and leaves the tenant alone."""
    with open_terminal("drop", "acme", QUART_TENANTS_DATABASE_URL=settings.required_database_url) as terminal:
        terminal.wait_for("go on: ")
        terminal.interrupt()
        assert terminal.wait() == 1

    assert "Traceback" not in terminal.screen
    assert "acme" in await list_slugs(database)


async def test_user_add_asks_for_the_password_twice(database: Database, settings: Settings, tmp_path: Path) -> None:
    """The password is asked for twice, not shown, and works afterwards."""
    results = tmp_path / "results"
    url = settings.required_database_url

    with open_terminal("user", "add", "acme", "ann", stdout=results, QUART_TENANTS_DATABASE_URL=url) as terminal:
        terminal.wait_for("Password: ")
        terminal.type("sesame\n")
        terminal.wait_for("Once more: ")
        terminal.type("sesame\n")
        assert terminal.wait() == 0

    stored = await find_hash(database, "acme", "ann")
    assert argon2.verify("sesame", stored)
    assert "sesame" not in terminal.screen
    assert results.read_text() == "added ann to acme\n"


async def test_user_add_asks_until_there_is_a_password(database: Database, settings: Settings) -> None:
    """An empty password and one that was mistyped once are asked for again; Ctrl-C ends the asking."""
    with open_terminal(
        "user", "add", "acme", "ann", QUART_TENANTS_DATABASE_URL=settings.required_database_url
    ) as terminal:
        terminal.wait_for("Password: ")
        terminal.type("\n")
        terminal.wait_for("Password: ")
        terminal.type("sesame\n")
        terminal.wait_for("Once more: ")
        terminal.type("seasme\n")
        terminal.wait_for("do not match")
        terminal.wait_for("Password: ")
        terminal.interrupt()
        assert terminal.wait() == 1

    assert "Aborted!" in terminal.screen
    assert "Traceback" not in terminal.screen
    assert await find_hash(database, "acme", "ann") is None


async def test_user_add_asks_for_no_password_in_vain(database: Database, settings: Settings) -> None:
    """Where the tenant does not exist, nobody has to type a password first."""
    with open_terminal(
        "user", "add", "newco", "ann", QUART_TENANTS_DATABASE_URL=settings.required_database_url
    ) as terminal:
        assert terminal.wait() == 1

    assert terminal.screen == "Error: no tenant answers at 'newco'\n"
