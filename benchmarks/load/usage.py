"""Read from Linux what processes have used: CPU by the nanosecond, and memory."""

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Family:
    """A process and all its descendants at a moment.

    Attributes:
        pids: All of them, the first ancestor first.
        cpu: Seconds that they, and those of their children that have ended, have run.
    """

    pids: tuple[int, ...]
    cpu: float


def read_family(pid: int) -> Family:
    """Look at the family of *pid*.

    Raises:
        ProcessLookupError: *pid* has ended.
    """
    children = defaultdict(list)
    ended: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                # The name, in brackets, may hold blanks.
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children[int(fields[1])].append(int(entry.name))
            ended[int(entry.name)] = (int(fields[13]) + int(fields[14])) / _TICKS
    if pid not in ended:
        raise ProcessLookupError(pid)
    found = [pid]
    for parent in found:
        found.extend(children[parent])
    return Family(tuple(found), sum(_read_cpu(pid) + ended[pid] for pid in found))


def _read_cpu(pid: int) -> float:
    # The number of a process's clock, as clock_getcpuclockid(3) makes it: all threads, those that ended, too, and by
    # the nanosecond, where /proc/PID/schedstat tells of the first thread only.
    try:
        return time.clock_gettime_ns((~pid << 3) | 2) / 1e9
    except OSError:
        # It has ended since, and is in its parent's sum the next time.
        return 0.0


def read_memory(pids: tuple[int, ...]) -> float:
    """Return the megabytes of *pids*; what they share counts once."""
    return sum(_read_kilobytes(pid, "smaps_rollup", "Pss:") for pid in pids) / 1024


def read_peak(pids: tuple[int, ...]) -> float:
    """Return the most megabytes that any of *pids* ever had in memory."""
    return max(_read_kilobytes(pid, "status", "VmHWM:") for pid in pids) / 1024


def read_own_memory(pid: int) -> float:
    """Return the megabytes that *pid* has for itself: of a PostgreSQL backend mostly its caches."""
    return _read_kilobytes(pid, "status", "RssAnon:") / 1024


def _read_kilobytes(pid: int, file: str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
