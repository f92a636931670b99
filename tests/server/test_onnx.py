"""ONNX models: whether a folder is whole, which backend serves it, and what a real server does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.contract import BackendError, Code, IncompleteError, Signature, TensorSpec
from backends.form import FormDescription, FormSignature, read_form, write_form
from backends.registry import backend_for, check_complete
from tests.support import grpc_calls
from tests.support.onnx_models import (
    BFLOAT16,
    FLOAT,
    STRING,
    branching,
    constant,
    external,
    gather,
    half_plus,
    identity,
    linear,
    model,
    op,
    port,
    with_external_weights,
    write,
)
from tests.support.server import Server, eventually

Drop = Callable[..., Path]

MODELS = {
    "half": half_plus(2.0),
    "rows": linear(),
    "strings": identity(STRING),
    "bfloat": identity(BFLOAT16),
    "gather": gather(),
    "external": with_external_weights("c.bin", 4),
}


# -- whether the folder is whole -------------------------------------------------------------------------------


def reason(folder: Path) -> str:
    with pytest.raises(IncompleteError) as caught:
        check_complete("onnx", str(folder))
    return str(caught.value)


def refusal(folder: Path) -> BackendError:
    with pytest.raises(BackendError) as caught:
        check_complete("onnx", str(folder))
    return caught.value


@pytest.mark.parametrize("found", [half_plus(1), linear(), identity(STRING), branching(constant("c", [1, 2, 3]))])
def test_a_whole_model_is_complete_and_one_that_is_cut_off_anywhere_is_not(
    tmp_path: Path, found: onnx.ModelProto
) -> None:
    data = found.SerializeToString()
    check_complete("onnx", str(write(tmp_path, data)))
    for size in range(len(data)):
        said = reason(write(tmp_path, data[:size]))
        assert said.startswith("model.onnx ")
        assert "cut off" in said


def test_a_model_whose_rest_is_not_written_yet_is_incomplete(tmp_path: Path) -> None:
    """A copy that allocates the whole file first."""
    data = linear().SerializeToString()
    for size in range(0, len(data) - 60, 7):  # at the end are weights, whose zeros are weights too
        assert reason(write(tmp_path, data[:size] + bytes(len(data) - size))).startswith("model.onnx ")


def test_a_folder_without_the_file_is_incomplete(tmp_path: Path) -> None:
    assert reason(tmp_path) == "model.onnx is missing"


def test_what_is_no_file_is_refused_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    assert refusal(tmp_path).message == "model.onnx is not a regular file"


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_found_or_harmless_and_raises_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(with_external_weights("c.bin", 4, offset=4, length=16).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "c.bin").write_bytes(bytes(20))
    with contextlib.suppress(IncompleteError, BackendError):
        check_complete("onnx", str(write(tmp_path, bytes(content))))


@pytest.mark.parametrize(
    ("about", "needed"),
    [({}, 4000), ({"offset": 64}, 4064), ({"length": 4000}, 4000), ({"offset": 1, "length": 9}, 10)],
)
def test_weights_beside_the_model_must_be_there_in_full(tmp_path: Path, about: dict[str, int], needed: int) -> None:
    write(tmp_path, with_external_weights("weights/c.bin", 1000, **about))
    assert reason(tmp_path) == "weights/c.bin is missing"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "c.bin").write_bytes(bytes(needed - 1))
    assert reason(tmp_path) == f"weights/c.bin has {needed - 1:,} of {needed:,} bytes"
    (tmp_path / "weights" / "c.bin").write_bytes(bytes(needed))
    check_complete("onnx", str(tmp_path))


@pytest.mark.parametrize("location", ["/etc/hostname", "../c.bin", "a/../../c.bin"])
def test_weights_that_are_outside_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "c.bin").write_bytes(bytes(4000))
    error = refusal(write(tmp_path / "m", with_external_weights(location)))
    assert error.code == Code.INVALID_ARGUMENT
    assert f"forbidden name: {location!r}" in error.message


@pytest.mark.parametrize("location", ["./c.bin", "*/_ORT_MEM_ADDR_/*", "a\nb", "..\\c", "c" * 300])
def test_weights_of_an_odd_name_are_waited_for(tmp_path: Path, location: str) -> None:
    write(tmp_path, with_external_weights(location))
    assert "c.bin is missing" in reason(tmp_path) or location in reason(tmp_path)


@pytest.mark.parametrize("location", ["", "a\0b"])
def test_weights_of_no_usable_name_are_left_to_onnx_runtime(tmp_path: Path, location: str) -> None:
    check_complete("onnx", str(write(tmp_path, with_external_weights(location))))


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.bin").write_bytes(bytes(4000))
    folder = write(tmp_path / "m", with_external_weights("c.bin"))
    (folder / "c.bin").symlink_to("../c.bin")
    assert "leads out of the folder" in refusal(folder).message
    (folder / "c.bin").unlink()
    (folder / "real.bin").write_bytes(bytes(4000))
    (folder / "c.bin").symlink_to("real.bin")
    check_complete("onnx", str(folder))


@pytest.mark.parametrize("about", [{"offset": -1}, {"length": "1e9"}, {"offset": 10**30}])
def test_an_extent_that_is_no_number_is_refused(tmp_path: Path, about: dict[str, object]) -> None:
    assert refusal(write(tmp_path, with_external_weights("c.bin", **about))).code == Code.INVALID_ARGUMENT


def test_weights_elsewhere_than_in_the_graph_are_waited_for_too(tmp_path: Path) -> None:
    constants = model([op("Constant", "", "c", value=external("c", 3, "c.bin"))], [], [port("c", FLOAT, [3])])
    for number, found in enumerate((branching(external("c", 3, "c.bin")), constants)):
        folder = write(tmp_path / str(number), found)
        assert reason(folder) == "c.bin is missing"
        (folder / "c.bin").write_bytes(bytes(11))
        assert reason(folder) == "c.bin has 11 of 12 bytes"
        (folder / "c.bin").write_bytes(bytes(12))
        check_complete("onnx", str(folder))


@pytest.mark.parametrize(
    "rest",
    [b"\xa3\x06\xa4\x06", b"\xa3\x06\xa2\x06\x01x\xa3\x06\xa4\x06\xa4\x06", b"\xa2\x06\x03abc", b"\xa0\x06\x07"],
    ids=["group", "groups", "bytes", "number"],
)
def test_what_is_not_known_in_the_file_is_left_to_onnx_runtime(tmp_path: Path, rest: bytes) -> None:
    check_complete("onnx", str(write(tmp_path, half_plus(1).SerializeToString() + rest)))


def test_names_of_any_length_and_tensors_of_any_rank_are_left_to_onnx_runtime(tmp_path: Path) -> None:
    found = half_plus(1)
    found.graph.input[0].name = found.graph.node[0].input[0] = "x" * 10_000
    found.graph.initializer[0].dims[:] = [1] * 100
    check_complete("onnx", str(write(tmp_path, found)))


def test_graphs_in_one_another_without_end_are_refused(tmp_path: Path) -> None:
    """As deep as they are, they must not exhaust the stack."""
    nested = b""
    for _ in range(3000):
        for field in (6, 5, 1):  # a graph in an attribute in a node
            nested = bytes([field << 3 | 2]) + _varint(len(nested)) + nested
    data = b"\x08\x08" + b"\x3a" + _varint(len(nested)) + nested + b"\x42\x02\x10\x11"
    assert "in one another" in refusal(write(tmp_path, data)).message


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@pytest.mark.parametrize(
    ("names", "prefer_tflite", "backend"),
    [
        ({"model.onnx"}, False, "onnx"),
        ({"model.onnx"}, True, "onnx"),
        ({"saved_model.pb", "model.onnx"}, False, "tensorflow"),
        ({"saved_model.pbtxt", "model.onnx"}, True, "tensorflow"),
        ({"model.onnx", "model.tflite"}, False, "onnx"),
        ({"model.onnx", "model.tflite"}, True, "litert"),
        ({"saved_model.pb", "model.onnx", "model.tflite"}, True, "litert"),
    ],
)
def test_the_files_and_the_option_decide_the_backend(names: set[str], prefer_tflite: bool, backend: str) -> None:
    assert backend_for(names, prefer_tflite) == backend


# -- converted models ------------------------------------------------------------------------------------------


SIGNATURE = Signature(
    {"x": TensorSpec("float32", (-1, 3), "x:0")}, {"y": TensorSpec("float32", None)}, "m", {"x": b"d"}
)
ENTRY = FormSignature("0.onnx", SIGNATURE, {"x": "a"}, {"y": "b"})


def test_what_a_converter_writes_is_read_again(tmp_path: Path) -> None:
    form = FormDescription("onnx", "float16", {"one": ENTRY, "two": ENTRY})
    write_form(str(tmp_path), form)
    assert read_form(str(tmp_path)) == form
    assert os.listdir(tmp_path) == ["signatures.json"]


def test_a_converted_model_is_complete_with_all_of_its_files(tmp_path: Path) -> None:
    assert reason(tmp_path) == "model.onnx is missing"
    write_form(str(tmp_path), FormDescription("onnx", "float32", {"one": ENTRY}))
    assert reason(tmp_path) == "0.onnx is missing"
    write(tmp_path, linear().SerializeToString()[:-40], "0.onnx")
    assert reason(tmp_path).startswith("0.onnx ")
    write(tmp_path, linear(), "0.onnx")
    check_complete("onnx", str(tmp_path))


def test_a_description_that_is_cut_off_is_incomplete(tmp_path: Path) -> None:
    write_form(str(tmp_path), FormDescription("onnx", "float32", {"one": ENTRY}))
    text = (tmp_path / "signatures.json").read_text()
    for size in (0, 1, len(text) // 2, len(text) - 1):
        (tmp_path / "signatures.json").write_text(text[:size])
        assert reason(tmp_path).startswith("signatures.json is damaged, or not written to its end")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "../0.onnx"}, "'../0.onnx'"),
        ({"file": "/etc/0.onnx"}, "'/etc/0.onnx'"),
        ({"file": "model.onnx"}, "'model.onnx'"),
        ({"file": "0.tflite"}, "'0.tflite'"),
        ({"file": 7}, "Expected `str`, got `int` - at `$.signatures[...].file`"),
        ({"inputs": {"z": "a"}}, "maps 'z', which the signature has not"),
        ({"inputs": {"x": 3}}, "Expected `str`, got `int` - at `$.signatures[...].inputs[...]`"),
        ({"inputs": 3}, "Expected `object`, got `int` - at `$.signatures[...].inputs`"),
        ({"outputs": {}}, "does not map its outputs ['y']"),
        ({"signature": {}}, "missing required field `inputs` - at `$.signatures[...].signature`"),
        ({"signature": {**msgspec.to_builtins(SIGNATURE), "inputs": {"x": ["nope", [], ""]}}}, "element type 'nope'"),
        ({"signature": {**msgspec.to_builtins(SIGNATURE), "inputs": {"x": ["int8", [-7], ""]}}}, "of the shape (-7,)"),
    ],
)
def test_a_description_that_says_something_else_is_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    document = msgspec.to_builtins(FormDescription("onnx", "float32", {"one": ENTRY}))
    document["signatures"]["one"].update(change)
    (tmp_path / "signatures.json").write_text(json.dumps(document))
    error = refusal(tmp_path)
    assert error.code == Code.INVALID_ARGUMENT
    assert error.message.startswith("signatures.json does not describe a converted model: ")
    assert words in error.message


@pytest.mark.parametrize("document", [[], 3, None, {}, {"format": "onnx", "precision": "float32", "signatures": {}}])
def test_a_description_of_another_structure_is_refused(tmp_path: Path, document: object) -> None:
    (tmp_path / "signatures.json").write_text(json.dumps(document))
    assert refusal(tmp_path).code == Code.INVALID_ARGUMENT


# -- a real server ---------------------------------------------------------------------------------------------


def deploy(root: Path, name: str, version: int, found: onnx.ModelProto) -> Path:
    """A version that is whole at once."""
    hidden = write(root / name / f".incoming-{version}", found)
    if name == "external":
        (hidden / "c.bin").write_bytes(np.array([1, 2, 3, 4], "f4").tobytes())
    target = root / name / str(version)
    os.rename(hidden, target)
    return target


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name, found in MODELS.items():
        deploy(root, name, 1, found)
    with Server(model_root=root) as running:
        for name in MODELS:
            running.wait_for(name, 1)
        yield running


def half_plus_of(server: Server, name: str) -> float:
    """What the model answers to 0."""
    status, answer = server.predict(name, {"instances": [0.0]})
    assert status == 200, answer
    return float(answer["predictions"][0])


@pytest.mark.parametrize(
    ("name", "request_body", "answer"),
    [
        ("half", {"instances": [1.0, 2.0, 5.0]}, {"predictions": [2.5, 3.0, 4.5]}),
        ("rows", {"instances": [[1, 0, 0]]}, {"predictions": [{"h": [1.0, 2.0], "y": [1.5, 1.5]}]}),
        ("rows", {"inputs": [[0, 1, 0]]}, {"outputs": {"h": [[3.0, 4.0]], "y": [[3.5, 3.5]]}}),
        ("strings", {"instances": ["ä", "", "b"]}, {"predictions": ["ä", "", "b"]}),
        ("bfloat", {"instances": [0.5, 2]}, {"predictions": [0.5, 2.0]}),
        ("gather", {"inputs": {"x": [1, 2, 3], "i": [2, 0]}}, {"outputs": [3.0, 1.0]}),
        ("external", {"instances": [[1, 1, 1, 1]]}, {"predictions": [[2.0, 3.0, 4.0, 5.0]]}),
    ],
)
def test_rest_is_answered(server: Server, name: str, request_body: object, answer: object) -> None:
    assert server.predict(name, request_body) == (200, answer)


@pytest.mark.parametrize(
    ("name", "request_body", "words"),
    [
        ("rows", {"instances": [[1, 2]]}, "input 'x' has the shape [1,2]; the model takes [-1,3]"),
        ("gather", {"inputs": {"x": [1], "i": [7]}}, "indices element out of data bounds, idx=7"),
        ("strings", {"instances": [{"b64": "//4="}]}, "input 'x' has the string b'\\xff\\xfe'; ONNX's are UTF-8"),
    ],
)
def test_rest_refuses_with_the_reason(server: Server, name: str, request_body: object, words: str) -> None:
    status, answer = server.predict(name, request_body)
    assert (status, words in answer["error"]) == (400, True), answer


def test_grpc_is_answered_and_refused(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        found = grpc_calls.predict(channel, "rows", x=np.array([[1, 0, 0]], "f4"))
        assert {name: array.tolist() for name, array in found.items()} == {"h": [[1, 2]], "y": [[1.5, 1.5]]}
        empty = grpc_calls.predict(channel, "rows", x=np.zeros((0, 3), "f4"))
        assert empty["y"].shape == (0, 2)
        code, details = grpc_calls.code_of(lambda: grpc_calls.predict(channel, "rows", x=np.zeros(3, "f4")))
        assert (code, details) == ("INVALID_ARGUMENT", "input 'x' has the shape [3]; the model takes [-1,3]")


def test_the_metadata_shows_the_signature(server: Server) -> None:
    status, document = server.get("/v1/models/rows/metadata")
    assert status == 200
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert [dim["size"] for dim in signature["inputs"]["x"]["tensor_shape"]["dim"]] == ["-1", "3"]
    assert set(signature["outputs"]) == {"h", "y"}


def test_no_worker_loads_tensorflow(server: Server) -> None:
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in server.pids("ds-worker")]
    assert len(maps) == len(MODELS)
    assert all("libonnxruntime" in text or "onnxruntime_pybind11" in text for text in maps)
    assert not any("tensorflow" in text for text in maps)


def test_a_killed_worker_is_started_again(drop: Drop, tmp_path: Path) -> None:
    deploy(tmp_path / "models", "m", 1, half_plus(2))
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("m", 1)
        (victim,) = server.pids("ds-worker")
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: server.pids("ds-worker") not in ([], [victim]), "a new worker")
        server.wait_for("m", 1)
        eventually(lambda: server.predict("m", {"instances": [0.0]})[0] == 200, "it serves again")
        assert half_plus_of(server, "m") == 2.0
        assert "killed by SIGKILL" in server.log()


def test_versions_change_from_one_backend_to_the_other_and_back(drop: Drop, tmp_path: Path) -> None:
    root = tmp_path / "models"
    drop("m", 1, "tiny_tf2")
    with Server(model_root=root) as server:
        server.wait_for("m", 1)
        assert half_plus_of(server, "m") == 2.0
        deploy(root, "m", 2, half_plus(7))
        server.wait_for("m", 2)
        assert half_plus_of(server, "m") == 7.0
        shutil.rmtree(root / "m" / "2")
        eventually(lambda: half_plus_of(server, "m") == 2.0, "the SavedModel serves again")


def test_a_half_copied_model_waits_until_it_is_whole(tmp_path: Path) -> None:
    data = half_plus(3).SerializeToString()
    version = write(tmp_path / "models" / "m" / "1", data[: len(data) // 2])
    with Server(model_root=tmp_path / "models") as server:
        eventually(
            lambda: "model.onnx is cut off" in server.versions("m").get(1, ("", ""))[1], "it is known to be half"
        )
        assert server.versions("m")[1][0] == "settling"
        with open(version / "model.onnx", "ab") as file:
            file.write(data[len(data) // 2 :])
        server.wait_for("m", 1)
        assert half_plus_of(server, "m") == 3.0


def test_what_cannot_be_run_fails_with_the_reason(tmp_path: Path) -> None:
    deploy(tmp_path / "models", "m", 1, model([op("Nope", "x", "y")], [port("x")], [port("y")]))
    deploy(tmp_path / "models", "out", 1, with_external_weights("../../../secret"))
    with Server(model_root=tmp_path / "models") as server:
        assert "No Op registered for Nope" in server.wait_for("m", 1, "failed")
        assert "forbidden name: '../../../secret'" in server.wait_for("out", 1, "failed")


def test_that_a_gpu_was_asked_for_in_vain_is_logged(tmp_path: Path) -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has an NVIDIA driver")
    deploy(tmp_path / "models", "m", 1, half_plus(2))
    with Server(model_root=tmp_path / "models", device="cuda") as server:
        server.wait_for("m", 1)
        assert half_plus_of(server, "m") == 2.0
        assert "it runs on the CPU, because CUDA cannot be used: there is no NVIDIA driver" in server.log()


def test_a_model_without_a_version_folder_is_told_where_it_goes(tmp_path: Path) -> None:
    write(tmp_path / "models" / "m", half_plus(2))
    with Server(model_root=tmp_path / "models") as server:
        base = tmp_path / "models" / "m"
        told = f"{base} holds an ONNX model itself; move it to {base}/1"
        eventually(lambda: told in json.dumps(server.get("/v1/models")[1]), "it is told so")
