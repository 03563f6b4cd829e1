"""Which statements only read: in doubt, none."""

import pytest

from quart_tenants.postgres.driver.fast.statement_effects import Effect, StatementEffects

PLAIN = (
    "SELECT 1",
    "SELECT id, description FROM company_data WHERE id > $1 ORDER BY id LIMIT $2",
    "select count(*), max(lower(description)) from company_data -- with a remark",
    "SELECT pg_catalog.now(), current_user, coalesce(a, b), x::text FROM t JOIN u USING (id)",
    "WITH newest AS (SELECT id FROM t ORDER BY id DESC LIMIT 3) SELECT id FROM newest UNION SELECT 7",
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT sum(i) FROM n",
    "SELECT row_number() OVER (PARTITION BY a ORDER BY b) FROM t WHERE id = ANY($1)",
    "SELECT 'INSERT INTO t; COMMIT; nextval(1)'",
    "VALUES (1), (2)",
    "TABLE company_data",
    "SELECT d.id FROM t AS d, LATERAL jsonb_array_elements(d.tags) AS tag",
    "SELECT 1;",
)
# Of these some write, some lock, some set, some tell others, and of some nobody knows.
NOT_PLAIN = (
    "",
    "-- nothing",
    "SELECT 1; SELECT 2",
    "SELEC 1",
    "SELECT '\0'",
    "SELECT '\udcff'",
    "INSERT INTO t DEFAULT VALUES RETURNING id",
    "WITH gone AS (DELETE FROM t RETURNING id) SELECT id FROM gone",
    "SELECT (WITH x AS (UPDATE t SET a = 1 RETURNING a) SELECT a FROM x)",
    "SELECT * INTO copy FROM t",
    "SELECT id FROM t FOR UPDATE",
    "SELECT id FROM (SELECT id FROM t FOR SHARE) AS locked",
    "SELECT nextval('numbers')",
    "SELECT id FROM t WHERE id = (SELECT setval('numbers', 7))",
    "SELECT my_function(1)",
    "SELECT acme.lower('A')",
    "SELECT other.pg_catalog.lower('A')",
    "SELECT pg_catalog.set_config('app.secret', 'x', false)",
    "SELECT \"set_config\"('app.secret', 'x', false)",
    "SELECT U&\"set\\005fconfig\"('app.secret', 'x', false)",
    "SELECT current_setting('search_path')",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_notify('news', 'x')",
    "SELECT query_to_xml('DELETE FROM t', true, true, '')",
    "SELECT 1 FROM generate_series(1, 2) AS n, dblink('x', 'y') AS d",
    "SELECT lo_unlink(1)",
    "SELECT pg_sleep(1)",
    "SET search_path TO globex",
    "SHOW search_path",
    "EXPLAIN ANALYZE SELECT 1",
    "LISTEN news",
    "PREPARE x AS SELECT 1",
    "EXECUTE x",
    "DECLARE c CURSOR FOR SELECT 1",
    "COPY t TO STDOUT",
    "DO $$BEGIN NULL; END$$",
    "CALL my_procedure()",
    "COMMIT",
    "SAVEPOINT a",
    f"SELECT '{'x' * 20_000}'",
)
ON_ROWS = (
    "SELECT nextval('numbers')",
    "INSERT INTO t (a) VALUES ($1) ON CONFLICT (a) DO UPDATE SET b = now() RETURNING id",
    "UPDATE t SET a = lower(b) WHERE id IN (SELECT id FROM u FOR UPDATE SKIP LOCKED)",
    "DELETE FROM t",
    "MERGE INTO t USING u ON t.id = u.id WHEN MATCHED THEN DELETE",
    "SAVEPOINT a",
    "RELEASE SAVEPOINT a",
    "ROLLBACK TO a",
)
WILD = (
    "SELECT my_function(1)",
    "INSERT INTO t VALUES (my_function(1))",
    "SELECT query_to_xml('DELETE FROM t', true, true, '')",
    "DO $$BEGIN EXECUTE 'PRE' || 'PARE x AS SELECT 1'; END$$",
    "CALL my_procedure()",
    "EXECUTE x",
    "PREPARE x AS SELECT 1",
    "DEALLOCATE ALL",
    "SET TRANSACTION READ WRITE",
    "COMMIT",
    "ROLLBACK",
    "BEGIN",
    "COMMIT AND CHAIN",
    "PREPARE TRANSACTION 'x'",
    "DELETE FROM t; SELECT 1",
    "",
)


@pytest.mark.parametrize("statement", PLAIN)
def test_plain_read_is_known(statement: str) -> None:
    """One SELECT with PostgreSQL's own harmless functions only reads."""
    assert StatementEffects().find(statement) is Effect.READS


@pytest.mark.parametrize("statement", NOT_PLAIN)
def test_everything_else_is_no_plain_read(statement: str) -> None:
    """What writes, locks, sets, waits or calls an unknown function is not taken for a read, however it is written."""
    assert StatementEffects().find(statement) is not Effect.READS


@pytest.mark.parametrize("statement", PLAIN + ON_ROWS)
def test_statement_on_rows_runs_no_other(statement: str) -> None:
    """What works on rows and savepoints, with known functions, runs no SQL that nobody sees."""
    assert StatementEffects().find(statement) <= Effect.ROWS


@pytest.mark.parametrize("statement", WILD)
def test_statement_that_may_run_anything_is_known(statement: str) -> None:
    """What may run other SQL, or end or change the transaction, does more than read rows."""
    assert StatementEffects().find(statement) is Effect.ANYTHING


def test_texts_made_anew_each_time_are_forgotten() -> None:
    """What is remembered about texts is bounded."""
    effects = StatementEffects()
    for number in range(2_100):
        assert effects.find(f"SELECT {number}") is Effect.READS

    assert len(effects._known) == 2_000
