"""The cache of converted models: what is found again, what is thrown away, and who waits for whom."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.conversion.text import report_text
from converters.cache import Cache, default_folder
from converters.entry import hold
from converters.identity import content_hash, key_of
from converters.report import Demotion, Report
from tests.support.acceleration_jobs import KEY, ROOT, Outcome, run_job
from tests.support.planted_cache import hashes

ENTRY = "a" * 64
OTHER = "b" * 64


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """What a job leaves: 3,000 bytes."""
    folder = tmp_path / "result" / "forms" / "onnx"
    folder.mkdir(parents=True)
    (folder / "0-0.onnx").write_bytes(b"o" * 2000)
    (folder / "signatures.json").write_bytes(b"s" * 1000)
    return tmp_path / "result"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "cache"), 10_000, KEY)


def entry_path(tmp_path: Path, key: str = ENTRY) -> Path:
    return tmp_path / "cache" / "entries" / key


# -- what is found again


def test_what_was_put_is_found(cache: Cache, result: Path) -> None:
    assert cache.find(ENTRY) is None
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    entry.close()
    found = cache.find(ENTRY)
    assert found is not None
    assert Path(found.path, "forms", "onnx", "0-0.onnx").read_bytes() == b"o" * 2000
    assert cache.find(OTHER) is None
    found.close()


def test_another_server_finds_it_too(cache: Cache, result: Path, tmp_path: Path) -> None:
    cache.put(ENTRY, str(result), hashes(result))
    program = f"""
from converters.cache import Cache
print(Cache({str(tmp_path / "cache")!r}, 10_000, {KEY!r}).find({ENTRY!r}).path)
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == str(entry_path(tmp_path))


def test_reports_are_kept_for_each_kind_of_machine(cache: Cache, result: Path) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    report = Report("onnx", "why", "onnx")
    assert entry.put_report("epyc", report)
    assert entry.report("epyc") == report
    assert entry.report("xeon") is None


def test_of_two_that_put_the_same_the_first_wins(cache: Cache, result: Path) -> None:
    first = cache.put(ENTRY, str(result), hashes(result))
    assert first is not None
    other = result / "forms" / "onnx" / "0-0.onnx"
    other.unlink()
    other.write_bytes(b"p" * 2000)
    second = cache.put(ENTRY, str(result), hashes(result))
    assert second is not None
    assert Path(second.path, "forms", "onnx", "0-0.onnx").read_bytes() == b"o" * 2000


def test_the_key_is_made_of_content_and_names(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "variables").mkdir(parents=True)
    (model / "saved_model.pb").write_bytes(b"graph")
    (model / "variables" / "v").write_bytes(b"weights")
    before = content_hash(str(model))
    os.utime(model / "saved_model.pb", (1, 1))
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert content_hash(str(copy)) == before == content_hash(str(model))
    (model / "variables" / "v").write_bytes(b"weighty")
    assert content_hash(str(model)) != before
    (copy / "variables" / "v").rename(copy / "variables" / "w")
    assert content_hash(str(copy)) != before
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})


def test_the_default_folder_is_systemds_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/given:/other")
    assert default_folder() == "/var/cache/given"
    monkeypatch.delenv("CACHE_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/me/.cache")
    assert default_folder() == "/home/me/.cache/dropserve"


# -- what is thrown away


def corrupt(path: Path, how: str) -> None:
    if how == "a bit flips":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "it is cut off":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["a bit flips", "it is cut off", "it is gone"])
@pytest.mark.parametrize("file", ["forms/onnx/0-0.onnx", "forms/onnx/signatures.json", "files.json"])
def test_a_damaged_entry_is_thrown_away_and_made_again(
    cache: Cache, result: Path, tmp_path: Path, file: str, how: str
) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    entry.close()
    corrupt(entry_path(tmp_path) / file, how)
    assert cache.find(ENTRY) is None
    assert not entry_path(tmp_path).exists()
    assert cache.put(ENTRY, str(result), hashes(result)) is not None


def test_an_entry_without_its_mark_of_use_is_thrown_away(cache: Cache, result: Path, tmp_path: Path) -> None:
    cache.put(ENTRY, str(result), hashes(result))
    (entry_path(tmp_path) / "used").unlink()
    assert cache.find(ENTRY) is None
    assert not entry_path(tmp_path).exists()


@pytest.mark.parametrize("how", ["a bit flips", "it is cut off", "it is gone"])
def test_a_damaged_report_is_none(cache: Cache, result: Path, tmp_path: Path, how: str) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    entry.put_report("epyc", Report("onnx", "why", "onnx"))
    corrupt(entry_path(tmp_path) / "report-epyc.json", how)
    assert entry.report("epyc") is None


def test_the_least_recently_used_goes_first(cache: Cache, result: Path, tmp_path: Path) -> None:
    keys = [str(number) * 64 for number in range(4)]
    for age, key in enumerate(keys[:3]):
        entry = cache.put(key, str(result), hashes(result))
        assert entry is not None
        entry.close()
        os.utime(entry_path(tmp_path, key) / "used", (1000 + age, 1000 + age))
    used = cache.find(keys[0])  # the oldest becomes the newest
    assert used is not None
    used.close()
    assert cache.put(keys[3], str(result), hashes(result)) is not None
    assert sorted(os.listdir(tmp_path / "cache" / "entries")) == [keys[0], keys[2], keys[3]]


def test_what_is_in_use_is_not_evicted(cache: Cache, result: Path, tmp_path: Path) -> None:
    entries = [cache.put(str(number) * 64, str(result), hashes(result)) for number in range(3)]
    assert all(entries)
    for number in range(3):
        os.utime(entry_path(tmp_path, str(number) * 64) / "used", (1000 + number, 1000 + number))
    assert entries[2] is not None
    entries[2].close()
    cache.put("3" * 64, str(result), hashes(result))
    assert sorted(name[0] for name in os.listdir(tmp_path / "cache" / "entries")) == ["0", "1", "3"]


def test_a_form_is_held_by_its_folder(cache: Cache, result: Path, tmp_path: Path) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    entry.close()
    held = hold(os.path.join(entry.path, "forms", "onnx"), KEY)
    assert held is not None
    assert held.path == entry.path
    for number in range(4):
        other = cache.put(str(number) * 64, str(result), hashes(result))
        if other is not None:
            other.close()
    assert entry_path(tmp_path).exists()
    held.close()
    assert hold(str(tmp_path / "cache" / "entries" / OTHER / "forms" / "onnx"), KEY) is None


# -- who may write in the folder decides nothing


def forge(path: Path, change: Callable[[Any], None]) -> None:
    """Changes the JSON of a sealed file as somebody without the key can: with the hash of what it is now."""
    body = json.loads(path.read_text().partition("\n")[2])
    change(body)
    text = json.dumps(body)
    path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def test_a_form_that_was_rewritten_with_its_hashes_is_not_used(
    cache: Cache, result: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    entry.close()
    form = entry_path(tmp_path) / "forms" / "onnx" / "0-0.onnx"
    form.write_bytes(b"x" * 2000)
    digest = hashlib.sha256(b"x" * 2000).hexdigest()
    forge(entry_path(tmp_path) / "files.json", lambda listing: listing.update({"forms/onnx/0-0.onnx": [2000, digest]}))
    assert cache.find(ENTRY) is None
    assert "files.json does not carry this server's seal" in caplog.text


def test_an_entry_of_another_key_is_made_again_and_the_log_says_what_to_do(
    cache: Cache, result: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    other = Cache(str(tmp_path / "cache"), 10_000, KEY[::-1])
    assert hold(os.path.join(entry.path, "forms", "onnx"), KEY[::-1]) is None
    assert other.find(ENTRY) is None
    assert "sealed with another key" in caplog.text
    assert "servers that share a cache need the same key: copy the file of cache_key_file" in caplog.text
    assert entry_path(tmp_path).exists()  # it is in use
    assert other.put(ENTRY, str(result), hashes(result)) is None
    entry.close()
    mine = other.put(OTHER, str(result), hashes(result))
    assert mine is not None
    assert other.find(ENTRY) is None
    assert other.put(ENTRY, str(result), hashes(result)) is not None


def test_what_was_sealed_for_one_entry_says_nothing_of_another(cache: Cache, result: Path, tmp_path: Path) -> None:
    one = cache.put(ENTRY, str(result), hashes(result))
    assert one is not None
    one.put_report("epyc", Report("onnx", "why", "onnx"))
    one.demote(FAILED)
    (result / "forms" / "onnx" / "0-0.onnx").write_bytes(b"p" * 2000)
    two = cache.put(OTHER, str(result), hashes(result))
    assert two is not None
    for name in ("report-epyc.json", "demoted-onnx.json"):
        shutil.copy(Path(one.path, name), two.path)
    assert (two.report("epyc"), two.demotion("onnx")) == (None, None)
    shutil.copy(Path(one.path, "report-epyc.json"), Path(one.path, "report-xeon.json"))
    assert one.report("xeon") is None
    # Nor is the manifest of one that of the other.
    shutil.copy(Path(one.path, "files.json"), two.path)
    two.close()
    assert cache.find(OTHER) is None


def test_a_forged_report_or_demotion_is_not_used(cache: Cache, result: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    entry.put_report("epyc", Report("tensorflow", "nothing is faster"))
    forge(Path(entry.path, "report-epyc.json"), lambda report: report.update(chosen="onnx"))
    assert entry.report("epyc") is None
    forge(Path(entry.demote(FAILED).file), lambda demotion: demotion.update(why="no reason"))
    assert entry.demotion("onnx") is None
    assert caplog.text.count("does not carry this server's seal") == 2


def test_a_file_that_was_not_put_there_makes_an_entry_another(cache: Cache, result: Path, tmp_path: Path) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    entry.close()
    (entry_path(tmp_path) / "forms" / "onnx" / "more.onnx").write_bytes(b"")
    assert cache.find(ENTRY) is None


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [link, pipe, lambda path: path.write_bytes(b"other"), os.unlink])
def test_what_is_not_the_file_that_was_proven_is_not_taken(
    cache: Cache, result: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    proven = hashes(result)
    spoil(result / "forms" / "onnx" / "0-0.onnx")
    assert cache.put(ENTRY, str(result), proven) is None
    assert not entry_path(tmp_path).exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "forms/onnx/../../x", "forms/a/b/c", ".hidden"])
def test_no_name_leads_out_of_an_entry(cache: Cache, result: Path, tmp_path: Path, name: str) -> None:
    assert cache.put(ENTRY, str(result), {name: "0" * 64}) is None
    assert not entry_path(tmp_path).exists()


def test_who_goes_on_writing_to_a_file_does_not_write_to_the_entry(cache: Cache, result: Path) -> None:
    with open(result / "forms" / "onnx" / "0-0.onnx", "r+b") as file:
        entry = cache.put(ENTRY, str(result), hashes(result))
        file.write(b"x")
    assert entry is not None
    assert Path(entry.path, "forms", "onnx", "0-0.onnx").read_bytes() == b"o" * 2000


# -- what failed in service

FAILED = Demotion("onnx", "2026-11-21T10:00:00+00:00", "onnx failed where TensorFlow answers: it wants two dimensions")


def test_that_a_form_failed_is_kept_with_its_entry(cache: Cache, result: Path, tmp_path: Path) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    assert entry.demotion("onnx") is None
    kept = entry.demote(FAILED)
    assert kept.file == str(entry_path(tmp_path) / "demoted-onnx.json")
    assert entry.demotion("onnx") == kept
    assert entry.demotion("tflite") is None
    os.unlink(kept.file)
    assert entry.demotion("onnx") is None


@pytest.mark.parametrize("how", ["a bit flips", "it is cut off", "it is gone"])
def test_a_damaged_demotion_is_none(cache: Cache, result: Path, how: str) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    corrupt(Path(entry.demote(FAILED).file), how)
    assert entry.demotion("onnx") is None


def test_a_demotion_of_another_form_is_none(cache: Cache, result: Path) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    file = Path(entry.demote(FAILED).file)
    file.rename(file.with_name("demoted-tflite.json"))
    assert entry.demotion("tflite") is None


def test_where_nothing_can_be_written_a_demotion_has_no_file(cache: Cache, result: Path, tmp_path: Path) -> None:
    entry = cache.put(ENTRY, str(result), hashes(result))
    assert entry is not None
    shutil.rmtree(entry_path(tmp_path))
    assert entry.demote(FAILED) == FAILED


# -- no room, no access


def test_what_is_larger_than_the_cache_is_not_kept(result: Path, tmp_path: Path) -> None:
    assert Cache(str(tmp_path / "cache"), 2999, KEY).put(ENTRY, str(result), hashes(result)) is None
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_takes_nothing_is_no_error(result: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    cache = Cache(str(tmp_path / "cache"), 10_000, KEY)
    assert cache.put(ENTRY, str(result), hashes(result)) is None
    assert cache.find(ENTRY) is None
    with cache.claim(ENTRY, 1.0):
        pass


def test_a_disk_that_fills_up_leaves_nothing_behind(result: Path, tmp_path: Path) -> None:
    program = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
from converters.cache import Cache
print(Cache({str(tmp_path / "cache")!r}, 10_000, {KEY!r}).put({ENTRY!r}, {str(result)!r}, {hashes(result)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "None"
    assert os.listdir(tmp_path / "cache" / "staging") == []


def test_what_a_killed_process_left_is_removed(cache: Cache, result: Path, tmp_path: Path) -> None:
    staging = tmp_path / "cache" / "staging"
    for name in ("dead", "fresh"):
        (staging / name).mkdir(parents=True)
        (staging / f"{name}.lock").touch()
    an_hour_ago = time.time() - 3600
    os.utime(staging / "dead.lock", (an_hour_ago, an_hour_ago))
    cache.put(ENTRY, str(result), hashes(result))
    assert sorted(os.listdir(staging)) == ["fresh", "fresh.lock"]


# -- several processes


def test_who_wants_what_another_process_makes_waits_for_it(cache: Cache, tmp_path: Path) -> None:
    program = f"""
import sys
from converters.cache import Cache
with Cache({str(tmp_path / "cache")!r}, 10_000, {KEY!r}).claim({ENTRY!r}, 60.0):
    print("claimed", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        with cache.claim(OTHER, 0.0):
            pass
        waited: list[bool] = []

        def waiting() -> None:
            waited.append(True)
            assert other.stdin is not None
            other.stdin.close()  # it lets go now

        with cache.claim(ENTRY, 60.0, waiting):
            assert waited == [True]
        assert other.wait(30) == 0


def test_a_claim_that_is_never_given_up_is_waited_for_in_vain(cache: Cache) -> None:
    waited: list[bool] = []
    with cache.claim(ENTRY, 1.0), cache.claim(ENTRY, 0.3, lambda: waited.append(True)):
        assert waited == [True]


# -- through whole jobs


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, zoo: Path) -> tuple[Path, Outcome]:
    """A cache folder in which a job has left its result."""
    folder = tmp_path_factory.mktemp("shared-cache")
    return folder, run_job(zoo / "tiny_tf2", policy="onnx", cache_dir=str(folder))


def again(shared: tuple[Path, Outcome], zoo: Path) -> Outcome:
    return run_job(zoo / "tiny_tf2", policy="onnx", cache_dir=str(shared[0]))


def test_a_second_job_finds_the_result_and_loads_nothing(shared: tuple[Path, Outcome], zoo: Path) -> None:
    outcome = again(shared, zoo)
    assert outcome.progress == ("found in the cache",)
    assert outcome.report.from_cache
    assert not shared[1].report.from_cache
    assert outcome.report.forms == shared[1].report.forms
    assert outcome.report.folder == shared[1].report.folder
    assert Path(outcome.report.folder).is_relative_to(shared[0])
    assert os.listdir(outcome.work_dir) == []


def test_another_kind_of_machine_proves_and_measures_but_does_not_convert(
    shared: tuple[Path, Outcome], zoo: Path
) -> None:
    (report,) = Path(shared[1].report.folder).parents[1].glob("report-*.json")
    report.unlink()
    outcome = again(shared, zoo)
    assert "onnx: proving on this machine what was converted elsewhere" in outcome.progress
    assert not any("converting" in line for line in outcome.progress)
    assert outcome.report.chosen == "onnx"
    assert not outcome.report.from_cache
    assert report.exists()


def test_a_form_that_failed_in_service_is_not_chosen_again_until_that_is_forgotten(
    shared: tuple[Path, Outcome], zoo: Path
) -> None:
    held = hold(shared[1].report.folder, KEY)
    assert held is not None
    kept = held.demote(FAILED)
    held.close()
    outcome = again(shared, zoo)
    assert outcome.progress == ("found in the cache",)
    assert (outcome.report.chosen, outcome.report.form, outcome.report.folder) == ("tensorflow", "", "")
    assert outcome.report.demotions == (kept,)
    assert f"onnx: it failed in service, at {FAILED.at}: {FAILED.why}" in outcome.report.reason
    assert f"to try it again, remove {kept.file} and start the server again" in report_text(outcome.report)
    os.unlink(kept.file)
    assert again(shared, zoo).report.chosen == "onnx"


def test_what_was_measured_on_a_busy_machine_is_measured_again_but_neither_converted_nor_proven(
    zoo: Path, tmp_path: Path
) -> None:
    def job(max_others: float) -> Outcome:
        return run_job(zoo / "tiny_tf2", policy="onnx", cache_dir=str(tmp_path), max_others=max_others)

    busy = job(-1.0)  # whatever others take is too much
    assert busy.report.disturbed
    assert sum("other processes took" in line for line in busy.progress) == 2
    assert busy.report.chosen == "onnx"
    assert "of the processors while this was measured" in report_text(busy.report)
    quiet = job(1.0)
    assert "measured on a busy machine before" in quiet.progress
    assert not any("converting" in line or "proving" in line for line in quiet.progress)
    assert not quiet.report.disturbed
    assert not quiet.report.from_cache
    assert quiet.report.chosen == "onnx"
    assert quiet.report.folder == busy.report.folder
    assert quiet.report.forms[0].proofs == busy.report.forms[0].proofs
    assert quiet.report.forms[0].attempts == busy.report.forms[0].attempts
    assert [timing.batch for timing in quiet.report.forms[0].timings] == [1, 8]
    assert job(-1.0).report.from_cache  # now it is final


def test_that_nothing_can_be_done_is_kept_too(zoo: Path, tmp_path: Path) -> None:
    first, second = (run_job(zoo / "strings", cache_dir=str(tmp_path)) for _ in range(2))
    assert first.report.chosen == second.report.chosen == "tensorflow"
    assert second.progress == ("found in the cache",)
    assert second.report.reason == first.report.reason


def test_a_job_makes_a_corrupt_entry_again(shared: tuple[Path, Outcome], zoo: Path) -> None:
    form = Path(shared[1].report.folder)
    (file,) = form.glob("*.onnx")
    corrupt(file, "a bit flips")
    outcome = again(shared, zoo)
    assert any("converting" in line for line in outcome.progress)
    assert outcome.report.chosen == "onnx"
    assert again(shared, zoo).report.from_cache
