"""Migration files are split by PostgreSQL's own parser, and what cannot run is refused before anything does."""

import pytest

from quart_tenants.errors import MigrationFileError
from quart_tenants.postgres.migrations.migration_statements import parse_script

NO_TRANSACTION = "-- quart-tenants: no transaction\n"


def split(text: str) -> list[str]:
    """Return the statements of *text*."""
    return [statement.sql for statement in parse_script("0001_x.sql", text).statements]


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1; SELECT 2", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';'; -- ; \nSELECT /* ; */ 2;;", ["SELECT ';'", "SELECT /* ; */ 2"]),
        (
            "DO $a$ BEGIN PERFORM 1; PERFORM $$;$$; END $a$; SELECT 1",
            ["DO $a$ BEGIN PERFORM 1; PERFORM $$;$$; END $a$", "SELECT 1"],
        ),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3",
            ["CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END", "SELECT 3"],
        ),
        ("SELECT E'\\';'; SELECT U&\"d;é\"", ["SELECT E'\\';'", 'SELECT U&"d;é"']),
        ("-- é\nSELECT 'é'; SELECT 'ü'", ["SELECT 'é'", "SELECT 'ü'"]),
    ],
)
def test_text_is_split_where_postgresql_would(text: str, statements: list[str]) -> None:
    """A semicolon in a text, a comment, a body or a name ends no statement."""
    assert split(text) == statements


def test_naive_split_tears_a_body_apart() -> None:
    """The negative control: splitting at semicolons makes pieces that are no SQL."""
    text = "DO $$ BEGIN PERFORM 1; END $$"

    naive = text.split(";")

    assert split(text) == [text]
    assert len(naive) == 2
    with pytest.raises(MigrationFileError):
        split(naive[0])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("SELECT 1;\n\nSELECT 'é;\n", "line 3: unterminated quoted string"),
        ("SELECT 1;\nDO $$ BEGIN", "line 2: unterminated dollar-quoted string"),
        ("/* é */ SELECT 1;\n/* open", "line 2: unterminated /* comment"),
        ("CREATE TABLE a (b int);\nCREATE TABEL c (d int);", 'line 2: syntax error at or near "TABEL"'),
        ("SELECT 1;\nCOMMIT;", "line 2: it ends the transaction"),
        ("BEGIN; SELECT 1", "line 1: it ends the transaction"),
        ("SAVEPOINT a", "line 1: it ends the transaction"),
        ("PREPARE TRANSACTION 'x'", "line 1: it ends the transaction"),
        ("SELECT 1;\nSET LOCAL search_path TO public", "line 2: it changes search_path"),
        ("SET search_path = public", "line 1: it changes search_path"),
        ("RESET ALL", "line 1: it changes search_path"),
        ("CREATE INDEX CONCURRENTLY i ON t (a)", "line 1: PostgreSQL refuses this in a transaction"),
        ("DROP INDEX CONCURRENTLY i", "line 1: PostgreSQL refuses this in a transaction"),
        ("REINDEX (CONCURRENTLY) TABLE t", "line 1: PostgreSQL refuses this in a transaction"),
        ("ALTER TABLE t DETACH PARTITION p CONCURRENTLY", "line 1: PostgreSQL refuses this in a transaction"),
        ("VACUUM t", "line 1: PostgreSQL refuses this in a transaction"),
        ("\n-- quart-tenants: no-transaction\nVACUUM t", "line 2: there is no such directive"),
        ("SELECT 1;\nCOPY t FROM STDIN", "line 2: COPY FROM STDIN has no data here"),
        ("SELECT 1;\0 SELECT 2", "has a NUL in it"),
        ("-- nothing", "holds no statement"),
        ("", "holds no statement"),
    ],
)
def test_text_that_cannot_run_is_refused_with_its_line(text: str, reason: str) -> None:
    """The file, the line and the reason are named before any statement has run."""
    with pytest.raises(MigrationFileError) as caught:
        parse_script("0001_x.sql", text)

    assert str(caught.value).startswith(f"0001_x.sql: {reason}")
    assert "\n" not in str(caught.value)


def test_directive_stands_before_the_first_statement() -> None:
    """A comment further down is a comment."""
    build = "CREATE INDEX CONCURRENTLY i ON t (a)"
    assert not parse_script("x", f"-- why\n\n{NO_TRANSACTION}{build}").in_transaction
    assert not parse_script("x", f"/* why\n*/ {NO_TRANSACTION}{build}").in_transaction
    assert not parse_script("x", f"--Quart_Tenants : No transaction\n{build}").in_transaction
    assert parse_script("x", f"SELECT 1;\n{NO_TRANSACTION}").in_transaction


@pytest.mark.parametrize(
    ("sql", "for_new_tables"),
    [
        ('CREATE INDEX concurrently "CONCURRENTLY" ON é (a)', 'CREATE INDEX  "CONCURRENTLY" ON é (a)'),
        ("CREATE INDEX /* CONCURRENTLY */ CONCURRENTLY i ON t (a)", "CREATE INDEX /* CONCURRENTLY */  i ON t (a)"),
        ("DROP INDEX CONCURRENTLY IF EXISTS i", "DROP INDEX  IF EXISTS i"),
        ("CREATE INDEX i ON t (a)", "CREATE INDEX i ON t (a)"),
        ("VACUUM t", None),
        ("REINDEX (CONCURRENTLY) TABLE t", None),
        ("ANALYZE t", "ANALYZE t"),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY v", "REFRESH MATERIALIZED VIEW CONCURRENTLY v"),
    ],
)
def test_new_tables_need_nothing_concurrent(sql: str, for_new_tables: str | None) -> None:
    """In a schema that is being made the same statements run in its transaction, without the keyword or not at all."""
    (statement,) = parse_script("x", NO_TRANSACTION + sql).statements

    assert statement.sql_for_new_tables == for_new_tables


def test_position_in_a_statement_is_told_as_a_line_of_the_file() -> None:
    """The server counts characters of the statement; people count lines of the file."""
    _, statement = parse_script("x", "SELECT 'é';\n\nSELECT\n  'é',\n  nonsense").statements

    assert statement.line == 3
    assert statement.locate(str(statement.sql.index("nonsense") + 1)) == 5
    assert statement.locate(None) == 3
