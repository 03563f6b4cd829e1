"""The docstrings of public names: arguments, units, errors, and examples that are right."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import quart_tenants
import quart_tenants.console
import quart_tenants.sqlalchemy
import quart_tenants.testing
from quart_tenants import Connection, Row, RowJSONProvider, admin
from quart_tenants import audit as audit_module
from quart_tenants.admin import Database, Settings
from quart_tenants.testing import TenantClient

PACKAGE = Path(quart_tenants.__file__).parent
PUBLIC: dict[str, tuple[ModuleType, object]] = {
    f"{module.__name__}.{name}": (module, getattr(module, name))
    for module in (quart_tenants, admin, quart_tenants.console, quart_tenants.testing, quart_tenants.sqlalchemy)
    for name in module.__all__
} | {"quart_tenants.audit.audit": (audit_module, audit_module.audit)}
FUNCTIONS = {name: found for name, (_, found) in PUBLIC.items() if inspect.isfunction(found)}
# Those of the classes that are another library's are left out: Quart's client of tests, its JSON, and the driver's.
METHODS = {
    f"{name}.{method}": getattr(found, method)
    for name, (_, found) in PUBLIC.items()
    if inspect.isclass(found) and found not in (Connection, Row, RowJSONProvider, TenantClient)
    for method, function in vars(found).items()
    if not method.startswith("_") and inspect.isroutine(function)
}
# What a number of an argument counts. Every such argument says one of these words.
UNITS = re.compile(r"seconds|days|tenants|failures|connections|bytes|rows|version|counter", re.IGNORECASE)

# What the examples take for granted.
PRELUDE = """
import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from quart import Quart, Response, redirect, request, websocket
from quart.typing import ResponseReturnValue
from sqlalchemy import text

from quart_tenants import *
from quart_tenants.admin import *
from quart_tenants.audit import audit
from quart_tenants.console import make_blueprint
from quart_tenants.sqlalchemy import *
from quart_tenants.testing import *

app: Quart
tenants: QuartTenants
database: Database
settings: Settings
ada: TenantClient
eve: TenantClient


async def is_password_right(name: str) -> bool:
    return False
"""


def read_docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the names that a module defines, each with its docstring; a variable's stands below it."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = after.value if isinstance(after, ast.Expr) else None
            text = value.value if isinstance(value, ast.Constant) else ""
            yield node.targets[0].id, inspect.cleandoc(str(text))


def find_docstrings() -> dict[str, str]:
    """Return the docstring of each public name, from where it is defined."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for short, docstring in read_docstrings(path):
            for name, (_, public) in PUBLIC.items():
                if name.rpartition(".")[2] == short and short not in found:
                    module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
                    if getattr(module, short) is public:
                        found[name] = docstring
    return found


DOCSTRINGS = find_docstrings()


def find_example(docstring: str) -> str | None:
    """Return the code of the example in *docstring*, or None."""
    section = re.search(r"^Example:\n((?: {4}.*\n?|\n)+)", docstring, re.MULTILINE)
    if section is None:
        return None
    code = textwrap.dedent(section[1]).strip()
    return re.sub(r"^```python\n|\n```$", "", code)


def find_unexplained(function: object, docstring: str) -> list[str]:
    """Return the arguments of *function* of which *docstring* says nothing, and numbers without a unit."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", docstring, re.MULTILINE)
    described = re.split(r"^ {4}(\w+): ", section[1] if section else "", flags=re.MULTILINE)[1:]
    arguments = dict(zip(described[::2], described[1::2], strict=True))
    missing = []
    for name, parameter in inspect.signature(function).parameters.items():  # type: ignore[arg-type]
        text = arguments.get(name, docstring if f"*{name}*" in docstring else "")
        is_number = re.search(r"\b(int|float)\b", str(parameter.annotation)) and "Callable" not in str(
            parameter.annotation
        )
        if not text or (is_number and not UNITS.search(text)):
            missing.append(name)
    return missing


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_an_example(name: str) -> None:
    """The docstring of every public name shows how it is used."""
    assert find_example(DOCSTRINGS[name])


@pytest.mark.parametrize("name", FUNCTIONS | METHODS)
def test_public_function_explains_its_arguments(name: str) -> None:
    """A docstring says something of every argument, and what a number counts."""
    # These say by their names and types what they are, and are the same everywhere.
    known = {"self", "database", "settings", "slug", "connection", "error", "view"}
    function = (FUNCTIONS | METHODS)[name]

    assert set(find_unexplained(function, inspect.getdoc(function) or "")) - known == set()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_function_names_its_errors(name: str) -> None:
    """A docstring says what is raised, or that nothing is."""
    assert re.search(r"\b[Rr]aise[sd]?\b", DOCSTRINGS[name])


def test_argument_without_an_explanation_is_found() -> None:
    """Negative control: an argument that is left out, and a number without a unit, are seen."""

    def wait(longest: float, *, name: str) -> None:
        del longest, name

    assert find_unexplained(wait, "Wait.\n\nArgs:\n    longest: How long.\n") == ["longest", "name"]
    assert find_unexplained(wait, "Wait for *name*.\n\nArgs:\n    longest: In seconds.\n") == []
    assert find_example("Wait.\n\nFor example.\n") is None


# The examples are right.

EXAMPLES = {name: find_example(docstring) or "" for name, docstring in DOCSTRINGS.items()}
SESSIONS = [name for name, code in EXAMPLES.items() if code.startswith(">>>")]
TYPED = [name for name in EXAMPLES if name not in SESSIONS]
ON_DATABASE = [name for name in TYPED if name.startswith("quart_tenants.admin.")]


@pytest.mark.parametrize("name", SESSIONS)
def test_session_of_an_example_answers_as_written(name: str) -> None:
    """What stands after `>>>` gives what stands below it."""
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, None, None)

    assert doctest.DocTestRunner().run(test).failed == 0


def check_types(folder: Path, cache: Path, examples: dict[str, str]) -> str:
    """Return what mypy says about *examples*, each of which stands in a function of its own."""
    functions = [
        f"async def example_{number}() -> None:  # {name}\n{textwrap.indent(code, '    ')}\n"
        for number, (name, code) in enumerate(examples.items())
    ]
    (folder / "examples.py").write_text("\n\n".join([PRELUDE, *functions]), encoding="utf-8")
    (folder / "mypy.ini").write_text("[mypy]\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "mypy.ini", "--cache-dir", cache, "examples.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_types_of_the_examples_fit(tmp_path: Path, cache: pytest.Cache) -> None:
    """`mypy --strict` finds nothing in the examples: their names exist, and their arguments fit."""
    # mypy itself sees which files have changed since the last run of the tests.
    known = cache.mkdir("mypy_of_examples")
    assert check_types(tmp_path, known, {name: EXAMPLES[name] for name in TYPED}).startswith("Success")

    # Negative control: a name that does not exist, and an argument that does not fit.
    wrong = {"a": "await no_such_function()", "b": "await suspend_tenant(database, 7)"}
    said = check_types(tmp_path, known, wrong)
    assert "no_such_function" in said
    assert "arg-type" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_DATABASE)
async def test_example_runs_on_a_database(
    name: str, database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the examples for operators do, they do on a real database with a tenant `acme`."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(PRELUDE, names)  # noqa: S102  (The examples are our own.)
    names |= {"database": database, "settings": settings}
    code = compile(EXAMPLES[name], name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    running = eval(code, names)  # noqa: S307
    if inspect.isawaitable(running):
        await running
