"""Where the symbolic links in a folder lead."""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass, field

__all__ = ["Followed", "follow_links"]

_MAX_ENTRIES = 10_000


@dataclass(slots=True)
class Followed:
    """Where a folder lies and where the links in it lead, also those in folders that they lead to. `refused` are links
    to what not everybody may read, and that somebody else made than its owner, or root: nobody gives others what is not
    theirs."""

    targets: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def follow_links(folder: str) -> Followed:
    """Return where the links in `folder` lead. At most 10,000 entries are looked at. Raise nothing: what leads nowhere
    is left out."""
    found = Followed()
    waiting = [folder]
    left = _MAX_ENTRIES
    while waiting and left > 0:
        place = waiting.pop()
        real = os.path.realpath(place)
        if not os.path.exists(real) or any(real == known or real.startswith(f"{known}/") for known in found.targets):
            continue
        if not _is_trusted(place) and not _is_public(real):
            found.refused.append(f"{place} -> {real}")
            continue
        found.targets.append(real)
        for root, folders, files in os.walk(real):
            left -= len(folders) + len(files)
            if left <= 0:
                break
            paths = (os.path.join(root, name) for name in (*folders, *files))
            waiting += [path for path in paths if os.path.islink(path)]
    return found


def _is_public(path: str) -> bool:
    """Return whether everybody may read a file, or all that lies in a folder (at most 10,000 entries)."""
    parts = path.split(os.sep)
    above = (os.sep.join(parts[:end]) or os.sep for end in range(1, len(parts)))
    if not all(_allows(folder, stat.S_IXOTH) for folder in above):
        return False
    if not os.path.isdir(path):
        return _allows(path, stat.S_IROTH)
    entries = 0
    for root, folders, files in os.walk(path):
        entries += len(folders) + len(files)
        if entries > _MAX_ENTRIES or not _allows(root, stat.S_IROTH | stat.S_IXOTH):
            return False
        if not all(_allows(os.path.join(root, name), stat.S_IROTH) for name in files):
            return False
    return True


def _allows(path: str, mode: int) -> bool:
    """Return whether others have these rights to `path` itself; a link has all."""
    with contextlib.suppress(OSError):
        return os.lstat(path).st_mode & mode == mode
    return False


def _is_trusted(path: str) -> bool:
    with contextlib.suppress(OSError):
        link, target = os.lstat(path).st_uid, os.stat(path).st_uid
        return link in (target, 0)
    return False
