"""A model that does harm, of TensorFlow's stock operators, harms no other: each attack is made beside a good model.

What the kernel here does not have (Landlock) cannot be tested here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from appliance.host.confinement import supported
from tests.campaign.clients import Clients
from tests.support.memory_limit import limited_memory
from tests.support.server import Server, eventually

LANDLOCK = pytest.mark.skipif(len(supported().by) < 2, reason=str(supported()))
MODELS = ("hostile", "good")
ENDLESS = 1 << 40  # more than the models' threshold for what is meant
MEMORY_BYTES = 1 << 30  # that one that takes all there is may have
LOAD_TIMEOUT_SECONDS = 4


def drop(zoo: Path, root: Path, source: str, model: str) -> Path:
    incoming = root / model / ".incoming"
    shutil.copytree(zoo / source, incoming)
    os.rename(incoming, root / model / "1")
    return root / model / "1"


class Attacked(Server):
    root: Path

    def attack(self, signature: str, **inputs: Any) -> tuple[int, Any]:
        """What the hostile model answers; texts are sent and returned as bytes."""
        sent = {k: {"b64": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for k, v in inputs.items()}
        return self.predict("hostile", {"signature_name": signature, "inputs": sent})

    def attack_in_the_background(self, signature: str, **inputs: Any) -> None:
        threading.Thread(target=lambda: self.attack(signature, **inputs), daemon=True).start()

    def write(self, path: Path, content: bytes = b"") -> tuple[int, Any]:
        return self.attack("write", path=os.fsencode(path), content=content)

    def read(self, path: Path | str) -> tuple[int, Any]:
        return self.attack("read", path=os.fsencode(path))

    def assert_unharmed(self, before: dict[int, str]) -> None:
        """The good model answers, and no process of before has gone but perhaps the hostile model's."""
        assert self.predict("good", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
        assert self.process.poll() is None
        gone = {pid: name for pid, name in before.items() if pid not in self.processes()}
        assert set(gone.values()) <= {"ds-worker", "ds-trial"}, gone

    @contextlib.contextmanager
    def asked_all_the_time(self) -> Iterator[Clients]:
        """Clients of the good model, each of whose requests must be answered, and right."""
        with Clients(self, "good", rest=1, grpc_clients=1) as clients:
            clients.more(10)
            yield clients
            clients.more(10)
        assert (clients.wrong, clients.refused()) == ([], {})

    @property
    def instance(self) -> Path:
        (found,) = Path(self.runtime_dir, "run").glob("server-*")
        return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, zoo: Path) -> Iterator[Attacked]:
    root = tmp_path_factory.mktemp("models")
    drop(zoo, root, "half_plus_two", "good")
    drop(zoo, root, "hostile", "hostile")
    cache = tmp_path_factory.mktemp("cache")
    (cache / "form").write_text("proven")
    config = tmp_path_factory.mktemp("config") / "dropserve.toml"
    config.write_text(f"[models.hangs_at_load]\nload_timeout_seconds = {LOAD_TIMEOUT_SECONDS}\n")
    with Attacked(
        f"--config={config}",
        model_root=root,
        cache_dir=cache,
        crash_window_seconds=0,
        shutdown_grace_seconds=2,
        rest_api_timeout_in_ms=8000,
        tensorflow_inter_op_parallelism=2,
        tensorflow_intra_op_parallelism=1,
    ) as server:
        server.root = root
        for model in MODELS:
            server.wait_for(model, 1)
        yield server


def test_every_thread_of_every_worker_is_confined_and_gives_way_when_memory_is_short(server: Attacked) -> None:
    workers = server.pids("ds-worker")
    assert len(workers) == 2
    for pid in workers:
        tasks = os.listdir(f"/proc/{pid}/task")
        lines = [line for task in tasks for line in Path(f"/proc/{pid}/task/{task}/status").read_text().splitlines()]
        assert {line.split()[1] for line in lines if line.startswith("Seccomp:")} == {"2"}
        assert {line.split()[1] for line in lines if line.startswith("NoNewPrivs:")} == {"1"}
        assert len(tasks) > 2
    score = {pid: int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in server.processes()}
    others = [
        score[pid] for pid, name in server.lasting_processes().items() if name not in ("ds-worker", "ds-forkserver")
    ]
    assert min(score[pid] for pid in workers) >= max(others) + 500


def test_what_confines_a_version_is_shown(server: Attacked) -> None:
    _, document = server.get("/v1/models")
    shown = {model["name"]: model["versions"][0]["confined_by"] for model in document["models"]}
    assert shown == {model: list(supported().by) for model in MODELS}
    status, page = server.get("/metrics")
    assert status == 200
    assert b'dropserve_version_confined{model="hostile",version="1",by="seccomp"} 1' in page


@pytest.mark.parametrize("role", ["supervisor", "rest", "grpc", "worker"])
def test_no_file_of_another_process_can_be_emptied_under_it(server: Attacked, role: str) -> None:
    before = server.lasting_processes()
    _, found = server.attack("glob", pattern=os.fsencode(server.instance / "metrics" / "*"))
    targets = [path for path in (server.instance / "metrics").iterdir() if path.name.startswith(role)]
    assert targets
    for path in targets:
        status, answer = server.write(path)
        assert status >= 400, (found, answer)
        assert path.stat().st_size > 0
        assert server.get("/metrics")[0] == 200
    server.assert_unharmed(before)


def test_nothing_is_written_anywhere(server: Attacked, tmp_path: Path) -> None:
    before = server.lasting_processes()
    places = [
        tmp_path / "new",
        server.instance / "new",
        server.root / "good" / "1" / "saved_model.pb",
        server.root / "good" / "2" / "saved_model.pb",
        Path("/dev/shm") / f"hostile-{os.getpid()}",
    ]
    contents = {path: path.read_bytes() if path.exists() else None for path in places}
    for path in places:
        assert server.write(path, b"harm")[0] >= 400
        assert server.attack("save", path=os.fsencode(path))[0] >= 400
    assert {path: path.read_bytes() if path.exists() else None for path in places} == contents
    assert not list(tmp_path.iterdir())
    assert not (server.root / "good" / "2").exists()
    server.assert_unharmed(before)


@LANDLOCK
def test_nothing_of_others_is_read(server: Attacked, tmp_path: Path) -> None:
    secret = tmp_path / "key.pem"
    secret.write_text("secret")
    front = server.pids("ds-rest")[0]
    paths = [
        secret,
        server.root / "good" / "1" / "saved_model.pb",
        *(f"/proc/{pid}/{name}" for pid in (server.process.pid, front) for name in ("environ", "maps", "fd/3", "mem")),
    ]
    assert {str(path): server.read(path)[0] for path in paths if server.read(path)[0] == 200} == {}
    own, others = (server.attack("glob", pattern=os.fsencode(server.root / name / "1" / "*")) for name in MODELS)
    assert others in ((200, {"outputs": []}), (others[0], {"error": ANY}))
    assert len(own[1]["outputs"]) > 2
    status, answer = server.read(server.root / "hostile" / "1" / "fingerprint.pb")
    assert status == 200, answer


def test_an_answer_that_is_larger_than_it_looks_takes_no_memory_of_a_front(server: Attacked) -> None:
    before = server.lasting_processes()
    status, refused = server.attack("rows", count=ENDLESS)
    assert status == 429
    assert "The answer has more than" in refused["error"]
    assert "raise max_inflight_bytes" in refused["error"]
    assert server.attack("rows", count=500_000) == (200, {"outputs": [[]] * 500_000})
    server.assert_unharmed(before)


def test_more_strings_than_a_front_can_read_at_once_are_refused(server: Attacked) -> None:
    before = server.lasting_processes()
    status, refused = server.attack("strings", count=5_000_000)
    assert (status, refused["error"].partition(";")[0]) == (
        429,
        "The answer has 5,000,000 strings, more than 1,000,000",
    )
    assert server.attack("strings", count=100_000) == (200, {"outputs": [""] * 100_000})
    server.assert_unharmed(before)


def test_scores_that_take_more_memory_than_they_look_are_refused(server: Attacked) -> None:
    before = server.lasting_processes()

    def classify(text: str) -> tuple[int, Any]:
        body = json.dumps({"signature_name": "scores", "examples": [{"x": text}]}).encode()
        status, answer, _ = server.http("POST", "/v1/models/hostile:classify", body)
        return status, answer

    assert classify("short") == (200, {"results": [[["", 0.0]]]})
    status, refused = classify("x" * 2000)
    assert (status, "The answer has more than" in refused["error"]) == (429, True)
    server.assert_unharmed(before)


def test_one_that_takes_all_memory_in_a_run_goes_alone(server: Attacked) -> None:
    eventually(lambda: server.attack("exhaust", wanted=0)[0] == 200, "the hostile model's worker is there")
    before = server.lasting_processes()
    workers = [pid for pid, name in before.items() if name == "ds-worker"]
    with limited_memory(workers, MEMORY_BYTES), server.asked_all_the_time():
        status, answer = server.attack("exhaust", wanted=ENDLESS)
        assert (status, "ended while it held the request" in answer["error"]) == (503, True), answer
    server.assert_unharmed(before)
    server.wait_for("hostile", 1)


def test_nothing_is_connected_to(server: Attacked) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        server.attack_in_the_background("connect", address=address.encode())
        with pytest.raises(TimeoutError):
            listener.accept()
    assert server.predict("good", {"instances": [2.0]})[0] == 200


def test_one_that_hangs_or_ends_hangs_and_ends_alone(server: Attacked) -> None:
    before = server.lasting_processes()
    assert server.attack("hang", wanted=ENDLESS)[0] == 504
    server.assert_unharmed(before)
    status, answer = server.attack("abort", wanted=ENDLESS)
    assert status >= 500, answer
    server.assert_unharmed(before)
    server.wait_for("hostile", 1)


def test_one_that_takes_all_memory_in_its_load_fails_alone(server: Attacked, zoo: Path) -> None:
    before = server.lasting_processes()
    with limited_memory(server.pids("ds-forkserver"), MEMORY_BYTES), server.asked_all_the_time():
        drop(zoo, server.root, "exhausts_memory_at_load", "exhausts")
        reason = server.wait_for("exhausts", 1, "failed")
    assert "OOM" in reason or "killed" in reason
    server.assert_unharmed(before)


def test_one_that_hangs_in_its_load_hangs_alone_and_is_ended(server: Attacked, zoo: Path) -> None:
    before = server.lasting_processes()
    with server.asked_all_the_time():
        drop(zoo, server.root, "hangs_at_load", "hangs_at_load")
        reason = server.wait_for("hangs_at_load", 1, "failed")
    assert f"it did not load within {LOAD_TIMEOUT_SECONDS} s (load_timeout_seconds)" in reason
    server.assert_unharmed(before)


def test_one_that_says_much_says_it_alone(server: Attacked) -> None:
    server.wait_for("hostile", 1)
    before = server.lasting_processes()
    server.attack("print_lines", lines=20_000)
    server.assert_unharmed(before)


def test_of_all_processes_the_one_that_takes_the_memory_is_the_first_to_go(server: Attacked) -> None:
    """As the kernel would do when memory runs out: it kills the process with the highest score."""
    server.wait_for("hostile", 1)
    processes = server.lasting_processes()
    scores = {pid: int(Path(f"/proc/{pid}/oom_score").read_text()) for pid in processes}
    victim = max(scores, key=lambda pid: scores[pid])
    assert processes[victim] in ("ds-worker", "ds-forkserver")
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: server.predict("good", {"instances": [2.0]})[0] == 200, "the good model answers")


def test_who_is_none_of_the_servers_processes_is_told_nothing_by_it(server: Attacked) -> None:
    """This process has the rights of the server's user, as a model has: it could reload any folder."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(20)
        control.connect(os.fspath(server.instance / "control"))
        with contextlib.suppress(BrokenPipeError):
            control.sendall(b'{"role": "rest", "pid": 1}\n{"ask": 1, "method": "reload", "params": {}}\n')
        with contextlib.suppress(ConnectionResetError):
            assert control.recv(100) == b""
    eventually(lambda: f"process {os.getpid()}, which is none of the server's" in server.log(), "it is refused")
    assert server.predict("good", {"instances": [2.0]})[0] == 200
