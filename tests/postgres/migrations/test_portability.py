"""`check-portable` names what does not run on Citus, and says nothing about what does."""

from pathlib import Path

import pytest

from quart_tenants.postgres.migrations.lint import check_portable_files, lint_files
from quart_tenants.postgres.migrations.migration_files import Migration, read_migrations
from quart_tenants.postgres.migrations.portability_rules import PORTABLE_REMEDIES

ROOT = Path(__file__).parents[3]
TABLE = "CREATE TABLE t (id bigint PRIMARY KEY);"
# For each rule a file that breaks it, and files that do it in another way.
EXAMPLES: dict[str, tuple[str, list[str]]] = {
    "do-block": ("DO $$ BEGIN CREATE TABLE t (); END $$", [TABLE]),
    "foreign-key-out": (
        "CREATE TABLE t (id bigint PRIMARY KEY, plan text REFERENCES common.plans)",
        [
            f"{TABLE} CREATE TABLE u (id bigint PRIMARY KEY REFERENCES t)",
            "CREATE TABLE v (id bigint PRIMARY KEY, t bigint); ALTER TABLE v ADD FOREIGN KEY (t) REFERENCES t",
        ],
    ),
    "function-reads": (
        "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM t'",
        ["CREATE FUNCTION f(a int) RETURNS int LANGUAGE sql AS 'SELECT a + 1'"],
    ),
    "inherits": (
        "CREATE TABLE t (id bigint PRIMARY KEY) INHERITS (u)",
        [
            "CREATE TABLE t (id bigint PRIMARY KEY) PARTITION BY HASH (id);"
            "CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        ],
    ),
    "no-primary-key": (
        "CREATE TABLE t (id bigint)",
        ["CREATE TABLE t (id bigint)", "ALTER TABLE t RENAME TO u", "ALTER TABLE u ADD PRIMARY KEY (id)"],
    ),
    "own-type": ("CREATE TYPE mood AS ENUM ('glad')", [f"{TABLE} ALTER TABLE t ADD mood text CHECK (mood = 'glad')"]),
    "rule": ("CREATE RULE r AS ON INSERT TO t DO INSTEAD NOTHING", [TABLE]),
    "session-value": (
        "ALTER TABLE t ADD tenant text DEFAULT current_schema()",
        ["ALTER TABLE t ADD tenant text DEFAULT 'acme'"],
    ),
    "small-number": ("CREATE TABLE t (id serial PRIMARY KEY)", ["CREATE TABLE t (id bigserial PRIMARY KEY, a int)"]),
    "subcommands": (
        "ALTER TABLE t ADD a int, ADD CONSTRAINT c CHECK (a > 0)",
        ["ALTER TABLE t ADD a int, ADD b int; ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0)"],
    ),
    "trigger": ("CREATE TRIGGER g BEFORE INSERT ON t EXECUTE FUNCTION suppress_redundant_updates_trigger()", [TABLE]),
    "view-write": (
        f"{TABLE} CREATE VIEW v AS SELECT id FROM t; INSERT INTO v VALUES (1)",
        [f"{TABLE} CREATE VIEW v AS SELECT id FROM t; INSERT INTO t VALUES (1)"],
    ),
}


def number(*texts: str) -> list[Migration]:
    """Return files with these texts."""
    return [Migration(version, f"{version:04}_x.sql", text) for version, text in enumerate(texts, start=1)]


def check(*texts: str) -> list[str]:
    """Return the names of what is found in files with these texts."""
    return [finding.rule for finding in check_portable_files(number(*texts))]


def test_every_rule_has_an_example() -> None:
    """Nobody can add a rule without showing what it finds, and what it leaves alone."""
    assert set(EXAMPLES) == set(PORTABLE_REMEDIES)


@pytest.mark.parametrize("rule", EXAMPLES)
def test_what_does_not_run_is_named(rule: str) -> None:
    """A file that breaks a rule is told by the name of the rule, and by no other."""
    assert check(EXAMPLES[rule][0]) == [rule]


@pytest.mark.parametrize("rule", EXAMPLES)
def test_what_runs_is_left_alone(rule: str) -> None:
    """What the remedy says is not found."""
    assert check(*EXAMPLES[rule][1]) == []


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)", ["small-number"]),
        ("ALTER TABLE t ADD id smallserial PRIMARY KEY", ["small-number"]),
        ("ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0), ADD CONSTRAINT d CHECK (b > 0)", ["subcommands"]),
        ("CREATE DOMAIN d AS text", ["own-type"]),
        ("CREATE TYPE addr AS (street text)", ["own-type"]),
        ("CREATE TYPE floats AS RANGE (subtype = float8)", ["own-type"]),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT id FROM t; END", ["function-reads"]),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END'", []),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS 'BEGIN UPDATE t SET a = 1; END'", ["function-reads"]),
        ("SELECT current_setting('search_path')", ["session-value"]),
        ("CREATE TABLE t (id bigint); DROP TABLE t", []),
        ("CREATE TABLE t AS SELECT 1 AS a", ["no-primary-key"]),
        ("-- quart-tenants: accept no-primary-key: a log that nobody moves\nCREATE TABLE t (id bigint)", []),
    ],
)
def test_similar_statement_is_judged_by_what_it_does(text: str, rules: list[str]) -> None:
    """Statements that look alike differ in what Citus takes."""
    assert check(text) == rules


def test_finding_names_line_and_remedy() -> None:
    """Of a table without a key the line of its making is told, although a later file could have added the key."""
    (found,) = check_portable_files(number("SELECT 1;\n\nCREATE TABLE t (id bigint)", "SELECT 2"))

    assert (found.file, found.line, found.what) == ("0001_x.sql", 3, "t")
    assert found.remedy.startswith("give it one")


def test_names_of_both_checks_may_be_accepted_everywhere() -> None:
    """What a file accepts for Citus is no wrong name to `lint`, nor the other way round."""
    accepting = number(
        "-- quart-tenants: accept trigger: not for Citus\n-- quart-tenants: accept drop-column: unread\nSELECT 1"
    )

    assert lint_files(accepting) == check_portable_files(accepting) == []


@pytest.mark.parametrize(
    ("folder", "rules"),
    [
        ("sql/tenant", []),
        # It makes an index only where the server has the extension for it.
        ("examples/notes/migrations", [("0002_search.sql", "do-block")]),
    ],
)
def test_our_own_files_run_on_citus(folder: str, rules: list[tuple[str, str]]) -> None:
    """The tables of the reference app keep the rules, and what the example does otherwise is known."""
    found = check_portable_files(read_migrations(ROOT / folder))

    assert [(finding.file, finding.rule) for finding in found] == rules
