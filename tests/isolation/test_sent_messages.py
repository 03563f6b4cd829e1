"""Promise: what we send to PostgreSQL may also go to a cluster of Citus, and through a pooler.

A proxy records every message of all commands, of a server and of its visitors. PostgreSQL's own programs pass through
it, too.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import asyncpg
import pytest

from tests.support.databases import REFERENCE_FILES, execute
from tests.support.message_recorder import MessageRecorder, Recorded, record_messages
from tests.support.portable_messages import find_breaches
from tests.support.processes import PROGRAM, Server, make_environment, run_server, run_warm
from tests.support.roles import dropping_roles

pytestmark = pytest.mark.slow

# In this order they do everything to tenants that there is to do. {folder} stands for a folder of the test's own.
COMMANDS = (
    "init",
    "create umbrella --name Umbrella",
    "create-many {folder}/many.csv --jobs 2",
    "adopt old --at-version 0",
    "create copy --from company1",
    "status",
    "migrate --rehearse --sample 1",
    "migrate --jobs 2 --canary 1",
    "list",
    "prepare",
    "create hooli",
    "suspend hooli",
    "resume hooli",
    "settings hooli plan=2",
    "rename hooli pied-piper",
    "domain add acme www.acme.example --trusted",
    "domain list",
    "domain remove www.acme.example",
    "user add acme ada --password-stdin",
    "user password acme ada --password-stdin",
    "user suspend acme ada",
    "user resume acme ada",
    "user logout acme ada",
    "backup company1 -o {folder}/company1.tar --verify",
    "backup --all -o {folder}/nightly --jobs 2 --sample 1 --verify",
    "restore {folder}/company1.tar --as again",
    "restore {folder}/company1.tar --as company1 --replace --yes",
    "drop umbrella again --yes",
    "undrop umbrella",
    "drop umbrella --yes",
    "list --trash",
    "purge umbrella again --yes",
    "doctor",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with migrations, one of which runs outside a transaction and one in batches, and a list of tenants."""
    files = tmp_path / "files"
    files.mkdir()
    for file in REFERENCE_FILES.iterdir():
        (files / file.name).write_bytes(file.read_bytes())
    (files / "0002_index.sql").write_text(
        "-- quart-tenants: no transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS d ON company_data (description);"
    )
    (files / "0003_batches.sql").write_text(
        "-- quart-tenants: in batches of 1\n"
        "DELETE FROM company_data WHERE ctid IN (SELECT ctid FROM company_data WHERE description = 'old' LIMIT $1);"
    )
    (files / "0004_link.sql").write_text(
        "ALTER TABLE company_data ADD COLUMN above bigint UNIQUE DEFERRABLE INITIALLY DEFERRED;\n"
        "UPDATE company_data SET above = NULL;"
    )
    (tmp_path / "many.csv").write_text("slug,name\nmany-a,A\nmany-b,B\n")
    return tmp_path


@contextmanager
def record_everything(database_url: str, direct_url: str) -> Iterator[tuple[MessageRecorder, MessageRecorder]]:
    """Yield what records the messages to the database, and what records those that go around a pooler before it."""
    with record_messages(database_url) as recorder:
        if direct_url == database_url:
            yield recorder, recorder
            return
        with record_messages(direct_url) as direct:
            yield recorder, direct


def run_commands(
    recorders: tuple[MessageRecorder, MessageRecorder],
    folder: Path,
    commands: Iterable[str] = COMMANDS,
    **settings: str,
) -> list[Recorded]:
    """Run *commands* one after the other, each of which must end well; return what was sent."""
    recorder, direct = recorders
    if direct is not recorder:
        settings["QUART_TENANTS_DIRECT_DATABASE_URL"] = direct.url
    environment = make_environment(
        QUART_TENANTS_DATABASE_URL=recorder.url,
        QUART_TENANTS_MIGRATIONS_DIR=str(folder / "files"),
        QUART_TENANTS_READY_TENANTS="1",
        QUART_TENANTS_CONNECT_TIMEOUT="60",
        QUART_TENANTS_ACQUIRE_TIMEOUT="60",
        **settings,
    )
    for command in commands:
        ended = run_warm(PROGRAM, *command.format(folder=folder).split(), env=environment, stdin="correct horse\n")
        assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
    return recorder.connections if direct is recorder else recorder.connections + direct.connections


async def visit(server: Server) -> None:
    """Do what visitors of the reference app do."""
    async with server.member() as client:
        (await client.get("/data")).raise_for_status()
        (await client.get("/")).raise_for_status()
        (await client.post("/logout")).raise_for_status()
    async with server.tenant("company2") as client:
        assert (
            await client.post("/login", data={"uname": "user_2", "passwd": "wrong"})
        ).status_code == HTTPStatus.UNAUTHORIZED


def test_messages_of_commands_keep_the_rules(database_url: str, direct_url: str, folder: Path) -> None:
    """Each change of a table is alone in its message, no type is looked up, and nothing outlasts its transaction."""
    asyncio.run(execute(database_url, "CREATE SCHEMA old"))
    with record_everything(database_url, direct_url) as recorders:
        connections = run_commands(recorders, folder)

    assert sum(len(one.texts) for one in connections) > 1000
    assert "\n".join(find_breaches(connections)) == ""


@pytest.fixture
async def url_for_roles(server_url: str, database_url: str) -> AsyncIterator[str]:
    """The URL of a database whose roles are dropped after the test."""
    async with dropping_roles(server_url, database_url):
        yield database_url


def test_messages_of_roles_keep_the_rules(url_for_roles: str, direct_url: str, folder: Path) -> None:
    """Where tenants have roles, the rules hold as well."""
    commands = ("init", "create umbrella", "drop umbrella --yes", "purge umbrella --yes", "migrate")
    with record_everything(url_for_roles, direct_url) as recorders:
        connections = run_commands(recorders, folder, commands, QUART_TENANTS_ROLE_PER_TENANT="true")

    assert "\n".join(find_breaches(connections)) == ""


@pytest.mark.parametrize("mode", ["auto", "plain"])
def test_messages_of_a_server_keep_the_rules(database_url: str, tmp_path: Path, mode: str) -> None:
    """What a server and its visitors send keeps the rules, on fast connections and on plain ones."""
    with (
        record_messages(database_url) as recorder,
        run_server(recorder.url, tmp_path, QUART_TENANTS_DRIVER_MODE=mode) as server,
    ):
        asyncio.run(visit(server))
        connections = recorder.connections

    assert any("company_data" in text for one in connections for text in one.texts)
    assert "\n".join(find_breaches(connections)) == ""


@pytest.mark.parametrize(
    ("texts", "breach"),
    [
        # What `init` sent where tenants have roles, and `purge`, before this test was there.
        (["BEGIN", "ALTER SCHEMA acme OWNER TO a; GRANT USAGE ON SCHEMA acme TO b"], "several statements"),
        (["BEGIN", "REVOKE ALL ON acme.a FROM PUBLIC; REVOKE ALL ON acme.b FROM PUBLIC"], "several statements"),
        (["BEGIN", "DROP TABLE acme.a CASCADE; DROP TABLE acme.b CASCADE"], "several statements"),
        (["BEGIN; SET LOCAL search_path TO acme; ALTER TABLE a ADD b text"], "several statements"),
        (["BEGIN; SET LOCAL citus.propagate_set_commands TO local; SET LOCAL lock_timeout TO 2"], "several statements"),
        (["BEGIN", "SET LOCAL lock_timeout TO 100"], "no worker hears"),
        (["BEGIN", "DO $$BEGIN SET LOCAL lock_timeout TO 100; END$$"], "no worker hears"),
        (["SET LOCAL search_path TO acme"], "SET LOCAL outside"),
        (["BEGIN", "COMMIT", "SET LOCAL search_path TO acme"], "SET LOCAL outside"),
        (["SET search_path TO acme"], "lasts longer"),
        (["SELECT pg_catalog.set_config('search_path', $1, false)"], "lasts longer"),
        (["SELECT pg_catalog.pg_advisory_lock(7)"], "lasts longer"),
        (["BEGIN", "CREATE TEMPORARY TABLE a ()"], "lasts longer"),
    ],
)
def test_breach_is_found(texts: list[str], breach: str) -> None:
    """Negative control: statements that break a rule are found by it."""
    connection = Recorded({"search_path": ""}, texts)

    assert [breach in found for found in find_breaches([connection])] == [True]


async def test_look_up_of_a_type_is_found(database_url: str) -> None:
    """Negative control: a parameter that asyncpg does not know by itself is found, and one of text[] is not."""
    async with MessageRecorder(database_url) as recorder:
        for statement in ("SELECT unnest($1::text[]::bigint[])", "SELECT unnest($1::bigint[])"):
            connection = await asyncpg.connect(recorder.url, server_settings={"search_path": ""})
            await connection.prepare(statement)
            await connection.close()
        known, unknown = recorder.connections

    assert find_breaches([known]) == []
    assert any("looks up" in found and "unnest" in found for found in find_breaches([unknown]))
