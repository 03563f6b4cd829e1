"""Find the tenants whose tables differ from those of the majority at the same version, and say in what.

One query describes every table, column, index and constraint by a text without the schema's own name, and returns
one digest for each schema. A second query returns the texts for one schema of each digest that differs.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quart_tenants.connection import Connection
from quart_tenants.resources import read_statement
from quart_tenants.tenant import Slug, Tenant

# The query runs once, and compiling it would take as long as running it.
_DO_NOT_COMPILE = "SET LOCAL jit TO off"

_KINDS = ("table", "column", "index", "constraint")


@dataclass(frozen=True, slots=True)
class Drift:
    """A tenant whose tables are not those of the majority at its version.

    Attributes:
        slug: The tenant.
        version: The number of its newest migration.
        differences: One line each, such as `missing column app_user.nickname (text)`.
    """

    slug: Slug
    version: int
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Majority:
    """What the tenants at one version are compared with.

    Attributes:
        version: The version.
        slug: The oldest tenant that has the tables of the majority.
        count: How many tenants have these tables.
        compared: How many tenants are at that version and have a schema.
        tied: Whether another group of tenants is as large. Then the tables of the oldest tenant count, and
            nobody can say which group is right.
    """

    version: int
    slug: Slug
    count: int
    compared: int
    tied: bool


class _Part(NamedTuple):
    kind: str
    table: str
    name: str


_Shape = Mapping[_Part, str]


async def find_drift(connection: Connection, tenants: Sequence[Tenant]) -> tuple[list[Majority], list[Drift]]:
    """Compare each of *tenants* with the others at its version, by two queries for all of them.

    Tables, columns, indexes and constraints are compared by name; the order of columns does not matter. Views,
    functions and triggers are not compared.

    Args:
        connection: Inside a block that sees one moment (`REPEATABLE READ`).
        tenants: The tenants at that moment.

    Returns:
        What they were compared with, by version; and the tenants that differ or have no schema, in the given order.
    """
    await connection.execute(_DO_NOT_COMPILE)
    rows = await connection.fetch(read_statement("describe_schemas"), [tenant.schema.name for tenant in tenants], False)
    digests: dict[str, str] = {row["schema_name"]: row["digest"] for row in rows}

    groups: defaultdict[int, defaultdict[str, list[Tenant]]] = defaultdict(lambda: defaultdict(list))
    for tenant in sorted(tenants, key=lambda tenant: tenant.id):
        if tenant.schema.name in digests:
            groups[tenant.version][digests[tenant.schema.name]].append(tenant)
    # max() keeps the first of equals: that is the group of the oldest tenant.
    most = {version: max(by_digest.values(), key=len) for version, by_digest in groups.items()}
    majorities = [_describe_majority(most[version], list(groups[version].values())) for version in sorted(most)]

    # Tenants that differ in the same way are described once.
    first = {
        (group[0].version, digest): group[0] for by_digest in groups.values() for digest, group in by_digest.items()
    }
    differing = {key: tenant for key, tenant in first.items() if tenant is not most[tenant.version][0]}
    shapes = await _describe(connection, [*differing.values(), *(most[version][0] for version, _ in differing)])
    differences = {
        key: tuple(_compare(shapes[tenant.schema.name], shapes[most[tenant.version][0].schema.name]))
        for key, tenant in differing.items()
    }

    drifts = []
    for tenant in tenants:
        if tenant.schema.name not in digests:
            drifts.append(Drift(tenant.slug, tenant.version, (f"schema {tenant.schema} is missing",)))
        elif lines := differences.get((tenant.version, digests[tenant.schema.name])):
            drifts.append(Drift(tenant.slug, tenant.version, lines))
    return majorities, drifts


def _describe_majority(group: Sequence[Tenant], groups: Sequence[Sequence[Tenant]]) -> Majority:
    return Majority(
        group[0].version,
        group[0].slug,
        len(group),
        sum(map(len, groups)),
        tied=sum(len(other) == len(group) for other in groups) > 1,
    )


async def _describe(connection: Connection, tenants: Sequence[Tenant]) -> Mapping[str, _Shape]:
    """Return the parts of each tenant's schema, by its name."""
    if not tenants:
        return {}
    rows = await connection.fetch(read_statement("describe_schemas"), [tenant.schema.name for tenant in tenants], True)
    return {row["schema_name"]: dict(map(_read_part, row["parts"] or ())) for row in rows}


def _read_part(part: str) -> tuple[_Part, str]:
    kind, table, name, text = part.split("\x01", 3)
    return _Part(kind, table, name), text


def _compare(shape: _Shape, model: _Shape) -> list[str]:
    """Return the differences of *shape* from *model*, one line each."""
    # The parts of a table that only one of them has need no lines of their own.
    lonely = {part.table for part in shape.keys() ^ model.keys() if part.kind == "table"}
    lines = []
    for part in sorted(shape.keys() | model.keys(), key=lambda part: (_KINDS.index(part.kind), part.table, part.name)):
        ours, theirs = shape.get(part), model.get(part)
        if ours == theirs or (part.kind != "table" and part.table in lonely):
            continue
        if theirs is None:
            lines.append(_name_lonely("extra", part, ours or ""))
        elif ours is None:
            lines.append(_name_lonely("missing", part, theirs))
        else:
            lines.append(f"{_name(part)}: {ours}, by the majority {theirs}")
    # The server writes CASE on several lines.
    return [re.sub(r"\s*\n\s*", " ", line) for line in lines]


def _name_lonely(word: str, part: _Part, text: str) -> str:
    if part.kind == "table":
        return f"{word} {_name(part)}"
    return f"{word} {_name(part)} ({text})" if part.kind == "column" else f"{word} {_name(part)}: {text}"


def _name(part: _Part) -> str:
    if part.kind == "table":
        return f"table {part.table}"
    # The text of an index says its table, and its name is unique in the schema.
    return f"index {part.name}" if part.kind == "index" else f"{part.kind} {part.table}.{part.name}"
