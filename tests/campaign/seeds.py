"""Input that is right, from which mutations start."""

from __future__ import annotations

import base64
import functools
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import trustme

from appliance.protocols import protos
from appliance.transport import wire
from backends.samples import Sample, pack_samples
from tests.support import onnx_models
from tests.support.grpc_calls import request
from tests.support.official_protos import samples as arrays_of_each_type
from tests.support.saved_models import model_zoo
from tests.support.server import ROOT
from tests.support.tensor_messages import encode_tensor

BUNDLES = ROOT / "tests" / "signing" / "bundles"


@functools.cache
def zoo() -> Path:
    """The models of the tests."""
    return model_zoo()


def _json(*documents: Any) -> list[bytes]:
    return [json.dumps(document).encode() for document in documents]


JSON_PREDICT = _json(
    {"instances": [1.0, 2.0, 5.0]},
    {"signature_name": "serving_default", "instances": [{"x": 1.0}, {"x": 2.5}]},
    {"inputs": {"x": [1.0, 2.0]}},
    {"inputs": [1.0, 2.0, 3.0]},
    {"instances": [{"a": [1, 2, 3], "b": 1, "text": "one", "flag": True}]},
    {"inputs": {"a": [[1, 2, 3]], "b": [1], "text": [{"b64": "AAEC"}], "flag": [False]}},
    {"instances": ["one", {"b64": "AAEC"}, "\u20ac"]},
    {"inputs": [[9007199254740993, -9223372036854775808], [0, 1]]},
    {"instances": [[[1.5, 2.5], [3.5, 4.5]]] * 60},
)

JSON_EXAMPLES = _json(
    {"examples": [{"x": 1.0}, {"x": [2.0]}]},
    {"signature_name": "classify_x_to_label", "context": {"y": "text"}, "examples": [{"x": 1}, {"x": [True, 3]}]},
    {"examples": [{"x": {"b64": "AAEC"}, "y": ["one", {"b64": ""}]}, {}]},
)

FORMS = _json(
    {
        "format": "onnx",
        "precision": "float32",
        "signatures": {
            "serving_default": {
                "file": "0.onnx",
                "signature": {"inputs": {"x": ["float32", [-1]]}, "outputs": {"y": ["float32", [-1]]}},
                "inputs": {"x": "x:0"},
                "outputs": {"y": "Identity:0"},
            }
        },
    }
)

MODEL_CONFIGS = [
    b"""model_config_list {
  config { name: "good" base_path: "/models/good" model_platform: "tensorflow" }
  config {
    name: "other"
    base_path: "/models/other"
    model_version_policy { specific { versions: 1 versions: 3 } }
    version_labels { key: "stable" value: 1 }
    logging_config { sampling_config { sampling_rate: 0.5 } }
  }
}
"""
]
BATCHING = [
    b"""max_batch_size { value: 32 } batch_timeout_micros { value: 1000 } max_enqueued_batches { value: 100 }
num_batch_threads { value: 4 } allowed_batch_sizes: 8 allowed_batch_sizes: 32 pad_variable_length_inputs: true
"""
]
MONITORING = [b'prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }\n']
TOML = [
    b"""model_root = "/srv/models"
rest_api_port = 8501
settle_seconds = 2.0
version_policy = "latest:2"
enable_batching = true
[models.digits]
base_path = "/srv/digits"
sandbox = "on"
"""
]

PATHS = [
    b"/v1/models/half_plus_two:predict",
    b"/v1/models/half_plus_two/versions/00012345678901234567:predict",
    b"/v1/models/m%2fn%C3%A9/labels/st%61ble/metadata",
    b"gzip;q=0.5, identity;q=0, *;q=1.000, br",
]

ERROR_TEXTS = [
    b"""Traceback (most recent call last):

  File "a.py", line 3, in f
    return g(x)
  File "b.py", line 4
ValueError: x

\t [[{{node a/b}}]]

\t[[StatefulPartitionedCall/x]] [Op:__inference_f_1]
"""
    + b"\n " * 50,
    b"/onnxruntime_src/onnxruntime/core/framework/op_kernel.h:83 void onnxruntime::f(int) x.size() == 1 was false. "
    b"Non-zero status code returned while running Add node. Name:'a' Status Message: (N, 1) " + b" /a" * 50,
]


def _http(head: str, body: bytes = b"") -> bytes:
    return head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body


def _post(body: bytes, *fields: str) -> bytes:
    head = ["POST /v1/models/half_plus_two:predict HTTP/1.1", "host: x", f"content-length: {len(body)}", *fields]
    return _http("\n".join(head), body)


_CHUNKED = "POST /v1/models/half_plus_two:predict HTTP/1.1\nhost: x\ntransfer-encoding: chunked"
_CHUNKS = b"5\r\n%b\r\n%x;a=b\r\n%b\r\n0\r\ntrailer: x\r\n\r\n" % (
    JSON_PREDICT[0][:5],
    len(JSON_PREDICT[0]) - 5,
    JSON_PREDICT[0][5:],
)
_PACKED = gzip.compress(JSON_PREDICT[0])

HTTP = [
    _http("GET /v1/models/half_plus_two HTTP/1.1\nhost: x"),
    _http("GET /healthz HTTP/1.0\nconnection: keep-alive"),
    _http("OPTIONS * HTTP/1.1\nhost: x\norigin: http://example.org"),
    _post(JSON_PREDICT[0]),
    _post(JSON_PREDICT[0], "expect: 100-continue", "accept-encoding: gzip;q=0.5, *;q=0"),
    _post(_PACKED, "content-encoding: gzip"),
    _post(gzip.compress(b"[]," * 30_000), "content-encoding: gzip"),
    _http(_CHUNKED, _CHUNKS),
    _post(JSON_PREDICT[1]) + _http("GET /v1/models HTTP/1.1\nhost: x") + _post(JSON_PREDICT[2], "connection: close"),
    _http("GET /v1/models HTTP/1.1\nhost: x\nconnection: upgrade\nupgrade: websocket\nsec-websocket-key: AAAA"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]  # fmt: skip


@functools.cache
def tls() -> list[bytes]:
    """A key with its certificate, as an ssl_config_file."""
    made = trustme.CA().issue_cert("127.0.0.1")
    key, certificate = made.private_key_pem.bytes().decode(), made.cert_chain_pems[0].bytes().decode()
    return [str(protos.SSLConfig(server_key=key, server_cert=certificate, client_verify=False)).encode()]


@functools.cache
def tensors() -> list[bytes]:
    """A tensor of each element type, as a list and as memory."""
    arrays = list(arrays_of_each_type().values())
    found = [encode_tensor(array, content) for array in arrays for content in (False, True) if array.dtype != object]
    repeated = protos.TensorProto(dtype=1)
    repeated.tensor_shape.dim.add(size=1000)
    repeated.float_val.append(3.0)
    return [*found, encode_tensor(arrays_of_each_type()["string"]), repeated.SerializeToString()]


@functools.cache
def predict_requests() -> list[bytes]:
    """Predict requests with one input, with several, and with what is seldom set."""
    arrays = arrays_of_each_type()
    odd = request("m", x=arrays["float32"])
    odd.model_spec.version.value = 3
    odd.model_spec.signature_name = "many"
    odd.output_filter.extend(["y", "z"])
    messages = [
        request("half_plus_two", x=np.ones(3, "f4")),
        request("m", **arrays),
        request("m", a=arrays["string"]),
        odd,
    ]
    return [message.SerializeToString() for message in messages]


@functools.cache
def examples_requests() -> list[bytes]:
    """Requests of classify and regress, with and without a context, and of multi-inference."""
    example = protos.Example()
    example.features.feature["x"].float_list.value.extend([1.0, 2.0])
    example.features.feature["y"].bytes_list.value.append(b"text")
    found = []
    for has_context in (False, True):
        message = protos.ClassificationRequest() if has_context else protos.RegressionRequest()
        message.model_spec.name = "half_plus_two"
        given = message.input.example_list_with_context if has_context else message.input.example_list
        given.examples.add().CopyFrom(example)
        given.examples.add()
        if has_context:
            given.context.CopyFrom(example)
        found.append(message.SerializeToString())
    several = protos.MultiInferenceRequest()
    for name in ("regress_x_to_y", "classify_x_to_label"):
        task = several.tasks.add(method_name=f"tensorflow/serving/{name[:8].rstrip('_')}")
        task.model_spec.name, task.model_spec.signature_name = "half_plus_two", name
    several.input.example_list.examples.add().CopyFrom(example)
    return [*found, several.SerializeToString()]


@functools.cache
def questions() -> list[bytes]:
    """GetModelStatus, GetModelMetadata and HandleReloadConfigRequest."""
    status = protos.GetModelStatusRequest()
    status.model_spec.name = "half_plus_two"
    metadata = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "half_plus_two"
    metadata.model_spec.version.value = 1
    reload = protos.ReloadConfigRequest(metric_names=["a"])
    reload.config.model_config_list.config.add(name="m", base_path="/nowhere/m")
    reload.config.model_config_list.config[0].version_labels["stable"] = 1
    return [message.SerializeToString() for message in (status, metadata, reload)]


@functools.cache
def prediction_logs() -> list[bytes]:
    """PredictionLogs, as warm-up files have them."""
    predict, regress = protos.PredictionLog(), protos.PredictionLog()
    predict.predict_log.request = predict_requests()[0]
    regress.regress_log.request = examples_requests()[0]
    several = protos.PredictionLog()
    several.multi_inference_log.request = examples_requests()[2]
    return [log.SerializeToString() for log in (predict, regress, several)]


@functools.cache
def frames() -> list[bytes]:
    """What travels between a front and a worker: two frames each."""
    found = []
    for arrays in ({"x": np.ones(3, "f4")}, arrays_of_each_type()):
        packed = wire.pack_arrays(arrays.items())
        meta = wire.predict_meta("serving_default", ["y"], packed.table)
        payload = b"".join(bytes(part) for part in wire.inline(packed))
        found.append((wire.header(wire.Kind(1), len(meta), len(payload), 7, 99) + meta + payload) * 2)
    return found


@functools.cache
def sample_files() -> list[bytes]:
    """Samples of a model's runs, as its worker writes them."""
    arrays = arrays_of_each_type()
    file = io.BytesIO()
    pack_samples(file, [Sample(1, 1, "serving_default", {"x": arrays["float32"]}, {"y": arrays["string"]})])
    return [file.getvalue()]


def files(name: str, *models: str) -> list[bytes]:
    """That file of these models."""
    return [(zoo() / model / name).read_bytes() for model in models]


def graphs(*models: str) -> list[bytes]:
    """Their saved_model.pb."""
    return files("saved_model.pb", *models)


def onnx_files() -> list[bytes]:
    """A small ONNX model."""
    return [onnx_models.half_plus(2.0).SerializeToString()]


def bundles() -> list[bytes]:
    """Signatures of a model, by keys and by a certificate."""
    return [(BUNDLES / name).read_bytes() for name in ("p256.sig", "certificate.sig", "shards.sig")]


def statements() -> list[bytes]:
    """What those signatures sign."""
    return [base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]) for bundle in bundles()]
