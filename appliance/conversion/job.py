"""Conversion jobs as the appliance starts them: their settings, and a run by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import tempfile
from collections.abc import Callable
from typing import TextIO

import msgspec

from appliance.config.model_options import ModelOptions
from appliance.conversion.form_cache import FormCache
from appliance.core.errors import ConfigError
from appliance.host.processes import describe_status, spawn
from converters.report import Report
from converters.spec import Job, JobSpec

__all__ = ["PROCESS", "VERIFYING_PROCESS", "accelerate", "job_spec"]

PROCESS = "appliance.conversion.process"
"""The module that runs a job: its argument is a `converters.spec.Job`."""

VERIFYING_PROCESS = "appliance.conversion.verifying"
"""The module that verifies what a form has answered: its argument is a `converters.verifying.VerifyingSpec`."""

_WORK_PROCESS = "appliance.conversion.work"


def job_spec(options: ModelOptions, path: str, work_dir: str, cache: FormCache) -> JobSpec:
    """Return the job for the version folder `path` of a model with `options`; see `JobSpec`.

    An `acceleration` of "off" counts as "auto", because the caller has asked for a job.
    """
    policy = options.acceleration
    return JobSpec(
        path=path,
        work_dir=work_dir,
        tags=options.tags,
        policy="onnx" if policy == "onnx" else "tflite" if policy == "tflite" else "auto",
        precisions=options.precisions,
        min_speedup=options.acceleration_min_speedup,
        max_batch_size=options.max_merged_batch_size if options.merge_waiting_requests else 0,
        cache_dir=cache.folder,
        cache_max_bytes=cache.max_bytes,
        work_module=_WORK_PROCESS,
        threads=options.tensorflow_intra_op_parallelism,
        inter_op_threads=options.tensorflow_inter_op_parallelism,
        session_config_file=options.tensorflow_session_config_file,
        op_libraries=options.op_libraries,
        device=options.device,
        gpu_memory_limit_bytes=options.gpu_memory_limit_bytes,
        sandbox=options.sandbox,
    )


def accelerate(options: ModelOptions, path: str, cache: FormCache, say: Callable[[str], None]) -> Report:
    """Run a job for the version folder `path` to its end at full speed, and keep its result only in the cache.

    `say` receives each line of progress. Raise ConfigError if `path` is not a folder, the key of the cache cannot be
    used, or the job fails.
    """
    if not os.path.isdir(path):
        raise ConfigError(f"{path} is not a folder", "give a version folder, such as /models/mine/1")
    with tempfile.TemporaryDirectory(prefix="dropserve-accelerate-") as work_dir:
        spec = dataclasses.replace(job_spec(options, os.path.abspath(path), work_dir, cache), yielding=False)
        job = Job(spec, cache.key())
        with open(os.path.join(work_dir, "job.log"), "w+", encoding="utf-8", errors="replace") as log:
            return _run(job, log, say)


def _run(job: Job, log: TextIO, say: Callable[[str], None]) -> Report:
    """Run the process of a job to its end. What its libraries print goes to `log`. Raise ConfigError if it fails."""
    output_read, output_write = os.pipe()
    with open(output_read, encoding="utf-8") as output:
        try:
            pid = spawn(PROCESS, job, stdout=output_write, stderr=log.fileno())
        finally:
            os.close(output_write)
        try:
            report = _report(output, say)
        except BaseException:
            os.kill(pid, signal.SIGKILL)  # Ctrl-C reaches this process only
            raise
        finally:
            _, status = os.waitpid(pid, 0)
    if report is None:
        log.seek(0)
        raise ConfigError(f"the job {describe_status(status)}", log.read()[-2000:])
    return report


def _report(output: TextIO, say: Callable[[str], None]) -> Report | None:
    """Return the report that the lines of a job's `output` end with, if they do. Raise ConfigError if it has failed."""
    report = None
    for line in output:
        message = json.loads(line)
        if "progress" in message or "warning" in message:
            say(message.get("progress") or message["warning"])
        elif "report" in message:
            report = msgspec.convert(message["report"], Report)
        else:
            raise ConfigError(f"the job failed: {message['error']}", "")
    return report
