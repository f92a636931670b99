"""Classify and Regress: their checks of a signature, and the results from its outputs.

A batch of `tensorflow.Example`s goes in, one result for each example comes out. The codes and texts of the errors are
TensorFlow Serving's (`tensorflow_serving/servables/tensorflow/{util,classifier,regressor,multi_inference}.cc`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from appliance.core.errors import Code, ServingError
from backends.contract import DEFAULT_SIGNATURE, Signature
from backends.dtypes import STRING, of_array

__all__ = [
    "INPUTS",
    "Classification",
    "Method",
    "Regression",
    "Result",
    "Task",
    "TaskPlan",
    "WhyNot",
    "labels_of",
    "result_of",
    "task",
    "tasks",
]

INPUTS, _CLASSES, _SCORES, _OUTPUTS = "inputs", "classes", "scores", "outputs"

_FLOAT = np.dtype("<f4")
_MAX_QUOTED_CHARACTERS = 200


class Method(Enum):
    """The methods; the value is the method name that exporters give to such a signature."""

    CLASSIFY = "tensorflow/serving/classify"
    REGRESS = "tensorflow/serving/regress"

    @property
    def noun(self) -> str:
        return "classification" if self is Method.CLASSIFY else "regression"


# ---- Signatures


@dataclass(frozen=True, slots=True)
class Task:
    """One method on one signature that allows it: its only input is `INPUTS`; `outputs` are those to request."""

    method: Method
    signature_name: str
    outputs: tuple[str, ...]


WhyNot = Callable[[str], str]
"""Returns why a signature of the model is not served, by its name; "" if the model does not have it."""

TaskPlan = Callable[[Mapping[str, Signature], WhyNot], tuple[Task, ...]]
"""Returns what a request runs on a version, from its signatures and why others are not served; raises ServingError."""


def task(
    method: Method,
    signature_name: str,
    signatures: Mapping[str, Signature],
    check_method_name: bool,
    why_not: WhyNot = lambda _: "",
) -> Task:
    """Return the task of `method` on the signature of that name ("": the default one).

    `check_method_name`: whether the exporter's method name must match too; models of TensorFlow 2 have predict's on
    every signature. `why_not`: see `VersionRoute.why_not`.

    Raise ServingError (INVALID_ARGUMENT) if there is no such signature, or if it does not allow the method.
    """
    name = signature_name or DEFAULT_SIGNATURE
    signature = signatures.get(name)
    if signature is None:
        raise _refusal(f"No signature was found with the name: {_cut(name)}", why_not(name) or _known(signatures))
    checked = _checked(method, name, signature, check_method_name)
    _check_parse([checked], signatures)
    return checked


def tasks(
    wanted: Sequence[tuple[str, str, str]],
    signatures: Mapping[str, Signature],
    check_method_name: bool,
    why_not: WhyNot = lambda _: "",
) -> tuple[Task, ...]:
    """Return MultiInference's tasks, from each one's names of model, signature and method.

    `signatures` are those of the first one's model. Each signature gets the same examples, whatever its input tensor is
    called in the graph, because in a TensorFlow 2 export every signature has an input tensor of its own.

    Raise ServingError for the first task that is wrong: INVALID_ARGUMENT if it names no model or another one, or if its
    signature occurs twice, does not exist, or does not allow its method; UNIMPLEMENTED for other methods. Last, raise
    INVALID_ARGUMENT if a signature does not parse examples.
    """
    found: dict[str, Task] = {}
    for model, signature_name, method_name in wanted:
        if not model:
            raise _refusal("Found ModelSpec with an empty model name.", "set model_spec.name in every task")
        if model != wanted[0][0]:
            raise _refusal(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
                f"they name {_cut(', '.join(sorted({other for other, _, _ in wanted})))}",
            )
        name = signature_name or DEFAULT_SIGNATURE
        if name in found:
            raise _refusal(f"Duplicate evaluation of signature: {_cut(name)}", "name each signature once")
        signature = signatures.get(name)
        if signature is None:
            message = f"Requested signature not found in model graph: {_cut(name)}"
            raise _refusal(message, why_not(name) or _known(signatures))
        methods = [method for method in Method if method.value == method_name]
        if not methods:
            raise ServingError(
                Code.UNIMPLEMENTED,
                f"Unsupported signature method_name: {_cut(method_name)}",
                f"use {' or '.join(method.value for method in Method)}",
            )
        found[name] = _checked(methods[0], name, signature, check_method_name)
    _check_parse(found.values(), signatures)
    return tuple(found.values())


def _checked(method: Method, name: str, signature: Signature, check_method_name: bool) -> Task:
    noun, text = method.noun, _text(signature)
    if check_method_name and signature.method_name != method.value:
        raise _refusal(
            f"Expected {noun} signature method_name to be {method.value}. Was: {_cut(signature.method_name)}",
            "enable_signature_method_name_check is on",
        )
    if len(signature.inputs) != 1:
        raise _refusal("Expected one input Tensor.", f"signature {_cut(name)} has {text}")
    if method is Method.CLASSIFY and len(signature.outputs) not in (1, 2):
        raise _refusal(
            f"Expected one or two output Tensors, found {len(signature.outputs)}",
            f"signature {_cut(name)} has {text}",
        )
    if method is Method.REGRESS and len(signature.outputs) != 1:
        raise _refusal("Expected one output Tensor.", f"signature {_cut(name)} has {text}")
    if INPUTS not in signature.inputs:
        raise _refusal(f"No {noun} inputs found in SignatureDef: {text}", f'the input has to be called "{INPUTS}"')
    if method is Method.CLASSIFY:
        outputs = tuple([output for output in (_CLASSES, _SCORES) if output in signature.outputs])
        if not outputs:
            raise _refusal(
                f'Expected classification signature outputs to contain at least one of "{_CLASSES}" or "{_SCORES}". '
                f"Signature was: {text}"
            )
    elif _OUTPUTS not in signature.outputs:
        raise _refusal(f"No {noun} outputs found in SignatureDef: {text}", f'the output has to be called "{_OUTPUTS}"')
    else:
        outputs = (_OUTPUTS,)
    return Task(method, name, outputs)


def _check_parse(checked: Collection[Task], signatures: Mapping[str, Signature]) -> None:
    """Raise INVALID_ARGUMENT for a signature that takes no serialized examples, as TensorFlow does when it runs it.

    TensorFlow Serving runs all tasks at once, and feeds each input tensor once, in the order of their names: the error
    has the index of the first wrong tensor.
    """
    tensors = {one.signature_name: signatures[one.signature_name].inputs[INPUTS].tensor_name for one in checked}
    order = sorted(set(tensors.values()))
    for one in sorted(checked, key=lambda one: tensors[one.signature_name]):
        element = signatures[one.signature_name].inputs[INPUTS].element
        if element is not STRING:
            raise _refusal(
                f"Expects arg[{order.index(tensors[one.signature_name])}] to be {element.label} but string is provided",
                f"{one.method.noun} sends serialized examples, which signature {_cut(one.signature_name)} does not "
                "parse; use predict",
            )


def _text(signature: Signature) -> str:
    sides = [
        ", ".join(f"{_cut(name)}: {spec.element.proto_name}" for name, spec in sorted(side.items()))
        for side in (signature.inputs, signature.outputs)
    ]
    return _cut(f"inputs {{{sides[0]}}}, outputs {{{sides[1]}}}")


def _known(signatures: Mapping[str, Signature]) -> str:
    return f"the model has {_cut(', '.join(sorted(signatures))) or 'none'}"


# ---- Results


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """The classes of each example. One of the two may be None.

    `classes`: [examples, classes] object (`bytes`); `scores`: [examples, classes] float32.
    """

    classes: np.ndarray | None
    scores: np.ndarray | None


@dataclass(frozen=True, slots=True, eq=False)
class Regression:
    """The value of each example: [examples] float32."""

    values: np.ndarray


Result = Classification | Regression


def result_of(done: Task, outputs: Mapping[str, np.ndarray], examples: int) -> Result:
    """Return the result of a task for each example from the model's outputs.

    Raise ServingError (INVALID_ARGUMENT) for outputs that do not have one row for each example.
    """
    if done.method is Method.REGRESS:
        return Regression(_regression(outputs[_OUTPUTS], examples))
    classes = _classification(_CLASSES, outputs[_CLASSES], "string", examples) if _CLASSES in outputs else None
    scores = _classification(_SCORES, outputs[_SCORES], "float32", examples) if _SCORES in outputs else None
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise _refusal(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    return Classification(classes, scores)


def _classification(name: str, array: np.ndarray, dtype: str, examples: int) -> np.ndarray:
    if array.ndim != 2:
        raise _refusal(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
    element = of_array(array)
    if element.name != dtype:
        wanted = "DT_STRING" if dtype == "string" else "DT_FLOAT"
        raise _refusal(f"Expected {name} Tensor of {wanted}. Got: {element.proto_name}")
    if len(array) != examples:
        raise _refusal(f"Expected {name} output batch size of {examples}. Got: {len(array)}")
    return array


def _regression(array: np.ndarray, examples: int) -> np.ndarray:
    if array.ndim != 1 and not (array.ndim == 2 and array.shape[1] == 1):
        raise _refusal(
            f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {_shape(array)}"
        )
    if len(array) != examples:
        raise _refusal(f"Input batch size did not match output batch size: {examples} vs. {len(array)}")
    element = of_array(array)
    if element.name != "float32":
        raise _refusal(f"Expected output Tensor of DT_FLOAT.  Got: {element.proto_name}")
    return array.reshape(-1)


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def labels_of(classes: np.ndarray) -> list[list[str]]:
    """Return the labels as text, [examples][classes].

    Raise ServingError (INVALID_ARGUMENT) for a label that is not UTF-8, because the protocol's strings must be.
    """
    try:
        return [[label.decode() for label in row] for row in classes]
    except UnicodeDecodeError as error:
        raise _refusal(
            f"The model's output {_CLASSES} holds bytes that are not UTF-8 text: {error.object[:20]!r}",
            "ask for it by predict",
        ) from None


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED_CHARACTERS else text[:_MAX_QUOTED_CHARACTERS] + "..."


def _refusal(message: str, remedy: str = "") -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message, remedy)
