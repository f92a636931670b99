"""The messages of Classify, Regress and MultiInference, from bytes to values and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.core.errors import Code, ServingError
from appliance.core.servable import ModelSpec
from appliance.protocols import protos
from appliance.protocols.classify_regress import Method, Regression, Result, Task, labels_of
from appliance.protocols.example_inputs import Examples, examples_of
from appliance.protocols.predict_messages import model_spec
from appliance.protocols.wire_format import UnusualError, checked_fields, field

__all__ = [
    "ExamplesMessage",
    "MultiMessage",
    "decode_multi_request",
    "decode_request",
    "encode_multi_response",
    "encode_response",
]

_FLOAT = np.dtype("<f4")

_SMALL_BYTES = 1 << 17  # a smaller request cannot have so many fields that it matters
_MAX_FIELDS = 10_000
_INPUT = 2  # the field that has the examples, in every message
_MAX_EXAMPLES = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class ExamplesMessage:
    """A ClassificationRequest or a RegressionRequest."""

    spec: ModelSpec
    signature_name: str
    examples: Examples


@dataclass(frozen=True, slots=True, eq=False)
class MultiMessage:
    """A MultiInferenceRequest.

    `spec` is the first task's; `wanted` has each task's names of model, signature and method.
    """

    spec: ModelSpec
    wanted: tuple[tuple[str, str, str], ...]
    examples: Examples


def decode_request(data: bytes) -> ExamplesMessage:
    """Return the request that `data` serializes. Its examples are sliced but not parsed: their model parses them.

    Raise ServingError (INVALID_ARGUMENT) for any invalid bytes.
    """
    _check_fields(data)
    request = _parse(protos.ExamplesRequest, data)
    if not request.HasField("model_spec"):
        raise _refusal("Missing ModelSpec", "set model_spec.name")
    spec = request.model_spec
    return ExamplesMessage(model_spec(spec), spec.signature_name, examples_of(request.input))


def decode_multi_request(data: bytes) -> MultiMessage:
    """Return the MultiInferenceRequest that `data` serializes, like `decode_request`.

    Raise ServingError (INVALID_ARGUMENT) for any invalid bytes, and if there is no task.
    """
    _check_fields(data)
    request = _parse(protos.TasksRequest, data)
    if not request.tasks:
        raise _refusal("ModelSpec has no name specified.", "send at least one task")
    wanted = tuple([(one.model_spec.name, one.model_spec.signature_name, one.method_name) for one in request.tasks])
    return MultiMessage(model_spec(request.tasks[0].model_spec), wanted, examples_of(request.input))


def _check_fields(data: bytes) -> None:
    """Raise INVALID_ARGUMENT for so many examples or tasks that parsing them would hold up others."""
    if len(data) <= _SMALL_BYTES:
        return
    try:
        for number, start, stop in checked_fields(data, 0, len(data), _MAX_FIELDS):
            if number == _INPUT:
                for _, list_start, list_stop in checked_fields(data, start, stop, _MAX_FIELDS):
                    for _ in checked_fields(data, list_start, list_stop, _MAX_EXAMPLES):
                        pass
    except ValueError as error:
        raise _refusal(
            f"The request has more than {error.args[0]:,} examples, tasks or other fields", "send fewer at once"
        ) from None
    except (UnusualError, IndexError):
        raise _refusal("The request could not be parsed", "send it as its method's message") from None


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError and, for bad text, UnicodeDecodeError
        raise _refusal(f"The request could not be parsed: {error}", "send it as its method's message") from None


def encode_response(model: str, version: int, done: Task, result: Result) -> bytes:
    """Return a serialized ClassificationResponse or RegressionResponse."""
    return field(1, _encoded(result)) + field(2, _spec(model, version, done.signature_name))


def encode_multi_response(model: str, version: int, done: Sequence[Task], results: Sequence[Result]) -> bytes:
    """Return a serialized MultiInferenceResponse, with the results in the order of the tasks."""
    return b"".join(
        [
            field(
                1,
                field(1, _spec(model, version, one.signature_name))
                + field(2 if one.method is Method.CLASSIFY else 3, _encoded(result)),
            )
            for one, result in zip(done, results, strict=True)
        ]
    )


def _spec(model: str, version: int, signature_name: str) -> bytes:
    spec = protos.ModelSpec(name=model, signature_name=signature_name)
    spec.version.value = version
    return bytes(spec.SerializeToString(deterministic=True))


def _encoded(result: Result) -> bytes:
    """Return a serialized ClassificationResult or RegressionResult.

    Messages that hold one float have the same size, so numpy writes all of them at once: 10,000 take 60 µs, and 5 ms
    through protobuf's objects.
    """
    if isinstance(result, Regression):
        return _float_messages(b"\x0d", result.values).tobytes()  # field 1, 4 bytes
    scores, classes = result.scores, result.classes
    if classes is not None:
        return _labelled(classes, scores)
    assert scores is not None  # every task asks for at least one of them
    rows = _float_messages(b"\x15", scores)  # field 2, 4 bytes
    return b"".join([field(1, row.tobytes()) for row in rows])


def _float_messages(tag: bytes, values: np.ndarray) -> np.ndarray:
    """Return for each of `values` a field 1 with a message whose only field is the value, with the tag `tag`."""
    record = np.dtype([("tag", "u1"), ("size", "u1"), ("value_tag", "u1"), ("value", _FLOAT)])
    messages = np.empty(values.shape, record)
    messages["tag"], messages["size"], messages["value_tag"] = 0x0A, 1 + _FLOAT.itemsize, tag[0]
    messages["value"] = values
    return messages


def _labelled(classes: np.ndarray, scores: np.ndarray | None) -> bytes:
    result = protos.ClassificationResponse().result
    rows: list[list[float]] = [[0.0] * classes.shape[1]] * len(classes) if scores is None else scores.tolist()
    for labels, row in zip(labels_of(classes), rows, strict=True):
        added = result.classifications.add().classes
        for label, score in zip(labels, row, strict=True):
            added.add(label=label, score=score)
    return bytes(result.SerializeToString())


def _refusal(message: str, remedy: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message, remedy)
