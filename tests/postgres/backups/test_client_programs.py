"""PostgreSQL's own programs: which are taken, what they are told, and how names are quoted for them."""

from pathlib import Path

import pytest

from quart_tenants.errors import (
    ClientProgramError,
)
from quart_tenants.postgres.backups.client_programs import ClientPrograms, build_environment, find_client_programs
from quart_tenants.tenant import SchemaName, quote_literal


def test_password_is_on_no_command_line() -> None:
    """Passwords travel in the environment, and of the user's own variables only those that the driver reads, too."""
    url = "postgresql://us%40er:p%3Aw@[::1]:5433,db.test/na%2Fme?sslmode=require&sslrootcert=/ca.pem"
    programs = ClientPrograms(Path("/bin"))

    environment = build_environment(
        url, {"PGSERVICE": "mine", "PGOPTIONS": "-c x=y", "PGPASSWORD": "mine", "HOME": "/"}
    )
    commands = [programs.dump(SchemaName("acme"), "1-1"), programs.write_sql(), programs.run_sql()]

    assert environment == {
        "HOME": "/",
        "LC_ALL": "C",
        "PGAPPNAME": "quart_tenants",
        "PGCLIENTENCODING": "UTF8",
        "PGHOST": "::1,db.test",
        "PGPORT": "5433,",
        "PGUSER": "us@er",
        "PGPASSWORD": "p:w",
        "PGDATABASE": "na/me",
        "PGSSLMODE": "require",
        "PGSSLROOTCERT": "/ca.pem",
    }
    assert not any("p:w" in str(argument) for command in commands for argument in command)


def test_socket_of_the_embedded_server_is_found() -> None:
    """A socket's folder stands behind the question mark; without any host the driver's own places are searched."""
    embedded = build_environment("postgresql://postgres@/qt?host=%2Frun%2Fa%20b&port=5432", {})
    default = build_environment("postgresql:///qt", {})

    assert (embedded["PGHOST"], embedded["PGPORT"], embedded["PGUSER"]) == ("/run/a b", "5432", "postgres")
    assert "PGPASSWORD" not in embedded
    assert default["PGHOST"].split(",")[0] == "/run/postgresql"
    assert "PGPORT" not in default


async def test_programs_are_not_older_than_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on PATH are taken if new enough, then the wheel's, which speak no TLS; else the remedy is named."""
    for name in ("pg_dump", "pg_restore", "psql"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 16.1'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    on_path = await find_client_programs(16)
    embedded = await find_client_programs(17)
    with pytest.raises(ClientProgramError, match=r"of PostgreSQL 99 or newer.*version 16, .*version 18; install"):
        await find_client_programs(99)

    assert on_path.folder == tmp_path
    assert (embedded.folder / "postgres").exists()


def test_literals_are_quoted_like_the_server_does() -> None:
    """No text ends its quotes early, whatever is in it."""
    assert quote_literal("it's") == "'it''s'"
    assert quote_literal("a\\'b") == "E'a\\\\''b'"
    assert quote_literal(7) == "7"
