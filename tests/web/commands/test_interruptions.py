"""Ctrl-C in the middle of a command: nothing is half done, and the exit status says what happened."""

import signal
from pathlib import Path

import asyncpg
import pytest

from tests.support.databases import REFERENCE_FILES
from tests.support.patience import DEADLINE, wait_until
from tests.support.processes import PROGRAM, make_environment, run_warm, run_warm_program

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("foreground")]

STATE = """
SELECT
    (SELECT array_agg((slug, display_name, suspended_at, dropped_at) ORDER BY id) FROM quart_tenants.tenants)::text,
    (
        SELECT array_agg((schema_name, version) ORDER BY schema_name, version) FROM quart_tenants.applied_migrations
    )::text,
    (SELECT array_agg(nspname ORDER BY nspname) FROM pg_namespace WHERE nspname !~ '^pg_')::text
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("create", "newco"), ""),
        (("create-many", "list.csv"), "0 of 2 tenants were made; go on with --skip-existing"),
        (("adopt", "old"), ""),
        (("migrate",), "interrupted: 0 of 4 tenants done; run it again to go on"),
        (("rename", "acme", "zenith"), ""),
        (("suspend", "acme"), ""),
        (("drop", "acme", "--yes"), ""),
        (("purge", "gone", "--yes"), ""),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
async def test_ctrl_c_leaves_nothing_half_done(
    database_url: str, tmp_path: Path, command: tuple[str, ...], said: str
) -> None:
    """A command that is interrupted while it writes has changed nothing, says so, and ends with status 130."""
    (tmp_path / "list.csv").write_text("slug,name\nnewco,New\nother,Other\n")
    files = tmp_path / "files"
    files.mkdir()
    for file in REFERENCE_FILES.iterdir():
        (files / file.name).write_bytes(file.read_bytes())
    if command == ("migrate",):
        (files / "0002_colour.sql").write_text("ALTER TABLE company_data ADD COLUMN colour text")
    environment = {
        "QUART_TENANTS_DATABASE_URL": database_url,
        "QUART_TENANTS_MIGRATIONS_DIR": str(files),
        "QUART_TENANTS_ACQUIRE_TIMEOUT": "60",
        "QUART_TENANTS_CONNECT_TIMEOUT": "60",
    }
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("CREATE SCHEMA old")
        if command[0] == "purge":
            for made in (("create", "gone"), ("drop", "gone", "--yes")):
                run_warm(PROGRAM, *made, env=make_environment(**environment)).check_returncode()
        before = await connection.fetchrow(STATE)
        async with connection.transaction():
            # Each of these commands writes here, or into the ledger of migrations, before it commits.
            await connection.execute(
                "LOCK quart_tenants.tenants, quart_tenants.changes, quart_tenants.applied_migrations IN SHARE MODE"
            )
            log = tmp_path / "log"
            with run_warm_program(*command, log=log, cwd=tmp_path, **environment) as process:

                async def waits() -> bool:
                    assert process.poll() is None, log.read_text()
                    return bool(
                        await connection.fetchval(
                            "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = "
                            "(SELECT oid FROM pg_database WHERE datname = current_database())"
                        )
                    )

                await wait_until(waits)
                process.send_signal(signal.SIGINT)
                process.wait(DEADLINE)
            out, err = (tmp_path / "log.out").read_text(), log.read_text()
        after = await connection.fetchrow(STATE)
    finally:
        await connection.close()

    assert process.returncode == 130, err
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert err.count("Aborted!") == 1
    assert after == before
