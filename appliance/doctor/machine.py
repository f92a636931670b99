"""Reads the machine for `dropserve doctor`: its kernel, CPU, memory, limits, clocks, labels and sockets.

Nothing here can hang: it reads only /proc, /sys and the system's own files.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import platform
import pwd
import re
import resource
import sys
import time
from dataclasses import dataclass

from appliance.host.confinement import Confined, supported
from backends import text_locale

__all__ = ["Machine", "has_nvidia_card", "label", "listeners", "read_machine"]

_SERVICE_USER = "dropserve"
_UNIT = "dropserve.service"
_NVIDIA_VENDOR = "0x10de"


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and this process. None means that the machine does not tell."""

    kernel: str
    cpu_flags: frozenset[str] | None
    memory_available_bytes: int | None
    memory_total_bytes: int | None
    open_files: tuple[int, int]  # soft and hard limit of this process; -1: no limit
    unit_open_files: int | None  # the limit that the service's unit sets
    inotify_watches: int | None
    inotify_problem: str  # why no inotify instance can be had; "" if one can
    wall_seconds: float
    monotonic_seconds: tuple[float, float]  # before and after gathering all other facts
    selinux: str  # off, permissive or enforcing
    program_label: str  # SELinux's label of the interpreter
    libc: str
    english_locale: bool  # whether the C library has it
    locale_source: str  # the folder of the locale that replaces it; "" for none
    foreign_libraries: tuple[str, ...]  # libraries that the packaged runtime has mapped from outside itself
    confined: Confined  # what would confine a model here
    uid: int
    service_user: bool  # whether the service's user exists


def read_machine(begun: float) -> Machine:
    """Return the machine's facts; `begun` is the monotonic time in seconds at the start of gathering."""
    memory = {
        parts[0]: int(parts[1]) * 1024
        for line in _read("/proc/meminfo").splitlines()
        if len(parts := line.replace(":", " ").split()) > 1
    }
    # MemAvailable needs Linux 3.14.
    available = memory.get("MemAvailable", memory.get("MemFree", 0) + memory.get("Cached", 0)) if memory else None
    limits = [
        int(text)
        for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
        if (text := _read(path).strip()).isdigit()
    ]
    total = min([memory["MemTotal"], *limits]) if "MemTotal" in memory else None
    flags = [line.partition(":")[2].split() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("flags")]
    watches = _read("/proc/sys/fs/inotify/max_user_watches").strip()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    libraries = {parts[5] for line in _read("/proc/self/maps").splitlines() if len(parts := line.split(None, 5)) > 5}
    libc = next((path for path in sorted(libraries) if os.path.basename(path).startswith("libc.so")), "")
    try:
        pwd.getpwnam(_SERVICE_USER)
        service_user = True
    except KeyError:
        service_user = False
    return Machine(
        kernel=platform.release(),
        cpu_flags=frozenset(flags[0]) if flags else None,
        memory_available_bytes=None if available is None or total is None else min(available, total),
        memory_total_bytes=total,
        open_files=(soft, hard),
        unit_open_files=_unit_open_files(),
        inotify_watches=int(watches) if watches.isdigit() else None,
        inotify_problem=_inotify_problem(),
        wall_seconds=time.time(),
        monotonic_seconds=(begun, time.monotonic()),
        selinux={"0": "permissive", "1": "enforcing"}.get(_read("/sys/fs/selinux/enforce").strip(), "off"),
        program_label=label(os.path.realpath(sys.executable)),
        libc=f"{libc} ({os.confstr('CS_GNU_LIBC_VERSION')})",
        english_locale=text_locale.exists(text_locale.ENGLISH),
        locale_source=text_locale.borrowed_from(),
        foreign_libraries=_foreign(libraries),
        confined=supported(),
        uid=os.geteuid(),
        service_user=service_user,
    )


def _foreign(mapped: set[str]) -> tuple[str, ...]:
    """Return the mapped libraries from outside the packaged runtime; none if this is not the packaged runtime."""
    runtime = os.path.realpath(sys.base_prefix)
    if not os.path.exists(os.path.join(runtime, "lib", "ld-linux-x86-64.so.2")):
        return ()
    home = os.path.dirname(runtime) + "/"
    return tuple(sorted(path for path in mapped if ".so" in path and not os.path.realpath(path).startswith(home)))


def _unit_open_files() -> int | None:
    """Return LimitNOFILE of the service's unit and its drop-ins, of which the last counts; None if it is not set."""
    drop_ins = sorted(glob.glob(f"/etc/systemd/system/{_UNIT}.d/*.conf"))
    text = "\n".join(map(_read, [f"/usr/lib/systemd/system/{_UNIT}", f"/etc/systemd/system/{_UNIT}", *drop_ins]))
    found = re.findall(r"^LimitNOFILE=(?:\d+:)?(\d+)$", text, re.MULTILINE)
    return int(found[-1]) if found else None


def _inotify_problem() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return os.strerror(ctypes.get_errno())
    os.close(descriptor)
    return ""


def has_nvidia_card() -> bool:
    """Return whether the PCI bus has an NVIDIA display controller (class 03), which includes GPUs for computing."""
    with contextlib.suppress(OSError):
        for device in os.listdir("/sys/bus/pci/devices"):
            folder = f"/sys/bus/pci/devices/{device}"
            if _read(f"{folder}/vendor").strip() == _NVIDIA_VENDOR and _read(f"{folder}/class").startswith("0x03"):
                return True
    return False


def listeners(port: int) -> tuple[tuple[int, str], ...]:
    """Return number and name of each process that listens on a TCP port, if this user may see its descriptors.

    https://docs.kernel.org/networking/proc_net_tcp.html: 0A is the state of a listening socket, and the tenth column
    the inode that the links in /proc/PID/fd name. psutil names only one of the processes that share a socket.
    """
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _read(table).splitlines()[1:]:
            columns = line.split()
            if len(columns) > 9 and columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{columns[9]}]")
    found = []
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        with contextlib.suppress(OSError):
            if any(_link(f"/proc/{pid}/fd/{number}") in inodes for number in os.listdir(f"/proc/{pid}/fd")):
                found.append((pid, _read(f"/proc/{pid}/comm").strip() or "?"))
    return tuple(found)


def label(path: str) -> str:
    """Return SELinux's label of a file; "" if it has none."""
    try:
        return os.getxattr(path, "security.selinux").rstrip(b"\0").decode(errors="replace")
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read(1 << 22)
    except OSError:
        return ""
