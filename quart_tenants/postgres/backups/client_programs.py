"""Find and run PostgreSQL's own programs: pg_dump, pg_restore and psql."""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from quart_tenants.errors import ClientProgramError, EmbeddedPostgresError
from quart_tenants.postgres.embedded.embedded_server import find_postgres
from quart_tenants.tenant import SchemaName

CHUNK = 1 << 18
"""How many bytes are passed between a file and a program at once."""

_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_MAX_WORDS = 1 << 16  # bytes of stderr that are kept; the error comes first
# Where asyncpg looks for a server if neither the URL nor PGHOST names one. libpq would look elsewhere.
_DEFAULT_HOSTS = "/run/postgresql,/var/run/postgresql,/tmp,/private/tmp,localhost"
# The variables that asyncpg reads, too. Any other PG* could lead the programs to another server.
_SHARED_VARIABLES = frozenset(
    {
        *("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGDATABASE", "PGTARGETSESSIONATTRS"),
        *("PGKRBSRVNAME", "PGSERVICEFILE"),
    }
)
# The options that may follow the question mark of the URL, with the variable of each.
_VARIABLES = {
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "database": "PGDATABASE",
    "passfile": "PGPASSFILE",
    "sslmode": "PGSSLMODE",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcrl": "PGSSLCRL",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "krbsrvname": "PGKRBSRVNAME",
    "gsslib": "PGGSSLIB",
    "options": "PGOPTIONS",
    "service": "PGSERVICE",
}


@dataclass(frozen=True, slots=True)
class ClientPrograms:
    """The three programs. They are from one folder, so that each can read what the others write."""

    folder: Path

    def dump(
        self,
        schema: SchemaName,
        snapshot: str,
        *,
        privileges: bool = True,
        by_root: bool = False,
        comments: bool = True,
        labels: bool = True,
    ) -> list[str | Path]:
        """Return the command that writes *schema*, as *snapshot* shows it, to stdout.

        Args:
            schema: The schema.
            snapshot: From `pg_export_snapshot()`.
            privileges: Whether grants are written.
            by_root: Whether the server is to find the partition of each row anew.
            comments: Whether there are any. pg_dump reads those of the whole database, thousands of PostgreSQL's own
                among them. To spare that and the labels saves a sixth of the CPU of a small dump.
            labels: Whether there are security labels.
        """
        # The option takes a pattern. In double quotes only a double quote is special, and it is doubled.
        return [
            self.folder / "pg_dump",
            *("--format=custom", "--encoding=UTF8", "--no-password", "--strict-names"),
            *(f"--schema={schema.quoted}", f"--snapshot={snapshot}"),
            *(() if privileges else ("--no-privileges",)),
            *(("--load-via-partition-root",) if by_root else ()),
            *(() if comments else ("--no-comments",)),
            *(() if labels else ("--no-security-labels",)),
        ]

    def write_sql(self, *, privileges: bool = True) -> list[str | Path]:
        """Return the command that turns a dump on stdin into SQL on stdout."""
        return [self.folder / "pg_restore", "--no-owner", *(() if privileges else ("--no-privileges",)), "--file=-"]

    def read_rows(self) -> list[str | Path]:
        """Return the command that runs SQL from stdin, and prints each value on a line of its own and nothing else."""
        return [*self.run_sql(), "--no-align", "--tuples-only"]

    def run_sql(self) -> list[str | Path]:
        """Return the command that runs SQL from stdin up to the first error."""
        variables = ("--set=ON_ERROR_STOP=1", "--set=VERBOSITY=verbose")
        return [self.folder / "psql", "--no-psqlrc", "--quiet", "--no-password", *variables]


_FOUND: dict[tuple[int, str], ClientPrograms] = {}


async def find_client_programs(server_version: int) -> ClientPrograms:
    """Return programs that are not older than a server of major version *server_version*.

    Programs on PATH come first, then those of the embedded PostgreSQL.

    Raises:
        ClientProgramError: There are no such programs.
    """
    # A backup of all tenants asks thousands of times, and each answer in a thread waits for its turn.
    asked = server_version, os.environ.get("PATH", "")
    if asked not in _FOUND:
        _FOUND[asked] = await asyncio.to_thread(_find_client_programs, server_version)
    return _FOUND[asked]


def build_environment(url: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with which PostgreSQL's programs connect to the same server as asyncpg. Pure.

    The password is in it, because any user of the machine may read a command line.

    Args:
        url: The URL of the database.
        environment: The environment of this process.
    """
    shared = {
        name: text
        for name, text in environment.items()
        if not name.startswith("PG") or name in _SHARED_VARIABLES or name.startswith("PGSSL")
    }
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.partition("@") if "@" in parts.netloc else ("", "", parts.netloc)
    user, _, password = login.partition(":")
    query = {name: texts[-1] for name, texts in parse_qs(parts.query).items()}
    if not hosts:
        hosts = query.get("host", "")
    address = _split_hosts(hosts)
    found = {_VARIABLES[name]: text for name, text in query.items() if name in _VARIABLES}
    found |= {
        "PGUSER": unquote(user) or found.get("PGUSER", ""),
        "PGPASSWORD": unquote(password) or found.get("PGPASSWORD", ""),
        "PGDATABASE": unquote(parts.path.removeprefix("/")) or found.get("PGDATABASE", ""),
        "PGHOST": ",".join(host for host, _ in address),
        "PGPORT": ",".join(port for _, port in address) if any(port for _, port in address) else query.get("port", ""),
    }
    fixed = {"LC_ALL": "C", "PGCLIENTENCODING": "UTF8", "PGAPPNAME": "quart_tenants"}
    return {"PGHOST": _DEFAULT_HOSTS} | shared | {name: text for name, text in found.items() if text} | fixed


class Program:
    """A running program. `start_program` makes it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        # Read all the time, because a program stops when its pipe is full.
        self._words = asyncio.create_task(_read_words(process.stderr))

    async def read(self) -> bytes:
        """Return the next bytes of stdout; an empty text at its end."""
        return b"" if self.process.stdout is None else await self.process.stdout.read(CHUNK)

    async def write(self, text: bytes) -> bool:
        """Write to stdin, and return whether the program still reads it."""
        if self.process.stdin is None or self.process.stdin.is_closing():
            # Also where the event loop has noticed the end of the program already: uvloop raises a RuntimeError then.
            return False
        try:
            self.process.stdin.write(text)
            await self.process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    async def print_for(self, script: bytes) -> AsyncIterator[bytes]:
        """Yield what the program prints while it reads *script*, which is all of its stdin.

        A program such as psql prints as it reads on, and would wait for somebody to read that.
        """
        feeding = asyncio.create_task(self._write_all(script))
        try:
            while chunk := await self.read():
                yield chunk
            await feeding
        finally:
            feeding.cancel()

    async def wait(self) -> tuple[int, str]:
        """Close stdin, and return the exit status and the text of stderr."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        status = await self.process.wait()
        return status, await self._words

    async def end(self) -> None:
        """Kill the program if it still runs."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        # The rest of stdout must be read; otherwise its pipe would stay open.
        while await self.read():
            pass
        await self.process.wait()
        await self._words

    async def _write_all(self, text: bytes) -> None:
        await self.write(text)
        if self.process.stdin is not None:
            self.process.stdin.close()


@contextlib.asynccontextmanager
async def start_program(
    command: Sequence[str | Path], environment: Mapping[str, str], *, stdin: int, stdout: int
) -> AsyncIterator[Program]:
    """Start *command* for one block. At the end of the block it is killed if it still runs.

    A Ctrl-C in the terminal does not reach it, so that the block decides in which order programs end.

    Args:
        command: The full path of the program, and its arguments.
        environment: From `build_environment`.
        stdin: A file, `subprocess.PIPE` or `subprocess.DEVNULL`.
        stdout: A file, `subprocess.PIPE` or `subprocess.DEVNULL`.

    Raises:
        ClientProgramError: It cannot be started.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise ClientProgramError(f"{command[0]} cannot be started: {error}") from error
    program = Program(Path(command[0]).name, process)
    try:
        yield program
    finally:
        # A second cancellation must not leave the program running.
        await asyncio.shield(program.end())


def describe_failure(name: str, words: str) -> str:
    """Return the first line of a program's error. Later lines may hold rows of a table."""
    lines = words.splitlines() or ["it ended without a word"]
    line = next((line for line in lines if "error:" in line), lines[0])
    return f"{name}: {line.removeprefix(f'{name}: ').removeprefix('error: ')}"


def _find_client_programs(server_version: int) -> ClientPrograms:
    found = []
    for folder in _list_folders():
        version = min(_read_version(folder / name) for name in ("pg_dump", "pg_restore", "psql"))
        if version >= server_version:
            return ClientPrograms(folder)
        if version:
            found.append(f"those in {folder} are of version {version}")
    raise ClientProgramError(
        f"backups need pg_dump, pg_restore and psql of PostgreSQL {server_version} or newer"
        f"{', and ' + ', '.join(found) if found else ''}; install them, for example as the package "
        f"postgresql-client-{server_version}, or with: pip install 'quart-tenants[demo]'"
    )


def _list_folders() -> list[Path]:
    folders = []
    on_path = shutil.which("pg_dump")
    if on_path is not None:
        folders.append(Path(on_path).parent)
    # They come last, because they cannot use TLS.
    with contextlib.suppress(EmbeddedPostgresError):
        folders.append(find_postgres().parent)
    return folders


def _read_version(program: Path) -> int:
    """Return the major version of *program*; 0 when it is missing or does not run."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    match = _VERSION.search(said)
    return int(match[1]) if match else 0


def _split_hosts(hosts: str) -> list[tuple[str, str]]:
    """Return each host of a list with its port, which may be empty."""
    address = []
    for host in hosts.split(",") if hosts else []:
        name, port = host, ""
        if host.startswith("["):
            name, _, port = host[1:].partition("]")
        elif not host.startswith("/"):
            name, _, port = host.partition(":")
        address.append((unquote(name), port.removeprefix(":")))
    return address


async def _read_words(stream: asyncio.StreamReader | None) -> str:
    words = b""
    while stream is not None and (chunk := await stream.read(CHUNK)):
        words += chunk[: _MAX_WORDS - len(words)]
    return words.decode(errors="replace").strip()
