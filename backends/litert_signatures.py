"""The signatures of a TensorFlow Lite model, from LiteRT and the model's metadata, and how each runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from backends.contract import DEFAULT_SIGNATURE, Signature, TensorSpec
from backends.dtypes import BY_NUMPY, STRING
from backends.litert_plans import ByKey, ByTensor, Declared, Plan
from backends.tflite_model import NamedSignature

__all__ = ["UnsupportedError", "plan_of_file", "plans_of"]

_PREDICT = "tensorflow/serving/predict"


class UnsupportedError(Exception):
    """A signature that cannot be served; the message says why."""


def plans_of(
    interpreter: Interpreter, in_metadata: Mapping[str, NamedSignature]
) -> tuple[dict[str, Plan], dict[str, str]]:
    """Return the plans of a model's signatures, and why each other signature cannot be served.

    In this order: TensorFlow Serving's own metadata; the model's table of signatures, which the converter has written
    since TensorFlow 2.5; and, if neither has a serving_default, one that is named after the tensors. The second is
    ours: TensorFlow Serving does not know the table.
    """
    plans: dict[str, Plan] = {}
    unsupported: dict[str, str] = {}

    def add(name: str, make: Any) -> None:
        try:
            plans[name] = make()
        except UnsupportedError as error:
            unsupported[name] = str(error)

    for key, named in sorted(in_metadata.items()):
        add(key, lambda named=named: _named_plan(interpreter, named))
    if not in_metadata:
        for key in sorted(interpreter.get_signature_list()):
            add(key, lambda key=key: _key_plan(interpreter, key))
    if DEFAULT_SIGNATURE not in plans and DEFAULT_SIGNATURE not in unsupported:
        add(DEFAULT_SIGNATURE, lambda: _tensor_plan(interpreter))
    return plans, unsupported


def plan_of_file(interpreter: Interpreter) -> Plan:
    """Return the plan of a converted file, see `FormSignature`: its one signature, or its tensors by name."""
    keys = list(interpreter.get_signature_list())
    if len(keys) == 1:
        return _key_plan(interpreter, keys[0])
    return _by_tensor(_details_of(interpreter.get_input_details), _details_of(interpreter.get_output_details), _PREDICT)


def _key_plan(interpreter: Interpreter, key: str) -> ByKey:
    runner = interpreter.get_signature_runner(key)
    inputs, outputs = _details_of(runner.get_input_details), _details_of(runner.get_output_details)
    if "self" in inputs:
        raise UnsupportedError("LiteRT's runner takes no input of the name 'self'; rename it")
    return ByKey(key, _signature(inputs, outputs, _PREDICT), _declared(inputs))


def _named_plan(interpreter: Interpreter, named: NamedSignature) -> ByTensor:
    sides = []
    for aliases, details in (
        (named.inputs, _details_of(interpreter.get_input_details)),
        (named.outputs, _details_of(interpreter.get_output_details)),
    ):
        by_name = {detail["name"]: detail for detail in details.values()}
        side: dict[str, dict[str, Any]] = {}
        for alias, tensor in sorted(aliases.items()):
            # Early converters dropped the ":0" of the tensors that the signature names.
            name = tensor.name if tensor.name in by_name else tensor.name.partition(":")[0]
            if name not in by_name:
                raise UnsupportedError(f"{alias!r} references an unknown tensor {tensor.name!r}")
            shape = {"served_shape": tensor.shape} if tensor.has_shape else {}
            side[alias] = {**by_name[name], **shape}
        sides.append(side)
    inputs, outputs = sides
    left_out = {d["name"] for d in _details_of(interpreter.get_input_details).values()} - {
        d["name"] for d in inputs.values()
    }
    if left_out:  # they would keep the values of another request
        raise UnsupportedError(f"it leaves out the model's inputs {sorted(left_out)}")
    return _by_tensor(inputs, outputs, named.method_name or _PREDICT)


def _tensor_plan(interpreter: Interpreter) -> ByTensor:
    """Return the signature that TensorFlow Serving makes if there is none: the tensors' names without their ":0"."""
    inputs, outputs = _details_of(interpreter.get_input_details), _details_of(interpreter.get_output_details)
    return _by_tensor(_by_short_name(inputs), _by_short_name(outputs), _PREDICT)


def _by_short_name(details: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    short = {name.partition(":")[0]: detail for name, detail in details.items()}
    # "PartitionedCall:0" and "PartitionedCall:1": TensorFlow Serving would lose one of them.
    return dict(sorted((short if len(short) == len(details) else details).items()))


def _by_tensor(
    inputs: Mapping[str, dict[str, Any]], outputs: Mapping[str, dict[str, Any]], method_name: str
) -> ByTensor:
    return ByTensor(
        _signature(inputs, outputs, method_name),
        _declared(inputs),
        {name: detail["index"] for name, detail in inputs.items()},
        {name: detail["index"] for name, detail in outputs.items()},
    )


def _details_of(get: Any) -> dict[str, dict[str, Any]]:
    """Return LiteRT's details of the inputs or outputs by name. Raise UnsupportedError."""
    try:
        found = get()
    except ValueError as error:  # an element type that NumPy lacks, such as bfloat16
        raise UnsupportedError(f"LiteRT cannot exchange one of its tensors: {error}") from error
    if isinstance(found, dict):
        return found
    details: dict[str, dict[str, Any]] = {}
    for detail in found:
        if not detail["name"] or detail["name"] in details:
            raise UnsupportedError(f"tensor name: {detail['name']} has multiple indices, or is missing")
        details[detail["name"]] = detail
    return details


def _signature(
    inputs: Mapping[str, dict[str, Any]], outputs: Mapping[str, dict[str, Any]], method_name: str
) -> Signature:
    return Signature(
        {name: _spec(name, detail) for name, detail in inputs.items()},
        {name: _spec(name, detail) for name, detail in outputs.items()},
        method_name,
    )


def _declared(inputs: Mapping[str, dict[str, Any]]) -> dict[str, Declared]:
    return {name: Declared(_shape(detail)) for name, detail in inputs.items()}


def _spec(alias: str, detail: dict[str, Any]) -> TensorSpec:
    dtype = np.dtype(detail["dtype"])
    element = STRING if dtype.kind == "S" else BY_NUMPY.get(dtype)
    if element is None:
        raise UnsupportedError(f"the tensor {alias!r} has the element type {dtype}")
    shape = detail["served_shape"] if "served_shape" in detail else _shape(detail)
    return TensorSpec(element.name, shape, detail["name"])


def _shape(detail: dict[str, Any]) -> tuple[int, ...]:
    # If its shape signature is missing, a tensor has the shape of the file, in which unknown sizes are 1.
    found = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return tuple(int(size) for size in found)
