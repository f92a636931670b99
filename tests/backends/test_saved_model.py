"""Completeness of SavedModel folders: real exports, and what copying, crashing and malice make of them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import reading
from backends.contract import BackendError, IncompleteError
from backends.saved_model import check_complete
from tests.support.saved_models import LITE_MODELS, MODELS, model_zoo
from tests.support.tables import PLAIN, SNAPPY, blocks_of, copies, entry, literals, table_of, varint

GRAPH = "saved_model.pb"
INDEX = "variables/variables.index"
DATA = "variables/variables.data-00000-of-00001"


@pytest.fixture(scope="module")
def zoo() -> Path:
    return model_zoo()


@pytest.fixture
def copy(zoo: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a model of the zoo to a place where the test may spoil it."""

    def copy_model(name: str) -> Path:
        return Path(shutil.copytree(zoo / name, tmp_path / name))

    return copy_model


def field(number: int, value: bytes | int) -> bytes:
    """A protobuf field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model_with_asset(folder: Path, name: bytes) -> None:
    (folder / GRAPH).write_bytes(field(1, 1) + field(2, field(6, field(2, name))))


@pytest.mark.parametrize("name", sorted(MODELS.keys() - LITE_MODELS))
def test_complete_export_passes(zoo: Path, name: str) -> None:
    check_complete(str(zoo / name))


def test_checking_imports_no_tensorflow(zoo: Path) -> None:
    script = (
        "import sys; from backends.saved_model import check_complete; check_complete(sys.argv[1]);"
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, zoo / "keras3"], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *[(name, file) for name in ("half_plus_two", "tiny_tf2", "keras2") for file in (GRAPH, INDEX, DATA)],
        ("assets_vocab", "assets/vocab.txt"),
    ],
)
def test_missing_file_is_named(copy: Callable[[str], Path], name: str, file: str) -> None:
    model = copy(name)
    (model / file).unlink()
    with pytest.raises(IncompleteError, match=f"^{file} is missing$"):
        check_complete(str(model))


@pytest.mark.parametrize("name", ["half_plus_two", "tiny_tf2", "keras2", "keras3"])
def test_variables_that_are_not_copied_yet_are_missed(copy: Callable[[str], Path], name: str) -> None:
    model = copy(name)
    shutil.rmtree(model / "variables")
    with pytest.raises(IncompleteError, match=r"variables/variables\.index is missing"):
        check_complete(str(model))
    (model / "variables").mkdir()
    with pytest.raises(IncompleteError, match=r"variables/variables\.index is missing"):
        check_complete(str(model))


def test_graph_without_variables_needs_no_variables(copy: Callable[[str], Path]) -> None:
    model = copy("tf1_no_variables")
    check_complete(str(model))
    (model / "variables").rmdir()  # left empty by the exporter, and dropped by many ways of copying
    check_complete(str(model))


@pytest.mark.parametrize(("name", "file"), [("tf1_no_variables", GRAPH), ("half_plus_two", INDEX), ("tiny_tf2", DATA)])
def test_every_truncation_is_noticed(copy: Callable[[str], Path], name: str, file: str) -> None:
    model = copy(name)
    size = (model / file).stat().st_size
    for length in reversed(range(size)):
        os.truncate(model / file, length)
        with pytest.raises(IncompleteError, match=file):
            check_complete(str(model))


@pytest.mark.parametrize("name", ["half_plus_two", "tiny_tf2", "keras2", "keras3", "dtypes"])
@pytest.mark.parametrize("file", [GRAPH, INDEX])
@pytest.mark.parametrize("written", [0.0, 0.01, 0.25, 0.5, 0.75, 0.9])
def test_file_allocated_but_not_written_to_its_end_is_noticed(
    copy: Callable[[str], Path], name: str, file: str, written: float
) -> None:
    path = copy(name) / file
    content = path.read_bytes()
    kept = content[: int(len(content) * written)]
    path.write_bytes(kept.ljust(len(content), b"\0"))
    with pytest.raises(IncompleteError, match=file):
        check_complete(str(path.parents[file.count("/")]))


def test_short_shard_is_reported_with_both_sizes(copy: Callable[[str], Path]) -> None:
    model = copy("keras2")
    size = (model / DATA).stat().st_size
    os.truncate(model / DATA, 1024)
    with pytest.raises(IncompleteError, match=f"^{DATA} has 1,024 of {size:,} bytes$"):
        check_complete(str(model))


def test_flipped_bit_in_the_index_is_noticed(copy: Callable[[str], Path]) -> None:
    model = copy("half_plus_two")
    content = (model / INDEX).read_bytes()
    entries_bytes = content[-48]  # where the meta index block begins, which nothing reads
    for at in range(entries_bytes):
        (model / INDEX).write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        with pytest.raises(IncompleteError, match=INDEX):
            check_complete(str(model))


@pytest.mark.parametrize(
    "name",
    [b"../../etc/passwd", b"/etc/passwd", b"a/../../b", b"", b"a\0b", b"\xff", b"a\nb", b".", b"a//b", b"n" * 10_000],
)
def test_asset_of_an_odd_name_is_left_to_tensorflow(tmp_path: Path, name: bytes) -> None:
    model_with_asset(tmp_path, name)
    check_complete(str(tmp_path))


def test_asset_in_a_collection_of_early_tensorflow_is_missed(tmp_path: Path) -> None:
    packed = field(1, b"type.googleapis.com/tensorflow.AssetFileDef") + field(2, field(2, b"foo.txt"))
    entry = field(1, b"saved_model_assets") + field(2, field(5, field(1, packed)))
    (tmp_path / GRAPH).write_bytes(field(2, field(4, entry)))
    with pytest.raises(IncompleteError, match=r"assets/foo\.txt is missing"):
        check_complete(str(tmp_path))


def test_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / GRAPH)
    with pytest.raises(BackendError, match="not a regular file"):
        check_complete(str(tmp_path))


def test_folder_without_a_model_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match=r"saved_model\.pb is missing"):
        check_complete(str(tmp_path))
    with pytest.raises(IncompleteError, match="is not a folder"):
        check_complete(str(tmp_path / "absent"))


def test_text_form_passes_once_it_is_written(tmp_path: Path) -> None:
    text = tmp_path / "saved_model.pbtxt"
    for unfinished in (b"", bytes(100)):
        text.write_bytes(unfinished)
        with pytest.raises(IncompleteError, match=r"saved_model\.pbtxt"):
            check_complete(str(tmp_path))
    text.write_text("saved_model_schema_version: 1\nmeta_graphs {\n}\n")
    check_complete(str(tmp_path))


def test_split_form_is_left_to_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "saved_model.cpb").write_bytes(b"riegeli")
    check_complete(str(tmp_path))


def test_graph_of_more_fields_than_are_read_is_left_to_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_FIELDS", 1000)
    (tmp_path / GRAPH).write_bytes(field(2, field(2, field(1, b"") * 2000)))
    check_complete(str(tmp_path))


def test_a_million_nodes_pass_in_bounded_time(tmp_path: Path) -> None:
    (tmp_path / GRAPH).write_bytes(field(2, field(2, field(1, b"") * 1_000_000)))
    check_complete(str(tmp_path))


# --- The index: what is written in another way than exporters of today do


@pytest.mark.parametrize("encode", [literals, copies])
def test_compressed_index_is_read(copy: Callable[[str], Path], encode: Callable[[bytes], bytes]) -> None:
    model = copy("keras2")
    blocks = [(encode(block), SNAPPY) for block in blocks_of((model / INDEX).read_bytes())]
    (model / INDEX).write_bytes(table_of(*blocks))
    check_complete(str(model))
    size = (model / DATA).stat().st_size
    os.truncate(model / DATA, size - 1)
    with pytest.raises(IncompleteError, match=f"^{DATA} has {size - 1:,} of {size:,} bytes$"):
        check_complete(str(model))


def test_every_truncation_of_a_compressed_index_is_noticed(copy: Callable[[str], Path]) -> None:
    model = copy("tiny_tf2")
    blocks = [(copies(block), SNAPPY) for block in blocks_of((model / INDEX).read_bytes())]
    written = table_of(*blocks)
    for length in range(len(written)):
        for unfinished in (written[:length], written[:length].ljust(len(written), b"\0")):
            (model / INDEX).write_bytes(unfinished)
            with pytest.raises(IncompleteError, match=INDEX):
                check_complete(str(model))


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        (b"whatever this is", 2),  # an unknown compression
        (b"", SNAPPY),
        (b"\xff\xff\xff\xff\x0f" + b"\0" * 9, SNAPPY),  # 4 GiB
        (b"\x05\xf0", SNAPPY),  # a literal without its bytes
        (b"\x05\x01\x01", SNAPPY),  # a copy of what is not there
        (b"\x05\x00a", SNAPPY),  # less than it says
        (literals(b"\0"), SNAPPY),  # no block inside
        (literals(b"\xff" * 8), SNAPPY),
        (b"\xff" * 8, PLAIN),
        (entry(b"k", field(1, 1)) + struct.pack("<II", 0, 1), PLAIN),  # no header
        (entry(b"", field(1, 1)) + entry(b"k", field(3, 9)) + struct.pack("<II", 0, 1), PLAIN),  # no such shard
        (entry(b"", b"\xff\xff") + struct.pack("<II", 0, 1), PLAIN),
    ],
)
def test_index_that_was_written_so_is_left_to_tensorflow(copy: Callable[[str], Path], block: bytes, kind: int) -> None:
    model = copy("tiny_tf2")
    (model / INDEX).write_bytes(table_of((block, kind)))
    check_complete(str(model))


def test_block_listed_twice_in_the_index_is_not_read_twice(copy: Callable[[str], Path]) -> None:
    model = copy("half_plus_two")
    (block,) = blocks_of((model / INDEX).read_bytes())
    listing = entry(b"k", varint(0) + varint(len(block))) * 2 + struct.pack("<II", 0, 1)
    (model / INDEX).write_bytes(table_of((block, PLAIN), listing=listing))
    os.truncate(model / DATA, 1)
    check_complete(str(model))


def test_index_over_the_bound_is_left_to_tensorflow(copy: Callable[[str], Path]) -> None:
    model = copy("half_plus_two")
    content = (model / INDEX).read_bytes()
    with (model / INDEX).open("wb") as file:
        file.seek(65 << 20)
        file.write(content[-48:])
    check_complete(str(model))


@pytest.mark.parametrize("name", ["variables", "variables-00000-of-00001"])
def test_variables_of_the_first_generation_have_no_index(copy: Callable[[str], Path], name: str) -> None:
    model = copy("half_plus_two")
    shutil.rmtree(model / "variables")
    (model / "variables").mkdir()
    (model / "variables" / name).write_bytes(b"a table of another kind")
    check_complete(str(model))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300), prefix=st.sampled_from([b"", b"\x08\x01\x12", b"\x12\x7f\x12\x40"]))
def test_random_graph_never_raises_anything_else(content: bytes, prefix: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, GRAPH).write_bytes(prefix + content)
        with suppress(IncompleteError, BackendError):
            check_complete(folder)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=300), footer=st.binary(max_size=40))
def test_random_index_never_raises_anything_else(content: bytes, footer: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "variables"))
        Path(folder, GRAPH).write_bytes(field(2, field(3, b"")))
        Path(folder, INDEX).write_bytes(content + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57))
        with suppress(IncompleteError, BackendError):
            check_complete(folder)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_to_a_real_export_never_raises_anything_else(data: st.DataObject) -> None:
    zoo = model_zoo()
    with tempfile.TemporaryDirectory() as folder:
        model = shutil.copytree(zoo / "half_plus_two", os.path.join(folder, "m"))
        path = Path(model, data.draw(st.sampled_from([GRAPH, INDEX])))
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        path.write_bytes(content)
        with suppress(IncompleteError, BackendError):
            check_complete(model)
