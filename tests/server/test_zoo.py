"""A part of the zoo, with what is installed anyway; `make zoo` serves all of it, and writes docs/models.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.models.broken import BROKEN, broken_models
from tests.models.catalogue import GROUPS, MODELS, folder_of, made
from tests.models.compare import difference, differences
from tests.models.serving import Outcome, serve, write_answers
from tests.support.server import ROOT

# Ways of exporting that no other test has: each by the session, a repair or the object graph, as it takes.
PLAIN = (
    "keras3_saved_model_save",
    "keras3_in_a_module",
    "keras3_text_vectorization_saved",
    "keras3_archive_endpoints",
    "keras3_feature_space",
    "keras2_signature_from_bytes",
    "tf1_compressed_index",
    "tf1_table_legacy_init_op",
    "tf2_mutable_table",
    "tf2_ragged_input",
    "tf2_xla",
    "lite_uint8_without_signatures",
)
ACCELERATED = ("keras3_saved_model_save", "keras3_multi_input_output", "keras3_attention")

pytestmark = pytest.mark.timeout(400)  # each of the two servers holds many models


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for module, group in GROUPS.items():
        if names := [name for name in group.models if name in {*PLAIN, *ACCELERATED}]:
            for name, folder in made(module, names).items():
                assert isinstance(folder, Path), f"{name} could not be made: {folder}"
                found[name] = folder
    return found


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path]) -> Path:
    """What the frameworks themselves answer, which a process of their own has written."""
    place = ROOT / "build" / "test-models" / "zoo-answers" / "-".join(folder_of(m).name[-8:] for m in GROUPS)
    assert write_answers(folders, place) == {}
    return place


@pytest.fixture(scope="module")
def plain(folders: dict[str, Path], answers: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return serve(PLAIN, folders, answers, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def accelerated(
    folders: dict[str, Path], answers: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    work = tmp_path_factory.mktemp("accelerated")
    return serve(ACCELERATED, folders, answers, work, acceleration="onnx", cache_dir=work / "cache")


@pytest.mark.parametrize("name", PLAIN)
def test_a_model_is_served_and_answers_as_its_framework_does(name: str, plain: dict[str, Outcome]) -> None:
    assert (plain[name].phase, plain[name].faults) == ("available", [])


@pytest.mark.parametrize("name", ACCELERATED)
def test_an_accelerated_model_answers_as_its_framework_does(name: str, accelerated: dict[str, Outcome]) -> None:
    found = accelerated[name]
    assert (found.phase, found.acceleration["serving"], found.faults) == ("available", "onnx", [])


def test_tensorflow_itself_answers_none_of_the_broken_versions() -> None:
    command = [sys.executable, "-m", "tests.models.broken", "fates", str(broken_models())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=150)
    assert json.loads(done.stdout) == {name: broken.fails for name, broken in BROKEN.items()}


def test_every_model_of_the_zoo_stands_in_the_table() -> None:
    table = (ROOT / "docs" / "models.md").read_text()
    missing = [name for name in MODELS if f"| `{name}` |" not in table]
    assert missing == [], "make zoo writes the table"


# -- the comparison


@pytest.mark.parametrize("off", [2e-5, -2e-5])
def test_answers_that_are_off_by_more_than_the_tolerance_are_told(off: float) -> None:
    truth = np.linspace(1.0, 2.0, 6, dtype="float32").reshape(2, 3)
    assert difference(truth, truth * np.float32(1 + 0.3 * off), 1e-5) == ""
    wrong = truth.copy()
    wrong[1, 2] *= np.float32(1 + off)
    assert "at [1, 2]" in difference(truth, wrong, 1e-5)


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (np.zeros((2, 3), "float32"), np.zeros((3, 2), "float32")),
        (np.zeros(2, "float32"), np.zeros(2, "float64")),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([b"a", b"b"], object), np.array([b"a", b"c"], object)),
        (np.array([np.nan, 1.0]), np.array([0.0, 1.0])),
        (np.array([np.inf, 1.0]), np.array([-np.inf, 1.0])),
        (np.array([1 + 1j]), np.array([1 - 1j])),
    ],
)
def test_other_shapes_types_and_values_are_told(truth: np.ndarray, answer: np.ndarray) -> None:
    assert difference(truth, truth.copy(), 1e-5) == ""
    assert difference(truth, answer, 1e-5)


def test_a_missing_output_is_told() -> None:
    assert "expected were ['x', 'y']" in differences({"x": np.ones(1), "y": np.ones(1)}, {"x": np.ones(1)}, 1e-5)
