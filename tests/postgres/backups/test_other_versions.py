"""A backup travels to a server of the same PostgreSQL or a newer one, and is refused by an older one."""

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from quart_tenants.domain import Domain
from quart_tenants.errors import BackupFileError
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.backup_files import read_backup
from quart_tenants.postgres.backups.restore import restore_tenant
from quart_tenants.postgres.backups.restored_names import restore_names
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.tenants.domains import add_domain, list_domains
from quart_tenants.postgres.tenants.lifecycle import rename_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from quart_tenants.testing.databases import new_database
from tests.postgres.backups.corpus import GROUPS, list_groups
from tests.postgres.backups.parts import ACME, EVERYTHING, describe, fill, photograph, remember
from tests.support.databases import fill_template
from tests.support.patience import wait_in_thread_until
from tests.support.processes import PROGRAM, make_environment

OLD = Path("/usr/lib/postgresql/15/bin")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (OLD / "postgres").exists(), reason="needs Debian's PostgreSQL 15"),
    pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="TEST_DATABASE_URL names another server"),
]

MOVED = Slug("moved")
BOTH_VERSIONS = 170000
"""The corpus for this version can be made on 15 and on 18, but for two files."""
# 15 has no infinite intervals; from 17 on a materialized view is filled with a path that hides the tables.
NOT_ON_BOTH = {"every_type_of_the_server", "a_function_without_a_schema_that_reads_rows"}
ROWS = re.compile(r"^COPY .*?^\\\.$", re.MULTILINE | re.DOTALL)
# 18 has a name for each NOT NULL, and a partition keeps that of its parent.
NAME_OF_NOT_NULL = re.compile(r"CONSTRAINT \S+ (?=NOT NULL)")


@pytest.fixture(scope="module")
def old_server_url() -> Iterator[str]:
    """The URL of a PostgreSQL 15 that runs for these tests alone, and is reached by a socket only."""
    # PostgreSQL does not run as root.
    account = 65534 if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="quart-tenants-tests-") as parent:
        Path(parent).chmod(0o711)
        folder = Path(parent) / "data"
        folder.mkdir(mode=0o700)
        if account is not None:
            os.chown(folder, account, account)
        make: list[str | Path] = [
            OLD / "initdb",
            "--no-sync",
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            folder,
        ]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, user=account, group=account)
        run: list[str | Path] = [OLD / "postgres", "-D", folder, "-k", folder, "-c", "listen_addresses=", "-F"]
        url = f"postgresql://postgres@/postgres?host={folder}"
        with (Path(parent) / "log").open("wb") as log:
            server = subprocess.Popen(run, cwd=folder, stderr=log, user=account, group=account)
        try:
            wait_in_thread_until(lambda: asyncio.run(answers(url)))
            yield url
        finally:
            server.terminate()
            server.wait()


async def answers(url: str) -> bool:
    """Return whether a connection succeeds."""
    try:
        connection = await asyncpg.connect(url)
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


@pytest.fixture
async def old_settings(settings: Settings, old_server_url: str) -> AsyncIterator[Settings]:
    """Settings for a database of the old server, with the same four tenants."""
    async with new_database(old_server_url) as url:
        await fill_template(url)
        yield replace(settings, database_url=url)


@pytest.fixture
async def old_database(old_settings: Settings) -> AsyncIterator[Database]:
    """A pool on `old_settings`."""
    async with await Database.open(old_settings) as database:
        yield database


async def test_tenant_moves_to_a_newer_server_with_its_names(
    database: Database, settings: Settings, old_database: Database, old_settings: Settings, tmp_path: Path
) -> None:
    """A tenant of PostgreSQL 15 comes up on 18 with everything in its schema, its domains and its former slugs."""
    file = tmp_path / "acme.tar"
    statements = EVERYTHING.partition("GRANT")[0]
    await fill(old_database, await get_tenant(old_database, ACME), statements)
    await rename_tenant(old_database, ACME, Slug("zenith"), settings=old_settings)
    await add_domain(old_database, Slug("zenith"), Domain("shop.acme.test"), settings=old_settings, trusted=True)
    await backup_tenant(old_database, Slug("zenith"), file, settings=old_settings)
    shutil.copy(file, tmp_path / "copied.tar")

    moved = await restore_tenant(database, tmp_path / "copied.tar", Slug("zenith"), settings=settings)
    names = await restore_names(database, read_backup(file), moved, settings=settings)

    assert read_backup(file).server_version // 10000 == 15
    # PostgreSQL 18 names each NOT NULL as a constraint.
    described = [line for line in await describe(database, moved.schema.name) if "_not_null NOT NULL" not in line]
    assert described == await describe(old_database, "acme")
    async with database.tenant_connection(moved) as connection:
        assert await connection.fetchval("SELECT count(*) FROM notes") == 3
    # acme is another tenant here.
    assert (names.claimed, names.redirected, list(names.refused)) == (["shop.acme.test"], [], ["acme"])
    assert [own.token for own in await list_domains(database, Slug("zenith"))] == [
        own.token for own in await list_domains(old_database, Slug("zenith"))
    ]


@pytest.mark.parametrize("group", GROUPS)
async def test_what_people_really_have_moves_to_a_newer_server(
    database: Database,
    settings: Settings,
    acme: Tenant,
    old_database: Database,
    old_settings: Settings,
    tmp_path: Path,
    group: int,
) -> None:
    """A schema of PostgreSQL 15 has every row on 18, and is there what the same SQL makes there."""
    old_acme = await get_tenant(old_database, ACME)
    for schema in list_groups(BOTH_VERSIONS)[group]:
        for each, tenant in ((old_database, old_acme), (database, acme)):
            if schema.stem not in NOT_ON_BOTH:
                await fill(each, tenant, schema.read_text(encoding="utf-8"))
    file = tmp_path / "acme.tar"

    await backup_tenant(old_database, ACME, file, settings=old_settings, verify=True)
    await restore_tenant(database, file, MOVED, settings=settings)

    moved, rows = await photograph(database, settings, MOVED)
    made_here, _ = await photograph(database, settings, ACME)
    _, old_rows = await photograph(old_database, old_settings, ACME)
    assert rows == old_rows
    assert list_lines(moved) == list_lines(made_here)


def list_lines(dumped: str) -> list[str]:
    """Return what a dump says of the objects. The rows have the time at which they were written."""
    return NAME_OF_NOT_NULL.sub("", ROWS.sub("", dumped)).splitlines()


async def test_command_says_that_the_server_is_another(
    database_url: str, old_database: Database, old_settings: Settings, tmp_path: Path
) -> None:
    """`restore` says from which version of PostgreSQL a backup is, if this server has another."""
    file = tmp_path / "acme.tar"
    await backup_tenant(old_database, ACME, file, settings=old_settings)

    restored = await asyncio.to_thread(
        subprocess.run,
        [str(PROGRAM), "restore", str(file), "--as", MOVED],
        env=make_environment(QUART_TENANTS_DATABASE_URL=database_url, QUART_TENANTS_AUDIT="false"),
        capture_output=True,
        text=True,
        check=True,
    )

    assert restored.stdout == "restored moved (schema moved, at moved.localhost)\n"
    assert restored.stderr == "it was made from PostgreSQL 15, and this server is 18\n"


async def test_tenant_moves_between_old_servers(old_database: Database, old_settings: Settings, tmp_path: Path) -> None:
    """The programs of PostgreSQL 18 write a backup of 15 that they can restore into 15."""
    file = tmp_path / "acme.tar"
    await fill(old_database, await get_tenant(old_database, ACME), "CREATE TABLE notes (n integer)")
    await backup_tenant(old_database, ACME, file, settings=old_settings)

    moved = await restore_tenant(old_database, file, MOVED, settings=old_settings)

    assert await describe(old_database, moved.schema.name) == await describe(old_database, "acme")


async def test_older_server_refuses_a_backup_of_a_newer_one(
    backup_file: Path, old_database: Database, old_settings: Settings
) -> None:
    """A backup of PostgreSQL 18 does not become a tenant on 15; the error says both versions and what to do."""
    before = await remember(old_database)

    with pytest.raises(BackupFileError, match=r"made from PostgreSQL 18, and this server is 15; restore it into one"):
        await restore_tenant(old_database, backup_file, MOVED, settings=old_settings)

    assert await remember(old_database) == before
