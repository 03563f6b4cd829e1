"""Which PostgreSQL the tests use: the embedded one, and never by accident one that the machine has."""

import os
import shutil
import subprocess

import asyncpg
import pytest

from quart_tenants.postgres.embedded.embedded_server import MAJOR_VERSION
from tests.conftest import OLD_VERSION, POSTGRESQL_PROGRAMS


@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="TEST_DATABASE_URL names another server")
async def test_server_is_the_embedded_one(server_url: str) -> None:
    """Without `TEST_DATABASE_URL` the server has the version of the wheel, and lies in a folder of the tests' own."""
    connection = await asyncpg.connect(server_url)
    try:
        version = await connection.fetchval("SELECT current_setting('server_version_num')::integer")
        folder = await connection.fetchval("SHOW data_directory")
    finally:
        await connection.close()

    assert version // 10000 == MAJOR_VERSION
    assert "/quart-tenants-tests-" in folder


@pytest.mark.parametrize("name", POSTGRESQL_PROGRAMS)
def test_program_on_path_is_of_no_use(name: str) -> None:
    """Whoever would run the machine's own program gets one that calls itself older than any server, and fails."""
    program = shutil.which(name)
    assert program is not None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)

    assert said.stdout == f"{name} (PostgreSQL) {OLD_VERSION}\n"
    assert done.returncode == 97
