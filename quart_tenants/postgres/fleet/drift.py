"""Find the tenants whose tables differ from those of the majority at the same version, and say in what.

A query describes every table, column, index and constraint by a text without the schema's own name, and returns one
digest for each schema, with the texts of those digests that are new. It runs for a batch of schemas at a time, each
batch on a connection of its own: a server process remembers every table that it has described until it ends.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import SELECT_TENANTS, read_tenant
from quart_tenants.resources import read_statement
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant

# A server process that has described so many tables has some 40 MB. It takes two or three seconds for them.
_TABLES_AT_ONCE = 4000
# All answers must be about the same moment, although tenants are made and migrated meanwhile.
READ_ONE_MOMENT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
# Compiling the query would take as long as running it. A join that is no loop reads a whole catalogue for each batch.
# All loops of this query are over indexes.
LOOP_OVER_INDEXES = "SET LOCAL jit TO off; SET LOCAL enable_hashjoin TO off; SET LOCAL enable_mergejoin TO off"
"""Settings for `describe_schemas.sql`; they end with the transaction."""
# For the size of the batches only, so that it need not be of the same moment. It reads pg_class once.
_COUNT_TABLES = """
SELECT n.nspname::text AS schema_name, c.number
FROM (
    SELECT relnamespace, count(*) AS number FROM pg_catalog.pg_class WHERE relkind IN ('r', 'p', 'f')
    GROUP BY relnamespace
) AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
"""
# $1 the tenants' numbers.
_LIST_TENANTS = f"{SELECT_TENANTS} WHERE id = ANY ($1::text[]::bigint[])"

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


async def find_drift(
    database: Database,
    tenants: Sequence[Tenant],
    *,
    settings: Settings,
    on_compared: Callable[[int], object] = lambda number: None,
) -> tuple[list[Majority], list[Drift]]:
    """Compare each of *tenants* with the others at its version, by a query for each batch of them.

    Tables, columns, indexes and constraints are compared by name; the order of columns does not matter. Views,
    functions and triggers are not compared. What has changed since *tenants* were read is taken as it is now, and
    tenants that were dropped are left out. A cancellation changes nothing.

    Args:
        database: The database of the tenants.
        tenants: Whom to compare.
        settings: For a new connection for each batch. `TENANTS_COMMAND_TIMEOUT` is the time limit of one batch.
        on_compared: Called after each batch with the number of its tenants.

    Returns:
        What they were compared with, by version; and the tenants that differ or have no schema, in the given order.

    Raises:
        DatabaseTimeoutError: A batch took longer than `TENANTS_COMMAND_TIMEOUT`.
    """
    async with database.connection() as connection:
        sizes = {row["schema_name"]: row["number"] for row in await connection.fetch(_COUNT_TABLES)}
    present: dict[int, Tenant] = {}
    digests: dict[int, str] = {}
    shapes: dict[str, _Shape] = {}
    for batch in _divide(tenants, sizes):
        async with await Database.open(settings, max_size=1) as fresh, fresh.connection() as connection:
            await connection.execute(READ_ONE_MOMENT)
            await connection.execute(LOOP_OVER_INDEXES)
            rows = await connection.fetch(_LIST_TENANTS, [str(tenant.id) for tenant in batch])
            known = {tenant.schema.name: tenant for tenant in map(read_tenant, rows)}
            for row in await connection.fetch(read_statement("describe_schemas"), list(known), list(shapes)):
                digests[known[row["schema_name"]].id] = digest = row["digest"]
                if digest not in shapes:
                    shapes[digest] = dict(map(_read_part, row["parts"] or ()))
        present |= {tenant.id: tenant for tenant in known.values()}
        on_compared(len(batch))

    groups: defaultdict[int, defaultdict[str, list[Tenant]]] = defaultdict(lambda: defaultdict(list))
    for number, tenant in sorted(present.items()):
        if number in digests:
            groups[tenant.version][digests[number]].append(tenant)
    # max() keeps the first of equals: that is the group of the oldest tenant.
    most = {version: max(by_digest, key=lambda digest: len(by_digest[digest])) for version, by_digest in groups.items()}
    majorities = []
    for version, by_digest in sorted(groups.items()):
        group, counts = by_digest[most[version]], [len(tenants) for tenants in by_digest.values()]
        tied = counts.count(len(group)) > 1
        majorities.append(Majority(version, group[0].slug, len(group), sum(counts), tied))
    # Tenants that differ in the same way are compared once.
    differences = {
        (version, digest): tuple(_compare(shapes[digest], shapes[most[version]]))
        for version, by_digest in groups.items()
        for digest in by_digest
    }

    drifts = []
    for tenant in (present[tenant.id] for tenant in tenants if tenant.id in present):
        if tenant.id not in digests:
            drifts.append(Drift(tenant.slug, tenant.version, (f"schema {tenant.schema} is missing",)))
        elif lines := differences[tenant.version, digests[tenant.id]]:
            drifts.append(Drift(tenant.slug, tenant.version, lines))
    return majorities, drifts


def _divide(tenants: Sequence[Tenant], sizes: Mapping[str, int]) -> Iterator[list[Tenant]]:
    """Yield *tenants* in batches of at most `_TABLES_AT_ONCE` tables, or of one tenant that has more."""
    batch: list[Tenant] = []
    tables = 0
    for tenant in tenants:
        # An empty schema takes time, too.
        size = 1 + sizes.get(tenant.schema.name, 0)
        if batch and tables + size > _TABLES_AT_ONCE:
            yield batch
            batch, tables = [], 0
        batch.append(tenant)
        tables += size
    if batch:
        yield batch


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
    told = {"table": "", "column": f" ({text})"}.get(part.kind, f": {text}")
    return f"{word} {_name(part)}{told}"


def _name(part: _Part) -> str:
    if part.kind == "table":
        return f"table {part.table}"
    # The text of an index says its table, and its name is unique in the schema.
    return f"index {part.name}" if part.kind == "index" else f"{part.kind} {part.table}.{part.name}"
