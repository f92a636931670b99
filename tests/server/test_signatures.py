"""Signatures as clients meet them: reference types of TensorFlow 1; and those that cannot be served, and why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest

from appliance.lifecycle.replicas import Loaded
from appliance.protocols import protos
from appliance.protocols.tensor_protos import decode_tensor
from tests.support.grpc_calls import PREDICT, code_of, method, request
from tests.support.manager_host import Host
from tests.support.server import ROOT, Server

SERVICE = "/tensorflow.serving.PredictionService"
WHY = (
    "the model has it, but it cannot be served: the tensor 'words' is not dense (sparse), and the API carries dense "
    "tensors only: export a signature that takes and gives dense ones"
)


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name in ("counter", "sparse_beside_dense"):
        shutil.copytree(zoo / name, root / name / "1")
    with Server(model_root=root, enable_model_warmup=False) as running:  # a warm-up counts too
        running.wait_for("counter", 1)
        running.wait_for("sparse_beside_dense", 1)
        yield running


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as opened:
        yield opened


def by_grpc(channel: grpc.Channel, signature: str, **inputs: Any) -> float:
    message = request("counter", **inputs)
    message.model_spec.signature_name = signature
    answer = method(channel, PREDICT, protos.PredictResponse)(message, timeout=30)
    output = answer.outputs["output"]
    assert output.dtype == protos.DataType.Value("DT_FLOAT")
    return float(decode_tensor(output.SerializeToString()).item())


def by_rest(server: Server, signature: str, **inputs: Any) -> float:
    status, answer = server.predict("counter", {"signature_name": signature, "inputs": inputs})
    assert status == 200, answer
    return float(answer["outputs"])


# -- reference types ---------------------------------------------------------------------------------------------


def test_the_counter_of_tensorflow_serving_counts_for_both_protocols(server: Server, channel: grpc.Channel) -> None:
    nothing = np.zeros(0, np.int32)
    assert by_grpc(channel, "reset_counter", nothing=nothing) == 0.0
    assert by_rest(server, "incr_counter", nothing=[]) == 1.0
    assert by_grpc(channel, "incr_counter_by", delta=np.float32(2.5)) == 3.5
    assert by_rest(server, "incr_counter_by", delta=1) == 4.5
    assert by_rest(server, "get_counter", nothing=[]) == by_grpc(channel, "get_counter", nothing=nothing) == 4.5
    status, answer = server.predict("counter", {"signature_name": "fed", "inputs": {"counter": 21}})
    assert (status, answer) == (200, {"outputs": 42.0})


def test_metadata_has_the_signature_as_it_was_exported(server: Server, channel: grpc.Channel) -> None:
    _, document = server.get("/v1/models/counter/metadata")
    signatures = document["metadata"]["signature_def"]["signature_def"]
    assert signatures["get_counter"]["outputs"]["output"]["dtype"] == "DT_FLOAT_REF"
    assert signatures["get_counter"]["inputs"]["nothing"]["dtype"] == "DT_INT32"
    asked = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "counter"
    answer = method(channel, f"{SERVICE}/GetModelMetadata", protos.GetModelMetadataResponse)(asked, timeout=30)
    found = protos.SignatureDefMap()
    answer.metadata["signature_def"].Unpack(found)
    assert found.signature_def["incr_counter_by"].outputs["output"].dtype == 101


# -- what cannot be served -----------------------------------------------------------------------------------------


def test_a_request_for_what_cannot_be_served_is_told_why(server: Server, channel: grpc.Channel) -> None:
    document: dict[str, Any] = {"signature_name": "words", "inputs": {"words": ["a"]}}
    status, answer = server.predict("sparse_beside_dense", document)
    assert (status, answer["error"]) == (400, f'Serving signature name: "words" not found in signature def; {WHY}')
    message = request("sparse_beside_dense")
    message.model_spec.signature_name = "words"
    asked: Callable[[], Any] = lambda: method(channel, PREDICT, protos.PredictResponse)(message, timeout=30)  # noqa: E731
    assert code_of(asked) == ("FAILED_PRECONDITION", f'Serving signature key "words" not found. {WHY}')
    document = {"signature_name": "words", "examples": [{}]}
    status, body, _ = server.http("POST", "/v1/models/sparse_beside_dense:classify", json.dumps(document).encode())
    assert (status, body["error"]) == (400, f"No signature was found with the name: words; {WHY}")


def test_multi_inference_on_what_cannot_be_served_is_told_why(server: Server, channel: grpc.Channel) -> None:
    message = protos.MultiInferenceRequest()
    task = message.tasks.add(method_name="tensorflow/serving/classify")
    task.model_spec.name, task.model_spec.signature_name = "sparse_beside_dense", "words"
    message.input.example_list.examples.add()
    call = method(channel, f"{SERVICE}/MultiInference", protos.MultiInferenceResponse)
    expected = ("INVALID_ARGUMENT", f"Requested signature not found in model graph: words; {WHY}")
    assert code_of(lambda: call(message, timeout=30)) == expected


def test_the_others_of_the_model_are_served(server: Server) -> None:
    assert server.predict("sparse_beside_dense", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
    status, answer = server.predict("sparse_beside_dense", {"signature_name": "no", "instances": [1.0]})
    assert (status, answer["error"]) == (
        400,
        'Serving signature name: "no" not found in signature def; the model has serving_default',
    )


def test_log_and_status_say_what_is_not_served_and_why(server: Server) -> None:
    assert (
        "W sparse_beside_dense/1: signature 'words' cannot be served: the tensor 'words' is not dense" in server.log()
    )
    _, document = server.get("/v1/models")
    versions = {model["name"]: model["versions"][0]["unsupported"] for model in document["models"]}
    assert versions["counter"] == {}
    assert list(versions["sparse_beside_dense"]) == ["words"]
    url = f"http://127.0.0.1:{server.rest_port}"
    command = [sys.executable, "-m", "appliance", "models", "--detail", "--url", url]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert f"signature 'words' is not served: {WHY.partition('served: ')[2]}\n" in shown


# -- from worker to worker -----------------------------------------------------------------------------------------


def test_what_is_not_served_follows_the_worker_that_serves() -> None:
    host = Host()
    host.add()
    host.see(1)

    def unsupported() -> Any:
        (route,) = host.manager.routes()["a"].versions
        assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(route))), type(route)) == route
        return route.unsupported

    assert unsupported() == {}
    host.manager.worker_ready(host.worker(1), Loaded("/run/1", unsupported={"words": "sparse"}), host.now)
    assert unsupported() == {"words": "sparse"}
    host.end(1)
    assert unsupported() == {}
    host.wait(60)
    host.manager.worker_ready(host.worker(1), Loaded("/run/2"), host.now)
    assert unsupported() == {}


def with_many_signatures(folder: Path, count: int) -> None:
    """Gives the SavedModel `count` copies of its default signature, under other names."""
    path = folder / "saved_model.pb"
    program = (
        "import sys\n"
        "from tensorflow.core.protobuf.saved_model_pb2 import SavedModel\n"
        "path, count = sys.argv[1], int(sys.argv[2])\n"
        "with open(path, 'rb') as file: model = SavedModel.FromString(file.read())\n"
        "signatures = model.meta_graphs[0].signature_def\n"
        "for n in range(count): signatures[f'signature_{n}'].CopyFrom(signatures['serving_default'])\n"
        "with open(path, 'wb') as file: file.write(model.SerializeToString())\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path), str(count)], check=True, timeout=120)


def test_a_version_with_too_many_signatures_fails_and_the_one_before_it_goes_on(zoo: Path, tmp_path: Path) -> None:
    base = tmp_path / "models" / "m"
    shutil.copytree(zoo / "half_plus_two", base / "1")
    with Server(model_root=base.parent) as running:
        running.wait_for("m", 1)
        shutil.copytree(zoo / "half_plus_two", base / ".2")
        with_many_signatures(base / ".2", 20_000)
        (base / ".2").rename(base / "2")
        reason = running.wait_for("m", 2, "failed")
        assert "signatures take" in reason
        assert "export it with fewer signatures" in reason
        assert running.predict("m", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
