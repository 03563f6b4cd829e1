"""What an adopter's tools see of the package: help, mocks, doctests, type checkers, and Quart's commands."""

import os
import pydoc
import subprocess
import sys
import sysconfig
import unittest.mock
import venv
from pathlib import Path

import pytest
from quart.cli import find_best_app

import quart_tenants
from quart_tenants import NoTenantError, Tenant, current_tenant

pytestmark = pytest.mark.slow

APP = '''
"""An adopter's app."""

from quart import Quart

from quart_tenants import Connection, QuartTenants, current_tenant, tenant_connection


async def count_notes(connection: Connection) -> int:
    """Return how many notes the current tenant has."""
    rows = await connection.fetch("SELECT count(*) AS number FROM notes")
    return int(rows[0]["number"])


def create_app() -> Quart:
    """Return the app.

    >>> create_app().name
    'notes'
    """
    app = Quart(__name__, host_matching=True, static_folder=None)
    tenants = QuartTenants(app)

    @app.get("/notes", host=tenants.host)
    async def list_notes() -> dict[str, object]:
        async with tenant_connection() as connection:
            number = await count_notes(connection)
        return {"tenant": current_tenant.name, "number": number}

    return app
'''
TYPES = """
from quart_tenants import tenant_connection
from quart_tenants.admin import Database
from quart_tenants.tenant import Tenant


async def look(database: Database, tenant: Tenant) -> None:
    async with tenant_connection() as connection:
        reveal_type(connection)
    async with database.tenant_connection(tenant) as connection:
        reveal_type(await connection.fetch("SELECT"))
        connection.no_such_method()
"""
TEST_CASE = """
import unittest

from notes import create_app, current_tenant


class NotesTest(unittest.TestCase):
    def test_app_has_a_name(self) -> None:
        self.assertEqual(create_app().name, "notes")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an adopter's app, which imports `current_tenant` at its top."""
    (tmp_path / "notes.py").write_text(APP, encoding="utf-8")
    (tmp_path / "test_notes.py").write_text(TEST_CASE, encoding="utf-8")
    return tmp_path


def run(folder: Path, *command: str) -> str:
    """Run a module of Python in *folder*, and return what it said, if it succeeded."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# The tenant outside of requests


def test_current_tenant_outside_a_request_is_an_error() -> None:
    """Without a request nothing can be read from `current_tenant`."""
    with pytest.raises(NoTenantError):
        _ = current_tenant.slug


def test_current_tenant_can_be_asked_for_its_type_anywhere() -> None:
    """`isinstance` answers outside of requests, too, where no tenant is there."""
    assert not isinstance(current_tenant, Tenant)


def test_help_describes_the_package() -> None:
    """`help(quart_tenants)` ends without an error."""
    assert "tenant_connection" in pydoc.render_doc(quart_tenants)


def test_current_tenant_can_be_patched() -> None:
    """`mock.patch` takes `current_tenant` out of a module and puts it back."""
    with unittest.mock.patch("quart_tenants.current_tenant") as patched:
        assert quart_tenants.current_tenant is patched

    assert quart_tenants.current_tenant is current_tenant


def test_unittest_loads_a_module_with_current_tenant(folder: Path) -> None:
    """`python -m unittest` finds and runs the tests of a module that imports `current_tenant`."""
    assert "Ran 1 test" in run(folder, "unittest", "-v", "test_notes")


def test_doctests_of_a_module_with_current_tenant_run(folder: Path) -> None:
    """`pytest --doctest-modules` finds and runs the examples of a module that imports `current_tenant`."""
    told = run(folder, "pytest", "-p", "no:cacheprovider", "--rootdir", str(folder), "--doctest-modules", "notes.py")

    assert "1 passed" in told


def test_quart_finds_the_factory_of_a_module_with_current_tenant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`quart --app notes …` finds `create_app` although the module imports `current_tenant`."""
    monkeypatch.syspath_prepend(folder)
    # The example has a module of this name, and its tests may be in this run.
    monkeypatch.delitem(sys.modules, "notes", raising=False)
    module = __import__("notes")
    try:
        assert find_best_app(module).name == "notes"
    finally:
        del sys.modules["notes"]

    assert "/notes" in run(folder, "quart", "--app", "notes", "routes")


# Types


@pytest.fixture(scope="module")
def types_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mypy keeps what it knows: the second check looks only at what the types of asyncpg change."""
    return tmp_path_factory.mktemp("types")


@pytest.fixture(params=["with asyncpg-stubs", "without asyncpg-stubs"])
def python(types_folder: Path, request: pytest.FixtureRequest) -> Path:
    """A Python in which the package is installed as a wheel would be, with the types of asyncpg or without."""
    environment = types_folder / "environment"
    venv.create(environment, clear=True, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if installed.name.startswith("quart_tenants") or installed.suffix == ".pth":
            continue
        if request.param == "with asyncpg-stubs" or "stubs" not in installed.name:
            (packages / installed.name).symlink_to(installed)
    (packages / "quart_tenants").symlink_to(Path(quart_tenants.__file__).parent)
    return environment / "bin" / "python"


def test_adopters_app_is_checked_strictly(folder: Path, python: Path, types_folder: Path) -> None:
    """`mypy --strict` needs no exceptions for an adopter's app, and knows the type of the connection."""
    (folder / "look.py").write_text(TYPES, encoding="utf-8")
    empty = folder / "mypy.ini"
    empty.write_text("[mypy]\n", encoding="utf-8")

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file",
            empty,
            "--cache-dir",
            types_folder / "cache",
            "--python-executable",
            python,
            "notes.py",
            "look.py",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )

    assert not done.stderr
    assert done.stdout.replace("builtins.", "").splitlines() == [
        'look.py:9: note: Revealed type is "quart_tenants.connection.Connection"',
        'look.py:11: note: Revealed type is "list[quart_tenants.connection.Row]"',
        'look.py:12: error: "Connection" has no attribute "no_such_method"  [attr-defined]',
        "Found 1 error in 1 file (checked 2 source files)",
    ]
