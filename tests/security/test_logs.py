"""What is written down: who did what in which request, and never a secret."""

import asyncio
import contextlib
import gc
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pytest
import uvloop
from quart import Quart

from quart_tenants import QuartTenants
from quart_tenants.audit import audit
from quart_tenants.web.logs.log_fields import LogFields, add_log_fields
from quart_tenants.web.logs.log_format import LogHandler
from tests.support.databases import REFERENCE_FILES
from tests.support.patience import DEADLINE, wait_until
from tests.support.processes import PROGRAM, Server, find_metrics_port, make_environment, run_server, run_warm

pytestmark = pytest.mark.slow

ROLE = "planted_role"
SECRETS = {
    "the password of the database": "planted-database-password",
    "the secret key": "planted-secret-key-0123456789",
    "a right password": "planted-right-password",
    "a wrong password": "planted-wrong-password",
    "a password in the field for the name": "planted-password-as-name",
    "a token in the query": "planted-query-token",
    "an Authorization header": "planted-bearer-token",
    "a row that a statement failed on": "planted-row-value",
    "a password hash": "$argon2id$",
}
IN_A_REQUEST = ("quart_tenants.audit", "quart_tenants.web.answers.problems", "quart_tenants.app.credentials")

# company1's data cannot be read, and the error quotes a row; company2's names it in its DETAIL and HINT.
# A better hash of a password cannot be stored, and the DETAIL of that holds the hash.
PLANT = f"""
CREATE ROLE {ROLE} LOGIN SUPERUSER PASSWORD '{SECRETS["the password of the database"]}';
ALTER TABLE company1.company_data RENAME TO real_data;
CREATE VIEW company1.company_data AS
    SELECT id, ('{SECRETS["a row that a statement failed on"]}' || id)::int::text AS description
    FROM company1.real_data;
CREATE FUNCTION company2.fail() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'the disk is on fire' USING
        DETAIL = E'row:\n{SECRETS["a row that a statement failed on"]}',
        HINT = 'look at {SECRETS["a row that a statement failed on"]}';
END $$;
ALTER TABLE company2.company_data RENAME TO real_data;
CREATE VIEW company2.company_data AS SELECT id, description FROM company2.real_data WHERE company2.fail();
ALTER TABLE company1.app_user ADD CHECK (username <> 'user_1' OR password NOT LIKE '$argon2%') NOT VALID;
"""


def find_secrets(text: str, **more: str) -> list[str]:
    """Return which secrets are in *text*."""
    return [name for name, secret in {**SECRETS, **more}.items() if secret in text]


def add_login(url: str) -> str:
    """Return *url* with the planted role and its password."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{ROLE}:{SECRETS['the password of the database']}@{place}"))


def run(*arguments: str, stdin: str = "", **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run a command that says what is audited, as JSON."""
    environment = make_environment(QUART_TENANTS_LOG_FORMAT="json", QUART_TENANTS_LOG_LEVEL="debug", **settings)
    return run_warm(PROGRAM, *arguments, stdin=stdin, env=environment)


def read_lines(text: str) -> list[dict[str, Any]]:
    """Return the lines of a log in JSON; each says when, how grave, from whom and what."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"]), line
        assert line["level"] in ("debug", "info", "warning", "error", "critical")
        assert {"logger", "event"} <= set(line), line
    return lines


@pytest.fixture
async def role_that_goes(server_url: str) -> AsyncIterator[None]:
    """Remove the planted role after the test. It owns nothing."""
    yield
    connection = await asyncpg.connect(server_url)
    await connection.execute(f"DROP OWNED BY {ROLE}")

    async def drop() -> bool:
        # The test's own database, where the role has rights, is dropped beside the next tests.
        with contextlib.suppress(asyncpg.DependentObjectsStillExistError):
            await connection.execute(f"DROP ROLE {ROLE}")
            return True
        return False

    await wait_until(drop)
    await connection.close()


@pytest.mark.usefixtures("role_that_goes")
async def test_no_secret_is_written(database_url: str, server_url: str, tmp_path: Path) -> None:
    """Through logins, bugs, a lost database and commands no secret is written; lines tell their request and tenant.

    Nor is one in the lines about slow blocks, in the figures that `get_stats()` gives Prometheus, or in a span.
    """
    admin = await asyncpg.connect(database_url)
    await admin.execute(PLANT)
    url = add_login(database_url)
    settings = {"QUART_TENANTS_DATABASE_URL": url}
    commands = [
        run("create", "newco", **settings),
        run("create", "newco", **settings),
        run("user", "add", "company1", "ann", "--password-stdin", stdin="planted-right-password\n", **settings),
        run("user", "add", "company2", "bob", "--password-stdin", stdin="planted-right-password\n", **settings),
    ]
    assert [command.returncode for command in commands] == [0, 1, 0, 0], commands
    cookies = []
    spans = tmp_path / "spans"
    config = tmp_path / "hypercorn.toml"
    config.write_text('bind = "127.0.0.1:0"\nworkers = 0\nworker_class = "uvloop"\n')
    options = ("--config", str(config), "--app", "tests.security.traced_app:create_app()")
    with run_server(
        url,
        tmp_path,
        *options,
        SPANS_FILE=str(spans),
        QUART_TENANTS_METRICS_BIND="0",
        QUART_TENANTS_SLOW_BLOCK="0.001",
        QUART_TENANTS_LOG_FORMAT="json",
        QUART_TENANTS_LOG_LEVEL="debug",
        QUART_SECRET_KEY=SECRETS["the secret key"],
        PYTHONASYNCIODEBUG="1",
    ) as server:
        for slug, user in (("company1", "ann"), ("company2", "bob")):
            async with server.tenant(slug) as client:
                client.headers["Authorization"] = f"Bearer {SECRETS['an Authorization header']}"
                for name, password, status in (
                    (user, SECRETS["a wrong password"], 401),
                    (SECRETS["a password in the field for the name"], "foo", 401),
                    (user, SECRETS["a right password"], 200),
                ):
                    answer = await client.post(
                        "/login?token=planted-query-token", data={"uname": name, "passwd": password}
                    )
                    assert answer.status_code == status
                cookies.append(client.cookies["session"])
                bug = await client.get("/data?token=planted-query-token")
                assert bug.status_code == 500, bug.text
                assert bug.headers["x-request-id"] == bug.json()["request_id"]
        async with server.tenant("company1") as client:
            upgraded = await client.post("/login", data={"uname": "user_1", "passwd": "foo"})
            assert upgraded.status_code == 200
            await lose_database(admin, server_url, database_url)
            assert (await client.get("/data?token=planted-query-token")).status_code == 503
            assert (await client.get("/readyz")).status_code == 503
        await admin.close()
        figures = await wait_for_figures(server)
        lines = read_lines(await wait_for_log(server, "registry"))
    await let_in(server_url, database_url)

    written = server.log.read_text() + server.log.with_name("log.out").read_text()
    written += figures + spans.read_text()
    written += "".join(command.stdout + command.stderr for command in commands)
    assert find_secrets(written, **{f"cookie {number}": cookie for number, cookie in enumerate(cookies)}) == []
    read_lines(server.log.read_text())
    # asyncpg tells the same from each of its pools, with a traceback.
    assert written.count("registry cannot be read") == 1
    assert "connection floor" not in written
    for line in lines:
        if line["logger"] in IN_A_REQUEST:
            assert re.fullmatch("[0-9a-f]{32}", line["request_id"]), line
            assert line["tenant"] in ("company1", "company2"), line
    events = [line["event"] for line in lines]
    assert {"login_succeeded", "login_failed", "slow_block"} <= set(events)
    for name in ("block", "POST /login", "GET /data", "UPDATE"):
        assert f'"name": "{name}"' in spans.read_text()
    # The errors are there, with what helps to find them.
    traces = [line["exception"] for line in lines if "exception" in line]
    assert any('invalid input syntax for type integer: "…"' in trace for trace in traces)
    assert any("the disk is on fire" in trace and "data.py" in trace for trace in traces)
    assert any("could not be upgraded" in event and "app_user" in event for event in events)


async def wait_for_figures(server: Server) -> str:
    """Return what Prometheus gets, as soon as both tenants are named."""
    async with httpx.AsyncClient() as client:

        async def find() -> str | None:
            text = (await client.get(f"http://127.0.0.1:{find_metrics_port(server)}/metrics")).text
            return text if 'tenant="company1"' in text and 'tenant="company2"' in text else None

        return await wait_until(find)


async def lose_database(admin: "asyncpg.Connection[Any]", server_url: str, database_url: str) -> None:
    """Close the database, and end all connections to it but *admin*."""
    await set_connections(server_url, database_url, allowed="false")
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def let_in(server_url: str, database_url: str) -> None:
    """Open it again, for whoever drops it."""
    await set_connections(server_url, database_url, allowed="true")


async def set_connections(server_url: str, database_url: str, *, allowed: str) -> None:
    """Let connections to the database be made, or not."""
    connection = await asyncpg.connect(server_url)
    name = urlsplit(database_url).path.strip("/")
    await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {allowed}")
    await connection.close()


async def wait_for_log(server: Server, word: str) -> str:
    """Return the server's log, as soon as *word* is in it."""

    async def find() -> str | None:
        text = server.log.read_text()
        return text[: text.rindex("\n") + 1] if word in text else None

    return await wait_until(find)


@contextmanager
def log_to(
    stream: io.StringIO, handler: logging.Handler | None = None, name: str = "tests.logs"
) -> Iterator[logging.Logger]:
    """Let the logger *name* write to *stream* in JSON, or through *handler*."""
    logger = logging.getLogger(name)
    handler = handler or LogHandler(stream, "json")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


async def test_naive_log_gives_the_secrets_away(database_url: str) -> None:
    """Python's own formatter shows rows and parameters where ours does not: so the search above finds what is there."""
    row = SECRETS["a row that a statement failed on"]
    connection = await asyncpg.connect(database_url)
    naive, ours = io.StringIO(), io.StringIO()
    statements: list[tuple[str, list[object]]] = [
        (f"SELECT '{row}'::int", []),
        (f"SELECT '{row}", []),
        (f'SELECT 1 "{row}" 2', []),
        ("SELECT $1::int", [row]),
        ("SELECT $1::uuid", [row]),
        ("INSERT INTO company1.app_user (username, password) VALUES ($1, NULL)", [row]),
    ]
    for statement, arguments in statements:
        try:
            await connection.execute(statement, *arguments)
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            with log_to(naive, logging.StreamHandler(naive)) as logger:
                logger.exception("failed: %s", error)
            with log_to(ours) as logger:
                logger.exception("failed: %s", error)
                logger.error("failed: %(error)s", {"error": error})
    await connection.close()

    assert naive.getvalue().count(row) >= 2 * len(statements)
    assert find_secrets(ours.getvalue()) == []
    assert len(read_lines(ours.getvalue())) == 2 * len(statements)


def test_local_variables_are_not_written() -> None:
    """A traceback names the places, not the values; an exception's own words and what led to it are kept."""
    stream = io.StringIO()

    def check(password: str) -> None:
        try:
            raise KeyError("no such key")
        except KeyError as error:
            raise ExceptionGroup(f"{len(password)} letters", [ValueError("one"), OSError("two")]) from error

    with log_to(stream) as logger:
        try:
            check("-".join(["planted", "right", "password"]))
        except ExceptionGroup:
            logger.exception("failed")

    (line,) = read_lines(stream.getvalue())
    assert find_secrets(stream.getvalue()) == []
    for word in (
        "test_logs.py",
        "in check",
        "KeyError: 'no such key'",
        "direct cause",
        "ValueError: one",
        "OSError: two",
    ):
        assert word in line["exception"]


async def raise_with_a_row(*_: object) -> None:
    """Fail as the driver does, with the value of a parameter."""
    row = SECRETS["a row that a statement failed on"]
    raise asyncpg.DataError(f"invalid input for query argument $1: {row!r} (expected str, got int)")


def fail_with_a_password(password: str) -> None:
    """Fail in a callback, which asyncio shows with its arguments."""
    raise ValueError(len(password))


@pytest.mark.parametrize(
    ("loop_class", "shown"),
    [
        (asyncio.SelectorEventLoop, {"a right password", "a row that a statement failed on"}),
        # It shows no arguments of callbacks.
        (uvloop.Loop, {"a row that a statement failed on"}),
    ],
)
def test_lines_of_asyncio_show_no_values(loop_class: type[asyncio.AbstractEventLoop], shown: set[str]) -> None:
    """Of a task that nobody waited for, a callback that failed and one that took long, the log shows no values."""
    naive, ours = io.StringIO(), io.StringIO()
    loop = loop_class()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0

    async def run_and_forget() -> None:
        loop.call_soon(fail_with_a_password, SECRETS["a right password"])
        task = asyncio.create_task(raise_with_a_row())
        await asyncio.wait([task])
        del task

    with log_to(naive, logging.StreamHandler(naive), "asyncio"), log_to(ours, name="asyncio"):
        loop.run_until_complete(run_and_forget())
        gc.collect()
        loop.close()

    assert set(find_secrets(naive.getvalue())) == shown
    assert find_secrets(ours.getvalue()) == []
    lines = read_lines(ours.getvalue())
    assert any(line["event"] == "Task exception was never retrieved" for line in lines)
    failed = [line["event"] for line in lines if line["event"].startswith("Exception in callback")]
    assert len(failed) == 1
    assert "fail_with_a_password" in failed[0]
    # Where it happened.
    assert any("raise_with_a_row" in line.get("exception", "") for line in lines)


def test_console_lines_are_for_people() -> None:
    """In the console format a line has the same facts, and nothing in it begins another line or moves the cursor."""
    stream = io.StringIO()
    with log_to(stream, LogHandler(stream, "console")) as logger:
        logger.warning(
            "asked for %s", "/x\n2026-01-01 [info] all is well\x1b[2J", extra={"token": "planted-query-token"}
        )
        logger.info("never %s", "written")
        try:
            raise ValueError("two\nlines\x1b[2J")
        except ValueError:
            logger.exception("failed")

    text = stream.getvalue()
    assert r"asked for /x\n2026-01-01 [info] all is well\x1b[2J" in text.splitlines()[0]
    assert "ValueError: two\nlines\\x1b[2J" in text
    assert "\x1b" not in text
    assert find_secrets(text) == []


def test_line_that_cannot_be_written_shows_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong format string is told with its place; logging's own report would print the arguments."""
    stream = io.StringIO()
    with log_to(stream) as logger:
        logger.warning("%d", SECRETS["a right password"])

    (line,) = read_lines(stream.getvalue())
    assert "test_logs.py" in line["event"]
    assert find_secrets(stream.getvalue() + capsys.readouterr().err) == []


async def test_task_of_a_request_keeps_its_id(database_url: str) -> None:
    """A task says the id and the tenant of the request that began it, also when that is long answered."""
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(TENANTS_MIGRATIONS_DIR=REFERENCE_FILES, TENANTS_DATABASE_URL=database_url)
    tenants = QuartTenants(app)
    go_on, lines = asyncio.Event(), io.StringIO()
    tasks: list[asyncio.Task[None]] = []
    adopters = logging.StreamHandler(lines)
    adopters.setFormatter(logging.Formatter("%(request_id)s %(tenant)s %(message)s"))
    adopters.addFilter(LogFields())

    with log_to(lines, adopters) as logger:

        async def work() -> None:
            await go_on.wait()
            logger.warning("in the task")

        @app.post("/", host=tenants.host)
        async def begin() -> tuple[str, int]:
            logger.warning("in the view")
            tasks.append(asyncio.create_task(work()))
            return "", 418

        async with app.test_app():
            answer = await app.test_client().post("/", headers={"Host": "acme.localhost"})
            go_on.set()
            await tasks[0]
        logger.warning("outside")

    request_id = answer.headers["X-Request-Id"]
    assert lines.getvalue().splitlines() == [
        f"{request_id} acme in the view",
        f"{request_id} acme in the task",
        "- - outside",
    ]
    assert add_log_fields(None, "info", {"event": "outside"}) == {"event": "outside"}


def test_level_does_not_silence_the_audit() -> None:
    """At any level it is written who did what, unless `TENANTS_AUDIT` is false."""
    script = """
import sys
from quart_tenants.web.logs.log_setup import configure_logging
from quart_tenants.audit import audit
from quart_tenants.settings import Settings

for written in (True, False):
    configure_logging(Settings(log_level="error", log_format="json", audit=written))
    audit("login_failed", written=written)
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE, check=True)

    (line,) = read_lines(done.stderr)
    assert (line["event"], line["written"]) == ("login_failed", True)


def test_warnings_and_loggers_of_libraries_are_written_once() -> None:
    """A forgotten `await` is said, and a handler that writes nothing silences nobody; one that writes has written."""
    script = """
import gc, logging, sys
from quart_tenants.web.logs.log_setup import configure_logging
from quart_tenants.settings import Settings

async def forgotten(): pass

configure_logging(Settings(log_format="json"))
logging.getLogger("library").addHandler(logging.NullHandler())
logging.getLogger("server").addHandler(logging.StreamHandler(sys.stdout))
forgotten()
gc.collect()
logging.getLogger("library").warning("from the library")
logging.getLogger("server").warning("from the server")
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE, check=True)

    warning, line = read_lines(done.stderr)
    assert "coroutine 'forgotten' was never awaited" in warning["event"]
    assert line["event"] == "from the library"
    assert done.stdout == "from the server\n"


def test_audit_line_reads_well_for_everybody(caplog: pytest.LogCaptureFixture) -> None:
    """Under an adopter's own formatter the facts are in the message, and stay on one line."""
    with caplog.at_level(logging.INFO, "quart_tenants.audit"):
        audit("login_failed", tenant="acme", user=None, address="a\nb", count=2)

    assert caplog.messages == [r"login_failed tenant='acme' address='a\nb' count=2"]
