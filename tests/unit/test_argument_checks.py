"""Public coroutines refuse what has not the type that they name, and say what to give instead."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import quart_tenants
from quart_tenants import Tenant, admin
from quart_tenants.admin import (
    Backup,
    Database,
    Domain,
    FleetPlan,
    Pipe,
    SchemaName,
    Settings,
    Slug,
    create_tenants,
    parse_domain,
    parse_schema_name,
    parse_slug,
    plan_fleet,
    rename_tenant,
)
from quart_tenants.argument_checks import check_arguments

URL = "postgresql://ada:sesame@db.test/notes"
ACME = Tenant(1, parse_slug("acme"), parse_schema_name("acme"), "Acme")
# What is wrong, by the type, and what the error must say.
WRONG: dict[object, tuple[list[object], str]] = {
    Slug: (["Acme Ltd", ACME, 7, b"acme"], "parse_slug(text)"),
    Domain: (["Shop.Acme.Test", "shop.acme.test:80", "192.0.2.1", 7], "parse_domain(text)"),
    SchemaName: (["acme", 7], "parse_schema_name(text)"),
    Tenant: (["acme", 7], "await get_tenant(database, parse_slug(text))"),
    Path: (["/srv/backups", 7], "pathlib.Path(text)"),
    Database: ([URL, None], "tenants.database, or await Database.open(settings)"),
    Settings: ([{}, URL], "tenants.settings, or read_settings(config)"),
    Pipe: (["age -r x"], "parse_pipe(command)"),
    Backup: (["acme.backup"], "read_backup(file)"),
    FleetPlan: ([[]], "await plan_fleet(database, settings=settings)"),
}
RIGHT: dict[object, object] = {
    Slug: parse_slug("acme"),
    Domain: parse_domain("shop.acme.test"),
    SchemaName: parse_schema_name("acme"),
    Tenant: ACME,
    Path: Path("/srv/backups"),
    str: "a text",
    int: 1,
}


def is_async(function: object) -> bool:
    """Return whether *function* is to be awaited, or is a block of `async with`."""
    inside = inspect.unwrap(function) if callable(function) else None
    return inspect.iscoroutinefunction(inside) or inspect.isasyncgenfunction(inside)


PUBLIC = {
    name: vars(module)[name]
    for module in (quart_tenants, admin)
    for name in module.__all__
    if inspect.isfunction(vars(module)[name]) and is_async(vars(module)[name])
}


CHECKED = {name: function for name, function in PUBLIC.items() if function.__code__.co_name == "checked"}


def find_kinds(hint: object) -> Iterator[object]:
    """Yield the types in *hint* that have wrong values in the table."""
    if get_origin(hint) is Callable:
        return
    if hint in WRONG:
        yield hint
    for inner in get_args(hint):
        yield from find_kinds(inner)


def make_right(hint: Any) -> object:
    """Return something that fits *hint*. Nothing is done with it."""
    if hint in RIGHT:
        return RIGHT[hint]
    if isinstance(hint, type):
        return object.__new__(hint)
    return {make_right(get_args(hint)[0]): make_right(get_args(hint)[1])} if len(get_args(hint)) == 2 else None


def list_cases() -> Iterator[tuple[str, str, object, str]]:
    """Yield each coroutine that checks, with each of its parameters, each wrong value of it, and the remedy."""
    for name, function in CHECKED.items():
        hints = get_type_hints(inspect.unwrap(function))
        for parameter in inspect.signature(function).parameters:
            for kind in find_kinds(hints[parameter]):
                values, remedy = WRONG[kind]
                for value in values:
                    is_plain = hints[parameter] is kind or type(None) in get_args(hints[parameter])
                    if is_plain and not (value is None and hints[parameter] is not kind):
                        yield name, parameter, value, remedy
                if "Collection" in str(hints[parameter]):
                    for value in ("acme", ["Acme Ltd"], [ACME], 7):
                        yield name, parameter, value, remedy
                elif "Mapping" in str(hints[parameter]):
                    for value in ("acme", ["acme"], {"Acme Ltd": "Acme"}, {7: "Acme"}):
                        yield name, parameter, value, remedy


CASES = list(list_cases())


@pytest.mark.parametrize(
    ("name", "parameter", "value", "remedy"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES]
)
def test_wrong_argument_is_named_with_its_remedy(name: str, parameter: str, value: object, remedy: str) -> None:
    """The error comes before anything is awaited, names the parameter, and tells no password."""
    function = CHECKED[name]
    hints = get_type_hints(inspect.unwrap(function))
    required = {
        one.name: make_right(hints[one.name])
        for one in inspect.signature(function).parameters.values()
        if one.default is inspect.Parameter.empty
    }

    with pytest.raises(TypeError) as caught:
        function(**required | {parameter: value})

    assert str(caught.value).startswith(f"{name}: {parameter} is of type ")
    assert remedy in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_every_public_coroutine_that_takes_such_a_value_checks() -> None:
    """A new coroutine is either checked or added here, where it takes texts, functions and errors alone."""
    assert len(CASES) > 100
    assert sorted(PUBLIC.keys() - CHECKED.keys()) == [
        *(
            "answer_tenant_error",
            "embed_json",
            "end_session",
            "for_each_tenant",
            "login_attempt",
            "start_session",
            "stream_rows",
        ),
    ]


def test_right_arguments_pass() -> None:
    """Every kind of collection is taken, either type of a union, a whole number of days, and what is left out."""
    database: Any = object.__new__(Database)
    settings: Any = object.__new__(Settings)
    acme = parse_slug("acme")
    for slugs in ([acme], (), {acme}, {acme: 1}.keys()):
        for canary in (acme, 3):
            plan_fleet(database, settings=settings, slugs=slugs, canary=canary).close()
    rename_tenant(database, acme, parse_slug("zenith"), settings=settings, redirect_days=7).close()
    rename_tenant(database, acme, parse_slug("zenith"), settings=settings).close()
    create_tenants(database, {acme: "Acme"}, settings=settings).close()


def test_plain_function_takes_anything() -> None:
    """Negative control: without the check nothing is said until something goes wrong."""

    def first(slugs: list[Slug]) -> str:
        return slugs[0]

    wrong: Any = "acme"
    unchecked: Callable[[list[Slug]], str] = first
    assert unchecked(wrong) == "a"


def test_checked_function_is_documented_as_itself() -> None:
    """Tools see the name, the signature and the docstring of the function inside."""

    @check_arguments
    async def example(slug: Slug) -> None:
        """Do nothing."""

    assert (example.__name__, example.__doc__) == ("example", "Do nothing.")
    assert list(inspect.signature(example).parameters) == ["slug"]
