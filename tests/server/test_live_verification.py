"""Forms are verified in service: one that is wrong is given up, and what it answered counted; a right one never is."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.config.model_options import ModelOptions
from appliance.conversion.form_cache import FormCache
from appliance.conversion.job import accelerate
from converters import counterexamples
from converters.identity import content_hash
from tests.support.planted_cache import plant_in
from tests.support.server import KEY_FILE, ROOT, Server, eventually

pytestmark = pytest.mark.timeout(300)

Drop = Callable[..., Path]
FORMS = {"acceleration": "onnx", "acceleration_min_speedup": 0.0}


def cache_of(folder: Path) -> FormCache:
    return FormCache(str(folder), 1 << 30, KEY_FILE)


@pytest.fixture(scope="module")
def proven(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a proven form of tiny_tf2."""
    cache = tmp_path_factory.mktemp("cache")
    report = accelerate(ModelOptions(**FORMS), str(zoo / "tiny_tf2"), cache_of(cache), lambda _: None)
    assert report.form == "onnx"
    return cache


@pytest.fixture
def served(drop: Drop, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of the model "a", and waits until a form serves it, unless `form` is "its own model"."""
    drop("a", source="tiny_tf2")
    servers: list[Server] = []

    def start(cache: Path, form: str = "onnx", **options: Any) -> Server:
        server = Server(model_root=tmp_path / "models", cache_dir=cache, settle_seconds=0.0, **FORMS, **options)
        servers.append(server)
        server.__enter__()
        server.wait_for("a", 1)
        wait(server, lambda found: found["state"] == "done" and found["serving"] == form, form)
        return server

    yield start
    for server in servers:
        server.__exit__()


def known(server: Server) -> dict[str, Any]:
    return dict(server.get("/v1/models/a/versions/1/acceleration")[1])


def wait(server: Server, is_so: Callable[[dict[str, Any]], Any], what: str) -> dict[str, Any]:
    def reached() -> dict[str, Any]:
        found = known(server)
        return found if is_so(found) else {}

    try:
        return eventually(reached, what, 150)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{known(server)}\n{server.log()[-4000:]}") from None


def count(server: Server, metric: str) -> float:
    """The value of a series of the model; 0 if there is none."""
    name, _, labels = metric.partition(" ")
    line = rf'^{name}{{model="a"{labels and "," + labels}}} (\S+)$'
    found = re.search(line, server.get("/metrics")[1].decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_first_wrong_answer_in_service_gives_a_form_up_for_good(
    served: Callable[..., Server], proven: Path, tmp_path: Path, zoo: Path
) -> None:
    cache = shutil.copytree(proven, tmp_path / "cache")
    plant_in(cache, cache_of(cache).key())
    server = served(cache, verify_first=0, verify_fraction=1.0)
    for value in (1.0, 2.0, 3.0):
        assert server.predict("a", {"instances": [value]}) == (200, {"predictions": [value / 2 + 2]})
    ((wrong,),) = [server.predict("a", {"instances": [math.pi]})[1]["predictions"]]
    assert wrong == pytest.approx(-(math.pi / 2 + 2), rel=1e-6)
    assert server.predict("a", {"instances": [5.0]})[0] == 200
    found = wait(server, lambda found: found["serving"] == "its own model", "TensorFlow serves again")
    assert "live" not in found
    ((right,),) = [server.predict("a", {"instances": [math.pi]})[1]["predictions"]]
    assert right == pytest.approx(math.pi / 2 + 2, rel=1e-6)
    # What is known of it: in the report, the log and the metrics.
    why = found["demotions"][0]["why"]
    assert "equal on 4 of 5 live requests; 2 doubtful answers since the last that was equal; output 'y' is -3.57" in why
    assert "its form is given up: it answers otherwise than TensorFlow" in server.log()
    assert count(server, 'dropserve_verified_requests_total outcome="equal"') == 4
    assert count(server, 'dropserve_verified_requests_total outcome="different"') == 1
    assert count(server, "dropserve_doubtful_answers_total") == 2
    assert count(server, "dropserve_demotions_total") == 1
    # The input is kept for later proofs, for nobody else to read.
    file = cache / "counterexamples" / content_hash(str(zoo / "tiny_tf2"))
    assert file.stat().st_mode & 0o777 == 0o600
    (kept,) = counterexamples.known(str(cache), file.name, cache_of(cache).key())["serving_default"]
    assert kept["x"].tolist() == [pytest.approx(math.pi)]
    eventually(lambda: known(server)["demotions"][0]["file"], "it is kept in the cache")
    assert server.stop() == 0
    again = known(served(cache, form="its own model"))
    assert (again["chosen"], again["demotions"][0]["why"]) == ("tensorflow", why)


def test_a_right_form_is_verified_and_stays(served: Callable[..., Server], proven: Path) -> None:
    server = served(proven, verify_first=6, verify_fraction=0.0)
    asked: list[Any] = [[1.0], [3e38, -3e38], [1e-40, 0.0, -0.0], [], [0.1] * 100, [math.pi], [7.0]]
    for values in asked:
        assert server.predict("a", {"instances": values})[0] == (200 if values else 400)
    found = wait(server, lambda found: found.get("live", {}).get("equal"), "requests are verified")
    assert found["live"] == {"equal": 6, "different": 0, "unjudged": {}, "held_up": ""}
    assert (found["serving"], found["demoted"]) == ("onnx", "")
    command = [sys.executable, "-m", "appliance", "models", "--detail", f"--url=http://127.0.0.1:{server.rest_port}"]
    text = subprocess.check_output(command, cwd=ROOT, text=True)
    (form,) = found["candidates"]
    cases = form["proofs"][0]["cases"] + form["proofs"][0]["edges"]
    assert f"proven on {cases} cases, then equal on 6 of 6 live requests" in text
    assert count(server, 'dropserve_verified_requests_total outcome="equal"') == 6
    # TensorFlow has come and gone, and what clients have sent with it.
    eventually(lambda: "ds-convert" not in server.processes().values(), "TensorFlow has ended")
    assert not list(Path(server.runtime_dir).rglob("samples"))


def test_without_the_options_nothing_is_verified(served: Callable[..., Server], proven: Path) -> None:
    server = served(proven, verify_first=0, verify_fraction=0.0)
    assert server.predict("a", {"instances": [1.0]})[0] == 200
    assert "live" not in known(server)


def test_a_verification_that_fails_is_told_and_gives_up_nothing(
    served: Callable[..., Server], proven: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(proven, tmp_path / "cache")
    server = served(cache, verify_first=5, verify_fraction=0.0)
    (description,) = cache.rglob("signatures.json")
    description.unlink()
    assert server.predict("a", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
    found = wait(server, lambda found: found.get("live", {}).get("held_up"), "it is told")
    assert "signatures.json" in found["live"]["held_up"]
    assert found["live"]["unjudged"] == {"their verification failed": 1}
    assert (found["serving"], found["demoted"]) == ("onnx", "")
    assert "what its form answers is not verified now" in server.log()
    assert server.predict("a", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
