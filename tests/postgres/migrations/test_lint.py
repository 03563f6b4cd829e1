"""Lint names each danger in a file, and says nothing about the safe form."""

import pytest

from quart_tenants.errors import MigrationFileError
from quart_tenants.postgres.migrations.lint import lint_files
from quart_tenants.postgres.migrations.lint_rules import REMEDIES
from quart_tenants.postgres.migrations.migration_files import Migration

ALONE = "-- quart-tenants: no transaction\n"
# For each danger a file that has it, and files that do the same safely.
EXAMPLES: dict[str, tuple[str, list[str]]] = {
    "check": (
        "ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0)",
        ["ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID", f"{ALONE}ALTER TABLE t VALIDATE CONSTRAINT c"],
    ),
    "column-type": ("ALTER TABLE t ALTER a TYPE bigint", ["ALTER TABLE t ADD b bigint"]),
    "detach-partition": (
        "ALTER TABLE t DETACH PARTITION p",
        [f"{ALONE}ALTER TABLE t DETACH PARTITION p CONCURRENTLY"],
    ),
    "domain-constraint": (
        "ALTER DOMAIN d ADD CONSTRAINT c CHECK (VALUE > 0)",
        ["ALTER DOMAIN d ADD CONSTRAINT c CHECK (VALUE > 0) NOT VALID", "ALTER DOMAIN d VALIDATE CONSTRAINT c"],
    ),
    "drop-column": ("ALTER TABLE t DROP COLUMN a", ["ALTER TABLE t ALTER a DROP NOT NULL"]),
    "drop-index": ("DROP INDEX i", [f"{ALONE}DROP INDEX CONCURRENTLY i"]),
    "drop-table": ("DROP TABLE t", ["CREATE TABLE t2 (a int); DROP TABLE t2"]),
    "enum-value": (
        "ALTER TYPE mood ADD VALUE 'glad'; INSERT INTO t VALUES ('glad')",
        ["ALTER TYPE mood ADD VALUE 'glad'; INSERT INTO t VALUES ('sad')", "INSERT INTO t VALUES ('glad')"],
    ),
    "exclusion": (
        "ALTER TABLE t ADD EXCLUDE USING gist (a WITH &&)",
        ["CREATE TABLE t2 (a tsrange, EXCLUDE USING gist (a WITH &&))"],
    ),
    "foreign-key": (
        "ALTER TABLE t ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES o",
        [
            "ALTER TABLE t ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES o NOT VALID",
            f"{ALONE}ALTER TABLE t VALIDATE CONSTRAINT k",
        ],
    ),
    "index": ("CREATE INDEX i ON t (a)", [f"{ALONE}CREATE INDEX CONCURRENTLY i ON t (a)"]),
    "lock-table": ("LOCK TABLE t", ["SELECT 1 FROM t"]),
    "reindex": ("REINDEX TABLE t", [f"{ALONE}REINDEX TABLE CONCURRENTLY t"]),
    "rename": ("ALTER TABLE t RENAME a TO b", ["ALTER TABLE t ADD b int"]),
    "required-column": ("ALTER TABLE t ADD a int NOT NULL", ["ALTER TABLE t ADD a int NOT NULL DEFAULT 0"]),
    "rewrite": (f"{ALONE}VACUUM FULL t", [f"{ALONE}VACUUM t"]),
    "rewriting-column": (
        "ALTER TABLE t ADD a uuid DEFAULT gen_random_uuid()",
        ["ALTER TABLE t ADD a uuid; ALTER TABLE t ALTER a SET DEFAULT gen_random_uuid()"],
    ),
    "set-not-null": (
        "ALTER TABLE t ALTER a SET NOT NULL",
        [
            "ALTER TABLE t ADD CONSTRAINT c CHECK (a IS NOT NULL) NOT VALID",
            f"{ALONE}ALTER TABLE t VALIDATE CONSTRAINT c",
            "ALTER TABLE t ALTER a SET NOT NULL; ALTER TABLE t DROP CONSTRAINT c",
        ],
    ),
    "truncate": ("TRUNCATE t", ["DELETE FROM t WHERE a < 5"]),
    "unique": (
        "ALTER TABLE t ADD CONSTRAINT u UNIQUE (a)",
        [f"{ALONE}CREATE UNIQUE INDEX CONCURRENTLY u ON t (a)", "ALTER TABLE t ADD CONSTRAINT u UNIQUE USING INDEX u"],
    ),
    "validate-with-add": (
        "ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID; ALTER TABLE t VALIDATE CONSTRAINT c",
        ["ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID", f"{ALONE}ALTER TABLE t VALIDATE CONSTRAINT c"],
    ),
    "whole-table": ("UPDATE t SET a = 1", ["UPDATE t SET a = 1 WHERE id = 7"]),
}  # fmt: skip


def lint(*texts: str) -> list[str]:
    """Return the names of the dangers in files with these texts."""
    migrations = [Migration(number, f"{number:04}_x.sql", text) for number, text in enumerate(texts, start=1)]
    return [finding.rule for finding in lint_files(migrations)]


def test_every_danger_has_an_example() -> None:
    """Nobody can add a rule without showing what it finds, and what it leaves alone."""
    assert set(EXAMPLES) == set(REMEDIES)


@pytest.mark.parametrize("rule", EXAMPLES)
def test_danger_is_named(rule: str) -> None:
    """A file that does it is told by the name of the danger."""
    assert lint(EXAMPLES[rule][0]) == [rule]


@pytest.mark.parametrize("rule", EXAMPLES)
def test_safe_form_is_left_alone(rule: str) -> None:
    """What the remedy says is no danger."""
    assert lint(*EXAMPLES[rule][1]) == []


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("ALTER TABLE t ADD a serial", ["rewriting-column"]),
        ("ALTER TABLE t ADD a int GENERATED ALWAYS AS IDENTITY", ["rewriting-column"]),
        ("ALTER TABLE t ADD a int GENERATED ALWAYS AS (b + 1) STORED", ["rewriting-column"]),
        ("ALTER TABLE t ADD a timestamptz NOT NULL DEFAULT now()", []),
        ("ALTER TABLE t ADD a timestamptz DEFAULT current_timestamp", []),
        ("ALTER TABLE t ADD a timestamptz DEFAULT clock_timestamp()", ["rewriting-column"]),
        ("ALTER TABLE t ADD a int[] DEFAULT '{}'::int[]", []),
        ("ALTER TABLE t ADD a int UNIQUE REFERENCES o CHECK (a > 0)", ["unique", "foreign-key", "check"]),
        ("ALTER TABLE t ADD PRIMARY KEY (a)", ["unique"]),
        ("ALTER TABLE t ADD CONSTRAINT n NOT NULL a", ["set-not-null"]),
        ("ALTER TABLE t ADD CONSTRAINT c CHECK (a IS NOT NULL); ALTER TABLE t ALTER a SET NOT NULL", ["check"]),
        ("ALTER TABLE t SET UNLOGGED", ["rewrite"]),
        ("CLUSTER t USING i", ["rewrite"]),
        ("ALTER TABLE t RENAME TO u", ["rename"]),
        ("ALTER INDEX i RENAME TO j", []),
        ("ALTER TABLE t RENAME CONSTRAINT c TO d", []),
        ("ALTER TYPE addr DROP ATTRIBUTE zip", ["drop-column"]),
        ("DROP VIEW v", ["drop-table"]),
        ("DROP FUNCTION f()", []),
        ("DELETE FROM t", ["whole-table"]),
        (f"{ALONE}ALTER TYPE mood ADD VALUE 'b'; INSERT INTO t VALUES ('b')", []),
        (f"{ALONE}ALTER TABLE t ADD CHECK (a > 0) NOT VALID; ALTER TABLE t VALIDATE CONSTRAINT t_a_check", []),
        ("ALTER TYPE mood RENAME VALUE 'a' TO 'b'; INSERT INTO t VALUES ('b')", []),
    ],
)
def test_what_a_rule_sees(text: str, rules: list[str]) -> None:
    """Forms of one danger are found alike, and what looks similar is not."""
    assert lint(text) == rules


def test_table_that_the_file_itself_makes_is_in_no_danger() -> None:
    """Nobody reads it yet; a table that an earlier file has made is one of the tenants'."""
    make = "CREATE TABLE t (a int, b int);"
    work = (
        "CREATE INDEX i ON t (a); DROP INDEX i; ALTER TABLE t ADD UNIQUE (a), ALTER b TYPE text, DROP COLUMN b;"
        "ALTER TABLE t ALTER a SET NOT NULL; UPDATE t SET a = 1; TRUNCATE t; ALTER TABLE t RENAME a TO c; DROP TABLE t"
    )

    assert lint(make + work) == []
    assert lint(make, work) == [
        "index", "unique", "column-type", "drop-column", "set-not-null", "whole-table", "truncate", "rename",
        "drop-table",
    ]  # fmt: skip


def test_danger_is_accepted_by_name_with_a_reason() -> None:
    """One danger is accepted and others are not; a name that is no danger's is told."""
    text = "DROP TABLE t; TRUNCATE u"
    accept = "-- quart-tenants: accept drop-table: nobody has read it since 2.3\n"

    assert lint(text) == ["drop-table", "truncate"]
    assert lint(accept + text) == ["truncate"]
    assert lint(accept.replace("drop-table", "drop-tables") + text) == ["drop-table", "truncate", "accept"]


@pytest.mark.parametrize("directive", ["accept drop-table", "accept drop-table:", "accept: because", "accepts x: y"])
def test_acceptance_without_a_reason_is_refused(directive: str) -> None:
    """The file does not run, either: what was meant is not known."""
    with pytest.raises(MigrationFileError, match="there is no such directive"):
        lint(f"-- quart-tenants: {directive}\nDROP TABLE t")


def test_finding_names_the_place() -> None:
    """File, line and table are those of the statement."""
    migrations = [
        Migration(1, "0001_a.sql", "CREATE TABLE t (a int)"),
        Migration(2, "0002_b.sql", "-- é\nSELECT 1;\n\nDROP TABLE\n  s.t"),
    ]

    (finding,) = lint_files(migrations, {2})

    assert (finding.file, finding.line, finding.what) == ("0002_b.sql", 4, "t")
    assert lint_files(migrations, {1}) == []
