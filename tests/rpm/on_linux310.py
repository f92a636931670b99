"""Run below linux310, by any Python: prints uname's release, and each call that ended otherwise than on Linux 3.10."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import tempfile

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = LIBC.mmap.restype = ctypes.c_long
WORD = ctypes.c_int(0)
PAGE = 4096

# Calls that came with 3.14 and later, by number: they do not exist, whatever their arguments.
LATER_CALLS = (
    *("sched_setattr 314", "renameat2 316", "seccomp 317", "getrandom 318", "memfd_create 319", "bpf 321"),
    *("execveat 322", "userfaultfd 323", "membarrier 324", "mlock2 325", "copy_file_range 326", "preadv2 327"),
    *("pkey_alloc 330", "statx 332", "rseq 334", "pidfd_send_signal 424", "io_uring_setup 425", "pidfd_open 434"),
    *("clone3 435", "close_range 436", "openat2 437", "faccessat2 439", "epoll_pwait2 441", "futex_waitv 449"),
    *("fchmodat2 452", "futex_wake 454", "futex_wait 455"),
)


def outcome(number: int, *arguments: int | bytes | ctypes._SimpleCData[int]) -> str:
    """The name of the system call's error, or "done"."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    words = [ctypes.byref(word) if isinstance(word, ctypes.c_int) else word for word in words]
    ctypes.set_errno(0)
    return "done" if LIBC.syscall(ctypes.c_long(number), *words) >= 0 else errno.errorcode[ctypes.get_errno()]


def main() -> None:
    print(os.uname().release)
    seen = [(call, "ENOSYS", outcome(int(call.split()[1]))) for call in LATER_CALLS]
    with tempfile.TemporaryFile() as file, socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        f, t, u, size = file.fileno(), tcp.fileno(), udp.fileno(), 4
        file.truncate(PAGE)
        page = LIBC.mmap(None, ctypes.c_long(PAGE), 3, 0x22, -1, ctypes.c_long(0))
        one = ctypes.c_int(1)
        seen += [
            ("open O_TMPFILE", "EISDIR", outcome(2, b"/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)),
            ("openat O_TMPFILE", "EISDIR", outcome(257, -100, b"/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)),
            ("open O_DIRECTORY", "done", outcome(2, b"/tmp", os.O_DIRECTORY)),
            ("F_OFD_SETLK", "EINVAL", outcome(72, f, 37, WORD)),
            ("F_DUPFD_CLOEXEC", "done", outcome(72, f, 1030, 0)),
            ("F_ADD_SEALS", "EINVAL", outcome(72, f, 1033, 0)),
            ("fallocate", "done", outcome(285, f, 1, 0, PAGE)),
            ("FALLOC_FL_ZERO_RANGE", "ENOTSUP", outcome(285, f, 16, 0, PAGE)),
            ("O_NOTIFICATION_PIPE", "EINVAL", outcome(293, bytes(8), os.O_EXCL)),
            ("mmap MAP_SHARED", "done", outcome(9, 0, PAGE, 1, 1, f, 0)),
            ("mmap MAP_SHARED_VALIDATE", "EINVAL", outcome(9, 0, PAGE, 1, 3, f, 0)),
            ("MREMAP_DONTUNMAP", "EINVAL", outcome(25, page, PAGE, PAGE, 1 | 4, 0)),
            ("MADV_DONTNEED", "done", outcome(28, page, PAGE, 4)),
            ("MADV_FREE", "EINVAL", outcome(28, page, PAGE, 8)),
            ("MADV_DODUMP", "done", outcome(28, page, PAGE, 17)),
            ("MADV_WIPEONFORK", "EINVAL", outcome(28, page, PAGE, 18)),
            ("MADV_POPULATE_READ", "EINVAL", outcome(28, page, PAGE, 22)),
            ("MCL_ONFAULT", "EINVAL", outcome(151, 1 | 4)),
            ("FUTEX_WAKE", "done", outcome(202, WORD, 1 | 128, 1)),
            ("FUTEX_WAIT", "EAGAIN", outcome(202, WORD, 0 | 128, 1, 0)),
            ("FUTEX_WAIT with CLOCK_REALTIME", "ENOSYS", outcome(202, WORD, 0 | 128 | 256, 1, 0)),
            ("FUTEX_WAIT_BITSET with CLOCK_REALTIME", "EAGAIN", outcome(202, WORD, 9 | 128 | 256, 1, 0, 0, -1)),
            ("FUTEX_LOCK_PI2", "ENOSYS", outcome(202, WORD, 13 | 128, 0, 0)),
            ("waitid P_PIDFD", "EINVAL", outcome(247, 3, f, 0, 4, 0)),
            ("unshare CLONE_NEWCGROUP", "EINVAL", outcome(272, 0x02000000)),
            ("timerfd CLOCK_MONOTONIC", "done", outcome(283, 1, 0)),
            ("timerfd CLOCK_BOOTTIME", "EINVAL", outcome(283, 7, 0)),
            ("PR_GET_NO_NEW_PRIVS", "done", outcome(157, 39, 0, 0, 0, 0)),
            ("PR_GET_THP_DISABLE", "EINVAL", outcome(157, 42, 0, 0, 0, 0)),
            ("ARCH_GET_CPUID", "EINVAL", outcome(158, 0x1011, 0)),
            ("socket AF_XDP", "EAFNOSUPPORT", outcome(41, 44, 3, 0)),
            ("SO_REUSEPORT", "done", outcome(54, t, socket.SOL_SOCKET, 15, one, size)),
            ("SO_ZEROCOPY", "ENOPROTOOPT", outcome(54, t, socket.SOL_SOCKET, 60, one, size)),
            ("TCP_USER_TIMEOUT", "done", outcome(54, t, socket.IPPROTO_TCP, 18, one, size)),
            ("TCP_NOTSENT_LOWAT", "ENOPROTOOPT", outcome(54, t, socket.IPPROTO_TCP, 25, one, size)),
            ("IP_BIND_ADDRESS_NO_PORT", "ENOPROTOOPT", outcome(54, t, socket.IPPROTO_IP, 24, one, size)),
            ("UDP_SEGMENT", "ENOPROTOOPT", outcome(54, u, socket.IPPROTO_UDP, 103, one, size)),
        ]
    print({what: found for what, expected, found in seen if found != expected})


if __name__ == "__main__":
    main()
