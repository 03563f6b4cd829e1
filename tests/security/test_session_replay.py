"""Sessions that are shown where they must not count: at another tenant, and after their end."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import permutations
from pathlib import Path

import asyncpg
import pytest
from quart import Quart, session
from quart.sessions import SessionInterface

from quart_tenants import QuartTenants, tenant_connection
from quart_tenants.postgres.blocks.database import Database
from quart_tenants.postgres.registry.registry_tables import get_tenant
from quart_tenants.postgres.sessions.session_ends import end_user_sessions
from quart_tenants.tenant import parse_slug
from quart_tenants.web.sessions.session_cookies import SessionCookies, issue_session
from tests.support.databases import REFERENCE_FILES
from tests.support.feeds import RARE_NEWS, let_news_be_old, stop_feeds
from tests.support.patience import DEADLINE, wait_until
from tests.support.processes import (
    PROGRAM,
    QUICK_PASSWORDS,
    SECRET_KEY,
    Server,
    make_environment,
    run_server,
    run_warm,
)
from tests.support.raw_requests import Wire, call, close_all
from tests.support.sessions import PlainSessions
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.slow

TENANTS = [f"tenant{number}" for number in range(100)]
PROMISED = 2.0  # seconds from the answer to a logout until no worker serves that session
WORKERS = 4
# The number that the template's registry gave it.
COMPANY1 = 3
HOST = "company1.localhost"
# What company1 says to who is logged in, to who is not, and to whom it does not know.
SERVED, LOGGED_OUT, UNCHECKED = "invalid_request", "not_logged_in", "session_unchecked"
# Connected to one worker each.
Wires = list[Wire]

_MAKE_TENANTS = """
INSERT INTO quart_tenants.tenants (slug, schema_name, display_name)
SELECT name, name, name FROM unnest($1::text[]) AS name
"""


@pytest.fixture
def interface() -> SessionInterface | None:
    """What replaces the sessions of the extension: nothing, but in the negative control."""
    return None


@pytest.fixture
async def database_proxy(database_url: str) -> AsyncIterator[TcpProxy]:
    """Between the app and its database with a hundred tenants more."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(_MAKE_TENANTS, TENANTS)
    await connection.close()
    async with TcpProxy(database_url) as proxy:
        yield proxy


@pytest.fixture
async def app(
    database_proxy: TcpProxy, interface: SessionInterface | None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Quart]:
    """An app that keeps a user in its session, in one worker.

    Its feed reads the registry at the start, and then not within the time of a test: every message to the
    database is a request's. All its news are too old, so that it asks about each session that it might serve.
    """
    app = Quart(__name__, host_matching=True, static_folder=None)
    app.config.update(
        SECRET_KEY=SECRET_KEY,
        TENANTS_MIGRATIONS_DIR=REFERENCE_FILES,
        TENANTS_DATABASE_URL=database_proxy.url,
        # The tables do not matter here, so there are none.
        TENANTS_MINIMUM_VERSION=0,
        **RARE_NEWS,
    )
    tenants = QuartTenants(app)
    if interface is not None:
        app.session_interface = interface  # type: ignore[assignment]

    @app.post("/enter", host=tenants.host)
    async def enter() -> str:
        session["user"] = "ada"
        return "entered"

    @app.get("/who", host=tenants.host)
    async def who() -> str:
        return str(session.get("user"))

    @app.get("/ask", host=tenants.host)
    async def ask() -> str:
        user = session.get("user")
        async with tenant_connection() as connection:
            return str(await connection.fetchval("SELECT $1::text", user))

    async with app.test_app():
        stop_feeds()
        let_news_be_old(app, monkeypatch)
        yield app


async def enter_all(app: Quart) -> dict[str, bytes]:
    """Return a cookie that the app has issued for each tenant."""
    client = app.test_client(use_cookies=False)
    cookies = {}
    for tenant in TENANTS:
        answer = await client.post("/enter", headers={"Host": f"{tenant}.localhost"})
        cookies[tenant] = answer.headers["Set-Cookie"].partition(";")[0].encode()
    return cookies


async def test_session_of_one_of_a_hundred_tenants_is_refused_by_the_others_before_any_sql(
    app: Quart, database_proxy: TcpProxy
) -> None:
    """Each tenant's cookie is refused at each other tenant, 9,900 times, and the database hears of none of them."""
    cookies = await enter_all(app)
    database_proxy.watch()
    refusals = 0
    for issuer, reader in permutations(TENANTS, 2):
        status, body = await call(app, f"{reader}.localhost", "/ask", (b"cookie", cookies[issuer]))
        refusals += status == 400 and b"wrong_tenant" in body

    assert refusals == 9900
    assert database_proxy.counts["client"] == 0

    for tenant, cookie in cookies.items():
        assert await call(app, f"{tenant}.localhost", "/ask", (b"cookie", cookie)) == (200, b"ada")
    # At least: BEGIN, the question about the session, COMMIT, and the same for the view.
    assert database_proxy.counts["client"] >= 6 * len(TENANTS)


@pytest.mark.parametrize("interface", [PlainSessions()])
async def test_plain_session_of_one_of_a_hundred_tenants_is_served_by_the_others(app: Quart) -> None:
    """Negative control: with Quart's own sessions all of the 9,900 are served."""
    cookies = await enter_all(app)
    served = 0
    for issuer, reader in permutations(TENANTS, 2):
        served += await call(app, f"{reader}.localhost", "/who", (b"cookie", cookies[issuer])) == (200, b"ada")

    assert served == 9900


def make_sessions(*users: str) -> list[str]:
    """Return a cookie of company1 for each of *users*, as logins would have issued them."""
    cookies = SessionCookies(SECRET_KEY)
    return [cookies.sign(issue_session(COMPANY1, user, 0, 43200)) for user in users]


@asynccontextmanager
async def four_workers(database_url: str, folder: Path, **settings: str) -> AsyncIterator[list[Wires]]:
    """Serve with four workers; yield two connections to each of them.

    Where the system does not tell which worker has which connection, these are four servers of one worker.
    """
    folder.mkdir()
    config = folder / "hypercorn.toml"
    in_one_server = sys.platform == "linux"
    config.write_text(
        f'bind = "127.0.0.1:0"\nworkers = {WORKERS if in_one_server else 0}\nworker_class = "uvloop"\n'
        # Or Hypercorn would close a connection after a thousand, or after five seconds of silence.
        "keep_alive_max_requests = 1000000\nkeep_alive_timeout = 75\n"
    )
    workers: list[Wires] = []
    async with AsyncExitStack() as stack:
        if in_one_server:
            server = stack.enter_context(
                run_server(database_url, folder, "--config", str(config), **QUICK_PASSWORDS, **settings)
            )
            workers = await connect_to_each_worker(server)
        else:
            for _ in range(WORKERS):
                server = stack.enter_context(
                    run_server(database_url, folder, "--config", str(config), **QUICK_PASSWORDS, **settings)
                )
                workers.append([await Wire.open(server.port) for _ in range(2)])
        stack.callback(close_all, [wire for wires in workers for wire in wires])
        yield workers


async def connect_to_each_worker(server: Server) -> list[Wires]:
    """Open connections until each worker has two of them."""
    main = server.process.pid
    children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
    workers: dict[str, Wires] = {pid: [] for pid in children}
    assert len(workers) == WORKERS
    async with asyncio.timeout(DEADLINE):
        while any(len(wires) < 2 for wires in workers.values()):
            wires = await asyncio.gather(*(Wire.open(server.port) for _ in range(8)))
            # Whoever answers has accepted the connection.
            await asyncio.gather(*(wire.ask("localhost", "/healthz") for wire in wires))
            for wire in wires:
                owner = find_owner(children, server.port, wire.port)
                if owner is not None and len(workers[owner]) < 2:
                    workers[owner].append(wire)
                else:
                    wire.close()
    return list(workers.values())


def find_owner(pids: Iterable[str], port: int, remote_port: int) -> str | None:
    """Return which of *pids* has the connection from *remote_port* (Linux: man 5 proc), or None.

    The system's list is read while others connect and hang up, and may lack a line.
    """
    ends = [f"0100007F:{number:04X}" for number in (port, remote_port)]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1:3] == ends}
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if str(descriptor.readlink()) in sockets:
                    return pid
    return None


async def show(wire: Wire, cookie: str) -> str:
    """Return what a worker says to *cookie*: SERVED, or the code of a refusal.

    Asks for something that only who is logged in is told to be nonsense, before any SQL: so thousands can be shown.
    """
    _, body = await wire.ask(HOST, "/data?limit=nonsense", cookie)
    return str(json.loads(body)["code"])


async def show_each(wire: Wire, cookies: Iterable[str]) -> set[str]:
    """Return everything that one worker says to *cookies*."""
    return {await show(wire, cookie) for cookie in cookies}


async def show_all(workers: list[Wires], cookies: list[str]) -> set[str]:
    """Return everything that any worker says to any of *cookies*."""
    return set().union(*await asyncio.gather(*(show_each(wire, cookies) for wire, _ in workers)))


async def show_all_until(workers: list[Wires], cookie: str, expected: str) -> None:
    """Show *cookie* until all workers say *expected*, also those that have just read the news."""

    async def all_say_so() -> bool:
        return await show_all(workers, [cookie]) == {expected}

    await wait_until(all_say_so)


async def show_once(workers: list[Wires], cookies: list[str]) -> set[str]:
    """Show each of *cookies* to one of the workers; return everything that they say."""
    shown = (show_each(wire, cookies[number :: len(workers)]) for number, (wire, _) in enumerate(workers))
    return set().union(*await asyncio.gather(*shown))


async def log_out(wire: Wire, cookie: str) -> None:
    """Log out at one worker."""
    assert (await wire.ask(HOST, "/logout", cookie, "POST"))[0] == 200


async def log_out_by_command(database_url: str, user: str) -> None:
    """Run `quart-tenants user logout`."""
    environment = make_environment(QUART_TENANTS_DATABASE_URL=database_url)
    done = await asyncio.to_thread(run_warm, PROGRAM, "user", "logout", "company1", user, env=environment)
    done.check_returncode()


class Replay:
    """Shows sessions that are over, again and again.

    Attributes:
        ended_at: When each session was over: its logout had been answered.
        last_served: Seconds after its end at which a session was still served; the highest that was seen.
    """

    def __init__(self) -> None:
        self.ended_at: dict[str, float] = {}
        self.last_served = 0.0

    async def end(self, cookies: Iterable[str], end: Callable[[str], Awaitable[object]]) -> None:
        """End each of the sessions, by *end*."""
        for cookie in cookies:
            await end(cookie)
            self.ended_at[cookie] = time.monotonic()

    async def show_until_refused(self, wire: Wire, cookies: Iterable[str], *refusals: str) -> None:
        """Show each of *cookies* from its end until a worker refuses it, and fail where one is served for too long."""
        waiting = dict.fromkeys(cookies)
        while waiting:
            ended = [cookie for cookie in self.ended_at if cookie in waiting]
            for cookie in ended:
                shown_at = time.monotonic()
                said = await show(wire, cookie)
                if said == SERVED:
                    age = shown_at - self.ended_at[cookie]
                    # However busy the machine is: what is shown later than that must be refused.
                    assert age < PROMISED
                    self.last_served = max(self.last_served, age)
                else:
                    assert said in refusals
                    del waiting[cookie]
            # Not all the time, or the workers come to nothing else.
            await asyncio.sleep(0.05)


async def test_session_is_refused_by_four_workers_within_two_seconds_of_its_end(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    """However and wherever a session is ended, no worker serves it two seconds later, nor after a restart."""
    company1 = await get_tenant(database, parse_slug("company1"))
    leaving = make_sessions(*(f"leaving {number}" for number in range(880)))
    users = [f"sent away {number}" for number in range(100)]
    sent_away = dict(zip(make_sessions(*users), users, strict=True))
    # Of one user, whom the command finds in the tenant's table.
    everywhere = make_sessions(*["user_1"] * 20)
    over = [*leaving, *sent_away, *everywhere]
    staying = make_sessions(*(f"staying {number}" for number in range(50)))
    replay = Replay()

    async def send_away(cookie: str) -> None:
        await end_user_sessions(database, company1, sent_away[cookie])

    async def log_out_everywhere() -> None:
        await log_out_by_command(database_url, "user_1")
        replay.ended_at |= dict.fromkeys(everywhere, time.monotonic())

    async with four_workers(database_url, tmp_path / "first") as workers:
        assert await show_once(workers, over) == {SERVED}
        assert await show_all(workers, staying) == {SERVED}

        async with asyncio.TaskGroup() as group:
            for number, (wire, second_wire) in enumerate(workers):
                group.create_task(replay.end(leaving[number::WORKERS], partial(log_out, wire)))
                group.create_task(replay.show_until_refused(second_wire, over, LOGGED_OUT))
            group.create_task(replay.end(sent_away, send_away))
            group.create_task(log_out_everywhere())

        assert await show_all(workers, staying) == {SERVED}
    async with four_workers(database_url, tmp_path / "second") as workers:
        assert await show_once(workers, over) == {LOGGED_OUT}
        assert await show_all(workers, staying) == {SERVED}
        assert (await workers[0][0].ask(HOST, "/data", staying[0]))[0] == 200
    # For "pytest -n 0 -s".
    print(f"{len(over)} sessions: still served {replay.last_served:.2f} s after the end at most")  # noqa: T201


@asynccontextmanager
async def locked(database_url: str, table: str) -> AsyncIterator[None]:
    """Let everybody wait who reads *table*."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


@asynccontextmanager
async def out_of_reach(server_url: str, database_url: str) -> AsyncIterator[None]:
    """Let the database throw everybody out, and nobody in."""
    name = database_url.partition("?")[0].rpartition("/")[2]
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        yield
    finally:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await connection.close()


async def test_worker_without_news_asks_or_refuses(server_url: str, database_url: str, tmp_path: Path) -> None:
    """Where the feed hangs a worker asks about each session; where nobody answers it serves none, dead or alive."""
    asked, unanswered, unreachable, staying = make_sessions("ada", "bob", "eve", "max")
    replay = Replay()

    async def show_at_all(cookie: str, *refusals: str) -> None:
        async with asyncio.TaskGroup() as group:
            for _, wire in workers:
                group.create_task(replay.show_until_refused(wire, [cookie], *refusals))

    # The tenants themselves may be trusted meanwhile: this is about sessions.
    async with four_workers(
        database_url, tmp_path / "server", QUART_TENANTS_COMMAND_TIMEOUT="3", QUART_TENANTS_REGISTRY_MAX_AGE="3600"
    ) as workers:
        wire = workers[0][0]
        assert await show_all(workers, [asked, unanswered, unreachable, staying]) == {SERVED}

        async with locked(database_url, "quart_tenants.changes"):
            await replay.end([asked], partial(log_out, wire))
            await show_at_all(asked, LOGGED_OUT)
            assert await show_all(workers, [staying]) == {SERVED}

            await replay.end([unanswered], partial(log_out, wire))
            async with locked(database_url, "quart_tenants.ended_sessions"):
                await asyncio.gather(
                    show_all_until(workers, staying, UNCHECKED), show_at_all(unanswered, LOGGED_OUT, UNCHECKED)
                )
        assert await show_all(workers, [unanswered]) == {LOGGED_OUT}

        await replay.end([unreachable], partial(log_out, wire))
        async with out_of_reach(server_url, database_url):
            await show_at_all(unreachable, LOGGED_OUT, UNCHECKED)
        assert await show_all(workers, [asked, unanswered, unreachable]) == {LOGGED_OUT}
        assert await show_all(workers, [staying]) == {SERVED}


async def test_worker_that_trusts_its_memory_serves_a_dead_session(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    """Negative control: without the question to the database a session outlives the two seconds."""
    (cookie,) = make_sessions("ada")
    with run_server(
        database_url, tmp_path, QUART_TENANTS_SESSION_ASK_AFTER="60", QUART_TENANTS_REGISTRY_MAX_AGE="3600"
    ) as server:
        wire = await Wire.open(server.port)
        async with locked(database_url, "quart_tenants.changes"):
            await end_user_sessions(database, await get_tenant(database, parse_slug("company1")), "ada")
            ended_at = shown_at = time.monotonic()
            while shown_at - ended_at <= PROMISED:
                shown_at = time.monotonic()
                said = await show(wire, cookie)
                await asyncio.sleep(0.01)
        wire.close()

    assert said == SERVED
