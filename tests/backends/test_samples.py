"""Samples of a form's answers, from its worker to the process that verifies them."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from backends.samples import Sample, new_file, read_samples, write_samples


def write(path: Path, samples: Sequence[Sample]) -> None:
    file = new_file(str(path))
    write_samples(file, samples)
    os.close(file)


def same(one: Sample, other: Sample) -> bool:
    if (one.number, one.requests, one.signature) != (other.number, other.requests, other.signature):
        return False
    for mine, theirs in ((one.inputs, other.inputs), (one.outputs, other.outputs)):
        if mine.keys() != theirs.keys():
            return False
        for name, array in mine.items():
            found = theirs[name]
            if (found.dtype, found.shape, found.tolist()) != (array.dtype, array.shape, array.tolist()):
                return False
    return True


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    samples = [
        Sample(7, 1, "s", {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"x": np.array([1], np.int64)}),
        Sample(
            12,
            5,
            "t",
            {"text": np.array([[b"", b"two words"]], object), "half": np.ones((0, 4), np.float16)},
            {"y": np.array(3, ml_dtypes.bfloat16), "is": np.array([True, False])},
        ),
        Sample(13, 1, "nothing", {}, {}),
    ]
    path = tmp_path / "samples"
    write(path, samples)
    found = list(read_samples(str(path)))
    assert all(map(same, found, samples))
    assert len(found) == len(samples)


def test_nobody_else_can_read_what_clients_have_sent(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    write(path, [])
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):  # nor has somebody else made the file before
        write(path, [])


def test_a_damaged_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    write(path, [Sample(1, 1, "s", {"x": np.ones(100)}, {})])
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="has no samples: the peer ended 8 bytes before the end of a frame"):
        list(read_samples(str(path)))


def test_a_file_that_states_more_than_it_has_takes_no_memory_for_it(tmp_path: Path) -> None:
    file = tmp_path / "samples"
    file.write_bytes((2).to_bytes(4, "little") + (2 << 30).to_bytes(8, "little") + b"{}" + b"x" * 100)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="before the end of a frame"):
            list(read_samples(str(file)))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
