"""An entry of the cache: its manifest, reports and demotions, all of them sealed (see `converters.cache`)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Mapping

import msgspec

from converters.files import file_hash, files_below, lock
from converters.report import Demotion, Report, to_plain
from converters.sealing import SealError, read_sealed, write_sealed

__all__ = ["FORMS", "LISTING", "USED", "Entry", "form_folder", "hold", "open_entry"]

FORMS = "forms"
"""The folder of an entry that has a folder for each form."""
LISTING = "files.json"
"""The file of an entry that is its manifest."""
USED = "used"
"""The file of an entry whose mtime is the last use."""

logger = logging.getLogger(__name__)

_MAX_SEALED_BYTES = 64 << 20
_LOCK_SECONDS = 30.0


class Entry:
    """An entry in use: it is not evicted before `close`. Whoever gets one must close it.

    `files` are those that were put there, by their names in it → their SHA-256.
    """

    def __init__(self, path: str, key: bytes, seal: str, files: Mapping[str, str], descriptor: int) -> None:
        """`seal` is that of its manifest."""
        self.path = path
        self.files = files
        self._key = key
        self._seal = seal
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def report(self, machine: str) -> Report | None:
        """Return the report for machines with the key `machine`; None if there is none, or it is damaged."""
        body = self._read(f"report-{machine}.json", "report", machine)
        with contextlib.suppress(ValueError):
            return None if body is None else msgspec.convert(json.loads(body), Report)
        return None

    def put_report(self, machine: str, report: Report) -> bool:
        """Keep a report. Return whether that succeeded."""
        body = json.dumps(to_plain(report)).encode()
        return bool(self._write(f"report-{machine}.json", body, "a report", "report", machine))

    def demotion(self, form: str) -> Demotion | None:
        """Return why the form with the name `form` was given up. Return None if it was not, and if the file that says
        so is damaged or is about another form."""
        name = f"demoted-{form}.json"
        body = self._read(name, "demotion", form)
        with contextlib.suppress(ValueError):
            if body is not None:
                found = msgspec.json.decode(body, type=Demotion)
                return msgspec.structs.replace(found, file=os.path.join(self.path, name))
        return None

    def demote(self, demotion: Demotion) -> Demotion:
        """Keep `demotion`, and return it with its file; without one if it cannot be written."""
        name, body = f"demoted-{demotion.form}.json", msgspec.json.encode(demotion)
        file = self._write(name, body, "that a form failed", "demotion", demotion.form)
        return msgspec.structs.replace(demotion, file=file)

    def _read(self, name: str, *subject: str) -> bytes | None:
        """Return the body of a file that was sealed for this entry; None if there is none, which is logged if the file
        is another's."""
        try:
            return read_sealed(os.path.join(self.path, name), self._key, (*subject, self._seal), _MAX_SEALED_BYTES)[1]
        except SealError as error:
            logger.warning("not used: %s: %s", self.path, error)
        except OSError:
            pass
        return None

    def _write(self, name: str, body: bytes, what: str, *subject: str) -> str:
        """Seal `body` for this entry, and return its file; "" if it cannot be written."""
        path = os.path.join(self.path, name)
        try:
            write_sealed(path, self._key, (*subject, self._seal), body)
        except OSError as error:
            logger.warning("cannot keep %s in %s: %s", what, self.path, error.strerror)
            return ""
        return path


def form_folder(folder: str, form: str) -> str:
    """Return the folder of the files of the form with the name `form`, in an entry or its copy; "" if `form` is ""."""
    return os.path.join(folder, FORMS, form) if form else ""


def hold(form: str, key: bytes) -> Entry | None:
    """Keep the entry that has the folder `form` from being evicted; return None if it is gone, or its manifest does not
    carry the seal of `key`. Its files are not looked at."""
    path = os.path.dirname(os.path.dirname(form))  # …/KEY/forms/FORM
    try:
        return open_entry(path, key)
    except (OSError, ValueError):
        return None


def open_entry(path: str, key: bytes, *, whole: bool = False) -> Entry:
    """Return the entry at `path`, held, whose use this is. Raise OSError; ValueError if its manifest does not carry the
    seal of `key`, or if it is to be `whole` and one of its files is not what was put there."""
    descriptor = os.open(os.path.join(path, USED), os.O_RDWR | os.O_CLOEXEC)
    try:
        lock(descriptor, fcntl.LOCK_SH, _LOCK_SECONDS)
        subject = ("entry", os.path.basename(path))  # evicted meanwhile, it is gone
        seal, body = read_sealed(os.path.join(path, LISTING), key, subject, _MAX_SEALED_BYTES)
        listing = msgspec.json.decode(body, type=dict[str, tuple[int, str]])
        if whole:
            _check(path, listing)
        os.utime(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return Entry(path, key, seal, {name: digest for name, (_, digest) in listing.items()}, descriptor)


def _check(path: str, listing: Mapping[str, tuple[int, str]]) -> None:
    """Raise OSError, ValueError unless the entry at `path` has the files of its manifest, and no others in its
    forms."""
    for name, (size, digest) in listing.items():
        file = os.path.join(path, name)
        if os.path.getsize(file) != size or file_hash(file) != digest:
            raise ValueError(f"{name} is not what was put there")
    forms = os.path.join(path, FORMS)
    if os.path.isdir(forms) and (more := {f"{FORMS}/{name}" for name in files_below(forms)} - listing.keys()):
        raise ValueError(f"{min(more)} was not put there")
