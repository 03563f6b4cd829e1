"""A disk that is full in the middle: the error says so, nothing is half done, and all goes on when there is room."""

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from quart_tenants.testing.databases import name_database
from tests.support.databases import REFERENCE_FILES, execute
from tests.support.processes import PROGRAM, make_environment, run_server, run_warm

pytestmark = pytest.mark.slow

STATE = """
SELECT
    (SELECT array_agg((slug, schema_name, dropped_at) ORDER BY id) FROM quart_tenants.tenants)::text,
    (
        SELECT array_agg((schema_name, version) ORDER BY schema_name, version) FROM quart_tenants.applied_migrations
    )::text,
    (SELECT array_agg(nspname ORDER BY nspname) FROM pg_namespace WHERE nspname !~ '^pg_')::text
"""
# A table needs new pages at once.
LARGE = "CREATE TABLE large AS SELECT repeat(md5(n::text), 50) AS text FROM generate_series(1, 2000) AS n"


@dataclass
class SmallDisk:
    """A file system that a file fills.

    Attributes:
        folder: Where it is.
        url: A database in a tablespace on it, a copy of the template.
    """

    folder: Path
    url: str

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                return

    def empty(self) -> None:
        """Give the room back."""
        (self.folder / "filler").unlink()


@pytest.fixture
def small_folder() -> Iterator[Path]:
    """A small file system in memory."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    # Not pytest's own folder, which the server's account cannot enter.
    with tempfile.TemporaryDirectory(prefix="quart-tenants-disk-") as folder:
        Path(folder).chmod(0o711)
        disk = Path(folder) / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=False).returncode:
            pytest.skip("this machine does not let even root mount one")
        try:
            yield disk
        finally:
            subprocess.run(["umount", disk], check=True)


@pytest.fixture
async def disk(server_url: str, template: str, small_folder: Path) -> AsyncIterator[SmallDisk]:
    """A database on a small file system. The server's log of transactions is elsewhere."""
    if "TEST_DATABASE_URL" in os.environ:
        pytest.skip("the server may be on another machine")
    space = small_folder / "space"
    space.mkdir()
    connection = await asyncpg.connect(server_url)
    try:
        owner = Path(await connection.fetchval("SHOW data_directory")).stat()
        os.chown(space, owner.st_uid, owner.st_gid)
        await connection.execute(f"CREATE TABLESPACE small_disk LOCATION '{space}'")
        await connection.execute(f"CREATE DATABASE on_small_disk TEMPLATE {template} TABLESPACE small_disk")
        yield SmallDisk(small_folder, name_database(server_url, "on_small_disk"))
        await connection.execute("DROP DATABASE on_small_disk WITH (FORCE)")
        await connection.execute("DROP TABLESPACE small_disk")
    finally:
        await connection.close()


async def look(url: str) -> tuple[object, ...]:
    """Return what the registry and the catalogue say."""
    connection = await asyncpg.connect(url)
    try:
        return tuple((await connection.fetch(STATE))[0])
    finally:
        await connection.close()


@pytest.mark.parametrize("command", ["create", "migrate", "restore", "backup"])
async def test_full_disk_leaves_nothing_half_done(disk: SmallDisk, tmp_path: Path, command: str) -> None:
    """The command says that the disk is full, changes nothing, and does its work when there is room."""
    files = tmp_path / "files"
    files.mkdir()
    for file in REFERENCE_FILES.iterdir():
        (files / file.name).write_bytes(file.read_bytes())
    environment = make_environment(QUART_TENANTS_DATABASE_URL=disk.url, QUART_TENANTS_MIGRATIONS_DIR=str(files))

    def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return run_warm(PROGRAM, *arguments, env=environment)

    arguments: dict[str, tuple[str | Path, ...]] = {
        "create": ("create", "newco"),
        "migrate": ("migrate", "--tenant", "acme"),
        "restore": ("restore", tmp_path / "acme.tar", "--as", "again"),
        "backup": ("backup", "acme", "-o", disk.folder / "acme.tar"),
    }
    if command == "restore":
        await execute(disk.url, LARGE.replace("TABLE large", "TABLE acme.large"))
        assert run("backup", "acme", "-o", tmp_path / "acme.tar").returncode == 0
    if command in ("create", "migrate"):
        (files / "0002_large.sql").write_text(LARGE)
    if command == "create":
        # So that it is the new tenant's first rows that find no room.
        assert run("migrate").returncode == 0
    before = await look(disk.url)
    disk.fill()
    names = sorted(path.name for path in disk.folder.iterdir())

    full = run(*arguments[command])

    after = await look(disk.url)
    left = sorted(path.name for path in disk.folder.iterdir())
    disk.empty()
    again = run(*arguments[command])
    print(full.stderr)  # noqa: T201  (for "pytest -n 0 -s")
    assert full.returncode == 1
    assert "No space left on device" in full.stderr
    assert "Traceback" not in full.stderr
    assert after == before
    assert left == names
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("password", ["foo", "wrong"], ids=["right password", "wrong password"])
async def test_login_on_a_full_disk_is_503_and_no_session(disk: SmallDisk, tmp_path: Path, password: str) -> None:
    """What cannot be counted is no login, also with the right password; a session goes on until its logout has room."""
    form = {"uname": "user_1", "passwd": password}
    with run_server(disk.url, tmp_path) as server:
        async with server.member() as member, server.tenant("company1") as visitor:
            await execute(disk.url, "TRUNCATE quart_tenants.failed_logins, quart_tenants.ended_sessions")
            disk.fill()
            login = await visitor.post("/login", data=form)
            read = await member.get("/data")
            logout = await member.post("/logout")
            still = await member.get("/data")
            disk.empty()
            counted = await count_logins(disk.url)
            again = await visitor.post("/login", data=form)
            left = await member.post("/logout")

    full = [(answer.status_code, answer.json()["code"]) for answer in (login, logout)]
    assert full == [(503, "database_full")] * 2
    assert "set-cookie" not in login.headers
    assert (read.status_code, still.status_code) == (200, 200)
    assert counted == 0
    assert again.status_code == (200 if password == "foo" else 401)
    assert left.status_code == 200


async def count_logins(url: str) -> int:
    """Return how many accounts and addresses the failed and the successful logins have been counted for."""
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM quart_tenants.failed_logins"))
    finally:
        await connection.close()
