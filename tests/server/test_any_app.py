"""`serve --app` serves an adopter's app with all that the reference app has."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from quart_tenants.server.worker import _say_last
from tests.server.load import DEADLINE, under_load
from tests.server.notes_app import change_version, list_notes, serving, write_notes_app
from tests.support.processes import (
    PROGRAM,
    SECRET_KEY,
    Server,
    make_environment,
    run_warm,
    wait_for_answer,
    wait_for_line,
)

pytestmark = pytest.mark.slow

QUART = PROGRAM.with_name("quart")
CONFIG = 'bind = "127.0.0.1:0"\nworkers = 2\ngraceful_timeout = 60\n'


@pytest.fixture
async def folder(tmp_path: Path, empty_database_url: str) -> Path:
    """A folder with the app `notes` in it, whose database has two tenants."""
    folder = tmp_path / "my app"
    folder.mkdir()
    await write_notes_app(folder, empty_database_url)
    (folder / "hypercorn.toml").write_text(CONFIG)
    return folder


@pytest.fixture
def environment(empty_database_url: str) -> dict[str, str]:
    """What the app needs in its environment."""
    return {"QUART_TENANTS_DATABASE_URL": empty_database_url, "QUART_SECRET_KEY": SECRET_KEY}


def start(folder: Path, environment: dict[str, str], *command: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run *command*, which must not serve, in the app's folder."""
    command = command or (PROGRAM, "serve", "--app", "notes", "--config", "hypercorn.toml")
    return run_warm(*command, env=make_environment(**environment), cwd=folder)


def assert_one_line_error(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """Assert that *done* ended with status 1, served nothing, and said why in one line that has all *words*."""
    assert (done.returncode, done.stdout) == (1, ""), done
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


async def wait_for_log(server: Server, text: str, times: int = 1) -> None:
    """Return when *text* stands in the log so often."""
    async with asyncio.timeout(DEADLINE):
        while server.log.read_text().count(text) < times:
            assert server.process.poll() is None, server.log.read_text()
            await asyncio.sleep(0.02)


def find_workers(server: Server) -> list[int]:
    """Return the process ids of all workers that have ever started, the oldest first."""
    return [int(pid) for pid in re.findall(r"worker (\d+) started", server.log.read_text())]


async def wait_until_gone(*pids: int) -> None:
    """Return when none of these processes exists any more."""
    async with asyncio.timeout(DEADLINE):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                while True:
                    os.kill(pid, 0)
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", ["notes:create_app()", "notes:create_app", "notes:app", "notes"])
async def test_app_is_found_as_quart_finds_it(folder: Path, environment: dict[str, str], name: str) -> None:
    """A factory, its call, an object and a module alone name the app, from the current folder on."""
    with serving(folder, environment, "serve", "--app", name, "--config", "hypercorn.toml") as server:
        async with server.tenant("acme") as client:
            answer = await client.get("/notes")

    assert answer.json() == {"version": 1, "notes": 0}
    assert server.process.returncode == 0


async def test_app_is_named_by_the_environment_or_the_configuration(folder: Path, environment: dict[str, str]) -> None:
    """Without `--app` the app is that of QUART_APP, or else of `application_path`."""
    config = folder / "hypercorn.toml"
    config.write_text(CONFIG + 'application_path = "notes:app"\n')
    with serving(folder, environment, "serve", "--config", "hypercorn.toml") as server:
        async with server.tenant("acme") as client:
            by_configuration = await client.get("/notes")
    by_environment = start(folder, environment | {"QUART_APP": "other"}, PROGRAM, "serve", "--config", config)

    assert by_configuration.json() == {"version": 1, "notes": 0}
    assert_one_line_error(by_environment, "the app 'other'")


async def test_quart_serves_its_app_the_same_way(folder: Path, environment: dict[str, str]) -> None:
    """`quart --app notes tenants serve` is `quart-tenants serve --app notes`, and takes up new code as well."""
    log, output = folder / "log", folder / "log.out"
    with log.open("w") as stderr, output.open("w") as stdout:
        process = subprocess.Popen(
            [QUART, "--app", "notes", "tenants", "serve", "--port", "0", "--config", "hypercorn.toml"],
            cwd=folder,
            env=make_environment(**environment),
            stdout=stdout,
            stderr=stderr,
            text=True,
        )
    try:
        port = int(wait_for_line(process, "serving on", log).rpartition(":")[2])
        server = Server(process, port, log)
        change_version(folder, 2)
        process.send_signal(signal.SIGHUP)
        await wait_for_log(server, "new workers serve")
        async with server.tenant("acme") as client, asyncio.timeout(DEADLINE):
            while (answer := await client.get("/notes")).json()["version"] == 1:
                pass
    finally:
        process.terminate()
        status = process.wait(DEADLINE)

    assert answer.json() == {"version": 2, "notes": 0}
    assert status == 0


@pytest.mark.parametrize(("options", "plain"), [((), False), (("--plain",), True)])
async def test_quart_can_be_left_to_itself(
    folder: Path, environment: dict[str, str], options: tuple[str, ...], plain: bool
) -> None:
    """What makes requests cheaper is applied to the app, unless `--plain` says no."""
    command = ("serve", "--app", "notes", "--config", "hypercorn.toml", *options)
    with serving(folder, environment, *command) as server:
        async with server.tenant("acme") as client:
            answer = await client.get("/way")

    assert answer.json() == {"plain": plain}


async def test_probes_answer_and_logs_are_json(folder: Path, environment: dict[str, str]) -> None:
    """An app without routes for them answers /healthz and /readyz; with the setting each line of the log is JSON."""
    with serving(folder, environment | {"QUART_TENANTS_LOG_FORMAT": "json"}) as server:
        async with server.client("127.0.0.1") as client:
            answers = [await client.get("/healthz"), await client.get("/readyz")]

    assert [answer.json() for answer in answers] == [{"status": "ok"}, {"status": "ready"}]
    assert all(line.startswith('{"timestamp"') for line in server.log.read_text().splitlines())


async def test_killed_workers_under_load_lose_only_what_they_had_in_flight(
    folder: Path, environment: dict[str, str], empty_database_url: str
) -> None:
    """After kill -9 of one worker after the other all goes on, and what was answered is there once."""
    with serving(folder, environment) as server:
        async with under_load(server) as load:
            for number in range(3):
                os.kill(find_workers(server)[-1], signal.SIGKILL)
                await wait_for_log(server, " started", 3 + number)
            lost = len(load.lost)
            await load.until_more(100)
        written = await list_notes(empty_database_url, "acme")
        foreign = await list_notes(empty_database_url, "globex")

    # Six clients, and each has one request in flight.
    assert len(load.lost) == lost <= 3 * 6
    assert {status for status, _ in load.answers} == {200}
    assert len(written) == len(set(written))
    assert set(load.written) <= set(written)
    assert foreign == []


async def test_new_code_under_load_loses_no_request(
    folder: Path, environment: dict[str, str], empty_database_url: str
) -> None:
    """At SIGHUP new workers take over: each request that is sent is answered 200, by the old code or by the new."""
    with serving(folder, environment) as server:
        async with under_load(server) as load:
            for version in (2, 3, 4):
                change_version(folder, version)
                server.process.send_signal(signal.SIGHUP)
                await wait_for_log(server, "new workers serve", version - 1)
                await wait_until_gone(*find_workers(server)[-4:-2])
                await load.until_more(50)
        written = await list_notes(empty_database_url, "acme")

    assert load.lost == []
    assert load.answers.total() == load.sent
    assert {status for status, _ in load.answers} == {200}
    assert {version for _, version in load.answers} == {1, 2, 3, 4}
    assert sorted(load.written) == sorted(written)
    assert server.process.returncode == 0


async def test_hypercorn_alone_loses_requests_at_sighup(folder: Path, environment: dict[str, str]) -> None:
    """The same load on Hypercorn's own program is cut off at SIGHUP: the load bites."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [PROGRAM.with_name("hypercorn"), "-w", "2", "-b", f"127.0.0.1:{port}", "notes:app"],
            cwd=folder,
            env=make_environment(**environment),
            stderr=log,
            text=True,
        )
    try:
        wait_for_answer(port)
        server = Server(process, port, folder / "log")
        async with under_load(server) as load:
            while not load.lost:
                process.send_signal(signal.SIGHUP)
                await load.until_more(50)
    finally:
        process.terminate()
        process.wait(DEADLINE)

    assert load.lost


# What is wrong at a SIGHUP: a file, its text, and what the one line says.
MISTAKES = [
    ("notes.py", "import nothing_like_it", "No module named 'nothing_like_it'"),
    ("notes.py", "def create_app(:", "SyntaxError"),
    ("notes.py", "app = 1", "Failed to find Quart application"),
    ("notes.py", "raise SystemExit(3)", "SystemExit: 3"),
    ("notes.py", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
    ("hypercorn.toml", "wrkers = 3", "did you mean workers"),
    ("hypercorn.toml", "workers = 0", "workers is 0 now"),
]


async def test_old_workers_go_on_when_new_ones_cannot(folder: Path, environment: dict[str, str]) -> None:
    """At SIGHUP with code or a configuration that is wrong, one line says why, and the old workers serve."""
    with serving(folder, environment) as server:
        for number, (file, text, reason) in enumerate(MISTAKES, start=1):
            before = server.log.read_text()
            right = (folder / file).read_text()
            (folder / file).write_text(text)
            server.process.send_signal(signal.SIGHUP)
            await wait_for_log(server, "the old workers go on", number)
            async with server.tenant("acme") as client:
                answer = await client.get("/notes")
            (folder / file).write_text(right)

            (line,) = server.log.read_text().removeprefix(before).splitlines()
            assert reason in line
            assert answer.json() == {"version": 1, "notes": 0}
    assert server.process.returncode == 0


async def test_slow_client_is_cut_off(folder: Path, environment: dict[str, str]) -> None:
    """A head that does not come to its end ends the connection, in time and without an answer of the app."""
    with serving(folder, environment) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /notes HTTP/1.1\r\nHost: acme.localhost\r\nX: ")
        async with asyncio.timeout(DEADLINE):
            answer = await reader.read()
        writer.close()

    assert b"notes" not in answer


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", ("'nothing'", "No module named")),
        ("notes:nothing", ("'notes:nothing'", "'nothing'")),
        ("notes:VERSION", ("'notes:VERSION'", "A valid Quart application")),
        ("notes:create_app(", ("'notes:create_app('", "parse")),
        ("notes:create_app(1)", ("'notes:create_app(1)'", "arguments")),
        ("notes:without_tenants", ("'notes:without_tenants'", "has no tenants", "QuartTenants(app)")),
        ("notes:broken", ("'notes:broken'", "ValueError: no notes today", "notes.py, line")),
    ],
)
def test_app_that_cannot_be_served_is_one_clear_line(
    folder: Path, environment: dict[str, str], name: str, words: tuple[str, ...]
) -> None:
    """What is wrong with the app is told before anything is served."""
    done = start(folder, environment, PROGRAM, "serve", "--app", name, "--config", "hypercorn.toml")

    assert_one_line_error(done, *words)


def test_app_without_a_secret_key_is_refused(folder: Path, environment: dict[str, str]) -> None:
    """Sessions that anybody could sign are not served."""
    done = start(folder, environment | {"QUART_SECRET_KEY": ""})

    assert_one_line_error(done, "SECRET_KEY")


async def test_database_that_leaks_is_refused(
    folder: Path, environment: dict[str, str], empty_database_url: str
) -> None:
    """Where everybody may look into a tenant's schema nothing is served."""
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("GRANT CREATE ON SCHEMA public TO PUBLIC; GRANT USAGE ON SCHEMA acme TO PUBLIC")
    await connection.close()

    done = start(folder, environment)

    assert_one_line_error(done, "acme")


def test_taken_address_is_one_clear_line(folder: Path, environment: dict[str, str]) -> None:
    """A port or a socket file that cannot be had is named, whichever key of the configuration says it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = f"127.0.0.1:{listener.getsockname()[1]}"
        for lines, word in (
            (f'bind = "{taken}"', taken),
            (f'bind = "127.0.0.1:0"\ninsecure_bind = "{taken}"', taken),
            ('bind = "unix:/nowhere/socket"', "/nowhere/socket"),
        ):
            (folder / "hypercorn.toml").write_text(lines + "\nworkers = 2\n")

            assert_one_line_error(start(folder, environment), word)


async def test_last_answer_says_that_it_is_the_last() -> None:
    """While a worker ends, each answer of HTTP/1 says `Connection: close`. HTTP/2 has no such header."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Connection", b"keep-alive")]})

    sent: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    for version in ("1.1", "2"):
        await _say_last(app)({"type": "http", "http_version": version}, None, send)

    assert [event["headers"] for event in sent] == [[(b"connection", b"close")], [(b"Connection", b"keep-alive")]]
