"""Acceleration as the appliance asks for it: what a job is told, how it is run by hand, and its report for people."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable

from appliance.config.model_options import ModelOptions
from appliance.core.errors import ConfigError
from converters.cache import default_folder
from converters.codec import from_json, to_json
from converters.report import Candidate, Demotion, Report, Searched, SignatureProof, Timing, Verdict
from converters.spec import JobSpec
from converters.tolerances import Tolerances

__all__ = ["PROCESS", "accelerate", "demotion_text", "job_spec", "report_text"]

PROCESS = "appliance.conversion.process"
"""The module to run for a job: it reads the spec from its standard input, see `converters.job`."""


_MAX_BEYOND = 4


def job_spec(options: ModelOptions, path: str, work_dir: str, cache_dir: str, cache_max_bytes: int) -> JobSpec:
    """The job for the version folder `path` of a model with `options`; see `JobSpec`. `acceleration` off counts as
    auto: whoever starts a job wants one. A `cache_dir` of "" is the default one."""
    policy = options.acceleration
    return JobSpec(
        path=path,
        work_dir=work_dir,
        tags=options.tags,
        policy="onnx" if policy == "onnx" else "tflite" if policy == "tflite" else "auto",
        precisions=options.precisions,
        min_speedup=options.acceleration_min_speedup,
        max_batch_size=options.max_merged_batch_size if options.merge_waiting_requests else 0,
        tolerances=Tolerances(
            {
                "float32": options.parity_tolerance,
                "tf32": options.parity_tolerance_tf32,
                "float16": options.parity_tolerance_float16,
                "int8": options.parity_tolerance_int8,
            },
            options.parity_absolute_tolerance,
        ),
        timeout_seconds=options.conversion_timeout_seconds,
        memory_bytes=options.conversion_memory_bytes,
        cache_dir=cache_dir or default_folder(),
        cache_max_bytes=cache_max_bytes,
        threads=options.tensorflow_intra_op_parallelism,
        inter_op_threads=options.tensorflow_inter_op_parallelism,
        session_config_file=options.tensorflow_session_config_file,
        op_libraries=options.op_libraries,
        device=options.device,
        gpu_memory_limit_bytes=options.gpu_memory_limit_bytes,
    )


def accelerate(
    options: ModelOptions, path: str, cache_dir: str, cache_max_bytes: int, say: Callable[[str], None]
) -> Report:
    """Runs a job for the version folder `path` to its end, as fast as it goes, and keeps its result in the cache only.

    Raises ConfigError where the folder is none, or the job fails.
    """
    if not os.path.isdir(path):
        raise ConfigError(f"{path} is not a folder", "give a version folder, such as /models/mine/1")
    with tempfile.TemporaryDirectory(prefix="dropserve-accelerate-") as work_dir:
        spec = job_spec(options, os.path.abspath(path), work_dir, cache_dir, cache_max_bytes)
        spec = dataclasses.replace(spec, yielding=False)
        isolated = ["-I"] if sys.flags.isolated else []
        with (
            open(os.path.join(work_dir, "job.log"), "w+", encoding="utf-8", errors="replace") as log,
            subprocess.Popen(
                [sys.executable, *isolated, "-m", PROCESS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "DROPSERVE_PARENT": str(os.getpid())},
            ) as job,
        ):
            assert job.stdin is not None
            assert job.stdout is not None
            json.dump(to_json(spec), job.stdin)
            job.stdin.close()
            for line in job.stdout:
                message = json.loads(line)
                if "progress" in message:
                    say(message["progress"])
                elif "report" in message:
                    return from_json(Report, message["report"])
                else:
                    raise ConfigError(f"the job failed: {message['error']}", "")
            status = job.wait()
            log.seek(0)
            said = log.read()[-2000:]
        raise ConfigError(f"the job ended with status {status}", said)


def report_text(report: Report) -> str:
    """The report as a table for people."""
    lines = [f"{report.chosen}: {report.reason}", ""]
    batches = list(dict.fromkeys((t.signature, t.batch) for t in report.tensorflow))
    shown = batches[:4]
    rows = [
        ["FORM", "CONVERTED", "PROVEN", "WORST DIFFERENCE", *(f"{name} x{batch}" for name, batch in shown), "SPEED-UP"],
        ["tensorflow", "-", "-", "-", *_times(report.tensorflow, shown), "1.00"],
    ]
    for candidate in report.candidates:
        converted = ", ".join(candidate.entry_points) or "no"
        proven = sum(proof.verdict is Verdict.PROVEN for proof in candidate.proofs)
        speedup = f"{candidate.speedup:.2f}" if candidate.speedup else "-"
        times = _times(candidate.timings, shown)
        of_all = f"{proven} of {len(report.signatures)}"
        rows.append([candidate.name, converted, of_all, _worst(candidate), *times, speedup])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("")
    for candidate in report.candidates:
        lines.append(f"{candidate.name}: {candidate.reason}")
        if candidate.unsupported_ops:
            lines.append(f"  operators that it does not know: {', '.join(candidate.unsupported_ops)}")
        for proof in candidate.proofs:
            lines.append(f"  {_proof_line(proof)}")
            if proof.searched.inputs:
                lines.append(f"    {_search_line(proof.searched)}")
            if proof.verdict is Verdict.PROVEN and (left_out := proof.domain.left_out()):
                lines.append(f"    TensorFlow answers {left_out}")
                lines += [f"      {why}" for why in proof.beyond[:_MAX_BEYOND]]
    lines += [f"{demotion.candidate} was given up: {demotion_text(demotion)}" for demotion in report.demotions]
    if report.disturbed:
        lines.append(
            f"other processes took {report.others:.0%} of the processors while this was measured: it is measured again "
            "when the server is started again, or by dropserve accelerate"
        )
    where = "from the cache" if report.from_cache else f"in {report.seconds:.1f} s"
    lines.append(f"{where}; on {report.machine}; {', '.join(f'{n} {v}' for n, v in report.versions.items())}")
    return "\n".join(lines) + "\n"


def demotion_text(demotion: Demotion) -> str:
    """Why a form was given up, when, and how to have it tried again."""
    remove = f"remove {demotion.file} and start the server again" if demotion.file else "start the server again"
    return f"{demotion.why} ({demotion.at}; to try it again, {remove})"


def _times(timings: tuple[Timing, ...], shown: list[tuple[str, int]]) -> list[str]:
    found = {(t.signature, t.batch): f"{t.milliseconds:.3f} ms" for t in timings}
    return [found.get(key, "-") for key in shown]


def _worst(candidate: Candidate) -> str:
    found = [o.relative for proof in candidate.proofs for o in proof.outputs if o.relative is not None]
    return f"{max(found):.1e}" if found else "-"


def _proof_line(proof: SignatureProof) -> str:
    cases = f"{proof.cases} cases" + (f", {proof.recorded} of them recorded" if proof.recorded else "")
    refused = f", {proof.refused} refused by TensorFlow and replaced" if proof.refused else ""
    said = f": {proof.reason}" if proof.reason else ""
    edges = f" and {proof.edges} out of the usual" if proof.edges else ""
    return f"{proof.signature!r} {proof.verdict} on {cases}{edges}{refused}{said}"


def _search_line(searched: Searched) -> str:
    at_worst = f": at worst {searched.of_allowed:.2g} of what is allowed, on {searched.worst}" if searched.worst else ""
    explained = f"; {searched.explained} times, roundings were the difference" if searched.explained else ""
    return f"searched {searched.inputs:,} other inputs in {searched.seconds:.1f} s{at_worst}{explained}"
