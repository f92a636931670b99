"""Labels that point at versions which the policy does not serve, as `allow_version_labels_for_unavailable_models` has
them, against a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import text_format

from appliance.protocols import protos
from tests.support.grpc_calls import PREDICT, RELOAD, code_of, method, request
from tests.support.server import Server

Drop = Callable[..., Path]


def test_a_label_on_a_version_that_is_not_served_is_not_found_and_stops_nothing(drop: Drop, tmp_path: Path) -> None:
    drop("m", 1)
    drop("m", 2, "half_plus_three")
    text = f"""model_config_list {{ config {{
        name: "m" base_path: "{tmp_path}/models/m" model_version_policy {{ specific {{ versions: 1 }} }}
        version_labels {{ key: "stable" value: 1 }} version_labels {{ key: "canary" value: 2 }}
        version_labels {{ key: "later" value: 9 }}
    }} }}"""
    file, socket = tmp_path / "models.config", tmp_path / "grpc.sock"
    file.write_text(text)
    with Server(
        model_config_file=file, grpc_socket_path=socket, allow_version_labels_for_unavailable_models=True
    ) as server:
        server.wait_for("m", 1)

        def answers() -> None:
            body: dict[str, Any] = {"instances": [1.0]}
            assert server.predict("m/labels/stable", body) == (200, {"predictions": [2.5]})
            for label, version in (("canary", 2), ("later", 9)):
                refused = f"Servable not found for request: Specific(m, {version})"
                status, answer = server.predict(f"m/labels/{label}", body)
                assert (status, answer["error"].partition(";")[0]) == (404, refused)
                message = request("m", x=[1.0])
                message.model_spec.version_label = label
                call = method(channel, PREDICT, protos.PredictResponse)
                code, details = code_of(lambda: call(message, timeout=30))  # noqa: B023 - it is called at once
                assert (code, details.partition(";")[0]) == ("NOT_FOUND", refused)
            states = {v["version"]: v["state"] for v in server.get("/v1/models/m")[1]["model_version_status"]}
            assert states["1"] == "AVAILABLE"
            assert states.get("2") is None

        with grpc.insecure_channel(f"unix:{socket}") as channel:
            answers()
            reload = protos.ReloadConfigRequest()
            text_format.Parse(text, reload.config, descriptor_pool=protos.POOL)
            assert method(channel, RELOAD, protos.ReloadConfigResponse)(reload, timeout=60).status.error_code == 0
            answers()


def test_without_the_flag_the_start_ends_and_says_what_to_change(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(f"""model_config_list {{ config {{
        name: "m" base_path: "{tmp_path}/m" model_version_policy {{ specific {{ versions: 1 }} }}
        version_labels {{ key: "canary" value: 2 }}
    }} }}""")
    server = Server(model_config_file=file)
    try:
        assert server.process.wait(60) != 0
    finally:
        server.__exit__()
    assert "label canary points at version 2" in server.log()
    assert "--allow_version_labels_for_unavailable_models" in server.log()
