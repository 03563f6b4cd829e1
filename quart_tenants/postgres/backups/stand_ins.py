"""Let foreign keys lead to empty tables in place of the shared ones.

A key to a shared table makes PostgreSQL read all triggers of that table, two for each key of each tenant, and holds up
its writers. Where the tables are rolled back at once, a table with the same unique columns does as well.
"""

from collections.abc import Iterable, Mapping, Sequence

from quart_tenants.connection import Connection
from quart_tenants.sql_parser import list_tokens, messages, parse_sql, walk
from quart_tenants.tenant import SchemaName

# $1 the shared schemas in the order of the path, $2 the names of tables, $3 the schema of the stand-ins. By the
# catalogue, because to open a table is to read its triggers. Without the right to refer to a table there is none.
_LIST_STAND_INS = """
SELECT DISTINCT ON (c.relname) c.relname AS name, n.nspname AS schema,
    format('CREATE TABLE %I.%I (%s, %s)', $3::text, c.relname, described.columns, described.keys) AS statement
FROM unnest($1::text[]) WITH ORDINALITY AS shared (schema, place)
JOIN pg_catalog.pg_namespace AS n ON n.nspname = shared.schema
JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = ANY ($2::text[])
CROSS JOIN LATERAL (
    SELECT
        (
            SELECT string_agg(
                concat_ws(
                    ' ', quote_ident(a.attname), format_type(a.atttypid, a.atttypmod),
                    'COLLATE ' || nullif(a.attcollation, t.typcollation)::regcollation
                ), ', ' ORDER BY a.attnum
            )
            FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        ) AS columns,
        (
            SELECT string_agg(
                format('%s (%s)', CASE WHEN x.indisprimary THEN 'PRIMARY KEY' ELSE 'UNIQUE' END, (
                    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY k.place)
                    FROM unnest(x.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
                    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.attnum
                    WHERE k.place <= x.indnkeyatts
                )), ', '
            )
            FROM pg_catalog.pg_index AS x
            WHERE x.indrelid = c.oid AND x.indisunique AND x.indimmediate AND x.indexprs IS NULL AND x.indpred IS NULL
        ) AS keys
) AS described
WHERE c.relkind IN ('r', 'p') AND described.keys IS NOT NULL AND pg_catalog.has_table_privilege(c.oid, 'REFERENCES')
ORDER BY c.relname, shared.place
"""
_MAY_ADD_KEYS = frozenset({"create_stmt", "alter_table_stmt"})


async def make_stand_ins(
    connection: Connection, schema: SchemaName, statements: Iterable[str], shared: Sequence[SchemaName]
) -> list[str]:
    """Make stand-ins for the tables of *shared* to which *statements* add keys, and return the statements for those.

    Args:
        connection: Inside a transaction.
        schema: The name of a new schema for the stand-ins.
        statements: What makes a tenant's tables.
        shared: The shared schemas in the order of the path.
    """
    targets = [(statement, _list_targets(statement)) for statement in statements]
    names = {name for _, found in targets for _, _, name in found}
    stand_ins = await connection.fetch(_LIST_STAND_INS, [each.name for each in shared], list(names), schema.name)
    if not stand_ins:
        return [statement for statement, _ in targets]
    await connection.execute(f"CREATE SCHEMA {schema.quoted}")
    for row in stand_ins:
        await connection.execute(row["statement"])
    places = {row["name"]: row["schema"] for row in stand_ins}
    return [_lead(statement, found, places, schema) for statement, found in targets]


def _list_targets(statement: str) -> list[tuple[int, str, str]]:
    """Return where keys lead: the position of the table's name in bytes, its schema as written, and its name."""
    (raw,) = parse_sql(statement).stmts
    if raw.stmt.WhichOneof("node") not in _MAY_ADD_KEYS:
        return []
    tables = [
        node.pktable
        for _, node in walk(raw.stmt)
        if isinstance(node, messages.Constraint) and node.contype == messages.CONSTR_FOREIGN
    ]
    return sorted((table.location, table.schemaname, table.relname) for table in tables)


def _lead(
    statement: str, targets: Sequence[tuple[int, str, str]], places: Mapping[str, str], schema: SchemaName
) -> str:
    """Return *statement* with the keys to tables of *places* leading to those of the same names in *schema*."""
    encoded = statement.encode()
    ends = {token.start: token.end for token in list_tokens(statement)} if targets else {}
    for position, written, name in reversed(targets):
        # A name that is also shared is no name of a tenant's own, so without a schema it is the shared one.
        if name in places and written in ("", places[name]):
            rest = encoded[ends[position] :] if written else b"." + encoded[position:]
            encoded = encoded[:position] + schema.quoted.encode() + rest
    return encoded.decode()
