"""What follows a change of a tenant: hooks of the app, and a folder for each tenant."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from quart import Quart
from quart.cli import ScriptInfo

from quart_tenants import QuartTenants, TenantEvent, current_tenant, tenant_connection
from quart_tenants.admin import get_tenant, parse_slug
from quart_tenants.errors import HookFailedError, InvalidPathError, NoTenantError
from quart_tenants.tenant import Slug
from quart_tenants.web.context import working_for
from quart_tenants.web.tenant_files import TenantFiles
from tests.support.databases import REFERENCE_FILES, execute
from tests.support.patience import wait_until
from tests.web.commands.runs import Outcome

pytestmark = pytest.mark.slow

Told = list[tuple[str, str, int | None, str | None]]
KINDS = ("created", "copied", "restored", "renamed", "dropped", "purged")


def make_app(database_url: str) -> tuple[Quart, QuartTenants]:
    """Return an app without pages."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url, TENANTS_TRASH_DAYS=0)
    return app, QuartTenants(app)


class CommandLine:
    """Runs `quart --app … tenants …` for one app in this process."""

    def __init__(self, app: Quart, tenants: QuartTenants, capsys: pytest.CaptureFixture[str]) -> None:
        self._app = app
        self._tenants = tenants
        self._capsys = capsys

    def run(self, *arguments: str) -> Outcome:
        """Return what the command left."""
        self._capsys.readouterr()
        script = ScriptInfo(create_app=lambda: self._app)
        with pytest.raises(SystemExit) as caught:
            self._tenants.commands.main(list(arguments), prog_name="tenants", obj=script)
        out, err = self._capsys.readouterr()
        return Outcome(caught.value.code if isinstance(caught.value.code, int) else 1, out, err)


@pytest.fixture
def app(database_url: str) -> tuple[Quart, QuartTenants]:
    """An app and its extension."""
    return make_app(database_url)


@pytest.fixture
def commands(
    app: tuple[Quart, QuartTenants], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    """The commands of the app."""
    monkeypatch.setenv("QUART_TENANTS_AUDIT", "false")
    return CommandLine(*app, capsys)


@pytest.fixture
def told(app: tuple[Quart, QuartTenants]) -> Told:
    """What the hooks of every kind are told, in order."""
    told: Told = []

    def note(kind: str) -> None:
        def hook(event: TenantEvent) -> None:
            told.append((kind, event.slug, event.source_id, event.former_slug))

        getattr(app[1], f"on_{kind}")(hook)

    for kind in KINDS:
        note(kind)
    return told


# Hooks


async def test_sign_up_that_takes_a_ready_tenant_is_told(
    app: tuple[Quart, QuartTenants], told: Told, database_url: str
) -> None:
    """A served app makes tenants in advance and calls its hooks when one is taken; a script makes none."""
    tenants = app[1]
    tenants.settings = replace(tenants.settings, ready_tenants=1)

    async def count() -> int:
        async with tenants.database.connection() as connection:
            return int(await connection.fetchval("SELECT coalesce(max(id), 0) FROM quart_tenants.ready_schemas"))

    async with app[0].app_context(), tenants.running():
        assert await count() == 0
    async with app[0].test_app():
        await wait_until(lambda: reaches(count, 1))
        await tenants.create("newco")
        await wait_until(lambda: reaches(count, 2))

    assert told == [("created", "newco", None, None)]


async def reaches(count: Callable[[], Awaitable[int]], number: int) -> bool:
    """Return whether *count* is *number* at least."""
    return await count() >= number


def test_commands_tell_the_app_what_they_did(commands: CommandLine, told: Told, tmp_path: Path) -> None:
    """Each change is told once, after it is saved."""
    for arguments in (
        ["create", "newco"],
        ["rename", "newco", "zenith"],
        ["create", "twin", "--from", "acme"],
        ["backup", "acme", "-o", str(tmp_path / "acme.tar")],
        ["restore", str(tmp_path / "acme.tar"), "--as", "again"],
        ["drop", "zenith", "--yes"],
        ["undrop", "zenith"],
        ["drop", "zenith", "--yes"],
        ["purge", "--yes"],
    ):
        outcome = commands.run(*arguments)
        assert outcome.status == 0, outcome

    assert told == [
        ("created", "newco", None, None),
        ("renamed", "zenith", None, "newco"),
        ("copied", "twin", 1, None),
        ("restored", "again", None, None),
        ("dropped", "zenith", None, None),
        ("dropped", "zenith", None, None),
        ("purged", "zenith", None, None),
    ]


def test_lists_are_told_tenant_by_tenant(
    commands: CommandLine, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So are adopted schemas."""
    (tmp_path / "list.csv").write_text("slug\none\ntwo\n")
    assert commands.run("create-many", str(tmp_path / "list.csv")).status == 0

    assert sorted(told) == [("created", "one", None, None), ("created", "two", None, None)]


def test_list_that_fails_in_the_middle_tells_of_what_it_made(
    commands: CommandLine, told: Told, tmp_path: Path, database_url: str
) -> None:
    """The next run skips these tenants, so nobody else would."""
    asyncio.run(
        execute(
            database_url,
            "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$",
            "CREATE TRIGGER refuse BEFORE INSERT ON quart_tenants.tenants FOR EACH ROW WHEN (NEW.slug = 'three')"
            " EXECUTE FUNCTION public.refuse()",
        )
    )
    (tmp_path / "list.csv").write_text("slug\none\ntwo\nthree\n")

    outcome = commands.run("create-many", str(tmp_path / "list.csv"), "--jobs", "1")

    assert outcome.status == 1
    assert "not today" in outcome.err
    assert told == [("created", "one", None, None), ("created", "two", None, None)]


def test_adopted_schemas_are_all_named_and_told_although_a_hook_fails(
    commands: CommandLine, app: tuple[Quart, QuartTenants], told: Told, database_url: str
) -> None:
    """All of them were registered before."""
    app[1].on_created(lambda event: 1 / 0 if event.slug == "first" else None)
    asyncio.run(execute(database_url, "CREATE SCHEMA first", "CREATE SCHEMA second"))

    outcome = commands.run("adopt", "first", "second", "--at-version", "0")

    assert outcome.status == 1
    assert [line.split()[1] for line in outcome.out.splitlines()] == ["first", "second"]
    assert "1 of 2 tenants failed" in outcome.err
    assert told == [("created", "first", None, None), ("created", "second", None, None)]


def test_hook_may_use_the_new_tenants_tables(commands: CommandLine, app: tuple[Quart, QuartTenants]) -> None:
    """In a command the app runs for its hooks."""
    rows = []

    @app[1].on_created
    async def read(event: TenantEvent) -> None:
        assert event.tenant is not None
        async with tenant_connection(event.tenant) as connection:
            rows.append(await connection.fetchval("SELECT current_schema()"))

    assert commands.run("create", "newco").status == 0
    assert rows == ["newco"]


def test_hook_that_raises_undoes_nothing_and_stops_no_other(
    commands: CommandLine, app: tuple[Quart, QuartTenants], caplog: pytest.LogCaptureFixture
) -> None:
    """The command names the hook and ends with status 1; the log has the traceback."""
    ran = []

    @app[1].on_created
    async def break_down(event: TenantEvent) -> None:
        raise LookupError("no room")

    @app[1].on_created
    def go_on(event: TenantEvent) -> None:
        ran.append(event.slug)

    outcome = commands.run("create", "newco")

    assert outcome.status == 1
    assert outcome.out.startswith("created newco")
    assert "tenant 'newco' was created, and that stays" in outcome.err
    assert "break_down" in outcome.err
    assert ran == ["newco"]
    assert "no room" in caplog.text
    assert "newco" in commands.run("list").out


async def test_sign_up_calls_the_hooks_too(
    app: tuple[Quart, QuartTenants], told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook that fails does not fail the sign-up."""
    quart, tenants = app
    tenants.on_created(lambda _: 1 / 0)
    async with quart.app_context(), tenants.running():
        tenant = await tenants.create("newco")

    assert tenant.slug == "newco"
    assert told == [("created", "newco", None, None)]
    assert "ZeroDivisionError" in caplog.text


async def test_cancelled_hook_is_no_failed_one(app: tuple[Quart, QuartTenants]) -> None:
    """Only exceptions are collected."""
    app[1].on_dropped(lambda _: sys.exit(3))
    event = TenantEvent(1, Slug("acme"))

    with pytest.raises(SystemExit):
        await app[1].run_hooks("dropped", event)


async def test_failed_hooks_are_named(app: tuple[Quart, QuartTenants]) -> None:
    """The error has the names of all that failed."""
    for _ in range(2):
        app[1].on_purged(lambda _: 1 / 0)

    with pytest.raises(HookFailedError, match=r"<lambda>, .*<lambda>"):
        await app[1].run_hooks("purged", TenantEvent(1, Slug("acme")))


# Folders


@pytest.fixture
async def files(app: tuple[Quart, QuartTenants], tmp_path: Path) -> AsyncIterator[TenantFiles]:
    """The folders of all tenants, while acme is the current tenant."""
    quart, tenants = app
    async with quart.app_context(), tenants.running():
        with working_for(await get_tenant(tenants.database, parse_slug("acme"))):
            yield tenants.files(tmp_path / "files")


async def test_each_tenant_has_a_folder(files: TenantFiles, tmp_path: Path) -> None:
    """It is named by the tenant's number, and the folders above a file are made."""
    path = files.get_path("invoices/2026/7 ä.pdf")
    path.write_text("paid")

    assert path == tmp_path / "files" / str(current_tenant.id) / "invoices" / "2026" / "7 ä.pdf"


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "..", "/etc/passwd", "//x", "", ".", "a\0b", "..\\x", "C:\\x", "x" * 300, "link/x", "file/x"],
)
async def test_no_name_leads_out_of_the_folder(files: TenantFiles, tmp_path: Path, name: str) -> None:
    """Also not by a link that lies in it, nor by a name that the file system refuses."""
    files.get_path("file").write_text("")
    (files.get_folder() / "link").symlink_to(tmp_path)

    with pytest.raises(InvalidPathError):
        files.get_path(name)


async def test_folder_needs_a_tenant(app: tuple[Quart, QuartTenants], tmp_path: Path) -> None:
    """There is no common folder."""
    async with app[0].app_context():
        with pytest.raises(NoTenantError):
            app[1].files(tmp_path).get_path("x")


def test_folder_is_copied_kept_and_deleted_with_its_tenant(
    commands: CommandLine, app: tuple[Quart, QuartTenants], tmp_path: Path
) -> None:
    """A copy has the files, a dropped tenant keeps them, the purge deletes them, and nobody else's change."""
    app[1].files(tmp_path)
    for number in ("1", "2"):
        (tmp_path / number / "a").mkdir(parents=True)
        (tmp_path / number / "a" / "b.txt").write_text(number)

    assert commands.run("create", "twin", "--from", "acme").status == 0
    copies = [path for path in tmp_path.glob("*/a/b.txt") if path.parts[-3] not in ("1", "2")]
    assert [path.read_text() for path in copies] == ["1"]
    assert commands.run("drop", "acme", "--yes").status == 0
    assert (tmp_path / "1" / "a" / "b.txt").exists()
    assert commands.run("purge", "acme", "--yes").status == 0

    assert not (tmp_path / "1").exists()
    assert (tmp_path / "2" / "a" / "b.txt").read_text() == "2"
    assert copies[0].read_text() == "1"
