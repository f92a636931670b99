"""Reads recorded warm-up requests, `assets.extra/tf_serving_warmup_requests` in a version folder, as backend calls.

The file is a TFRecord (`xla/tsl/lib/io/record_writer.h`: length, its checksum, data, its checksum) of
`tensorflow.serving.PredictionLog`. The rules for what is run and refused are TensorFlow Serving's
(`saved_model_warmup.cc`, `saved_model_warmup_util.cc`): a bad record, or a request that fails, fails the version.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from google.protobuf.message import DecodeError

from appliance.core.errors import ServingError
from appliance.protocols import protos
from appliance.protocols.example_inputs import examples_of
from appliance.protocols.tensor_protos import decode_tensor
from backends.contract import DEFAULT_SIGNATURE, BackendError, Code, Signature
from backends.crc32c import masked_crc32c

__all__ = ["Call", "calls_of", "recorded_cases", "recorded_requests", "records_path"]

_MAX_RECORDS = 1000
_MAX_RECORD_BYTES = 2**31 - 1  # protobuf's limit
# A context is repeated in every example, so a small record could ask for terabytes.
_EXPANDED_BYTES = 64 << 20
_EXPANDED_MULTIPLE = 16
_MAX_CASES = 64
_MAX_CASES_BYTES = 256 << 20
_CLASSIFY, _REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_SESSION_RUN_FIELD = 5


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one `Backend.run`."""

    signature: str
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]


def records_path(version_path: str) -> str | None:
    """Return the file of recorded requests in the folder `version_path`; None if there is none."""
    path = os.path.join(version_path, "assets.extra", "tf_serving_warmup_requests")
    return path if os.path.lexists(path) else None


def recorded_requests(path: str) -> Iterator[Any]:
    """Yield the `protos.PredictionLog` messages of the file at `path`.

    Raise BackendError (DATA_LOSS, INVALID_ARGUMENT), which names the file and the record, counted from 1.
    """
    try:
        # A named pipe would block the open for ever without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BackendError(Code.FAILED_PRECONDITION, f"{path} is not a file")
            yield from _messages(file, status.st_size, path)
    except OSError as error:
        raise BackendError(Code.FAILED_PRECONDITION, f"cannot read {path}: {error.strerror}") from error


def _messages(file: BinaryIO, size: int, path: str) -> Iterator[Any]:
    number = 0
    while file.tell() < size:
        number += 1
        if number > _MAX_RECORDS:
            raise BackendError(
                Code.INVALID_ARGUMENT, f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}) at {path}"
            )
        try:
            message = protos.PredictionLog.FromString(_record(file, size, f"record {number} of {path}"))
        except DecodeError as error:
            raise BackendError(
                Code.INVALID_ARGUMENT, f"Failed to parse warmup record: record {number} of {path} is no PredictionLog"
            ) from error
        yield message


def _record(file: BinaryIO, size: int, where: str) -> bytes:
    start = file.tell()
    head = file.read(12)
    # Check the length before reading that many bytes.
    if len(head) == 12:
        length, checksum = struct.unpack("<QI", head)
        if masked_crc32c(head[:8]) != checksum:
            raise _data_loss(f"corrupted record at {start}: the length of {where} does not match its checksum")
        if length > _MAX_RECORD_BYTES:
            raise _data_loss(f"corrupted record at {start}: {where} has {length:,} bytes")
        if start + 12 + length + 4 <= size:
            data = file.read(length)
            tail = file.read(4)
            if len(data) == length and len(tail) == 4:
                if masked_crc32c(data) != struct.unpack("<I", tail)[0]:
                    raise _data_loss(f"corrupted record at {start}: {where} does not match its checksum")
                return data
    raise _data_loss(f"truncated record at {start}: {where} is cut off")


def _data_loss(message: str) -> BackendError:
    return BackendError(Code.DATA_LOSS, f"{message}. Please verify your warmup data is in TFRecord format.")


def recorded_cases(version_path: str, signatures: Mapping[str, Signature]) -> dict[str, list[Mapping[str, np.ndarray]]]:
    """Return the inputs of the recorded requests of a version folder by signature, for the proof in `converters.job`.

    Without a file there are none. At most 64 cases and 256 MiB are read. Raise BackendError for an invalid file.
    """
    source = records_path(version_path)
    found: dict[str, list[Mapping[str, np.ndarray]]] = {}
    if source is None:
        return found
    number = nbytes = 0
    try:
        for call in (call for log in recorded_requests(source) for call in calls_of(log, signatures)):
            number += 1
            nbytes += sum(array.nbytes for array in call.inputs.values())
            if number > _MAX_CASES or nbytes > _MAX_CASES_BYTES:
                break
            found.setdefault(call.signature, []).append(call.inputs)
    except ServingError as error:
        raise BackendError(error.code, str(error)) from error
    return found


def calls_of(log: Any, signatures: Mapping[str, Signature]) -> list[Call]:
    """Return the calls that a `protos.PredictionLog` asks for.

    These are several for a MultiInference, and none for a log without a kind, or of a kind that TensorFlow Serving
    skips. The model that a request names is ignored: the calls are for this version. Raise BackendError or ServingError
    for a request that cannot be run.
    """
    kind = log.WhichOneof("log_type")
    if kind is None:
        return []
    data = getattr(log, kind).request
    try:
        match kind:
            case "predict_log":
                return [_predict(protos.PredictRequest.FromString(data), signatures)]
            case "classify_log" | "regress_log":
                request = protos.ExamplesRequest.FromString(data)
                method = _CLASSIFY if kind == "classify_log" else _REGRESS
                name = request.model_spec.signature_name or DEFAULT_SIGNATURE
                if name not in signatures:
                    raise BackendError(Code.INVALID_ARGUMENT, f"No signature was found with the name: {name}")
                return [_on_examples(name, signatures[name], method, _examples(request.input))]
            case "multi_inference_log":
                return _multi_inference(protos.TasksRequest.FromString(data), signatures)
            case _:
                raise BackendError(
                    Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {_SESSION_RUN_FIELD} (session_run_log)"
                )
    except DecodeError as error:
        raise BackendError(Code.INVALID_ARGUMENT, f"Failed to parse warmup record: {kind}: {error}") from error


def _predict(request: Any, signatures: Mapping[str, Signature]) -> Call:
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = signatures.get(name)
    if signature is None:
        raise BackendError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    given, wanted = set(request.inputs), set(signature.inputs)
    missing = wanted - given - signature.defaults.keys()
    if given - wanted or missing:
        raise BackendError(
            Code.INVALID_ARGUMENT,
            f"input size does not match signature: {len(given)}!={len(wanted)} "
            f"len({{{','.join(sorted(given))}}}) != len({{{','.join(sorted(wanted))}}}). "
            f"Sent extra: {{{','.join(sorted(given - wanted))}}}. "
            f"Missing but required: {{{','.join(sorted(missing))}}}.",
        )
    inputs = {alias: decode_tensor(tensor.SerializeToString()) for alias, tensor in request.inputs.items()}
    for alias, array in inputs.items():
        element = signature.inputs[alias].element
        if array.dtype != element.numpy:
            raise BackendError(
                Code.INVALID_ARGUMENT,
                f'Input "{alias}" has elements of {array.dtype}; the signature expects {element.proto_name}',
            )
    outputs = tuple(request.output_filter) or tuple(signature.outputs)
    for index, output in enumerate(outputs):
        if output not in signature.outputs:
            raise BackendError(
                Code.INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {output} Outputs expected to be in the set "
                f"{{{','.join(sorted(signature.outputs))}}}.",
            )
        if output in outputs[:index]:
            raise BackendError(Code.INVALID_ARGUMENT, f"duplicate output tensor alias: {output}")
    return Call(name, inputs, outputs)


def _on_examples(name: str, signature: Signature, method: str, examples: np.ndarray) -> Call:
    word, wanted = ("classification", ("classes", "scores")) if method == _CLASSIFY else ("regression", ("outputs",))
    if len(signature.inputs) != 1:
        raise BackendError(Code.INVALID_ARGUMENT, f"Expected one input Tensor. Signature {name} has others.")
    if "inputs" not in signature.inputs:
        raise BackendError(Code.FAILED_PRECONDITION, f"No {word} inputs found in SignatureDef: {name}")
    outputs = tuple(output for output in wanted if output in signature.outputs)
    if not outputs:
        raise BackendError(
            Code.FAILED_PRECONDITION,
            f"Expected {word} signature outputs to contain at least one of {' or '.join(wanted)}. "
            f"Signature was: {name}",
        )
    if signature.inputs["inputs"].dtype != "string":
        raise BackendError(Code.INVALID_ARGUMENT, f'Input "inputs" of signature {name} does not take examples')
    return Call(name, {"inputs": examples}, outputs)


def _examples(message: Any) -> np.ndarray:
    """Return the examples, [n] object.

    Raise ServingError if there are none, or if their repeated context is too large.
    """
    examples = examples_of(message)
    examples.check(max(_EXPANDED_BYTES, _EXPANDED_MULTIPLE * message.ByteSize()))
    return examples.array()


def _multi_inference(request: Any, signatures: Mapping[str, Signature]) -> list[Call]:
    examples = _examples(request.input)
    calls: list[Call] = []
    for task in request.tasks:
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if any(call.signature == name for call in calls):
            raise BackendError(Code.INVALID_ARGUMENT, f"Duplicate evaluation of signature: {name}")
        if name not in signatures:
            raise BackendError(Code.INVALID_ARGUMENT, f"Requested signature not found in model graph: {name}")
        if task.method_name not in (_CLASSIFY, _REGRESS):
            raise BackendError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        calls.append(_on_examples(name, signatures[name], task.method_name, examples))
    return calls
