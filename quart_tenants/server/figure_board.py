"""Memory that all workers of one start share: each leaves its figures there for the one that is asked.

Memory, because it has no name and no rights to set, survives a worker that dies, costs nothing where nobody asks, and
goes with the processes. The supervisor makes it before it forks and never looks into it.
"""

import mmap
import struct
import time
import zlib
from dataclasses import replace

import msgspec

from quart_tenants.measures.stats import Stats
from quart_tenants.measures.sums import Worker

_PLACE = 1 << 21
"""Bytes for each worker. The system gives memory only for those that are written."""
# How often a worker was started in this place, how often something was written, when it was last, how long that is, and
# its checksum.
_HEAD = struct.Struct("!QQdII")
_ROOM = (_PLACE - _HEAD.size) // 2
_TRIES = 5
FRESH = 5.0
"""Seconds. Figures that are older are those of a worker that is gone, or hangs."""


class _Vote(msgspec.Struct):
    """What of a worker's figures decides who is named. What else was left is not even read for it."""

    busiest: dict[str, float]


class _Left(_Vote):
    """What a worker leaves."""

    stats: Stats


class Names(msgspec.Struct):
    """Which tenants are named.

    Attributes:
        slugs: Theirs.
        held_at: When they were elected, by the monotonic clock; None for never. The next worker in the place of the one
            that decides goes on from there. If it began anew, workers that die again and again would elect nobody.
    """

    slugs: list[str] = msgspec.field(default_factory=list)
    held_at: float | None = None


class FigureBoard:
    """A place for the figures of each worker. Each writes its own, and any of them reads all."""

    def __init__(self, count: int) -> None:
        """Make the places of *count* workers, before they are forked."""
        self._count = count
        # Anonymous and shared: the forked processes have the same pages. The last place is that of the names.
        self._memory = mmap.mmap(-1, (count + 1) * _PLACE)

    def begin(self, number: int) -> Stats | None:
        """Take the place *number* as a worker that was just started; return what those before it have left there."""
        starts, writes, _, *written = self._read_head(number)
        self._write_head(number, starts + 1, writes, 0.0, *written)
        left = self._take(number)[2]
        return msgspec.json.decode(left, type=_Left).stats if left else None

    def write(self, number: int, stats: Stats, busiest: dict[str, float]) -> None:
        """Leave *stats* as those of the worker *number*. Never waits.

        Args:
            number: Its place.
            stats: What was counted there.
            busiest: How busy its busiest tenants are, by slug.
        """
        self._put(number, msgspec.json.encode(_Left(busiest=busiest, stats=stats)))

    def read(self) -> list[Worker]:
        """Return all workers, with the tenants that are named now."""
        named = set(self.read_names().slugs)
        return [self._read(number, named) for number in range(self._count)]

    def read_votes(self, without: int) -> list[dict[str, float]]:
        """Return how busy the busiest tenants of each living worker are, but for the worker *without*."""
        found = [self._take(number) for number in range(self._count) if number != without]
        return [msgspec.json.decode(left, type=_Vote).busiest for _, is_fresh, left in found if is_fresh and left]

    def write_names(self, names: Names) -> None:
        """Let all workers name these tenants. One worker alone may call this."""
        self._put(self._count, msgspec.json.encode(names))

    def read_names(self) -> Names:
        """Return the tenants that are named."""
        left = self._take(self._count)[2]
        return msgspec.json.decode(left, type=Names) if left else Names()

    def _read(self, number: int, named: set[str]) -> Worker:
        starts, is_fresh, left = self._take(number)
        stats = None
        if left:
            stats = msgspec.json.decode(left, type=_Left).stats
            # Whoever lost the name just now has none at once, though some workers have not heard of it: half a sum
            # would look like a number that has gone down.
            stats = replace(stats, tenants=tuple(tenant for tenant in stats.tenants if tenant.slug in named))
        return Worker(stats, str(number), starts, is_fresh)

    def _put(self, number: int, written: bytes) -> None:
        if len(written) > _ROOM:
            raise ValueError(f"the figures of a worker take {len(written)} bytes, and there is room for {_ROOM}")
        starts, writes, *_ = self._read_head(number)
        # Into the half that nobody reads: a worker that is killed just then leaves what it had written before.
        begin = _find_half(number, writes + 1)
        self._memory[begin : begin + len(written)] = written
        # The monotonic clock is that of the whole system.
        self._write_head(number, starts, writes + 1, time.monotonic(), len(written), zlib.crc32(written))

    def _take(self, number: int) -> tuple[int, bool, bytes]:
        """Return how often a worker was started in the place *number*, whether it is well, and what was left there."""
        starts = 0
        for _ in range(_TRIES):
            starts, writes, written_at, length, checksum = self._read_head(number)
            begin = _find_half(number, writes)
            written = self._memory[begin : begin + min(length, _ROOM)]
            # Another process may have been writing just then.
            if zlib.crc32(written) == checksum:
                return starts, time.monotonic() - written_at <= FRESH, written
        return starts, False, b""

    def _read_head(self, number: int) -> tuple[int, int, float, int, int]:
        return _HEAD.unpack_from(self._memory, number * _PLACE)

    def _write_head(self, number: int, *head: float) -> None:
        # Not by pack_into, which first fills the place with zeros: a reader would take that for a place in which
        # nothing was ever left, and would lose it if the writer was killed just then.
        begin = number * _PLACE
        self._memory[begin : begin + _HEAD.size] = _HEAD.pack(*head)


def _find_half(number: int, writes: int) -> int:
    return number * _PLACE + _HEAD.size + writes % 2 * _ROOM
