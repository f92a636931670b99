"""Runs a TensorFlow Lite model by LiteRT, as TensorFlow Serving does: a pool of interpreters, one request on each.

Only worker processes import this module: it imports LiteRT, and never TensorFlow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from backends.artifact import Artifact, ArtifactSignature, is_artifact, read_artifact
from backends.contract import BackendError, Code, IncompleteError, Signature, TensorSpec
from backends.default_values import default_arrays
from backends.dtypes import BY_NUMPY, STRING
from backends.interpreter_pool import InterpreterPool
from backends.tflite_model import FILE, NamedSignature, read, signatures_in_metadata

_DEFAULT_SIGNATURE = "serving_default"
_PREDICT = "tensorflow/serving/predict"

# Beyond six dimensions XNNPACK gives up, and twelve crash its broadcasting kernels (LiteRT 2.3).
_MAX_RANK = 6
# LiteRT counts the elements of a tensor in 32 bits.
_MAX_ELEMENTS = 2**31 - 1

_POOL_SECONDS = 60.0
_TRIED_SIZES = (1, 8, 32, 128, 256)

# LiteRT appends which operator failed without a space in between.
_NODE = re.compile(r"(?<=\S)(?=Node number \d+ \()")


def load(path: str, intra_op_threads: int = 0, interpreters: int = 0) -> LiteRTBackend:
    """Loads `model.tflite` of the folder `path`, or the converted model that is there: at most `interpreters` (0: one
    for each core) run at once of each file, each on `intra_op_threads` threads (0: one).

    Raises BackendError where LiteRT refuses the model.
    """
    size = interpreters or len(os.sched_getaffinity(0))
    try:
        if is_artifact(path, FILE):
            return _load_artifact(path, read_artifact(path), intra_op_threads or 1, size)
        return _load_model(path, intra_op_threads or 1, size)
    except IncompleteError as error:  # it was complete a moment ago
        raise BackendError(Code.FAILED_PRECONDITION, f"cannot load {path}: {error}") from error
    except BackendError as error:
        raise BackendError(error.code, f"cannot load {path}: {error.message}") from error


def _pool(content: bytes, threads: int, size: int) -> InterpreterPool[_Instance]:
    """Interpreters of one file. They share the weights as the file has them; each has its tensors and its packed
    weights. One that has failed is dropped: its tensors are half-resized, and LiteRT 2.3 would repeat its message in
    the next."""
    return InterpreterPool(lambda: _Instance(content, threads), size, _POOL_SECONDS)


def _allocate(pool: InterpreterPool[_Instance]) -> None:
    """Has an interpreter plan its memory, for what LiteRT cannot run shows then. Unknown sizes are 1 in the file, where
    a model of images of any size has nothing to compute, so larger ones are tried too. Raises BackendError."""
    with _refusing(), pool.borrow() as instance:
        sizes = _TRIED_SIZES if instance.unknown_sizes() else _TRIED_SIZES[:1]
    refusal = ""
    for size in sizes:
        try:
            with _refusing(), pool.borrow() as instance:
                instance.allocate(size)
        except BackendError as error:
            refusal = refusal or error.message
        else:
            return
    tried = f" (with each of {', '.join(map(str, sizes))} for its unknown sizes)" if len(sizes) > 1 else ""
    raise BackendError(Code.INVALID_ARGUMENT, refusal + tried)


def _load_model(path: str, threads: int, size: int) -> LiteRTBackend:
    content = read(path)
    pool = _pool(content, threads, size)
    _allocate(pool)
    with _refusing(), pool.borrow() as instance:
        plans, unsupported = _plans(instance.interpreter, signatures_in_metadata(content))
    if not plans:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unsupported.items())
        raise BackendError(Code.UNIMPLEMENTED, f"no signature of it can be served: {reasons}")
    return LiteRTBackend(dict.fromkeys(plans, pool), plans, unsupported)


def _load_artifact(path: str, artifact: Artifact, threads: int, size: int) -> LiteRTBackend:
    """A converted model: the signatures of the SavedModel, which share the interpreters of their files."""
    if artifact.format != "tflite":
        raise BackendError(Code.INVALID_ARGUMENT, f"it is converted to {artifact.format}, not to tflite")
    by_file: dict[str, tuple[InterpreterPool[_Instance], _Plan]] = {}
    pools: dict[str, InterpreterPool[_Instance]] = {}
    plans: dict[str, _Plan] = {}
    for name, entry in sorted(artifact.signatures.items()):
        if entry.file not in by_file:
            pool = _pool(read(path, entry.file), threads, size)
            _allocate(pool)
            try:
                with _refusing(), pool.borrow() as instance:
                    by_file[entry.file] = pool, _plan_of_file(instance.interpreter)
            except _UnsupportedError as error:
                raise BackendError(Code.UNIMPLEMENTED, f"{entry.file} cannot be served: {error}") from error
        pools[name], plan = by_file[entry.file]
        plans[name] = _mapped(name, entry, plan)
    return LiteRTBackend(pools, plans, {})


class LiteRTBackend:
    """A TensorFlow Lite model; see `load`. Implements `backends.contract.Backend`.

    `signatures` are those that can be served; `unsupported` says of each other one why not.
    """

    def __init__(
        self,
        pools: Mapping[str, InterpreterPool[_Instance]],
        plans: Mapping[str, _Plan],
        unsupported: Mapping[str, str],
    ) -> None:
        self.signatures: dict[str, Signature] = {name: plan.signature for name, plan in plans.items()}
        self.unsupported = dict(unsupported)
        self._pools = dict(pools)
        self._plans = dict(plans)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Runs `signature`; see `Backend.run`.

        Shapes may differ from the signature's as far as `_Declared.check` allows; the interpreter is resized to them.
        """
        plan = self._plans.get(signature)
        if plan is None:
            reason = f" It cannot be served: {self.unsupported[signature]}" if signature in self.unsupported else ""
            raise BackendError(Code.FAILED_PRECONDITION, f'Serving signature key "{signature}" not found.{reason}')
        if inputs.keys() != plan.signature.inputs.keys():
            inputs = {**{name: array.copy() for name, array in plan.defaults.items()}, **inputs}
        if inputs.keys() != plan.signature.inputs.keys():
            raise BackendError(
                Code.INVALID_ARGUMENT,
                f"signature {signature!r} takes the inputs {sorted(plan.signature.inputs)}, but got {sorted(inputs)}",
            )
        for output in outputs:
            if output not in plan.signature.outputs:
                raise BackendError(
                    Code.INVALID_ARGUMENT,
                    f"output tensor alias not found in signature: {output} Outputs expected to be in the set "
                    f"{{{','.join(sorted(plan.signature.outputs))}}}.",
                )
        for name, declared in plan.declared.items():
            declared.check(name, inputs[name].shape)
        with _refusing(), self._pools[signature].borrow() as instance:
            return plan.run(instance, inputs, outputs)


@dataclass(frozen=True, slots=True)
class _Declared:
    """The shape of an input as the model has it, -1 where any size fits."""

    shape: tuple[int, ...]
    strict: bool = False

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises BackendError for a shape that LiteRT must not see: it computes nonsense on some instead of refusing.

        A 1 may be any size, as in TensorFlow Serving: early converters wrote 1 for an unknown size, so its own example
        feeds [3] to an input of [1, 1]. Where that leaves nothing fixed, the rank is free too. Not so where it is
        `strict`: our own converters write -1.
        """
        free = (-1,) if self.strict else (-1, 1)
        fixed = [(axis, size) for axis, size in enumerate(self.shape) if size not in free]
        if (fixed or self.strict) and (
            len(shape) != len(self.shape) or any(shape[axis] != size for axis, size in fixed)
        ):
            raise BackendError(
                Code.INVALID_ARGUMENT,
                f"input {name!r} has the shape {_text(shape)}; the model takes {_text(self.shape)}",
            )
        if len(shape) > max(_MAX_RANK, len(self.shape)):
            raise BackendError(
                Code.INVALID_ARGUMENT,
                f"input {name!r} has {len(shape)} dimensions; a TensorFlow Lite model takes at most "
                f"{max(_MAX_RANK, len(self.shape))}",
            )
        elements = 1
        for size in shape:
            elements *= max(size, 1)
        if elements > _MAX_ELEMENTS:
            raise BackendError(
                Code.INVALID_ARGUMENT,
                f"input {name!r} has the shape {_text(shape)}; a TensorFlow Lite model takes at most "
                f"{_MAX_ELEMENTS:,} elements",
            )


def _text(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


class _Plan(Protocol):
    """How to run a signature."""

    @property
    def signature(self) -> Signature: ...

    @property
    def declared(self) -> Mapping[str, _Declared]: ...

    @property
    def defaults(self) -> Mapping[str, np.ndarray]: ...

    def run(
        self, instance: _Instance, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> list[np.ndarray]: ...


@dataclass(frozen=True, slots=True)
class _ByKey:
    """A signature of the model's own table, which has a subgraph of its own: LiteRT's runner knows its tensors."""

    key: str
    signature: Signature
    declared: Mapping[str, _Declared]
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)

    def run(self, instance: _Instance, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        results = instance.runner(self.key)(**inputs)
        return [results[name] for name in outputs]


@dataclass(frozen=True, slots=True)
class _ByTensor:
    """A signature of aliases for tensors (by number) of the first subgraph."""

    signature: Signature
    declared: Mapping[str, _Declared]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    defaults: Mapping[str, np.ndarray] = field(default_factory=dict)

    def run(self, instance: _Instance, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        interpreter = instance.without_runners()
        for name, array in inputs.items():
            interpreter.resize_tensor_input(self.inputs[name], array.shape)  # nothing to do for the shape it has
        interpreter.allocate_tensors()
        for name, array in inputs.items():
            interpreter.set_tensor(self.inputs[name], array)
        interpreter.invoke()
        return [interpreter.get_tensor(self.outputs[name]) for name in outputs]


@dataclass(frozen=True, slots=True)
class _Mapped:
    """A signature of the SavedModel that was converted: `inputs` and `outputs` lead to the names of `plan`."""

    plan: _Plan
    signature: Signature
    declared: Mapping[str, _Declared]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    defaults: Mapping[str, np.ndarray]

    def run(self, instance: _Instance, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        given = {inner: inputs[alias] for alias, inner in self.inputs.items()}
        return self.plan.run(instance, given, [self.outputs[alias] for alias in outputs])


class _Instance:
    """An interpreter, and the runners made from it. For one thread at a time."""

    def __init__(self, content: bytes, threads: int) -> None:
        self.interpreter = Interpreter(model_content=content, num_threads=threads)
        self._runners: dict[str, Any] = {}

    def unknown_sizes(self) -> dict[int, list[int]]:
        """The shapes of the inputs that have unknown sizes besides the batch's, by the numbers of their tensors; -1 for
        each unknown one."""
        try:
            details = self.interpreter.get_input_details()
        except ValueError:  # an element type that NumPy has not: see _details_of
            return {}
        shapes = {detail["index"]: [int(size) for size in detail["shape_signature"]] for detail in details}
        return {index: shape for index, shape in shapes.items() if -1 in shape[1:]}

    def allocate(self, size: int) -> None:
        """Plans memory with `size` for each unknown size, and a batch of 1."""
        for index, shape in self.unknown_sizes().items():
            sizes = [abs(shape[0]), *(size if known < 0 else known for known in shape[1:])]
            self.interpreter.resize_tensor_input(index, sizes)
        self.interpreter.allocate_tensors()

    def runner(self, key: str) -> Any:
        if key not in self._runners:
            self._runners[key] = self.interpreter.get_signature_runner(key)
        return self._runners[key]

    def without_runners(self) -> Interpreter:
        """The interpreter for direct use, which it refuses while a runner refers to it."""
        self._runners.clear()
        return self.interpreter


@contextmanager
def _refusing() -> Iterator[None]:
    """What LiteRT raises becomes a BackendError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise BackendError(Code.INVALID_ARGUMENT, _message(error)) from error
    except MemoryError as error:
        raise BackendError(Code.RESOURCE_EXHAUSTED, "there is not enough memory for these inputs") from error


def _message(error: Exception) -> str:
    text = " ".join(_NODE.sub("; ", str(error)).split())
    if "custom op" in text or "Select TensorFlow op" in text:
        text += " (LiteRT lacks this operator: convert with tf.lite.OpsSet.TFLITE_BUILTINS, or serve the SavedModel)"
    return text


class _UnsupportedError(Exception):
    """A signature that cannot be served; the message says why."""


def _plans(
    interpreter: Interpreter, in_metadata: Mapping[str, NamedSignature]
) -> tuple[dict[str, _Plan], dict[str, str]]:
    """The signatures of a model, and of those that cannot be served the reasons.

    In this order: TensorFlow Serving's own metadata; the model's table of signatures, which the converter has written
    since TensorFlow 2.5; and, where neither has a serving_default, one that is named after the tensors. The
    second is ours: TensorFlow Serving does not know the table.
    """
    plans: dict[str, _Plan] = {}
    unsupported: dict[str, str] = {}

    def add(name: str, make: Any) -> None:
        try:
            plans[name] = make()
        except _UnsupportedError as error:
            unsupported[name] = str(error)

    for key, named in sorted(in_metadata.items()):
        add(key, lambda named=named: _named_plan(interpreter, named))
    if not in_metadata:
        for key in sorted(interpreter.get_signature_list()):
            add(key, lambda key=key: _key_plan(interpreter, key))
    if _DEFAULT_SIGNATURE not in plans and _DEFAULT_SIGNATURE not in unsupported:
        add(_DEFAULT_SIGNATURE, lambda: _tensor_plan(interpreter))
    return plans, unsupported


def _plan_of_file(interpreter: Interpreter) -> _Plan:
    """How to run a converted file, see `ArtifactSignature`: its one signature, or else its tensors by name."""
    keys = list(interpreter.get_signature_list())
    if len(keys) == 1:
        return _key_plan(interpreter, keys[0])
    return _by_tensor(_details_of(interpreter.get_input_details), _details_of(interpreter.get_output_details), _PREDICT)


def _mapped(name: str, entry: ArtifactSignature, plan: _Plan) -> _Mapped:
    """Raises BackendError where the file has not what the signature needs, or needs what the signature has not."""

    def mismatch(why: str) -> BackendError:
        return BackendError(Code.INVALID_ARGUMENT, f"its signature {name!r} does not fit {entry.file}: {why}")

    signature = entry.signature
    for specs, names, found, what in (
        (signature.inputs, entry.inputs, plan.signature.inputs, "input"),
        (signature.outputs, entry.outputs, plan.signature.outputs, "output"),
    ):
        for alias, inner in names.items():
            if inner not in found:
                raise mismatch(f"its {what} {alias!r} is {inner!r} there, which it has not")
            if found[inner].dtype != specs[alias].dtype:
                raise mismatch(f"its {what} {alias!r} is {specs[alias].dtype}, there {found[inner].dtype}")
    if missing := sorted(plan.signature.inputs.keys() - set(entry.inputs.values())):
        raise mismatch(f"nothing is given to the inputs {missing} there")
    return _Mapped(
        plan,
        signature,
        {
            alias: _Declared(plan.declared[inner].shape, strict=signature.inputs[alias].shape is not None)
            for alias, inner in entry.inputs.items()
        },
        entry.inputs,
        entry.outputs,
        default_arrays(signature),
    )


def _key_plan(interpreter: Interpreter, key: str) -> _ByKey:
    runner = interpreter.get_signature_runner(key)
    inputs, outputs = _details_of(runner.get_input_details), _details_of(runner.get_output_details)
    if "self" in inputs:
        raise _UnsupportedError("LiteRT's runner takes no input of the name 'self'; rename it")
    return _ByKey(key, _signature(inputs, outputs, _PREDICT), _declared(inputs))


def _named_plan(interpreter: Interpreter, named: NamedSignature) -> _ByTensor:
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
                raise _UnsupportedError(f"{alias!r} references an unknown tensor {tensor.name!r}")
            shape = {"served_shape": tensor.shape} if tensor.has_shape else {}
            side[alias] = {**by_name[name], **shape}
        sides.append(side)
    inputs, outputs = sides
    left_out = {d["name"] for d in _details_of(interpreter.get_input_details).values()} - {
        d["name"] for d in inputs.values()
    }
    if left_out:  # they would keep what another request gave them
        raise _UnsupportedError(f"it leaves out the model's inputs {sorted(left_out)}")
    return _by_tensor(inputs, outputs, named.method_name or _PREDICT)


def _tensor_plan(interpreter: Interpreter) -> _ByTensor:
    """The signature that TensorFlow Serving makes where there is none: the tensors' names without their ":0"."""
    inputs, outputs = _details_of(interpreter.get_input_details), _details_of(interpreter.get_output_details)
    return _by_tensor(_by_short_name(inputs), _by_short_name(outputs), _PREDICT)


def _by_short_name(details: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    short = {name.partition(":")[0]: detail for name, detail in details.items()}
    # "PartitionedCall:0" and "PartitionedCall:1": TensorFlow Serving would lose one of them.
    return dict(sorted((short if len(short) == len(details) else details).items()))


def _by_tensor(
    inputs: Mapping[str, dict[str, Any]], outputs: Mapping[str, dict[str, Any]], method_name: str
) -> _ByTensor:
    return _ByTensor(
        _signature(inputs, outputs, method_name),
        _declared(inputs),
        {name: detail["index"] for name, detail in inputs.items()},
        {name: detail["index"] for name, detail in outputs.items()},
    )


def _details_of(get: Any) -> dict[str, dict[str, Any]]:
    """What LiteRT says of the inputs or outputs, by name."""
    try:
        found = get()
    except ValueError as error:  # an element type that NumPy has not, such as bfloat16
        raise _UnsupportedError(f"LiteRT cannot exchange one of its tensors: {error}") from error
    if isinstance(found, dict):
        return found
    details: dict[str, dict[str, Any]] = {}
    for detail in found:
        if not detail["name"] or detail["name"] in details:
            raise _UnsupportedError(f"tensor name: {detail['name']} has multiple indices, or is missing")
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


def _declared(inputs: Mapping[str, dict[str, Any]]) -> dict[str, _Declared]:
    return {name: _Declared(_shape(detail)) for name, detail in inputs.items()}


def _spec(alias: str, detail: dict[str, Any]) -> TensorSpec:
    dtype = np.dtype(detail["dtype"])
    element = STRING if dtype.kind == "S" else BY_NUMPY.get(dtype)
    if element is None:
        raise _UnsupportedError(f"the tensor {alias!r} has the element type {dtype}")
    shape = detail["served_shape"] if "served_shape" in detail else _shape(detail)
    return TensorSpec(element.name, shape, detail["name"])


def _shape(detail: dict[str, Any]) -> tuple[int, ...]:
    # Without a signature of its shape, a tensor has the one of the file, in which unknown sizes are 1.
    found = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return tuple(int(size) for size in found)
