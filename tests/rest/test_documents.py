"""The JSON documents of the REST API, with names that are not UTF-8."""

from __future__ import annotations

import json

from appliance.core.routes import ModelRoute, Snapshot, VersionRoute
from appliance.core.servable import PublicState
from appliance.gpu.values import GpuProcess, GpuStatus
from appliance.rest.documents import error_document, json_document, models_document, status_document

ODD = "/models/\udcff"
SHOWN = "/models/?"


def test_a_path_that_is_no_utf8_hides_no_model() -> None:
    version = VersionRoute(1, "failed", PublicState.END, reason=f"{ODD}/1 does not load", remarks=(ODD,))
    snapshot = Snapshot(1, True, {"m\udcff": ModelRoute("m\udcff", (version,), base_path=ODD), "n": ModelRoute("n")})
    first, second = json.loads(models_document(snapshot))["models"]
    assert (first["name"], first["base_path"], second["name"]) == ("m?", SHOWN, "n")
    assert first["versions"][0]["reason"] == f"{SHOWN}/1 does not load"
    assert first["versions"][0]["remarks"] == [SHOWN]
    (status,) = json.loads(status_document([version]))["model_version_status"]
    assert status["status"]["error_message"] == f"{SHOWN}/1 does not load"


def test_an_error_about_such_a_path_is_told() -> None:
    assert json.loads(error_document(f"{ODD} is empty")) == {"error": f"{SHOWN} is empty"}


def test_such_a_name_changes_nothing_else_of_a_document() -> None:
    usual, odd = (
        json.loads(json_document([GpuStatus(error=name, age_seconds=0.5), GpuProcess(1, "C", name, None)]))
        for name in ("/models/?", ODD)
    )
    assert odd == usual
