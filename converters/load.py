"""Measure how much of the processors other processes take: timings beside them may not hold without them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from converters.cores import ALL

__all__ = ["OthersLoad", "others_share", "processor_seconds"]


class OthersLoad:
    """The processor time that other processes than `own` take, from now on, of the cores that this one may use."""

    def __init__(self, own: Sequence[int]) -> None:
        self._own = own
        self._begun = _times(own)

    def share(self) -> float:
        """Return their share of the processors, from 0 to 1; 0 if the kernel does not say."""
        return others_share(self._begun, _times(self._own))


def others_share(before: tuple[int, int, int], after: tuple[int, int, int]) -> float:
    """Return the share of others between two readings, each in clock ticks of all cores: all that passed, those that
    were used, and those that our own processes used."""
    total, busy, own = (end - begin for begin, end in zip(before, after, strict=True))
    return min(1.0, max(0, busy - own) / total) if total > 0 else 0.0


def _times(own: Sequence[int]) -> tuple[int, int, int]:
    """Return a reading for `others_share`. Time that a hypervisor gives to other machines ("steal") counts as used (man
    5 proc)."""
    total = busy = 0
    names = {f"cpu{number}" for number in ALL}
    try:
        with open("/proc/stat", encoding="ascii") as file:
            for line in file:
                name, *fields = line.split()
                if name in names:
                    ticks = [int(field) for field in fields[:8]]  # user nice system idle iowait irq softirq steal
                    total += sum(ticks)
                    busy += sum(ticks) - ticks[3] - ticks[4]
    except (OSError, ValueError, IndexError):
        return 0, 0, 0
    return total, busy, sum(map(_used, own))


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used, with all its threads; 0 if it has ended."""
    return _used(pid) / os.sysconf("SC_CLK_TCK")


def _used(pid: int) -> int:
    """Return utime and stime of a process with all its threads: the fields 14 and 15, after the name in parentheses."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return 0
