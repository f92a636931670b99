"""A small disk in memory that can be filled, for the folders that the server writes."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

__all__ = ["Disk", "in_own_mounts"]

_INSIDE = "DROPSERVE_CAMPAIGN_OWN_MOUNTS"
_BYTES = 64 << 20


def in_own_mounts() -> bool:
    """Start this program again where it may mount, and nobody else sees it; return False if the kernel forbids that.

    Root needs a mount namespace, and another user a user namespace with it.
    """
    if os.environ.get(_INSIDE):
        return True
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    with contextlib.suppress(OSError):
        if subprocess.run([*unshare, "true"], capture_output=True, timeout=10, check=False).returncode == 0:
            os.environ[_INSIDE] = "1"
            os.execvp(unshare[0], [*unshare, sys.executable, *sys.orig_argv[1:]])
    return False


class Disk:
    """A tmpfs at `path`, while the context lasts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_BYTES}", "campaign", str(self.path)], check=True, timeout=10
        )
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=False, timeout=10)

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Write until there is no room; make room at the end."""
        ballast = self.path / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            size = 1 << 20
            while size:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2
        try:
            yield
        finally:
            ballast.unlink()
