"""Say whether a query reads a whole catalogue, which grows with the number of tenants."""

import json
import re
from collections.abc import Iterator
from typing import Any

from quart_tenants.connection import Connection

# They have rows for each table, column, index, constraint, function or type of each tenant.
GROWING = {
    "pg_attrdef", "pg_attribute", "pg_class", "pg_constraint", "pg_depend", "pg_index", "pg_namespace", "pg_proc",
    "pg_rewrite", "pg_trigger", "pg_type", "applied_migrations",
}  # fmt: skip
_LEADING_COLUMNS = """
SELECT c.relname, pg_get_indexdef(c.oid, 1, false) AS name
FROM pg_class AS c JOIN pg_index AS x ON x.indexrelid = c.oid
"""


async def list_whole_reads(connection: Connection, query: str, *values: object, sequential: bool = False) -> list[str]:
    """Return the catalogues of `GROWING` that *query* reads as a whole, although the planner was asked not to.

    A read is not whole if an index is asked by its first column, or for its first entry only.

    Args:
        connection: Inside a transaction.
        query: What to plan.
        values: Its parameters.
        sequential: Whether the planner may choose between an index and a read of the whole table.
    """
    await connection.execute(f"SET LOCAL enable_seqscan TO {sequential}; SET LOCAL enable_hashjoin TO off")
    await connection.execute("SET LOCAL enable_mergejoin TO off")
    leading = {row["relname"]: row["name"] for row in await connection.fetch(_LEADING_COLUMNS)}
    (plan,) = await connection.fetchrow(f"EXPLAIN (FORMAT JSON) {query}", *values) or ("[]",)
    return [
        f"{node['Relation Name']} by {node.get('Index Name', 'nothing')}"
        for node in _walk(json.loads(plan)[0]["Plan"])
        if node.get("Relation Name") in GROWING and not _is_by_index(node, leading)
    ]


def _walk(node: dict[str, Any], parent: str = "") -> Iterator[dict[str, Any]]:
    yield node | {"parent": parent}
    for child in node.get("Plans", ()):
        yield from _walk(child, node["Node Type"])


def _is_by_index(node: dict[str, Any], leading: dict[str, str]) -> bool:
    if node["Node Type"] == "Bitmap Heap Scan":
        # The condition that is checked again is that of the index.
        (index,) = node["Plans"]
        node = node | index
    if node["Node Type"] == "BitmapAnd":
        return any(_is_by_index(index, leading) for index in node["Plans"])
    name = node.get("Index Name")
    if name is None:
        return False
    asked = re.search(rf"\b{re.escape(leading[name])}\b", node.get("Index Cond", "")) is not None
    return asked or node.get("parent") == "Limit"
