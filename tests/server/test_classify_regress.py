"""Classify, Regress and MultiInference as the official client and plain HTTP see them, against a real server."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.protocols import protos
from tests.support.server import Server, eventually


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name in ("half_plus_two", "parsed_examples"):
        shutil.copytree(zoo / name, root / name / "1")
    with Server(model_root=root) as running:
        running.wait_for("half_plus_two", 1)
        running.wait_for("parsed_examples", 1)
        yield running


@pytest.fixture(scope="module")
def answers(server: Server) -> dict[str, Any]:
    """What the official stubs got."""
    return server.ask_official("tests.support.official_examples")


def spec(model: str, signature: str) -> dict[str, str]:
    return {"name": model, "version": "1", "signatureName": signature}


def classes(*rows: list[tuple[str, float]]) -> dict[str, Any]:
    """A ClassificationResult as JSON, which leaves out empty labels and zeros."""
    named = [[{"label": label, "score": score} for label, score in row] for row in rows]
    return {"classifications": [{"classes": [{k: v for k, v in each.items() if v} for each in row]} for row in named]}


# ---- gRPC

LABELS = classes([("plus", 2.5), ("minus", -2.5)], [("plus", 3.0), ("minus", -3.0)])


@pytest.mark.parametrize(
    ("case", "model", "signature", "result"),
    [
        ("scores", "half_plus_two", "classify_x_to_y", classes([("", 2.5), ("", -2.5)], [("", 3.0), ("", -3.0)])),
        ("labels", "half_plus_two", "classify_x_to_label", LABELS),
        ("classes", "parsed_examples", "classify_text", classes([("7", 0), ("0.50", 0), ("a", 0)])),
        ("default signature", "parsed_examples", "serving_default", classes([("7", 7.0), ("0.00", 0), ("", 7.0)])),
        (
            "context",
            "parsed_examples",
            "classify_text",
            classes([("1", 0), ("0.50", 0), ("shared", 0)], [("2", 0), ("0.00", 0), ("shared", 0)]),
        ),
    ],
)
def test_classify_gives_labels_and_scores(
    answers: dict[str, Any], case: str, model: str, signature: str, result: dict[str, Any]
) -> None:
    assert answers[case] == {"modelSpec": spec(model, signature), "result": result}


@pytest.mark.parametrize("case", ["regression", "version", "token"])
def test_regress_gives_numbers(answers: dict[str, Any], case: str) -> None:
    result = {"regressions": [{"value": 2.5}, {"value": 3.0}]}
    assert answers[case] == {"modelSpec": spec("half_plus_two", "regress_x_to_y"), "result": result}


def test_regress_takes_a_column(answers: dict[str, Any]) -> None:
    assert answers["column"]["result"] == {"regressions": [{"value": 2.5}]}


def test_many_examples_are_answered_at_once(answers: dict[str, Any]) -> None:
    assert answers["many"] == 5000


def test_several_tasks_are_answered_in_their_order(answers: dict[str, Any]) -> None:
    regression = {
        "modelSpec": spec("half_plus_two", "regress_x_to_y"),
        "regressionResult": {"regressions": [{"value": 2.5}, {"value": 3.0}]},
    }
    labels = {"modelSpec": spec("half_plus_two", "classify_x_to_label"), "classificationResult": LABELS}
    assert answers["multi"] == {"results": [regression, labels]}
    assert answers["multi reversed"] == {"results": [labels, regression]}


def test_tasks_whose_signatures_have_input_tensors_of_their_own_get_the_same_examples(answers: dict[str, Any]) -> None:
    labels = classes([("2", 0), ("0.50", 0), ("", 0)], [("3", 0), ("0.00", 0), ("", 0)])
    assert answers["multi inputs"] == {
        "results": [
            {"modelSpec": spec("parsed_examples", "classify_text"), "classificationResult": labels},
            {
                "modelSpec": spec("parsed_examples", "regress_column"),
                "regressionResult": {"regressions": [{"value": 2.5}, {"value": 3.0}]},
            },
        ]
    }


ERRORS = [
    ("no model", "INVALID_ARGUMENT", "Missing ModelSpec"),
    ("no name", "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    ("unknown model", "NOT_FOUND", "Servable not found for request: Latest(unknown)"),
    ("unknown version", "NOT_FOUND", "Servable not found for request: Specific(half_plus_two, 7)"),
    ("unknown label", "INVALID_ARGUMENT", "Unrecognized servable version label: stable"),
    ("unknown signature", "INVALID_ARGUMENT", "No signature was found with the name: nope"),
    ("predict's signature", "INVALID_ARGUMENT", "No regression inputs found in SignatureDef: "),
    ("no example", "INVALID_ARGUMENT", "Input is empty."),
    ("only a context", "INVALID_ARGUMENT", "Input is empty."),
    ("no input", "INVALID_ARGUMENT", "Input is empty."),
    ("a missing feature", "INVALID_ARGUMENT", "x"),
    ("another kind of feature", "INVALID_ARGUMENT", "Data types don't match"),
    ("integer scores", "INVALID_ARGUMENT", "Expected scores Tensor of DT_FLOAT. Got: DT_INT64"),
    ("no task", "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    ("two models", "INVALID_ARGUMENT", "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
    ("a task without a model", "INVALID_ARGUMENT", "Found ModelSpec with an empty model name."),
    ("the same signature twice", "INVALID_ARGUMENT", "Duplicate evaluation of signature: regress_x_to_y"),
    ("a task's unknown signature", "INVALID_ARGUMENT", "Requested signature not found in model graph: nope"),
    ("a task's unknown method", "UNIMPLEMENTED", "Unsupported signature method_name: tensorflow/serving/predict"),
    ("a task's unknown model", "NOT_FOUND", "Servable not found for request: Latest(unknown)"),
    ("a task that parses nothing", "INVALID_ARGUMENT", "to be float but string is provided"),
    ("tasks without examples", "INVALID_ARGUMENT", "Input is empty."),
]


@pytest.mark.parametrize(("case", "code", "words"), ERRORS, ids=[case for case, _, _ in ERRORS])
def test_errors_have_the_codes_and_the_words_of_the_contract(
    answers: dict[str, Any], case: str, code: str, words: str
) -> None:
    found, details = answers["errors"][case]
    assert found == code
    assert words in details


def test_all_tasks_are_of_one_version_while_versions_change_places(drop: Callable[..., Path], tmp_path: Path) -> None:
    drop("m", 1, "half_plus_two")
    request = protos.MultiInferenceRequest()
    for signature, method in (("regress_x_to_y", "regress"), ("classify_x_to_y", "classify")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = "m"
        task.model_spec.signature_name = signature
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)
    data = request.SerializeToString()
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("m", 1)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            ask = channel.unary_unary("/tensorflow.serving.PredictionService/MultiInference")

            def answering() -> set[int]:
                """The versions that answer now, after a look at their answers."""
                versions = set()
                for call in [ask.future(data, timeout=30) for _ in range(8)]:
                    answer = protos.MultiInferenceResponse.FromString(call.result())
                    regression, classification = answer.results
                    (version,) = {result.model_spec.version.value for result in answer.results}
                    y = {1: 3.0, 2: 4.0, 3: 3.0}[version]
                    assert [one.value for one in regression.regression_result.regressions] == [y]
                    (row,) = classification.classification_result.classifications
                    assert [one.score for one in row.classes] == [y, -y]
                    versions.add(version)
                return versions

            assert answering() == {1}
            drop("m", 2, "half_plus_three")
            eventually(lambda: answering() == {2}, "version 2 answers")
            drop("m", 3, "half_plus_two")
            eventually(lambda: answering() == {3}, "version 3 answers")


# ---- REST


def ask(server: Server, path: str, document: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    status, answer, _ = server.http("POST", f"/v1/models/{path}", body, headers)
    return status, answer


XS = [{"x": 1.0}, {"x": 2.0}]


@pytest.mark.parametrize(
    ("path", "document", "results"),
    [
        ("half_plus_two:regress", {"signature_name": "regress_x_to_y", "examples": XS}, [2.5, 3.0]),
        ("half_plus_two/versions/1:regress", {"signature_name": "regress_x_to_y", "examples": XS}, [2.5, 3.0]),
        (
            "half_plus_two:classify",
            {"signature_name": "classify_x_to_y", "examples": XS},
            [[["", 2.5], ["", -2.5]], [["", 3.0], ["", -3.0]]],
        ),
        (
            "half_plus_two:classify",
            {"signature_name": "classify_x_to_label", "examples": XS},
            [[["plus", 2.5], ["minus", -2.5]], [["plus", 3.0], ["minus", -3.0]]],
        ),
        (
            "parsed_examples:classify",
            {"signature_name": "classify_text", "examples": [{"n": 5, "f": 0.25, "s": {"b64": "Z3LDvG4="}}]},
            [[["5", 0.0], ["0.25", 0.0], ["grün", 0.0]]],
        ),
        (
            "parsed_examples:classify",
            {"context": {"s": "shared", "n": 1}, "examples": [{"f": 0.5}, {"n": True}]},
            [[["1", 1.0], ["0.50", 0.5], ["shared", 1.0]], [["1", 1.0], ["0.00", 0.0], ["shared", 1.0]]],
        ),
        ("half_plus_two:regress", b'{"signature_name": "regress_x_to_y", "examples": [{"x": [1.0]}]}', [2.5]),
    ],
)
def test_rest_answers_with_results(server: Server, path: str, document: Any, results: list[Any]) -> None:
    assert ask(server, path, document) == (200, {"results": results})


def test_rest_takes_a_gzip_body_and_ignores_a_token(server: Server) -> None:
    body = gzip.compress(json.dumps({"signature_name": "regress_x_to_y", "examples": XS}).encode())
    headers = {"Content-Encoding": "gzip", "Authorization": "Bearer anything"}
    assert ask(server, "half_plus_two:regress", body, headers) == (200, {"results": [2.5, 3.0]})


@pytest.mark.parametrize(
    ("path", "document", "status", "words"),
    [
        ("unknown:classify", b"{", 400, "JSON Parse error"),
        ("unknown:classify", {}, 400, "key 'examples' is expected and was not found"),
        ("unknown:classify", {"examples": [{}]}, 404, "Servable not found for request: Latest(unknown)"),
        ("half_plus_two/versions/7:regress", {"examples": [{}]}, 404, "Specific(half_plus_two, 7)"),
        ("half_plus_two/labels/stable:regress", {"examples": [{}]}, 400, "Unrecognized servable version label: stable"),
        ("half_plus_two:regress", {"signature_name": "nope", "examples": XS}, 400, "No signature was found with"),
        ("half_plus_two:regress", {"examples": XS}, 400, "No regression inputs found in SignatureDef"),
        ("half_plus_two:classify", {"examples": [{"x": [1, 2.5]}]}, 400, "Unexpected element type in feature: x"),
        ("half_plus_two:regress", {"signature_name": "regress_x_to_y", "examples": [{"x": 1}]}, 400, "x"),
        ("half_plus_two:regress", {"signature_name": "regress_x_to_y", "examples": [{}]}, 400, "x"),
        ("parsed_examples:classify", {"signature_name": "classify_flat", "examples": [{}]}, 400, "but got [1]"),
        ("parsed_examples:regress", {"signature_name": "not_parsed", "examples": [{}]}, 400, "Expects arg[0]"),
    ],
)
def test_rest_says_what_is_wrong(server: Server, path: str, document: Any, status: int, words: str) -> None:
    found, answer = ask(server, path, document)
    assert found == status
    assert words in answer["error"]


def test_a_context_too_large_for_its_examples_leaves_the_server_as_it_was(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "parsed_examples", tmp_path / "models" / "parsed_examples" / "1")
    with Server(model_root=tmp_path / "models", max_request_bytes=2**20) as server:
        server.wait_for("parsed_examples", 1)
        document = {"context": {"s": "x" * 500_000}, "examples": [{}] * 1000}
        status, answer = ask(server, "parsed_examples:classify", document)
        assert status == 400
        assert "at most 1,048,576 are taken" in answer["error"]
        del document["examples"][1:]  # type: ignore[attr-defined]  # it is a list
        assert ask(server, "parsed_examples:classify", document)[0] == 200


def test_the_method_name_is_checked_where_that_is_asked_for(zoo: Path, tmp_path: Path) -> None:
    for name in ("half_plus_two", "parsed_examples"):
        shutil.copytree(zoo / name, tmp_path / "models" / name / "1")
    with Server(model_root=tmp_path / "models", enable_signature_method_name_check=True) as server:
        server.wait_for("half_plus_two", 1)
        server.wait_for("parsed_examples", 1)
        document = {"signature_name": "regress_x_to_y", "examples": XS}
        assert ask(server, "half_plus_two:regress", document) == (200, {"results": [2.5, 3.0]})
        status, answer = ask(server, "parsed_examples:classify", {"examples": [{}]})
        assert status == 400
        assert "Expected classification signature method_name to be tensorflow/serving/classify" in answer["error"]
