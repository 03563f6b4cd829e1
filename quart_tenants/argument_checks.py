"""Refuse an argument that has not the type which a public function names, before anything is done with it.

Much of what operators write is never checked by mypy. A plain text in place of a list of slugs is a list of letters,
and a domain that was not parsed may be one that no browser asks for.
"""

import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from types import UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from quart_tenants.domain import Domain, find_host_name
from quart_tenants.tenant import SLUG_PATTERN, Slug

P = ParamSpec("P")
T = TypeVar("T")

_SLUG = re.compile(SLUG_PATTERN)
_SCALARS = (str, int, float, bool)
# By the name of the type, because some types are of higher layers.
_REMEDIES = {
    "Slug": "parse_slug(text)",
    "Domain": "parse_domain(text)",
    "SchemaName": "parse_schema_name(text)",
    "Path": "pathlib.Path(text)",
    "Tenant": "await get_tenant(database, parse_slug(text))",
    "Database": "tenants.database, or await Database.open(settings)",
    "Settings": "tenants.settings, or read_settings(config)",
    "Pipe": "parse_pipe(command)",
    "Backup": "read_backup(file)",
    "FleetPlan": "await plan_fleet(database, settings=settings)",
}


def check_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Let *function* raise a `TypeError` at once that names an argument of another type, and what to give instead.

    The error says no value, because that may be a URL with a password.
    """
    signature = inspect.signature(function)

    @functools.cache
    def get_hints() -> dict[str, Any]:
        # Not at import, when the modules that the types are of may not be complete.
        hints = get_type_hints(function)
        return {name: hint for name, hint in hints.items() if name in signature.parameters and hint not in _SCALARS}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        hints = get_hints()
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in hints and not _fits(hints[name], value):
                raise TypeError(
                    f"{function.__name__}: {name} is of type {type(value).__name__}, or holds what does not fit; "
                    f"give {_describe(hints[name])}"
                )
        return function(*args, **kwargs)

    return checked


def _fits(hint: Any, value: Any) -> bool:
    if hint is Slug:
        return isinstance(value, str) and _SLUG.fullmatch(value) is not None
    if hint is Domain:
        return isinstance(value, str) and find_host_name(value) == value
    kind = get_origin(hint)
    if kind in (Union, UnionType):
        return any(_fits(each, value) for each in get_args(hint))
    if kind in (Mapping, Collection):
        if isinstance(value, str) or not isinstance(value, kind):
            return False
        items = value.items() if isinstance(value, Mapping) else zip(value)
        return all(_fits(each, part) for item in items for each, part in zip(get_args(hint), item, strict=True))
    if hint is float:
        return isinstance(value, int | float)
    # What is no class, such as Any and a function, is not looked at, nor is what only has to have some methods.
    # Python 3.11 and newer take Any for a class.
    return hint is Any or not isinstance(hint, type) or getattr(hint, "_is_protocol", False) or isinstance(value, hint)


def _describe(hint: Any) -> str:
    kind = get_origin(hint)
    if kind in (Union, UnionType):
        return " or ".join(_describe(each) for each in get_args(hint))
    if kind is Collection:
        return f"a list of {_describe(get_args(hint)[0])}"
    if kind is Mapping:
        key, value = map(_describe, get_args(hint))
        return f"a dict of {key} to {value}"
    if hint is type(None):
        return "None"
    name = getattr(hint, "__name__", str(hint))
    return _REMEDIES.get(name, name)
