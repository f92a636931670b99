"""Several hundred requests of TensorFlow Serving's own tests and documentation get the same answers from our command:
REST in `rest_pairs`, gRPC in `grpc_pairs`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format

from appliance.protocols import protos
from tests.support import grpc_pairs, rest_pairs
from tests.support.server import ModelServer

# (name, the zoo's model, versions)
MODELS = [
    ("test_model", {123: "half_plus_columns"}),
    ("half_plus_two", {1: "half_plus_two", 2: "half_plus_three"}),
    ("half plus", {7: "half_plus_two"}),
    *((name, {1: name}) for name in ("multi_io", "strings", "scalars", "dtypes", "defaults", "fails")),
    *((name, {1: name}) for name in ("parsed_examples", "assets_vocab")),
    ("broken", {1: ""}),
]
POLICIES = {"half_plus_two": "model_version_policy { all {} }"}
LABELS = {"test_model": {"Version_Label": 123}, "half_plus_two": {"stable": 1, "canary": 2}}


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    root = tmp_path_factory.mktemp("models")
    entries = []
    for name, versions in MODELS:
        for version, source in versions.items():
            target = root / name / f"{version:08d}"
            if source:
                shutil.copytree(zoo / source, target)
            else:
                target.mkdir(parents=True)
                (target / "saved_model.pb").write_bytes(b"no SavedModel")
        labels = "".join(f"version_labels {{ key: '{k}' value: {v} }} " for k, v in LABELS.get(name, {}).items())
        entries.append(
            f"  config {{ name: '{name}' base_path: '{root / name}' model_platform: 'tensorflow' "
            f"{POLICIES.get(name, '')} {labels}}}"
        )
    config = root / "models.config"
    config.write_text("model_config_list {\n" + "\n".join(entries) + "\n}\n")
    with ModelServer(f"--model_config_file={config}", "--max_num_load_retries=0") as running:
        yield running


def test_the_log_has_the_lines_that_scripts_wait_for(server: ModelServer) -> None:
    log = server.log()
    assert f"Running gRPC ModelServer at 127.0.0.1:{server.grpc_port} ...\n" in log
    assert f"Exporting HTTP/REST API at:localhost:{server.rest_port} ...\n" in log
    assert "Entering the event loop ...\n" in log


def matches(pattern: str, message: str) -> bool:
    """Whether `message` is `pattern` ("…": anything), perhaps with what to do behind it."""
    parts = pattern.split("…")
    if not message.startswith(parts[0]):
        return False
    rest = message[len(parts[0]) :]
    for part in parts[1:]:
        if part not in rest:
            return False
        rest = rest[rest.index(part) + len(part) :]
    return not parts[-1] or rest[:1] in ("", ";", " ")


@pytest.mark.parametrize("pair", rest_pairs.PAIRS, ids=lambda pair: f"{pair.request} {(pair.body or '')[:60]}")
def test_rest_answers_as_tensorflow_serving(server: ModelServer, pair: rest_pairs.Rest) -> None:
    verb, space, path = pair.request.partition(" ")
    if not space:
        verb, path = "GET" if pair.body is None else "POST", f"/v1/models/{pair.request}"
    status, answer, headers = server.http(verb, path, None if pair.body is None else pair.body.encode())
    assert status == pair.status, answer
    if isinstance(pair.answer, str):
        assert list(answer) == ["error"]
        assert matches(pair.answer, answer["error"]), answer["error"]
    elif pair.answer is not None:
        # As text, which tells 3.0 from 3, and in which NaN is NaN.
        assert json.dumps(answer, sort_keys=True) == json.dumps(pair.answer, sort_keys=True)
    if pair.answer is not None:
        assert headers["content-type"] == "application/json"


# By the RPC's name: its service, request and response.
RPCS: dict[str, tuple[str, Any, Any]] = {
    "Predict": ("PredictionService", protos.PredictRequest, protos.PredictResponse),
    "Classify": ("PredictionService", protos.ClassificationRequest, protos.ClassificationResponse),
    "Regress": ("PredictionService", protos.RegressionRequest, protos.RegressionResponse),
    "MultiInference": ("PredictionService", protos.MultiInferenceRequest, protos.MultiInferenceResponse),
    "GetModelMetadata": ("PredictionService", protos.GetModelMetadataRequest, protos.GetModelMetadataResponse),
    "GetModelStatus": ("ModelService", protos.GetModelStatusRequest, protos.GetModelStatusResponse),
    "HandleReloadConfigRequest": ("ModelService", protos.ReloadConfigRequest, protos.ReloadConfigResponse),
}


@pytest.fixture(scope="module")
def channel(server: ModelServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


def parsed(kind: Any, text: str) -> Any:
    return text_format.Parse(text, kind(), descriptor_pool=protos.POOL)


def written(message: Any) -> str:
    """Its text proto, what it packs included."""
    text: str = text_format.MessageToString(message, descriptor_pool=protos.POOL)
    return text


def ask(channel: grpc.Channel, rpc: str, request: str) -> Any:
    service, request_kind, response_kind = RPCS[rpc]
    call = channel.unary_unary(
        f"/tensorflow.serving.{service}/{rpc}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response_kind.FromString,
    )
    return call(parsed(request_kind, request), timeout=30)


@pytest.mark.parametrize("pair", grpc_pairs.PAIRS, ids=lambda pair: f"{pair.rpc} {pair.request[:80]}")
def test_grpc_answers_as_tensorflow_serving(channel: grpc.Channel, pair: grpc_pairs.Call) -> None:
    if isinstance(pair.answer, str):
        # As text, in which NaN is NaN.
        wanted = parsed(RPCS[pair.rpc][2], pair.answer)
        assert written(ask(channel, pair.rpc, pair.request)) == written(wanted)
        return
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, pair.rpc, pair.request)
    code, text = pair.answer
    assert caught.value.code().name == code, caught.value.details()
    assert matches(text, caught.value.details()), caught.value.details()
