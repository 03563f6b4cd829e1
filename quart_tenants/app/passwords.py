"""Hash and check passwords in threads, a limited number at a time."""

# No other module imports passlib.

import asyncio
import contextlib
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import ParamSpec, TypeVar

from passlib.context import CryptContext

from quart_tenants.app.users import is_storable
from quart_tenants.errors import HashQueueFullError, InvalidUserError, PasswordTooLongError
from quart_tenants.settings import Settings

logger = logging.getLogger(__name__)

MAX_PASSWORD_LENGTH = 4096
"""Characters. passlib refuses more, and so do we, before any work is done."""

# The OWASP Password Storage Cheat Sheet: argon2id with 19 MiB (in KiB here), 2 passes, 1 lane.
_ARGON2 = {
    "argon2__type": "ID",
    "argon2__memory_cost": 19456,
    "argon2__time_cost": 2,
    "argon2__parallelism": 1,
}
# The hashes of the system that this one replaces. They have fewer rounds than is advised today, so they are replaced at
# the next login.
_PBKDF2 = {"pbkdf2_sha256__rounds": 29000}

# The priority of the threads. benchmarks/logins.py measures what it does.
_NICENESS = 19

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PasswordCheck:
    """What checking a password found.

    Attributes:
        matched: The password is right.
        replacement: A better hash to store instead, if the stored one is of an older kind.
    """

    matched: bool
    replacement: str | None


class PasswordHasher:
    """Checks passwords without blocking the event loop, and in the same time for every user.

    A check computes one hash of each accepted scheme: with the stored hash for the user's own scheme, and with a dummy
    hash for the others. So nobody can tell by the time whether the user is unknown, the password is wrong, or the
    stored hash is of an older scheme.
    """

    def __init__(self, settings: Settings) -> None:
        self._schemes = settings.password_schemes
        options = _ARGON2 | _PBKDF2
        self._context = CryptContext(
            schemes=list(self._schemes),
            deprecated="auto",
            **{name: value for name, value in options.items() if name.partition("__")[0] in self._schemes},
        )
        self._threads = settings.password_hash_concurrency
        self._limit = self._threads + settings.password_hash_queue
        self._executor = ThreadPoolExecutor(
            settings.password_hash_concurrency, thread_name_prefix="password", initializer=_step_back
        )
        self._dummies: dict[str, str] = {}
        self._pending = 0
        self._ended = 0
        self._refused = 0
        self._seconds = 0.0
        self._lock = threading.Lock()

    async def warm(self) -> None:
        """Make the dummy hashes, so that the first login takes no longer than later ones."""
        await self._run(self._make_dummies)

    async def close(self) -> None:
        """End the threads. A check that has begun is finished, and its result is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def count(self) -> dict[str, float]:
        """Return what the threads do and have done, for `QuartTenants.add_figures`."""
        with self._lock:
            return {
                "password_checks_running": min(self._pending, self._threads),
                "password_checks_waiting": max(self._pending - self._threads, 0),
                "password_checks_total": self._ended,
                "password_checks_refused_total": self._refused,
                "password_check_seconds_total": self._seconds,
            }

    async def hash(self, password: str) -> str:
        """Return what to store for *password*, in the modular crypt format.

        Raises:
            PasswordTooLongError: The password has more than 4,096 characters.
            InvalidUserError: The password holds a NUL, or half of a surrogate pair, as bytes that are not UTF-8 become.
            HashQueueFullError: Too many passwords are waiting.
        """
        _check_length(password)
        if not is_storable(password):
            raise InvalidUserError("the password is no text: it holds a NUL, or is no valid Unicode")
        return await self._run(self._context.hash, password)

    async def check(self, password: str, stored: str | None) -> PasswordCheck:
        """Check *password* against the hash *stored*. None, for a user that does not exist, takes the same time.

        If the caller is cancelled, a check that waits leaves the queue, and a check that has begun is finished.

        Raises:
            PasswordTooLongError: The password has more than 4,096 characters.
            HashQueueFullError: Too many passwords are waiting.
        """
        _check_length(password)
        return await self._run(self._check, password, stored)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            if self._pending >= self._limit:
                self._refused += 1
                raise HashQueueFullError(f"{self._pending} passwords are being checked or wait for it")
            self._pending += 1
        future = self._executor.submit(self._measure, functools.partial(function, *args, **kwargs))
        # The count goes down when the thread is done, not when the caller ends: a thread that has begun cannot be
        # cancelled.
        future.add_done_callback(self._leave)
        return await asyncio.wrap_future(future)

    def _measure(self, function: Callable[[], T]) -> T:
        began_at = monotonic()
        try:
            return function()
        finally:
            with self._lock:
                self._ended += 1
                self._seconds += monotonic() - began_at

    def _leave(self, future: "Future[T]") -> None:
        with self._lock:
            self._pending -= 1

    def _make_dummies(self) -> None:
        # All are assigned at once, so that another thread never sees a part of them.
        self._dummies = {scheme: self._context.handler(scheme).hash("dummy") for scheme in self._schemes}

    def _check(self, password: str, stored: str | None) -> PasswordCheck:
        if not self._dummies:
            self._make_dummies()
        matched = False
        stored_scheme = self._context.identify(stored) if stored else None
        for scheme in self._schemes:
            mine = scheme == stored_scheme
            try:
                right = self._context.verify(password, stored if mine else self._dummies[scheme])
            except ValueError as error:
                # Half of a surrogate pair ends here as well. Neither the hash nor the password may be logged.
                logger.warning("a password could not be checked: %s", type(error).__name__)
                right = False
            matched = matched or (mine and right)
        # HMAC pads its key with NUL, so for PBKDF2 "foo" and "foo" with a NUL are the same password. A replacement made
        # of the second one would lock out whoever types the first.
        matched = matched and is_storable(password)
        replace = matched and self._context.needs_update(stored)
        return PasswordCheck(matched, self._context.hash(password) if replace else None)


def _step_back() -> None:
    # Whoever logs in can wait a little longer, and the event loop needs the same cores. Only Linux gives each thread a
    # priority of its own.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _check_length(password: str) -> None:
    if len(password) > MAX_PASSWORD_LENGTH:
        raise PasswordTooLongError(MAX_PASSWORD_LENGTH)
