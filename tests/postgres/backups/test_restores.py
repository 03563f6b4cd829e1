"""What a restore makes of a backup, and what it refuses without changing anything."""

import asyncio
import io
import json
import os
import secrets
import signal
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from quart_tenants.errors import (
    BackupFileError,
    ClientProgramError,
    DatabaseUnavailableError,
    InvalidSlugError,
    TenantBusyError,
    TenantError,
    TenantExistsError,
    TenantInTrashError,
    UnknownTenantError,
)
from quart_tenants.postgres.backups.backup import backup_tenant
from quart_tenants.postgres.backups.client_programs import build_environment, find_client_programs
from quart_tenants.postgres.backups.manifests import digest_manifest
from quart_tenants.postgres.backups.pipes import parse_pipe
from quart_tenants.postgres.backups.restore import copy_tenant, restore_tenant
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.tenants.lifecycle import change_tenant_settings, rename_tenant
from quart_tenants.postgres.tenants.trash import drop_tenant, list_trash, undrop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import Slug, Tenant
from quart_tenants.testing.databases import new_database
from tests.postgres.backups.parts import (
    ACME,
    COPY,
    EVERYTHING,
    GLOBEX,
    fetch,
    fill,
    outside,
    remember,
    wait_for_waiting,
)
from tests.postgres.conftest import Role
from tests.support.patience import wait_until

pytestmark = pytest.mark.slow

# In the place of a living tenant


async def test_replacing_is_one_step_for_readers_and_can_be_undone(
    database: Database, settings: Settings, acme: Tenant, backup_file: Path
) -> None:
    """A reader sees the old rows or the new ones; the tenant keeps its number, and the old rows come back beside it."""
    await fill(database, acme, "DELETE FROM app_user WHERE username = 'b'; UPDATE app_user SET username = 'changed'")
    seen: list[list[str]] = []
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            async with database.tenant_connection(acme) as connection:
                seen.append([row[0] for row in await connection.fetch("SELECT username FROM app_user ORDER BY id")])

    reading = asyncio.create_task(read())
    slugs: list[Slug] = []
    restored = await restore_tenant(
        database, backup_file, ACME, settings=settings, replace=True, on_replaced=slugs.append
    )
    done.set()
    await reading

    assert restored == acme
    assert seen[0] == ["changed"]
    assert {tuple(names) for names in seen} <= {("changed",), ("a", "b")}
    (trashed,) = await list_trash(database)
    assert slugs == [trashed.slug] == [f"acme-replaced-{trashed.id}"]
    async with database.tenant_connection(acme) as connection:
        assert await connection.fetchval("SELECT array_agg(username ORDER BY id) FROM app_user") == ["a", "b"]

    old = await undrop_tenant(database, trashed.slug, settings=settings)

    assert (old.name, old.version) == (acme.name, acme.version)
    async with database.tenant_connection(old) as connection:
        assert await connection.fetchval("SELECT array_agg(username) FROM app_user") == ["changed"]


async def test_replacing_in_two_steps_shows_a_gap(database: Database) -> None:
    """Negative control: when the old schema goes before the new one comes, a reader in between fails."""
    await fetch(database, "ALTER SCHEMA acme RENAME TO old")

    with pytest.raises(asyncpg.UndefinedTableError):
        await fetch(database, "SELECT username FROM acme.app_user")


async def test_settings_come_back_with_a_new_tenant_and_stay_with_a_living_one(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    """What the app remembers is the customer's: a copy for somebody else has none of it, nor has a piped file."""
    await change_tenant_settings(database, acme.slug, {"plan": "it's", "seats": [1, {"a": None}]})
    file, piped = tmp_path / "acme.tar", tmp_path / "piped.tar"
    kept = (await backup_tenant(database, ACME, file, settings=settings)).settings
    in_clear = await backup_tenant(database, ACME, piped, settings=settings, pipe=parse_pipe("cat"))
    await change_tenant_settings(database, ACME, {"plan": "large", "seats": None})

    beside = await restore_tenant(database, file, Slug("besides"), settings=settings)
    replaced = await restore_tenant(database, file, ACME, settings=settings, replace=True)
    copied = await copy_tenant(database, beside.slug, COPY, "A copy", settings=settings)
    (trashed,) = await list_trash(database)
    undropped = await undrop_tenant(database, trashed.slug, settings=settings)

    assert beside.settings == (await get_tenant(database, beside.slug)).settings == kept
    assert kept == {"plan": "it's", "seats": [1, {"a": None}]}
    assert replaced.settings == (await get_tenant(database, ACME)).settings == undropped.settings == {"plan": "large"}
    assert in_clear.settings == copied.settings == (await get_tenant(database, COPY)).settings == {}
    assert b"it's" not in piped.read_bytes()[:8192]


async def test_replaced_functions_stay_with_their_own_rows(
    database: Database, settings: Settings, acme: Tenant, role: Role, tmp_path: Path
) -> None:
    """A function that keeps its schema's name as a text reads its own tenant's rows also after all the renaming."""
    await fill(database, acme, EVERYTHING.format(role=role.name, schema="acme"))
    await backup_tenant(database, ACME, tmp_path / "acme.tar", settings=settings)
    await fill(database, acme, "DELETE FROM notes")

    await restore_tenant(database, tmp_path / "acme.tar", ACME, settings=settings, replace=True)
    (trashed,) = await list_trash(database)
    old = await undrop_tenant(database, trashed.slug, settings=settings)

    for tenant, count in ((acme, 3), (old, 0)):
        async with database.tenant_connection(tenant) as connection:
            assert await connection.fetchval("SELECT count_notes()") == count


async def test_tenant_whose_schema_is_gone_is_restored_in_its_place(
    database: Database, settings: Settings, acme: Tenant, backup_file: Path
) -> None:
    """Somebody dropped the schema by hand: the backup takes its place, and there is nothing for the trash."""
    await fetch(database, "DROP SCHEMA acme CASCADE")

    restored = await restore_tenant(database, backup_file, ACME, settings=settings, replace=True)

    assert restored == acme == await get_tenant(database, ACME)
    assert await list_trash(database) == []
    assert await fetch(database, "SELECT username FROM acme.app_user ORDER BY id") == ["a", "b"]


async def test_backup_replaces_only_the_tenant_that_it_was_made_of(
    database: Database, settings: Settings, acme: Tenant, backup_file: Path
) -> None:
    """Sessions name a tenant's number, so no other customer's rows may come under it; a rename changes nothing."""
    # As schemas are that were adopted together.
    await fetch(database, "UPDATE quart_tenants.tenants SET created_at = '2026-01-01'")
    await backup_tenant(database, ACME, backup_file, settings=settings, force=True)
    before = await remember(database)

    with pytest.raises(BackupFileError, match=r"tenant 'globex' .* tenant 'acme' .* another --as, then rename"):
        await restore_tenant(database, backup_file, GLOBEX, settings=settings, replace=True)
    assert await remember(database) == before
    await rename_tenant(database, ACME, Slug("zenith"), settings=settings)
    restored = await restore_tenant(database, backup_file, Slug("zenith"), settings=settings, replace=True)
    # As it is in another database, where another customer has the number.
    await fetch(database, "UPDATE quart_tenants.tenants SET created_at = now() WHERE slug = 'zenith'")
    with pytest.raises(BackupFileError, match="another --as"):
        await restore_tenant(database, backup_file, Slug("zenith"), settings=settings, replace=True)

    assert (restored.id, restored.schema) == (acme.id, acme.schema)


async def test_two_restores_of_a_schema_that_nobody_has_do_not_meet(
    database: Database, settings: Settings, backup_file: Path
) -> None:
    """Both would make the schema of the dump; the one that comes later is told to come again."""
    await drop_tenant(database, ACME)

    async with database.connection() as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('quart_tenants schema acme', 0))")
        with pytest.raises(TenantBusyError):
            await restore_tenant(database, backup_file, COPY, settings=settings)
    restored = await restore_tenant(database, backup_file, COPY, settings=settings)

    assert restored == await get_tenant(database, COPY)


# What is refused


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a backup says about itself."""
    with tarfile.open(file, "r:") as tar:
        manifest = json.load(tar.extractfile("tenant.json") or io.BytesIO())
        (content,) = (name for name in tar.getnames() if name != "tenant.json")
        dump = (tar.extractfile(content) or io.BytesIO()).read()
    del manifest["digest"]
    change(manifest)
    manifest["digest"] = digest_manifest(manifest)
    with tarfile.open(file, "w:") as tar:
        for name, text in (("tenant.json", json.dumps(manifest).encode()), (content, dump)):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))


def add_migration(manifest: dict[str, Any]) -> None:
    """Let the backup be from an app that is newer by one migration."""
    manifest["migrations"].append({"version": 2, "name": "0002_new.sql", "sha256": "0" * 64})


BAD_MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown format": (lambda told: told.update(format=3), "has format 3"),
    "newer server": (lambda told: told.update(server_version=990001), "made from PostgreSQL 99"),
    "newer migration": (add_migration, "version 0002, and this app's newest migration is 0001_"),
    "edited migration": (lambda told: told["migrations"][0].update(sha256="0" * 64), "0001_.* another text"),
    "another sha256": (lambda told: told["dump"].update(sha256="0" * 64), r"damaged: rows.sql.gz has not the sha256"),
    "another size": (lambda told: told["dump"].update(size=5), r"damaged: rows\.sql\.gz has not the size"),
    "no slug": (lambda told: told.pop("slug"), "cannot be understood"),
    "the registry's schema": (lambda told: told.update(schema="quart_tenants"), "cannot be understood"),
    "another schema": (lambda told: told.update(schema="other"), "its rows are not of schema other"),
}


async def test_bad_backup_is_refused_and_changes_nothing(
    database: Database, settings: Settings, backup_file: Path, tmp_path: Path
) -> None:
    """Whatever is wrong with a backup, the error names the file, and nothing has changed."""
    whole = backup_file.read_bytes()
    before = await remember(database)

    async def assert_refused(why: str, words: str) -> None:
        for replacing, slug in ((False, COPY), (True, ACME)):
            with pytest.raises(TenantError, match=words) as caught:
                await restore_tenant(database, backup_file, slug, settings=settings, replace=replacing)
            assert str(backup_file) in str(caught.value), why

    for why, (change, words) in BAD_MANIFESTS.items():
        backup_file.write_bytes(whole)
        rewrite(backup_file, change)
        await assert_refused(why, words)
    rows = whole.index(b"\x1f\x8b")
    for length in (0, 100, 511, 512, 600, 1100, rows - 600, rows - 1, rows, rows + 100):
        backup_file.write_bytes(whole[:length])
        await assert_refused(f"{length} bytes", "truncated|no backup")
    for position in (whole.index(b'"Acme"') + 1, rows, rows + 100):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        backup_file.write_bytes(flipped)
        await assert_refused(f"byte {position}", "damaged")
    backup_file.write_bytes(os.urandom(4000))
    await assert_refused("noise", "no backup")
    backup_file.unlink()
    await assert_refused("missing", "cannot be read: No such file")

    assert await remember(database) == before


async def test_dump_of_another_schema_than_its_manifest_says_is_refused(
    database: Database, settings: Settings, dump_file: Path
) -> None:
    """What pg_dump wrote names its schema in each line, and cannot come into another one."""
    rewrite(dump_file, lambda told: told.update(schema="other"))
    before = await remember(database)

    with pytest.raises(TenantError, match='schema "globex" already exists'):
        await restore_tenant(database, dump_file, COPY, settings=settings)

    assert await remember(database) == before


async def test_restore_asks_for_a_name_that_is_free_or_lives(
    database: Database, settings: Settings, backup_file: Path
) -> None:
    """A new tenant needs a free name, and only a living one can be replaced."""
    await drop_tenant(database, GLOBEX)
    before = await remember(database)

    async def assert_refused(error: type[TenantError], slug: str, *, replacing: bool = False) -> None:
        with pytest.raises(error):
            await restore_tenant(database, backup_file, Slug(slug), settings=settings, replace=replacing)

    await assert_refused(TenantExistsError, "acme")
    await assert_refused(TenantInTrashError, "globex")
    await assert_refused(TenantInTrashError, "globex", replacing=True)
    await assert_refused(UnknownTenantError, "nobody", replacing=True)
    await assert_refused(InvalidSlugError, "www")

    assert await remember(database) == before


async def test_grant_to_a_missing_role_is_refused(
    database: Database, settings: Settings, acme: Tenant, tmp_path: Path
) -> None:
    """A backup with grants to a role that the database lacks is restored when the role is there again."""
    name = f"qt_{secrets.token_hex(6)}"
    await fetch(database, f"CREATE ROLE {name}")
    await fill(database, acme, f"GRANT SELECT ON app_user TO {name}")
    file = tmp_path / "acme.tar"
    await backup_tenant(database, ACME, file, settings=settings)
    await fetch(database, f"DROP OWNED BY {name}")
    await fetch(database, f"DROP ROLE {name}")
    before = await remember(database)

    with pytest.raises(BackupFileError, match=f'"{name}" does not exist; create it'):
        await restore_tenant(database, file, COPY, settings=settings)

    assert await remember(database) == before


async def test_older_backup_leaves_the_tenant_behind(
    database: Database, settings: Settings, backup_file: Path, tmp_path: Path
) -> None:
    """A backup with fewer migrations than the app has is restored as it is, and the tenant's version says so."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for file in sorted((Path(__file__).parents[3] / "sql" / "tenant").iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "0002_new.sql").write_text("CREATE TABLE new (id integer)")

    restored = await restore_tenant(database, backup_file, COPY, settings=replace(settings, migrations_dir=folder))

    assert restored == await get_tenant(database, COPY)
    assert restored.version == 1


# What is killed


@pytest.mark.parametrize("whom", ["psql", "its server process", "the command"])
async def test_restore_that_is_killed_leaves_nothing(
    database: Database, database_url: str, settings: Settings, backup_file: Path, whom: str
) -> None:
    """Whoever is killed in the middle of a restore, all is as it was before."""
    before = await remember(database)
    async with outside(database_url) as connection:
        async with connection.transaction():
            # The restore writes there after the dump, just before it commits.
            await connection.execute("LOCK TABLE quart_tenants.applied_migrations IN SHARE MODE")
            restoring = asyncio.create_task(
                restore_tenant(database, backup_file, ACME, settings=settings, replace=True)
            )
            process = await wait_for_waiting(connection)
            if whom == "the command":
                restoring.cancel()
            elif whom == "psql":
                os.kill(find_child("psql"), signal.SIGKILL)
            else:
                await connection.execute("SELECT pg_terminate_backend($1)", process)
            with pytest.raises((ClientProgramError, DatabaseUnavailableError, asyncio.CancelledError)):
                await restoring

        async def has_noticed() -> bool:
            return not await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", process)

        await wait_until(has_noticed)

    assert await remember(database) == before
    assert await fetch(database, "SELECT username FROM acme.app_user ORDER BY id") == ["a", "b"]


def find_child(name: str) -> int:
    """Return the number of this process's child called *name*."""
    listed = subprocess.run(["ps", "-A", "-o", "ppid=,pid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    (number,) = [int(pid) for parent, pid, command in rows if int(parent) == os.getpid() and command.endswith(name)]
    return number


async def test_end_of_input_is_no_commit(database: Database, database_url: str) -> None:
    """A script that ends before its COMMIT changes nothing; with psql's own --single-transaction it does."""
    programs = await find_client_programs(18)
    environment = build_environment(database_url, os.environ)

    for number, (script, options) in enumerate((("BEGIN;", []), ("", ["--single-transaction", "--file=-"]))):
        subprocess.run(
            [*programs.run_sql(), *options],
            input=f"{script} CREATE SCHEMA half{number};\n".encode(),
            env=environment,
            check=True,
        )

    assert await fetch(database, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'half%'") == ["half1"]


# Another way to the database


@pytest.fixture
async def service_url(
    server_url: str, template: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[str, str]]:
    """The test's database by the name of a service, and another database, to which the environment leads."""
    parts = urlsplit(database_url)
    place = parse_qs(parts.query)
    file = tmp_path / "services"
    file.write_text(
        f"[small]\nhost={place['host'][0]}\nport={place['port'][0]}\nuser=postgres\ndbname={parts.path[1:]}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    async with new_database(server_url, template) as other:
        monkeypatch.setenv("PGDATABASE", urlsplit(other).path[1:])
        yield "postgresql://?service=small", other


@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="the service is written for the embedded server")
async def test_service_leads_psql_where_it_leads_the_driver(
    settings: Settings, backup_file: Path, service_url: tuple[str, str], database_url: str
) -> None:
    """The tenant is in the database that the service names, and not in the one of the environment."""
    url, other = service_url
    named = replace(settings, database_url=url)
    async with await Database.open(named, max_size=1) as database:
        await restore_tenant(database, backup_file, Slug("again"), settings=named)

    assert await list_slugs(database_url) == ["acme", "again", "company1", "company2", "globex"]
    assert await list_slugs(other) == ["acme", "company1", "company2", "globex"]


async def list_slugs(url: str) -> list[str]:
    """Return the tenants in a database."""
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch("SELECT slug FROM quart_tenants.tenants ORDER BY slug")]
    finally:
        await connection.close()


async def test_psql_that_was_led_elsewhere_does_nothing(
    database: Database,
    settings: Settings,
    backup_file: Path,
    server_url: str,
    template: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the reason: it says where it is before its first change."""
    async with new_database(server_url, template) as other:
        elsewhere = build_environment(other, os.environ)
        monkeypatch.setattr("quart_tenants.postgres.backups.restore.build_environment", lambda *_: elsewhere)

        with pytest.raises(ClientProgramError, match="psql was led to database"):
            await restore_tenant(database, backup_file, ACME, settings=settings, replace=True)

        assert await list_slugs(other) == ["acme", "company1", "company2", "globex"]
