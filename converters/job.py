"""The job: converts, proves, measures and chooses, for one version.

Its process writes JSON lines to its standard output: `{"progress": text}` any number of times, and `{"report": …}` at
the end. It exits with 0 also if TensorFlow is best. The report has what goes wrong with a model or a converter; if the
job itself fails, it writes `{"error": text}`, and the exit status is not 0. `python -m converters.job` takes its
`JobSpec` as JSON from its standard input.

Frameworks are imported in its children only, but TensorFlow, which it imports so that they can be forked with it. It
never runs an op itself: a fork after one may hang.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from backends.contract import Signature
from converters import cores, counterexamples
from converters.cache import Cache, Entry, file_hash, form_folder
from converters.choice import choose
from converters.identity import cache_key, content_hash, key_of, machine, own_code, versions_of
from converters.plugin import Converter
from converters.registry import converter
from converters.report import Report, to_plain
from converters.spec import JobSpec
from converters.work import ReadRecorded, Recorded, Say, Work

__all__ = ["accelerate", "main", "run"]


def _none_recorded(path: str, signatures: Mapping[str, Signature]) -> Recorded:
    return {}


def accelerate(spec: JobSpec, say: Say, read_recorded: ReadRecorded = _none_recorded) -> Report:
    """Do what `spec` asks, and return the report. Recorded requests are part of the proof. Raise ImportError for a
    module that cannot be imported, AttributeError for one that is not a converter."""
    begun = time.monotonic()
    modules = {name: converter(module) for name, module in spec.converters.items()}
    plans = _plans(spec, modules)
    this_machine = machine()
    versions = versions_of(modules.values())

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
        return finish(Report("tensorflow", f"no converter does {wanted}"))
    if not spec.cache_dir or not spec.cache_max_bytes:
        return finish(Work(spec, plans, say, read_recorded).run(None, None)[0])
    try:
        content = content_hash(spec.path)
        libraries = [file_hash(path) for path in spec.op_libraries]
    except OSError as error:
        return finish(Report("tensorflow", f"{error.filename or spec.path} cannot be read: {error.strerror}"))
    cache = Cache(spec.cache_dir, spec.cache_max_bytes)
    code = own_code(tuple(sorted(file for module in modules.values() if (file := getattr(module, "__file__", None)))))
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
                return _without_demoted(msgspec.structs.replace(known, from_cache=True), entry, spec)
        work = Work(spec, plans, say, read_recorded, counterexamples.known(spec.cache_dir, content))
        report, is_repeatable = work.run(entry, known)
        report = finish(report)
        # A result after a crash or a limit is not kept: another run may give another.
        if not is_repeatable:
            return report
        if entry is None:
            entry = cache.put(key, work.result)
            if entry is None:
                return report
            stack.callback(entry.close)
        entry.put_report(machine_key, msgspec.structs.replace(report, folder=""))
        return _without_demoted(report, entry, spec)


def _without_demoted(report: Report, entry: Entry, spec: JobSpec) -> Report:
    """Return `report` with a choice among the forms that have not failed in service, and with the folder of the chosen
    one. The report in `entry` knows of no such failures."""
    demotions = tuple(found for c in report.forms if (found := entry.demotion(c.name)) is not None)
    if demotions:
        given_up = {found.form: f"it failed in service, at {found.at}: {found.why}" for found in demotions}
        choice = choose(report.forms, report.tensorflow, report.signatures, spec.min_speedup, given_up)
        report = msgspec.structs.replace(
            report,
            chosen=choice.chosen,
            reason=choice.reason,
            form=choice.form,
            forms=choice.forms,
            demotions=demotions,
        )
    return msgspec.structs.replace(report, folder=form_folder(entry.path, report.form))


def _plans(spec: JobSpec, modules: Mapping[str, Converter]) -> dict[str, tuple[Converter, str]]:
    """Return the converter and the precision of each form to try, by the form's name."""
    return {
        name if precision == "float32" else f"{name}-{precision}": (module, precision)
        for name, module in modules.items()
        if spec.policy in ("auto", module.FORMAT)
        for precision in spec.precisions
        if precision in module.PRECISIONS
    }


def main(spec: JobSpec, read_recorded: ReadRecorded = _none_recorded) -> int:
    """Run the job and write its lines to the standard output; return the exit status."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # frameworks print

    def write(line: Mapping[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):
            output.write(json.dumps(line) + "\n")
            output.flush()

    try:
        if spec.yielding:
            cores.leave_one()
        report = accelerate(spec, lambda text: write({"progress": text}), read_recorded)
    except Exception as error:  # noqa: BLE001 - the outer loop of a process
        traceback.print_exc()
        write({"error": f"{type(error).__name__}: {error}"})
        return 1
    write({"report": to_plain(report)})
    return 0


def run(spec: JobSpec, read_recorded: ReadRecorded = _none_recorded) -> NoReturn:
    """Run the job as `main` does, and end the process."""
    status = main(spec, read_recorded)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run(msgspec.convert(json.load(sys.stdin), JobSpec))
