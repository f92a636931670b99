"""A conversion job runs the model in its children, which are confined as workers are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config.model_options import ModelOptions
from appliance.conversion.form_cache import FormCache
from appliance.conversion.job import accelerate
from appliance.host.confinement import supported
from converters.report import Report
from tests.support.server import KEY_FILE, ROOT


def job(model: Path, tmp_path: Path, sandbox: str) -> Report:
    options = ModelOptions(sandbox=sandbox, acceleration="tflite")
    cache = FormCache(str(tmp_path / "cache"), 1 << 30, KEY_FILE)
    return accelerate(options, str(model), cache, lambda _: None)


@pytest.fixture
def harm(tmp_path: Path) -> Path:
    return tmp_path / "harm"


@pytest.fixture
def hostile(harm: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "hostile" / "1"
    command = [sys.executable, "-m", "tests.support.hostile_models", str(folder), str(harm)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=150)
    return folder


@pytest.mark.skipif("seccomp" not in supported().by, reason=str(supported()))
def test_a_model_that_writes_when_it_is_loaded_writes_nothing(hostile: Path, harm: Path, tmp_path: Path) -> None:
    report = job(hostile, tmp_path, "on")
    assert not harm.exists()
    assert report.chosen == "tensorflow"
    assert "Permission denied" in report.reason
    job(hostile, tmp_path, "off")
    assert harm.exists(), "it does write if nothing keeps it from that"
