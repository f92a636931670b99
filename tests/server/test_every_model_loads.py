"""A running server and models that TensorFlow loads, but not in the most usual way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.object_graph_answers import answers
from tests.support.server import ROOT, Server
from tests.support.tables import SNAPPY, blocks_of, copies, table_of

ROWS = [[0.5, -1.0, 2.0, 0.25], [1.0, 1.0, -3.0, 0.0], [0.0, 0.0, 0.0, 4.0]]


@pytest.fixture
def server(tmp_path: Path, drop: Callable[..., Path]) -> Iterator[Server]:
    for model in ("keras3_saved", "without_saver"):
        drop(model, source=model)
    index = drop("compressed") / "variables/variables.index"
    index.write_bytes(table_of(*((copies(block), SNAPPY) for block in blocks_of(index.read_bytes()))))
    with Server(model_root=tmp_path / "models") as started:
        yield started


def test_models_that_only_tensorflow_understands_are_served(
    server: Server, zoo: Path, drop: Callable[..., Path]
) -> None:
    folder = str(zoo / "keras3_saved")
    for model in ("keras3_saved", "without_saver", "compressed"):
        server.wait_for(model, 1)
    status, predicted = server.predict("keras3_saved", {"instances": ROWS})
    assert status == 200
    rows = np.array(ROWS, np.float32)
    (expected,) = answers({"m": (folder, {"serving_default": {"inputs": rows}})})["m"]["serving_default"].values()
    np.testing.assert_allclose(predicted["predictions"], expected, rtol=0, atol=1e-6)
    _, halves = server.predict("without_saver", {"inputs": [1.0, 2.0]})
    assert halves == {"outputs": {"y": [2.5, 3.0], "z": [2.0, 4.0]}}
    assert server.predict("compressed", {"instances": [1.0, 2.0]}) == (200, {"predictions": [2.5, 3.0]})

    _, document = server.get("/v1/models")
    shown = {model["name"]: model["versions"][0]["remarks"] for model in document["models"]}
    assert {model: len(remarks) for model, remarks in shown.items()} == {
        "keras3_saved": 1,
        "without_saver": 1,
        "compressed": 0,
    }
    command = [sys.executable, "-m", "appliance", "models", "--detail", f"--url=http://127.0.0.1:{server.rest_port}"]
    detail = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for remark in (*shown["keras3_saved"], *shown["without_saver"]):
        assert remark in detail
        assert remark in server.log()

    drop("compressed", 2, "never_set")
    reason = server.wait_for("compressed", 2, "failed")
    assert "reads variables that have no value after loading: never_set" in reason
    assert server.predict("compressed", {"instances": [1.0, 2.0]}) == (200, {"predictions": [2.5, 3.0]})
