"""A process that gives mutated input to one parser: `python -m tests.campaign.in_process TARGET SEED FIRST COUNT FILE`.

Input number N is decided by target, seed and N alone, so that what kills this process can be made again. N stands in
the first eight bytes of FILE while it is parsed. Each finding is a line of JSON on standard output.
"""

from __future__ import annotations

import base64
import json
import logging
import mmap
import resource
import struct
import sys
import time
import traceback
from random import Random

from tests.campaign import parsers
from tests.campaign.planted import SLOW_SECONDS

__all__ = ["input_of", "target_named"]

_MEMORY_KIB = 512 << 10
_ADDRESSES = 16 << 30


def target_named(name: str) -> parsers.Target:
    """Find a target, or the one with planted faults."""
    return parsers.PLANTED if name == parsers.PLANTED.name else parsers.TARGETS[name]


def input_of(target: parsers.Target, seed: int, number: int) -> bytes:
    """Make the input of that number."""
    return target.mutate(target.seeds(), Random(f"{seed}:{target.name}:{number}"))


def main(name: str, seed: int, first: int, count: int, progress: str) -> None:
    """Parse `count` inputs from number `first` on."""
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))
    target = target_named(name)
    with open(progress, "r+b") as file, mmap.mmap(file.fileno(), 8) as shown:
        peak = 0
        for number in range(first, first + count):
            data = input_of(target, seed, number)
            shown[:] = struct.pack("<q", number)
            peak = peak or _peak()
            started = time.process_time()
            wrong = _parse(target, data)
            took, grown = time.process_time() - started, _peak() - peak
            if not wrong and took > SLOW_SECONDS:
                wrong = f"takes {took:.1f} s of processor time"
            if not wrong and grown > _MEMORY_KIB:
                wrong = f"takes {grown >> 10:,} MiB"
            if wrong:
                found = {"number": number, "what": wrong, "data": base64.b64encode(data).decode()}
                print(json.dumps(found), flush=True)
            peak += max(0, grown)
        shown[:] = struct.pack("<q", first + count)


def _parse(target: parsers.Target, data: bytes) -> str:
    """Give `data` to the parser; return what is wrong, or ""."""
    try:
        target.parse(data)
    except target.refusals:
        pass
    except Exception as error:  # noqa: BLE001 - that is what this is about
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:300]} ({where.name}, line {where.lineno})"
    return ""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
