"""Convert a model: run each entry point in a process of its own, until each signature is converted and proven."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from backends import op_libraries
from backends.contract import BackendError, Code, Signature
from backends.form import FILE, Format, FormSignature, parse_form, write_form
from backends.frames import send
from converters.child import Access, ChildError, Limits, fork
from converters.evidence import Evidence
from converters.files import file_hash
from converters.plugin import Converted, Converter, EntryPoint, Failed, Task
from converters.processes import ModelProcess, arithmetic_of, load_form, reads_of
from converters.proving import prove
from converters.report import Attempt, FormReport, SignatureProof, Verdict
from converters.spec import JobSpec

__all__ = ["Converting", "Tried", "attempt", "prove_folder"]

_Say = Callable[[str], None]


@dataclass(slots=True)
class Tried:
    """What one entry point did: the files of signatures, and the reasons why others have none."""

    entries: dict[str, FormSignature] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    final: set[str] = field(default_factory=set)
    unsupported: set[str] = field(default_factory=set)
    was_ended: bool = False
    """Whether it crashed or met a limit: another run may end otherwise."""


class Converting:
    """The conversion of one SavedModel by one converter to one precision.

    The files are left in `folder`; `files` has each with its SHA-256 when it was proven. What has changed since, by
    whomever, is not what was proven.
    """

    def __init__(
        self,
        spec: JobSpec,
        folder: str,
        name: str,
        converter: Converter,
        precision: str,
        evidence: Mapping[str, Evidence],
        say: _Say,
        unsupported: Mapping[str, str],
    ) -> None:
        """`unsupported` has the signatures that TensorFlow itself does not serve → the reason."""
        self.name = name
        self.folder = folder
        self.is_repeatable = True
        self.files: dict[str, str] = {}
        self._spec = spec
        self._converter = converter
        self._precision = precision
        self._evidence = evidence
        self._say = say
        self._unsupported = unsupported

    def run(self) -> FormReport:
        """Try the entry points in turn, and return what became of the form. A signature is done when a conversion of it
        loads and is proven: an entry point may claim success and be wrong."""
        begun = time.monotonic()
        os.makedirs(self.folder)
        done: dict[str, FormSignature] = {}
        proofs: dict[str, SignatureProof] = {}
        hopeless: set[str] = set()
        attempts: list[Attempt] = []
        for number, entry_point in enumerate(self._converter.ENTRY_POINTS):
            open_signatures = {
                name: evidence.signature for name, evidence in self._evidence.items() if name not in done
            }
            # One form serves all signatures: if one cannot be converted, the others are of no use.
            if not open_signatures or hopeless:
                break
            started = time.monotonic()
            self._say(f"{self.name}: converting by the {entry_point}")
            tried = self._try(entry_point, number, open_signatures)
            proven = self._proven(tried, proofs)
            done.update(proven)
            hopeless |= tried.final
            self.is_repeatable &= not tried.was_ended
            attempts.append(
                Attempt(
                    entry_point,
                    tuple(proven),
                    tried.failures,
                    tuple(sorted(tried.unsupported)),
                    time.monotonic() - started,
                )
            )
        self.files = {file: digest for file, digest in self.files.items() if file in _files_of(done)}
        for file in os.listdir(self.folder):
            if file not in self.files:
                os.unlink(os.path.join(self.folder, file))
        if done:
            self._describe(done)
            self.files[FILE] = file_hash(os.path.join(self.folder, FILE))
        return FormReport(
            self.name,
            self._converter.FORMAT,
            self._precision,
            tuple(attempts),
            time.monotonic() - begun,
            tuple(proofs[name] for name in self._evidence if name in proofs),
        )

    def _try(self, entry_point: str, number: int, signatures: Mapping[str, Signature]) -> Tried:
        spec = self._spec
        task = Task(spec.path, spec.tags, signatures, self._precision, self.folder, f"{number}-")
        access = Access(reads_of(spec, spec.path), (self.folder,), os.path.join(spec.work_dir, "temporary"))
        limits = Limits(spec.timeout_seconds, spec.memory_bytes, spec.yielding, access)
        log = os.path.join(spec.work_dir, f"{self.name}-{number}.log")
        return attempt(self.name, self._converter, entry_point, task, log, limits, spec.op_libraries)

    def _proven(self, tried: Tried, proofs: dict[str, SignatureProof]) -> dict[str, FormSignature]:
        """Return those of the converted signatures that load and are proven. The others become failures."""
        entries = tried.entries
        if not entries:
            return {}
        self._say(f"{self.name}: proving {len(entries)} signature{'s' if len(entries) > 1 else ''}")
        try:
            found = self._prove(entries)
        except (BackendError, ChildError) as error:
            if len(entries) == 1:
                tried.failures[next(iter(entries))] = f"converted, but it does not load: {error}"
                return {}
            found = {}  # which of them it is shows one by one
            for name, entry in entries.items():
                try:
                    found.update(self._prove({name: entry}))
                except (BackendError, ChildError) as alone:
                    tried.failures[name] = f"converted, but it does not load: {alone}"
        proven = {}
        for name, proof in found.items():
            proofs[name] = proof
            if proof.verdict is Verdict.PROVEN:
                proven[name] = entries[name]
            else:
                tried.failures[name] = f"converted, but not proven ({proof.verdict}): {proof.reason}"
        return proven

    def _prove(self, entries: Mapping[str, FormSignature]) -> dict[str, SignatureProof]:
        self._describe(entries)
        hashes = self._hashes(entries)
        proofs = prove_folder(
            self._spec, self._converter.FORMAT, self._precision, self.folder, list(entries), self._evidence
        )
        if self._hashes(entries) != hashes:
            raise BackendError(Code.DATA_LOSS, "its files were changed while it was proven")
        self.files |= hashes
        return proofs

    def _hashes(self, entries: Mapping[str, FormSignature]) -> dict[str, str]:
        """Return the SHA-256 of each file of `entries` that can be read; loading tells of the others."""
        found = {}
        for file in _files_of(entries):
            with contextlib.suppress(OSError):
                found[file] = file_hash(os.path.join(self.folder, file))
        return found

    def _describe(self, entries: Mapping[str, FormSignature]) -> None:
        form = {
            "format": self._converter.FORMAT,
            "precision": self._precision,
            "signatures": msgspec.to_builtins(dict(entries)),
            "unsupported": dict(self._unsupported),
        }
        write_form(self.folder, parse_form(form))


def _files_of(entries: Mapping[str, FormSignature]) -> set[str]:
    return {entry.file for entry in entries.values()}


def prove_folder(
    spec: JobSpec, form: Format, precision: str, folder: str, names: Sequence[str], evidence: Mapping[str, Evidence]
) -> dict[str, SignatureProof]:
    """Return the proofs of the signatures `names` of the form in `folder`. Raise BackendError, ChildError."""
    log = os.path.join(spec.work_dir, f"{os.path.basename(folder)}-run.log")
    arithmetic = arithmetic_of(form, precision, spec.device)

    def load() -> ModelProcess:
        return load_form(spec, form, folder, log)

    search = spec.min_search_seconds, spec.search_seconds
    return prove(load, names, evidence, arithmetic, spec.proof_seconds, search)


def attempt(
    name: str,
    converter: Converter,
    entry_point: str,
    task: Task,
    log: str,
    limits: Limits,
    libraries: Sequence[str] = (),
) -> Tried:
    """Let the entry point convert all that `task` asks for, in a fork of this process, which has imported TensorFlow.
    `name` is the converter's, for people."""
    tried = Tried()
    convert = partial(_convert, libraries, task, converter.ENTRY_POINTS[entry_point])
    with fork(f"the converter {name} ({entry_point})", convert, log, limits) as child:
        try:
            for message in iter(lambda: child.answer()[0], {"done": True}):
                signature = message["name"]
                if "entry" in message:
                    form = {"format": converter.FORMAT, "precision": task.precision}
                    read = parse_form({**form, "signatures": {signature: message["entry"]}})
                    tried.entries[signature] = read.signatures[signature]
                    continue
                tried.failures[signature] = message["reason"]
                tried.unsupported.update(message["unsupported_ops"])
                if message["is_final"]:
                    tried.final.add(signature)
        except (BackendError, ChildError, KeyError) as error:
            tried.was_ended = isinstance(error, ChildError)
            for signature in task.signatures.keys() - tried.entries.keys() - tried.failures.keys():
                tried.failures[signature] = str(error)
    for signature in task.signatures.keys() - tried.entries.keys() - tried.failures.keys():
        tried.failures[signature] = "it was passed over"
    return tried


def _convert(libraries: Sequence[str], task: Task, function: EntryPoint, sock: socket.socket) -> None:
    """Convert, and send the results to the job. Runs in the child."""
    op_libraries.load(libraries)
    results: Iterator[Converted | Failed] = function(task)
    for result in results:
        if isinstance(result, Converted):
            send(sock, {"name": result.name, "entry": msgspec.to_builtins(result.entry)})
        else:
            send(
                sock,
                {
                    "name": result.name,
                    "reason": result.reason,
                    "unsupported_ops": list(result.unsupported_ops),
                    "is_final": result.is_final,
                },
            )
    send(sock, {"done": True})
