"""`quart-tenants status`: what it prints for people and for programs."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from quart_tenants.errors import DatabaseTimeoutError
from quart_tenants.postgres.fleet.status import FleetStatus
from quart_tenants.web.commands import status as status_module
from tests.web.commands.runs import Run, assert_misused, assert_refused, execute

DRIFT = """
ALTER TABLE globex.app_user ADD nickname text;
CREATE INDEX by_name ON globex.app_user (username);
"""
FAILURE = """
INSERT INTO quart_tenants.migration_failures (tenant_id, version, migration, reason, failed_at)
SELECT id, 1, '0002_more.sql', E'line 3:\n  no room', '2026-01-31 12:30+00'
FROM quart_tenants.tenants WHERE slug = 'acme'
"""
MAKE_MANY = """
INSERT INTO quart_tenants.tenants (slug, schema_name, display_name)
SELECT slug, slug, slug FROM (SELECT 'z' || n AS slug FROM generate_series(10, 34) AS n) AS x
"""


def test_status_of_a_fleet_at_rest_is_short(run: Run) -> None:
    """The first line says that nothing needs doing; then come the counts, and nothing is on stderr."""
    outcome = run("status")

    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "nothing needs doing",
        "4 tenants, 0 suspended; 0 more in the trash",
        "newest file: 0001_users_and_data.sql",
        "0001\t0001_users_and_data.sql\t4",
        "drift: none",
    ]


def test_status_names_what_is_wrong(run: Run, database_url: str) -> None:
    """The first line names what needs doing, its remedies follow, and each tenant is told; the exit status is 0."""
    execute(database_url, DRIFT)
    execute(database_url, FAILURE)
    execute(database_url, "UPDATE quart_tenants.applied_migrations SET sha256 = '' WHERE schema_name = 'company1'")

    outcome = run("status")

    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[:7] == [
        "3 things need doing: failed migrations, edited files, drift",
        "to do    failed migrations: 1 tenant, failed: acme (0002_more.sql: line 3: no room)",
        "         -> mend what the reason names, and run quart-tenants migrate",
        "to do    edited files: these were changed after they had run: 0001_users_and_data.sql (company1)",
        "         -> put them back as they ran, and write a new file for the change",
        "to do    drift: 1 tenant, with other tables than most at the same version: globex",
        "         -> status names the differences: write a migration for them, or undo them by hand",
    ]
    assert outcome.out.splitlines()[10:] == [
        "failed: 1 tenant",
        "  acme: 0002_more.sql, 2026-01-31 12:30 UTC: line 3: no room",
        "0001_users_and_data.sql was changed after it ran for: 1 tenant",
        "  company1",
        "drift: 1 tenant",
        "  globex at 0001",
        "    extra column app_user.nickname (text)",
        "    extra index by_name: CREATE INDEX by_name ON app_user USING btree (username)",
    ]


def test_status_cuts_long_lists_short(run: Run, database_url: str) -> None:
    """Of 25 tenants behind 20 are named, and how many more there are; with --json all are."""
    execute(database_url, MAKE_MANY)

    lines = run("status", "--no-drift").out.splitlines()
    document = json.loads(run("status", "--json").out)

    assert lines[0] == "1 thing needs doing: tenants behind"
    assert lines[6:10] == ["0000\tno migration\t25", "behind: 25 tenants", "  z10 at 0000", "  z11 at 0000"]
    assert lines[-3:] == ["  z29 at 0000", "  and 5 more; --json lists all", "drift: not compared"]
    assert len(document["behind"]) == 25
    assert document["drift"][-1] == {"slug": "z34", "version": 0, "differences": ["schema z34 is missing"]}


def test_status_as_json_is_one_document(run: Run, database_url: str) -> None:
    """Its keys are those of docs/commands.md, whatever was looked for."""
    execute(database_url, FAILURE)
    execute(database_url, "ALTER TABLE globex.app_user ADD nickname text")

    document = json.loads(run("status", "--json").out)
    without_drift = json.loads(run("status", "--json", "--no-drift").out)

    page = (Path(__file__).parents[3] / "docs" / "commands.md").read_text(encoding="utf-8")
    assert [task["check"] for task in document["tasks"]] == ["failed migrations", "drift"]
    assert document == {
        "tasks": document["tasks"],
        "newest_version": 1,
        "newest_file": "0001_users_and_data.sql",
        "tenants": 4,
        "suspended": 0,
        "trash": 0,
        "ready": 0,
        "versions": [{"version": 1, "file": "0001_users_and_data.sql", "count": 4}],
        "behind": [],
        "ahead": [],
        "failures": [
            {
                "slug": "acme",
                "migration": "0002_more.sql",
                "reason": "line 3:\n  no room",
                "failed_at": "2026-01-31T12:30:00+00:00",
            }
        ],
        "edited": [],
        "shared_version": 0,
        "shared_names": [],
        "nodes": {},
        "majorities": [{"version": 1, "slug": "acme", "count": 3, "compared": 4, "tied": False}],
        "drift": [{"slug": "globex", "version": 1, "differences": ["extra column app_user.nickname (text)"]}],
    }
    assert without_drift == {**document, "tasks": document["tasks"][:1], "majorities": None, "drift": None}
    assert [key for key in document if f"*{key}*" not in page] == []


def test_status_tells_a_tie(run: Run, database_url: str) -> None:
    """Where half the tenants differ from the other half, nobody can say which is right."""
    execute(database_url, "ALTER TABLE acme.app_user ADD x int; ALTER TABLE company2.app_user ADD x int")

    assert run("status").out.splitlines()[6:8] == [
        "no majority at 0001: the tables of acme count, the oldest tenant,"
        " but as many tenants have others (2 of 4 each)",
        "drift: 2 tenants",
    ]


@pytest.mark.parametrize("error", [DatabaseTimeoutError("too slow"), KeyboardInterrupt()])
def test_what_was_printed_stays_valid(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Where the comparison takes too long or is interrupted, everything else is printed all the same."""

    async def fail(*_: object, **__: object) -> FleetStatus:
        if isinstance(error, KeyboardInterrupt):
            # What Ctrl-C does, but for the signal: a shell lets what runs in its background ignore that.
            handle_interrupt = signal.getsignal(signal.SIGINT)
            assert callable(handle_interrupt)
            handle_interrupt(signal.SIGINT, None)
            await asyncio.Event().wait()
        raise error

    # As in a foreground, wherever the tests run.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(status_module, "add_drift", fail)
    try:
        text, document = run("status"), run("status", "--json")
    finally:
        signal.signal(signal.SIGINT, before)

    assert text.status == document.status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert text.out.splitlines()[:2] == ["nothing needs doing", "4 tenants, 0 suspended; 0 more in the trash"]
    assert text.out.splitlines()[-1] == "drift: not compared"
    assert json.loads(document.out)["tenants"] == 4
    assert json.loads(document.out)["drift"] is None


def test_status_refuses(run: Run, empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument is a usage error; without a registry the remedy is named."""
    assert_misused(run("status", "acme"))
    monkeypatch.setenv("QUART_TENANTS_DATABASE_URL", empty_database_url)
    assert_refused(run("status"), "run quart-tenants init")
