"""Run a SavedModel by TensorFlow, as TensorFlow Serving does: the graph in a Session, one callable per signature.

Only worker processes import this module, because it imports TensorFlow.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, struct_pb2

from backends.contract import BackendError, Code, Signature, TensorSpec
from backends.dtypes import BY_NUMBER, REFERENCE
from backends.graph_effects import effects
from backends.request_checks import check_outputs, complete, not_found
from backends.tensorflow_loading import OP_SIGNATURES, backend_error, opened
from backends.tensorflow_weights import Weights

# A callable holds compiled executors, and clients choose output filters: without a bound they could fill the memory.
_MAX_CALLABLES = 64

# Defaults are metadata, which every front holds for every signature.
_MAX_DEFAULTS_BYTES = 16 << 20


def load(
    path: str,
    tags: Sequence[str] = ("serve",),
    intra_op_threads: int = 0,
    inter_op_threads: int = 0,
    session_config_file: str = "",
) -> TensorFlowBackend:
    """Load the graph with exactly `tags` of the SavedModel in the folder `path`, and run its initialisers.

    The backend's remarks tell if `backends.tensorflow_loading` had to deviate from TensorFlow Serving's way. 0 threads
    leave the number to `session_config_file` (a ConfigProto in protobuf's text format), and without it to TensorFlow:
    one for each core. The first load in a process decides for all. Raise BackendError if TensorFlow refuses the model.
    """
    found = opened(path, tags, _session_config(session_config_file, intra_op_threads, inter_op_threads))
    return TensorFlowBackend(found.session, found.meta_graph, found.remarks, found.kept)


def _session_config(file: str, intra_op_threads: int, inter_op_threads: int) -> config_pb2.ConfigProto:
    config = config_pb2.ConfigProto(
        allow_soft_placement=True,
        # The workers of several models share one GPU; by default, the first would take all of its memory.
        gpu_options=config_pb2.GPUOptions(allow_growth=True),
    )
    if file:
        written = config_pb2.ConfigProto()
        try:
            with open(file, encoding="utf-8") as text:
                text_format.Parse(text.read(), written)
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            raise BackendError(
                Code.INVALID_ARGUMENT, f"tensorflow_session_config_file {file} is no tensorflow.ConfigProto: {error}"
            ) from error
        config.MergeFrom(written)
    if intra_op_threads:
        config.intra_op_parallelism_threads = intra_op_threads
    if inter_op_threads:
        config.inter_op_parallelism_threads = inter_op_threads
    return config


class TensorFlowBackend:
    """A SavedModel in its own session; see `load`.

    Implements `backends.contract.Backend`, `Remarked`, `Partial`, `Changing` and `Weighted`.

    `signatures` are those that can be served; `unsupported` says why each other one is not: sparse tensors and element
    types outside `backends.dtypes`, which TensorFlow Serving cannot carry either.
    """

    def __init__(
        self, session: Any, meta_graph: meta_graph_pb2.MetaGraphDef, remarks: Sequence[str] = (), kept: Any = None
    ) -> None:
        self.remarks = tuple(remarks)
        self.signatures: dict[str, Signature] = {}
        self.unsupported: dict[str, str] = {}
        self._defaults: dict[str, dict[str, np.ndarray]] = {}
        for name, signature_def in sorted(meta_graph.signature_def.items()):
            if name in OP_SIGNATURES:
                continue
            try:
                found = _signature(signature_def)
                self._defaults[name] = _default_arrays(signature_def, found)
                self.signatures[name] = found
            except _UnsupportedTensorError as error:
                self.unsupported[name] = str(error)
        found_effects = effects(meta_graph.graph_def, self.signatures)
        self.changing, self.outside = found_effects.changing, found_effects.outside
        self._session = session
        self._kept = kept  # must live as long as the session
        self._plan = functools.lru_cache(_MAX_CALLABLES)(self._make_plan)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Run `signature`; see `Backend.run`. Shapes are checked by the graph, not against the signature.

        TensorFlow Serving does not compare shapes with the signature either: its own example feeds [3] to a signature
        that says [-1, 1].
        """
        plan = self._plan(signature, tuple(outputs))
        inputs = complete(signature, plan.signature, inputs, self._defaults[signature])
        feeds = [inputs[name] for name in plan.signature.inputs]
        if plan.execute is None:
            fetched = []
        else:
            try:
                fetched = [_as_array(value) for value in plan.execute(*feeds)]
            except tf.errors.OpError as error:
                raise backend_error(error) from error
            except UnicodeDecodeError as error:
                # The runtime's message quotes bytes of an input, and TensorFlow's binding fails to decode it; the
                # status code is lost.
                raise BackendError(Code.INVALID_ARGUMENT, error.object.decode(errors="replace")) from error
        # TensorFlow feeds 64-byte aligned arrays without a copy, and passes them through Identity and Reshape: such an
        # output is the caller's input buffer, which must not be used after this call.
        results = [
            value.copy() if any(np.may_share_memory(value, feed) for feed in feeds) else value for value in fetched
        ]
        for position in plan.references:
            # It is the variable's own buffer, which the next request may change while this answer is written.
            results[position] = results[position].copy()
        if plan.echoes:
            for position, name in plan.echoes:
                results.insert(position, np.array(inputs[name], order="C"))
        return results

    def weights(self) -> list[np.ndarray]:
        """See `Weighted`."""
        return self._weights.get()

    def set_weights(self, values: Sequence[np.ndarray]) -> None:
        """See `Weighted`."""
        self._weights.set(values)

    @functools.cached_property
    def _weights(self) -> Weights:
        return Weights(self._session)

    def _make_plan(self, name: str, outputs: tuple[str, ...]) -> _Plan:
        signature = self.signatures.get(name)
        if signature is None:
            raise not_found(name, self.unsupported)
        check_outputs(signature, outputs)
        by_tensor = {spec.tensor_name: alias for alias, spec in signature.inputs.items()}
        fetches: list[str] = []
        echoes: list[tuple[int, str]] = []
        references: list[int] = []
        for position, output in enumerate(outputs):
            spec = signature.outputs[output]
            tensor_name = spec.tensor_name
            # The runtime refuses to fetch a tensor that is fed ("x:0 is both fed and fetched").
            if tensor_name in by_tensor:
                echoes.append((position, by_tensor[tensor_name]))
            else:
                if spec.is_reference:
                    references.append(len(fetches))
                fetches.append(tensor_name)
        feeds = [spec.tensor_name for spec in signature.inputs.values()]
        execute = self._make_callable(feeds, fetches) if fetches else None
        return _Plan(signature, execute, tuple(echoes), tuple(references))

    def _make_callable(self, feeds: Sequence[str], fetches: Sequence[str]) -> Any:
        """Return a function from one array for each feed to one value for each fetch.

        Session.make_callable with feeds only wraps Session.run: 155 µs a call on y = x / 2 + 2, against 21 µs here
        (2026-11, TensorFlow 2.21, which setup pins). It also compares shapes and rewrites messages in Python, which the
        C++ runtime, and so TensorFlow Serving, does not.
        """
        options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
        try:
            return self._session._make_callable_from_options(options)
        except tf.errors.OpError as error:
            raise backend_error(error) from error


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to run one choice of outputs: `execute` takes the arrays of the signature's inputs in order. None: there is
    nothing to fetch.

    An echo (position, input) is an output that is the fed tensor itself. `references` are the positions, among the
    fetched values, of variables' own tensors.
    """

    signature: Signature
    execute: Any
    echoes: tuple[tuple[int, str], ...]
    references: tuple[int, ...]


class _UnsupportedTensorError(Exception):
    """A tensor of a signature that our protocols cannot carry; the message says which and why."""


def _signature(signature_def: meta_graph_pb2.SignatureDef) -> Signature:
    inputs = {alias: _tensor_spec(alias, info) for alias, info in sorted(signature_def.inputs.items())}
    outputs = {alias: _tensor_spec(alias, info) for alias, info in sorted(signature_def.outputs.items())}
    defaults = {alias: proto.SerializeToString() for alias, proto in sorted(signature_def.defaults.items())}
    if sum(map(len, defaults.values())) > _MAX_DEFAULTS_BYTES:
        raise _UnsupportedTensorError(f"the defaults of its inputs have more than {_MAX_DEFAULTS_BYTES:,} bytes")
    return Signature(inputs, outputs, signature_def.method_name, defaults)


def _default_arrays(signature_def: meta_graph_pb2.SignatureDef, signature: Signature) -> dict[str, np.ndarray]:
    """Return the value of each input that has a default."""
    arrays = {}
    for alias in signature.inputs.keys() & signature.defaults.keys():
        try:
            arrays[alias] = np.asarray(tf.make_ndarray(signature_def.defaults[alias]))
        except (MemoryError, TypeError, ValueError) as error:
            raise _UnsupportedTensorError(f"the default of {alias!r} cannot be read: {error}") from error
    return arrays


def _tensor_spec(alias: str, info: meta_graph_pb2.TensorInfo) -> TensorSpec:
    encoding = info.WhichOneof("encoding")
    if encoding != "name":
        kind = {"coo_sparse": "sparse", "composite_tensor": _composite(info), None: "without a name"}[encoding]
        raise _UnsupportedTensorError(
            f"the tensor {alias!r} is not dense ({kind}), and the API carries dense tensors only: export a signature "
            "that takes and gives dense ones"
        )
    # Variables of TensorFlow 1 are tensors of reference types; the session feeds and fetches their values.
    is_reference = info.dtype - REFERENCE in BY_NUMBER
    number = info.dtype - REFERENCE if is_reference else info.dtype
    if number not in BY_NUMBER:
        raise _UnsupportedTensorError(
            f"the tensor {alias!r} has the element type {_type_name(info.dtype)}, which the API does not carry"
        )
    shape = info.tensor_shape
    dimensions = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
    return TensorSpec(BY_NUMBER[number].name, dimensions, info.name, is_reference)


def _composite(info: meta_graph_pb2.TensorInfo) -> str:
    spec = info.composite_tensor.type_spec
    name = spec.type_spec_class_name or struct_pb2.TypeSpecProto.TypeSpecClass.Name(spec.type_spec_class)
    return "ragged" if spec.type_spec_class == struct_pb2.TypeSpecProto.RAGGED_TENSOR_SPEC else name


def _type_name(number: int) -> str:
    try:
        return str(types_pb2.DataType.Name(number))
    except ValueError:
        return f"number {number}"


def _as_array(value: Any) -> np.ndarray:
    """Return a fetched value as an array: the session gives scalars as numpy scalars, and a string scalar as bytes."""
    if isinstance(value, np.ndarray):
        return value
    array = np.empty((), object if isinstance(value, bytes) else value.dtype)
    array[()] = value
    return array
