"""What is measured: which model, through which protocol, by which server."""

import base64
import dataclasses
import os
import subprocess
import sys

from benchmarks.measurement import Measurement
from benchmarks.models import MODELS, ROOT, find_wrong_answer, locate_request
from benchmarks.servers import Server

CONCURRENCIES = (1, 8, 32)
SESSION, DROPSERVE, FASTAPI = "bare session", "dropserve", "FastAPI, 2 workers"


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One row of the report. `body` is the request's file; a bare session has none."""

    model: str
    server: str
    protocol: str = ""
    body: str = ""

    @property
    def name(self) -> str:
        """What the filter looks at and the report prints, such as `mobilenet_v2 dropserve gRPC float_val`."""
        encoding = self.body.removesuffix(".bin") if self.protocol == "gRPC" else ""
        return " ".join(filter(None, [self.model, self.server, self.protocol, encoding]))


CASES = (
    Case("half_plus_two", SESSION),
    Case("half_plus_two", FASTAPI, "REST", "rest.json"),
    Case("half_plus_two", DROPSERVE, "REST", "rest.json"),
    Case("half_plus_two", DROPSERVE, "gRPC", "tensor_content.bin"),
    Case("digits", SESSION),
    Case("digits", DROPSERVE, "REST", "rest.json"),
    Case("digits", DROPSERVE, "gRPC", "tensor_content.bin"),
    Case("mobilenet_v2", SESSION),
    Case("mobilenet_v2", DROPSERVE, "REST", "rest.json"),
    Case("mobilenet_v2", DROPSERVE, "gRPC", "tensor_content.bin"),
    Case("mobilenet_v2", DROPSERVE, "gRPC", "float_val.bin"),
)


def measure_case(case: Case, servers: dict[str, Server], warmup_seconds: float, seconds: float) -> list[Measurement]:
    """One measurement for each of CONCURRENCIES, by a generator in a process of its own."""
    window = ["--seconds", str(seconds), "--warmup-seconds", str(warmup_seconds)]
    if case.server == SESSION:
        arguments = ["--model", os.path.join(MODELS, case.model, "1")]
        arguments += ["--inputs", locate_request(case.model, "inputs.npz")]
        lines = _run_generator("session", [*arguments, "--concurrency", *map(str, CONCURRENCIES), *window])
        return [Measurement.from_json(line) for line in lines]

    server = servers[case.server]
    arguments = ["--body", locate_request(case.model, case.body), *window]
    if case.protocol == "REST":
        module = "http_load"
        arguments += ["--port", str(server.rest_port), "--path", f"/v1/models/{case.model}:predict"]
    else:
        module = "grpc_load"
        arguments += ["--port", str(server.grpc_port)]
    measurements = []
    for concurrency in CONCURRENCIES:
        (line,) = _run_generator(module, [*arguments, "--concurrency", str(concurrency)])
        measurement = Measurement.from_json(line)
        _check_answers(case, measurement)
        measurements.append(measurement)
    return measurements


def _check_answers(case: Case, measurement: Measurement) -> None:
    """Count wrong answers as errors, and forget the answers: they are large."""
    for answer, count in measurement.answers.items():
        wrong = find_wrong_answer(case.model, case.protocol, base64.b64decode(answer))
        if wrong is not None:
            message = f"wrong answer: {wrong}"
            measurement.errors[message] = measurement.errors.get(message, 0) + count
    measurement.answers.clear()


def _run_generator(module: str, arguments: list[str]) -> list[str]:
    """The lines that a generator prints; what it and TensorFlow log is shown only if it fails."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {result.returncode}\n{result.stderr}")
    return result.stdout.splitlines()
