"""How many descriptors this process may open, and how many of them may be connections of clients."""

from __future__ import annotations

import contextlib
import resource

__all__ = ["connections_within", "raise_descriptor_limit"]

_MANY = 1 << 20


def raise_descriptor_limit() -> int:
    """Let this process, and those that it starts, open as many descriptors as it may allow itself; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # more than the machine allows any process
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return _MANY if soft == resource.RLIM_INFINITY else soft


def connections_within(descriptors: int) -> int:
    """Return how many connections of clients leave a quarter of the descriptors for all else that a process opens."""
    return min(descriptors, _MANY) * 3 // 4
