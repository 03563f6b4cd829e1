"""Show the progress of a command over many tenants on stderr."""

import sys
import time
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    import rich.progress

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """A bar on a terminal, otherwise a line every five seconds with numbers, rate, time left and failures.

    `with Progress("migrating", total) as progress: … progress.advance()`
    """

    def __init__(self, doing: str, total: int = 0) -> None:
        self._doing = doing
        self._total = total
        self._done = 0
        self._failed = 0
        self._began = self._told = time.monotonic()
        self._bar = _make_bar() if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.add_task(self._doing, total=self._total, rate="", failures="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, total: int) -> None:
        """Say how many tenants there are, if that was not known before."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=total)

    def advance(self, number: int = 1, *, failed: bool = False) -> None:
        """Count *number* more tenants."""
        self._done += number
        self._failed += failed
        now = time.monotonic()
        rate = self._done / max(now - self._began, 0.001)
        failures = f"{self._failed} failed"
        if self._bar is not None:
            shown = failures if self._failed else ""
            self._bar.update(self._bar.task_ids[0], completed=self._done, rate=f"{rate:.0f}/s", failures=shown)
        elif now - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = now
            left = (self._total - self._done) / rate
            told = f"{self._done} of {self._total}, {rate:.0f} a second, {left:.0f} s left, {failures}"
            click.echo(f"{self._doing}: {told}", err=True)


def _make_bar() -> "rich.progress.Progress":
    # Imported here, because loading it takes long and most commands do not need it.
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(compact=True),
        progress.TextColumn("{task.fields[failures]}", style="red"),
        console=Console(stderr=True),
    )
