"""The clients of other projects against a real server. `make test-clients` installs all of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import clients
from tests.support.server import Server

MODELS = ("half_plus_two", "multi_io", "dtypes")


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name in MODELS:
        shutil.copytree(zoo / name, root / name / "1")
    with Server(model_root=root) as running:
        for name in MODELS:
            running.wait_for(name, 1)
        yield running


def ask(server: Server, client: str, program: str) -> Any:
    """What the program printed that uses `client`. It is skipped where the client is not installed."""
    printed = clients.run(client, program, str(server.rest_port), str(server.grpc_port))
    return json.loads(printed.splitlines()[-1])


def sizes(shape: list[Any]) -> list[int]:
    """A shape, whose numbers are texts where protobuf wrote them as JSON."""
    return [int(size) for size in shape]


@pytest.fixture(scope="module")
def triton(server: Server) -> Any:
    return ask(server, "tritonclient", "triton_calls.py")


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_tritonclient_gets_back_what_it_sends_in_every_type_and_form(triton: Any, transport: str) -> None:
    echoes = triton[transport]["echoes"]
    assert len(echoes) == {"http": 27, "grpc": 13}[transport]
    assert [name for name, is_same in echoes.items() if not is_same] == []


def test_tritonclient_works_with_asyncio(triton: Any) -> None:
    assert triton["asyncio"] == {"http": True, "grpc": True}


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_tritonclient_is_told_of_the_server_and_its_models(triton: Any, transport: str) -> None:
    about = triton[transport]["about"]
    assert (about["live"], about["ready"], about["model_ready"]) == (True, True, [True, True, False])
    assert about["server"] == "dropserve"
    metadata = about["metadata"]
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == (
        "multi_io",
        ["1"],
        "tensorflow_savedmodel",
    )
    inputs = {
        tensor["name"]: (tensor["datatype"], [int(size) for size in tensor["shape"]]) for tensor in metadata["inputs"]
    }
    assert inputs == {"a": ("FP32", [-1, 3]), "b": ("INT32", [-1])}
    assert {tensor["name"] for tensor in metadata["outputs"]} == {"total", "scaled"}
    config = {
        tensor["name"]: (tensor["data_type"], [int(size) for size in tensor["dims"]])
        for tensor in about["config"]["input"]
    }
    assert config == {"a": ("TYPE_FP32", [-1, 3]), "b": ("TYPE_INT32", [-1])}
    rows = [(row["name"], row["version"], row["state"]) for row in about["index"]]
    assert rows == [(name, "1", "READY") for name in sorted(MODELS)]


@pytest.mark.parametrize(
    ("transport", "statuses"),
    [
        ("http", ("404", "400", "400")),
        ("grpc", ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT", "StatusCode.FAILED_PRECONDITION")),
    ],
)
def test_tritonclient_is_told_why_not(triton: Any, transport: str, statuses: tuple[str, str, str]) -> None:
    found = triton[transport]["refusals"]
    assert tuple(found[what][0] for what in ("unknown model", "wrong type", "load")) == statuses
    assert "absent" in found["unknown model"][1]
    assert "sent as FP64, but the model takes FP32" in found["wrong type"][1]
    assert "copy a version folder" in found["load"][1]


def test_a_stream_is_answered_in_order_and_goes_on_after_an_error(triton: Any) -> None:
    answers = triton["grpc"]["stream"]
    assert answers[:2] + answers[3:] == ["0", "1", "3", "4"]
    assert "absent" in answers[2]


def test_kserves_client_works(server: Server) -> None:
    found = ask(server, "kserve", "kserve_calls.py")
    for form in ("json", "binary", "typed", "raw"):
        assert found.pop(form) == [2.5, 3.0, 4.5, -1.75]
    assert len(found) == 6
    assert all(found.values())  # live, ready, and the model is


def test_openvinos_client_works(server: Server) -> None:
    found = ask(server, "ovmsclient", "ovms_calls.py")
    for transport in ("http", "grpc"):
        assert found[transport]["predicted"] == [2.5, 3.0, 4.5]
        assert found[transport]["status"]["1"]["state"] == "AVAILABLE"
    # Over HTTP it knows only the spelling of its own server, not TensorFlow Serving's.
    assert found["grpc"]["metadata"]["inputs"]["x"]["shape"] == [-1]
