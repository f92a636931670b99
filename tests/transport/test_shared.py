"""Shared-memory segments, with real files in /dev/shm."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from appliance.transport.shared import THRESHOLD_BYTES, Segment, SegmentPool, read

MIB = 1024 * 1024


@pytest.fixture
def pool() -> Iterator[SegmentPool]:
    pool = SegmentPool(8 * MIB)
    yield pool
    pool.close()


def acquired(pool: SegmentPool, size: int) -> Segment:
    segment = pool.acquire(size)
    assert segment is not None
    return segment


def test_what_is_written_is_read(pool: SegmentPool) -> None:
    segment = acquired(pool, 2 * MIB)
    segment.write([(0, b"head"), (64, bytearray(b"x" * MIB)), (2 * MIB - 4, memoryview(b"tail"))])
    data = read(segment.descriptor, 2 * MIB)
    assert data[:68] == b"head" + bytes(60) + b"xxxx"
    assert data[-5:] == b"\0tail"


def test_a_segment_has_no_name_and_is_private(pool: SegmentPool) -> None:
    segment = acquired(pool, MIB)
    status = os.fstat(segment.descriptor)
    assert status.st_nlink == 0
    assert status.st_mode & 0o077 == 0
    assert not os.get_inheritable(segment.descriptor)


def test_the_space_of_a_segment_is_allocated_before_it_is_used(pool: SegmentPool) -> None:
    segment = acquired(pool, 3 * MIB)
    assert segment.size == 4 * MIB
    assert os.fstat(segment.descriptor).st_blocks * 512 >= segment.size


@pytest.mark.parametrize("size", [0, 1, THRESHOLD_BYTES - 1, THRESHOLD_BYTES, THRESHOLD_BYTES + 1, 8 * MIB])
def test_a_segment_is_at_least_as_large_as_was_asked(pool: SegmentPool, size: int) -> None:
    assert acquired(pool, size).size >= max(size, THRESHOLD_BYTES)


def test_a_segment_that_was_read_is_used_again(pool: SegmentPool) -> None:
    first = acquired(pool, 2 * MIB)
    assert acquired(pool, 2 * MIB) is not first
    pool.release(first.number)
    assert acquired(pool, MIB + 1) is first


def test_the_smallest_segment_that_fits_is_used(pool: SegmentPool) -> None:
    large, small = acquired(pool, 4 * MIB), acquired(pool, MIB)
    pool.release(large.number)
    pool.release(small.number)
    assert acquired(pool, MIB) is small
    assert acquired(pool, MIB) is large


def test_the_bound_on_all_segments_is_respected(pool: SegmentPool) -> None:
    segments = [acquired(pool, 4 * MIB), acquired(pool, 4 * MIB)]
    assert pool.acquire(1) is None
    pool.release(segments[0].number)
    assert acquired(pool, 4 * MIB) is segments[0]


def test_a_payload_beyond_the_bound_gets_no_segment(pool: SegmentPool) -> None:
    assert pool.acquire(8 * MIB + 1) is None
    assert SegmentPool(0).acquire(1) is None


def test_free_segments_give_way_to_a_larger_one(pool: SegmentPool) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for segment in [acquired(pool, MIB) for _ in range(8)]:
        pool.release(segment.number)
    assert len(os.listdir("/proc/self/fd")) == descriptors + 8
    assert acquired(pool, 8 * MIB).size == 8 * MIB
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1


def test_only_announced_segments_that_were_closed_are_to_be_forgotten(pool: SegmentPool) -> None:
    announced, unknown = acquired(pool, MIB), acquired(pool, MIB)
    announced.announced = True
    pool.release(announced.number)
    pool.release(unknown.number)
    acquired(pool, 8 * MIB)
    assert pool.forgotten == [announced.number]


def test_the_number_of_a_closed_segment_is_not_used_again(pool: SegmentPool) -> None:
    first = acquired(pool, MIB)
    pool.release(first.number)
    second = acquired(pool, 8 * MIB)
    pool.close()
    third = acquired(pool, MIB)
    assert len({first.number, second.number, third.number}) == 3


def test_a_release_of_an_unknown_number_or_a_second_release_changes_nothing(pool: SegmentPool) -> None:
    segment = acquired(pool, MIB)
    pool.release(99)
    pool.release(segment.number)
    pool.release(segment.number)
    assert acquired(pool, MIB) is segment
    assert acquired(pool, MIB) is not segment


def test_closing_a_pool_closes_used_and_free_segments_and_gives_their_room_back(pool: SegmentPool) -> None:
    used, free = acquired(pool, 4 * MIB), acquired(pool, 4 * MIB)
    pool.release(free.number)
    pool.close()
    for segment in (used, free):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(segment.descriptor)
    pool.close()
    assert acquired(pool, 8 * MIB).size == 8 * MIB


def test_without_room_in_shared_memory_there_is_no_segment_and_nothing_leaks() -> None:
    descriptors = os.listdir("/proc/self/fd")
    pool = SegmentPool(1 << 62)
    assert pool.acquire(1 << 60) is None  # more than any tmpfs has
    assert os.listdir("/proc/self/fd") == descriptors
    assert acquired(pool, MIB).size == MIB
    pool.close()


def test_without_descriptors_there_is_no_segment() -> None:
    program = (
        "import os, resource\n"
        "from appliance.transport.shared import SegmentPool\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1,) * 2)\n"
        "pool = SegmentPool(1 << 30)\n"
        "assert pool.acquire(1) is None\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_reading_a_segment_that_its_writer_has_shrunk_raises(pool: SegmentPool) -> None:
    segment = acquired(pool, 2 * MIB)
    os.ftruncate(segment.descriptor, MIB)
    with pytest.raises(OSError, match="ends after 1,048,576 of 2,097,152 bytes"):
        read(segment.descriptor, 2 * MIB)
    assert len(read(segment.descriptor, MIB)) == MIB


def test_a_process_that_made_its_files_beforehand_uses_them_again_and_makes_no_others() -> None:
    program = (
        "import os\n"
        "from appliance.transport import shared\n"
        "shared.make_files(2)\n"
        "held = sorted(os.listdir('/proc/self/fd'))\n"
        "pool = shared.SegmentPool(1 << 30)\n"
        "first, second = pool.acquire(1 << 20), pool.acquire(1 << 20)\n"
        "assert pool.acquire(1 << 20) is None\n"
        "assert sorted(os.listdir('/proc/self/fd')) == held\n"
        "second.write([(0, b'of one front')])\n"
        "pool.release(second.number)\n"
        "pool.close()\n"
        "another = shared.SegmentPool(1 << 30)\n"
        "found = another.acquire(1 << 20)\n"
        "assert found.descriptor == second.descriptor\n"
        "assert shared.read(found.descriptor, 12) == bytes(12), 'nothing is left of what another front was sent'\n"
        "assert another.acquire(1 << 20) is None, 'what the peer may read yet is not used again'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
