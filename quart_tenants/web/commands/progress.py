"""Show the progress of a command over many tenants on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

import click

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """A bar on a terminal, otherwise a line every five seconds with numbers, rate, time left and failures.

    `with Progress("migrating", total) as progress: … progress.advance()`
    """

    def __init__(self, doing: str, total: int) -> None:
        self._doing = doing
        self._total = total
        self._done = 0
        self._failed = 0
        self._began = self._told = time.monotonic()
        self._bar = _Bar(doing, total) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, number: int = 1, *, failed: bool = False) -> None:
        """Count *number* more tenants."""
        self._done += number
        self._failed += failed
        if self._bar is not None:
            self._bar.update(self._done, self._failed)
        elif time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            click.echo(self._describe(), err=True)

    def _describe(self) -> str:
        rate = self._done / (time.monotonic() - self._began)
        left = (self._total - self._done) / rate
        return (
            f"{self._doing}: {self._done} of {self._total}, {rate:.0f} a second, "
            f"{left:.0f} s left, {self._failed} failed"
        )


class _Bar:
    def __init__(self, doing: str, total: int) -> None:
        # Imported here, because loading it takes long and most commands do not need it.
        from rich import progress
        from rich.console import Console

        self._progress = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[failures]}", style="red"),
            console=Console(stderr=True),
        )
        self._began = time.monotonic()
        self._task = self._progress.add_task(doing, total=total, rate="", failures="")

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def update(self, done: int, failed: int) -> None:
        rate = done / max(time.monotonic() - self._began, 0.001)
        failures = f"{failed} failed" if failed else ""
        self._progress.update(self._task, completed=done, rate=f"{rate:.0f}/s", failures=failures)
