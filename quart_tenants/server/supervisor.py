"""Keep the workers alive: fork them, replace those that die, and end them together.

The parent binds the sockets and then only waits. It runs no event loop and no thread, so it may fork at
any time, and a replacement has all modules in memory already: it serves in well under two seconds.
"""

import contextlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 0.5
"""Seconds. Before a worker that dies again and again is replaced; with its start it must stay below two."""
_HEALTHY_AFTER = 10.0
"""Seconds. A worker that lived so long is replaced at once again."""
KILL_MARGIN = 2.0
"""Seconds. After the graceful timeout, for closing pools: whoever is still there then is killed."""

Worker = Callable[[int], int]
"""Serves until the file descriptor that it gets is at its end; returns its exit status."""


@dataclass
class _Slot:
    """The place of one worker, whoever fills it."""

    pid: int | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    pause: float = 0.0


@dataclass
class Supervisor:
    """The parent of all workers.

    Attributes:
        count: How many workers serve.
        serve: What each does.
        graceful_timeout: Seconds in which a worker that was asked to end may finish what is in flight.
        stop_listening: Closes the parent's sockets, so that a late visitor is refused instead of waiting for nobody.
    """

    count: int
    serve: Worker
    graceful_timeout: float
    stop_listening: Callable[[], None]
    _slots: list[_Slot] = field(default_factory=list)
    _crashes: int = 0
    _last_crash: str = ""
    _asked_to_stop: bool = False

    def run(self) -> int:
        """Keep the workers serving until SIGTERM or SIGINT; return 0, or 1 if any of them crashed."""
        self._slots = [_Slot() for _ in range(self.count)]
        # Every worker holds the reading end. It is at its end when we close ours, and when we are killed.
        lifeline, our_end = os.pipe()
        try:
            with self._notice_signals() as noticed:
                while not self._asked_to_stop:
                    self._fill_slots(lifeline, our_end)
                    self._wait(noticed, min(slot.start_at for slot in self._slots))
                    self._bury()
                self.stop_listening()
                os.close(our_end)
                self._finish(noticed)
        finally:
            os.close(lifeline)
        if self._crashes:
            log.error("ending with status 1: %d worker(s) crashed, the last one: %s", self._crashes, self._last_crash)
            return 1
        log.info("ended, status 0")
        return 0

    @contextlib.contextmanager
    def _notice_signals(self) -> Iterator[int]:
        """Yield a file descriptor that can be read when a signal came or a child died."""
        noticed, wakeup = os.pipe()
        os.set_blocking(noticed, False)
        os.set_blocking(wakeup, False)
        before = {number: signal.signal(number, self._stop) for number in _STOP_SIGNALS}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        # Unlike a handler's own doing, this also ends a wait that begins just after the signal.
        wakeup_before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        try:
            yield noticed
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(noticed)
            os.close(wakeup)

    def _stop(self, *_: object) -> None:
        self._asked_to_stop = True

    def _wait(self, noticed: int, until: float) -> None:
        """Return when a signal came, or at *until*."""
        patience = None if until == float("inf") else max(until - time.monotonic(), 0)
        select.select([noticed], [], [], patience)
        with contextlib.suppress(BlockingIOError):
            os.read(noticed, 4096)

    def _fill_slots(self, lifeline: int, our_end: int) -> None:
        for slot in self._slots:
            if slot.pid is None and slot.start_at <= time.monotonic() and not self._asked_to_stop:
                try:
                    slot.pid = self._fork(lifeline, our_end)
                except OSError as error:
                    # Too many processes, or no memory: later perhaps.
                    log.error("cannot start a worker: %s", error.strerror)
                    slot.start_at = time.monotonic() + _LONGEST_PAUSE
                else:
                    log.info("worker %d started", slot.pid)
                    slot.started_at = time.monotonic()
                    slot.start_at = float("inf")

    def _fork(self, lifeline: int, our_end: int) -> int:
        # Whoever is asked to stop between the fork and its own handlers is asked again when they are there.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        _flush()
        try:
            pid = os.fork()
            if pid == 0:
                self._become_worker(lifeline, our_end)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
        return pid

    def _become_worker(self, lifeline: int, our_end: int) -> NoReturn:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(our_end)
            status = self.serve(lifeline)
        except BaseException:
            log.exception("worker %d failed", os.getpid())
        finally:
            # Never back into what the parent was doing, and never through its exit handlers.
            _flush()
            os._exit(status)

    def _bury(self) -> None:
        """Take note of every worker that died, and when to replace it."""
        for slot in self._slots:
            if slot.pid is None:
                continue
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            if not pid:
                continue
            slot.pid = None
            if self._asked_to_stop:
                self._note_end(pid, status, "")
                continue
            lived = time.monotonic() - slot.started_at
            slot.pause = 0.0 if lived > _HEALTHY_AFTER else min(max(slot.pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
            slot.start_at = time.monotonic() + slot.pause
            self._note_end(pid, status, f"; its replacement starts in {slot.pause:g} s")

    def _note_end(self, pid: int, status: int, remedy: str) -> None:
        code = os.waitstatus_to_exitcode(status)
        if code == 0 or (self._asked_to_stop and -code in _STOP_SIGNALS):
            # It was asked to end, perhaps by a signal of its own, or had served its max_requests.
            if remedy:
                log.warning("worker %d ended%s", pid, remedy)
            return
        reason = f"worker {pid} " + (
            f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        )
        self._crashes += 1
        self._last_crash = reason
        log.error("%s%s", reason, remedy)

    def _finish(self, noticed: int) -> None:
        """Wait for the workers, which are at the end of their lifeline; kill who does not come."""
        deadline = time.monotonic() + self.graceful_timeout + KILL_MARGIN
        killed = False
        self._bury()
        while any(slot.pid is not None for slot in self._slots):
            self._wait(noticed, deadline)
            self._bury()
            if not killed and time.monotonic() >= deadline:
                for slot in self._slots:
                    if slot.pid is not None:
                        os.kill(slot.pid, signal.SIGKILL)
                killed, deadline = True, float("inf")


def _flush() -> None:
    # What lies in a buffer at the fork would be written twice. Whoever read it may be gone.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
