"""The memory that a JSON text takes once it is parsed is told before it is parsed, and never too low."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import orjson
import pytest

from appliance.protocols.json_cost import UNBOUNDED, TooCostlyError, check_index, check_objects
from appliance.protocols.json_tensors import parse_predict
from backends.contract import Signature, TensorSpec

FILLINGS = [
    "[]",
    "{}",
    '{"a":1}',
    "[[]]",
    '"a"',
    '"1"',
    "1.5",
    "12345",
    "1,[],{}",
    '"ab\u20ac"',
    '[1.5,"x",null]',
    "[0,1]",
]


def text_of(filling: str, count: int = 100_000) -> bytes:
    return f'{{"instances":[{",".join([filling] * count)}]}}'.encode()


@pytest.mark.parametrize("filling", FILLINGS)
def test_objects_take_no_more_than_was_told(filling: str) -> None:
    text = text_of(filling)
    gc.collect()
    tracemalloc.start()
    try:
        held = orjson.loads(text)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held
    with pytest.raises(TooCostlyError) as caught:
        check_objects(text, taken - 1)
    assert caught.value.http_status == 413
    check_objects(text, 10 * taken)  # and not so high that what is sent every day would be refused


def test_numbers_of_an_image_batch_are_cheap() -> None:
    row = ",".join(f"{value:.9f}" for value in np.random.default_rng(0).random(1000))
    text = f'{{"instances":[{",".join([f"[{row}]"] * 2700)}]}}'.encode()
    assert len(text) > 30_000_000
    check_index(text, 512 << 20)
    check_objects(text, 512 << 20)


def test_numbers_that_simdjson_reads_have_their_room_checked() -> None:
    text = text_of("0", 1_000_000)
    signature = Signature({"x": TensorSpec("float32", (-1,))}, {})
    assert parse_predict(text, 100 << 20).inputs(signature)["x"].shape == (1_000_000,)
    for room in (1 << 20, 20 << 20):
        with pytest.raises(TooCostlyError, match=r"takes up to .* bytes of memory; .* are allowed.*max_inflight_bytes"):
            parse_predict(text, room)


def test_what_turns_out_to_be_no_tensor_is_checked_again_before_it_becomes_objects() -> None:
    text = text_of("[]", 1_000_000)
    request = parse_predict(text, 120_000_000)
    with pytest.raises(TooCostlyError):
        request.inputs(Signature({"x": TensorSpec("float32", (-1,))}, {}))
    assert request.row_format
    parse_predict(text, UNBOUNDED)
