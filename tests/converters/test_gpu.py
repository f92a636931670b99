"""A form is judged by the arithmetic that it has on this machine."""

from __future__ import annotations

import os

import pytest

from appliance.config.model_options import ModelOptions
from appliance.conversion.form_cache import FormCache
from appliance.conversion.job import job_spec
from converters.identity import machine
from converters.processes import arithmetic_of


@pytest.fixture
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this machine has NVIDIA's driver, as the test wants it."""
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: request.param if "nvidia" in str(path) else exists(path))
    return bool(request.param)


@pytest.mark.parametrize(
    ("device", "driver", "arithmetic"),
    [("auto", False, "float32"), ("auto", True, "tf32"), ("cuda", False, "tf32"), ("cpu", True, "float32")],
    indirect=["driver"],
)
def test_float32_counts_as_tf32_only_if_a_gpu_is_to_run_it(driver: bool, device: str, arithmetic: str) -> None:
    spec = job_spec(ModelOptions(device=device), "/m/1", "/work", FormCache("/cache", 0, ""))
    assert arithmetic_of("onnx", "float32", spec.device) == arithmetic
    assert arithmetic_of("tflite", "float32", spec.device) == "float32"
    assert arithmetic_of("onnx", "float16", spec.device) == "float16"


@pytest.mark.parametrize("driver", [False, True], indirect=True)
def test_what_holds_without_a_gpu_does_not_hold_with_one(driver: bool) -> None:
    assert machine().endswith(", with a GPU") == driver
