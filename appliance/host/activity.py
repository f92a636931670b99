"""What the kernel tells of a process's threads: which run, and which wait, for a processor or for a disk."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["ThreadActivity", "threads_of"]

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ThreadActivity:
    """How busy one thread has been since it began.

    `state` is a letter of proc(5): R runs or could run, S sleeps, D waits for a disk, T is stopped, t is stopped by a
    debugger. It `ran`, and `waited` for a processor, for so many seconds; `faults` of its pages came from a disk.
    """

    state: str
    ran: float = 0.0
    waited: float = 0.0
    faults: int = 0


def threads_of(process: int | str) -> dict[int, ThreadActivity]:
    """Return the threads of a process, by number; `process` is its number, or "self". A thread that ends meanwhile is
    left out, so none are there if the process has ended, or cannot be looked at."""
    found = {}
    folder = f"/proc/{process}/task"
    try:
        numbers = os.listdir(folder)
    except OSError:
        return {}
    for number in numbers:
        try:
            with open(f"{folder}/{number}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
            state, faults, ran, waited = words[0].decode(), int(words[9]), 0.0, 0.0
            ran = (int(words[11]) + int(words[12])) / _TICKS_A_SECOND
        except (OSError, IndexError, ValueError):
            continue
        try:
            with open(f"{folder}/{number}/schedstat", "rb") as file:
                ran, waited = (int(word) / 1e9 for word in file.read().split()[:2])
        except (OSError, ValueError):  # this kernel does not tell
            pass
        found[int(number)] = ThreadActivity(state, ran, waited, faults)
    return found
