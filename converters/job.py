"""The job: finds, or has made, what serves one version fastest, and keeps that in the cache.

Its process writes JSON lines to its standard output: `{"progress": text}` and `{"warning": text}` any number of times,
and `{"report": …, "files": …}` at the end: the files of the chosen form, with their SHA-256. It exits with 0 also if
TensorFlow is best. The report has what goes wrong with a model or a converter; if the job itself fails, it writes
`{"error": text}`, and the exit status is not 0. `python -m converters.job` takes its `Job` as JSON from its standard
input.

It has the key that seals what is kept, and so it runs no model, and imports no framework: another process converts,
proves, measures and chooses (`converters.working`), and this one takes what that leaves, if it is what was proven.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import msgspec

from converters import counterexamples
from converters.cache import Cache
from converters.choice import choose
from converters.entry import FORMS, Entry, form_folder
from converters.files import changed, file_hash
from converters.identity import cache_key, content_hash, key_of, machine, own_code, versions_of
from converters.registry import converter
from converters.report import Report, to_plain
from converters.spec import Job
from converters.work import Say, plans_of, result_folder
from converters.working import work_in_process

__all__ = ["Found", "accelerate", "main", "run"]


@dataclass(frozen=True, slots=True)
class Found:
    """What a job has found: its report, and the files of the chosen form, by name → SHA-256, none for TensorFlow."""

    report: Report
    files: Mapping[str, str] = field(default_factory=dict)


def accelerate(job: Job, say: Say) -> Found:
    """Do what `job` asks. Raise ImportError for a module that cannot be imported, AttributeError for one that is not a
    converter, ChildError if the process that does the work ends early, ValueError if it fails or leaves other files
    than it has proven."""
    begun = time.monotonic()
    spec = job.spec
    plans = plans_of(spec)
    modules = [converter(name) for name in spec.converters.values()]
    this_machine = machine()
    versions = versions_of(modules)

    def finish(report: Report) -> Report:
        return msgspec.structs.replace(
            report,
            machine=this_machine,
            versions=versions,
            seconds=time.monotonic() - begun,
            measured_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )

    if not plans:
        wanted = f"acceleration {spec.policy} with the precisions {', '.join(spec.precisions)}"
        return Found(finish(Report("tensorflow", f"no converter does {wanted}")))
    if not spec.cache_dir or not spec.cache_max_bytes or not job.key:
        worked = work_in_process(spec, set(plans), say)
        return _left(finish(worked.report), result_folder(spec), worked.files)
    try:
        content = content_hash(spec.path)
        libraries = [file_hash(path) for path in spec.op_libraries]
    except OSError as error:
        reason = f"{error.filename or spec.path} cannot be read: {error.strerror}"
        return Found(finish(Report("tensorflow", reason)))
    cache = Cache(spec.cache_dir, spec.cache_max_bytes, job.key)
    code = own_code(tuple(sorted(file for module in modules if (file := getattr(module, "__file__", None)))))
    key = cache_key(spec, content, libraries, versions, code)
    machine_key = key_of({"machine": this_machine, "threads": spec.threads})[:16]

    def waiting() -> None:
        say("another process converts this model: waiting for its result")

    with cache.claim(key, spec.timeout_seconds, waiting), contextlib.ExitStack() as stack:
        entry, known = cache.find(key), None
        if entry is not None:
            stack.callback(entry.close)
            known = entry.report(machine_key)
            if known is not None and not known.disturbed:
                say("found in the cache")
                return _without_demoted(msgspec.structs.replace(known, from_cache=True), entry, job)
        refuted = counterexamples.copy(spec.cache_dir, content, job.key, spec.work_dir)
        worked = work_in_process(spec, set(plans), say, "" if entry is None else entry.path, known, refuted)
        report = finish(worked.report)
        # A result after a crash or a limit is not kept: another run may give another.
        if entry is None and worked.is_repeatable:
            entry = cache.put(key, result_folder(spec), worked.files)
            if entry is not None:
                stack.callback(entry.close)
        if entry is None or not worked.is_repeatable:
            return _left(report, result_folder(spec), worked.files)
        entry.put_report(machine_key, msgspec.structs.replace(report, folder=""))
        return _without_demoted(report, entry, job)


def _left(report: Report, folder: str, files: Mapping[str, str]) -> Found:
    """Return what was found, with the chosen form where the work has left it. Raise ValueError if a file of it is not
    what was proven."""
    found = _files_of(report.form, files)
    path = form_folder(folder, report.form)
    if name := changed(path, found):
        raise ValueError(f"{os.path.join(path, name)} was changed after it was proven")
    return Found(msgspec.structs.replace(report, folder=path), found)


def _files_of(form: str, files: Mapping[str, str]) -> dict[str, str]:
    """Return those of an entry's `files` that are the form's with the name `form`, by their names in its folder."""
    prefix = f"{FORMS}/{form}/"
    return {name.removeprefix(prefix): digest for name, digest in files.items() if form and name.startswith(prefix)}


def _without_demoted(report: Report, entry: Entry, job: Job) -> Found:
    """Return what was found, with a choice among the forms that have not failed in service. The report in `entry` knows
    of no such failures."""
    demotions = tuple(found for c in report.forms if (found := entry.demotion(c.name)) is not None)
    if demotions:
        given_up = {found.form: f"it failed in service, at {found.at}: {found.why}" for found in demotions}
        choice = choose(report.forms, report.tensorflow, report.signatures, job.spec.min_speedup, given_up)
        report = msgspec.structs.replace(
            report,
            chosen=choice.chosen,
            reason=choice.reason,
            form=choice.form,
            forms=choice.forms,
            demotions=demotions,
        )
    folder = form_folder(entry.path, report.form)
    return Found(msgspec.structs.replace(report, folder=folder), _files_of(report.form, entry.files))


class _Warnings(logging.Handler):
    """Writes what is logged as lines of the job: its process has no log of its own."""

    def __init__(self, write: Say) -> None:
        super().__init__(logging.WARNING)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(record.getMessage())


def main(job: Job) -> int:
    """Run the job and write its lines to the standard output; return the exit status."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print

    def write(line: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            output.write(json.dumps(line) + "\n")
            output.flush()

    logging.getLogger("converters").addHandler(_Warnings(lambda text: write({"warning": text})))
    try:
        found = accelerate(job, lambda text: write({"progress": text}))
    except Exception as error:  # noqa: BLE001 - the outer loop of a process
        traceback.print_exc()
        write({"error": f"{type(error).__name__}: {error}"})
        return 1
    write({"report": to_plain(found.report), "files": dict(found.files)})
    return 0


def run(job: Job) -> NoReturn:
    """Run the job as `main` does, and end the process."""
    status = main(job)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run(msgspec.convert(json.load(sys.stdin), Job))
