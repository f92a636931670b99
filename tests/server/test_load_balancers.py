"""The example configurations for HAProxy and nginx, with the real programs, in front of three real servers.

What is tested is what is shipped: the files under examples/, with other addresses and folders. CI must have both
programs; elsewhere a missing one skips its tests.
"""

from __future__ import annotations

import csv
import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from appliance.protocols import protos
from tests.support.server import ROOT, Server, eventually

SERVICE = "/tensorflow.serving.PredictionService/"
PREDICT = SERVICE + "Predict"
HOSTS = ("10.0.0.11", "10.0.0.12", "10.0.0.13")  # as the examples name them
MODELS = ("half_plus_two", "gate")
CHANNEL = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # each channel has a connection of its own, as clients elsewhere have
]
NO_RETRIES = [("grpc.enable_retries", 0)]
ADVISED_RETRIES = [("grpc.service_config", (ROOT / "examples/clients/grpc_service_config.json").read_text())]


def predict_request(model: str, name: str, array: np.ndarray) -> bytes:
    request = protos.PredictRequest()
    request.model_spec.name = model
    tensor = request.inputs[name]
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        tensor.dtype = protos.DataType.Value("DT_STRING")
        tensor.string_val.extend(array.tolist())
    else:
        tensor.dtype = protos.DataType.Value("DT_FLOAT")
        tensor.tensor_content = array.astype(np.float32).tobytes()
    return bytes(request.SerializeToString())


# -- the appliances -----------------------------------------------------------------------------------------------


class Instance:
    """One appliance, which keeps its ports over its restarts."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._start()

    def _start(self, rest_port: int = 0, grpc_port: int = 0) -> None:
        self.server = Server(
            model_root=self._root,
            rest_api_port=rest_port,
            port=grpc_port,
            rest_workers=1,
            grpc_workers=1,
            access_log=True,
            tensorflow_intra_op_parallelism=1,
        )

    def wait_until_ready(self) -> None:
        self.server.__enter__()
        for model in MODELS:
            self.server.wait_for(model, 1)
        eventually(lambda: self.server.get("/readyz")[0] == 200, "the appliance is ready")

    def kill(self) -> None:
        """As a machine that loses its power: the kernel kills every process of the server with its supervisor."""
        processes = self.server.processes()
        self.server.process.kill()
        self.server.process.wait(10)
        eventually(lambda: not any(lives(pid) for pid in processes), "its processes are gone")

    def restart(self) -> None:
        """Starts it again on the same ports, with a new log. It is not ready yet."""
        self.server.__exit__()
        self._start(self.server.rest_port, self.server.grpc_port)

    def answered(self) -> Counter[str]:
        """Predictions since its start, by protocol."""
        log = self.server.log()
        return Counter(rest=log.count(":predict 200 "), grpc=log.count("PredictionService/Predict OK "))

    def cpu_ticks(self) -> int:
        """What its workers have computed."""
        total = 0
        for pid in self.server.pids("ds-worker"):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module")
def fleet(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Instance]]:
    root = tmp_path_factory.mktemp("models")
    for model in MODELS:
        shutil.copytree(zoo / model, root / model / "1")
    instances = [Instance(root) for _ in HOSTS]
    try:
        for instance in instances:
            instance.wait_until_ready()
        yield instances
    finally:
        for instance in instances:
            instance.server.__exit__()


@pytest.fixture
def instances(fleet: list[Instance]) -> list[Instance]:
    """All appliances, running and ready whatever the last test did to them."""
    stopped = [instance for instance in fleet if instance.server.process.poll() is not None]
    for instance in stopped:
        instance.restart()
    for instance in stopped:
        instance.wait_until_ready()
    return fleet


# -- the balancers ------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Balancer:
    """One of the programs with its example configuration, over `instances`."""

    program: str
    example: str
    sees_loading: bool  # a machine that loads its models gets no gRPC requests
    repeated_bytes: int  # of a request that it can repeat, by the example's sizes

    def __init__(self, instances: list[Instance], folder: Path) -> None:
        self.folder = folder
        self.rest_port, self.grpc_port = free_port(), free_port()
        text = (ROOT / "examples" / self.example).read_text()
        for host, instance in zip(HOSTS, instances, strict=True):
            text = self.replaced(text, f"{host}:8501", f"127.0.0.1:{instance.server.rest_port}")
            text = self.replaced(text, f"{host}:8500", f"127.0.0.1:{instance.server.grpc_port}")
        self.config = folder / Path(self.example).name
        self.config.write_text(self.adapted(text))
        checked = subprocess.run(self.check_command(), capture_output=True, text=True, timeout=30, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "warn" not in checked.stderr.lower(), checked.stderr
        self.log_path = folder / "output"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(self.run_command(), stdout=log, stderr=log)

    @staticmethod
    def replaced(text: str, old: str, new: str) -> str:
        """`text` with `new` for `old`, which it must have: the example may have changed."""
        assert old in text, f"the example has no {old!r}"
        return text.replace(old, new)

    def adapted(self, text: str) -> str:
        raise NotImplementedError

    def check_command(self) -> list[str]:
        raise NotImplementedError

    def run_command(self) -> list[str]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        try:
            eventually(self._serves, "the balancer serves")
        except AssertionError as error:
            self.__exit__()
            raise AssertionError(f"{error}\n{self.log_path.read_text()}") from None
        return self

    def _serves(self) -> bool:
        assert self.process.poll() is None, f"{self.program} ended"
        try:
            with socket.create_connection(("127.0.0.1", self.grpc_port), 1):
                return self.rest("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)

    def rest(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=60)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def channel(self, advised_retries: bool = False) -> grpc.Channel:
        """A channel that leaves repeating to the balancer, or does as docs/load_balancing.md advises."""
        retries = ADVISED_RETRIES if advised_retries else NO_RETRIES
        return grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", [*CHANNEL, *retries])


class HAProxy(Balancer):
    program = "haproxy"
    example = "haproxy/haproxy.cfg"
    sees_loading = True
    repeated_bytes = 200_000  # they lie in its buffer

    def adapted(self, text: str) -> str:
        text = self.replaced(text, "    bind :8501\n", f"    bind 127.0.0.1:{self.rest_port}\n")
        text = self.replaced(text, "    bind :8500 ", f"    bind 127.0.0.1:{self.grpc_port} ")
        text = self.replaced(text, "/run/haproxy/admin.sock", str(self.folder / "admin.sock"))
        if os.geteuid() != 0:
            text = self.replaced(self.replaced(text, "    user haproxy\n", ""), "    group haproxy\n", "")
        return text

    def check_command(self) -> list[str]:
        return [self.program, "-c", "-f", str(self.config)]

    def run_command(self) -> list[str]:
        return [self.program, "-db", "-f", str(self.config)]

    def ask(self, command: str) -> str:
        """What the admin socket answers."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(10)
            admin.connect(str(self.folder / "admin.sock"))
            admin.sendall(command.encode() + b"\n")
            with admin.makefile() as answer:
                return answer.read()

    def requests_at(self, server: str) -> int:
        """The requests that it works on, as the statistics count them in both backends."""
        header, *rows = csv.reader(self.ask("show stat").lstrip("# ").splitlines())
        tables = [dict(zip(header, row, strict=False)) for row in rows if row]
        return sum(int(row["scur"]) for row in tables if row["pxname"] in ("rest", "grpc") and row["svname"] == server)


class Nginx(Balancer):
    program = "nginx"
    example = "nginx/nginx.conf"
    sees_loading = False
    repeated_bytes = 3_000_000  # more than client_body_buffer_size: they lie in a file

    def adapted(self, text: str) -> str:
        text = self.replaced(text, "listen 8501;", f"listen 127.0.0.1:{self.rest_port};")
        text = self.replaced(text, "listen 8500 http2;", f"listen 127.0.0.1:{self.grpc_port} http2;")
        text = self.replaced(text, "/var/log/nginx/appliances.log", str(self.folder / "appliances.log"))
        if os.geteuid() != 0:  # its folders for bodies and answers are root's
            text = self.replaced(text, "user www-data;\n", "")
            kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            paths = "".join(f"    {kind}_temp_path {self.folder / kind};\n" for kind in kinds)
            text = self.replaced(text, "http {\n", "http {\n" + paths)
        return text

    def check_command(self) -> list[str]:
        return [self.program, "-t", "-e", "stderr", *self._arguments(self.folder / "check.pid")]

    def run_command(self) -> list[str]:
        return [self.program, "-e", "stderr", *self._arguments(self.folder / "pid", "daemon off; ")]

    def _arguments(self, pid: Path, directives: str = "") -> list[str]:
        return ["-c", str(self.config), "-g", f"{directives}pid {pid};"]


def installed(kind: type[Balancer]) -> type[Balancer]:
    if shutil.which(kind.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
        remedy = f"{kind.program} is not installed; as root on Debian: make balancers"
        if os.environ.get("CI"):
            pytest.fail(remedy)
        pytest.skip(remedy)
    return kind


@pytest.fixture(params=[HAProxy, Nginx], ids=["haproxy", "nginx"])
def balancer(request: Any, instances: list[Instance], tmp_path: Path) -> Iterator[Balancer]:
    with installed(request.param)(instances, tmp_path) as running:
        yield running


# -- load ---------------------------------------------------------------------------------------------------------


class Load:
    """Clients that predict without a pause, REST with keep-alive and gRPC. They repeat nothing themselves, but for
    gRPC's where `advised_retries` says so."""

    def __init__(
        self, balancer: Balancer, advised_retries: bool = False, rest_clients: int = 4, grpc_clients: int = 2
    ) -> None:
        self._balancer = balancer
        self._advised_retries = advised_retries
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.grpc_may_run = threading.Event()
        self.grpc_may_run.set()
        self._threads = [threading.Thread(target=self._rest, daemon=True) for _ in range(rest_clients)]
        self._threads += [threading.Thread(target=self._grpc, daemon=True) for _ in range(grpc_clients)]
        self._grpc_running = 0

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.grpc_may_run.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a client never got an answer"

    def more(self, count: int, protocols: tuple[str, ...] = ("rest", "grpc")) -> None:
        """Waits for `count` further answers of each protocol."""
        for protocol in protocols:
            wanted = self.answers[protocol] + count
            eventually(partial(self._has, protocol, wanted), f"{count} more answers; {self.failures[-3:]}")

    def _has(self, protocol: str, count: int) -> bool:
        return self.answers[protocol] >= count

    def pause_grpc(self) -> None:
        """Returns when no gRPC request is in flight."""
        with self._lock:
            self.grpc_may_run.clear()
        eventually(lambda: self._grpc_running == 0, "the gRPC clients rest")

    def _note(self, protocol: str, outcome: str) -> None:
        with self._lock:
            if outcome:
                self.failures.append(f"{protocol}: {outcome}")
            else:
                self.answers[protocol] += 1

    def _rest(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._balancer.rest_port, timeout=30)
        while not self._stop.is_set():
            outcome = ""
            try:
                connection.request("POST", "/v1/models/half_plus_two:predict", b'{"instances": [1.0]}')
                response = connection.getresponse()
                body = response.read()
                if response.status != 200 or json.loads(body) != {"predictions": [2.5]}:
                    outcome = f"{response.status} {body[:300]!r}"
            except (OSError, http.client.HTTPException) as error:
                outcome = repr(error)
                connection.close()
            self._note("rest", outcome)
        connection.close()

    def _grpc(self) -> None:
        request = predict_request("half_plus_two", "x", np.array([1.0]))
        with self._balancer.channel(self._advised_retries) as channel:
            call = channel.unary_unary(PREDICT)
            while not self._stop.is_set():
                self.grpc_may_run.wait()
                with self._lock:
                    if not self.grpc_may_run.is_set():
                        continue  # `pause_grpc` came in between
                    self._grpc_running += 1
                outcome = ""
                try:
                    response = protos.PredictResponse.FromString(call(request, timeout=30))
                    if response.outputs["y"].float_val[:] != [2.5]:
                        outcome = f"answered {response}"
                except grpc.RpcError as error:
                    outcome = f"{error.code()} {error.details()}"
                with self._lock:
                    self._grpc_running -= 1
                self._note("grpc", outcome)


def gets_traffic(instance: Instance, *protocols: str) -> None:
    eventually(
        lambda: all(instance.answered()[protocol] > 20 for protocol in protocols), f"it answers {protocols} requests"
    )


def test_no_request_fails_when_an_appliance_is_killed_and_comes_back(
    balancer: Balancer, instances: list[Instance]
) -> None:
    killed = instances[0]
    with Load(balancer) as load:
        for instance in instances:
            gets_traffic(instance, "rest", "grpc")
        killed.kill()
        load.more(200)
        if not balancer.sees_loading:
            load.pause_grpc()  # a limit of nginx, see docs/load_balancing.md
        killed.restart()
        killed.wait_until_ready()
        load.grpc_may_run.set()
        gets_traffic(killed, "rest", "grpc")
    assert load.failures == []


def test_no_request_fails_when_an_appliance_is_stopped_without_notice(
    balancer: Balancer, instances: list[Instance]
) -> None:
    # gRPC's library answers calls that come in the very moment of the stop with CANCELLED, which balancers do not see.
    with Load(balancer, advised_retries=True) as load:
        for instance in instances:
            gets_traffic(instance, "rest", "grpc")
        assert instances[0].server.stop() == 0
        load.more(200)
    assert load.failures == []


def test_requests_that_killed_appliances_held_are_answered_by_the_last(
    balancer: Balancer, instances: list[Instance], tmp_path: Path
) -> None:
    gate = tmp_path / "open"
    answers: list[Any] = []

    def rest() -> None:
        document = json.dumps({"instances": [str(gate)]}).encode()
        answers.append(balancer.rest("POST", "/v1/models/gate:predict", document))

    def grpc_() -> None:
        request = predict_request("gate", "path", np.array([str(gate).encode()], object))
        with balancer.channel() as channel:
            try:
                answer = protos.PredictResponse.FromString(channel.unary_unary(PREDICT)(request, timeout=60))
                answers.append(answer.outputs["batch_size"].int_val[:])
            except grpc.RpcError as error:
                answers.append(f"{error.code()} {error.details()}")

    for ask in (rest, grpc_):
        clients = threading.Thread(target=ask, daemon=True)
        before = [instance.cpu_ticks() for instance in instances]
        clients.start()
        (holder,) = eventually(partial(busy, instances, before), "an appliance works on the request")
        holder.kill()
        gate.touch()
        clients.join(60)
        gate.unlink()
    status, body = answers[0]
    assert (status, json.loads(body)) == (200, {"predictions": [1]})
    assert answers[1] == [1]


def test_a_held_request_is_repeated_over_a_connection_that_is_made_for_it(
    balancer: Balancer, instances: list[Instance], tmp_path: Path
) -> None:
    # Each appliance has one connection of the balancer's, which has been used and is in use again: what the killed one
    # held can be repeated only over a new connection.
    gate = tmp_path / "open"
    held = predict_request("gate", "path", np.array([str(gate).encode(), bytes(balancer.repeated_bytes)], object))
    with balancer.channel() as channel:
        call = channel.unary_unary(PREDICT)
        for _ in range(4 * len(instances)):
            call(predict_request("half_plus_two", "x", np.array([1.0])), timeout=30)
        before = [instance.cpu_ticks() for instance in instances]
        calls = [call.future(held, timeout=60) for _ in instances]
        eventually(lambda: len(busy(instances, before)) == len(instances), "each appliance works on a request")
        instances[0].kill()
        gate.touch()
        for answer in calls:
            assert protos.PredictResponse.FromString(answer.result()).outputs["batch_size"].int_val[:] == [2, 2]


def busy(instances: list[Instance], before: list[int]) -> list[Instance]:
    """Those whose workers have computed for a while since `before`."""
    return [instance for instance, ticks in zip(instances, before, strict=True) if instance.cpu_ticks() > ticks + 20]


def test_large_requests_and_answers_pass(balancer: Balancer) -> None:
    x = np.arange(3_000_000) % 1000
    status, body = balancer.rest(
        "POST", "/v1/models/half_plus_two:predict", json.dumps({"inputs": x.tolist()}).encode()
    )
    assert status == 200
    assert (np.array(json.loads(body)["outputs"]) == x / 2 + 2).all()
    with balancer.channel() as channel:
        answer = protos.PredictResponse.FromString(
            channel.unary_unary(PREDICT)(predict_request("half_plus_two", "x", x), timeout=60)
        )
    assert len(answer.outputs["y"].float_val) == len(x)


def test_only_models_and_readiness_are_public(balancer: Balancer) -> None:
    for path in ("/v1/models", "/V1/Models/half_plus_two/metadata", "/readyz"):
        assert balancer.rest("GET", path)[0] == 200, path
    for path in ("/metrics", "/healthz", "/v1/gpu", "/v1/models/../../metrics", "/monitoring/prometheus/metrics"):
        assert balancer.rest("GET", path)[0] in (400, 404), path
    refused = ("/tensorflow.serving.ModelService/HandleReloadConfigRequest", "/tensorflow.ProfilerService/Profile")
    with balancer.channel() as channel:
        for method in refused:
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(method)(b"", timeout=30)
            assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "404" in error.value.details()  # the balancer's refusal, not the appliance's
        request = protos.GetModelStatusRequest()
        request.model_spec.name = "half_plus_two"
        status = "/tensorflow.serving.ModelService/GetModelStatus"
        answer = protos.GetModelStatusResponse.FromString(
            channel.unary_unary(status)(request.SerializeToString(), timeout=30)
        )
        assert [version.state for version in answer.model_version_status] == [30]
        health = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30)
        assert health_pb2.HealthCheckResponse.FromString(health).status == health_pb2.HealthCheckResponse.SERVING
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=30)
        assert next(watch) == health
        watch.cancel()


def test_an_appliance_that_is_drained_at_haproxy_is_replaced_unnoticed(
    instances: list[Instance], tmp_path: Path
) -> None:
    drained = instances[0]
    with installed(HAProxy)(instances, tmp_path) as haproxy, Load(haproxy) as load:
        assert isinstance(haproxy, HAProxy)
        gets_traffic(drained, "rest", "grpc")
        haproxy.ask("set server rest/a state drain")
        eventually(lambda: not haproxy.requests_at("a"), "its requests have ended")
        before = drained.answered()
        load.more(100)
        assert drained.answered() == before
        assert drained.server.stop() == 0
        drained.restart()
        drained.wait_until_ready()
        load.more(100)
        assert drained.answered() == Counter()
        haproxy.ask("set server rest/a state ready")
        gets_traffic(drained, "rest", "grpc")
    assert load.failures == []
