"""Memory that all workers of one start share: each leaves its figures there for the one that is asked.

Memory, because it has no name and no rights to set, survives a worker that dies, costs nothing where nobody asks, and
goes with the processes. The supervisor makes it before it forks and never looks into it.
"""

import mmap
import struct
import time
import zlib

import msgspec

from quart_tenants.measures.stats import Stats

_PLACE = 1 << 20
"""Bytes for each worker. The system gives memory only for those that are written."""
# How often a worker was started in this place, when it wrote its figures last, how long they are, and their checksum.
_HEAD = struct.Struct("!QdII")
_TRIES = 5
FRESH = 5.0
"""Seconds. Figures that are older are those of a worker that is gone, or hangs."""


class FigureBoard:
    """A place for the figures of each worker. Each writes its own, and any of them reads all."""

    def __init__(self, count: int) -> None:
        """Make the places of *count* workers, before they are forked."""
        self._count = count
        # Anonymous and shared: the forked processes have the same pages.
        self._memory = mmap.mmap(-1, count * _PLACE)

    def begin(self, number: int) -> None:
        """Take the place *number* as a worker that was just started."""
        starts, *_ = _HEAD.unpack_from(self._memory, number * _PLACE)
        _HEAD.pack_into(self._memory, number * _PLACE, starts + 1, 0.0, 0, 0)

    def write(self, number: int, stats: Stats) -> None:
        """Leave *stats* as those of the worker *number*. Never waits."""
        written = msgspec.json.encode(stats)
        if len(written) > _PLACE - _HEAD.size:
            raise ValueError(f"the figures of a worker take {len(written)} bytes, and there is room for {_PLACE}")
        begin = number * _PLACE
        starts, *_ = _HEAD.unpack_from(self._memory, begin)
        self._memory[begin + _HEAD.size : begin + _HEAD.size + len(written)] = written
        # The monotonic clock is that of the whole system.
        _HEAD.pack_into(self._memory, begin, starts, time.monotonic(), len(written), zlib.crc32(written))

    def read(self) -> list[tuple[str, int, Stats | None]]:
        """Return for every worker its number, how often one was started with it, and its figures if they are fresh."""
        return [self._read(number) for number in range(self._count)]

    def _read(self, number: int) -> tuple[str, int, Stats | None]:
        begin = number * _PLACE
        starts = 0
        for _ in range(_TRIES):
            starts, written_at, length, checksum = _HEAD.unpack_from(self._memory, begin)
            if time.monotonic() - written_at > FRESH:
                break
            written = self._memory[begin + _HEAD.size : begin + _HEAD.size + min(length, _PLACE)]
            # Another process may have been writing just then.
            if length and zlib.crc32(written) == checksum:
                return str(number), starts, msgspec.json.decode(written, type=Stats)
        return str(number), starts, None
