"""The example client, as its README runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from examples.clients.grpc_predict import Client
from tests.support.server import ROOT, Server

SCRIPT = ROOT / "examples" / "clients" / "grpc_predict.py"


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for model in ("half_plus_two", "strings"):
        shutil.copytree(zoo / model, root / model / "1")
    with Server(model_root=root) as running:
        for model in ("half_plus_two", "strings"):
            running.wait_for(model, 1)
        yield running


def run(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments, "--target", f"127.0.0.1:{server.grpc_port}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_example_predicts_without_tensorflow(server: Server) -> None:
    result = run(server, "half_plus_two", "x=[1, 2.0, 5.0]")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"y": [2.5, 3.0, 4.5]}
    loaded = "import sys; import examples.clients.grpc_predict; print({m.partition('.')[0] for m in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "'numpy'" in modules.stdout
    assert "'tensorflow'" not in modules.stdout
    assert "'appliance'" not in modules.stdout


def test_the_examples_errors_say_what_the_server_said(server: Server) -> None:
    assert "has no input 'z'; it has x" in run(server, "half_plus_two", "z=[1]").stderr
    result = run(server, "unknown", "x=[1]")
    assert result.returncode == 1
    assert "NOT_FOUND: Servable not found for request: Latest(unknown)" in result.stderr


def test_strings_and_large_arrays_pass_the_example_client(server: Server) -> None:
    client = Client(f"127.0.0.1:{server.grpc_port}")
    x = np.arange(3_000_000, dtype=np.float32)
    assert (client.predict("half_plus_two", {"x": x}, version=1)["y"] == x / 2 + 2).all()
    outputs = client.predict("strings", {"text": np.array([b"a\xff", "bc"], object)})
    assert outputs["echo_bytes"].tolist() == [b"a\xff", b"bc"]
    assert outputs["length"].tolist() == [2, 2]
