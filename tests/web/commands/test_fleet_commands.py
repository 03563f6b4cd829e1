"""`quart-tenants migrate`: what it prints, where, and how it ends."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quart_tenants.resources import get_resource_path
from tests.web.commands.runs import Run

Add = Callable[[str, str], None]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Add:
    """Add a migration after the one that all tenants have."""
    first = get_resource_path("sql/tenant/0001_users_and_data.sql")
    (tmp_path / first.name).write_bytes(first.read_bytes())
    monkeypatch.setenv("QUART_TENANTS_MIGRATIONS_DIR", str(tmp_path))

    def write(name: str, sql: str) -> None:
        (tmp_path / name).write_text(sql)

    return write


def test_migrate_says_what_it_did(run: Run, add: Add) -> None:
    """One line with the counts; with nothing to do it says so; both are successes."""
    add("0002_nickname.sql", "ALTER TABLE app_user ADD COLUMN nickname text")

    planned = run("migrate", "--dry-run", "--canary", "acme")
    first = run("migrate")
    second = run("migrate")

    assert (planned.status, planned.err) == (0, "")
    assert planned.out == (
        "would migrate 4 tenants to 0002_nickname.sql; already there: 0\n"
        "first: acme\n"
        "at 0001: 4 tenants: acme, globex, company1, company2\n"
    )
    assert (first.status, first.err) == (0, "")
    assert first.out.startswith("migrated 4 tenants to 0002_nickname.sql in ")
    assert first.out.endswith("0 failed, 0 not tried, already there: 0\n")
    assert (second.status, second.out) == (0, "nothing to do: 4 tenants at 0002_nickname.sql or newer\n")


def test_migrate_names_who_failed_and_ends_with_one(run: Run, add: Add) -> None:
    """Each failure is a line on stderr; stdout says who stands where, exactly."""
    add("0002_text.sql", "ALTER TABLE company_data ADD CHECK (description <> 'company 1 data')")

    failed = run("migrate")

    assert failed.status == 1
    assert failed.err.startswith("company1 stays at 0001: migration 0002_text.sql failed in schema 'company1'")
    assert failed.err.count("\n") == 1
    assert "1 failed, 0 not tried" in failed.out
    assert failed.out.endswith("at 0001: 1 tenant: company1\n")


def test_migrate_says_why_it_stopped(run: Run, add: Add) -> None:
    """Who was not tried reads what was in the way, and what to do."""
    add("0002_broken.sql", "ALTER TABLE nowhere ADD COLUMN nothing text")

    by_canary = run("migrate", "--canary", "acme")
    by_failures = run("migrate", "--max-failures", "2", "--jobs", "1")

    assert by_canary.err.splitlines()[-1] == "stopped: the canary acme failed; mend it, and run migrate again"
    assert by_failures.err.splitlines()[-1] == "stopped: 2 tenants failed; mend it, and run migrate again"
    assert (by_canary.status, by_failures.status) == (1, 1)


def test_migrate_of_what_lies_in_the_trash_says_so(run: Run, add: Add) -> None:
    """After a drop `undrop` comes first."""
    run("drop", "acme", "--yes")

    refused = run("migrate", "--tenant", "acme")

    assert refused.status == 1
    assert "tenant 'acme' is in the trash; the command `undrop acme` brings it back" in refused.err


def test_migrate_speaks_json(run: Run, add: Add) -> None:
    """With `--json` stdout is one document, of the plan and of the result."""
    add("0002_text.sql", "ALTER TABLE company_data ADD CHECK (description <> 'company 1 data')")

    planned = json.loads(run("migrate", "--dry-run", "--json", "--tenant", "acme", "--tenant", "globex").out)
    result = run("migrate", "--json", "--max-failures", "1", "--canary", "company1")
    told = json.loads(result.out)

    assert told["failed"][0]["version"] == 1
    assert planned == {
        "target": 2,
        "up_to_date": 0,
        "canaries": [],
        "behind": [{"slug": "acme", "version": 1}, {"slug": "globex", "version": 1}],
    }
    assert result.status == 1
    assert (told["migrated"], [failure["slug"] for failure in told["failed"]]) == (0, ["company1"])
    assert [left["slug"] for left in told["not_tried"]] == ["acme", "globex", "company2"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--tenant", "nobody"], 1, "no tenant answers at 'nobody'"),
        (["--canary", "nobody"], 1, "no tenant answers at 'nobody'"),
        (["--tenant", "Not A Slug"], 1, "cannot be a tenant"),
        (["--canary", "Not A Slug"], 1, "cannot be a tenant"),
        (["--canary", "acme", "--tenant", "globex"], 2, "the canary acme is none of those that --tenant names"),
        (["--to", "7"], 1, "there is no migration 0007; the newest is 0001_users_and_data.sql"),
        (["--to", "x"], 2, "Invalid value for '--to'"),
        (["--jobs", "0"], 2, "Invalid value for '--jobs'"),
        (["--max-failures", "0"], 2, "Invalid value for '--max-failures'"),
    ],
)
def test_migrate_refuses_what_it_cannot_understand(
    run: Run, add: Add, arguments: list[str], status: int, message: str
) -> None:
    """The error names what was wrong, on stderr only."""
    refused = run("migrate", *arguments)

    assert (refused.status, refused.out) == (status, "")
    assert message in refused.err


@pytest.mark.parametrize(
    ("name", "sql", "message"),
    [
        ("0003_gap.sql", "SELECT 1", "0003_gap.sql: expected number 0002"),
        ("0001_double.sql", "SELECT 1", "expected number 0002"),
        ("0002_open.sql", "SELECT 1;\nSELECT 'open", "0002_open.sql: line 2: unterminated quoted string"),
        ("2_short.sql", "SELECT 1", "2_short.sql: a migration is named like 0001_what_it_does.sql"),
    ],
)
def test_migrate_refuses_a_folder_that_is_wrong(run: Run, add: Add, name: str, sql: str, message: str) -> None:
    """A missing number, a double, an open quote: the file and the line are named, and nothing runs."""
    add(name, sql)

    refused = run("migrate")

    assert (refused.status, refused.out) == (1, "")
    assert message in refused.err


def test_rehearsal_says_what_a_migration_would_do(run: Run, add: Add) -> None:
    """It names tables and an estimate, as lines or as one document, and the tenants stay where they are."""
    add("0002_rewrite.sql", "ALTER TABLE company_data ALTER id TYPE integer")

    told = run("migrate", "--rehearse", "--sample", "1")
    document = json.loads(run("migrate", "--rehearse", "--sample", "1", "--json").out)
    planned = run("migrate", "--dry-run")

    assert told.status == 0
    assert told.out.startswith("rehearsed 0002_rewrite.sql on copies of 1 of 4 tenants; the copies are deleted\n")
    assert "locks company_data (ACCESS EXCLUSIVE) for " in told.out
    assert "rewrites company_data (" in told.out
    assert "all 4 tenants, one after the other: about " in told.out
    (tenant,) = document["tenants"]
    assert [file["file"] for file in tenant["files"]] == ["0002_rewrite.sql"]
    assert (document["target"], document["behind"], tenant["error"]) == (2, 4, None)
    assert planned.out.startswith("would migrate 4 tenants")


def test_rehearsal_that_fails_ends_with_one(run: Run, add: Add) -> None:
    """The copy's error is on stderr, and options that exclude each other are a mistake."""
    add("0002_broken.sql", "ALTER TABLE nowhere ADD COLUMN nothing text")

    failed = run("migrate", "--rehearse", "--sample", "1")

    assert failed.status == 1
    assert "a copy of " in failed.err
    assert "0002_broken.sql" in failed.err
    assert run("migrate", "--rehearse", "--dry-run").status == 2
    assert run("migrate", "--sample", "2").status == 2


def test_lint_names_dangers_and_ends_with_one(run: Run, add: Add, tmp_path: Path) -> None:
    """One line for each danger; the files may be named, and no database is needed."""
    add("0002_drop.sql", "SELECT 1;\nDROP TABLE company_data")
    add("0003_fine.sql", "CREATE TABLE fine (x int)")

    everything = run("lint")
    named = run("lint", str(tmp_path / "0003_fine.sql"))
    later = run("lint", "--from", "3")
    missing = run("lint", str(tmp_path / "0004_none.sql"))

    assert everything.status == 1
    assert everything.out.startswith("0002_drop.sql:2: drop-table: company_data: drop it in a later file")
    assert everything.err == "1 danger; accept one by -- quart-tenants: accept RULE: reason\n"
    assert (named.status, named.out, later.status) == (0, "", 0)
    assert missing.status == 1
    assert "0004_none.sql: there is no such file" in missing.err


def test_tenants_are_made_in_advance(run: Run, add: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prepare` says what it did, `create` takes one, `status` counts them, and `migrate` makes them anew."""
    monkeypatch.setenv("QUART_TENANTS_READY_TENANTS", "2")

    prepared = run("prepare")
    created = run("create", "newco")
    counted = run("status", "--no-drift")
    add("0002_nickname.sql", "ALTER TABLE app_user ADD COLUMN nickname text")
    part = run("migrate", "--tenant", "acme")
    whole = run("migrate")
    monkeypatch.setenv("QUART_TENANTS_READY_TENANTS", "0")
    none = run("prepare")

    assert (prepared.status, prepared.out, prepared.err) == (0, "2 ready; 2 made, 0 thrown away\n", "")
    assert created.out == "created newco (schema newco, at newco.localhost)\n"
    assert "made in advance: 1 of 2" in counted.out.splitlines()
    assert part.err == ""
    assert (whole.status, whole.err) == (0, "tenants made in advance: 2 ready; 2 made, 1 thrown away\n")
    assert none.out == "0 ready; 0 made, 2 thrown away\n"
