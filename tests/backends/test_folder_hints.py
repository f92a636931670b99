"""What is said of a version folder that holds something else than a model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.contract import IncompleteError
from backends.folder_hints import hint
from backends.saved_model import check_complete


def reason(folder: Path) -> str:
    with pytest.raises(IncompleteError) as caught:
        check_complete(str(folder))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.keras", "model.keras is a Keras file: load it by keras.models.load_model(…), export(FOLDER)"),
        ("model.h5", "model.h5 is a Keras file: "),
        ("Net.HDF5", "Net.HDF5 is a Keras file: "),
        ("cnn.weights.h5", "cnn.weights.h5 has weights and no model: "),
        ("classifier.onnx", "classifier.onnx is an ONNX model under another name: rename it to model.onnx"),
        ("Model.onnx", "Model.onnx is spelt otherwise: rename it to model.onnx"),
        ("cnn.tflite", "cnn.tflite is a TensorFlow Lite model under another name: rename it to model.tflite"),
        ("export/saved_model.pb", "export/saved_model.pb lies one folder too deep: move the content of export/ one"),
        ("1/model.onnx", "1/model.onnx lies one folder too deep: move the content of 1/ one folder up"),
        ("checkpoint", "checkpoint is part of a checkpoint, which has weights and no model: "),
        ("m.ckpt.index", "m.ckpt.index is part of a checkpoint, "),
        ("model.pt", "model.pt is a PyTorch file: convert it by torch.onnx.export"),
        ("model.pth", "model.pth is a PyTorch file: "),
        ("model.pkl", "model.pkl is a pickle, which is not loaded because it can run anything: convert "),
        ("model.joblib", "model.joblib is a pickle, "),
        ("model.zip", "model.zip is an archive: unpack it here"),
        ("model.tar.gz", "model.tar.gz is an archive: unpack it here"),
        ("frozen_inference_graph.pb", "frozen_inference_graph.pb may be a frozen graph, which has no signatures: "),
        ("a\nb\udcff.onnx", "a\\nb\\udcff.onnx is an ONNX model"),
        ("x" * 200 + ".onnx", "x" * 100 + "… is an ONNX model"),
    ],
)
def test_what_lies_there_is_named_with_what_to_do(tmp_path: Path, name: str, says: str) -> None:
    target = tmp_path / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"x")
    assert reason(tmp_path).startswith(f"saved_model.pb is missing; {says}")
    assert reason(tmp_path).isprintable()
    reason(tmp_path).encode()


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path) -> None:
    assert reason(tmp_path) == "saved_model.pb is missing; the folder is empty: copy a model into it"


def test_several_models_are_counted(tmp_path: Path) -> None:
    for name in ("b.onnx", "a.onnx", "c.onnx"):
        (tmp_path / name).write_bytes(b"x")
    assert reason(tmp_path).startswith("saved_model.pb is missing; a.onnx (and 2 more such) is an ONNX model")


@pytest.mark.parametrize("name", ["README.md", ".saved_model.pb.Xy3abC", "variables/variables.index", "fingerprint.pb"])
def test_nothing_is_said_of_what_tells_nothing_or_of_a_saved_model_on_its_way(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert reason(tmp_path) == "saved_model.pb is missing"
    if name.startswith(("variables", "fingerprint")):
        (tmp_path / "model.zip").write_bytes(b"x")
        assert reason(tmp_path) == "saved_model.pb is missing"


def test_a_folder_of_many_files_is_looked_at_in_part(tmp_path: Path) -> None:
    for number in range(1200):
        os.mkdir(tmp_path / f"d{number}")
    assert hint(str(tmp_path)) == ""
    assert hint(str(tmp_path / "absent")) == ""
