"""The digits example, run as its README says, in a folder of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"

pytest.importorskip("sklearn", reason="the example's data come with scikit-learn (the extra `examples`)")


def run_training(models: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "train.py"), "--models", str(models)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A model root with version 1, and what the training wrote."""
    models = tmp_path_factory.mktemp("models")
    return models, run_training(models)


def test_training_prints_progress_and_a_good_accuracy(trained):
    _, result = trained
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^epoch +\d+/20  loss \d+\.\d+  accuracy \d+\.\d+%$", result.stdout, re.MULTILINE)) == 20
    accuracy = re.search(r"^version 1: held-out accuracy (\d+\.\d+)% on 450 images$", result.stdout, re.MULTILINE)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97


def test_version_folder_is_a_whole_savedmodel_and_nothing_else_is_left(trained):
    models, _ = trained
    assert os.listdir(models / "digits") == ["1"]
    version = models / "digits" / "1"
    assert (version / "saved_model.pb").stat().st_size > 0
    assert (version / "variables" / "variables.index").stat().st_size > 0
    assert (version / "variables" / "variables.data-00000-of-00001").stat().st_size > 0


def test_second_run_leaves_the_version_alone(trained):
    models, _ = trained
    before = (models / "digits" / "1" / "saved_model.pb").stat()
    result = run_training(models)
    after = (models / "digits" / "1" / "saved_model.pb").stat()
    assert result.returncode == 0
    assert "is already there" in result.stdout
    assert "epoch" not in result.stdout
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_sample_is_a_predict_request_of_8_by_8_images():
    instances = json.loads((EXAMPLE / "sample.json").read_bytes())["instances"]
    assert len(instances) == 2
    for image in instances:
        assert [len(row) for row in image] == [8] * 8
        assert all(0 <= pixel <= 16 for row in image for pixel in row)
