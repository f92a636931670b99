"""The configuration changes while the server serves: by its file, by SIGHUP, by RPC; and labels move without a loss."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format

from appliance.config.settings import Settings, read_settings
from appliance.lifecycle.manager import Manager
from appliance.protocols import protos
from appliance.supervisor.controller import Controller
from appliance.supervisor.models import Models
from appliance.supervisor.tasks import Tasks
from tests.support.server import Server, eventually

Drop = Callable[..., Path]

RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"


def config(*entries: str) -> str:
    return "model_config_list {" + " ".join(f"config {{ {entry} }}" for entry in entries) + "}"


def entry(base: Path, name: str, policy: str = "", **labels: int) -> str:
    text = f'name: "{name}" base_path: "{base / name}" model_platform: "tensorflow"'
    if policy:
        text += f" model_version_policy {{ {policy} }}"
    return text + "".join(f' version_labels {{ key: "{label}" value: {v} }}' for label, v in labels.items())


def write(path: Path, text: str) -> None:
    """Replaces a file whole, as an editor or a deployment does."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


BOTH = "specific { versions: 1 versions: 2 }"


# -- the file ---------------------------------------------------------------------------------------------------


def test_a_changed_config_file_is_applied_as_a_difference_and_a_broken_one_changes_nothing(
    drop: Drop, tmp_path: Path
) -> None:
    drop("a")
    drop("b", source="half_plus_three")
    models, file = tmp_path / "models", tmp_path / "models.config"
    file.write_text(config(entry(models, "a")))
    with Server(model_config_file=file, model_config_file_poll_wait_seconds=1) as server:
        server.wait_for("a", 1)
        (worker,) = server.pids("ds-worker")
        write(file, config(entry(models, "a"), entry(models, "b")))
        server.wait_for("b", 1)
        assert server.predict("b", {"instances": [1.0]}) == (200, {"predictions": [3.5]})
        assert worker in server.pids("ds-worker")  # what has not changed is not touched

        write(file, "model_config_list { config { name: ")
        eventually(lambda: "was not applied, and nothing has changed" in server.log(), "the error is logged")
        assert server.predict("a", {"instances": [1.0]}) == (200, {"predictions": [2.5]})

        write(file, config(entry(models, "b")))
        eventually(lambda: worker not in server.pids("ds-worker"), "a is unloaded")
        assert server.predict("a", {"instances": [1.0]})[0] == 404
        assert server.predict("b", {"instances": [1.0]})[0] == 200


# -- SIGHUP -----------------------------------------------------------------------------------------------------


def test_what_stands_in_the_config_files_place_neither_hangs_the_server_nor_is_told_at_every_look(
    drop: Drop, tmp_path: Path
) -> None:
    drop("a")
    drop("b", source="half_plus_three")
    models, file = tmp_path / "models", tmp_path / "models.config"
    file.write_text(config(entry(models, "a")))
    with Server(model_config_file=file, model_config_file_poll_wait_seconds=1) as server:
        server.wait_for("a", 1)
        file.unlink()
        os.mkfifo(file)
        eventually(lambda: "it is not a file" in server.log(), "the pipe is refused")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "the configuration was not reloaded" in server.log(), "by SIGHUP too")
        file.unlink()
        eventually(lambda: "was not applied, and nothing has changed: cannot read" in server.log(), "no file is told")
        file.write_text(config(entry(models, "a"), entry(models, "b")))
        server.wait_for("b", 1)
        assert server.log().count("it is not a file") == 2
        assert server.stop() == 0


class NoEffects:
    """There are no models: nothing is decided but that something may have changed."""

    def decided(self) -> None:
        pass


def test_signals_that_come_while_a_reload_is_read_are_one_more_reload() -> None:
    settings = read_settings({"model_root": "/nowhere"})
    reads, go_on = [], threading.Event()

    def reread() -> Settings:
        reads.append(settings)
        assert go_on.wait(30)
        return settings

    async def reload_often() -> None:
        models = Models(settings, reread, Controller(Manager(1, 1.0, 1), NoEffects()), Tasks())
        tasks = [asyncio.create_task(models.reload_settings()) for _ in range(100)]
        await asyncio.wait(tasks, timeout=0)
        while not reads:
            await asyncio.sleep(0)
        tasks += [asyncio.create_task(models.reload_settings()) for _ in range(100)]
        await asyncio.wait(tasks, timeout=0)
        go_on.set()
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks)

    asyncio.run(reload_often())
    assert len(reads) == 2


def test_sighup_takes_what_can_change_and_names_what_needs_a_restart(drop: Drop, tmp_path: Path) -> None:
    drop("a", 1)
    drop("a", 2, source="half_plus_three")
    drop("r", 1)
    drop("r", 2)
    root = tmp_path / "root"
    root.mkdir()
    (root / "r").symlink_to(tmp_path / "models" / "r")
    toml = tmp_path / "dropserve.toml"
    table = f'[models.a]\nbase_path = "{tmp_path / "models" / "a"}"\n'
    toml.write_text(table)
    with Server("--config", str(toml), model_root=root) as server:
        server.wait_for("a", 2)
        server.wait_for("r", 2)
        write(toml, "max_connections = 7\n" + table + 'version_policy = "all"\n[models.r]\nversion_policy = "all"\n')
        os.kill(server.process.pid, signal.SIGHUP)
        server.wait_for("a", 1)
        server.wait_for("r", 1)
        assert "change only when the server is started again: max_connections" in server.log()

        write(toml, "[models.a]\nversion_polcy = 1\n")
        os.kill(server.process.pid, signal.SIGHUP)
        eventually(lambda: "did you mean version_policy" in server.log(), "the error is logged")
        assert set(server.versions("a")) == {1, 2}
        assert server.predict("a", {"instances": [1.0]}, "/versions/1") == (200, {"predictions": [2.5]})


# -- the RPC ----------------------------------------------------------------------------------------------------


@pytest.fixture
def controlled(tmp_path: Path) -> Iterator[tuple[Server, Callable[..., tuple[str, str]]]]:
    """A server without models, and a function that reloads it by its Unix socket: status code and message."""
    file = tmp_path / "models.config"
    file.write_text("")
    socket = tmp_path / "grpc.sock"
    with Server(model_config_file=file, grpc_socket_path=socket) as server:

        def reload(text: str | None, seconds: float = 50) -> tuple[str, str]:
            request = protos.ReloadConfigRequest()
            if text is not None:
                text_format.Parse(text, request.config, descriptor_pool=protos.POOL)
            with grpc.insecure_channel(f"unix:{socket}") as channel:
                call = channel.unary_unary(RELOAD)
                try:
                    answer = protos.ReloadConfigResponse.FromString(call(request.SerializeToString(), timeout=seconds))
                except grpc.RpcError as error:
                    return error.code().name, error.details()
            assert answer.status.error_code == 0
            return "OK", answer.status.error_message

        yield server, reload


def test_a_reload_answers_when_the_models_are_live(drop: Drop, tmp_path: Path, controlled: Any) -> None:
    server, reload = controlled
    drop("a")
    models = tmp_path / "models"
    assert reload(config(entry(models, "a"))) == ("OK", "")
    assert server.predict("a", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
    assert reload(config()) == ("OK", "")
    assert server.predict("a", {"instances": [1.0]})[0] == 404


def test_a_model_that_a_reload_removed_is_listed_as_ended_and_serves_nothing(
    drop: Drop, tmp_path: Path, controlled: Any
) -> None:
    server, reload = controlled
    drop("a", 1)
    drop("a", 2)
    models = tmp_path / "models"
    assert reload(config(entry(models, "a", BOTH)))[0] == "OK"
    assert reload(config()) == ("OK", "")

    def states() -> list[tuple[str, str, str]]:
        _, document = server.get("/v1/models/a")
        listed = document["model_version_status"]
        return [(version["version"], version["state"], version["status"]["error_code"]) for version in listed]

    eventually(lambda: states() == [("2", "END", "OK"), ("1", "END", "OK")], "both are unloaded")
    assert [v["version"] for v in server.get("/v1/models/a/versions/1")[1]["model_version_status"]] == ["1"]
    request = protos.GetModelStatusRequest()
    request.model_spec.name = "a"
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
        answer = protos.GetModelStatusResponse.FromString(call(request.SerializeToString(), timeout=30))
    found = [(v.version, v.state, v.status.error_code) for v in answer.model_version_status]
    assert found == [(2, 50, 0), (1, 50, 0)]
    assert server.predict("a", {"instances": [1.0]}) == (404, {"error": "Servable not found for request: Latest(a)"})
    assert server.get("/v1/models/a/versions/3") == (404, {"error": "Could not find version 3 of model a"})
    assert server.get("/v1/models")[1]["models"] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('model_config_list { config { name: "a" } }', "model a: has no base_path"),
        ('model_config_list { config { name: "a" base_path: "s3://b/a" } }', "remote (s3://)"),
        (config('name: "a" base_path: "/x"', 'name: "a" base_path: "/y"'), "Illegal to list model a multiple times"),
        (
            config(
                'name: "a" base_path: "/x" model_version_policy { specific { versions: 1 } } '
                'version_labels { key: "l" value: 2 }'
            ),
            "label l points at version 2",
        ),
    ],
)
def test_a_bad_reload_changes_nothing_and_says_why(
    text: str | None, says: str, drop: Drop, tmp_path: Path, controlled: Any
) -> None:
    server, reload = controlled
    drop("a")
    assert reload(config(entry(tmp_path / "models", "a")))[0] == "OK"
    code, message = reload(text)
    assert code == "INVALID_ARGUMENT"
    assert says in message
    assert message.endswith("nothing has changed")
    assert server.predict("a", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_a_reload_without_a_list_changes_nothing(drop: Drop, tmp_path: Path, controlled: Any) -> None:
    server, reload = controlled
    drop("a")
    assert reload(config(entry(tmp_path / "models", "a")))[0] == "OK"
    code, message = reload(None)
    assert code == "INVALID_ARGUMENT"
    assert "send a model_config_list; an empty one unloads all" in message
    assert server.predict("a", {"instances": [1.0]})[0] == 200


def test_a_bad_model_does_not_keep_the_others_from_being_served(drop: Drop, tmp_path: Path, controlled: Any) -> None:
    server, reload = controlled
    drop("good")
    broken = drop("broken")
    (broken / "saved_model.pb").write_bytes(b"\x08\x01")
    models = tmp_path / "models"
    code, message = reload(config(entry(models, "missing"), entry(models, "good"), entry(models, "broken")), 20)
    assert code in ("FAILED_PRECONDITION", "DEADLINE_EXCEEDED")
    assert "model missing is failed" in message
    assert f"{models}/missing cannot be read" in message
    assert "model broken is" in message
    assert "Live: good" in message
    assert server.predict("good", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_a_reload_answers_at_its_deadline_although_a_model_still_loads(
    drop: Drop, tmp_path: Path, controlled: Any
) -> None:
    server, reload = controlled
    drop("good")
    half = tmp_path / "models" / "half" / "1"
    half.mkdir(parents=True)  # a copy that has begun
    code, message = reload(config(entry(tmp_path / "models", "good"), entry(tmp_path / "models", "half")), 12)
    assert code == "DEADLINE_EXCEEDED" or "incomplete" in message
    assert "Live: good" in message
    assert server.predict("good", {"instances": [1.0]})[0] == 200


def test_a_model_that_is_added_again_while_it_still_drains_is_served(
    drop: Drop, tmp_path: Path, controlled: Any
) -> None:
    server, reload = controlled
    drop("held", source="gate")
    models, opened = tmp_path / "models", tmp_path / "opened"
    assert reload(config(entry(models, "held")))[0] == "OK"
    held: list[tuple[int, Any]] = []
    client = threading.Thread(target=lambda: held.append(server.predict("held", {"instances": [str(opened)]})))
    client.start()
    (worker,) = server.pids("ds-worker")
    stat = Path(f"/proc/{worker}/stat")
    ticks = int(stat.read_text().rpartition(")")[2].split()[11])
    # The model looks for the file on one busy core, and is at little else.
    eventually(lambda: int(stat.read_text().rpartition(")")[2].split()[11]) > ticks + 20, "the request runs")
    assert reload(config()) == ("OK", "")
    assert server.wait_for("held", 1, "draining") == "the model was removed"
    answers: list[tuple[str, str]] = []
    again = threading.Thread(target=lambda: answers.append(reload(config(entry(models, "held")))))
    again.start()
    eventually(lambda: server.log().count("reloaded by RPC: added held") == 2, "the model is asked for again")
    opened.touch()
    client.join(60)
    again.join(60)
    assert held == [(200, {"predictions": [1]})]
    assert answers == [("OK", "")]
    assert server.predict("held", {"instances": [""]}) == (200, {"predictions": [1]})


def test_a_reload_tells_by_how_much_the_metrics_that_it_names_have_grown(
    drop: Drop, tmp_path: Path, controlled: Any
) -> None:
    _, reload = controlled
    drop("a")
    drop("b")
    models = tmp_path / "models"
    assert reload(config(entry(models, "a")))[0] == "OK"
    attempts, latency = (f"/tensorflow/cc/saved_model/load_{what}" for what in ("attempt_count", "latency"))
    names = [attempts, "unknown", ":tensorflow:serving:request_latency", latency, attempts, "dropserve_loads_total"]
    request = protos.ReloadConfigRequest(metric_names=names)
    text = config(entry(models, "a"), entry(models, "b"))
    text_format.Parse(text, request.config, descriptor_pool=protos.POOL)
    with grpc.insecure_channel(f"unix:{tmp_path / 'grpc.sock'}") as channel:
        data = channel.unary_unary(RELOAD)(request.SerializeToString(), timeout=50)
    answered = [(m.name, m.int64_value_increase) for m in protos.ReloadConfigResponse.FromString(data).metric]
    increases = dict(answered)
    assert increases.pop(latency) > 0
    expected = {attempts: 1, "unknown": 0, ":tensorflow:serving:request_latency": 0, "dropserve_loads_total": 1}
    assert increases == expected
    assert len(answered) == 5  # each once


def test_promotion_and_rollback_of_a_label_lose_no_request(drop: Drop, tmp_path: Path, controlled: Any) -> None:
    server, reload = controlled
    drop("a", 1)
    drop("a", 2, source="half_plus_three")
    models = tmp_path / "models"
    assert reload(config(entry(models, "a", "specific { versions: 1 }", stable=1)))[0] == "OK"
    answers: list[tuple[int, Any]] = []
    stop = threading.Event()

    def ask() -> None:
        connection = server.connection()
        while not stop.is_set():
            connection.request("POST", "/v1/models/a/labels/stable:predict", json.dumps({"instances": [1.0]}))
            response = connection.getresponse()
            answers.append((response.status, json.loads(response.read())))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        # A canary beside it, promoted, rolled back, and promoted with the old version gone in one step.
        assert reload(config(entry(models, "a", BOTH, stable=1, canary=2)))[0] == "OK"
        assert server.predict("a", {"instances": [1.0]}, "/labels/canary") == (200, {"predictions": [3.5]})
        assert reload(config(entry(models, "a", BOTH, stable=2)))[0] == "OK"
        assert server.predict("a", {"instances": [1.0]}, "/labels/stable") == (200, {"predictions": [3.5]})
        assert reload(config(entry(models, "a", BOTH, stable=1)))[0] == "OK"
        assert server.predict("a", {"instances": [1.0]}, "/labels/stable") == (200, {"predictions": [2.5]})
        assert reload(config(entry(models, "a", "specific { versions: 2 }", stable=2)))[0] == "OK"
        assert server.predict("a", {"instances": [1.0]}, "/labels/stable") == (200, {"predictions": [3.5]})
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert {status for status, _ in answers} == {200}, [answer for answer in answers if answer[0] != 200][:3]
    assert len(answers) > 20


def test_a_model_that_moves_to_another_folder_is_served_from_there_without_a_gap(
    drop: Drop, tmp_path: Path, controlled: Any
) -> None:
    server, reload = controlled
    drop("a", 1)
    drop("b", 1, source="half_plus_three")
    models = tmp_path / "models"
    assert reload(config(entry(models, "a")))[0] == "OK"
    moved = f'name: "a" base_path: "{models / "b"}"'
    assert reload(config(moved)) == ("OK", "")
    assert server.predict("a", {"instances": [1.0]}) == (200, {"predictions": [3.5]})
