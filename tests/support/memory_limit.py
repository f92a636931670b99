"""A limit on the memory of processes that run already, so that a model that takes all there is takes little."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["limited_memory"]


@contextlib.contextmanager
def limited_memory(pids: Iterable[int], more_bytes: int) -> Iterator[None]:
    """Let each process, and those that it forks meanwhile, take `more_bytes` more than it has; the soft limit only."""
    before: dict[int, tuple[int, int]] = {}
    for pid in pids:
        before[pid] = resource.prlimit(pid, resource.RLIMIT_DATA)
        resource.prlimit(pid, resource.RLIMIT_DATA, (_data_bytes(pid) + more_bytes, before[pid][1]))
    try:
        yield
    finally:
        for pid, limits in before.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_DATA, limits)


def _data_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmData:")[2].split()[0]) << 10
