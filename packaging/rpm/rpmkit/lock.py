"""The lock: every file that goes into the runtime, by name, version and SHA-256.

One line a file, `KIND NAME VERSION SHA256 [FILE]`; `#` begins a comment. Kinds: `deb` (Debian's package), `wheel` (a
Python wheel of the base package; FILE is its name, which its installer reads the tags from), `cuda` (a wheel of
dropserve-cuda).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rpmkit.report import BuildError

KINDS = ("deb", "wheel", "cuda")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~_-]*")

_HEAD = """\
# What the pinned runtime is made of: KIND NAME VERSION SHA256 [FILE]. `make relock` writes this file.
# deb: a package of Debian 12. wheel: of Python 3.11, in the base package. cuda: a wheel of dropserve-cuda.
"""


@dataclass(frozen=True, slots=True, order=True)
class Locked:
    """One file of the runtime."""

    kind: str
    name: str
    version: str
    sha256: str
    file: str = ""


def parse(text: str, where: str) -> list[Locked]:
    """The entries of a lock. Raises BuildError with the line's number where one is malformed or stands twice."""
    entries: list[Locked] = []
    seen: set[tuple[str, str]] = set()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        wanted = 4 if words[0] == "deb" else 5
        sound = (
            words[0] in KINDS
            and len(words) == wanted
            and _SHA256.fullmatch(words[3])
            and all(_WORD.fullmatch(word) for word in words)
        )
        if not sound:
            raise BuildError(f"{where}, line {number} is {line!r}", "run make relock")
        entry = Locked(*words)
        if (entry.kind, entry.name) in seen:
            raise BuildError(f"{where}, line {number}: {entry.name} stands there twice", "run make relock")
        seen.add((entry.kind, entry.name))
        entries.append(entry)
    return entries


def read(path: Path) -> list[Locked]:
    """The lock in the file at `path`."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"cannot read the lock {path}: {error}", "run make relock") from None
    return parse(text, str(path))


def dump(entries: Iterable[Locked]) -> str:
    """The lock's text."""
    ordered = sorted(entries, key=lambda e: (KINDS.index(e.kind), e.name))
    lines = [" ".join(filter(None, (e.kind, e.name, e.version, e.sha256, e.file))) for e in ordered]
    return _HEAD + "".join(f"{line}\n" for line in lines)
