"""What a process may do with files below which paths, as rules for the kernel's Landlock (Linux 5.13). Pure.

Format: https://docs.kernel.org/userspace-api/landlock.html. Each version of its ABI knows more kinds of access; what a
kernel does not know, it does not restrict.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["DEVICE", "READ", "WRITE", "Rule", "rule_bytes", "ruleset_bytes"]

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_REFER = 1 << 13
_MAKE_AND_REMOVE = 0b1111111110000  # bits 4 to 12: removing, and making nodes of each kind
_MAKE_PLAIN = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8  # removing; making folders and files, but no links that lead elsewhere
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV  # the others are of folders
_NEEDS = {_REFER: 2, _TRUNCATE: 3, _IOCTL_DEV: 5}  # access → the first ABI that knows it
_ALL = _EXECUTE | _WRITE_FILE | _READ_FILE | _READ_DIR | _MAKE_AND_REMOVE | _REFER | _TRUNCATE | _IOCTL_DEV
_NETWORK = 0b11  # bind and connect of TCP
_NETWORK_ABI = 4
_SCOPES = 0b11  # abstract Unix sockets and signals of processes outside
_SCOPES_ABI = 6

READ = _READ_FILE | _READ_DIR
"""Read files, and list folders."""

DEVICE = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
"""Use a device."""

WRITE = READ | _WRITE_FILE | _TRUNCATE | _MAKE_PLAIN | _REFER
"""Read, change, make and remove files and folders."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed below `path`, or with it if it is a file: READ, DEVICE or WRITE.

    If `is_real`, no part of the path may be a link.
    """

    path: str
    access: int
    is_real: bool = False


def ruleset_bytes(abi: int) -> bytes:
    """Return the struct landlock_ruleset_attr that restricts all that this version of the ABI can."""
    values = [_known(_ALL, abi)]
    if abi >= _NETWORK_ABI:
        values.append(_NETWORK)
    if abi >= _SCOPES_ABI:
        values.append(_SCOPES)
    return struct.pack(f"={len(values)}Q", *values)


def rule_bytes(rule: Rule, descriptor: int, is_folder: bool, abi: int) -> bytes:
    """Return the struct landlock_path_beneath_attr of `rule`, whose path is open as `descriptor`."""
    access = _known(rule.access if is_folder else rule.access & _OF_FILES, abi)
    return struct.pack("=Qi", access, descriptor)


def _known(access: int, abi: int) -> int:
    return access & ~_any(bit for bit, since in _NEEDS.items() if abi < since)


def _any(bits: Iterable[int]) -> int:
    found = 0
    for bit in bits:
        found |= bit
    return found
