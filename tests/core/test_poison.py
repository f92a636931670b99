"""Kinds of requests that end processes: which are counted, which are refused, and how the record of runs tells."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from appliance.core.poison import NO_RUNS, Held, Kind, Refused, Runs, Suspects, digest_of, kind_of, refusal
from appliance.core.routes import VersionRoute
from appliance.core.servable import Form, PublicState, ServableId
from appliance.host.processes import fatal_signal
from appliance.supervisor.worker_end import what_was_fatal
from appliance.worker.odd_shapes import odd_inputs
from appliance.worker.run_record import RunRecord, read_record
from backends.contract import Signature, TensorSpec
from tests.support.manager_host import Host

IMAGES = Signature({"x": TensorSpec("float32", (-1, 8, 8, 1))}, {})
WORDS = Signature({"a": TensorSpec("string", (-1,)), "b": TensorSpec("int64", (-1, -1))}, {})
HOW = "SIGABRT: Check failed: a == b"


def image(*shape: int) -> Mapping[str, np.ndarray]:
    return {"x": np.zeros(shape, np.float32)}


def kind(*shape: int) -> Kind:
    return kind_of("s", IMAGES, image(*shape))


def died(suspects: Suspects, *kinds: Kind, digest: str = "") -> Refused | None:
    return suspects.died([Held(one, digest) for one in kinds], HOW)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ((1, 8, 8, 1), (3, 8, 8, 1), True),  # rows make no kind
        ((1, 8, 8, 1), (0, 8, 8, 1), False),
        ((1, 8, 8, 1), (1, 7, 8, 1), False),
        ((1,), (5,), True),  # of another rank than is declared, any size
        ((1,), (0,), False),
        ((1,), (1, 1), False),
    ],
)
def test_a_kind_is_what_requests_have_in_common(one: Sequence[int], other: Sequence[int], is_same: bool) -> None:
    assert (kind(*one) == kind(*other)) == is_same


def test_a_kind_is_told_and_travels() -> None:
    inputs = {"b": np.zeros((2, 5), np.int64), "a": np.array([b"x", b"y"], object)}
    found = kind_of("s", WORDS, inputs)
    assert str(found) == 'signature "s" with a: string [any], b: int64 [any, 5]'
    assert Kind.from_json(found.to_json()) == found


def test_a_digest_is_of_the_values_and_not_of_their_memory() -> None:
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert digest_of({"x": wide[:, ::2]}) == digest_of({"x": np.ascontiguousarray(wide[:, ::2])})
    assert digest_of({"x": wide}) != digest_of({"x": wide.reshape(4, 3)})
    texts = [np.array(values, object) for values in ([b"ab", b"c"], [b"a", b"bc"])]
    assert digest_of({"x": texts[0]}) != digest_of({"x": texts[1]})
    one, other = {"a": wide, "b": wide + 1}, {"b": wide + 1, "a": wide}
    assert digest_of(one) == digest_of(other)


def test_the_second_death_has_a_kind_refused() -> None:
    suspects = Suspects()
    assert not suspects.is_watched
    assert died(suspects, kind(1)) is None
    assert suspects.is_watched
    assert suspects.refused == ()
    refused = died(suspects, kind(3))
    assert refused is not None
    assert str(refused) == (
        'requests of signature "s" with x: float32 [any] have ended this version\'s process twice '
        f"({HOW}); they are refused until the version changes"
    )
    assert suspects.refused == (refused,)
    assert refusal(suspects.refused, "s", IMAGES, image(7)) == refused
    assert refusal(suspects.refused, "s", IMAGES, image(1, 8, 8, 1)) is None
    assert refusal(suspects.refused, "other", IMAGES, image(7)) is None


def test_of_a_kind_that_was_answered_only_the_exact_inputs_are_refused() -> None:
    suspects = Suspects()
    usual = kind(1, 8, 8, 1)
    poison = {"x": np.full((1, 8, 8, 1), -1, np.float32)}
    suspects.learn([usual])
    assert died(suspects, usual) is None
    assert died(suspects, usual) is None  # no digest was taken
    assert died(suspects, usual, digest=digest_of(poison)) is not None
    assert refusal(suspects.refused, "s", IMAGES, poison) is not None
    assert refusal(suspects.refused, "s", IMAGES, image(1, 8, 8, 1)) is None


def test_a_version_that_answered_more_kinds_than_are_kept_refuses_no_kind_as_a_whole() -> None:
    suspects = Suspects()
    suspects.learn([], forgot=True)
    assert [died(suspects, kind(1)) for _ in range(3)] == [None] * 3
    assert suspects.tried(kind(1), HOW) is None
    assert died(suspects, kind(1), digest="d") is not None


def test_who_merely_ran_beside_the_culprit_is_not_refused() -> None:
    suspects = Suspects()
    usual, culprit, new = kind(1, 8, 8, 1), kind(1), kind(1, 7, 8, 1)
    suspects.learn([usual])
    assert died(suspects, usual, culprit, new) is None
    assert died(suspects, culprit, new) is None  # either may be to blame
    refused = died(suspects, usual, culprit)
    assert refused is not None
    assert refused.kind == culprit
    assert died(suspects, usual, digest="d") is not None  # it was alone


def test_what_ended_an_expendable_process_is_refused_at_once_unless_it_was_answered() -> None:
    suspects = Suspects()
    suspects.learn([kind(1)])
    assert suspects.tried(kind(1), HOW) is None
    refused = suspects.tried(kind(8, 8, 1), HOW)
    assert refused is not None
    assert "as a trial has shown" in str(refused)
    assert suspects.tried(kind(8, 8, 1), HOW) is None  # it is known


def test_what_is_kept_is_bounded() -> None:
    suspects = Suspects()
    for size in range(1, 2000):
        other = Kind("s", (("x", "float32", (size,)),))
        died(suspects, other)
        assert died(suspects, other) is not None
    assert len(suspects.refused) == 64
    suspects.learn([Kind("s", (("x", "float32", (size,)),)) for size in range(2000)])
    assert suspects.tried(kind(1), HOW) is None  # more were answered than are kept


def test_what_is_refused_travels_with_the_routes() -> None:
    refused = (Refused(kind(1), "why"), Refused(kind(1, 8, 8, 1), "why", "digest"))
    route = VersionRoute(1, "available", PublicState.AVAILABLE, signatures={"s": IMAGES}, refused=refused)
    assert VersionRoute.from_json(route.to_json()) == route


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (signal.SIGABRT, "SIGABRT"),
        (signal.SIGSEGV | 0x80, "SIGSEGV"),
        (signal.SIGBUS, "SIGBUS"),
        (signal.SIGKILL, ""),
        (signal.SIGTERM, ""),
        (1 << 8, ""),
        (0, ""),
    ],
)
def test_only_signals_that_a_process_raises_by_what_it_runs_count(status: int, name: str) -> None:
    assert fatal_signal(status) == name


@pytest.mark.parametrize(
    ("status", "words", "told"),
    [
        (signal.SIGABRT, "F0000 00:00:1 7 a.cc:7] Check failed: a == b", "SIGABRT: Check failed: a == b"),
        (signal.SIGABRT, "F0000 00:00:1 7 a.cc:7] any x", "SIGABRT: F0000 00:00:1 7 a.cc:7] any x"),
        (signal.SIGSEGV, "", "SIGSEGV"),
        (signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'", ""),
        (
            signal.SIGABRT,
            "F0000 a.cc:7] Check failed: ret == 0 (11 vs. 0)Thread creation via pthread_create() failed.",
            "",
        ),
        (signal.SIGABRT, "libgomp: Thread creation failed: Resource temporarily unavailable", ""),
        (signal.SIGABRT, "F0000 a.cc:7] open /models/a: Too many open files", ""),
        (signal.SIGSEGV, "mmap: Cannot allocate memory", ""),
        (signal.SIGKILL, "Check failed: a == b", ""),
    ],
)
def test_want_of_memory_threads_or_descriptors_is_no_request_s_fault(status: int, words: str, told: str) -> None:
    assert what_was_fatal(status, words) == told


# -- the record


def test_a_record_tells_what_runs_and_what_was_answered(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    record = RunRecord(path, 3, {"s": IMAGES, "words": WORDS})
    assert read_record(path) == NO_RUNS
    usual = record.number_of("s", image(2, 8, 8, 1))
    record.begin(record.row(0), usual)
    assert read_record(path) == Runs((Held(kind(1, 8, 8, 1)),))
    record.end(record.row(0))
    record.answered(usual)
    odd = record.number_of("s", image(4))
    assert odd == record.number_of("s", image(9)) != usual
    record.begin(record.row(2), odd)
    assert read_record(path) == Runs((Held(kind(1)),), frozenset({kind(1, 8, 8, 1)}))
    record.begin_together(record.row(1), {usual, odd})
    assert {held.kind for held in read_record(path).held} == {kind(1), kind(1, 8, 8, 1)}
    record.begin_together(record.row(1), ())
    assert len(read_record(path).held) == 1


def test_a_watched_record_takes_digests_and_lets_one_request_run_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    record = RunRecord(path, 2, {"s": IMAGES}, is_watched=True)
    assert not record.merges
    assert record.watch(record.row(0), image(4))
    record.begin(record.row(0), record.number_of("s", image(4)))
    assert read_record(path).held == (Held(kind(4), digest_of(image(4))),)
    order: list[str] = []

    def other() -> None:
        assert record.watch(record.row(1), image(5))
        order.append("other")
        record.unwatch()

    thread = threading.Thread(target=other)
    thread.start()
    order.append("first")
    record.end(record.row(0))
    record.unwatch()
    thread.join(30)
    assert order == ["first", "other"]


def test_a_record_makes_room_for_new_kinds_and_says_when_it_forgets(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    record = RunRecord(path, 1, {"s": IMAGES})
    record.answered(record.number_of("s", image(1, 8, 8, 1)))
    for size in range(9, 600):  # a client that tries sizes, each of which is refused
        record.number_of("s", image(1, size, 8, 1))
    assert read_record(path).answered == {kind(1, 8, 8, 1)}
    assert not read_record(path).forgot
    record.begin(record.row(0), record.number_of("s", image(1, 700, 8, 1)))
    assert read_record(path).held == (Held(kind(1, 700, 8, 1)),)
    for size in range(9, 600):
        record.answered(record.number_of("s", image(1, size, 8, 1)))
    assert read_record(path).forgot


def test_a_damaged_record_tells_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    assert read_record(str(path)) == NO_RUNS
    record = RunRecord(str(path), 1, {"s": IMAGES})
    record.begin(record.row(0), record.number_of("s", image(4)))
    whole = path.read_bytes()
    assert read_record(str(path)).held
    for damaged in (b"", whole[:3], whole[:1000], b"x" * len(whole), b"\xff" * 64 + whole[64:]):
        (tmp_path / "damaged").write_bytes(damaged)
        assert read_record(str(tmp_path / "damaged")) == NO_RUNS
    for at in range(16 + 32 + 1024, 16 + 32 + 1024 + 80):
        broken = bytearray(whole)
        broken[at] ^= 0x55
        (tmp_path / "damaged").write_bytes(broken)
        read_record(str(tmp_path / "damaged"))  # it may tell other kinds, and raises nothing


def test_without_a_place_for_the_record_requests_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = RunRecord(str(tmp_path / "missing" / "runs"), 1, {"s": IMAGES})
    record.begin(record.row(0), record.number_of("s", image(4)))
    assert "no record is kept of what runs" in capsys.readouterr().err


# -- the manager


RUNS = Runs((Held(kind(4)),))


def refused(host: Host) -> tuple[Refused, ...]:
    (model,) = host.manager.routes().values()
    return next(version for version in model.versions if version.available).refused


def die(host: Host, runs: Runs = RUNS, fatal: str = HOW) -> list[str]:
    started = host.did(host.manager.worker_ended(host.worker(1), "killed by SIGABRT", host.now, runs, fatal))
    return [*started, *host.wait(60), *host.ready(1, signatures={"s": IMAGES})]


def test_two_deaths_of_a_kind_are_told_and_routed() -> None:
    host = Host()
    host.serving(1)
    die(host)
    assert refused(host) == ()
    revision = host.manager.revision
    die(host)
    assert [one.kind for one in refused(host)] == [kind(4)]
    assert host.manager.revision > revision
    assert any("they are refused" in change.reason and change.is_warning for change in host.manager.take_changes())


def test_a_death_that_was_no_request_s_fault_counts_for_nothing() -> None:
    host = Host()
    host.serving(1)
    for _ in range(3):
        die(host, fatal="")
        die(host, runs=NO_RUNS)
    assert refused(host) == ()


def test_the_death_of_a_form_gives_up_the_form_and_has_nothing_refused() -> None:
    host = Host()
    host.serving(1)
    for _ in range(2):
        form = Form("onnx", "/cache/form")
        host.did(host.manager.accelerate(ServableId("a", 1), form, "1", host.now))
        host.ready(1, signatures={"s": IMAGES})
        die(host)
        assert len(host.manager.take_demotions()) == 1
    assert refused(host) == ()
    die(host)
    assert refused(host) == ()  # the first death of its own model
    die(host)
    assert [one.kind for one in refused(host)] == [kind(4)]


def test_the_death_of_what_stands_by_to_judge_a_form_counts() -> None:
    host = Host()
    host.serving(1)
    form = Form("onnx", "/cache/form")
    host.did(host.manager.accelerate(ServableId("a", 1), form, "1", host.now))
    host.manager.worker_ready(host.worker(1), "/run/form", {"s": IMAGES}, host.now, form)
    for _ in range(2):
        host.did(host.manager.stand_by(ServableId("a", 1), host.now + 30, host.now))
        host.ready(1, signatures={"s": IMAGES})
        host.did(host.manager.worker_ended(host.worker(1), "killed by SIGABRT", host.now, RUNS, HOW))
    assert [one.kind for one in refused(host)] == [kind(4)]
    assert host.manager.take_demotions() == []


def test_a_worker_that_follows_a_death_is_watched() -> None:
    host = Host()
    host.serving(1)
    (again,) = host.manager.worker_ended(host.worker(1), "killed", host.now, RUNS, HOW)
    assert getattr(again, "is_watched", None) is True


def test_other_files_are_refused_nothing() -> None:
    host = Host()
    host.serving(1)
    die(host)
    die(host)
    assert refused(host)
    host.update(base_path="/models/elsewhere")
    assert host.see(1, digest="2", base="/models/elsewhere") == ["start a/1 from /models/elsewhere/1"]
    host.ready(1, signatures={"s": IMAGES})
    assert refused(host) == ()


def test_what_a_trial_found_is_refused_of_the_files_that_it_tried() -> None:
    host = Host()
    host.serving(1)
    ((servable, path, digest, _),) = host.manager.served()
    assert (servable, path) == (ServableId("a", 1), "/models/a/1")
    host.manager.odd_shapes_tried(servable, "other files", [kind(4)], HOW, [])
    assert refused(host) == ()
    host.manager.odd_shapes_tried(servable, digest, [kind(4), kind(2, 2)], HOW, [kind(2, 2)])
    assert [one.kind for one in refused(host)] == [kind(4)]
    host.manager.odd_shapes_skipped(servable, digest, "there is no memory for it")
    assert "there is no memory for it" in " ".join(host.remarks(1))


# -- odd shapes


def shapes(signature: Signature, name: str = "x") -> list[tuple[int, ...]]:
    return [inputs[name].shape for inputs in odd_inputs(signature)]


def test_odd_shapes_begin_with_the_likeliest_mistakes_and_are_few() -> None:
    found = shapes(IMAGES)
    assert found[:5] == [(1,), (8, 8, 1), (1, 1, 8, 8, 1), (), (8, 1)]
    assert set(found[5:]) >= {(1, 7, 8, 1), (1, 9, 8, 1), (1, 0, 8, 1), (1, 8, 8, 2)}
    assert len(found) <= 16
    assert (1, 8, 8, 1) not in found
    many = Signature({f"x{n}": TensorSpec("float32", (-1, 8)) for n in range(9)}, {})
    assert len(list(odd_inputs(many))) == 16


def test_what_has_no_declared_rank_has_no_odd_shapes() -> None:
    assert shapes(Signature({"x": TensorSpec("float32", None)}, {})) == []
    assert shapes(Signature({"x": TensorSpec("float32", ())}, {})) == [(1,)]


def test_one_input_at_a_time_is_odd() -> None:
    both = Signature({"a": TensorSpec("float32", (-1, 2)), "b": TensorSpec("int64", (-1,))}, {})
    for inputs in odd_inputs(both):
        assert (inputs["a"].shape == (1, 2)) != (inputs["b"].shape == (1,))
