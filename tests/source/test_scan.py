"""Looking at base paths: real folders, links and files, and what they are taken for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.source.scan import fingerprint, scan_base_path, scan_root

_NOBODY = 65534


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def version(base: Path, name: str) -> Path:
    """A version folder with something in it."""
    folder = base / name
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.index").write_bytes(b"index")
    return folder


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights, where the tests have them: root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_base() -> Iterator[Path]:
    """A base path that others can reach too."""
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    yield Path(folder)
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o755)
    shutil.rmtree(folder)


def let_the_clock_of_files_go_on(folder: Path) -> None:
    """Until a change gets a later ctime than one of before: the kernel counts them in ticks of up to 10 ms."""
    probe = folder / "probe"
    probe.write_bytes(b"")
    before = os.stat(probe).st_ctime_ns
    while os.stat(probe).st_ctime_ns == before:
        os.utime(probe)


# -- which folders are versions ---------------------------------------------------------------------------------


def test_numbered_folders_are_versions(base: Path) -> None:
    for name in ("1", "2", "10", "0"):
        version(base, name)
    seen = scan_base_path(str(base))
    assert set(seen.versions) == {0, 1, 2, 10}
    assert seen.paths == {number: f"{base}/{number}" for number in (0, 1, 2, 10)}
    assert seen.device == os.stat(base).st_dev
    assert seen.remark == ""


def test_leading_zeros_name_the_same_number(base: Path) -> None:
    version(base, "00123")
    seen = scan_base_path(str(base))
    assert seen.paths == {123: f"{base}/00123"}


def test_of_two_folders_of_one_number_one_is_the_version_and_the_other_is_remarked_on(base: Path) -> None:
    version(base, "1")
    version(base, "001")
    seen = scan_base_path(str(base))
    assert seen.paths == {1: f"{base}/001"}
    assert seen.remark == f"{base}/1 is ignored: {base}/001 is version 1 already"


def test_a_file_does_not_stand_in_the_way_of_a_folder_of_its_number(base: Path) -> None:
    (base / "001").write_bytes(b"")
    version(base, "1")
    assert scan_base_path(str(base)).paths == {1: f"{base}/1"}


def test_the_highest_number_is_that_of_64_bits_with_a_sign(base: Path) -> None:
    version(base, str(2**63 - 1))
    for name in ("9223372036854775808", "99999999999999999999", "9" * 250):
        version(base, name)
    seen = scan_base_path(str(base))
    assert set(seen.versions) == {2**63 - 1}
    assert f"{base}/99999999999999999999 is ignored: a version is at most 9223372036854775807" in seen.remark
    assert seen.remark.count("is ignored") == 3


@pytest.mark.parametrize(
    "name", ["１", "²", "१", "1a", "v1", "1.0", "-1", "+1", "1 ", "1_0", "1.tmp", ".1", "_1", "tmp"]
)
def test_what_is_no_plain_number_is_no_version(base: Path, name: str) -> None:
    version(base, name)
    version(base, "7")
    seen = scan_base_path(str(base))
    assert set(seen.versions) == {7}
    assert seen.remark == ""


def test_names_that_are_not_utf_8_are_remarked_on_and_inside_a_version_passed_over(base: Path) -> None:
    os.mkdir(os.fsencode(base) + b"/\xff\xfe")
    folder = version(base, "1")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.bin")).write_bytes(b"x")
    seen = scan_base_path(str(base))
    assert set(seen.versions) == {1}
    assert seen.remark == f"{base}/\\xff\\xfe is ignored: its name is not UTF-8"
    assert seen.remark.encode()


def test_a_base_path_full_of_odd_names_is_remarked_on_in_bounds(base: Path) -> None:
    for number in range(50):
        os.mkdir(os.fsencode(base) + b"/\xff%d" % number)
    version(base, "1")
    remark = scan_base_path(str(base)).remark
    assert remark.count("is not UTF-8") == 20
    assert remark.endswith("30 more remarks are left out")


def test_a_file_named_like_a_number_is_no_version(base: Path) -> None:
    (base / "1").write_bytes(b"")
    seen = scan_base_path(str(base))
    assert not seen.versions
    assert seen.remark == f"no numbered version folder under {base}; a model goes to {base}/1"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("saved_model.pb", "SavedModel"),
        ("saved_model.pbtxt", "SavedModel"),
        ("model.tflite", "TensorFlow Lite model"),
    ],
)
def test_a_model_without_a_version_folder_is_told_where_it_goes(base: Path, name: str, kind: str) -> None:
    (base / name).write_bytes(b"graph")
    assert scan_base_path(str(base)).remark == f"{base} holds a {kind} itself; move it to {base}/1"
    version(base, "1")
    assert scan_base_path(str(base)).remark == ""


def test_an_empty_base_path_is_told_what_goes_there(base: Path) -> None:
    seen = scan_base_path(str(base))
    assert (dict(seen.versions), dict(seen.paths)) == ({}, {})
    assert seen.remark == f"no numbered version folder under {base}; a model goes to {base}/1"


def test_a_missing_base_path_or_a_file_there_raises(base: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan_base_path(f"{base}/missing")
    (base / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        scan_base_path(f"{base}/file")


def test_versions_that_are_loaded_get_no_fingerprint(base: Path) -> None:
    version(base, "1")
    version(base, "2")
    seen = scan_base_path(str(base), frozenset({1, 5}))
    assert seen.versions[1] is None
    assert seen.versions[2] is not None
    assert 5 not in seen.versions


# -- links, and what cannot be read -----------------------------------------------------------------------------


def test_a_linked_version_is_a_version_and_its_files_are_watched(base: Path, tmp_path: Path) -> None:
    elsewhere = version(tmp_path, "elsewhere")
    os.symlink(elsewhere, base / "1")
    before = scan_base_path(str(base)).versions[1]
    assert before is not None
    (elsewhere / "variables" / "variables.data").write_bytes(b"late")
    assert scan_base_path(str(base)).versions[1] != before


def test_a_link_that_is_switched_to_another_folder_is_a_change(base: Path, tmp_path: Path) -> None:
    version(tmp_path, "first")
    version(tmp_path, "second")
    os.symlink(tmp_path / "first", base / "1")
    before = scan_base_path(str(base)).versions[1]
    os.unlink(base / "1")
    os.symlink(tmp_path / "second", base / "1")
    assert scan_base_path(str(base)).versions[1] != before


def test_a_dangling_link_is_no_version(base: Path) -> None:
    os.symlink(base / "nowhere", base / "1")
    version(base, "2")
    assert set(scan_base_path(str(base)).versions) == {2}


def test_links_in_a_circle_stop_no_other_version(base: Path) -> None:
    os.symlink("3", base / "3")
    looped = version(base, "1")
    os.symlink(".", looped / "here")
    os.symlink("..", looped / "variables" / "up")
    os.symlink("self", looped / "self")
    os.symlink("nowhere", looped / "dangling")
    version(base, "2")
    seen = scan_base_path(str(base))
    assert set(seen.versions) == {1, 2}
    assert f"{base}/3 is ignored: " in seen.remark


def test_a_version_that_cannot_be_read_stops_no_other_and_says_so(open_base: Path) -> None:
    version(open_base, "1")
    os.chmod(version(open_base, "2"), 0o700)
    os.chown(open_base / "2", 0, 0) if os.geteuid() == 0 else os.chmod(open_base / "2", 0)
    with as_nobody():
        seen = scan_base_path(str(open_base))
    assert set(seen.versions) == {1}
    assert seen.remark == f"{open_base}/2 is ignored: Permission denied"


def test_loaded_versions_whose_folders_can_no_longer_be_looked_at_count_as_there(open_base: Path) -> None:
    version(open_base, "1")
    os.chmod(open_base, 0o744)  # the names can be listed, and nothing behind them
    if os.geteuid() != 0:
        os.chmod(open_base, 0o444)
    with as_nobody():
        seen = scan_base_path(str(open_base), frozenset({1}))
    assert dict(seen.versions) == {1: None}


def test_a_base_path_that_cannot_be_read_raises(open_base: Path) -> None:
    version(open_base, "1")
    os.chmod(open_base, 0o700 if os.geteuid() == 0 else 0)
    with as_nobody(), pytest.raises(PermissionError):
        scan_base_path(str(open_base), frozenset({1}))


# -- what is noticed of a version -------------------------------------------------------------------------------


def test_a_fingerprint_tells_the_model_files_at_the_top_of_the_folder(base: Path) -> None:
    folder = version(base, "1")
    (folder / "assets").mkdir(exist_ok=True)
    (folder / "assets" / "model.tflite").write_bytes(b"")
    before = fingerprint(str(folder)).names
    assert "model.tflite" not in before
    (folder / "model.tflite").write_bytes(b"")
    assert fingerprint(str(folder)).names == before | {"model.tflite"}


def test_a_folder_that_rests_keeps_its_fingerprint(base: Path) -> None:
    folder = version(base, "1")
    first = fingerprint(str(folder))
    (folder / "saved_model.pb").read_bytes()
    os.listdir(folder)
    assert fingerprint(str(folder)) == first


def test_every_change_of_a_folder_changes_its_fingerprint(base: Path) -> None:
    folder = version(base, "1")
    graph, index = folder / "saved_model.pb", folder / "variables" / "variables.index"
    old = os.stat(index)

    def rewrite_in_place() -> None:
        """As `rsync -a --inplace` does: same size, same modification time; only the ctime tells."""
        index.write_bytes(b"INDEX")
        os.utime(index, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert os.stat(index).st_mtime_ns == old.st_mtime_ns

    def replace() -> None:
        copy = folder / "variables" / ".copy"
        shutil.copy2(index, copy)
        os.rename(copy, index)

    changes = [
        lambda: graph.write_bytes(b"another graph"),
        rewrite_in_place,
        replace,
        lambda: os.rename(graph, folder / "saved_model.pbtxt"),
        (folder / "assets").mkdir,
        lambda: (folder / "assets" / ".hidden").write_bytes(b""),
        lambda: os.unlink(folder / "assets" / ".hidden"),
        lambda: os.symlink("nowhere", folder / "assets" / "link"),
        lambda: os.chmod(index, 0o600),
        lambda: os.utime(graph.with_suffix(".pbtxt")),
    ]
    seen = {fingerprint(str(folder)).digest}
    for change in changes:
        let_the_clock_of_files_go_on(base)
        change()
        seen.add(fingerprint(str(folder)).digest)
    assert len(seen) == len(changes) + 1


def test_a_folder_that_was_replaced_by_one_of_the_same_content_has_another_fingerprint(base: Path) -> None:
    folder = version(base, "1")
    before = fingerprint(str(folder))
    shutil.copytree(folder, base / "copy")
    shutil.rmtree(folder)
    os.rename(base / "copy", folder)
    assert fingerprint(str(folder)).digest != before.digest


def test_the_newest_ctime_is_that_of_the_entry_that_changed_last_whatever_its_mtime(base: Path) -> None:
    folder = version(base, "1")
    deep = folder / "variables" / "variables.index"
    os.utime(deep, (1, 1))
    seen = fingerprint(str(folder))
    everything = [folder, *folder.rglob("*")]
    assert seen.newest_ctime == max(os.stat(path).st_ctime for path in everything)
    assert seen.newest_ctime > 1_000_000


def test_the_fingerprint_of_a_missing_folder_raises(base: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fingerprint(f"{base}/1")


def test_a_folder_with_more_entries_than_any_model_has_is_ignored_and_said_to_be() -> None:
    base = Path(tempfile.mkdtemp(dir="/dev/shm"))  # in memory: there are many
    try:
        version(base, "1")
        crowded = version(base, "2")
        for number in range(100_001):
            os.mknod(f"{crowded}/{number}")
        seen = scan_base_path(str(base))
    finally:
        shutil.rmtree(base)
    assert set(seen.versions) == {1}
    assert "has more than 100,000 entries; that is no model version" in seen.remark


# -- roots ------------------------------------------------------------------------------------------------------


def test_the_models_of_a_root_are_its_folders_and_links(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden", "with:colon"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.symlink("a", tmp_path / "linked")
    device, names, _ = scan_root(str(tmp_path))
    assert names == ["a", "b", "linked"]
    assert device == os.stat(tmp_path).st_dev


def test_a_link_in_a_circle_stops_no_other_model(tmp_path: Path) -> None:
    os.symlink("circle", tmp_path / "circle")
    (tmp_path / "a").mkdir()
    assert "a" in scan_root(str(tmp_path))[1]


def test_folders_of_a_root_whose_names_cannot_be_a_model_s_are_refused_with_the_reason(tmp_path: Path) -> None:
    for name in (b"a", b"b:c", b"d\xff", b".\xff", "é".encode()):
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    _, names, refused = scan_root(str(tmp_path))
    assert names == ["a", "é"]
    assert refused == {
        "b:c": f"{tmp_path}/b:c is ignored: a model's name has no colon; rename the folder",
        "d\\xff": f"{tmp_path}/d\\xff is ignored: its name is not UTF-8; rename the folder",
    }


def test_a_missing_root_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan_root(f"{tmp_path}/missing")


def test_a_loaded_version_that_cannot_be_looked_into_is_not_left_out(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version(base, "1")
    monkeypatch.setattr("appliance.source.scan._MAX_ENTRIES", 1)
    assert set(scan_base_path(str(base)).versions) == set()
    assert scan_base_path(str(base), loaded=frozenset({1})).versions == {1: None}
