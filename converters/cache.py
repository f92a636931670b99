"""Converted models and reports, kept by what they were made from, in a folder that several appliances may share.

    lock                      held while entries are added or evicted
    claims/KEY                held by the job that works on KEY: another one waits for its result
    staging/NAME/             an entry in the making, and beside it NAME.lock, held by its maker
    entries/KEY/              an entry: moved here whole
        files.json            of each file its size and SHA-256; its first line is the SHA-256 of its rest
        used                  its mtime is the last use; it is locked (shared) by those who use the entry
        report-MACHINE.json   proof, timings and choice on one kind of machine; checked like files.json
        demoted-FORM.json     that a form failed in service, when and why; checked likewise
        forms/FORM/           the files of a converted form

No file is used that does not match its hash: if a disk fills up, a copy stops half-way or a sector is bad, the entry is
removed and made again. Hashes are no signatures: whoever may write here decides what is served.

Files that a process has open or mapped stay readable after an entry is evicted. `Entry` also keeps the entry from being
evicted as long as it is open, so that a worker which is started again finds its files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from converters.report import Demotion, Report, to_plain

__all__ = ["FORMS", "Cache", "Entry", "default_folder", "file_hash", "files_below", "form_folder", "hold"]

FORMS = "forms"
"""The folder of an entry that has a folder for each form."""

logger = logging.getLogger(__name__)

_FILES = "files.json"
_USED = "used"
_CHUNK_BYTES = 1 << 20
_MAX_LISTING_BYTES = 64 << 20
_LOCK_SECONDS = 30.0
_POLL_SECONDS = 0.2


def default_folder() -> str:
    """Return the default folder: what systemd gives as a cache, else /var/cache/dropserve for root, else one of the
    user's."""
    given = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if given:
        return given
    if os.geteuid() == 0:
        return "/var/cache/dropserve"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "dropserve")


class Entry:
    """An entry in use: it is not evicted before `close`. Whoever gets one must close it."""

    def __init__(self, path: str, descriptor: int | None) -> None:
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def report(self, machine: str) -> Report | None:
        """Return the report for machines with the key `machine`; None if there is none, or it is damaged."""
        try:
            return msgspec.convert(_read_checked(self._report_path(machine)), Report)
        except (OSError, ValueError):
            return None

    def put_report(self, machine: str, report: Report) -> bool:
        """Keep a report. Return whether that succeeded."""
        try:
            _write_checked(self._report_path(machine), to_plain(report))
        except OSError as error:
            logger.warning("cannot keep a report in %s: %s", self.path, error.strerror)
            return False
        return True

    def demotion(self, form: str) -> Demotion | None:
        """Return why the form with the name `form` was given up. Return None if it was not, and if the file that says
        so is damaged or is about another form."""
        file = self._demotion_path(form)
        try:
            found = msgspec.convert(_read_checked(file), Demotion)
        except (OSError, ValueError):
            return None
        return msgspec.structs.replace(found, file=file) if found.form == form else None

    def demote(self, demotion: Demotion) -> Demotion:
        """Keep `demotion`, and return it with its file; without one if it cannot be written."""
        file = self._demotion_path(demotion.form)
        try:
            _write_checked(file, msgspec.to_builtins(demotion))
        except OSError as error:
            logger.warning("cannot keep in %s that a form failed: %s", self.path, error.strerror)
            return demotion
        return msgspec.structs.replace(demotion, file=file)

    def _demotion_path(self, form: str) -> str:
        return os.path.join(self.path, f"demoted-{form}.json")

    def _report_path(self, machine: str) -> str:
        return os.path.join(self.path, f"report-{machine}.json")


def form_folder(folder: str, form: str) -> str:
    """Return the folder of the files of the form with the name `form`, in an entry or its copy; "" if `form` is ""."""
    return os.path.join(folder, FORMS, form) if form else ""


def hold(form: str) -> Entry | None:
    """Keep the entry that has the folder `form` from being evicted; return None if it is gone."""
    path = os.path.dirname(os.path.dirname(form))  # …/KEY/forms/FORM
    try:
        descriptor = os.open(os.path.join(path, _USED), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        _lock(descriptor, fcntl.LOCK_SH, _LOCK_SECONDS)
        if not os.path.isdir(form):
            raise FileNotFoundError(form)  # evicted between the opening and the locking
        os.utime(descriptor)
    except OSError:
        os.close(descriptor)
        return None
    return Entry(path, descriptor)


class Cache:
    """The cache in `folder`, of at most `max_bytes`.

    If its disk fails, nothing is found and nothing is kept; the caller gets no error.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    @contextmanager
    def claim(self, key: str, seconds: float, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the claim on `key`; go on without it after `seconds`, if another process still has it.

        `waiting` is called once if there is a wait.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                os.makedirs(self._path("claims"), exist_ok=True)
                descriptor = os.open(self._path("claims", key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                stack.callback(os.close, descriptor)
                _lock(descriptor, fcntl.LOCK_EX, seconds, waiting)
            yield

    def find(self, key: str) -> Entry | None:
        """Return the entry of `key`, checked and held; None if there is none. A damaged one is removed."""
        path = self._path("entries", key)
        try:
            descriptor = os.open(os.path.join(path, _USED), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            if os.path.lexists(path):
                self._discard(key, "it is not whole")
            return None
        try:
            _lock(descriptor, fcntl.LOCK_SH, _LOCK_SECONDS)
            _check(path)
            os.utime(descriptor)
        except (OSError, ValueError) as error:
            os.close(descriptor)
            self._discard(key, str(error))
            return None
        return Entry(path, descriptor)

    def put(self, key: str, folder: str) -> Entry | None:
        """Copy `folder` to the entry of `key` (link its files, if they are on one disk), and return it, held.

        Return None if there is no room or no access. If another process was faster, return its entry.
        """
        size = sum(os.path.getsize(os.path.join(folder, name)) for name in files_below(folder))
        if size > self._max_bytes:
            return None
        try:
            with self._staging() as staged:
                shutil.copytree(folder, staged, copy_function=_link_or_copy, dirs_exist_ok=True)
                _write_checked(os.path.join(staged, _FILES), _listing(staged))
                with open(os.path.join(staged, _USED), "wb"):
                    pass
                with self._locked():
                    self._make_room(size)
                    os.makedirs(self._path("entries"), exist_ok=True)
                    try:
                        os.rename(staged, self._path("entries", key))
                    except OSError as error:
                        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                            raise
        except OSError as error:
            logger.warning("cannot keep converted models in %s: %s", self._folder, error.strerror or error)
            return None
        return self.find(key)

    @contextmanager
    def _staging(self) -> Iterator[str]:
        """Make a new folder, and remove it in the end if it is still there. Remove what dead processes left."""
        os.makedirs(self._path("staging"), exist_ok=True)
        for name in os.listdir(self._path("staging")):
            if name.endswith(".lock"):
                self._remove_if_dead(name.removesuffix(".lock"))
        name = secrets.token_hex(8)
        lock, path = self._path("staging", f"{name}.lock"), self._path("staging", name)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.mkdir(path)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(lock)
            os.close(descriptor)

    def _remove_if_dead(self, name: str) -> None:
        lock = self._path("staging", f"{name}.lock")
        with contextlib.suppress(OSError):
            # Another process may have created its lock a moment ago, and not locked it yet.
            if time.time() - os.stat(lock).st_mtime < _LOCK_SECONDS:
                return
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self._path("staging", name), ignore_errors=True)
                os.unlink(lock)
            finally:
                os.close(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: eviction may race, hashes still hold
                _lock(descriptor, fcntl.LOCK_EX, _LOCK_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, needed: int) -> None:
        """Evict the least recently used entries that nobody uses, until `needed` bytes fit or none is left."""
        entries = []
        with contextlib.suppress(OSError):
            for found in os.scandir(self._path("entries")):
                with contextlib.suppress(OSError):
                    used = os.stat(os.path.join(found.path, _USED)).st_mtime_ns
                    entries.append((used, found.name, _size_below(found.path)))
        total = sum(size for _, _, size in entries)
        for _, name, size in sorted(entries):
            if total + needed <= self._max_bytes:
                return
            if self._discard(name, ""):
                total -= size

    def _discard(self, key: str, why: str) -> bool:
        """Remove an entry unless it is in use. Return whether it was removed."""
        path = self._path("entries", key)
        gone = self._path("staging", f"gone-{secrets.token_hex(8)}")
        descriptor = None
        try:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(os.path.join(path, _USED), os.O_RDWR | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.makedirs(self._path("staging"), exist_ok=True)
            os.rename(path, gone)
        except OSError:
            return False
        finally:
            if descriptor is not None:
                os.close(descriptor)
        if why:
            logger.warning("threw away %s: %s", path, why)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def _path(self, *parts: str) -> str:
        return os.path.join(self._folder, *parts)


def _lock(descriptor: int, kind: int, seconds: float, waiting: Callable[[], None] = lambda: None) -> None:
    """Lock a file, waiting for at most `seconds`. Raise OSError if another process holds the lock until then."""
    ends = time.monotonic() + seconds
    is_first = True
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > ends:
                raise
        if is_first:
            waiting()
        is_first = False
        time.sleep(_POLL_SECONDS)


def files_below(path: str) -> Iterator[str]:
    """Yield the regular files below `path`, by their names relative to it. Raise OSError."""

    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(path, onerror=fail, followlinks=True):
        for name in names:
            found = os.path.join(folder, name)
            if os.path.isfile(found):
                yield os.path.relpath(found, path)


def _link_or_copy(source: str, target: str) -> None:
    """Link a file, or copy it. A link will do, because nobody writes to these files any more."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _size_below(path: str) -> int:
    return sum(os.path.getsize(os.path.join(path, name)) for name in files_below(path))


def file_hash(path: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits. Raise OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _listing(path: str) -> dict[str, tuple[int, str]]:
    return {
        name: (os.path.getsize(os.path.join(path, name)), file_hash(os.path.join(path, name)))
        for name in sorted(files_below(path))
    }


def _check(path: str) -> None:
    """Raise OSError, ValueError unless the entry at `path` has the files that were put there."""
    listing = msgspec.convert(_read_checked(os.path.join(path, _FILES)), dict[str, tuple[int, str]])
    for name, (size, digest) in listing.items():
        file = os.path.join(path, name)
        if os.path.getsize(file) != size or file_hash(file) != digest:
            raise ValueError(f"{name} is not what was put there")


def _write_checked(path: str, value: Any) -> None:
    """Write JSON and its hash atomically: a reader sees all of it or nothing. Raise OSError."""
    body = json.dumps(value)
    temporary = f"{path}.{secrets.token_hex(4)}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _read_checked(path: str) -> Any:
    """Return what `_write_checked` wrote. Raise OSError, ValueError."""
    with open(path, encoding="utf-8") as file:
        text = file.read(_MAX_LISTING_BYTES)
    digest, _, body = text.partition("\n")
    if hashlib.sha256(body.encode()).hexdigest() != digest:
        raise ValueError(f"{os.path.basename(path)} does not match its hash")
    return json.loads(body)
