"""The one comparison of answers: what each arithmetic allows, and from where its tolerance counts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from backends.agreement import Tolerance, agree, root_mean_square, shares, tolerance_of

ROWS = np.random.default_rng(0).standard_normal((5, 4))


@pytest.mark.parametrize(
    ("dtype", "within", "beyond"),
    [("float32", 2e-5, 6e-5), ("float64", 1e-12, 4e-12), ("complex64", 2e-5, 6e-5), ("complex128", 1e-12, 4e-12)],
)
def test_merged_requests_may_differ_by_the_order_of_sums_alone(dtype: str, within: float, beyond: float) -> None:
    answer = ROWS.astype(dtype)
    assert agree(answer, (answer * (1 + within)).astype(dtype), "merged")
    assert not agree(answer, (answer * (1 + beyond)).astype(dtype), "merged")
    assert agree(answer, (answer * (1 + beyond)).astype(dtype), "int8")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_answers_of_16_bits_may_differ_by_a_few_units_in_the_last_place(dtype: type) -> None:
    answer = np.array([1.0, -2.0, 3.0]).astype(dtype)
    eps = float(ml_dtypes.finfo(dtype).eps)
    for arithmetic in ("merged", "float32"):
        assert agree(answer, (answer.astype(np.float64) * (1 + 2 * eps)).astype(dtype), arithmetic)
        assert not agree(answer, (answer.astype(np.float64) * (1 + 8 * eps)).astype(dtype), arithmetic)


def test_zeros_must_stay_zeros_among_merged_requests() -> None:
    zeros = np.zeros(3, np.float32)
    assert agree(zeros, zeros, "merged")
    assert not agree(zeros, zeros + np.float32(1e-30), "merged")
    assert agree(zeros, zeros + np.float32(1e-8), "float32")


@pytest.mark.parametrize("dtype", ["int64", "bool", object])
def test_what_is_no_float_must_be_equal(dtype: str) -> None:
    answer = np.array([0, 1, 1]).astype(dtype)
    assert agree(answer, answer.copy(), "int8")
    assert not agree(answer, answer[::-1], "int8")


def test_another_shape_or_element_type_does_not_agree() -> None:
    assert not agree(ROWS, ROWS[:4], "merged")
    assert not agree(ROWS, ROWS.astype(np.float32), "int8")
    assert np.isinf(shares(ROWS, ROWS[:4], Tolerance(1.0, 1.0))).all()


def test_a_large_row_does_not_hide_what_is_wrong_with_others() -> None:
    answer = np.array([[1e6, 1e6], [1.0, 0.0], [0.0, 1.0]])
    found = answer + np.array([[0, 0], [0, 0.5], [0, 0]])
    assert shares(answer, found, Tolerance(1e-3, 0.0)).max() < 1
    assert shares(answer, found, Tolerance(1e-3, 0.0), by_rows=True).max() > 1


def test_a_value_counts_as_no_smaller_than_is_said() -> None:
    one, other = np.array([1e-3]), np.array([2e-3])
    assert shares(one, other, Tolerance(1e-2, 0.0))[0] > 1
    assert shares(one, other, Tolerance(1e-2, 0.0), 1.0)[0] < 1


def test_an_arithmetic_that_is_not_known_is_an_error() -> None:
    with pytest.raises(KeyError):
        tolerance_of("float8", "float32")


def test_the_root_mean_square_of_large_numbers_does_not_overflow() -> None:
    assert root_mean_square(np.array([3e300, -3e300])) == pytest.approx(3e300)
    assert root_mean_square(np.array([])) == 0
