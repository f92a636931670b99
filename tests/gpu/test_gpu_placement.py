"""Which GPU a model goes to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import ConfigError
from appliance.core.gpu_devices import gpu_environment, parse_gpu_devices
from appliance.gpu.placement import Claim, GpuMemory, Refused, place

GIB = 1 << 30
ONE = GpuMemory(0, "GPU-aaaa-1", 10 * GIB, 16 * GIB)
TWO = GpuMemory(1, "GPU-bbbb-2", 12 * GIB, 16 * GIB)


def test_the_gpu_with_the_most_room_is_taken() -> None:
    assert place([ONE, TWO], [], "", 4 * GIB) == TWO
    assert place([ONE, TWO], [], "", 0) == TWO


def test_what_is_promised_counts_as_taken_and_what_of_it_is_allocated_does_not_count_twice() -> None:
    assert place([ONE, TWO], [Claim(TWO.uuid, 4 * GIB)], "", GIB) == ONE
    assert place([ONE, TWO], [Claim(TWO.uuid, 4 * GIB, 3 * GIB)], "", GIB) == TWO
    assert place([ONE, TWO], [Claim(TWO.uuid, 4 * GIB, 9 * GIB)], "", GIB) == TWO


@pytest.mark.parametrize("devices", ["0", "GPU-aaaa-1", "GPU-aaaa", "0, 7"])
def test_only_the_allowed_gpus_are_used(devices: str) -> None:
    assert place([ONE, TWO], [], devices, GIB) == ONE


def test_a_model_that_has_no_room_is_refused_with_the_figures() -> None:
    refused = place([ONE, TWO], [Claim(ONE.uuid, 9 * GIB)], "", 13 * GIB)
    assert isinstance(refused, Refused)
    assert "13,958,643,712 bytes" in refused.reason
    assert "GPU 0: 1,073,741,824 of 17,179,869,184 bytes, GPU 1: 12,884,901,888 of" in refused.reason
    refused = place([ONE], [Claim(ONE.uuid, 10 * GIB)], "", 0)
    assert isinstance(refused, Refused)
    assert "GPU 0: 0 of" in refused.reason


def test_without_a_gpu_that_may_be_used_it_is_refused() -> None:
    assert place([], [], "", 0) == Refused("there is no GPU")
    refused = place([ONE], [], "3", 0)
    assert isinstance(refused, Refused)
    assert refused.reason == "gpu_devices is '3', but the GPUs are 0 (GPU-aaaa-1)"


@given(
    free=st.lists(st.integers(0, 16), min_size=1, max_size=4),
    promised=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), max_size=6),
    needed=st.integers(0, 20),
)
def test_no_gpu_is_ever_promised_more_than_it_has(
    free: list[int], promised: list[tuple[int, int]], needed: int
) -> None:
    gpus = [GpuMemory(index, f"GPU-{index}", room, 16) for index, room in enumerate(free)]
    claims = [Claim(f"GPU-{index}", size) for index, size in promised]
    left = {gpu.uuid: gpu.free_bytes - sum(c.promised_bytes for c in claims if c.uuid == gpu.uuid) for gpu in gpus}
    found = place(gpus, claims, "", needed)
    if isinstance(found, Refused):
        assert all(room < max(needed, 1) for room in left.values())
    else:
        assert left[found.uuid] == max(left.values()) >= needed


def test_the_environment_shows_a_worker_its_gpus() -> None:
    assert gpu_environment("cpu", "0") == {"CUDA_VISIBLE_DEVICES": "-1"}
    assert gpu_environment("auto", "") == {}
    assert gpu_environment("auto", "1, 0,1") == {"CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize("text", ["a", "0,,1", "-1", "0;1", "GPU-", "0 1", "GPU-a b"])
def test_what_names_no_gpu_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="gpu_devices"):
        parse_gpu_devices(text)
