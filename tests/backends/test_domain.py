"""Inputs that a form was not proven for: seen by its worker, and answered by TensorFlow without a demotion."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest

from appliance.config.model_options import ModelOptions
from backends.contract import Code, Signature, TensorSpec
from backends.domain import ANY, FINITE, Bounded, Domain, UnprovenError
from tests.support.acceleration_models import acceleration_zoo
from tests.support.grpc_calls import code_of, predict
from tests.support.server import ROOT, Server, eventually

NAN, INF = float("nan"), float("inf")


def beyond(domain: Domain, values: Any, dtype: str = "float32", shape: tuple[int, ...] | None = None) -> str:
    array = np.array(values).astype(TensorSpec(dtype, ()).element.numpy)
    return domain.beyond("x", array, TensorSpec(dtype, shape or (-1,) * array.ndim))


# -- what lies within


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_nan_and_infinity_anywhere_are_seen(dtype: str, size: int) -> None:
    values = np.linspace(-3, 3, size)
    assert beyond(FINITE, values, dtype) == ""
    for odd in (NAN, INF, -INF):
        for place in (0, size // 2, size - 1):
            changed = values.copy()
            changed[place] = odd
            assert "NaN" in beyond(FINITE, changed, dtype)
            assert beyond(ANY, changed, dtype) == ""


def test_the_largest_floats_are_finite() -> None:
    for dtype in (np.float16, np.float32, np.float64):
        assert beyond(FINITE, [np.finfo(dtype).max, -np.finfo(dtype).max], np.dtype(dtype).name) == ""


def test_magnitudes_and_the_smallest_floats_are_seen_where_they_matter() -> None:
    assert beyond(Domain(largest=1e6), [1e6, -1e6]) == ""
    assert "beyond 1e+06" in beyond(Domain(largest=1e6), [1.0, -1.1e6])
    assert beyond(Domain(subnormal=False), [0.0, -0.0, 1.2e-38]) == ""
    assert "subnormal" in beyond(Domain(subnormal=False), [1.0, -1e-39])


def test_whole_numbers_are_seen_where_they_matter() -> None:
    assert beyond(Domain(least_whole=0), [0, 2**63 - 1], "int64") == ""
    assert "-1" in beyond(Domain(least_whole=0), [3, -1], "int64")
    assert "-1" in beyond(Domain(least_whole=0), [3, -1], "int8")
    assert "258" in beyond(Domain(largest_whole=257), [0, 258], "int32")
    assert beyond(Domain(least_whole=0, largest_whole=10), [255], "uint8") == ""
    assert beyond(Domain(least_whole=0), [-1.0]) == ""
    assert beyond(FINITE, [True, False], "bool") == ""


def test_no_rows_and_small_dimensions_are_seen_where_they_matter() -> None:
    assert "no elements" in beyond(Domain(empty=False), np.zeros((0, 3)))
    assert "no elements" in beyond(Domain(empty=False), np.zeros((3, 0)))
    assert beyond(Domain(largest=1.0), np.zeros((0, 3))) == ""
    assert "[1, 2]" in beyond(Domain(smallest=3), np.zeros((1, 2)))
    assert beyond(Domain(smallest=3), np.zeros((1, 2)), shape=(-1, 2)) == ""


def test_what_lies_in_both_is_in_neithers_rest() -> None:
    one = Domain(largest=1e6, least_whole=0, empty=False)
    other = Domain(largest=10.0, subnormal=False, largest_whole=5, smallest=2)
    assert one & other == other & one == Domain(10.0, False, 0, 5, 2, False)
    assert one & ANY == one
    assert msgspec.convert(msgspec.to_builtins(one), Domain) == one
    assert one.left_out() == "NaN and floats beyond 1e+06, negative whole numbers, inputs without rows"


class Doubles:
    signatures: Mapping[str, Signature] = {
        "s": Signature({"x": TensorSpec("float32", (-1,))}, {"y": TensorSpec("float32", (-1,))})
    }

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        return [inputs["x"] * 2]


def test_a_form_does_not_run_on_what_it_was_not_proven_for() -> None:
    bounded = Bounded(Doubles(), {"s": FINITE})
    assert bounded.run("s", {"x": np.ones(2, np.float32)}, ["y"])[0].tolist() == [2, 2]
    with pytest.raises(UnprovenError) as refused:
        bounded.run("s", {"x": np.full(2, NAN, np.float32)}, ["y"])
    assert "not proven for this input" in refused.value.message
    assert refused.value.code is Code.UNAVAILABLE
    anything = Bounded(Doubles(), {"s": FINITE.unlooked(), "t": FINITE})
    assert np.isnan(anything.run("s", {"x": np.full(2, NAN, np.float32)}, ["y"])[0]).all()
    with pytest.raises(UnprovenError):
        anything.run("s", {"x": np.zeros(0, np.float32)}, ["y"])


class Scaled:
    signatures: Mapping[str, Signature] = {
        "s": Signature(
            {"x": TensorSpec("float32", (-1,)), "by": TensorSpec("float32", ())},
            {"y": TensorSpec("float32", (-1,))},
            defaults={"by": b"\x08\x01\x12\x00\x22\x04" + np.float32(NAN).tobytes()},  # a TensorProto
        )
    }

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        return [inputs["x"] * inputs.get("by", np.float32(NAN))]


def test_a_default_that_a_form_was_not_proven_for_is_seen_where_a_request_leaves_it_out() -> None:
    bounded = Bounded(Scaled(), {"s": FINITE})
    given = {"x": np.ones(2, np.float32), "by": np.array(3, np.float32)}
    assert bounded.run("s", given, ["y"])[0].tolist() == [3, 3]
    with pytest.raises(UnprovenError, match="its default"):
        bounded.run("s", {"x": given["x"]}, ["y"])
    assert np.isnan(Bounded(Scaled(), {"s": ANY}).run("s", {"x": given["x"]}, ["y"])[0]).all()


def test_the_options_say_what_clients_send() -> None:
    assert ModelOptions().proof_inputs == "any"


# -- through a whole server


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@contextmanager
def serving(root: Path, cache: Path, *names: str, **options: Any) -> Iterator[Server]:
    """A server of models of the acceleration's zoo, each by its ONNX form."""
    for name in names:
        (root / name).mkdir()
        (root / name / "1").symlink_to(acceleration_zoo() / name)
    defaults = {"acceleration": "onnx", "acceleration_min_speedup": 0.0, "wait_for_acceleration": True}
    with Server(model_root=root, cache_dir=cache, settle_seconds=0.0, **defaults, **options) as server:
        for name in names:
            eventually(lambda name=name: server.versions(name).get(1, ("",))[0] == "available", name, 150)
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Server]:
    """Three models, each served by a form that does not do for all inputs."""
    with serving(tmp_path_factory.mktemp("root"), cache, "whole", "lstm", "embedding") as server:
        yield server


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


def accelerated(server: Server, model: str) -> dict[str, Any]:
    return dict(server.get(f"/v1/models/{model}/versions/1/acceleration")[1])


def test_negative_whole_numbers_are_answered_as_tensorflow_does_and_demote_nothing(
    server: Server, channel: grpc.Channel
) -> None:
    assert accelerated(server, "whole")["serving"] == "onnx"
    row = np.array([[0.3 * number + column for column in range(4)] for number in range(10)], np.float32)
    for ids in ([3, 7], [-1, 5], [-(2**40), -86_400_001], [2**40 + 1, 86_400_000]):
        answer = predict(channel, "whole", ids=np.array(ids, np.int64))
        assert answer["remainder"].tolist() == [number % 1009 for number in ids]
        assert answer["high"].tolist() == [number // 2**32 for number in ids]
        assert answer["day"].tolist() == [number // 86_400_000 for number in ids]
        expected = [row[number] if 0 <= number < 10 else np.zeros(4, np.float32) for number in ids]
        np.testing.assert_allclose(answer["row"], expected, rtol=1e-5)
    assert predict(channel, "whole", ids=np.zeros(0, np.int64))["row"].shape == (0, 4)  # of which the form dies
    report = accelerated(server, "whole")
    assert (report["serving"], report["demoted"], report["proof_inputs"]) == ("onnx", "", "any")
    (proof,) = report["candidates"][0]["proofs"]
    assert (proof["domain"]["least_whole"], proof["domain"]["empty"]) == (None, False)


def test_ids_that_tensorflow_refuses_and_the_form_would_answer_are_refused(
    server: Server, channel: grpc.Channel
) -> None:
    assert accelerated(server, "embedding")["serving"] == "onnx"
    for ids in ([[-1]], [[50]]):
        code, details = code_of(lambda ids=ids: predict(channel, "embedding", ids=np.array(ids, np.int32)))
        assert code == "INVALID_ARGUMENT"
        assert f"{ids[0][0]} is not in [0, 50)" in details
    assert predict(channel, "embedding", ids=np.array([[49]], np.int32))["mean"].shape == (1, 6)
    report = accelerated(server, "embedding")
    assert (report["serving"], report["demoted"]) == ("onnx", "")


def lstm_input(server: Server) -> str:
    signatures = server.get("/v1/models/lstm/metadata")[1]["metadata"]["signature_def"]["signature_def"]
    (name,) = signatures["serving_default"]["inputs"]
    return str(name)


def test_nan_and_no_rows_are_answered_as_tensorflow_does_and_demote_nothing(
    server: Server, channel: grpc.Channel
) -> None:
    name = lstm_input(server)
    plain = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    missing = plain.copy()
    missing[0, 1, 2] = NAN
    (expected,) = predict(channel, "lstm", **{name: plain}).values()
    (answer,) = predict(channel, "lstm", **{name: missing}).values()
    assert np.isnan(answer[0]).all()
    np.testing.assert_allclose(answer[1], expected[1], rtol=1e-4, atol=1e-6)
    (empty,) = predict(channel, "lstm", **{name: plain[:0]}).values()
    assert empty.shape == (0, 3)
    report = accelerated(server, "lstm")
    assert (report["serving"], report["demoted"]) == ("onnx", "")
    assert "is given up" not in server.log()
    assert 'dropserve_unproven_requests_total{model="lstm"} 2\n' in server.get("/metrics")[1].decode()


def test_where_clients_are_said_to_send_finite_floats_nothing_looks_at_them_and_the_report_says_so(
    tmp_path: Path, cache: Path
) -> None:
    with serving(tmp_path, cache, "lstm", proof_inputs="finite") as server:
        name = lstm_input(server)
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            (answer,) = predict(channel, "lstm", **{name: np.full((1, 3, 4), NAN, np.float32)}).values()
            assert not np.isnan(answer).any()  # the form's
            (empty,) = predict(channel, "lstm", **{name: np.zeros((0, 3, 4), np.float32)}).values()
            assert empty.shape == (0, 3)  # TensorFlow's: the form would die
        report = accelerated(server, "lstm")
        assert (report["serving"], report["demoted"], report["proof_inputs"]) == ("onnx", "", "finite")
        command = [
            sys.executable,
            "-m",
            "appliance",
            "models",
            "--detail",
            f"--url=http://127.0.0.1:{server.rest_port}",
        ]
        text = subprocess.check_output(command, cwd=ROOT, text=True)
        assert "proof_inputs is finite: nothing looks for NaN" in text
        assert "TensorFlow answers NaN and infinity, inputs without rows" in text
