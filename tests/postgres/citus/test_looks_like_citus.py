"""Commands on a PostgreSQL that only looks like Citus: what they ask, what they call, and what they refuse."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from quart_tenants.errors import DatabaseRefusedError, RegistryNotReadyError, TenantBusyError
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.fleet.tenant_moves import list_loads, move_tenant
from quart_tenants.postgres.registry.registry import Registry
from quart_tenants.postgres.registry.registry_tables import check_registry, get_tenant, init_registry
from quart_tenants.postgres.registry.tenant_locks import lock_until_commit
from quart_tenants.postgres.tenants.trash import drop_tenant
from quart_tenants.settings import Settings
from quart_tenants.tenant import parse_slug
from tests.support.databases import execute
from tests.support.fake_citus import become_worker, pretend_citus
from tests.support.message_recorder import record_messages
from tests.support.patience import wait_in_thread_until
from tests.support.portable_messages import find_breaches
from tests.support.processes import PROGRAM, make_environment, run_warm, run_warm_program

pytestmark = pytest.mark.slow

ACME = parse_slug("acme")


@pytest.fixture
async def citus_url(database_url: str) -> str:
    """The URL of a database that looks like Citus; acme and company1 lie on the node a.example:5432."""
    await pretend_citus(database_url, "acme", "company1")
    return database_url


def run(url: str, command: str, **settings: str) -> tuple[int, str, str]:
    """Return the exit status of a command, and what it wrote."""
    environment = make_environment(QUART_TENANTS_DATABASE_URL=url, QUART_TENANTS_AUDIT="false", **settings)
    ended = run_warm(PROGRAM, *command.split(), env=environment)
    return ended.returncode, ended.stdout, ended.stderr


async def ask(url: str, question: str) -> object:
    """Return the answer to *question*."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(question)
    finally:
        await connection.close()


def is_distributed(url: str, schema: str) -> bool:
    """Return whether *schema* was given to citus_schema_distribute()."""
    question = f"SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_schema WHERE schemaid = '{schema}'::regnamespace)"
    return asyncio.run(ask(url, question)) is True


# What is made where.


def test_registry_and_shared_schemas_stay_on_the_coordinator(empty_database_url: str) -> None:
    """Where schemas are made that must be plain, the transaction switches the distribution off before."""
    asyncio.run(pretend_citus(empty_database_url))
    with record_messages(empty_database_url) as recorder:
        status, _, err = run(recorder.url, "init", QUART_TENANTS_SHARED_SCHEMAS="common")
        texts = [text for one in recorder.connections for text in one.texts]

    assert (status, err) == (0, "")
    for made in ("CREATE SCHEMA quart_tenants", 'CREATE SCHEMA IF NOT EXISTS "common"'):
        before = texts[: texts.index(made)]
        last_begin = max(number for number, text in enumerate(before) if "BEGIN" in text)
        assert "SET LOCAL citus.enable_schema_based_sharding TO off" in before[last_begin:]


@pytest.mark.parametrize(("setting", "distributed"), [("on", True), ("off", False)])
def test_restored_schema_is_distributed_at_the_end(
    citus_url: str, tmp_path: Path, setting: str, distributed: bool
) -> None:
    """A dump is poured into a plain schema; where new schemas are distributed, that follows in the same transaction."""
    name = asyncio.run(ask(citus_url, "SELECT pg_catalog.current_database()"))
    asyncio.run(execute(citus_url, f"ALTER DATABASE {name} SET citus.enable_schema_based_sharding TO {setting}"))
    file = tmp_path / "acme.tar"
    assert run(citus_url, f"backup company1 -o {file}")[0] == 0

    for command, schema in (
        (f"restore {file} --as again", "again"),
        (f"restore {file} --as company1 --replace --yes", "company1"),
        ("create copy --from company1", "copy"),
    ):
        status, _, err = run(citus_url, command)
        assert status == 0, err
        assert is_distributed(citus_url, schema) == distributed


def test_failed_distribution_restores_nothing(citus_url: str, tmp_path: Path) -> None:
    """The distribution is part of the transaction: if it fails, there is no tenant."""
    file = tmp_path / "acme.tar"
    assert run(citus_url, f"backup company1 -o {file}")[0] == 0
    asyncio.run(
        execute(
            citus_url,
            "SET allow_system_table_mods TO on",
            "CREATE OR REPLACE FUNCTION pg_catalog.citus_schema_distribute(schemaname regnamespace) RETURNS void "
            "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no node answers'; END $$",
        )
    )

    status, _, err = run(citus_url, f"restore {file} --as again")

    assert status == 1
    assert "no node answers" in err
    assert asyncio.run(ask(citus_url, "SELECT to_regnamespace('again') IS NULL"))


def test_limits_of_a_migration_hold_on_all_nodes(citus_url: str, tmp_path: Path) -> None:
    """SET LOCAL is passed on to the workers, so the switch for that comes before the limits, and these are SETs."""
    for number, text in enumerate(("SELECT 1;", "CREATE TABLE more (id bigint PRIMARY KEY);"), start=1):
        (tmp_path / f"{number:04}_x.sql").write_text(text)
    digest = "pg_catalog.encode(pg_catalog.sha256('SELECT 1;'), 'hex')"
    asyncio.run(
        execute(
            citus_url,
            f"UPDATE quart_tenants.applied_migrations SET sha256 = {digest} WHERE schema_name <> 'quart_tenants'",
        )
    )
    with record_messages(citus_url) as recorder:
        status, _, err = run(recorder.url, "migrate", QUART_TENANTS_MIGRATIONS_DIR=str(tmp_path))
        connections = recorder.connections

    assert status == 0, err
    assert find_breaches(connections) == []
    texts = [text for one in connections for text in one.texts]
    start = texts.index("SET LOCAL citus.propagate_set_commands TO local")
    assert texts[start + 1 : start + 4] == [
        "SET LOCAL lock_timeout TO 200",
        "SET LOCAL statement_timeout TO 300000",
        "CREATE TABLE more (id bigint PRIMARY KEY)",
    ]


async def test_worker_knows_on_which_node_each_tenant_lies(citus_url: str) -> None:
    """A new worker reads it once, and hears of a tenant that was moved, made or deleted as of any other change."""
    settings = Settings(database_url=citus_url)
    async with await Database.open(settings) as database:
        registry = Registry(database, settings)
        await registry.load()
        acme, company1 = [registry.get_tenant(parse_slug(slug)) for slug in ("acme", "company1")]
        before = dict(database.nodes)
        await move_tenant(database, ACME, "b.example:5432")
        await registry.refresh()

        assert before == {acme.id: 1, company1.id: 1}
        assert database.nodes == {acme.id: 2, company1.id: 1}

        await drop_tenant(database, ACME)
        await registry.refresh()
        assert database.nodes == {company1.id: 1}


# What is refused.


async def test_worker_is_called_a_worker(citus_url: str, settings: Settings) -> None:
    """Where the URL leads to a worker, no command says that there is no registry yet."""
    await become_worker(citus_url)
    await execute(citus_url, "DROP SCHEMA quart_tenants CASCADE")
    async with await Database.open(settings, max_size=1) as database:
        with pytest.raises(RegistryNotReadyError, match="worker of a Citus cluster"):
            await init_registry(database)
        with pytest.raises(RegistryNotReadyError, match="worker of a Citus cluster"):
            async with database.connection() as connection:
                await check_registry(connection)


def test_roles_are_refused(citus_url: str) -> None:
    """`init` says in one sentence that tenants cannot have roles there, before it has changed anything."""
    status, out, err = run(citus_url, "init", QUART_TENANTS_ROLE_PER_TENANT="true")

    assert (status, out) == (1, "")
    assert "switch TENANTS_ROLE_PER_TENANT off" in err
    assert asyncio.run(ask(citus_url, "SELECT count(*) FROM quart_tenants.role_setup")) == 0


def test_doctor_looks_at_the_cluster(citus_url: str) -> None:
    """It names tenants on the coordinator, a setting that is missing, and a registry that is distributed."""
    asyncio.run(execute(citus_url, "SELECT pg_catalog.citus_schema_distribute('quart_tenants')"))

    status, out, _ = run(citus_url, "doctor")

    assert status == 1
    assert "Citus: registry" in out
    assert "company2, globex" in out
    assert "citus.override_table_visibility TO off" in out
    assert "the schemas of new tenants are distributed" in out


def test_backup_says_that_it_is_not_of_one_moment(citus_url: str, tmp_path: Path) -> None:
    """On Citus a snapshot does not reach the workers, and whoever makes a backup hears of it."""
    for command in (f"backup acme -o {tmp_path / 'acme.tar'}", f"backup --all -o {tmp_path / 'nightly'}"):
        status, _, err = run(citus_url, command)
        assert status == 0, err
        assert "do not take part in the snapshot" in err


# Nodes.


async def test_tenant_moves_to_another_node(citus_url: str, settings: Settings) -> None:
    """After it the tenant is counted there, and a second move finds nothing to do."""
    async with await Database.open(settings, max_size=1) as database:
        before, nowhere = await list_loads(database)
        tenant, moved = await move_tenant(database, ACME, "b.example:5432")
        after, _ = await list_loads(database)
        _, moved_again = await move_tenant(database, ACME, "b.example:5432")

    assert (tenant.slug, moved, moved_again, nowhere) == ("acme", True, False, 2)
    assert [load.tenants for load in before] == [0, 2, 0, 0, 0]
    assert [load.tenants for load in after] == [0, 1, 1, 0, 0]
    assert [load.size > 0 for load in after] == [False, True, True, False, False]


def test_commands_print_nodes(citus_url: str) -> None:
    """`nodes` has a line for each node, `status` names where tenants lie, and `move` says what it did."""
    assert run(citus_url, "nodes")[1].splitlines()[0].split("\t")[:3] == ["coordinator.example:5432", "empty", "0"]
    assert run(citus_url, "move acme b.example:5432")[1] == "moved acme (schema acme, on b.example:5432)\n"
    assert "already there" in run(citus_url, "move acme b.example:5432")[1]
    report = run(citus_url, "status --no-drift")[1]
    assert "on a.example:5432: 1 tenant\n" in report
    assert "on b.example:5432: 1 tenant\n" in report
    assert '"acme": "b.example:5432"' in run(citus_url, "status --no-drift --json")[1]


@pytest.mark.parametrize(
    ("slug", "node", "told"),
    [
        ("acme", "c.example:5432", "there are coordinator.example:5432, a.example:5432"),
        ("acme", "coordinator.example:5432", "takes no tenants"),
        ("acme", "away.example:5432", "is away"),
        ("acme", "silent.example:5432", "is away"),
        ("globex", "b.example:5432", "is not distributed"),
        ("initech", "b.example:5432", "initech"),
    ],
)
def test_move_that_cannot_be_is_refused(citus_url: str, slug: str, node: str, told: str) -> None:
    """A node that is unknown or away, a plain schema and an unknown tenant are named, and nothing is moved."""
    status, out, err = run(citus_url, f"move {slug} {node}")

    assert (status, out) == (1, "")
    assert told in err
    assert asyncio.run(ask(citus_url, "SELECT count(*) FROM pg_catalog.pg_dist_placement WHERE groupid <> 1")) == 0


def test_move_of_a_table_without_a_key_is_refused(citus_url: str) -> None:
    """Each table without a key is named with the remedy, and one with a replica identity is taken."""
    asyncio.run(
        execute(
            citus_url,
            "CREATE TABLE acme.log (line text)",
            "CREATE TABLE acme.full_log (line text)",
            "ALTER TABLE acme.full_log REPLICA IDENTITY FULL",
        )
    )

    status, _, err = run(citus_url, "move acme b.example:5432")

    assert status == 1
    assert "no primary key has log;" in err


async def test_two_moves_of_one_tenant_exclude_each_other(
    citus_url: str, settings: Settings, database: Database
) -> None:
    """Who finds the tenant's lock taken, by a move or a migration, is told so and moves nothing."""
    async with await Database.open(settings, max_size=1) as mover:
        acme = await get_tenant(database, ACME)
        async with database.connection() as connection:
            await lock_until_commit(connection, acme.id, ACME)
            with pytest.raises(TenantBusyError):
                await move_tenant(mover, ACME, "b.example:5432")


SLEEP = (
    "SET allow_system_table_mods TO on",
    "ALTER FUNCTION pg_catalog.citus_schema_move(regnamespace, text, integer) RENAME TO really_move",
    "CREATE FUNCTION pg_catalog.citus_schema_move(regnamespace, text, integer) RETURNS void LANGUAGE sql AS "
    "$$ SELECT pg_catalog.pg_sleep(600) $$",
)
WAKE = (
    "SET allow_system_table_mods TO on",
    "DROP FUNCTION pg_catalog.citus_schema_move(regnamespace, text, integer)",
    "ALTER FUNCTION pg_catalog.really_move(regnamespace, text, integer) RENAME TO citus_schema_move",
)
COUNT_MOVES = """
SELECT count(*) FROM pg_catalog.pg_stat_activity
WHERE state = 'active' AND query LIKE 'SELECT pg_catalog.citus_schema_move%' AND datname = current_database()
"""


async def test_interrupted_move_stops_and_can_run_again(citus_url: str, settings: Settings) -> None:
    """A cancellation ends the server's work too, frees the tenant, and tells the progress until then."""
    await execute(citus_url, *SLEEP)
    seen: list[tuple[int, int]] = []
    begun = asyncio.Event()

    def note(done: int, total: int) -> None:
        seen.append((done, total))
        begun.set()

    async with await Database.open(settings, max_size=1) as mover:
        moving = asyncio.create_task(move_tenant(mover, ACME, "b.example:5432", on_progress=note, look_every=0.05))
        await begun.wait()
        moving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await moving
        left = await ask(citus_url, COUNT_MOVES)
        await execute(citus_url, *WAKE)
        _, moved = await move_tenant(mover, ACME, "b.example:5432")

    assert seen[0] == (50, 100)
    assert left == 0
    assert moved


def test_killed_move_stops_and_can_run_again(citus_url: str, tmp_path: Path) -> None:
    """The server notices that the command was killed, and the next one moves the tenant."""
    asyncio.run(execute(citus_url, *SLEEP))
    with run_warm_program(
        "move", "acme", "b.example:5432", log=tmp_path / "log", QUART_TENANTS_DATABASE_URL=citus_url
    ) as process:
        wait_in_thread_until(lambda: asyncio.run(ask(citus_url, COUNT_MOVES)) == 1)
        process.kill()
        wait_in_thread_until(lambda: asyncio.run(ask(citus_url, COUNT_MOVES)) == 0)
    asyncio.run(execute(citus_url, *WAKE))

    assert run(citus_url, "move acme b.example:5432")[1].startswith("moved acme")


def test_plain_postgresql_has_no_nodes(database_url: str) -> None:
    """Negative control: without the extension both commands refuse, and everything else is as it was."""
    for command in ("nodes", "move acme b.example:5432"):
        status, out, err = run(database_url, command)
        assert (status, out) == (1, "")
        assert "has no extension citus" in err
    assert "Citus" not in run(database_url, "doctor")[1]


async def test_function_refuses_plain_postgresql(database: Database) -> None:
    """The functions behind the commands refuse it, too."""
    with pytest.raises(DatabaseRefusedError, match="no extension citus"):
        await list_loads(database)
