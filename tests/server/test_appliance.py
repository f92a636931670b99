"""The appliance as its operator sees it: logs, processes, the command line, the documentation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.rest import front as rest
from appliance.rest import open_inference
from tests.support.server import ROOT, Server, eventually


def test_json_logs_are_json_in_every_line_and_tell_each_change_of_state(
    drop: Callable[..., Path], tmp_path: Path
) -> None:
    drop("m", 1)
    drop("broken", 1).joinpath("saved_model.pb").write_bytes(b"\xff" * 100)
    with Server(model_root=tmp_path / "models", log_format="json", access_log=True) as server:
        server.wait_for("m", 1)
        assert server.predict("m", {"instances": [1.0]})[0] == 200
        server.http("GET", "/healthz", headers={"X-Forwarded-For": "made-up, 192.0.2.7"})
        assert server.stop() == 0
        entries = [json.loads(line) for line in server.log().splitlines()]
    states = [entry["state"] for entry in entries if entry.get("model") == "m" and "state" in entry]
    assert states[-2:] == ["loading", "available"]
    access = [entry for entry in entries if entry["logger"] == "dropserve.access"]
    assert any(entry["path"] == "/v1/models/m:predict" and entry["status"] == 200 for entry in access)
    clients = {entry["path"]: entry["client"] for entry in access}
    assert clients["/v1/models/m:predict"] == "127.0.0.1"
    assert clients["/healthz"] == "192.0.2.7"  # whom a proxy on this machine stands for
    assert all({"time", "level", "message"} <= entry.keys() for entry in entries)


def test_fronts_and_supervisor_never_map_tensorflow(drop: Callable[..., Path], tmp_path: Path) -> None:
    drop("m", 1)
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("m", 1)
        assert server.predict("m", {"instances": [1.0]})[0] == 200
        mapped = {
            (pid, name): "libtensorflow" in Path(f"/proc/{pid}/maps").read_text()
            for pid, name in server.lasting_processes().items()
        }
    names = {name for _, name in mapped}
    assert {"dropserve", "ds-forkserver", "ds-worker", "ds-rest-master", "ds-rest", "ds-grpc"} <= names
    for (_, name), has_tensorflow in mapped.items():
        assert has_tensorflow == (name in ("ds-worker", "ds-trial", "ds-forkserver")), name


def test_unloading_a_version_ends_its_process(drop: Callable[..., Path], tmp_path: Path) -> None:
    drop("m", 1)
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("m", 1)
        (first,) = server.pids("ds-worker")
        drop("m", 2, "half_plus_three")
        server.wait_for("m", 2)
        eventually(lambda: len(server.pids("ds-worker")) == 1 and first not in server.pids("ds-worker"), "one worker")


def test_no_process_is_left_when_the_server_has_stopped(drop: Callable[..., Path], tmp_path: Path) -> None:
    drop("m", 1)
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("m", 1)
        (fork_server,) = server.pids("ds-forkserver")
        ours = server.processes()
        assert server.stop() == 0
        assert [name for pid, name in ours.items() if Path(f"/proc/{pid}").exists()] == []
    assert fork_server in ours


def test_the_models_command_shows_state_and_reason(drop: Callable[..., Path], tmp_path: Path) -> None:
    drop("good", 1)
    drop("bad", 1).joinpath("saved_model.pb").write_bytes(b"no model")
    with Server(model_root=tmp_path / "models") as server:
        server.wait_for("good", 1)
        eventually(lambda: server.versions("bad").get(1, ("", ""))[1], "a reason")
        command = [sys.executable, "-m", "appliance", "models", "--url", f"http://127.0.0.1:{server.rest_port}"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout
    assert re.search(r"^good +1 +available", shown, re.MULTILINE)
    assert re.search(r"^bad +1 +\w+ +\S+", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve"], "no models are configured"),
        (["serve", "--model_rot", "/x"], "did you mean model_root?"),
        (["serve", "--model_root", "relative"], "relative path"),
        (["serve", "--model_base_path", "s3://bucket/m"], "only local folders"),
        (["serve", "--model_root", "/x", "--rest_api_port", "eighty"], "a whole number"),
        (["serve", "--model_root", "/x", "--port", "99999"], "from -1 to 65,535"),
        (["serve", "--config", "/nonexistent"], "/nonexistent"),
        (["serve", "--model_config_file", "/nonexistent"], "/nonexistent"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line_with_a_remedy(arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", "appliance", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_route_is_documented() -> None:
    page = (ROOT / "docs/api.md").read_text()
    for _, pattern, handler in rest._ROUTES:
        if pattern.pattern.startswith("/v2"):
            continue
        tail = re.split(r"\)\??", pattern.pattern.replace("/v1/models/?", "/v1/models"))[-1]
        assert tail in page, f"{handler.__name__} ({pattern.pattern}) is not in docs/api.md"


def test_every_route_of_the_open_inference_protocol_is_documented() -> None:
    page = (ROOT / "docs/protocol_v2.md").read_text()
    for method, pattern, handler in open_inference.ROUTES:
        if handler is open_inference.OpenInference.missing:
            continue
        path = pattern.pattern.replace("(?:/versions/(?P<version>[^/]+))?", "[/versions/V]").removesuffix("/?")
        path = path.replace("(?P<model>[^/]+)", "NAME").replace("[^/]+", "NAME").replace("(?:load|unload)", "load")
        assert f"`{method} {path}" in page or f"`{path}`" in page, f"{path} is not in docs/protocol_v2.md"


def test_every_state_is_documented() -> None:
    from appliance.lifecycle.states import PUBLIC  # noqa: PLC0415

    page = (ROOT / "docs/api.md").read_text()
    for state, public in PUBLIC.items():
        assert f"| {state.value} | {public.name} |" in page


def test_links_in_the_documentation_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md"), *ROOT.glob("benchmarks/*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page} links to {target}"
