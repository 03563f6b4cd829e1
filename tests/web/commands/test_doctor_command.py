"""`init` with a role per tenant, and `doctor`."""

import json
from collections.abc import AsyncIterator

import pytest

from quart_tenants.testing.databases import name_database
from tests.support.processes import SECRET_KEY
from tests.support.roles import dropping_roles, new_login
from tests.web.commands.runs import Run, assert_refused, execute, make_run

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def roles_on(monkeypatch: pytest.MonkeyPatch) -> None:
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
    async with new_login(server_url, "CREATEROLE") as login, dropping_roles(server_url, url):
        yield name_database(login, get_name(url))


@pytest.fixture
async def plain_url(server_url: str, url: str) -> AsyncIterator[str]:
    """The same database as a role that may do nothing."""
    async with new_login(server_url, "") as login, dropping_roles(server_url, url):
        yield name_database(login, get_name(url))


def get_name(url: str) -> str:
    """Return the name of the database."""
    return url.partition("?")[0].rpartition("/")[2]


def get_user(url: str) -> str:
    """Return the role that logs in."""
    return url.partition("//")[2].partition(":")[0]


def test_init_sets_roles_up_and_doctor_approves(run: Run, url: str) -> None:
    """`init` puts every tenant behind a role, a second one finds nothing to do, and `doctor` tells each check."""
    first = run("init")
    second = run("init")
    doctor = run("doctor")
    told = run("doctor", "--json")

    # What psql would run: nothing, for the tests log in as a superuser.
    assert first.out == second.out == ""
    taken, ready = first.err.splitlines()[1:]
    assert taken.startswith("taken from everybody: EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean); ")
    assert ready.startswith("roles ready (4 tenants changed); the owner of all schemas is quart_tenants_")
    assert second.err.splitlines()[0] == "registry is up to date"
    assert second.err.splitlines()[1].startswith("roles are up to date; ")
    assert (doctor.status, doctor.err) == (0, "")
    assert "ok       role isolation: " in doctor.out
    assert {finding["state"] for finding in json.loads(told.out)["findings"]} == {"ok", "warning"}


def test_doctor_ends_with_an_error_on_a_leak(run: Run, url: str) -> None:
    """A leak is told with its remedy, and the exit status is 1, also with --json; without roles no probe is made."""
    execute(url, "GRANT USAGE ON SCHEMA acme TO PUBLIC")

    doctor = run("doctor")
    told = run("doctor", "--json")

    assert doctor.status == told.status == 1
    assert "LEAK     grants: " in doctor.out
    assert "-> REVOKE ALL ON SCHEMA" in doctor.out
    assert "-> see tenants' roles above" in doctor.out
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
    user = get_user(weak_url)
    tables = "ALL TABLES IN SCHEMA quart_tenants"
    execute(url, "DROP SCHEMA acme, globex, company1, company2 CASCADE; DELETE FROM quart_tenants.tenants")
    execute(url, f"GRANT ALL ON SCHEMA quart_tenants TO {user}; GRANT ALL ON {tables} TO {user}")
    execute(url, f"ALTER DATABASE {get_name(url)} OWNER TO {user}")

    refused = run("init")
    statements = refused.out.splitlines()
    for statement in statements:
        execute(url, statement)
    accepted = run("init")

    assert refused.status == 1
    assert all(statement.startswith(("GRANT ", "REVOKE ")) and statement.endswith(";") for statement in statements)
    assert "REVOKE UPDATE ON pg_catalog.pg_settings FROM PUBLIC;" in statements
    assert refused.err.splitlines()[-1].startswith("Error: PUBLIC still has rights that tenants must not have")
    assert (accepted.status, accepted.out) == (0, "")
    assert "taken" not in accepted.err


def test_init_tells_a_common_reason_once(
    weak_url: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where every schema is another role's, as after a restore by a superuser, `init` tells that for the first only."""
    run = make_run(weak_url, monkeypatch, capsys)
    user = get_user(weak_url)
    tables = "ALL TABLES IN SCHEMA quart_tenants"
    execute(url, f"GRANT ALL ON SCHEMA quart_tenants TO {user}; GRANT ALL ON {tables} TO {user}")

    refused = run("init")

    told = [line for line in refused.err.splitlines() if "must be owner" in line]
    assert len(told) == 1
    assert told[0].startswith("acme: schema 'acme' cannot be given a role of its own: must be owner of schema acme")
    assert refused.err.splitlines()[-2:] == [
        "the same for globex, company1, company2",
        "Error: 4 of 4 tenants failed",
    ]


def test_init_without_the_right_to_make_roles_names_no_role_that_is_gone(
    plain_url: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An owner whose making was refused is not in the message, for its name went with the transaction."""
    run = make_run(plain_url, monkeypatch, capsys)
    execute(url, f"GRANT ALL ON SCHEMA quart_tenants TO {get_user(plain_url)}")
    execute(url, f"GRANT ALL ON ALL TABLES IN SCHEMA quart_tenants TO {get_user(plain_url)}")

    refused = run("init")
    execute(url, "DROP SCHEMA acme, globex, company1, company2 CASCADE; DELETE FROM quart_tenants.tenants")
    make_run(url, monkeypatch, capsys)("init")
    known = make_run(plain_url, monkeypatch, capsys)("init")

    assert refused.status == known.status == 1
    assert "GRANT the owner role that it names TO this one" in refused.err
    assert 'GRANT "quart_tenants_' in known.err


def test_server_without_the_rights_of_the_registry_does_not_start(
    plain_url: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`serve` names the missing rights and their GRANTs in one line: for reading, and for what a login writes."""
    monkeypatch.setenv("QUART_SECRET_KEY", SECRET_KEY)
    run, user = make_run(plain_url, monkeypatch, capsys), get_user(plain_url)

    nothing = run("serve", "--port", "0")
    execute(url, f"GRANT USAGE ON SCHEMA quart_tenants TO {user}")
    execute(url, f"GRANT SELECT ON quart_tenants.applied_migrations TO {user}")
    one_table = run("serve", "--port", "0")
    execute(url, f"GRANT SELECT ON ALL TABLES IN SCHEMA quart_tenants TO {user}")
    reading = run("serve", "--port", "0")
    doctor = run("doctor")

    grants = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA quart_tenants TO …"
    assert_refused(nothing, "permission denied for schema quart_tenants", grants)
    assert_refused(one_table, "permission denied for ", grants)
    assert_refused(reading, "INSERT on failed_logins", grants)
    assert "failed   registry's rights: this role lacks " in doctor.out


def test_schema_of_another_role_is_refused_with_a_remedy(
    plain_url: str, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that lacks a right says what to do about it."""
    run, user = make_run(plain_url, monkeypatch, capsys), get_user(plain_url)
    execute(url, f"GRANT ALL ON SCHEMA quart_tenants TO {user}; GRANT CREATE ON DATABASE {get_name(url)} TO {user}")
    execute(url, f"GRANT ALL ON ALL TABLES IN SCHEMA quart_tenants TO {user}")

    dropped = run("drop", "acme", "--yes")

    assert_refused(dropped, "must be owner of schema acme", "ALTER … OWNER TO it")
