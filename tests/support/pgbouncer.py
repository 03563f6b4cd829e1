"""A real PgBouncer before the tests' PostgreSQL, where the machine has one."""

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from tests.support.databases import set_default
from tests.support.patience import DEADLINE, wait_until

_logger = logging.getLogger(__name__)

# Debian puts it where only root's PATH leads.
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
"""The program, or None."""


def can_track() -> bool:
    """Return whether it is there, and knows track_extra_parameters, as PgBouncer does from 1.20 on."""
    if PROGRAM is None:
        return False
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, said.split()[1].split(".")[:2])) >= (1, 20)


needs_pgbouncer = pytest.mark.skipif(
    PROGRAM is None, reason="PgBouncer is not installed: it is Debian's package pgbouncer"
)

SWALLOWS_PATH = {"ignore_startup_parameters": "search_path"}
"""What docs/pooler.md says is to be set for every version."""

_OPTIONS = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    # Whoever is a login of the server may come in, as at the embedded server.
    "auth_type": "trust",
    "auth_query": "SELECT usename, passwd FROM pg_catalog.pg_shadow WHERE usename = $1",
    "pool_mode": "transaction",
    "default_pool_size": "2",
    "max_client_conn": "500",
}


class PgBouncer:
    """A PgBouncer for all databases of one server. Started by root, it runs as nobody, as the server does."""

    def __init__(self, server_url: str, folder: Path, options: dict[str, str]) -> None:
        self._server = urlsplit(server_url)
        self._file = folder / "pgbouncer.ini"
        self._log = folder / "pgbouncer.log"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def url(self, database_url: str) -> str:
        """Return the address by which *database_url* is reached through this."""
        parts = urlsplit(database_url)
        user = parts.netloc.rpartition("@")[0] or "postgres"
        return f"postgresql://{user}@127.0.0.1:{self._port}{parts.path}?sslmode=disable"

    async def start(self) -> None:
        """Return when it lets clients in: at the same port again, if it ran before."""
        self._port = self._port or _find_free_port()
        query = parse_qs(self._server.query)
        host = query.get("host", [self._server.hostname or "127.0.0.1"])[0]
        port = query.get("port", [str(self._server.port or 5432)])[0]
        user = self._server.username or "postgres"
        options = _OPTIONS | {"listen_port": str(self._port), "auth_user": user} | self._options
        lines = [f"{name} = {text}" for name, text in options.items()]
        self._file.write_text("\n".join(["[databases]", f"* = host={host} port={port}", "[pgbouncer]", *lines, ""]))
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [str(PROGRAM), self._file],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                user="nobody" if os.geteuid() == 0 else None,
            )
        await wait_until(self._lets_in)

    def kill(self) -> None:
        """End it at once, whatever its clients are at."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE)
            self._process = None

    @property
    def has_ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    async def revive(self) -> None:
        """Start it again if it has ended by itself, as 1.18 may at a cancellation, so that it ends one test only."""
        if self.has_ended:
            _logger.error("PgBouncer has ended by itself: %s", self._log.read_text()[-1000:])
            await self.start()

    async def _lets_in(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{PROGRAM} has ended: {self._log.read_text()}")
        with contextlib.suppress(OSError, asyncpg.PostgresConnectionError):
            # A simple query, because in statement mode there is no other.
            connection = await asyncpg.connect(self.url(self._server.geturl()), statement_cache_size=0)
            await connection.execute("SELECT")
            await connection.close()
            return True
        return False


@asynccontextmanager
async def run_pgbouncer(server_url: str, **options: str) -> AsyncIterator[PgBouncer]:
    """Run a PgBouncer in transaction mode, with two server connections for each database and user.

    Args:
        server_url: The server behind it.
        options: Of its configuration, in place of these. Without *ignore_startup_parameters* it is PgBouncer's default.
    """
    # Not pytest's own folder, which is closed to everybody else.
    with tempfile.TemporaryDirectory(prefix="quart-tenants-tests-") as folder:
        Path(folder).chmod(0o755)
        bouncer = PgBouncer(server_url, Path(folder), options)
        try:
            await bouncer.start()
            yield bouncer
        finally:
            bouncer.kill()


def _find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def empty_default_path(database_url: str) -> None:
    """Give every new connection to *database_url* an empty path, as docs/pooler.md says."""
    await set_default(database_url, "search_path", "")
