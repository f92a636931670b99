"""Paths that are compiled into Debian's loader, C library and OpenSSL, replaced by our own of the same length.

With them the loader looks for libraries nowhere but in the runtime and in the folder of links to the NVIDIA driver, and
reads neither the host's ld.so.cache nor its ld.so.preload. Each pattern must occur exactly as often as stated: an
update of the library that moves a path fails the build here instead of reading the host's files on somebody's server.

Rejected: RPATH alone (a library with a RUNPATH of its own disables it), `ld.so` as a wrapper (`sys.executable` becomes
the loader), LD_LIBRARY_PATH (host programs that are started inherit it).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rpmkit.report import BuildError


@dataclass(frozen=True, slots=True)
class Patch:
    """`old` occurs `count` times in the file, and each becomes `new`."""

    old: bytes
    new: bytes
    count: int

    def __post_init__(self) -> None:
        if len(self.old) != len(self.new):
            raise ValueError(f"{self.old!r} and {self.new!r} differ in length")


_LIBRARIES = Patch(b"/usr/lib/x86_64-linux-gnu/", b"/opt/dropserve/runtime/so/", 2)  # in libc, for gconv

# By SONAME. The loader's system directories are one block of strings, which two tables refer to.
PATCHES: dict[str, tuple[Patch, ...]] = {
    "ld-linux-x86-64.so.2": (
        Patch(
            b"/lib/x86_64-linux-gnu/\0/usr/lib/x86_64-linux-gnu/\0/lib/\0/usr/lib/\0",
            b"/opt/dropserve/driver/\0/opt/dropserve/runtime/so/\0/sys/\0/proc/fs/\0",
            2,
        ),
        Patch(b"\0/etc/ld.so.cache\0", b"\0/opt/dropserve/-\0", 1),
        Patch(b"\0/etc/ld.so.preload\0", b"\0/opt/dropserve/---\0", 1),
    ),
    "libc.so.6": (
        Patch(b"/usr/lib/locale/locale-archive\0", b"/opt/dropserve/-locale-archive\0", 1),
        Patch(b"/usr/lib/locale\0", b"/opt/dropserve/\0", 1),
        _LIBRARIES,
    ),
    "libcrypto.so.3": (
        Patch(b"\0/usr/lib/ssl/certs\0", b"\0/etc/pki/tls/certs\0", 1),
        Patch(b"\0/usr/lib/ssl/cert.pem\0", b"\0/etc/pki/tls/cert.pem\0", 1),
        # Where openssl.cnf would be, which can name libraries to load: nowhere.
        Patch(b"\0/usr/lib/ssl\0", b"\0/proc/fs/ssl\0", 1),
        Patch(b"/usr/lib/x86_64-linux-gnu/", b"/opt/dropserve/runtime/so/", 4),
    ),
}


def apply(path: Path, patches: tuple[Patch, ...]) -> None:
    """Patches the file. Raises BuildError where a pattern does not occur as often as it should."""
    data = path.read_bytes()
    for patch in patches:
        found = data.count(patch.old)
        if found != patch.count:
            raise BuildError(
                f"{path.name} has {patch.old!r} {found} times, not {patch.count}",
                "the library has changed: look at where it uses the path, and correct packaging/rpm/rpmkit/patches.py",
            )
        data = data.replace(patch.old, patch.new)
    mode = path.stat().st_mode & 0o777
    os.chmod(path, mode | 0o200)
    path.write_bytes(data)
    os.chmod(path, mode)
