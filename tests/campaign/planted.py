"""A parser with faults: it shows that a run notices what it is to notice."""

from __future__ import annotations

import os
import time

SLOW_SECONDS = 1.0
"""Of processor time, for one input of at most 64 KiB: more is a finding."""

INPUTS = [b"right", b"refused", b"wrong", b"ends", b"slow"]


def parse(data: bytes) -> None:
    """Do what `data` says."""
    match data:
        case b"refused":
            raise ValueError
        case b"wrong":
            raise KeyError("planted")
        case b"ends":
            os.abort()
        case b"slow":
            until = time.process_time() + SLOW_SECONDS + 0.1
            while time.process_time() < until:
                pass
