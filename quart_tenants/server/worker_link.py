"""What a worker says of itself to its supervisor, through a pipe: the worker's end, and how the other one reads it."""

import contextlib
import os
import struct
from dataclasses import dataclass

_LONGEST_REASON = 2000
"""Bytes. A pipe takes so many in one piece."""
# What a worker says of itself: it serves, with the seconds after which its silence means that it hangs; it is alive; it
# ends. Anything else is the reason why it cannot serve.
_READY = struct.Struct("!xd")
_ALIVE = b"\1"
_ENDING = b"\2"


class Link:
    """What a worker has of its supervisor.

    Attributes:
        lifeline: A file descriptor that is at its end when the supervisor is gone.
        is_first: Whether this worker is the first one with its code, and has to check the app before it serves.
        number: From 0 on. A worker that replaces one that died has its number.
    """

    def __init__(self, lifeline: int, report: int, *, is_first: bool, number: int = 0) -> None:
        self.lifeline = lifeline
        self.number = number
        self.is_first = is_first
        self._report = report

    def say_ready(self, patience: float = 0.0) -> None:
        """Tell the supervisor that this worker serves.

        Args:
            patience: Seconds. The supervisor kills this worker if it does not `say_alive` for so long; 0 for never.
        """
        os.write(self._report, _READY.pack(patience))

    def say_alive(self) -> None:
        """Tell the supervisor that this worker does not hang. Never waits."""
        # A supervisor that was stopped for days has a full pipe. One that is gone is noticed by the lifeline.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._report, _ALIVE)

    def say_ending(self) -> None:
        """Tell the supervisor that this worker ends by itself, and may be silent from now on. Never waits."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._report, _ENDING)

    def refuse(self, reason: str) -> None:
        """Tell the supervisor in one line why this worker cannot serve."""
        os.write(self._report, reason.encode()[:_LONGEST_REASON])


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker has said since it was heard last.

    Attributes:
        is_ready: Whether it has begun to serve.
        patience: Seconds of silence after which it is to be killed, if it has begun to serve; 0 for never.
        is_ending: Whether it ends by itself, and may be silent from now on.
        refusal: Why it cannot serve, or "".
    """

    is_ready: bool
    patience: float
    is_ending: bool
    refusal: str


def read_report(descriptor: int) -> Report | None:
    """Return what was said, or None if nobody is left to say anything.

    Raises:
        BlockingIOError: Nothing was said.
    """
    said = os.read(descriptor, 2 * _LONGEST_REASON)
    if not said:
        return None
    is_ready, patience = said.startswith(b"\0"), 0.0
    if is_ready:
        (patience,) = _READY.unpack_from(said)
        said = said[_READY.size :]
    reason = said.lstrip(_ALIVE + _ENDING)
    is_ending = _ENDING in said[: len(said) - len(reason)]
    return Report(is_ready, patience, is_ending, reason.decode(errors="replace"))
