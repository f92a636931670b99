"""TensorFlow Lite models: whether a file is whole, which backend serves a folder, and what a real server does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it ships no types
import pytest

from backends.contract import BackendError, Code, IncompleteError
from backends.registry import backend_for, check_complete
from tests.support.server import Server, eventually

Drop = Callable[..., Path]

LITE_MODELS = (
    *("lite", "lite_and_full", "lite_old", "lite_in_metadata", "lite_dtypes", "lite_conv", "lite_gather"),
    "lite_audio",
)


# -- whether the file is whole ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[bytes], str]:
    def write(data: bytes) -> str:
        (tmp_path / "model.tflite").write_bytes(data)
        return str(tmp_path)

    return write


def reason(path: str) -> str:
    with pytest.raises(IncompleteError) as caught:
        check_complete("litert", path)
    return str(caught.value)


@pytest.mark.parametrize("name", [*LITE_MODELS, "lite_custom_op"])
def test_a_whole_model_is_complete(zoo: Path, name: str) -> None:
    check_complete("litert", str(zoo / name))


@pytest.mark.parametrize("name", ["lite", "lite_conv", "lite_in_metadata"])
def test_a_model_that_is_cut_off_anywhere_is_incomplete(zoo: Path, name: str, folder: Callable[[bytes], str]) -> None:
    data = (zoo / name / "model.tflite").read_bytes()
    for size in range(0, len(data), max(1, len(data) // 200)):
        assert "is cut off" in reason(folder(data[:size]))


@pytest.mark.parametrize("name", ["lite", "lite_conv", "lite_in_metadata"])
def test_a_model_whose_rest_is_not_written_yet_is_incomplete(
    zoo: Path, name: str, folder: Callable[[bytes], str]
) -> None:
    """A copy that allocates the whole file first. A page of 4 KiB is the least that a file system leaves out."""
    data = (zoo / name / "model.tflite").read_bytes()
    for size in range(0, max(len(data) - 300, 8), max(1, len(data) // 200)):
        assert reason(folder(data[:size] + bytes(len(data) - size))).startswith("model.tflite ")


def test_a_folder_without_the_file_is_incomplete(tmp_path: Path) -> None:
    assert reason(str(tmp_path)) == "model.tflite is missing"


def test_what_is_no_model_is_told_apart(folder: Callable[[bytes], str]) -> None:
    assert "its bytes 4 to 7 are b'nope', not b'TFL3'" in reason(folder(b"\x1c\0\0\0nope" + bytes(100)))


def test_a_named_pipe_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.tflite")
    with pytest.raises(BackendError, match="not a regular file"):
        check_complete("litert", str(tmp_path))


def test_a_hostile_file_is_refused_in_bounded_time(folder: Callable[[bytes], str]) -> None:
    """Three thousand references to one graph, which has three thousand to one tensor, are nine million tables."""
    builder = flatbuffers.Builder(0)

    def references(table: int) -> int:
        builder.StartVector(4, 3000, 4)
        for _ in range(3000):
            builder.PrependUOffsetTRelative(table)
        return int(builder.EndVector())

    def object_of(fields: int, **references: int) -> int:
        builder.StartObject(fields)
        for name, value in references.items():
            builder.PrependUOffsetTRelativeSlot(int(name[1:]), value, 0)
        return int(builder.EndObject())

    graph = object_of(5, f0=references(object_of(1)))
    graphs = references(graph)
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(2, graphs, 0)
    builder.Finish(builder.EndObject(), b"TFL3")
    with pytest.raises(BackendError) as caught:
        check_complete("litert", folder(bytes(builder.Output())))
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    assert "tables" in caught.value.message


def test_another_version_of_the_schema_is_named(zoo: Path, folder: Callable[[bytes], str]) -> None:
    data = bytearray((zoo / "lite_old" / "model.tflite").read_bytes())
    (root,) = struct.unpack_from("<I", data, 0)
    (back,) = struct.unpack_from("<i", data, root)
    (offset,) = struct.unpack_from("<H", data, root - back + 4)
    struct.pack_into("<I", data, root + offset, 4)
    with pytest.raises(BackendError, match="schema version 4"):
        check_complete("litert", folder(bytes(data)))


# -- which backend ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "prefer", "backend"),
    [
        ({"saved_model.pb", "model.tflite"}, False, "tensorflow"),
        ({"saved_model.pb", "model.tflite"}, True, "litert"),
        ({"saved_model.pbtxt", "model.tflite"}, False, "tensorflow"),
        ({"saved_model.pb"}, True, "tensorflow"),
        ({"model.tflite"}, False, "litert"),
        ({"model.tflite"}, True, "litert"),
        (set(), True, "tensorflow"),
    ],
)
def test_the_files_and_the_option_decide_the_backend(names: set[str], prefer: bool, backend: str) -> None:
    assert backend_for(names, prefer) == backend


# -- a real server ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name in (*LITE_MODELS, "tiny_tf2"):
        shutil.copytree(zoo / name, root / name / "1")
    with Server(model_root=root, prefer_tflite_model=True) as running:
        for name in (*LITE_MODELS, "tiny_tf2"):
            running.wait_for(name, 1)
        yield running


@pytest.fixture(scope="module")
def answers(server: Server) -> dict[str, Any]:
    """What the official stubs got."""
    return server.ask_official("tests.support.official_lite_client")


def half_plus(server: Server, model: str) -> float:
    """What the model answers to 0."""
    status, answer = server.predict(model, {"instances": [0.0]})
    assert status == 200, answer
    return float(answer["predictions"][0])


def maps_of(server: Server) -> list[str]:
    """What each worker has mapped."""
    return [Path(f"/proc/{pid}/maps").read_text() for pid in server.pids("ds-worker")]


def test_the_preferred_model_is_served_and_the_saved_model_where_there_is_none(server: Server) -> None:
    assert half_plus(server, "lite_and_full") == 3.0
    assert half_plus(server, "tiny_tf2") == 2.0


def test_the_first_requests_of_an_audio_model_decide_its_length(server: Server) -> None:
    status, answer = server.predict("lite_audio", {"instances": [[1.0] * 100]})
    assert (status, "CONV_2D" in answer["error"]) == (400, True)
    status, answer = server.predict("lite_audio", {"instances": [[1.0] * 672, [0.5] * 672]})
    assert (status, answer) == (200, {"predictions": [[[[512.0]], [[512.0]]], [[[256.0]], [[256.0]]]]})


def test_no_worker_of_a_lite_model_loads_tensorflow(server: Server) -> None:
    maps = maps_of(server)
    assert len(maps) == len(LITE_MODELS) + 1
    assert sum("ai_edge_litert" in text for text in maps) == len(LITE_MODELS)
    assert sum("tensorflow" in text for text in maps) == 1
    assert not any("ai_edge_litert" in text and "tensorflow" in text for text in maps)


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        ("lite", {"y": ["3.5", "4.0", "5.5"]}),
        ("multi", {"scaled": ["1.0", "1.0", "1.0", "2.0", "2.0", "2.0"], "total": ["4.0", "5.0"]}),
        ("strings", {"column": ["b'a'", "b'\\xff\\x00z'", "b''"], "y": ["b'a'", "b'\\xff\\x00z'", "b''"]}),
        ("half", {"column": ["0.5", "2.0"], "y": ["0.5", "2.0"]}),
        ("old", {"Identity": ["4.0"]}),
    ],
)
def test_the_official_client_is_answered(answers: dict[str, Any], what: str, answer: dict[str, list[str]]) -> None:
    assert answers[what] == answer


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("no signature", "FAILED_PRECONDITION", "nope"),
        ("wrong shape", "INVALID_ARGUMENT", "input 'a' has the shape [2,4]; the model takes [-1,3]"),
        ("wrong type", "INVALID_ARGUMENT", "int64"),
        ("refused value", "INVALID_ARGUMENT", "gather index out of bounds"),
    ],
)
def test_the_official_client_is_refused_with_the_reason(
    answers: dict[str, Any], what: str, code: str, words: str
) -> None:
    assert answers[what][0] == code
    assert words in answers[what][1]


def test_the_metadata_shows_the_signatures(answers: dict[str, Any], server: Server) -> None:
    assert set(answers["metadata"]) == {"serving_default", "multi"}
    a = answers["metadata"]["multi"]["inputs"]["a"]
    assert (a["name"], a["dtype"]) == ("multi_a:0", "DT_FLOAT")
    assert [dim["size"] for dim in a["tensorShape"]["dim"]] == ["-1", "3"]
    status, document = server.get("/v1/models/lite_in_metadata/metadata")
    assert status == 200
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/regress"
    assert [dim["size"] for dim in signature["inputs"]["inputs"]["tensor_shape"]["dim"]] == ["-1", "1"]


def test_a_killed_worker_is_started_again(server: Server) -> None:
    def worker() -> int | None:
        found = [pid for pid in server.pids("ds-worker") if pid not in others]
        return found[0] if len(found) == 1 else None

    before = set(server.pids("ds-worker"))
    victim = next(pid for pid in before if "ai_edge_litert" in Path(f"/proc/{pid}/maps").read_text())
    others = before
    os.kill(victim, signal.SIGKILL)
    eventually(worker, "a new worker")
    for name in LITE_MODELS:
        server.wait_for(name, 1)
    assert half_plus(server, "lite") == 3.0
    assert "killed by SIGKILL" in server.log()


def test_a_worker_ends_with_its_supervisor(drop: Drop, tmp_path: Path) -> None:
    drop("m", source="lite")
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("m", 1)
        (worker,) = server.pids("ds-worker")
        server.process.kill()
        eventually(lambda: not Path(f"/proc/{worker}/maps").exists(), "the worker has ended")


def test_the_saved_model_is_served_unless_the_flag_is_given(drop: Drop, tmp_path: Path) -> None:
    drop("both", source="lite_and_full")
    drop("lite", source="lite")
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("both", 1)
        server.wait_for("lite", 1)
        assert half_plus(server, "both") == 2.0
        assert half_plus(server, "lite") == 3.0  # it has no other


def test_unloading_ends_the_process(drop: Drop, tmp_path: Path) -> None:
    drop("m", source="lite")
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("m", 1)
        (old,) = server.pids("ds-worker")
        drop("m", version=2, source="lite")
        server.wait_for("m", 2)
        eventually(lambda: server.pids("ds-worker") and old not in server.pids("ds-worker"), "the old one has gone")
        assert half_plus(server, "m") == 3.0
        assert server.stop() == 0


def test_a_half_copied_model_waits_until_it_is_whole(drop: Drop, tmp_path: Path, zoo: Path) -> None:
    data = (zoo / "lite" / "model.tflite").read_bytes()
    version = tmp_path / "models" / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.tflite").write_bytes(data[: len(data) // 2])
    with Server(model_root=tmp_path / "models") as server:
        eventually(
            lambda: "model.tflite is cut off" in server.versions("m").get(1, ("", ""))[1], "it is known to be half"
        )
        assert server.versions("m")[1][0] == "settling"
        with open(version / "model.tflite", "ab") as file:
            file.write(data[len(data) // 2 :])
        server.wait_for("m", 1)
        assert half_plus(server, "m") == 3.0


def test_what_cannot_be_run_fails_with_the_reason(drop: Drop, tmp_path: Path) -> None:
    drop("m", source="lite_custom_op")
    with Server(model_root=tmp_path / "models") as server:
        said = server.wait_for("m", 1, "failed")
        assert "unresolved custom op: StringUpper" in said


def test_a_version_may_change_from_one_kind_of_model_to_the_other(drop: Drop, tmp_path: Path, zoo: Path) -> None:
    """Its files change before it is loaded: what they are then decides."""
    version = drop("m", source="lite_custom_op")
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("m", 1, "failed")
        shutil.copytree(zoo / "tiny_tf2", version, dirs_exist_ok=True)
        server.wait_for("m", 1)
        assert half_plus(server, "m") == 2.0


def test_a_model_without_a_version_folder_is_told_where_it_goes(tmp_path: Path, zoo: Path) -> None:
    shutil.copytree(zoo / "lite", tmp_path / "models" / "m")
    with Server(model_root=tmp_path / "models") as server:
        base = tmp_path / "models" / "m"
        told = f"{base} holds a TensorFlow Lite model itself; move it to {base}/1"
        eventually(lambda: told in json.dumps(server.get("/v1/models")[1]), "it is told so")
