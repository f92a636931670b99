"""What the builder tells: progress on stderr, and errors with a remedy."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


class BuildError(Exception):
    """What failed, with which value, and what to do."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Says what begins, and how long it took."""
    print(f"{text} ...", file=sys.stderr, flush=True)
    began = time.monotonic()
    yield
    print(f"{text}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


def run(
    arguments: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = 1800,
) -> str:
    """What the program printed. Raises BuildError with the end of its stderr where it fails or takes too long."""
    command = [str(argument) for argument in arguments]
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except FileNotFoundError:
        raise BuildError(f"the program {command[0]} is missing", "run make rpm-tools") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{' '.join(command[:3])} took more than {seconds:g} s") from None
    if done.returncode != 0:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-20:])
        raise BuildError(f"{' '.join(command[:6])} ended with status {done.returncode}:\n{last}")
    return done.stdout
