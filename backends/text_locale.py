"""Provide the locale en_US.UTF-8, which ONNX Runtime's StringNormalizer needs: without it no such model loads.

It uses only the rules for lower and upper case, which C.UTF-8 has too: glibc builds both from one file. So if
en_US.UTF-8 is missing and C.UTF-8 is there, as in small containers, the latter gets the other name. Rejected:
localedef, because its sources are in a package that such machines lack too; another name in the model, because ONNX
Runtime asks for en_US.UTF-8 if the model names none.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import tempfile

__all__ = ["ENGLISH", "borrowed_from", "exists", "named_in", "provide", "remedy"]

ENGLISH = "en_US.UTF-8"

_CATEGORIES = 0x1FBF  # LC_ALL_MASK of glibc
_NAMED = re.compile(r"Failed to construct locale with name:([\w.@-]+)")
# Only English names, because other languages have letters of their own, such as Turkish its dotless i.
_ENGLISH = re.compile(r"en_[A-Z]{2}(\.(UTF-8|utf8))?")
# The packaged runtime has its own folder, the only one that fits its C library.
_FOLDERS = (os.path.join(sys.base_prefix, "lib", "locale"), "/usr/lib/locale")
_NEUTRAL = ("C.utf8", "C.UTF-8")

_held: list[int] = []  # locales that stay loaded after their folder is gone


def named_in(message: str) -> str:
    """Return the locale that ONNX Runtime's message says is missing; "" if it says nothing of the kind."""
    found = _NAMED.search(message)
    return found[1] if found else ""


def remedy(name: str = ENGLISH) -> str:
    """Return what an operator can do about a missing locale."""
    place = name.partition(".")[0]
    return (
        f"install the locale {name}: on Debian and Ubuntu by apt-get install locales and localedef -i {place} -f UTF-8 "
        f"{place}.UTF-8, on RHEL 8 and later by dnf install glibc-langpack-{place.partition('_')[0]}"
    )


def exists(name: str) -> bool:
    """Return whether the C library has the locale."""
    locale = _new_locale(name)
    if locale:
        _libc().freelocale(ctypes.c_void_p(locale))
    return bool(locale)


def borrowed_from() -> str:
    """Return the folder of a locale that can replace an English one; "" if there is none."""
    paths = [os.path.join(folder, name) for folder in _FOLDERS for name in _NEUTRAL]
    return next((path for path in paths if os.path.isfile(os.path.join(path, "LC_CTYPE"))), "")


def provide(name: str) -> bool:
    """Let the C library find the English locale `name` in this process, by C.UTF-8's tables; return whether it does.

    From then on it looks for other locales only where LOCPATH says and in its own folder, not in its archive.
    """
    source = borrowed_from()
    if not source or not _ENGLISH.fullmatch(name):
        return False
    try:
        folder = tempfile.mkdtemp(prefix="dropserve-locale-")
    except OSError:
        return False
    try:
        os.symlink(source, os.path.join(folder, name))
        os.environ["LOCPATH"] = ":".join(filter(None, (folder, os.environ.get("LOCPATH"))))
        locale = _new_locale(name)
    except OSError:
        return False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if locale:
        _held.append(locale)
    return bool(locale)


def _new_locale(name: str) -> int | None:
    libc = _libc()
    libc.newlocale.restype = ctypes.c_void_p
    locale: int | None = libc.newlocale(_CATEGORIES, name.encode(), None)
    return locale


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
