"""The process that does a job's work, as the job starts it, and as it runs.

It is told the spec and never the key, and it imports TensorFlow so that it can be forked with it. It never runs an op
itself: a fork after one may hang. `python -m converters.working` has the socket to the job as its standard input; it
gets one request, answers with `{"progress": text}` any number of times, and with a `Worked` or `{"error": text}` at the
end.
"""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Mapping, Set
from typing import Any

import msgspec

from backends.contract import Signature
from backends.frames import receive, send
from backends.samples import read_samples
from converters import cores
from converters.child import Limits, become_child, start
from converters.report import Report, to_plain
from converters.spec import JobSpec
from converters.work import ReadRecorded, Recorded, Say, Work, plans_of

__all__ = ["Worked", "main", "work_in_process"]

_LIFE_SECONDS = 24 * 3600.0
_STEP_SECONDS = 2 * 3600.0  # between two words about the progress; each conversion has its own limit


class Worked(msgspec.Struct, frozen=True):
    """What came of the work: the report, whether another run would give the same, and the files that belong into the
    cache, by their names in the result folder → their SHA-256 when they were proven."""

    report: Report
    is_repeatable: bool
    files: Mapping[str, str]


def work_in_process(
    spec: JobSpec, forms: Set[str], say: Say, entry: str = "", known: Report | None = None, refuted: str = ""
) -> Worked:
    """Do the work of `spec` in a process of its own, whose report may have `forms` alone; see `Work.run`.

    `refuted` is a file of inputs on which forms were wrong in service, "" for none. Raise ChildError if the process
    ends early, ValueError if it fails.
    """
    log = os.path.join(spec.work_dir, "work.log")
    request = {
        "spec": msgspec.to_builtins(spec),
        "entry": entry,
        "known": None if known is None else to_plain(known),
        "refuted": refuted,
    }
    limits = Limits(_LIFE_SECONDS, spec.memory_bytes, spec.yielding)
    with start("the process that converts", log, limits, spec.work_module) as child:
        message, _ = child.ask(request, seconds=_STEP_SECONDS)
        while "progress" in message:
            say(str(message["progress"]))
            message, _ = child.answer(_STEP_SECONDS)
    if "error" in message:
        raise ValueError(message["error"])
    worked = msgspec.convert(message, Worked)
    # Names of forms become names of files.
    if strange := {worked.report.form, *(form.name for form in worked.report.forms)} - forms - {""}:
        raise ValueError(f"its report has the form {min(strange)!r}, which was not asked for")
    return worked


def _none_recorded(path: str, signatures: Mapping[str, Signature]) -> Recorded:
    return {}


def main(read_recorded: ReadRecorded = _none_recorded, prepare: Callable[[JobSpec], None] = lambda _: None) -> None:
    """Do the work that the job asks for. Requests that `read_recorded` finds are part of the proof. `prepare` is called
    before anything is done."""
    become_child(int(os.environ["DROPSERVE_PARENT"]), os.environ["DROPSERVE_YIELD"] == "1")
    sock = socket.socket(fileno=os.dup(0))
    frame = receive(sock)
    if frame is None:
        return  # the job has ended
    request, _ = frame
    try:
        spec = msgspec.convert(request["spec"], JobSpec)
        prepare(spec)
        answer = _work(spec, request, lambda text: send(sock, {"progress": text}), read_recorded)
    except Exception as error:  # noqa: BLE001 - the outer loop of a process
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    send(sock, answer)


def _work(spec: JobSpec, request: Mapping[str, Any], say: Say, read_recorded: ReadRecorded) -> dict[str, Any]:
    if spec.yielding:
        cores.leave_one()
    refuted: dict[str, list[Any]] = {}
    for sample in read_samples(request["refuted"]) if request["refuted"] else ():
        refuted.setdefault(sample.signature, []).append(sample.inputs)
    work = Work(spec, plans_of(spec), say, read_recorded, refuted)
    report, is_repeatable = work.run(request["entry"], msgspec.convert(request["known"], Report | None))
    return {"report": to_plain(report), "is_repeatable": is_repeatable, "files": work.files}


if __name__ == "__main__":
    main()
