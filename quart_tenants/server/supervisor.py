"""Keep the workers alive: fork them, replace those that die, change them for new ones, and end them together.

The supervisor only waits. It runs no event loop and no thread and never imports the app, so it may fork at any time.
Each worker imports the app itself, so new workers have new code. What the app is built on, such as Quart, is in memory
at the fork already: a worker serves in well under two seconds.
"""

import contextlib
import faulthandler
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from quart_tenants.errors import TenantError
from quart_tenants.server.worker_link import Link, read_report

log = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OUR_SIGNALS = (*_STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD)
_NEVER = float("inf")
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 0.5
"""Seconds. The pause before a worker that dies again and again is replaced. With its start it must stay below two."""
_HEALTHY_AFTER = 10.0
"""Seconds. A worker that lived so long is replaced without a pause."""
KILL_MARGIN = 2.0
"""Seconds. After the graceful timeout a worker has so long to close its pools, and is killed then."""


@dataclass(frozen=True)
class Plan:
    """How workers are to be run, from a start or a SIGHUP on.

    Attributes:
        count: How many of them serve.
        serve: What each of them does until its supervisor is gone or it gets SIGTERM; returns its exit status. To
            raise a TenantError means that it cannot serve.
        start_timeout: Seconds. A worker that is not ready by then is killed.
        graceful_timeout: Seconds in which a worker that was asked to end may finish what is in flight.
    """

    count: int
    serve: Callable[[Link], int]
    start_timeout: float
    graceful_timeout: float


@dataclass(eq=False)
class _Slot:
    """One of the workers of a plan. A worker that dies is replaced in its slot."""

    plan: Plan
    is_first: bool
    number: int = 0
    pid: int | None = None
    report: int | None = None
    is_ready: bool = False
    refusal: str = ""
    started_at: float = 0.0
    start_at: float = _NEVER
    pause: float = 0.0
    kill_at: float = _NEVER
    # After so many seconds of silence the worker is killed; it was heard of then.
    patience: float = _NEVER
    heard_at: float = 0.0

    @property
    def hangs_at(self) -> float:
        """When the worker will have been silent for too long."""
        return self.heard_at + self.patience


@dataclass
class Supervisor:
    """The parent of all workers.

    Attributes:
        make_plan: Is called at the start, and again at each SIGHUP. A TenantError from it means that the old workers
            go on.
        announce: Is called once, when all workers of the start are ready.
        stop_listening: Closes the supervisor's sockets, so that late visitors are refused and do not wait in vain.
    """

    make_plan: Callable[[], Plan]
    announce: Callable[[], None] = lambda: None
    stop_listening: Callable[[], None] = lambda: None
    # Those that serve, those that are to serve in their place when all of them are ready, and those that end.
    _serving: list[_Slot] = field(default_factory=list)
    _candidates: list[_Slot] = field(default_factory=list)
    _leaving: list[_Slot] = field(default_factory=list)
    _looked_at: float = 0.0
    _crashes: int = 0
    _last_crash: str = ""
    _asked_to_stop: bool = False
    _asked_to_change: bool = False

    def run(self) -> int:
        """Keep the workers serving until SIGTERM or SIGINT; return 0, or 1 if any of them crashed.

        Raises:
            TenantError: The workers of the start cannot serve.
        """
        self._candidates = _make_slots(self.make_plan())
        refusal = ""
        # Every worker holds the reading end. It is at its end when we are gone, however we go.
        lifeline, our_end = os.pipe()
        with self._notice_signals() as noticed:
            while not self._asked_to_stop and not refusal:
                if self._asked_to_change:
                    self._change_workers()
                self._start_workers(lifeline, our_end)
                self._wait(noticed)
                refusal = self._compare_candidates()
            self.stop_listening()
            for slot in (*self._serving, *self._candidates):
                self._dismiss(slot)
            self._serving = self._candidates = []
            while self._leaving:
                self._wait(noticed)
        os.close(our_end)
        os.close(lifeline)
        if refusal:
            raise TenantError(refusal)
        if self._crashes:
            log.error("ending with status 1: %d worker(s) crashed, the last one: %s", self._crashes, self._last_crash)
            return 1
        log.info("ended, status 0")
        return 0

    def _change_workers(self) -> None:
        """Begin to start new workers for the ones that serve."""
        self._asked_to_change = False
        # Of an earlier SIGHUP: these may have read only half of the new code.
        for slot in self._candidates:
            self._dismiss(slot)
        self._candidates = []
        try:
            self._candidates = _make_slots(self.make_plan())
        except TenantError as error:
            log.error("SIGHUP: the old workers go on: %s", error)

    def _compare_candidates(self) -> str:
        """Let the new workers take over, or give them up; return why the workers of the start cannot serve, or ""."""
        if not self._candidates:
            return ""
        first = self._candidates[0]
        failed = next((slot for slot in self._candidates if slot.refusal), None)
        if failed is not None:
            for slot in self._candidates:
                self._dismiss(slot)
            self._candidates = []
            if not self._serving:
                return failed.refusal
            log.error("SIGHUP: the old workers go on: %s", failed.refusal)
            return ""
        if first.is_first and first.is_ready:
            # It has checked the app for all of them.
            first.is_first = False
            for slot in self._candidates[1:]:
                slot.start_at = 0.0
        if all(slot.is_ready for slot in self._candidates):
            old, self._serving, self._candidates = self._serving, self._candidates, []
            if old:
                log.info("SIGHUP: new workers serve, the old ones finish what is in flight")
                for slot in old:
                    self._dismiss(slot)
            else:
                self.announce()
        return ""

    def _dismiss(self, slot: _Slot) -> None:
        """Ask the worker of *slot* to finish what is in flight and to end."""
        if slot.pid is not None:
            os.kill(slot.pid, signal.SIGTERM)
            slot.patience = _NEVER
            slot.kill_at = time.monotonic() + slot.plan.graceful_timeout + KILL_MARGIN
            self._leaving.append(slot)

    @contextlib.contextmanager
    def _notice_signals(self) -> Iterator[int]:
        """Yield a file descriptor that can be read when a signal came or a child died."""
        noticed, wakeup = os.pipe()
        os.set_blocking(noticed, False)
        os.set_blocking(wakeup, False)
        before = {number: signal.signal(number, self._take_signal) for number in _OUR_SIGNALS}
        # A handler alone would not end a wait that begins just after the signal. This does.
        wakeup_before = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        try:
            yield noticed
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(noticed)
            os.close(wakeup)

    def _take_signal(self, number: int, _frame: object) -> None:
        if number in _STOP_SIGNALS:
            self._asked_to_stop = True
        elif number == signal.SIGHUP:
            self._asked_to_change = True

    def _start_workers(self, lifeline: int, our_end: int) -> None:
        for slot in (*self._serving, *self._candidates):
            if slot.pid is not None or slot.start_at > time.monotonic():
                continue
            try:
                self._fork(slot, lifeline, our_end)
            except OSError as error:
                # There are too many processes, or there is no memory. Later there may be.
                log.error("cannot start a worker: %s", error.strerror)
                slot.start_at = time.monotonic() + _LONGEST_PAUSE
            else:
                slot.is_ready, slot.refusal, slot.patience = False, "", _NEVER
                slot.started_at = time.monotonic()
                slot.start_at = _NEVER
                slot.kill_at = slot.started_at + slot.plan.start_timeout

    def _fork(self, slot: _Slot, lifeline: int, our_end: int) -> None:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # A signal between the fork and the worker's own handlers would run the supervisor's handlers in the worker.
        signal.pthread_sigmask(signal.SIG_BLOCK, _OUR_SIGNALS)
        _flush()
        try:
            slot.pid = os.fork() or None
            if slot.pid is None:
                os.close(our_end)
                os.close(reading)
                _become_worker(slot.plan, Link(lifeline, writing, is_first=slot.is_first, number=slot.number))
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _OUR_SIGNALS)
        os.set_blocking(reading, False)
        slot.report = reading

    def _wait(self, noticed: int) -> None:
        """Wait until something happens or is due, and take note of it."""
        slots = [*self._serving, *self._candidates, *self._leaving]
        due = min(slot.start_at if slot.pid is None else min(slot.kill_at, slot.hangs_at) for slot in slots)
        # Often enough to know afterwards whether it was us who did not run.
        due = min(due, *(time.monotonic() + slot.patience / 4 for slot in slots))
        reports = [slot.report for slot in slots if slot.report is not None]
        select.select([noticed, *reports], [], [], None if due == _NEVER else max(due - time.monotonic(), 0))
        with contextlib.suppress(BlockingIOError):
            os.read(noticed, 4096)
        self._count_silence_anew(slots)
        for slot in slots:
            if slot.pid is None:
                continue
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            _hear(slot)
            now = time.monotonic()
            if pid:
                self._bury(slot, pid, os.waitstatus_to_exitcode(status))
            elif now >= slot.kill_at:
                if not slot.is_ready and slot not in self._leaving:
                    slot.refusal = f"a worker was not ready within {slot.plan.start_timeout:g} s"
                os.kill(slot.pid, signal.SIGKILL)
                slot.kill_at = slot.patience = _NEVER
            elif now >= slot.hangs_at:
                slot.refusal = f"it hung: something has held up its event loop for {slot.patience:g} s"
                slot.patience = _NEVER
                # It shows in the log what it is doing, if it can. One that was stopped cannot.
                os.kill(slot.pid, signal.SIGABRT)
                slot.kill_at = now + KILL_MARGIN

    def _count_silence_anew(self, slots: list[_Slot]) -> None:
        """Hold no silence against the workers of *slots* if this process itself did not run: nor may they have."""
        now = time.monotonic()
        for slot in slots:
            if now - self._looked_at > slot.patience / 2:
                slot.heard_at = now
        self._looked_at = now

    def _bury(self, slot: _Slot, pid: int, code: int) -> None:
        """Take note that the worker of *slot* died, and of what."""
        slot.pid = None
        if slot.report is not None:
            os.close(slot.report)
            slot.report = None
        death = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        if slot in self._candidates:
            slot.refusal = slot.refusal or f"worker {pid} {death}"
        elif slot in self._leaving:
            self._leaving.remove(slot)
            # One that has not come as far as to serve ends of the signal itself.
            if code not in (0, -signal.SIGTERM) and not slot.refusal:
                self._note_crash(f"worker {pid} {death}", "")
        else:
            lived = time.monotonic() - slot.started_at
            slot.pause = 0.0 if lived > _HEALTHY_AFTER else min(max(slot.pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)
            slot.start_at = time.monotonic() + slot.pause
            remedy = f"; its replacement starts in {slot.pause:g} s"
            if code == 0:
                # It got a signal of its own, or had served its max_requests.
                log.warning("worker %d ended%s", pid, remedy)
            else:
                why = f": {slot.refusal}" if slot.refusal else ""
                self._note_crash(f"worker {pid} {death}{why}", remedy)

    def _note_crash(self, reason: str, remedy: str) -> None:
        self._crashes += 1
        self._last_crash = reason
        log.error("%s%s", reason, remedy)


def _make_slots(plan: Plan) -> list[_Slot]:
    first = _Slot(plan, is_first=True, start_at=0.0)
    return [first, *(_Slot(plan, is_first=False, number=number) for number in range(1, plan.count))]


def _hear(slot: _Slot) -> None:
    """Take note of what the worker of *slot* has said of itself."""
    if slot.report is None:
        return
    with contextlib.suppress(BlockingIOError):
        said = read_report(slot.report)
        slot.heard_at = time.monotonic()
        if said is None:
            os.close(slot.report)
            slot.report = None
            return
        if said.is_ready:
            log.info("worker %d started", slot.pid)
            slot.is_ready, slot.kill_at = True, _NEVER
            slot.patience = said.patience or _NEVER
        if said.is_ending:
            slot.patience = _NEVER
        slot.refusal = said.refusal or slot.refusal


def _become_worker(plan: Plan, link: Link) -> NoReturn:
    """Serve in a process that was just forked, and end it."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        # Until the worker serves, SIGTERM simply ends it. Ctrl-C and SIGHUP are for the supervisor.
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OUR_SIGNALS)
        # At SIGABRT, or a crash in C, this process writes which lines of Python it is in. To the descriptor itself:
        # an app may have put something else in the place of sys.stderr.
        faulthandler.enable(2)
        status = plan.serve(link)
    except TenantError as error:
        link.refuse(str(error))
    except BaseException as error:
        log.exception("worker %d failed", os.getpid())
        link.refuse(f"worker {os.getpid()} failed: {type(error).__name__}")
    finally:
        # The worker must not go back into what the supervisor was doing, nor through its exit handlers.
        _flush()
        os._exit(status)


def _flush() -> None:
    # What is in a buffer at the fork would be written twice. The reader of it may be gone.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
