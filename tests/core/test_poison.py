"""Kinds of requests that end processes: which are counted, which are refused, and how the record of runs tells."""

from __future__ import annotations

import signal
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from appliance.core.poison import NO_RUNS, Held, Kind, Refused, Runs, Suspects, admits, digest_of, kind_of, refusal
from appliance.core.routes import VersionRoute
from appliance.core.servable import Form, PublicState, ServableId
from appliance.host.processes import fatal_signal
from appliance.lifecycle.replicas import Loaded
from appliance.supervisor.worker_end import what_was_fatal
from appliance.worker.odd_shape_trial import odd_inputs
from appliance.worker.run_record import RunRecord, read_record
from backends.contract import Signature, TensorSpec
from tests.support.manager_host import Host
from tests.support.server import eventually

IMAGES = Signature({"x": TensorSpec("float32", (-1, 8, 8, 1))}, {})
WORDS = Signature({"a": TensorSpec("string", (-1,)), "b": TensorSpec("int64", (-1, -1))}, {})
HOW = "SIGABRT: Check failed: a == b"


def image(*shape: int) -> Mapping[str, np.ndarray]:
    return {"x": np.zeros(shape, np.float32)}


def kind(*shape: int) -> Kind:
    return kind_of("s", IMAGES, image(*shape))


SIGNATURES = {"s": IMAGES}
OPEN = {"s": Signature({"x": TensorSpec("float32", (-1, -1))}, {})}


def died(suspects: Suspects, *kinds: Kind, digest: str = "") -> Refused | None:
    return suspects.died(Runs(tuple(Held(one, digest) for one in kinds)), HOW, SIGNATURES)


def wide(columns: int) -> Kind:
    """A kind that the signature of OPEN admits."""
    return kind_of("s", OPEN["s"], image(1, columns))


def died_wide(suspects: Suspects, *digests: str, survived: Sequence[str] = ()) -> Refused | None:
    """A process died while it ran requests of such a kind with these digests."""
    held = tuple(Held(wide(50), digest) for digest in digests)
    return suspects.died(Runs(held, survived=frozenset(survived)), HOW, OPEN)


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
    assert msgspec.convert(msgspec.to_builtins(found), Kind) == found


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
    suspects.learn(Runs(answered=frozenset({usual})))
    assert died(suspects, usual) is None
    assert died(suspects, usual) is None  # no digest was taken
    assert died(suspects, usual, digest=digest_of(poison)) is not None
    assert refusal(suspects.refused, "s", IMAGES, poison) is not None
    assert refusal(suspects.refused, "s", IMAGES, image(1, 8, 8, 1)) is None


def test_a_version_that_answered_more_kinds_than_are_kept_refuses_no_kind_as_a_whole() -> None:
    suspects = Suspects()
    suspects.learn(Runs(forgot=True))
    other = kind(1, 7, 8, 1)
    assert [died(suspects, other) for _ in range(3)] == [None] * 3
    assert suspects.tried(other, HOW, SIGNATURES) is None
    assert died(suspects, other, digest="d") is not None


def test_another_rank_is_refused_although_answered_kinds_were_forgotten() -> None:
    suspects = Suspects()
    suspects.learn(Runs(forgot=True))
    assert died(suspects, kind(1)) is None
    assert died(suspects, kind(1)) is not None


def test_who_merely_ran_beside_culprits_of_other_kinds_is_not_refused() -> None:
    suspects = Suspects()
    slow, one, other = kind(1, 7, 8, 1), kind(1), kind(8, 8, 1)
    assert died(suspects, slow, one) is None
    assert died(suspects, slow, other) is None
    assert suspects.refused == ()
    assert suspects.is_watched  # the next process tells who it was
    assert died(suspects, one) is None
    refused = died(suspects, one)
    assert refused is not None
    assert refused.kind == one


def test_nothing_is_held_against_a_kind_that_ran_beside_requests_of_unknown_kinds() -> None:
    suspects = Suspects()
    for _ in range(3):
        assert suspects.died(Runs((Held(kind(1)),), unnamed=True), HOW, SIGNATURES) is None
    assert suspects.died(Runs((Held(kind(1)),)), HOW, {}) is None  # there is no such signature


@pytest.mark.parametrize(
    ("shape", "is_admitted"),
    [((1, 8, 8, 1), True), ((1, 7, 8, 1), False), ((0, 8, 8, 1), False), ((1, 8, 8, 0), False), ((8,), False)],
)
def test_a_signature_admits_its_ranks_its_sizes_and_others_but_nothing(shape: Sequence[int], is_admitted: bool) -> None:
    assert admits(IMAGES, kind(*shape)) == is_admitted
    anything = Signature({"x": TensorSpec("float32", None)}, {})
    assert admits(anything, kind_of("s", anything, image(*shape))) == (0 not in shape)


def test_of_a_kind_that_the_signature_admits_only_the_exact_inputs_are_refused() -> None:
    suspects = Suspects()
    assert died_wide(suspects, "") is None
    refused = died_wide(suspects, "bad")
    assert refused is not None
    assert (refused.kind, refused.digest) == (wide(50), "bad")
    assert died_wide(suspects, "", "") is None
    assert [one.digest for one in suspects.refused] == ["bad"]


def test_the_same_inputs_are_refused_also_if_others_ran_beside_them_both_times() -> None:
    suspects = Suspects()
    assert died_wide(suspects, "bad", "good") is None
    refused = died_wide(suspects, "bad", "other")
    assert refused is not None
    assert refused.digest == "bad"


def test_inputs_that_came_back_before_are_not_refused_for_what_ran_beside_them() -> None:
    suspects = Suspects()
    assert died_wide(suspects, "probe", "bad") is None
    assert died_wide(suspects, "probe", "worse", survived=["probe"]) is None
    assert died_wide(suspects, "probe", "bad") is None  # either may be to blame
    assert suspects.refused == ()


def test_what_ended_an_expendable_process_is_refused_at_once_unless_it_was_answered() -> None:
    suspects = Suspects()
    suspects.learn(Runs(answered=frozenset({kind(1)})))
    assert suspects.tried(kind(1), HOW, SIGNATURES) is None
    refused = suspects.tried(kind(8, 8, 1), HOW, SIGNATURES)
    assert refused is not None
    assert "as a trial has shown" in str(refused)
    assert suspects.tried(kind(8, 8, 1), HOW, SIGNATURES) is None  # it is known


def test_what_is_kept_is_bounded() -> None:
    suspects = Suspects()
    others = [kind(1, size, 8, 1) for size in range(9, 2000)]
    for other in others:
        died(suspects, other)
        assert died(suspects, other) is not None
    assert len(suspects.refused) == 64
    suspects.learn(Runs(answered=frozenset(others)))
    assert suspects.tried(kind(1, 7, 8, 1), HOW, SIGNATURES) is None  # more were answered than are kept


def test_what_is_refused_travels_with_the_routes() -> None:
    refused = (Refused(kind(1), "why"), Refused(kind(1, 8, 8, 1), "why", "digest"))
    route = VersionRoute(1, "available", PublicState.AVAILABLE, signatures={"s": IMAGES}, refused=refused)
    assert msgspec.convert(msgspec.to_builtins(route), VersionRoute) == route


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
    record.end_together(record.row(1))
    assert len(read_record(path).held) == 1


def run_watched(record: RunRecord, thread: int, inputs: Mapping[str, np.ndarray]) -> bool:
    """Begins a run as a worker does; whether it is alone."""
    number = record.number_of("s", inputs)
    is_alone = record.watch(record.row(thread), (number,), inputs)
    record.begin(record.row(thread), number)
    return is_alone


def test_a_watched_record_takes_digests_and_lets_one_request_run_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    record = RunRecord(path, 2, {"s": IMAGES}, is_watched=True)
    assert not record.merges
    assert run_watched(record, 0, image(4))
    assert read_record(path).held == (Held(kind(4), digest_of(image(4))),)
    order: list[str] = []

    def other() -> None:
        assert run_watched(record, 1, image(5))
        order.append("other")
        record.unwatch()

    thread = threading.Thread(target=other)
    thread.start()
    order.append("first")
    record.end(record.row(0))
    record.unwatch()
    thread.join(30)
    assert order == ["first", "other"]
    assert read_record(path).survived == {digest_of(image(4))}


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_waits_to_run_alone_is_not_held_and_keeps_its_slot(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    clock = Clock()
    record = RunRecord(path, 2, {"s": IMAGES}, is_watched=True, clock=clock)
    assert run_watched(record, 0, image(4))
    waits = threading.Thread(target=run_watched, args=(record, 1, image(1, 8, 8, 1)))
    waits.start()
    number = record.number_of("s", image(1, 8, 8, 1))
    eventually(lambda: digest_of(image(1, 8, 8, 1)).encode() in Path(path).read_bytes().hex().encode(), "it waits")
    for size in range(9, 900):
        clock.now += 0.05
        record.number_of("s", image(1, size, 8, 1))
    assert [one.kind for one in read_record(path).held] == [kind(4)]
    assert record.number_of("s", image(1, 8, 8, 1)) == number
    record.end(record.row(0))
    record.unwatch()
    waits.join(30)
    assert [one.kind for one in read_record(path).held] == [kind(1, 8, 8, 1)]


def test_digests_count_no_more_when_their_hour_is_over(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    clock = Clock()
    record = RunRecord(path, 2, {"s": IMAGES}, is_watched=True, clock=clock)
    clock.now = 3599.0
    assert not run_watched(record, 0, image(4))  # others may run beside it
    assert read_record(path).held[0].digest
    clock.now = 3600.0
    assert not run_watched(record, 1, image(4))
    assert [one.digest for one in read_record(path).held] == ["", ""]
    assert not record.is_watching


def test_a_record_makes_room_for_new_kinds_and_says_when_it_forgets(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    clock = Clock()
    record = RunRecord(path, 1, {"s": IMAGES}, clock=clock)
    record.answered(record.number_of("s", image(1, 8, 8, 1)))
    for size in range(9, 600):  # a client that tries sizes, each of which is refused
        clock.now += 0.1
        record.number_of("s", image(1, size, 8, 1))
    assert read_record(path).answered == {kind(1, 8, 8, 1)}
    assert not read_record(path).forgot
    record.begin(record.row(0), record.number_of("s", image(1, 700, 8, 1)))
    assert read_record(path).held == (Held(kind(1, 700, 8, 1)),)
    for size in range(9, 600):
        clock.now += 0.1
        record.answered(record.number_of("s", image(1, size, 8, 1)))
    assert read_record(path).forgot


def test_kinds_that_are_answered_again_and_again_are_remembered_longest(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    clock = Clock()
    record = RunRecord(path, 1, {"s": IMAGES}, clock=clock)
    for size in range(9, 900):
        clock.now += 0.1
        record.answered(record.number_of("s", image(1, 8, 8, 1)))
        record.answered(record.number_of("s", image(1, size, 8, 1)))
    assert kind(1, 8, 8, 1) in read_record(path).answered
    assert len(read_record(path).answered) == 256


def test_a_stream_of_new_kinds_is_not_recorded_until_its_second_is_over(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    clock = Clock()
    record = RunRecord(path, 1, {"s": IMAGES}, clock=clock)
    numbers = [record.number_of("s", image(1, size, 8, 1)) for size in range(9, 600)]
    assert all(numbers[:256])
    assert numbers[-1] == 0
    record.begin(record.row(0), numbers[-1])
    assert read_record(path).unnamed
    record.end(record.row(0))
    assert not read_record(path).unnamed
    assert record.number_of("s", image(3, 599 - 300, 8, 1)) == numbers[-1 - 300] > 0  # a known kind, of more rows
    clock.now += 1.0
    assert record.number_of("s", image(1, 599, 8, 1)) > 0


def test_a_kind_has_no_number_while_as_many_others_run_as_are_kept(tmp_path: Path) -> None:
    record = RunRecord(str(tmp_path / "runs"), 300, {"s": IMAGES})
    for thread in range(256):
        record.begin(record.row(thread), record.number_of("s", image(1, 9 + thread, 8, 1)))
    assert record.number_of("s", image(1, 8, 8, 1)) == 0


def test_more_kinds_together_than_a_row_holds_are_said_to_be_more(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    record = RunRecord(path, 1, {"s": IMAGES})
    numbers = {record.number_of("s", image(1, size, 8, 1)) for size in range(1, 6)}
    record.begin_together(record.row(0), numbers)
    assert (len(read_record(path).held), read_record(path).unnamed) == (3, True)


def test_a_kind_of_hundreds_of_inputs_is_kept_if_its_text_can_be_made_short(tmp_path: Path) -> None:
    path = str(tmp_path / "runs")
    rng = np.random.default_rng(0)
    alike = Signature({f"x{n}": TensorSpec("float32", (-1, 8)) for n in range(100)}, {})
    unlike = Signature({rng.bytes(16).hex(): TensorSpec("float32", (-1, 8)) for _ in range(100)}, {})
    record = RunRecord(path, 1, {"alike": alike, "unlike": unlike})
    inputs = {name: np.zeros((1, 8), np.float32) for name in alike.inputs}
    record.begin(record.row(0), record.number_of("alike", inputs))
    assert read_record(path).held == (Held(kind_of("alike", alike, inputs)),)
    assert record.number_of("unlike", {name: np.zeros((1, 8), np.float32) for name in unlike.inputs}) == 0


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 900,
        zlib.compress(b"[" * 200_000),
        zlib.compress(b"x" * 500_000),
        b'["s", [["x", "float32", [Infinity]]]]',
        b'["s", 1]',
        b"x",
    ],
)
def test_whatever_a_model_writes_into_its_record_nothing_is_raised(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "runs"
    record = RunRecord(str(path), 1, {"s": IMAGES})
    record.begin(record.row(0), record.number_of("s", image(4)))
    data = path.read_bytes()
    at = data.index(b'["s",') - 4
    length = len(text).to_bytes(4, "little")
    path.write_bytes(data[:at] + length + text + data[at + 4 + len(text) :])
    assert read_record(str(path)) == Runs(unnamed=True)


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
    first = whole.index(b'["s",') - 8
    for at in range(first, first + 80):
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


def serve(host: Host) -> None:
    host.add()
    host.see(1)
    host.ready(1, signatures={"s": IMAGES})


def die(host: Host, runs: Runs = RUNS, fatal: str = HOW) -> list[str]:
    started = host.did(host.manager.worker_ended(host.worker(1), "killed by SIGABRT", host.now, runs, fatal))
    return [*started, *host.wait(60), *host.ready(1, signatures={"s": IMAGES})]


def test_two_deaths_of_a_kind_are_told_and_routed() -> None:
    host = Host()
    serve(host)
    die(host)
    assert refused(host) == ()
    revision = host.manager.revision
    die(host)
    assert [one.kind for one in refused(host)] == [kind(4)]
    assert host.manager.revision > revision
    assert any("they are refused" in change.reason and change.is_warning for change in host.manager.take_changes())


def test_a_good_request_that_two_culprits_of_other_kinds_met_is_not_refused() -> None:
    host = Host()
    serve(host)
    good = Held(kind(1, 7, 8, 1))
    die(host, Runs((good, Held(kind(4)))))
    die(host, Runs((good, Held(kind(2, 2)))))
    assert refused(host) == ()


def test_bad_values_lock_out_nobody_else_who_sends_what_the_signature_admits() -> None:
    host = Host()
    serve(host)
    usual = kind(1, 8, 8, 1)
    die(host, Runs((Held(usual),)))
    die(host, Runs((Held(usual, "bad"),)))
    die(host, Runs((Held(usual, "worse"),)))
    assert [(one.kind, one.digest) for one in refused(host)] == [(usual, "bad"), (usual, "worse")]


def test_a_death_that_was_no_request_s_fault_counts_for_nothing() -> None:
    host = Host()
    serve(host)
    for _ in range(3):
        die(host, fatal="")
        die(host, runs=NO_RUNS)
    assert refused(host) == ()


def test_the_death_of_a_form_gives_up_the_form_and_has_nothing_refused() -> None:
    host = Host()
    serve(host)
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
    serve(host)
    form = Form("onnx", "/cache/form")
    host.did(host.manager.accelerate(ServableId("a", 1), form, "1", host.now))
    host.manager.worker_ready(host.worker(1), Loaded("/run/form", {"s": IMAGES}), host.now)
    for _ in range(2):
        host.did(host.manager.stand_by(ServableId("a", 1), host.now + 30, host.now))
        host.ready(1, signatures={"s": IMAGES})
        host.did(host.manager.worker_ended(host.worker(1), "killed by SIGABRT", host.now, RUNS, HOW))
    assert [one.kind for one in refused(host)] == [kind(4)]
    assert host.manager.take_demotions() == []


def test_a_worker_that_follows_a_death_is_watched() -> None:
    host = Host()
    serve(host)
    (again,) = host.manager.worker_ended(host.worker(1), "killed", host.now, RUNS, HOW)
    assert getattr(again, "is_watched", None) is True


def test_other_files_are_refused_nothing() -> None:
    host = Host()
    serve(host)
    die(host)
    die(host)
    assert refused(host)
    host.update(base_path="/models/elsewhere")
    assert host.see(1, digest="2", base="/models/elsewhere") == ["start a/1 from /models/elsewhere/1"]
    host.ready(1, signatures={"s": IMAGES})
    assert refused(host) == ()


def test_what_a_trial_found_is_refused_of_the_files_that_it_tried() -> None:
    host = Host()
    serve(host)
    ((servable, files, _),) = host.manager.served()
    assert (servable, files.path) == (ServableId("a", 1), "/models/a/1")
    digest = files.digest
    host.manager.odd_shapes_tried(servable, "other files", [kind(4)], HOW, NO_RUNS)
    assert refused(host) == ()
    host.manager.odd_shapes_tried(servable, digest, [kind(4), kind(2, 2)], HOW, Runs(answered=frozenset({kind(2, 2)})))
    assert [one.kind for one in refused(host)] == [kind(4)]
    host.manager.odd_shapes_skipped(servable, digest, "there is no memory for it")
    assert "there is no memory for it" in " ".join(host.remarks(1))


def answered(*shape: int) -> Runs:
    return Runs(answered=frozenset({kind(*shape)}))


def test_what_a_worker_answered_counts_also_if_it_was_drained_for_a_form() -> None:
    host = Host()
    serve(host)
    own = host.worker(1)
    form = Form("onnx", "/cache/form")
    host.did(host.manager.accelerate(ServableId("a", 1), form, "1", host.now))
    assert host.did(host.manager.worker_ready(host.worker(1), Loaded("/run/form", {"s": IMAGES}), host.now)) == [
        "drain a/1"
    ]
    host.did(host.manager.worker_ended(own, "exited with status 0", host.now, answered(4)))
    die(host)  # the form is given up
    for _ in range(3):
        die(host)
    assert refused(host) == ()


def test_what_stood_by_has_answered_counts_after_its_end() -> None:
    host = Host()
    serve(host)
    form = Form("onnx", "/cache/form")
    host.did(host.manager.accelerate(ServableId("a", 1), form, "1", host.now))
    host.manager.worker_ready(host.worker(1), Loaded("/run/form", {"s": IMAGES}), host.now)
    host.did(host.manager.stand_by(ServableId("a", 1), host.now + 30, host.now))
    host.ready(1, signatures={"s": IMAGES})
    standing_by = host.worker(1)
    assert host.wait(30) == ["kill a/1"]
    host.did(host.manager.worker_ended(standing_by, "killed by SIGKILL", host.now, answered(4)))
    host.manager.odd_shapes_tried(ServableId("a", 1), "1", [kind(4)], HOW, NO_RUNS)
    assert refused(host) == ()


def test_a_trial_spares_other_sizes_if_answered_kinds_were_forgotten() -> None:
    host = Host()
    serve(host)
    sizes, rank = kind(1, 7, 8, 1), kind(4)
    forgetful = NO_RUNS.with_answered_of(Runs(forgot=True))
    host.manager.odd_shapes_tried(ServableId("a", 1), "1", [sizes, rank], HOW, forgetful)
    assert [one.kind for one in refused(host)] == [rank]


def test_what_other_files_have_answered_does_not_count() -> None:
    host = Host()
    serve(host)
    old = host.worker(1)
    host.update(base_path="/models/elsewhere")
    host.see(1, digest="2", base="/models/elsewhere")
    assert host.ready(1, signatures={"s": IMAGES}) == ["drain a/1"]
    host.did(host.manager.worker_ended(old, "exited with status 0", host.now, answered(4)))
    die(host)
    die(host)
    assert [one.kind for one in refused(host)] == [kind(4)]


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
