"""The system calls that a process with an untrusted model may make, as a program for the kernel's seccomp. Pure.

The program is classic BPF (https://docs.kernel.org/userspace-api/seccomp_filter.html), which Linux 3.5 and later take
by prctl(2). Frameworks use calls that nobody lists, so what is not named here is allowed; calls that are newer than
this table are answered with ENOSYS, as by a kernel that lacks them, and libraries fall back.

A call is found by a binary search, because before Linux 5.11 the program runs at each of them: 8 comparisons instead of
a hundred and more.
"""

from __future__ import annotations

import errno
import os
import struct

__all__ = ["filter_program", "is_known_machine"]

_MACHINE = "x86_64"  # the one whose numbers these are
_AUDIT_ARCH = 0xC000003E  # AUDIT_ARCH_X86_64
_LAST = 469  # file_setattr, of Linux 6.17. Numbers of the x32 ABI are larger too

# seccomp_data: int nr, u32 arch, u64 instruction pointer, u64 args[6]; of an argument, the low 32 bits are compared
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16

_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000

_INSTRUCTION = struct.Struct("=HBBI")
_Code = list[tuple[int, int, int, int]]

_CLONE_THREAD = 0x10000
_TMPFILE = 0o20000000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _TMPFILE
_CREATES = os.O_CREAT | os.O_TRUNC | os.O_APPEND | _TMPFILE
_SOCKET_TYPE = 0xF

# fmt: off
_REFUSED = {  # connections, programs, other processes, the system: nothing that runs a model has use for them
    "socket": 41, "connect": 42, "bind": 49, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "tkill": 200,
    "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "pidfd_send_signal": 424, "pidfd_open": 434, "pidfd_getfd": 438,
    "process_madvise": 440, "process_mrelease": 448, "migrate_pages": 256, "move_pages": 279,
    "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setattr": 314, "ioprio_set": 251,
    "unshare": 272, "setns": 308, "chroot": 161, "pivot_root": 155, "mount": 165, "umount2": 166, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
    "open_tree_attr": 467, "name_to_handle_at": 303, "open_by_handle_at": 304, "fanotify_init": 300,
    "add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
    "shmget": 29, "shmat": 30, "shmctl": 31, "semget": 64, "semop": 65, "semctl": 66, "semtimedop": 220, "msgget": 68,
    "msgsnd": 69, "msgrcv": 70, "msgctl": 71, "mq_open": 240, "mq_unlink": 241,
    "setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setgroups": 116, "setresuid": 117,
    "setresgid": 119, "setfsuid": 122, "setfsgid": 123, "capset": 126, "personality": 135, "modify_ldt": 154,
    "acct": 163, "swapon": 167, "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172,
    "ioperm": 173, "init_module": 175, "delete_module": 176, "finit_module": 313, "kexec_load": 246,
    "kexec_file_load": 320, "quotactl": 179, "quotactl_fd": 443, "settimeofday": 164, "clock_settime": 227,
    "adjtimex": 159, "clock_adjtime": 305, "syslog": 103, "vhangup": 153, "uselib": 134,
    "mknod": 133, "mknodat": 259, "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260,
}
_CHANGING_FILES = {  # the files of others, and locks on them: only what a process was given open may it change
    "truncate": 76, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88,
    "chmod": 90, "fchmod": 91, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "mkdirat": 258,
    "unlinkat": 263, "renameat": 264, "renameat2": 316, "linkat": 265, "symlinkat": 266, "fchmodat": 268,
    "fchmodat2": 452, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "setxattrat": 463, "removexattr": 197,
    "lremovexattr": 198, "fremovexattr": 199, "removexattrat": 466, "file_setattr": 469, "flock": 73,
}
_MISSING = {  # they take their arguments from memory, which a filter cannot read, and libraries do without them
    "clone3": 435, "openat2": 437, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
}
# fmt: on
_SOCKETPAIR, _CLONE, _KILL_CALL, _TGKILL, _PRLIMIT64, _OPEN, _OPENAT = 53, 56, 62, 234, 302, 2, 257


def is_known_machine(machine: str) -> bool:
    """Return whether `filter_program` is for processors of this kind (`os.uname().machine`)."""
    return machine == _MACHINE


def filter_program(pid: int, *, writes: bool = False, devices: bool = False) -> bytes:
    """Return the program for process `pid`: an array of struct sock_filter.

    With `writes` it may change files, which Landlock then has to bound. With `devices` it may open files for writing
    that are there already, as a GPU's driver does with its devices.
    """
    refused = _answer(errno.EPERM)
    cases: dict[int, _Code] = dict.fromkeys(_REFUSED.values(), refused)
    cases |= {number: _answer(errno.ENOSYS) for number in _MISSING.values()}
    cases[_CLONE] = [_load_argument(0), (_ANY_BIT, 1, 0, _CLONE_THREAD), *refused, *_allow()]
    cases[_SOCKETPAIR] = [  # a pair of datagram sockets could send to other addresses
        _load_argument(1),
        (_AND, 0, 0, _SOCKET_TYPE),
        (_EQUAL, 1, 0, 1),  # SOCK_STREAM
        *refused,
        *_allow(),
    ]
    for number in (_KILL_CALL, _TGKILL):
        cases[number] = [_load_argument(0), (_EQUAL, 1, 0, pid), *refused, *_allow()]
    cases[_PRLIMIT64] = [_load_argument(0), (_EQUAL, 2, 0, 0), (_EQUAL, 1, 0, pid), *refused, *_allow()]
    if not writes:
        cases |= dict.fromkeys(_CHANGING_FILES.values(), refused)
        forbidden = _CREATES if devices else _WRITES
        for number, argument in ((_OPEN, 1), (_OPENAT, 2)):
            cases[number] = [
                _load_argument(argument),
                (_ANY_BIT, 0, 1, forbidden),
                *_answer(errno.EACCES),
                *_allow(),
            ]
    code = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_search(_intervals(cases)),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _intervals(cases: dict[int, _Code]) -> list[tuple[int, _Code]]:
    """Return the first number of each run of calls that are treated alike, and the code for them, in their order."""
    found: list[tuple[int, _Code]] = []
    for number in range(_LAST + 1):
        code = cases.get(number, _allow())
        if not found or found[-1][1] != code:
            found.append((number, code))
    return [*found, (_LAST + 1, _answer(errno.ENOSYS))]


def _search(intervals: list[tuple[int, _Code]]) -> _Code:
    """Return the code that runs that of the interval which the loaded number is in."""
    if len(intervals) == 1:
        return intervals[0][1]
    middle = len(intervals) // 2
    lower, upper = _search(intervals[:middle]), _search(intervals[middle:])
    return [(_AT_LEAST, 0, 1, intervals[middle][0]), (_JUMP, 0, 0, len(lower)), *lower, *upper]


def _load_argument(index: int) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index)


def _allow() -> _Code:
    return [(_RETURN, 0, 0, _ALLOW)]


def _answer(error: int) -> _Code:
    return [(_RETURN, 0, 0, _ERRNO | error)]
