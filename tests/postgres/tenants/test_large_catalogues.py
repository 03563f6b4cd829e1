"""What is asked for one tenant takes as long among thousands of tenants as among four."""

import pytest

from quart_tenants.postgres.backups.rows_only import _HAS_MORE, _LIST_TABLES
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.drift import LOOP_OVER_INDEXES
from quart_tenants.postgres.migrations.migration_files import _LIST_EDITED
from quart_tenants.postgres.tenants.purge import _LIST_KEYS
from quart_tenants.postgres.tenants.ready_making import _LIST_SEARCHES
from quart_tenants.postgres.tenants.schema_moves import MOVE_FUNCTION_PATHS
from quart_tenants.resources import read_statement
from tests.support.plans import list_whole_reads

STATEMENTS: dict[str, tuple[str, tuple[object, ...]]] = {
    "describe_schemas": (read_statement("describe_schemas"), (["acme"], [])),
    "list_dependents": (read_statement("list_dependents"), ("acme", None)),
    "describe_everything": (read_statement("describe_everything"), (True,)),
    "what rows alone lose": (_HAS_MORE, ("acme", True)),
    "tables of rows only": (_LIST_TABLES, ("acme",)),
    "list_not_carried": (read_statement("list_not_carried"), ("acme", "public")),
    "list_large_object_columns": (read_statement("list_large_object_columns"), ("acme",)),
    "shadows_server_functions": (read_statement("shadows_server_functions"), ("acme",)),
    "list_dependents of a batch": (read_statement("list_dependents"), ("acme", [1, 2])),
    "keys to tables of others": (_LIST_KEYS, ("acme",)),
    "list_drops": (read_statement("list_drops"), ("acme", 50)),
    "list_shared_names": (read_statement("list_shared_names"), (["globex"], ["acme"])),
    "grant_schema": (read_statement("grant_schema"), ("acme", "x_owner", "x_t1")),
    "refuse_old_schema_name": (read_statement("refuse_old_schema_name"), ("acme", "old")),
    "paths of functions": (MOVE_FUNCTION_PATHS, ("acme", "old", "new")),
    "rows that name a schema": (_LIST_SEARCHES, ("acme", "old")),
}
# As one would write it: by the namespace, or by the array of a type, for which there is no index.
NAIVE = {
    "a schema's functions": "SELECT oid FROM pg_catalog.pg_proc WHERE pronamespace = $1::text::regnamespace",
    "a schema's tables": "SELECT oid FROM pg_catalog.pg_class WHERE relnamespace = $1::text::regnamespace",
    "an array's type": "SELECT e.oid FROM pg_catalog.pg_type AS y JOIN pg_catalog.pg_type AS e ON e.typarray = y.oid"
    " WHERE y.oid = $1::text::regtype",
}
NAIVE_BY_DOMAIN = """
SELECT (
    SELECT string_agg(k.conname, ',' ORDER BY k.conname) FROM pg_catalog.pg_constraint AS k WHERE k.contypid = t.oid
) FROM pg_catalog.pg_type AS t WHERE t.oid = $1::text::regtype
"""


@pytest.mark.parametrize("name", STATEMENTS)
async def test_statement_for_one_tenant_reads_no_whole_catalogue(database: Database, name: str) -> None:
    """Each catalogue that grows with the number of tenants is read by an index that begins with what is known."""
    query, values = STATEMENTS[name]

    async with database.connection() as connection:
        await connection.execute(LOOP_OVER_INDEXES)
        assert await list_whole_reads(connection, query, *values) == []


@pytest.mark.parametrize("name", NAIVE)
async def test_naive_statement_reads_a_whole_catalogue(database: Database, name: str) -> None:
    """Negative control: the same look at the plan finds the read."""
    async with database.connection() as connection:
        assert await list_whole_reads(connection, NAIVE[name], "text" if "array" in name else "acme") != []


async def test_constraints_are_looked_up_where_hardly_any_is_of_a_domain(database: Database) -> None:
    """Nearly all constraints are of tables. If the server knows only that, it reads all of them to find a domain's."""
    columns = ", ".join(f"n{number} integer CHECK (n{number} > 0)" for number in range(1500))
    async with database.connection() as connection:
        await connection.execute(f"CREATE SCHEMA wide; CREATE TABLE wide.wide ({columns})")
        # A sample of a hundred thousand has none of a domain.
        await connection.execute(
            "SET LOCAL allow_system_table_mods TO on; "
            "ALTER TABLE pg_catalog.pg_constraint ALTER contypid SET (n_distinct = 1); ANALYZE pg_catalog.pg_constraint"
        )
        found = {
            name: await list_whole_reads(connection, query, *values, sequential=True)
            for name, (query, values) in STATEMENTS.items()
        }
        # Negative control.
        naive = await list_whole_reads(connection, NAIVE_BY_DOMAIN, "text", sequential=True)

    assert [name for name, reads in found.items() if "pg_constraint by nothing" in reads] == []
    assert naive == ["pg_constraint by nothing"]


async def test_edited_file_is_found_by_the_ends_of_an_index(database: Database) -> None:
    """While no file was edited, the first and the last digest of each version are all that is read."""
    async with database.connection() as connection:
        edited = _LIST_EDITED.partition(")\nSELECT a.version, array_agg")[0].partition("(")[2]
        whole = await list_whole_reads(connection, edited, ["1"], ["x"])

    assert whole == []
