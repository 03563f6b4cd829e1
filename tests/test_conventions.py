"""What the style guide promises and no other tool checks: names, errors, and pages that say what the code says."""

import ast
import builtins
import inspect
import re
from collections.abc import Iterator
from dataclasses import Field, fields
from http import HTTPStatus
from pathlib import Path
from types import ModuleType

import asyncpg
import asyncpg.pool
import asyncpg.prepared_stmt
import asyncpg.transaction
import click
import pytest

import quart_tenants
from quart_tenants import admin, errors
from quart_tenants.app import create_app
from quart_tenants.app.cli import main
from quart_tenants.errors import TenantError
from quart_tenants.settings import Settings, get_key
from quart_tenants.web.commands.group import tenant_commands

PUBLIC = (quart_tenants, admin)
PACKAGE = Path(quart_tenants.__file__).parent
ROOT = Path(__file__).parents[1]
BANNED = frozenset({"utils", "helpers", "common", "core", "base", "manager", "misc", "info"})
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

ERRORS = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, TenantError)]
CONCRETE_ERRORS = [error for error in ERRORS if error is not TenantError]


def name_file(path: Path) -> str:
    """Return *path* from the top of the repository on."""
    return path.relative_to(ROOT).as_posix()


def read_rows(page: str) -> dict[str, list[str]]:
    """Return the rows of all tables in a page of docs/, by what stands in backticks in their first cell."""
    rows = {}
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
            rows[cells[0].strip("`")] = cells[1:]
    return rows


# Modules


# Each of these reads hundreds of files. They are no tests of their own, because one costs more than reading the file.


def begins_with_one_sentence(path: Path) -> bool:
    """Return whether line 1 of the file is the first line of its docstring, and ends with a period."""
    text = path.read_text(encoding="utf-8")
    first_line = text.partition("\n")[0]
    return bool(
        ast.get_docstring(ast.parse(text))
        and first_line.startswith('"""')
        and first_line.removesuffix('"""').endswith(".")
    )


def test_module_begins_with_one_sentence() -> None:
    """Line 1 of every module says in one sentence what is in it."""
    assert [name_file(path) for path in MODULES + TESTS if not begins_with_one_sentence(path)] == []


def test_module_has_a_name_that_says_something() -> None:
    """No module and no folder has a name under which anything could be put."""
    files = MODULES + TESTS

    assert [name_file(path) for path in files if BANNED & {*path.relative_to(ROOT).parts, path.stem}] == []


def test_package_does_not_assert() -> None:
    """`python -O` leaves every `assert` out, so the package has none."""
    assert [
        f"{name_file(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ] == []


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_sorted_and_defined(module: ModuleType) -> None:
    """Each list of public names is in order, names each once, and every name can be imported."""
    assert module.__all__ == sorted(set(module.__all__))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_public_name_has_one_module() -> None:
    """An app's daily names and an operator's names are apart; only errors are in two modules."""
    assert not set(quart_tenants.__all__) & set(admin.__all__)
    assert not set(admin.__all__) & set(vars(errors))
    assert len(quart_tenants.__all__) <= 35


def list_documented_errors() -> Iterator[tuple[str, str]]:
    """Yield each public callable, with each error of a `Raises:` section in its docstring."""
    for module in PUBLIC:
        for name in module.__all__:
            public = vars(module)[name]
            members = vars(public).values() if inspect.isclass(public) else ()
            for documented in (public, *members):
                docstring = inspect.getdoc(documented) if callable(documented) else None
                section = re.search(r"^Raises:\n((?: +.*\n?|\n)*)", docstring or "", re.MULTILINE)
                for head in re.findall(r"^ {4}(?! )([\w, \n]+):", section[1] if section else "", re.MULTILINE):
                    for error in re.findall(r"\w+", head):
                        yield f"{module.__name__}.{name}", error


def test_errors_that_public_names_raise_are_public() -> None:
    """Every error in a `Raises:` section of something public is in `quart_tenants.errors`, or Python's own."""
    documented = list(list_documented_errors())

    assert len(documented) > 100
    assert [pair for pair in documented if not hasattr(errors, pair[1]) and not hasattr(builtins, pair[1])] == []


# Errors


@pytest.mark.parametrize("error", CONCRETE_ERRORS)
def test_error_has_a_status(error: type[TenantError]) -> None:
    """Each class says by itself how it is answered."""
    assert HTTPStatus(vars(error)["status"]) >= HTTPStatus.BAD_REQUEST


def test_module_of_errors_holds_errors_only() -> None:
    """Every name that `from quart_tenants.errors import *` brings is an error."""
    # pytest adds two names of its own to the modules of a plugin's project.
    assert {name for name in vars(errors) if not name.startswith(("_", "@"))} == {error.__name__ for error in ERRORS}


def test_error_codes_differ() -> None:
    """Each error has a code of its own: programs tell them apart by it."""
    codes = [error.code for error in ERRORS]

    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("error", ERRORS)
def test_error_is_named_as_one(error: type[TenantError]) -> None:
    """A class ends in Error, and gives itself a code in lower case."""
    assert error.__name__.endswith("Error")
    assert "code" in vars(error)
    assert error.code.replace("_", "").isalpha()
    assert error.code == error.code.lower()


@pytest.mark.parametrize("error", ERRORS)
def test_error_explains_itself_in_one_sentence(error: type[TenantError]) -> None:
    """The docstring is one sentence that a visitor may read."""
    docstring = vars(error)["__doc__"]

    assert docstring
    first_line = docstring.partition("\n")[0]
    assert first_line[0].isupper()
    assert first_line.endswith(".")
    assert first_line.count(". ") == 0


@pytest.mark.parametrize("error", CONCRETE_ERRORS)
def test_error_is_documented(error: type[TenantError]) -> None:
    """`docs/errors.md` has each code with its class, its status and its sentence."""
    sentence = (error.__doc__ or "").partition("\n")[0]

    assert read_rows("errors.md").get(error.code) == [f"`{error.__name__}`", str(error.status), sentence]


def test_documented_errors_exist() -> None:
    """`docs/errors.md` has no code that is gone."""
    assert set(read_rows("errors.md")) == {error.code for error in CONCRETE_ERRORS}


# Settings


def describe_default(value: object) -> str:
    """Return how the documentation writes a default."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, frozenset):
        value = tuple(sorted(value))
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if isinstance(value, float):
        value = f"{value:g}"
    return f"`{value}`" if value != "" else "none"


@pytest.mark.parametrize("setting", fields(Settings), ids=get_key)
def test_setting_is_documented(setting: "Field[object]") -> None:
    """`docs/settings.md` has each key with its default, its unit and its purpose."""
    default, unit, purpose = read_rows("settings.md")[get_key(setting)]

    assert default == describe_default(setting.default)
    assert unit
    assert purpose.endswith(".")


def test_documented_settings_exist() -> None:
    """`docs/settings.md` has no key that is gone."""
    documented = {key for key in read_rows("settings.md") if key.startswith("TENANTS_")}

    assert documented == {get_key(setting) for setting in fields(Settings)}


# Commands


def walk(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield each command that does something, with its path below the program."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from walk(command, f"{above}{name} ")
        else:
            yield f"{above}{name}", command


@pytest.mark.parametrize(("path", "command"), list(walk(main)), ids=str)
def test_command_is_documented(path: str, command: click.Command) -> None:
    """`docs/commands.md` has each command with all its arguments and options."""
    (usage,) = [row for row in read_rows("commands.md") if f"{row} ".startswith(f"{path} ")]

    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[0] in usage
        else:
            assert parameter.human_readable_name.rstrip(".").upper() in usage.upper().replace("…", "...")


def test_documented_commands_exist() -> None:
    """`docs/commands.md` has no command that is gone."""
    paths = [path for path, _ in walk(main)]

    assert [
        row for row in read_rows("commands.md") if not any(f"{row} ".startswith(f"{path} ") for path in paths)
    ] == []


def test_app_has_every_command_about_tenants() -> None:
    """What `quart tenants` offers, `quart-tenants` offers too, as the same command."""
    ours = dict(walk(main))

    assert {path: ours.get(path) for path, _ in walk(tenant_commands())} == dict(walk(tenant_commands()))


# The reference app


def test_routes_of_the_reference_app_are_documented() -> None:
    """`docs/reference-app.md` has each route, and none that is gone."""
    routes = {
        f"{method} {rule.rule.partition('|')[2] or rule.rule}"
        for rule in create_app().url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }

    assert set(read_rows("reference-app.md")) == routes


# Promises


def test_promises_are_held_by_tests_that_exist() -> None:
    """`docs/security.md` names only tests and benchmarks that are there."""
    named = set(re.findall(r"`((?:tests|benchmarks)/[^`]+)`", (ROOT / "docs/security.md").read_text(encoding="utf-8")))

    assert len(named) > 1
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


# Only driver/ touches asyncpg's inside.

DRIVER = PACKAGE / "postgres" / "driver"
# Names that begin with an underscore and are asyncpg's: of its classes, and of the objects that it makes.
INSIDE = frozenset(
    name
    for kind in (
        asyncpg.Connection,
        asyncpg.Pool,
        asyncpg.pool.PoolConnectionHolder,
        asyncpg.pool.PoolConnectionProxy,
        asyncpg.prepared_stmt.PreparedStatement,
        asyncpg.transaction.Transaction,
    )
    for name in (*vars(kind), *getattr(kind, "__slots__", ()))
    if name.startswith("_") and not name.startswith("__")
)


def find_inside_of_asyncpg(source: str) -> list[str]:
    """Return the names of asyncpg's inside that *source* imports, uses on another object than self, or overrides."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if re.match(r"asyncpg\.(.*\.)?(_|protocol)", each.name)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "asyncpg":
            inside = re.match(r"asyncpg\.(.*\.)?(_|protocol)", node.module or "") is not None
            found += [each.name for each in node.names if inside or each.name.startswith("_")]
        elif isinstance(node, ast.Attribute) and node.attr in INSIDE:
            # What a class of ours keeps on itself may be called as it likes.
            if not isinstance(node.value, ast.Name) or node.value.id not in ("self", "cls"):
                found.append(node.attr)
        elif isinstance(node, ast.ClassDef) and any("asyncpg" in ast.unparse(base).lower() for base in node.bases):
            members = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            found += [each.name for each in members if each.name in INSIDE]
            found += [
                each.attr
                for each in ast.walk(node)
                if isinstance(each, ast.Attribute) and each.attr in INSIDE and ast.unparse(each.value) == "self"
            ]
    return found


def test_only_the_driver_touches_the_inside_of_asyncpg() -> None:
    """Names of asyncpg's that begin with an underscore are used and overridden in one room."""
    others = [path for path in MODULES if DRIVER not in path.parents]
    found = {name_file(path): find_inside_of_asyncpg(path.read_text(encoding="utf-8")) for path in others}

    assert len(others) > 200
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import asyncpg.protocol.protocol",
        "from asyncpg.protocol import Protocol",
        "from asyncpg.connection import _ConnectionProxy",
        "connection._con.fetch('SELECT 1')",
        "pool._holders[0]._con",
        "class Mine(asyncpg.Connection):\n    async def _execute(self): ...",
        "class Mine(asyncpg.Connection):\n    def go(self): return self._protocol",
    ],
)
def test_inside_of_asyncpg_is_found(source: str) -> None:
    """Negative control: the check sees an import, a use and an override."""
    assert find_inside_of_asyncpg(source)


def test_plain_connection_needs_nothing_of_the_inside() -> None:
    """What serves with any asyncpg uses no name of its inside."""
    source = (DRIVER / "plain_connection.py").read_text(encoding="utf-8")

    assert find_inside_of_asyncpg(source) == []
