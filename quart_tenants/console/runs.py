"""Run commands that take long, each as a process of its own, and keep what they say while they run."""

import asyncio
import contextlib
import re
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from quart_tenants.errors import ConsoleBusyError

_MOST_AT_ONCE = 3
_MOST_KEPT = 50
_MOST_LINES = 200
_MOST_BYTES = 32 * 2**20
"""Of a document on stdout."""
_LONGEST_LINE = 2**20
# As `Progress` of the commands says it.
_PROGRESS = re.compile(r"[a-z ]+: (\d+) of (\d+), ")


class Run:
    """One command, while it runs and afterwards.

    Attributes:
        number: From 1 on.
        command: As an operator types it.
        operator: Who has started it.
        lines: What it says, its last lines.
        keeps_output: Whether its stdout is a document, and not lines for people.
        output: That document.
        done: How many tenants are done, as it says.
        total: How many there are; 0 if it does not say.
        status: The exit status; None while it runs.
    """

    def __init__(self, number: int, command: str, operator: str, *, keeps_output: bool) -> None:
        self.number = number
        self.command = command
        self.operator = operator
        self.lines: deque[str] = deque(maxlen=_MOST_LINES)
        self.keeps_output = keeps_output
        self.output = b""
        self.done = 0
        self.total = 0
        self.status: int | None = None
        self.process: Process | None = None
        self._began = time.monotonic()
        self._ended: float | None = None
        self._changed = asyncio.Event()

    @property
    def state(self) -> str:
        """What to tell of it in a word or two."""
        if self.status is None:
            return "running"
        return "done" if self.status == 0 else f"ended with status {self.status}"

    @property
    def seconds(self) -> int:
        """How long it runs, or ran."""
        return int((self._ended or time.monotonic()) - self._began)

    def say(self, line: str) -> None:
        """Add a line, and wake whoever watches."""
        progress = _PROGRESS.match(line)
        if progress is not None:
            self.done, self.total = int(progress[1]), int(progress[2])
        self.lines.append(line)
        self._wake()

    def end(self, status: int) -> None:
        """Note the exit status, and wake whoever watches."""
        self.status = status
        self._ended = time.monotonic()
        self._wake()

    async def watch(self) -> AsyncIterator[None]:
        """Yield now, and whenever there is something new, until the command has ended."""
        while True:
            changed = self._changed
            ended = self.status is not None
            yield
            if ended:
                return
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Runs:
    """The commands of one console: a few at a time, and the newest fifty to look back at.

    They are the very commands that an operator types, so they do the same, check the same and write the same audit
    lines. As processes of their own they take no time of this one's, and end as after Ctrl-C when the console ends.
    """

    def __init__(
        self, program: Sequence[str], on_end: Callable[[Run], object] = lambda run: None, *, patience: float = 10.0
    ) -> None:
        """Prepare to run commands.

        Args:
            program: How Python starts them, such as `-m quart_tenants`.
            on_end: Called after each.
            patience: Seconds that they have to end by themselves when the console ends.
        """
        self._program = (sys.executable, *program)
        self._patience = patience
        self._on_end = on_end
        self._runs: dict[int, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last = 0

    def list(self) -> list[Run]:
        """Return all that are kept, the newest first."""
        return list(reversed(self._runs.values()))

    def find(self, number: int) -> Run | None:
        """Return the run of that number, or None."""
        return self._runs.get(number)

    def start(self, arguments: Sequence[str], command: str, operator: str, *, keep_output: bool = False) -> Run:
        """Start a command, and return at once.

        Args:
            arguments: Of the program.
            command: The same as an operator types it.
            operator: Who wants it.
            keep_output: Whether stdout is a document, and not lines for people.

        Raises:
            ConsoleBusyError: Too many are running.
        """
        running = [run for run in self._runs.values() if run.status is None]
        if len(running) >= _MOST_AT_ONCE:
            raise ConsoleBusyError([run.command for run in running])
        self._last += 1
        run = self._runs[self._last] = Run(self._last, command, operator, keeps_output=keep_output)
        ended = [old.number for old in self._runs.values() if old.status is not None]
        for number in ended[: max(len(self._runs) - _MOST_KEPT, 0)]:
            del self._runs[number]
        task = asyncio.create_task(self._run(run, arguments), name=f"console: {command}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    def interrupt(self, run: Run) -> None:
        """End a command as Ctrl-C does: it says what stays. Do nothing if it has ended."""
        if run.process is not None and run.status is None:
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(signal.SIGINT)

    async def close(self) -> None:
        """End all commands as Ctrl-C does, wait for them, and kill those that go on."""
        for run in self._runs.values():
            self.interrupt(run)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._patience)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, run: Run, arguments: Sequence[str]) -> None:
        status = 1
        try:
            # A group of its own: Ctrl-C in the terminal reaches the console alone, which hands it on once.
            run.process = process = await asyncio.create_subprocess_exec(
                *self._program,
                *arguments,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                limit=_LONGEST_LINE,
                start_new_session=True,
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(_read_lines(process.stderr, run))
                group.create_task(
                    _read_all(process.stdout, run) if run.keeps_output else _read_lines(process.stdout, run)
                )
            status = await process.wait()
        except OSError as error:
            run.say(f"the command cannot be started: {error.strerror}")
        finally:
            if run.process is not None and run.process.returncode is None:
                run.process.kill()
            run.end(status)
            self._on_end(run)


async def _read_lines(stream: asyncio.StreamReader | None, run: Run) -> None:
    if stream is None:
        return
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            # readline() has thrown the line away, because it is longer than anything that a command says.
            run.say("(a line that is too long to show)")
            continue
        if not line:
            return
        run.say(line.decode("utf-8", "replace").rstrip("\n"))


async def _read_all(stream: asyncio.StreamReader | None, run: Run) -> None:
    if stream is None:
        return
    kept = bytearray()
    while block := await stream.read(2**16):
        if len(kept) <= _MOST_BYTES:
            kept += block
    if len(kept) > _MOST_BYTES:
        run.say("what it has written is too long to keep")
    else:
        run.output = bytes(kept)
