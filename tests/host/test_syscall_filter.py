"""Which system calls the filter lets through: its program, run by hand as the kernel runs it."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from appliance.host.syscall_filter import filter_program

PID = 4321
X86_64, I386 = 0xC000003E, 0x40000003
ALLOWED, KILLED = "allowed", "killed"
READ, WRITE, OPEN, MMAP, SOCKETPAIR, CLONE, KILL, FUTEX, TGKILL = 0, 1, 2, 9, 53, 56, 62, 202, 234
OPENAT, PRLIMIT64, RENAMEAT2, LAST = 257, 302, 316, 469
THREAD = 0x3D0F00  # what glibc's pthread_create asks clone for
TMPFILE = 0o20200000


def run(program: bytes, number: int, *arguments: int, arch: int = X86_64) -> str:
    """What the kernel would do with this call."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    for _ in range(len(code)):
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x54:
            accumulator &= value
        elif operation == 0x05:
            at += value
        elif operation == 0x06:
            if value >> 16 == 0x0005:
                return errno.errorcode[value & 0xFFFF]
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED}[value]
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
            at += if_true if holds[operation] else if_false
    raise AssertionError("the program does not end")


@pytest.fixture(scope="module")
def plain() -> bytes:
    return filter_program(PID)


@pytest.mark.parametrize("number", [READ, WRITE, MMAP, FUTEX, 46, 47, 232, 231, 186, 319, 77, 285])
def test_what_a_model_needs_is_allowed(plain: bytes, number: int) -> None:
    assert run(plain, number) == ALLOWED


@pytest.mark.parametrize(
    "number",
    [
        41,
        42,
        49,
        57,
        58,
        59,
        76,
        82,
        83,
        85,
        87,
        88,
        90,
        91,
        92,
        101,
        133,
        200,
        263,
        264,
        RENAMEAT2,
        322,
        310,
        424,
        452,
    ],
)
def test_connections_programs_and_changes_of_files_are_refused(plain: bytes, number: int) -> None:
    assert run(plain, number) == "EPERM"


@pytest.mark.parametrize("number", [435, 437, 425, LAST + 1, 1000, 0x40000000 + OPEN, 0xFFFFFFFF])
def test_calls_that_a_filter_cannot_judge_or_that_are_newer_look_missing(plain: bytes, number: int) -> None:
    assert run(plain, number) == "ENOSYS"


def test_calls_of_another_architecture_end_the_process(plain: bytes) -> None:
    assert run(plain, READ, arch=I386) == KILLED


@pytest.mark.parametrize(
    ("flags", "plainly", "with_devices"),
    [
        (os.O_RDONLY | os.O_CLOEXEC, ALLOWED, ALLOWED),
        (os.O_RDONLY | os.O_DIRECTORY, ALLOWED, ALLOWED),
        (os.O_RDWR, "EACCES", ALLOWED),
        (os.O_WRONLY, "EACCES", ALLOWED),
        (os.O_RDONLY | os.O_TRUNC, "EACCES", "EACCES"),
        (os.O_WRONLY | os.O_CREAT, "EACCES", "EACCES"),
        (os.O_WRONLY | os.O_APPEND, "EACCES", "EACCES"),
        (os.O_RDWR | TMPFILE, "EACCES", "EACCES"),
    ],
)
def test_files_are_opened_for_reading_only(plain: bytes, flags: int, plainly: str, with_devices: str) -> None:
    devices = filter_program(PID, devices=True)
    for program, expected in ((plain, plainly), (devices, with_devices), (filter_program(PID, writes=True), ALLOWED)):
        assert run(program, OPEN, 0, flags) == expected
        assert run(program, OPENAT, 0, 0, flags) == expected


def test_threads_can_be_started_and_processes_cannot(plain: bytes) -> None:
    assert run(plain, CLONE, THREAD) == ALLOWED
    assert run(plain, CLONE, 17) == "EPERM"  # SIGCHLD: what fork asks for


def test_signals_and_limits_are_for_the_process_itself(plain: bytes) -> None:
    for number in (KILL, TGKILL):
        assert run(plain, number, PID) == ALLOWED
        assert [run(plain, number, other) for other in (PID + 1, 0, 0xFFFFFFFF)] == ["EPERM"] * 3
    assert [run(plain, PRLIMIT64, pid) for pid in (0, PID, PID + 1)] == [ALLOWED, ALLOWED, "EPERM"]


def test_a_pair_of_sockets_cannot_send_elsewhere(plain: bytes) -> None:
    stream, datagram, closed_on_exec = 1, 2, 0o2000000
    assert run(plain, SOCKETPAIR, 1, stream | closed_on_exec) == ALLOWED
    assert run(plain, SOCKETPAIR, 1, datagram | closed_on_exec) == "EPERM"


def test_a_process_that_writes_may_change_files_and_nothing_else() -> None:
    program = filter_program(PID, writes=True)
    assert [run(program, number) for number in (82, 83, 87, 263)] == [ALLOWED] * 4
    assert [run(program, number) for number in (42, 57, 59, 92, 133)] == ["EPERM"] * 5
