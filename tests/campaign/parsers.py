"""The parsers of what others send, as targets: seeds, how they are mutated, and what must hold of any input.

A parser may refuse, by the errors that its docstring names, and nothing else. Where there are two ways to read the same
bytes (a quick one and a thorough one), both must come to the same: that is `Disagreement` otherwise.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from appliance.config.batching_parameters import parse_batching_parameters
from appliance.config.model_config import model_configs, parse_model_config
from appliance.config.monitoring_config import parse_monitoring_config
from appliance.config.settings import read_settings
from appliance.config.tls import load_ssl_config
from appliance.core.errors import Code, ConfigError, ServingError
from appliance.protocols import protos
from appliance.protocols.example_messages import decode_multi_request, decode_request
from appliance.protocols.json_examples import parse_examples
from appliance.protocols.json_tensors import parse_predict
from appliance.protocols.predict_layouts import PredictLayouts
from appliance.protocols.predict_messages import PredictEnvelope, open_predict_request
from appliance.protocols.predict_messages import model_spec as message_spec
from appliance.protocols.tensor_protos import decode_tensor
from appliance.protocols.warmup_records import calls_of, recorded_requests
from appliance.rest.compression import is_gzip_wanted
from appliance.rest.paths import model_path, model_spec
from appliance.signing.bundle import read_bundle
from appliance.signing.errors import SignatureError
from appliance.signing.statement import parse_statement
from appliance.source.scan import fingerprint
from appliance.transport import wire
from backends import form, onnx_model, samples, saved_model, tflite_model
from backends.contract import BackendError, IncompleteError, Signature, TensorSpec
from backends.crc32c import masked_crc32c
from backends.error_texts import without_python_trace, without_source_places
from tests.campaign import planted, seeds
from tests.campaign.http_parser import feed_http
from tests.campaign.mutation import Mutate, mutated_bytes, mutated_json, mutated_message, mutated_text

__all__ = ["PLANTED", "TARGETS", "Disagreement", "Target"]

_ROOM = 256 << 20
_GROWTH = 64 << 20  # what the arrays of one request may take beside its bytes


class Disagreement(AssertionError):
    """Two ways to read the same bytes came to different ends."""


@dataclass(frozen=True)
class Target:
    """`parse` takes an input; it returns, or raises one of `refusals`."""

    name: str
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutate
    parse: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    share: int = 1
    """Of the inputs of a run, as compared with other targets."""


SIGNATURES = {
    "serving_default": Signature({"x": TensorSpec("float32", (None,))}, {"y": TensorSpec("float32", (None,))}),
    "many": Signature(
        {
            "a": TensorSpec("float32", (None, 3)),
            "b": TensorSpec("int32", (None,)),
            "text": TensorSpec("string", (None,)),
            "flag": TensorSpec("bool", None),
        },
        {"y": TensorSpec("float32", (None,))},
    ),
    "text": Signature({"text": TensorSpec("string", None)}, {"y": TensorSpec("string", None)}),
    "whole": Signature({"n": TensorSpec("int64", None)}, {"y": TensorSpec("uint8", None)}),
}


def _grow() -> Callable[[int], None]:
    """A bound on the bytes of new arrays, as a front's share of max_inflight_bytes is one."""
    left = _GROWTH

    def grow(nbytes: int) -> None:
        nonlocal left
        left -= nbytes
        if left < 0:
            raise ServingError(Code.RESOURCE_EXHAUSTED, "too much is in flight", "send less")

    return grow


def _outcome(read: Callable[[], Any]) -> Any:
    """What `read` returns, or the code of its refusal."""
    try:
        return read()
    except ServingError as error:
        return error.code


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return one.tolist() == other.tolist() if one.dtype == object else _bits(one) == _bits(other)
    return bool(type(one) is type(other) and one == other)


def _bits(array: np.ndarray) -> bytes:
    """The memory of an array of numbers, with one NaN for all: a list of floats that is read as Python's makes a
    signalling one quiet, which no operator tells from it."""
    parts = np.atleast_1d(array).copy()
    if parts.dtype.kind == "c":
        parts = parts.view(parts.real.dtype)
    if parts.dtype.kind in "fV":  # "V" is ml_dtypes' bfloat16
        parts[np.isnan(parts)] = np.nan
    return parts.tobytes()


def _check_same(what: str, one: Any, other: Any) -> None:
    if not _same(one, other):
        raise Disagreement(f"{what}: {one!r:.300} and {other!r:.300}")


# -- requests -----------------------------------------------------------------------------------------------------


def _json_predict(data: bytes) -> None:
    """Small bodies are read by another parser than large ones: blanks at the end change nothing."""
    for name, signature in SIGNATURES.items():
        found = [
            _outcome(lambda body=body, signature=signature: parse_predict(body, _ROOM).inputs(signature))
            for body in (data, data + b" " * 3000)
        ]
        _check_same(f"the body for {name}, and the same with blanks", *found)
    own_words = b"NaN" in data or b"Inf" in data  # RapidJSON's, which the standard library has not
    if not own_words and not isinstance(_outcome(lambda: parse_predict(data, _ROOM)), Code):
        try:
            json.loads(data.removeprefix(b"\xef\xbb\xbf"))
        except (ValueError, RecursionError) as error:
            raise Disagreement(f"the body was taken, and is no JSON: {error}") from None


_LAYOUTS = PredictLayouts()  # of all inputs so far


def _predict(data: bytes, opened: Callable[[bytes], PredictEnvelope] = open_predict_request) -> Any:
    request = opened(data)
    return {
        "spec": request.spec,
        "signature": request.signature_name,
        "filter": request.output_filter,
        "arrays": request.arrays(_grow()),
    }


def _grpc_predict(data: bytes) -> None:
    """Usual requests are walked by hand, and odd ones parsed by protobuf: both must find the same."""
    found = _outcome(lambda: _predict(data))
    _check_same(
        "the request, and by the layouts of those before", found, _outcome(lambda: _predict(data, _LAYOUTS.open))
    )
    _check_same("the request, and by its own layout", found, _outcome(lambda: _predict(data, _LAYOUTS.open)))
    try:
        rewritten = protos.PredictRequest.FromString(data).SerializeToString()
    except (DecodeError, UnicodeDecodeError):
        _check_same("what protobuf refuses", found, Code.INVALID_ARGUMENT)
        return
    _check_same("the request, and what protobuf writes of it", found, _outcome(lambda: _predict(rewritten)))


def _tensor(data: bytes) -> None:
    found = _outcome(lambda: decode_tensor(data))
    try:
        rewritten = protos.TensorProto.FromString(data).SerializeToString()
    except (DecodeError, UnicodeDecodeError):
        _check_same("what protobuf refuses", found, Code.INVALID_ARGUMENT)
        return
    _check_same("the tensor, and what protobuf writes of it", found, _outcome(lambda: decode_tensor(rewritten)))


def _examples(data: bytes) -> None:
    for decode in (decode_request, decode_multi_request):
        _outcome(lambda decode=decode: decode(data).examples.array())


def _questions(data: bytes) -> None:
    for kind in (protos.GetModelMetadataRequest, protos.GetModelStatusRequest, protos.ReloadConfigRequest):
        try:
            message = kind.FromString(data)
        except (DecodeError, UnicodeDecodeError):
            continue
        if kind is protos.ReloadConfigRequest:
            try:
                model_configs(message.config, "the request")
            except ConfigError:
                continue
        else:
            _outcome(lambda message=message: message_spec(message.model_spec))


_PATHS = [model_path(rest) for rest in ("", ":predict", "/metadata")]


def _path(data: bytes) -> None:
    text = data.decode("latin-1")
    for pattern in _PATHS:
        if match := pattern.fullmatch(text):
            _outcome(lambda match=match: model_spec(match))
    for size in (10, 10_000):
        is_gzip_wanted(text, size)


def _error_text(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    without_python_trace(text)
    without_source_places(text)
    ServingError(Code.INTERNAL, text)


# -- frames, files, configuration ---------------------------------------------------------------------------------


def _frames(data: bytes) -> None:
    """What a worker may send to a front."""
    decoder = wire.Decoder(1 << 20)
    position = 0
    while position < len(data):
        room = decoder.target()
        piece = data[position : position + min(len(room), 4096)]
        room[: len(piece)] = piece
        position += len(piece)
        for frame in decoder.received(len(piece)):
            _, _, table = wire.parse_predict_meta(frame.meta)
            wire.table_shapes(table)
            wire.unpack_arrays(table, frame.payload or b"")


def _samples(data: bytes) -> None:
    for _ in samples.unpack_samples(io.BytesIO(data)):
        pass


class _Folder:
    """A folder with the files of a seed, of which each input replaces one."""

    def __init__(self, file: str, others: Callable[[], Mapping[str, bytes]] = dict) -> None:
        self._file, self._others, self._path = file, others, ""

    def put(self, data: bytes) -> str:
        """The folder, with `data` in it."""
        if not self._path:
            self._keeper = tempfile.TemporaryDirectory(prefix="campaign-")
            self._path = self._keeper.name
            for name, content in self._others().items():
                path = Path(self._path, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        path = Path(self._path, self._file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return self._path

    def then(self, read: Callable[[str], Any]) -> Callable[[bytes], Any]:
        """A parser of the file, from one of the folder."""
        return lambda data: read(self.put(data))


def _records(folder: str) -> None:
    for log in recorded_requests(f"{folder}/requests"):
        calls_of(log, SIGNATURES)


def mutated_records(found: Sequence[bytes], random: Any) -> bytes:
    """A file of one record, whose checksums are right: else no mutation would come further."""
    data = mutated_message(found, random)
    head = len(data).to_bytes(8, "little")
    file = head + masked_crc32c(head).to_bytes(4, "little") + data + masked_crc32c(data).to_bytes(4, "little")
    return mutated_bytes([file], random) if random.random() < 0.1 else file


def _saved_model(folder: str) -> None:
    fingerprint(folder)
    saved_model.check_complete(folder)


def _tflite(folder: str) -> None:
    tflite_model.check_complete(folder)
    tflite_model.signatures_in_metadata(Path(folder, tflite_model.FILE).read_bytes())


def _onnx(folder: str) -> None:
    onnx_model.check_complete(folder)
    onnx_model.read(folder)


def _text(parse: Callable[[str, str], Any]) -> Callable[[bytes], Any]:
    return lambda data: parse(data.decode("utf-8", "replace"), "the file")


def _copy_of(*models: str) -> Callable[[], Mapping[str, bytes]]:
    return lambda: {
        str(path.relative_to(seeds.zoo() / model)): path.read_bytes()
        for model in models
        for path in (seeds.zoo() / model).rglob("*")
        if path.is_file()
    }


_LOADS = (IncompleteError, BackendError)

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("http", lambda: seeds.HTTP, mutated_bytes, feed_http, (), 4),
        Target("json-predict", lambda: seeds.JSON_PREDICT, mutated_json, _json_predict, (), 12),
        Target("json-examples", lambda: seeds.JSON_EXAMPLES, mutated_json, parse_examples, (ServingError,), 8),
        Target("grpc-predict", seeds.predict_requests, mutated_message, _grpc_predict, (), 12),
        Target("tensor", seeds.tensors, mutated_message, _tensor, (), 12),
        Target("grpc-examples", seeds.examples_requests, mutated_message, _examples, (), 4),
        Target("grpc-questions", seeds.questions, mutated_message, _questions, (), 2),
        Target("path", lambda: seeds.PATHS, mutated_bytes, _path, (), 4),
        Target("error-text", lambda: seeds.ERROR_TEXTS, mutated_text, _error_text, (), 4),
        Target("frames", seeds.frames, mutated_bytes, _frames, (wire.WireError,), 6),
        Target("samples", seeds.sample_files, mutated_bytes, _samples, (ValueError,), 4),
        Target("warm-up", seeds.prediction_logs, mutated_records, _Folder("requests").then(_records),
               (BackendError, ServingError), 4),
        Target("saved-model", lambda: seeds.graphs("half_plus_two", "assets_vocab"), mutated_message,
               _Folder("saved_model.pb", _copy_of("assets_vocab", "half_plus_two")).then(_saved_model), _LOADS, 3),
        Target("variables", lambda: seeds.files("variables/variables.index", "half_plus_two"), mutated_bytes,
               _Folder("variables/variables.index", _copy_of("half_plus_two")).then(_saved_model), _LOADS, 3),
        Target("tflite", lambda: seeds.files("model.tflite", "lite", "lite_in_metadata"), mutated_bytes,
               _Folder("model.tflite").then(_tflite), _LOADS, 3),
        Target("onnx", seeds.onnx_files, mutated_message, _Folder("model.onnx").then(_onnx), _LOADS, 3),
        Target("form", lambda: seeds.FORMS, mutated_json, _Folder(form.FILE).then(form.read_form), _LOADS, 2),
        Target("signature", seeds.bundles, mutated_json, _Folder("model.sig").then(read_bundle), (SignatureError,), 2),
        Target("statement", seeds.statements, mutated_json, parse_statement, (SignatureError,), 2),
        Target("model-config", lambda: seeds.MODEL_CONFIGS, mutated_text, _text(parse_model_config), (ConfigError,), 2),
        Target("batching", lambda: seeds.BATCHING, mutated_text, _text(parse_batching_parameters), (ConfigError,), 1),
        Target("monitoring", lambda: seeds.MONITORING, mutated_text, _text(parse_monitoring_config), (ConfigError,), 1),
        Target("tls", seeds.tls, mutated_text,
               _Folder("tls").then(lambda folder: load_ssl_config(f"{folder}/tls")), (ConfigError,), 1),
        Target("toml", lambda: seeds.TOML, mutated_text,
               _Folder("toml").then(lambda folder: read_settings({}, f"{folder}/toml")), (ConfigError,), 2),
    )
}  # fmt: skip

PLANTED = Target(
    "planted", lambda: planted.INPUTS, lambda found, random: random.choice(found), planted.parse, (ValueError,)
)
