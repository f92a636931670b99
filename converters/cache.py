"""Converted models and reports, kept by what they were made from, in a folder that several appliances may share.

    lock                      held while entries are added or evicted
    claims/KEY                held by the job that works on KEY: another one waits for its result
    staging/NAME/             an entry in the making, and beside it NAME.lock, held by its maker
    entries/KEY/              an entry: moved here whole
        files.json            of each file its size and SHA-256, sealed for KEY: the entry's manifest
        used                  its mtime is the last use; it is locked (shared) by those who use the entry
        report-MACHINE.json   proof, timings and choice on one kind of machine, sealed for this manifest
        demoted-FORM.json     that a form failed in service, when and why; sealed likewise
        forms/FORM/           the files of a converted form

Whoever may write here decides nothing: what does not carry the seal of the server's key (`converters.sealing`), or does
not match its hash, is not used. The entry is removed and made again, also if a disk fills up, a copy stops half-way or
a sector is bad. Only files can be taken away: a form whose `demoted-FORM.json` is gone is tried again.

Files that a process has open or mapped stay readable after an entry is evicted. `Entry` also keeps the entry from being
evicted as long as it is open, so that a worker which is started again finds its files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from converters.entry import LISTING, USED, Entry, open_entry
from converters.files import copied, lock, size_below
from converters.sealing import write_sealed

__all__ = ["Cache", "default_folder"]

logger = logging.getLogger(__name__)

_MAX_FILES = 10_000
_LOCK_SECONDS = 30.0


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


class Cache:
    """The cache in `folder`, of at most `max_bytes`, whose entries are sealed with `key`.

    If its disk fails, nothing is found and nothing is kept; the caller gets no error.
    """

    def __init__(self, folder: str, max_bytes: int, key: bytes) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._key = key

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
                lock(descriptor, fcntl.LOCK_EX, seconds, waiting)
            yield

    def find(self, key: str) -> Entry | None:
        """Return the entry of `key`, checked and held; None if there is none. One that is damaged, or sealed with
        another key, is removed."""
        path = self._path("entries", key)
        try:
            return open_entry(path, self._key, whole=True)
        except (OSError, ValueError) as error:
            if os.path.lexists(path):
                logger.warning("not used, and made again: %s: %s", path, error)
                self._discard(key)
        return None

    def put(self, key: str, folder: str, files: Mapping[str, str]) -> Entry | None:
        """Copy `files` of `folder`, each with its SHA-256, to the entry of `key`, and return it, held.

        Return None if there is no room or no access, or if a file is not what it should be: no regular file, or with
        another hash. If another process was faster, return its entry.
        """
        try:
            if len(files) > _MAX_FILES:
                raise ValueError(f"{len(files):,} files are more than {_MAX_FILES:,}")
            size = sum(os.lstat(os.path.join(folder, name)).st_size for name in files)
            if size > self._max_bytes:
                return None
            with self._staging() as staged:
                listing = {}
                for name, digest in sorted(files.items()):
                    listing[name] = copied(folder, staged, name, digest, self._max_bytes), digest
                body = json.dumps(listing).encode()
                write_sealed(os.path.join(staged, LISTING), self._key, ("entry", key), body)
                with open(os.path.join(staged, USED), "wb"):
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
        except ValueError as error:
            logger.warning("converted models are not kept: %s", error)
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
        mark, path = self._path("staging", f"{name}.lock"), self._path("staging", name)
        descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.mkdir(path)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(mark)
            os.close(descriptor)

    def _remove_if_dead(self, name: str) -> None:
        mark = self._path("staging", f"{name}.lock")
        with contextlib.suppress(OSError):
            # Another process may have created its lock a moment ago, and not locked it yet.
            if time.time() - os.stat(mark).st_mtime < _LOCK_SECONDS:
                return
            descriptor = os.open(mark, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(self._path("staging", name), ignore_errors=True)
                os.unlink(mark)
            finally:
                os.close(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self._path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: eviction may race, hashes still hold
                lock(descriptor, fcntl.LOCK_EX, _LOCK_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, needed: int) -> None:
        """Evict the least recently used entries that nobody uses, until `needed` bytes fit or none is left."""
        entries = []
        with contextlib.suppress(OSError):
            for found in os.scandir(self._path("entries")):
                with contextlib.suppress(OSError):
                    used = os.stat(os.path.join(found.path, USED)).st_mtime_ns
                    entries.append((used, found.name, size_below(found.path)))
        total = sum(size for _, _, size in entries)
        for _, name, size in sorted(entries):
            if total + needed <= self._max_bytes:
                return
            if self._discard(name):
                total -= size

    def _discard(self, key: str) -> bool:
        """Remove an entry unless it is in use. Return whether it was removed."""
        path = self._path("entries", key)
        gone = self._path("staging", f"gone-{secrets.token_hex(8)}")
        descriptor = None
        try:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(os.path.join(path, USED), os.O_RDWR | os.O_CLOEXEC)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.makedirs(self._path("staging"), exist_ok=True)
            os.rename(path, gone)
        except OSError:
            return False
        finally:
            if descriptor is not None:
                os.close(descriptor)
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def _path(self, *parts: str) -> str:
        return os.path.join(self._folder, *parts)
