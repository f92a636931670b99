"""Confines this process before it runs an untrusted model, and keeps other processes from looking into it.

`confine` takes rights away for good, from the calling thread and the threads that it starts later: a process calls it
while it has one thread. What the kernel lacks is left out and named in what it returns (`Confined.missing`).

| what | stops | Linux |
|---|---|---|
| a filter of system calls | writing, connecting, programs, other processes (`host.syscall_filter`) | 3.5 |
| Landlock | reading what the profile does not name; TCP (6.7), signals (6.12) | 5.13 |
| not dumpable | others that read /proc/PID/fd, mem and environ, or trace it | all |
| no capabilities | what only root may do, but for reading files | all |
| limits | core files, more than 4,096 open files, files of more than `file_bytes` | all |
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import stat
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from appliance.core.errors import ConfigError
from appliance.host.landlock import DEVICE, READ, WRITE, Rule, rule_bytes, ruleset_bytes
from appliance.host.syscall_filter import filter_program, is_known_machine

__all__ = [
    "FORKED_SCORE",
    "Confined",
    "Profile",
    "close_to_others",
    "confine",
    "give_way_when_memory_is_short",
    "supported",
]

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_GET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 21, 38
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1
_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of 32 bits for each set
_CAP_DAC_READ_SEARCH = 1 << 2
_MAX_OPEN_FILES = 4096
_INSTRUCTION_BYTES = 8

# Libraries and what they read: of these folders, what is there. /proc shows of other processes only what `ps` does:
# Landlock refuses the rest of it.
_SYSTEM = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/locale",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/proc",
    "/sys",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
)
# NVIDIA's driver and CUDA: their libraries, and the settings that they read; of the package too, beside its runtime.
_GPU_FILES = ("/usr/share/nvidia", "/etc/nvidia", "/usr/local/cuda", "/run/nvidia-persistenced")
_GPU_DEVICES = ("/dev/nvidia", "/dev/dri")  # the start of their names

FORKED_SCORE = 500
"""How much sooner than the server a worker is killed when memory runs out, and what it is forked from; of 1,000."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Profile:
    """What a process needs: paths that it reads, besides the runtime and the system's libraries; folders in which it
    changes files; whether it uses a GPU; and the largest file that it writes (None: any).

    No part of a path that it `reads` is a link: whoever may write in a model's folder could put one there when it was
    decided already that the path may be read.
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    gpu: bool = False
    file_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Confined:
    """What is in force: the names of it, such as "seccomp" and "landlock"; and what is not, with the reason."""

    by: tuple[str, ...] = ()
    missing: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return "; ".join([" and ".join(self.by) or "not confined", *self.missing])


def close_to_others() -> None:
    """Let no other process of this user look into this one, by /proc/PID or as a debugger; root still can.

    The kernel then counts this process's own files in /proc as root's: write what you have to write there before.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def give_way_when_memory_is_short(score: int) -> None:
    """Let the kernel prefer this process, by at least `score` of 1,000, to those that should outlive it."""
    path = "/proc/self/oom_score_adj"
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="ascii") as file:
            if int(file.read()) >= score:
                return
        _prctl(_PR_SET_DUMPABLE, 1)  # or else the file is root's, in a process that was forked from a closed one
        with open(path, "w", encoding="ascii") as file:
            file.write(str(score))


def supported() -> Confined:
    """Return what `confine` would have in force here; ask without changing anything."""
    return _confined(_seccomp_problem(), _landlock_abi())


def confine(profile: Profile, mode: str = "on") -> Confined:
    """Take from this process all rights that `profile` does not name, and return what is in force.

    `mode` is the option `sandbox`. Raise ConfigError if it is "required" and something is missing: then the process
    must not go on.
    """
    if mode == "off":
        return Confined((), ("sandbox is off",))
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"this process has {threads} threads already, which would not be confined")
    give_way_when_memory_is_short(FORKED_SCORE)
    close_to_others()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower_limit(resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)
    if profile.file_bytes is not None:
        _lower_limit(resource.RLIMIT_FSIZE, profile.file_bytes)
    abi = _landlock_abi()
    problem = _seccomp_problem()
    found = _confined(problem, abi)
    if mode == "required" and found.missing:
        raise ConfigError(
            f"sandbox is required, and not all of it is there: {'; '.join(found.missing)}",
            "use a newer kernel (docs/security.md has a table), or sandbox = on, which does without",
        )
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _drop_capabilities()
    if abi:
        _restrict_files(_rules(profile), abi)
    if not problem:
        writes = bool(profile.writes)
        _filter_calls(filter_program(os.getpid(), writes=writes, devices=profile.gpu))
    return found


def _rules(profile: Profile) -> list[Rule]:
    """Return the rules for the paths that `profile` names, and for the runtime and the system's libraries."""
    found = [Rule(path, READ) for path in (*_SYSTEM, *_runtime())]
    found += [Rule(path, READ, is_real=True) for path in profile.reads]
    found += [Rule("/dev/null", DEVICE), *(Rule(path, WRITE) for path in profile.writes)]
    if profile.gpu:
        found += [Rule(path, READ) for path in (*_GPU_FILES, os.path.join(os.path.dirname(sys.base_prefix), "driver"))]
        found += [Rule(path, DEVICE) for path in _devices()]
    return found


def _runtime() -> Iterable[str]:
    """Return the folders of the interpreter and of packages, and of our own packages without the one that holds them:
    it may be a checkout, or the current folder, and hold anything."""
    packages = [
        sys.modules[name].__path__[0] for name in ("appliance", "backends", "converters") if name in sys.modules
    ]
    beside = {os.path.dirname(package) for package in packages} | {os.getcwd()}
    folders = [path for path in sys.path if os.path.isabs(path) and path not in beside]
    site = [path for path in beside if os.path.basename(path) in ("site-packages", "dist-packages")]
    libraries = filter(os.path.isabs, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep))
    return dict.fromkeys([sys.prefix, sys.base_prefix, *packages, *folders, *site, *libraries])


def _devices() -> list[str]:
    with contextlib.suppress(OSError):
        return [f"/dev/{name}" for name in os.listdir("/dev") if f"/dev/{name}".startswith(_GPU_DEVICES)]
    return []


def _confined(problem: str, abi: int) -> Confined:
    by = (*([] if problem else ["seccomp"]), *([f"landlock {abi}"] if abi else []))
    missing = [problem] if problem else []
    if not abi:
        missing.append(
            f"Linux {platform.release()} has no Landlock (5.13, if it is switched on), so what this user may read, a "
            "model may read"
        )
    return Confined(by, tuple(missing))


def _seccomp_problem() -> str:
    """Return why no filter of system calls can be had; "" if one can."""
    machine = os.uname().machine
    if not is_known_machine(machine):
        return f"the filter of system calls is for x86_64, and this is {machine}"
    if _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return f"Linux {platform.release()} has no filter of system calls (CONFIG_SECCOMP_FILTER)"
    return ""


def _landlock_abi() -> int:
    """Return the version of the kernel's Landlock; 0 if it has none."""
    abi: int = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    return max(abi, 0)


def _restrict_files(allowed: Iterable[Rule], abi: int) -> None:
    attributes = ruleset_bytes(abi)
    ruleset = _checked(
        _libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0),
        "landlock_create_ruleset",
    )
    try:
        for rule in allowed:
            try:
                descriptor = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # it is not there, or not for this user: neither can it be read
            try:
                if rule.is_real and os.readlink(f"/proc/self/fd/{descriptor}") != rule.path:
                    continue
                is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
                _checked(
                    _libc.syscall(
                        _LANDLOCK_ADD_RULE,
                        ruleset,
                        _LANDLOCK_PATH_BENEATH,
                        rule_bytes(rule, descriptor, is_folder, abi),
                        0,
                    ),
                    f"landlock_add_rule for {rule.path}",
                )
            finally:
                os.close(descriptor)
        _checked(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _drop_capabilities() -> None:
    """Keep root, whose server may be told to read the files of others, from all else that only root may do."""
    head = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    sets = ctypes.create_string_buffer(struct.calcsize("=6I"))  # effective, permitted, inheritable; twice
    _checked(_libc.capget(head, sets), "capget")
    effective, permitted, *_ = struct.unpack("=6I", sets.raw)
    kept = struct.pack("=6I", effective & _CAP_DAC_READ_SEARCH, permitted & _CAP_DAC_READ_SEARCH, 0, 0, 0, 0)
    _checked(_libc.capset(head, kept), "capset")


class _Program(ctypes.Structure):
    """A struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def _filter_calls(program: bytes) -> None:
    filled = _Program(len(program) // _INSTRUCTION_BYTES, program)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(filled))


def _lower_limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (lower, lower))


def _prctl(option: int, value: int, more: int = 0) -> None:
    _checked(
        _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(more), ctypes.c_ulong(0), ctypes.c_ulong(0)), "prctl"
    )


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {errno.errorcode.get(number, number)}")
    return result
