"""Inputs that are made smaller while something stays true of them, and how they are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from backends.contract import Signature, TensorSpec
from converters.shrinking import Budget, said, shrunk

Arrays = Mapping[str, np.ndarray]

ROWS = Signature({"x": TensorSpec("float32", (-1, 4)), "ids": TensorSpec("int64", (-1,))}, {})
IMAGES = Signature({"x": TensorSpec("float32", (-1, -1, -1, 3))}, {})


def made(seed: int = 0, rows: int = 33) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(size=(rows, 4)).astype(np.float32) * 100,
        "ids": random.integers(10**6, 10**9, size=rows),
    }


def smallest(
    inputs: Arrays, differs: Callable[[Arrays], bool], signature: Signature = ROWS, tries: int = 1000
) -> Arrays:
    assert differs(inputs)
    found = shrunk(signature, inputs, differs, Budget(tries, 60.0), 2)
    assert differs(found)
    return found


def test_one_row_and_one_element_are_left_of_a_difference_that_needs_no_more() -> None:
    found = smallest(made(), lambda inputs: bool((inputs["x"] > 100).any()))
    assert found["x"].shape == (1, 4)
    assert sorted(found["x"].reshape(-1).tolist())[:3] == [0, 0, 0]
    assert 100 < found["x"].max() <= 201
    assert found["x"].max() == np.trunc(found["x"].max())
    assert found["ids"].tolist() == [0]


def test_the_least_whole_number_that_differs_is_found() -> None:
    found = smallest(made(), lambda inputs: bool((inputs["ids"] >= 123_457).any()))
    assert found["ids"].tolist() == [123_457]
    assert not found["x"].any()
    found = smallest({**made(), "ids": -made()["ids"]}, lambda inputs: bool((inputs["ids"] <= -77).any()))
    assert found["ids"].tolist() == [-77]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_the_ends_of_each_type_of_whole_numbers_are_made_smaller_within_it(dtype: str) -> None:
    signature = Signature({"ids": TensorSpec(dtype, (-1,))}, {})
    limits = np.iinfo(dtype)
    for end in {limits.min, limits.max} - {0}:  # rounded to few digits, both lie beyond the type's ends
        inputs = {"ids": np.array([3, end], dtype)}
        found = smallest(inputs, lambda each, end=end: bool((each["ids"] == end).any()), signature)
        assert found["ids"].tolist() == [end]


def test_two_rows_stay_where_both_matter() -> None:
    inputs = made()
    inputs["ids"][[3, 29]] = 7
    found = smallest(inputs, lambda inputs: np.count_nonzero(inputs["ids"] == 7) == 2)
    assert found["ids"].tolist() == [7, 7]


def test_a_number_of_rows_that_matters_stays() -> None:
    assert len(smallest(made(), lambda inputs: len(inputs["x"]) >= 9)["x"]) == 9


def test_open_dimensions_are_cut_but_not_below_what_is_usual() -> None:
    image = np.random.default_rng(0).random((3, 32, 40, 3)).astype(np.float32)
    image[1, 30, 2, 1] = 5.0
    found = smallest({"x": image}, lambda inputs: bool((inputs["x"] == 5).any()), IMAGES)
    assert found["x"].shape == (1, 2, 3, 3)
    assert np.count_nonzero(found["x"]) == 1


def test_nothing_is_tried_beyond_the_budget() -> None:
    tried = []

    def differs(inputs: Arrays) -> bool:
        tried.append(inputs)
        return True

    shrunk(ROWS, made(), differs, Budget(7, 60.0))
    assert len(tried) == 7
    times = iter(range(100))
    shrunk(ROWS, made(), differs, Budget(1000, 3.0, lambda: float(next(times))))
    assert len(tried) == 9


def test_nan_alone_is_left_of_what_needs_nan() -> None:
    inputs = made()
    inputs["x"][5, 2] = np.nan
    found = smallest(inputs, lambda inputs: bool(np.isnan(inputs["x"]).any()))
    assert said({"x": found["x"]}) == "x = [[0.0, 0.0, nan, 0.0]]"


def test_inputs_are_told_whole_or_by_what_is_odd_in_them() -> None:
    image = np.zeros((1, 8, 8, 3), np.float32)
    assert said({"x": image}) == "x = float32 of shape [1, 8, 8, 3], all 0.0"
    image[0, 1, 2, 0] = 2.5
    assert said({"x": image}) == "x = float32 of shape [1, 8, 8, 3], all 0.0 but for 2.5 at [0, 1, 2, 0]"
    image += np.arange(3, dtype=np.float32)
    assert said({"x": image}) == "x = float32 of shape [1, 8, 8, 3], from 0.0 to 2.5"
    image[0, 0, 0, 0] = np.nan
    assert said({"x": image}) == "x = float32 of shape [1, 8, 8, 3], from 0.0 to 2.5, some NaN"
    assert said({"n": np.array(3), "b": np.array([True])}) == "n = 3, b = [True]"
