"""The contract with a role per tenant: the reference app serves as before, once the roles are there."""

import subprocess
from pathlib import Path

import httpx
import pytest

from quart_tenants.settings import Settings
from tests.support.processes import PROGRAM, SECRET_KEY, make_environment, run_server

pytestmark = pytest.mark.slow

_ROLES = "QUART_TENANTS_ROLE_PER_TENANT"


def test_server_does_not_start_without_the_roles_it_is_to_have(database_url: str) -> None:
    """With the setting on and `init` not run again, `serve` ends with status 1 and says what to run."""
    environment = make_environment(
        QUART_TENANTS_DATABASE_URL=database_url, QUART_SECRET_KEY=SECRET_KEY, **{_ROLES: "true"}
    )

    done = subprocess.run(
        [PROGRAM, "serve", "--port", "0"], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "tenants' roles" in done.stderr
    assert "run quart-tenants init" in done.stderr
    assert "Traceback" not in done.stderr


async def test_app_serves_with_roles(roles_settings: Settings, tmp_path: Path) -> None:
    """Login, data, a new password and logout work as a role that reaches one schema only."""
    with run_server(roles_settings.required_database_url, tmp_path, **{_ROLES: "true"}) as server:
        async with server.member(1) as member:
            data = await member.get("/data")
            changed = await member.post("/password", data={"passwd": "foo", "new_passwd": "another one"})
            wrong = await member.post("/login", data={"uname": "user_1", "passwd": "foo"})
            left = await member.post("/logout")

    assert data.json()["data"][0]["description"] == "company 1 data"
    assert changed.status_code == left.status_code == httpx.codes.OK
    assert wrong.status_code == httpx.codes.UNAUTHORIZED
