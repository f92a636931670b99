"""No request is lost that need not be: at version switches, at the server's end, when any process is killed."""

from __future__ import annotations

import collections
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from appliance.protocols import protos
from appliance.transport.channel import Channel
from appliance.transport.wire import Frame, Kind, header, inline, pack_arrays, unpack_arrays
from tests.support.server import ROOT, Server, eventually

PREDICT = "/tensorflow.serving.PredictionService/Predict"
UNBOUNDED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
ENDLESS = {"instances": [2_000_000_000]}  # for the model `slow`: days


def drop(zoo: Path, root: Path, source: str, model: str, version: int = 1) -> None:
    """Drops a model of the zoo whole, by an atomic rename."""
    base = root / model
    base.mkdir(parents=True, exist_ok=True)
    shutil.copytree(zoo / source, base / f".incoming-{version}")
    os.rename(base / f".incoming-{version}", base / str(version))


def predict_request(model: str, name: str, array: np.ndarray) -> bytes:
    request = protos.PredictRequest()
    request.model_spec.name = model
    tensor = request.inputs[name]
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        tensor.dtype = protos.DataType.Value("DT_STRING")
        tensor.string_val.extend(array.reshape(-1).tolist())
    else:
        tensor.dtype = protos.DataType.Value({"f": "DT_FLOAT", "i": "DT_INT32"}[array.dtype.kind])
        tensor.tensor_content = array.tobytes()
    return bytes(request.SerializeToString())


@contextmanager
def grpc_predict(server: Server) -> Iterator[Any]:
    """A gRPC client: takes a serialized PredictRequest and gives a serialized PredictResponse."""
    # Each its own connection, as clients of their own have: channels to one address share one otherwise.
    options = [*UNBOUNDED, ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
        yield channel.unary_unary(PREDICT)


class Rooted(Server):
    """A server over a model root."""

    gate = 0  # the process of the model of this name

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        super().__init__(model_root=root, **options)


class Load:
    """Clients that ask one model without a pause, over REST with keep-alive and over gRPC, and note every outcome.

    `answers` counts the values that x = 1 gave; `failures` are requests that got an error, and `resets` those whose
    connection ended before an answer came. The connection is opened anew then.
    """

    def __init__(self, server: Server, model: str, rest: int = 2, grpc_clients: int = 1) -> None:
        self.server, self.model = server, model
        self.answers: collections.Counter[float] = collections.Counter()
        self.failures: list[str] = []
        self.resets: list[str] = []
        self.statuses: list[tuple[int, str | None]] = []  # of REST: status and Retry-After
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._rest) for _ in range(rest)]
        self._threads += [threading.Thread(target=self._grpc) for _ in range(grpc_clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends the clients, each after the answer that it waits for."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a client never got an answer"

    def more(self, count: int) -> None:
        """Waits for `count` further answers."""
        wanted = self.answers.total() + count
        eventually(
            lambda: self.answers.total() >= wanted, f"{count} more answers of {self.model}; {self.failures[-3:]}"
        )

    def _rest(self) -> None:
        connection = self.server.connection()
        while not self._stop.is_set():
            try:
                connection.request("POST", f"/v1/models/{self.model}:predict", b'{"instances": [1.0]}')
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.resets.append(repr(error))
                connection.close()
                continue
            self.statuses.append((response.status, response.getheader("retry-after")))
            if response.status == 200:
                self.answers[json.loads(body)["predictions"][0]] += 1
            else:
                self.failures.append(f"{response.status} {body[:300]!r}")
        connection.close()

    def _grpc(self) -> None:
        request = predict_request(self.model, "x", np.array([1], np.float32))
        with grpc_predict(self.server) as call:
            while not self._stop.is_set():
                try:
                    response = protos.PredictResponse.FromString(call(request, timeout=30, wait_for_ready=True))
                except grpc.RpcError as error:
                    lost = ("Socket closed", "Connection reset", "Broken pipe", "GOAWAY")
                    is_reset = any(words in str(error.details()) for words in lost)
                    (self.resets if is_reset else self.failures).append(f"{error.code()} {error.details()}")
                    continue
                self.answers[response.outputs["y"].float_val[0]] += 1


@pytest.fixture(scope="module")
def server(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rooted]:
    root = tmp_path_factory.mktemp("models")
    for model in ("switched", "bystander"):
        drop(zoo, root, "half_plus_two", model)
    for model in ("gate", "slow", "big_output", "crash_on_negative"):
        drop(zoo, root, model, model)
    with Rooted(root, rest_workers=2, grpc_workers=2) as running:
        for model in ("switched", "bystander", "gate", "slow", "big_output", "crash_on_negative"):
            running.wait_for(model, 1)
        yield running


# -- version switches ---------------------------------------------------------------------------------------------


def has_ended(server: Server, model: str, version: int) -> bool:
    return server.versions(model).get(version, ("ended", ""))[0] == "ended"


def test_version_switches_under_load_lose_not_one_request(server: Rooted, zoo: Path) -> None:
    with Load(server, "switched", rest=3, grpc_clients=2) as load:
        for version in range(2, 6):
            drop(zoo, server.root, "half_plus_three" if version % 2 == 0 else "half_plus_two", "switched", version)
            server.wait_for("switched", version)
            eventually(partial(has_ended, server, "switched", version - 1), "the old version has ended")
            load.more(20)
        shutil.rmtree(server.root / "switched" / "5")
        server.wait_for("switched", 4)
        load.more(20)
    assert load.failures == []
    assert load.resets == []
    assert set(load.answers) == {2.5, 3.5}


def test_requests_that_an_old_version_holds_are_answered_before_it_goes(
    server: Rooted, zoo: Path, tmp_path: Path
) -> None:
    worker = add_model(server, zoo, server.root, "gate", "held")
    with Background(server, "held", {"instances": [str(tmp_path / "open")]}) as held:
        wait_until_busy(worker)
        drop(zoo, server.root, "gate", "held", 2)
        server.wait_for("held", 2)
        server.wait_for("held", 1, "draining")
        (tmp_path / "open").touch()
        assert held.result() == (200, {"predictions": [1]})
    server.wait_for("held", 1, "ended")


class Background:
    """One REST request in a thread of its own."""

    def __init__(self, server: Server, model: str, document: Any) -> None:
        self._outcome: Any = None
        self.seconds = 0.0

        def ask() -> None:
            started = time.monotonic()
            try:
                self._outcome = server.predict(model, document)
            except (OSError, http.client.HTTPException) as error:
                self._outcome = error
            self.seconds = time.monotonic() - started

        self._thread = threading.Thread(target=ask, daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)

    @property
    def pending(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(60)
        assert not self._thread.is_alive(), "no answer came"
        return self._outcome


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_until_busy(pid: int) -> None:
    """Waits until the process has computed for a while: its request runs (`gate` and `slow` keep a core busy)."""
    before = cpu_ticks(pid)
    eventually(lambda: cpu_ticks(pid) > before + 10, f"process {pid} computes")


def add_model(server: Server, zoo: Path, root: Path, source: str, model: str) -> int:
    """Drops a model, waits until it serves, and gives its worker's process number."""
    before = set(server.pids("ds-worker"))
    drop(zoo, root, source, model)
    server.wait_for(model, 1)
    (pid,) = set(server.pids("ds-worker")) - before
    return pid


# -- kill -9 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ds-rest", "ds-rest-master", "ds-grpc", "ds-forkserver"])
def test_a_killed_process_costs_at_most_what_it_held_and_comes_back(server: Rooted, kind: str) -> None:
    count = {name: len(server.pids(name)) for name in ("ds-rest", "ds-rest-master", "ds-grpc", "ds-forkserver")}
    workers = server.pids("ds-worker")
    killed = server.pids(kind)[0]
    with Load(server, "bystander", rest=2, grpc_clients=2) as load:
        os.kill(killed, signal.SIGKILL)

        def back() -> bool:
            found = server.processes()
            names = collections.Counter(found.values())
            return killed not in found and all(names[name] == number for name, number in count.items())

        eventually(back, f"{kind} is replaced; {server.processes()}")
        load.more(100)
    assert load.failures == []
    held = {"ds-rest": 2, "ds-rest-master": 2, "ds-grpc": 2, "ds-forkserver": 0}[kind]
    assert len(load.resets) <= held, load.resets
    assert server.pids("ds-worker") == workers, "no model's worker noticed"


def test_a_killed_worker_costs_its_model_a_moment_and_other_models_nothing(server: Rooted, zoo: Path) -> None:
    killed = add_model(server, zoo, server.root, "half_plus_two", "victim")
    others = set(server.pids("ds-worker")) - {killed}
    with Load(server, "victim") as load, Load(server, "bystander") as bystander:
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: "restarting" in server.log() and killed not in server.processes(), "its end is noticed")
        server.wait_for("victim", 1)
        load.more(100)
        bystander.more(100)
    assert (bystander.failures, bystander.resets) == ([], [])
    assert load.resets == []
    assert all("503" in failure or "UNAVAILABLE" in failure for failure in load.failures), load.failures
    assert all(retry_after is not None for status, retry_after in load.statuses if status == 503)
    assert set(load.answers) == {2.5}
    assert others < set(server.pids("ds-worker"))


def test_workers_still_start_after_the_fork_server_was_killed(server: Rooted, zoo: Path) -> None:
    (killed,) = server.pids("ds-forkserver")
    os.kill(killed, signal.SIGKILL)
    drop(zoo, server.root, "half_plus_two", "late")
    server.wait_for("late", 1)
    assert server.predict("late", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_a_model_that_crashes_its_worker_is_restarted_and_harms_no_other(server: Rooted) -> None:
    with Load(server, "bystander") as bystander:
        status, body, headers = server.http("POST", "/v1/models/crash_on_negative:predict", b'{"instances": [-1.0]}')
        assert status == 503
        assert body["error"]
        assert headers["retry-after"]
        ask = {"instances": [1.0]}
        eventually(lambda: server.predict("crash_on_negative", ask)[0] == 200, "the model is back")
        bystander.more(20)
    assert (bystander.failures, bystander.resets) == ([], [])


# -- what clients and large answers do ----------------------------------------------------------------------------


def descriptors(pids: list[int]) -> dict[int, int]:
    return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids}


def shared_mappings(pids: list[int]) -> int:
    return sum(Path(f"/proc/{pid}/maps").read_text().count("/dev/shm") for pid in pids)


def test_large_requests_leave_no_descriptor_and_no_shared_memory_behind(server: Rooted) -> None:
    array = np.arange(600_000, dtype=np.float32)  # 2.3 MiB: through shared memory, both ways
    request = predict_request("bystander", "x", array)
    body = json.dumps({"instances": [1.5] * 300_000}).encode()

    def ask(count: int) -> None:
        with grpc_predict(server) as call:
            for _ in range(count):
                response = protos.PredictResponse.FromString(call(request, timeout=60))
                assert response.outputs["y"].tensor_shape.dim[0].size == 600_000
        for _ in range(count // 4):
            assert server.predict("bystander", body)[0] == 200

    ask(20)
    pids = [*server.pids("ds-rest"), *server.pids("ds-grpc"), *server.pids("ds-worker")]
    before, mapped = descriptors(pids), shared_mappings(pids)
    ask(180)

    def settled() -> bool:
        # A front that had no large request before may hold a segment of each side now: a bound, not a leak.
        now = descriptors(pids)
        return all(now[pid] <= before[pid] + 4 for pid in pids) and shared_mappings(pids) <= mapped + 8

    eventually(settled, f"descriptors are as before: {before}, {descriptors(pids)}")


def test_an_answer_of_hundreds_of_mebibytes_arrives_and_harms_no_other(server: Rooted) -> None:
    size = 72_000_000  # 275 MiB: more than shared memory may hold, so it goes through the socket
    with Load(server, "bystander") as bystander, grpc_predict(server) as call:
        request = predict_request("big_output", "n", np.array(size, np.int32))
        response = protos.PredictResponse.FromString(call(request, timeout=120))
        assert response.outputs["zeros"].tensor_shape.dim[0].size == size
        bystander.more(20)
    assert (bystander.failures, bystander.resets) == ([], [])


def test_a_frame_of_thousands_of_pieces_arrives_whole() -> None:
    """A model may have that many inputs; the kernel takes 1,024 buffers at once."""
    ours, theirs = socket.socketpair()
    sender, receiver = Channel(ours), Channel(theirs)
    arrays = {f"feature_{index}": np.full(3, index, np.float32) for index in range(5000)}
    packed = pack_arrays(arrays.items())
    done = sender.send([header(Kind.RESULT, len(packed.table), packed.payload_bytes), packed.table, *inline(packed)])
    frames: list[Frame] = []
    while not frames:
        done = done or sender.flush()
        frames = receiver.receive()
    payload = frames[0].payload
    assert payload is not None
    found = unpack_arrays(frames[0].meta, payload)
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in arrays.items()}
    sender.close()
    receiver.close()


def test_clients_that_go_in_the_middle_harm_nobody(server: Rooted, zoo: Path, tmp_path: Path) -> None:
    before = server.lasting_processes()
    gate_request = json.dumps({"instances": [str(tmp_path / "open")]}).encode()
    large = json.dumps({"instances": [1.0] * 200_000}).encode()
    with Load(server, "bystander") as bystander:
        for model, body, sent in (
            ("gate", gate_request, len(gate_request)),
            ("bystander", large, len(large) // 2),
            ("bystander", large, len(large)),
            ("bystander", large, 0),
        ):
            for _ in range(5):
                with socket.create_connection(("127.0.0.1", server.rest_port)) as sock:
                    head = f"POST /v1/models/{model}:predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
                    sock.sendall(head.encode() + body[:sent])
        with grpc_predict(server) as call:
            request = predict_request("gate", "path", np.array([str(tmp_path / "open").encode()], object))
            calls = [call.future(request) for _ in range(5)]
            for future in calls:
                future.cancel()
        (tmp_path / "open").touch()
        assert server.predict("gate", gate_request) == (200, {"predictions": [1]})
        bystander.more(20)
    assert (bystander.failures, bystander.resets) == ([], [])
    assert server.lasting_processes() == before


# -- limits -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rooted]:
    root = tmp_path_factory.mktemp("limited")
    with Rooted(
        root,
        rest_workers=1,
        grpc_workers=1,
        max_concurrent_requests=1,
        max_queue_requests=1,
        max_inflight_bytes=2 * 2**20,
    ) as running:
        running.gate = add_model(running, zoo, running.root, "gate", "gate")
        add_model(running, zoo, running.root, "half_plus_two", "other")
        yield running


def test_a_full_queue_refuses_at_once_and_answers_what_it_took(limited: Rooted, tmp_path: Path) -> None:
    document = {"instances": [str(tmp_path / "open")]}
    with Background(limited, "gate", document) as running:
        wait_until_busy(limited.gate)
        with Background(limited, "gate", document) as first, Background(limited, "gate", document) as second:
            eventually(lambda: not (first.pending and second.pending), "one of two more requests is refused")
            refused, waiting = (second, first) if first.pending else (first, second)
            status, body = refused.result()
            assert status == 429
            assert "max_queue_requests is 1" in body["error"]
            quickest = 60.0
            for _ in range(20):
                started = time.monotonic()
                status, _, headers = limited.http("POST", "/v1/models/gate:predict", json.dumps(document).encode())
                quickest = min(quickest, time.monotonic() - started)
                assert status == 429
                assert headers["retry-after"]
            assert quickest < 0.05
            with grpc_predict(limited) as call, pytest.raises(grpc.RpcError) as caught:
                call(predict_request("gate", "path", np.array([b"x"], object)), timeout=30)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert limited.predict("other", {"instances": [1.0]})[0] == 200, "another model's queue is its own"
            assert running.pending
            assert waiting.pending
            (tmp_path / "open").touch()
            assert waiting.result() == (200, {"predictions": [1]})
        assert running.result() == (200, {"predictions": [1]})
    assert limited.predict("gate", document) == (200, {"predictions": [1]})


def test_too_many_bytes_in_flight_are_refused_and_small_requests_are_not(limited: Rooted, tmp_path: Path) -> None:
    """The share of a front is 1 MiB."""
    held = {"instances": [str(tmp_path / "open"), "x" * 700_000]}
    large = json.dumps({"instances": [1.0] * 100_000}).encode()
    with Background(limited, "gate", held) as running:
        wait_until_busy(limited.gate)
        status, body = limited.predict("other", large)
        assert status == 429
        assert "max_inflight_bytes" in body["error"]
        assert limited.predict("other", {"instances": [1.0]})[0] == 200
        (tmp_path / "open").touch()
        assert running.result() == (200, {"predictions": [2, 2]})
    assert limited.predict("other", large)[0] == 200
    # The same over gRPC.
    with grpc_predict(limited) as call:
        path = str(tmp_path / "open2")
        future = call.future(
            predict_request("gate", "path", np.array([path.encode(), b"x" * 700_000], object)), timeout=60
        )
        wait_until_busy(limited.gate)
        with pytest.raises(grpc.RpcError) as caught:
            call(predict_request("other", "x", np.zeros(100_000, np.float32)), timeout=30)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(predict_request("other", "x", np.zeros(10, np.float32)), timeout=30)
        Path(path).touch()
        assert future.result()
        assert call(predict_request("other", "x", np.zeros(100_000, np.float32)), timeout=30)


# -- the end ------------------------------------------------------------------------------------------------------


def test_sigterm_answers_what_is_in_flight_and_ends_with_status_0(zoo: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    with Rooted(root) as server:
        worker = add_model(server, zoo, server.root, "gate", "gate")
        request = predict_request("gate", "path", np.array([str(tmp_path / "open").encode()], object))
        with Background(server, "gate", {"instances": [str(tmp_path / "open")]}) as held, grpc_predict(server) as call:
            future = call.future(request, timeout=60)
            wait_until_busy(worker)
            connection = server.connection()
            connection.request("GET", "/v1/models")
            assert connection.getresponse().read()
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: "stopping" in server.log(), "the signal is taken")
            assert held.pending
            assert not future.done()
            (tmp_path / "open").touch()
            assert held.result() == (200, {"predictions": [1]})
            assert list(protos.PredictResponse.FromString(future.result()).outputs["batch_size"].int_val) == [1]
            assert server.process.wait(60) == 0
            connection.close()
        assert server.processes() == {}


def test_a_deadline_ends_a_request_and_the_grace_ends_the_server(zoo: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    with Rooted(root, shutdown_grace_seconds=1, rest_api_timeout_in_ms=300, max_concurrent_requests=4) as server:
        worker = add_model(server, zoo, server.root, "slow", "slow")
        status, body = server.predict("slow", ENDLESS)
        assert status == 504
        assert "Timed out" in body["error"]
        assert server.predict("slow", {"instances": [1]}) == (200, {"predictions": [1]})
        with grpc_predict(server) as call:
            request = predict_request("slow", "iterations", np.array([2_000_000_000], np.int32))
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=0.5)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert worker in server.pids("ds-worker"), "the worker lives"
            future = call.future(request)
            eventually(lambda: len(os.listdir(f"/proc/{worker}/task")) > 1, "it runs")
            wait_until_busy(worker)
            pids = set(server.processes())
            assert server.stop() == 0
            with pytest.raises(grpc.RpcError):
                future.result()
        eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "every process has ended")


def alive(pids: set[int]) -> set[int]:
    """Those of the processes that have not ended; a zombie has, whoever its new parent is."""
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.add(pid)
    return found


def test_a_killed_supervisor_leaves_no_process_and_the_next_start_works_at_once(zoo: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    drop(zoo, root, "half_plus_two", "m")
    run = tmp_path / "r"
    socket_path = str(tmp_path / "grpc.sock")
    with Rooted(root, runtime_dir=run, grpc_socket_path=socket_path) as first:
        first.wait_for("m", 1)
        ports = {"rest_api_port": first.rest_port, "port": first.grpc_port}
        with Load(first, "m") as load:
            pids = set(first.processes())
            first.process.kill()
            first.process.wait(10)
            eventually(lambda: not alive(pids), "every process ends with the supervisor")
            with Rooted(root, runtime_dir=run, grpc_socket_path=socket_path, **ports) as second:
                second.wait_for("m", 1)
                load.more(20)
                with grpc.insecure_channel(f"unix:{socket_path}") as channel:
                    request = predict_request("m", "x", np.array([1], np.float32))
                    assert channel.unary_unary(PREDICT)(request, timeout=30, wait_for_ready=True)
                assert len(os.listdir(run)) == 1, "the killed server's sockets are gone"
                for option, other in (("rest_api_port", "port"), ("port", "rest_api_port")):
                    done = subprocess.run(
                        [sys.executable, "-m", "appliance", "serve", f"--model_root={root}", "--bind_address=127.0.0.1",
                         f"--{option}={ports[option]}", f"--{other}=0", f"--runtime_dir={tmp_path / 'r2'}"],
                        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
                    )  # fmt: skip
                    assert done.returncode == 2
                    assert f"port {ports[option]} (--{option})" in done.stderr
                    assert "is another server running?" in done.stderr
                    assert "Traceback" not in done.stderr
                load.more(20)
                load.end()
                assert second.stop() == 0
                assert os.listdir(run) == []


def test_a_delay_before_the_stop_says_not_ready_and_serves_on(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "half_plus_two", tmp_path / "models" / "a" / "1")
    with Server(model_root=tmp_path / "models", shutdown_delay_seconds=3600) as server:
        server.wait_for("a", 1)
        eventually(lambda: server.get("/readyz")[0] == 200, "ready")
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.get("/readyz")[0] == 503, "not ready")
        assert server.predict("a", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
        assert server.stop() == 0  # the second signal ends the delay
