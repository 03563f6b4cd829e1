"""The parts of the fleet's benchmark: a server, our program and psql as processes, and a light load of requests."""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg

from benchmarks.folders import temporary_folder
from benchmarks.load.serving import SECRET_KEY
from quart_tenants.postgres.embedded.embedded_server import EmbeddedPostgres, find_postgres

PROGRAM = Path(sys.executable).with_name("quart-tenants")


@dataclass(frozen=True)
class Finished:
    """A process that has ended.

    Attributes:
        status: Its exit status; negative for a signal.
        stdout: What it printed.
        stderr: What else it said.
        seconds: From start to end.
        megabytes: Of memory at most (resident).
    """

    status: int
    stdout: str
    stderr: str
    seconds: float
    megabytes: float


class Cluster:
    """A private PostgreSQL with one database for our program and one for psql, and a folder of migrations."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self.folder = folder
        self.migrations = folder / "migrations"
        self.migrations.mkdir()
        # If it is to be durable, it has the server's defaults: no setting is changed.
        self.server = EmbeddedPostgres(folder / "postgres", options={} if durable else {"fsync": "off"})

    def url(self, database: str) -> str:
        """Return the address of *database*."""
        parts = urlsplit(self.server.url)
        return parts._replace(path=f"/{database}").geturl()

    def environment(self, database: str, **settings: str) -> dict[str, str]:
        """Return the environment for our program on *database*."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("QUART_", "PG"))}
        return kept | {
            "QUART_TENANTS_DATABASE_URL": self.url(database),
            "QUART_TENANTS_MIGRATIONS_DIR": str(self.migrations),
            "QUART_SECRET_KEY": SECRET_KEY,
            **settings,
        }

    async def start(self, database: str, *command: str, **settings: str) -> asyncio.subprocess.Process:
        """Start our program."""
        return await asyncio.create_subprocess_exec(
            PROGRAM,
            *command,
            env=self.environment(database, **settings),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, database: str, *command: str, **settings: str) -> Finished:
        """Run our program to its end."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            began = time.monotonic()
            pid = os.posix_spawn(
                PROGRAM,
                [str(PROGRAM), *command],
                self.environment(database, **settings),
                file_actions=[(os.POSIX_SPAWN_DUP2, stdout.fileno(), 1), (os.POSIX_SPAWN_DUP2, stderr.fileno(), 2)],
            )
            # Its own memory, which no other child's hides.
            _, status, usage = await asyncio.to_thread(os.wait4, pid, 0)
            seconds = time.monotonic() - began
            texts = []
            for file in (stdout, stderr):
                file.seek(0)
                texts.append(file.read().decode())
        return Finished(os.waitstatus_to_exitcode(status), texts[0], texts[1], seconds, usage.ru_maxrss / 1024)

    async def psql(self, database: str, scripts: Sequence[str]) -> float:
        """Feed each of *scripts* to a psql of its own, all at once; return how many seconds it took."""
        host = parse_qs(urlsplit(self.server.url).query)["host"][0]
        psql = find_postgres().with_name("psql")
        user = urlsplit(self.server.url).username or "postgres"
        paths = []
        for number, script in enumerate(scripts):
            path = self.folder / f"{database}.{number}.sql"
            path.write_text(script)
            paths.append(path)
        began = time.monotonic()
        processes = [
            await asyncio.create_subprocess_exec(
                psql, "-X", "-q", "-o", os.devnull, "-v", "ON_ERROR_STOP=1", "-h", host, "-U", user, "-d", database,
                "-f", path,
            )
            for path in paths
        ]  # fmt: skip
        statuses = [await process.wait() for process in processes]
        seconds = time.monotonic() - began
        if any(statuses):
            raise RuntimeError(f"psql ended with {statuses}")
        return seconds

    async def fetch(self, database: str, query: str) -> list[asyncpg.Record]:
        """Return the rows of *query*."""
        connection = await asyncpg.connect(self.url(database), timeout=30)
        try:
            return await connection.fetch(query)
        finally:
            await connection.close()


@asynccontextmanager
async def running_cluster(*, durable: bool = True) -> AsyncIterator[Cluster]:
    """Start a cluster in a folder of its own, and remove it afterwards."""
    with temporary_folder() as folder:
        cluster = Cluster(folder, durable=durable)
        await cluster.server.start()
        try:
            yield cluster
        finally:
            await cluster.server.stop()


@dataclass
class Answers:
    """What a load of requests came to.

    Attributes:
        milliseconds: How long each took, by when it was sent.
        statuses: How many of each status.
        codes: How many problem documents of each code.
        wrong: Answers of status 200 with another tenant's rows.
    """

    milliseconds: list[tuple[float, float]] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    wrong: int = 0

    def p99(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Return the 99th percentile in milliseconds of requests sent in that time."""
        chosen = [took for sent, took in self.milliseconds if since <= sent < until]
        return statistics.quantiles(chosen, n=100)[98] if len(chosen) > 1 else float("nan")

    @property
    def server_errors(self) -> int:
        """How many answers were 5xx."""
        return sum(count for status, count in self.statuses.items() if status >= 500)


class Client:
    """Asks one server as many tenants, at a fixed rate: whether it answers quickly must not slow the asking."""

    def __init__(self, port: int, a_second: float) -> None:
        self._port = port
        self._interval = 1 / a_second
        self._cookies: dict[str, str] = {}
        self._asking: set[asyncio.Task[None]] = set()

    def at(self, port: int) -> "Client":
        """Return a client with the same sessions at another port."""
        other = Client(port, 1 / self._interval)
        other._cookies = self._cookies
        return other

    async def log_in(self, tenants: Sequence[str]) -> None:
        """Get a session of each tenant."""
        for tenant in tenants:
            body = b"uname=user&passwd=foo"
            head = (
                f"POST /login HTTP/1.1\r\nHost: {tenant}.localhost\r\nContent-Length: {len(body)}\r\n"
                "Content-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n\r\n"
            )
            status, headers, _ = await self._send(head.encode() + body)
            if status != 200:
                raise RuntimeError(f"login at {tenant}: {status}")
            self._cookies[tenant] = headers["set-cookie"].partition(";")[0]

    async def ask_until(self, done: asyncio.Event) -> Answers:
        """Ask for every tenant's data in turn until *done*."""
        answers = Answers()
        tenants = list(self._cookies)
        number = 0
        due = time.monotonic()
        while not done.is_set():
            task = asyncio.create_task(self._ask(tenants[number % len(tenants)], answers))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            number += 1
            due += self._interval
            await asyncio.sleep(max(0, due - time.monotonic()))
        await asyncio.gather(*self._asking)
        return answers

    async def _ask(self, tenant: str, answers: Answers) -> None:
        head = (
            f"GET /data HTTP/1.1\r\nHost: {tenant}.localhost\r\nCookie: {self._cookies[tenant]}\r\n"
            "Connection: close\r\n\r\n"
        )
        began = time.monotonic()
        status, _, body = await self._send(head.encode())
        answers.milliseconds.append((began, (time.monotonic() - began) * 1000))
        answers.statuses[status] = answers.statuses.get(status, 0) + 1
        told = json.loads(body)
        if status == 200:
            answers.wrong += [row["description"] for row in told["data"]] != [tenant]
        else:
            answers.codes[told["code"]] = answers.codes.get(told["code"], 0) + 1

    async def _send(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(request)
            answer = await reader.read()
        finally:
            writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(first.split()[1]), headers, body
