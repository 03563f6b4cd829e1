"""`init` with a role per tenant, and `doctor`."""

import json
from collections.abc import AsyncIterator

import pytest

from tests.databases import name_database
from tests.roles import dropping_roles, new_login
from tests.web.commands import Run, execute, make_run


@pytest.fixture(autouse=True)
def wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command here have the setting."""
    monkeypatch.setenv("QUART_TENANTS_ROLE_PER_TENANT", "true")


@pytest.fixture
async def url(server_url: str, database_url: str) -> AsyncIterator[str]:
    """`database_url`, and the end of its roles."""
    async with dropping_roles(server_url, database_url):
        yield database_url


@pytest.fixture
async def weak_url(server_url: str, url: str) -> AsyncIterator[str]:
    """The same database as a role that may make roles, and reads the registry."""
    name = url.partition("?")[0].rpartition("/")[2]
    async with new_login(server_url, "CREATEROLE") as login, dropping_roles(server_url, url):
        yield name_database(login, name)


def test_init_builds_the_wall_and_doctor_approves(run: Run, url: str) -> None:
    """`init` puts every tenant behind a role, a second one finds nothing to do, and `doctor` tells each check."""
    first = run("init")
    second = run("init")
    doctor = run("doctor")
    told = run("doctor", "--json")

    assert first.out.splitlines() == ["registry is up to date", "roles ready (4 tenants changed)"]
    assert second.out.splitlines() == ["registry is up to date", "roles are up to date"]
    assert (doctor.status, doctor.err) == (0, "")
    assert "ok       wall: " in doctor.out
    assert {finding["state"] for finding in json.loads(told.out)["findings"]} == {"ok", "warning"}


def test_doctor_ends_with_an_error_on_a_leak(run: Run, url: str) -> None:
    """A leak is told with its remedy, and the exit status is 1, also with --json."""
    execute(url, "GRANT USAGE ON SCHEMA acme TO PUBLIC")

    doctor = run("doctor")
    told = run("doctor", "--json")

    assert doctor.status == told.status == 1
    assert "LEAK     grants: " in doctor.out
    assert "-> REVOKE ALL ON SCHEMA" in doctor.out
    # The roles are not made yet either.
    assert doctor.err == told.err == "Error: not safe: grants, tenants' roles\n"
    assert [f["check"] for f in json.loads(told.out)["findings"] if f["state"] == "LEAK"] == [
        "grants",
        "tenants' roles",
    ]


def test_init_names_what_a_superuser_has_to_run(
    weak_url: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the rights `init` ends with status 1 and prints the statements; when they have run, it succeeds."""
    run = make_run(weak_url, monkeypatch, capsys)
    user = weak_url.partition("//")[2].partition(":")[0]
    name = url.partition("?")[0].rpartition("/")[2]
    tables = "ALL TABLES IN SCHEMA quart_tenants"
    execute(url, "DROP SCHEMA acme, globex, company1, company2 CASCADE; DELETE FROM quart_tenants.tenants")
    execute(url, f"GRANT ALL ON SCHEMA quart_tenants TO {user}; GRANT ALL ON {tables} TO {user}")
    execute(url, f"ALTER DATABASE {name} OWNER TO {user}")

    refused = run("init")
    statements = [line for line in refused.err.splitlines() if line.endswith(";")]
    for statement in statements:
        execute(url, statement)
    accepted = run("init")

    assert refused.status == 1
    assert "set_config" in refused.err
    assert "REVOKE UPDATE ON pg_catalog.pg_settings FROM PUBLIC;" in statements
    assert refused.err.splitlines()[-1].startswith("Error: the wall is not closed yet")
    assert (accepted.status, accepted.err) == (0, "")
