"""Pipe a dump through a program of the operator's choice, such as one that encrypts it."""

import asyncio
import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from quart_tenants.errors import BackupFileError, ClientProgramError
from quart_tenants.postgres.backups.client_programs import CHUNK, start_program
from quart_tenants.postgres.backups.manifests import Backup, Piped

Write = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Pipe:
    """A program that reads a dump from stdin and writes something else, or the dump again, to stdout.

    Attributes:
        program: Its full path.
        arguments: Its arguments, which nobody is shown: they may be secret.

    Example:
        ```python
        pipe = parse_pipe("gzip -9")
        print(pipe.name)
        ```
    """

    program: Path
    arguments: tuple[str, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """The name of the program."""
        return self.program.name


def parse_pipe(text: str) -> Pipe:
    """Return the program that *text* names as in a shell. No shell runs it: there are no variables and no `|`.

    Raises:
        ClientProgramError: The quotes do not match, or there is no such program.

    Example:
        ```python
        await backup_tenant(
            database, parse_slug("acme"), Path("acme.tar"), settings=settings, pipe=parse_pipe("gzip -9")
        )
        ```
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ClientProgramError(f"the command to pipe through cannot be read: {error}") from error
    found = shutil.which(words[0]) if words else None
    if found is None:
        raise ClientProgramError(f"there is no program {words[0] if words else ''!r} to pipe through")
    return Pipe(Path(found), tuple(words[1:]))


@contextlib.asynccontextmanager
async def write_through(pipe: Pipe | None, write: Write) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    """Lend a function that writes to *pipe*, whose output goes to *write*, or without a pipe to *write* itself.

    *write* runs in a thread. When the block ends, the program has read and written everything. After an error or a
    cancellation it is killed.

    Raises:
        ClientProgramError: The program cannot be started, or it failed.
    """
    if pipe is None:

        async def write_in_thread(chunk: bytes) -> None:
            await asyncio.to_thread(write, chunk)

        yield write_in_thread
        return
    # The program needs neither our passwords nor our keys.
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("QUART_", "PG"))}
    async with start_program(
        [pipe.program, *pipe.arguments], environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:

        async def collect() -> None:
            try:
                while chunk := await program.read():
                    await asyncio.to_thread(write, chunk)
            except OSError:
                # The disk is full. The program would wait for ever for somebody to read, and its writer with it.
                program.process.kill()
                raise

        async def finish() -> None:
            (status, words), _ = await asyncio.gather(program.wait(), collecting)
            if status != 0:
                line = next(iter(words.splitlines()), "without a word")
                raise ClientProgramError(f"{pipe.name} ended with status {status}: {line}")

        async def write_to_program(chunk: bytes) -> None:
            if not await program.write(chunk):
                await finish()
                raise ClientProgramError(f"{pipe.name} did not read the dump to its end")

        collecting = asyncio.create_task(collect())
        try:
            yield write_to_program
            await finish()
        finally:
            collecting.cancel()
            # Its error was raised already, or is not the first one.
            await asyncio.gather(collecting, return_exceptions=True)


class Measure:
    """The size and the digest of what passes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._size = 0

    def add(self, chunk: bytes) -> None:
        """Count *chunk*."""
        self._digest.update(chunk)
        self._size += len(chunk)

    def tell(self, program: str) -> Piped:
        """Return what has passed, on its way into *program*."""
        return Piped(program, self._size, self._digest.hexdigest())


@contextlib.asynccontextmanager
async def open_dump(source: str, backup: Backup, opened: BinaryIO, pipe: Pipe | None) -> AsyncIterator[BinaryIO]:
    """Lend the dump of *backup* as pg_dump wrote it.

    If it was piped through a program, it is piped through *pipe* into a temporary file without a name, which nobody
    else can open and which is gone when this process ends.

    Args:
        source: How errors call the backup.
        backup: Its manifest.
        opened: At the start of the dump.
        pipe: The program that undoes what the program of the backup did.

    Raises:
        BackupFileError: The dump was piped and there is no *pipe*, or the reverse; or what comes out is not what went
            in; or the temporary file cannot be written.
        ClientProgramError: The program failed.
    """
    if backup.piped is None:
        if pipe is not None:
            raise BackupFileError(source, "was not piped through a program: restore it without --pipe")
        yield opened
        return
    program = backup.piped.program
    if pipe is None:
        raise BackupFileError(
            source, f"was piped through {program}: say with --pipe which command undoes that, such as 'age -d -i KEY'"
        )
    with contextlib.ExitStack() as stack:
        try:
            plain = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            measure = Measure()

            def write(chunk: bytes) -> None:
                measure.add(chunk)
                # A raw file may write less than it was given.
                rest = memoryview(chunk)
                while rest:
                    rest = rest[plain.write(rest) or 0 :]

            async with write_through(pipe, write) as pass_on:
                left = backup.size
                while left and (chunk := await asyncio.to_thread(opened.read, min(left, CHUNK))):
                    left -= len(chunk)
                    await pass_on(chunk)
            plain.seek(0)
        except OSError as error:
            raise BackupFileError(
                source, f"could not be written to a temporary file: {error.strerror or error}; TMPDIR says where"
            ) from error
        if measure.tell(program) != backup.piped:
            raise BackupFileError(
                source, f"is damaged, or {pipe.name} is not what undoes {program}: what comes out differs"
            )
        yield plain
