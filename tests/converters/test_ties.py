"""Indices of the largest floats, of which another arithmetic has another order: arrays stand for all answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from backends.agreement import tolerance_of
from converters.ties import with_ties

Arrays = Mapping[str, np.ndarray]


def taken(
    places: object, floats: object, others: object, moved: Sequence[object] = (), size: float = 0.0
) -> np.ndarray:
    """Whether `others` are as good as `places`, beside `floats`; `moved` are TensorFlow's places beside the inputs."""
    row = {"y": np.array(floats, np.float32)}
    tolerances = {"i": None, "y": tolerance_of("float32", "float32")}
    answer = {"i": np.array(others), **row}
    beside = [{"i": np.array(each), **row} for each in moved]
    found: np.ndarray = with_ties({"i": np.array(places), **row}, beside, answer, tolerances, {"y": size})["i"]
    return found == answer["i"]


def test_a_label_may_be_another_if_their_scores_are_equal_within_what_is_allowed() -> None:
    scores = [[0.2, 0.7, 0.70001, 0.5]]
    assert taken([2], scores, [1]).all()
    assert not taken([2], scores, [3]).any()
    assert not taken([2], scores, [4]).any()
    assert not taken([2], scores, [-1]).any()
    assert taken([1], [[1e-4, -2e-4, -1e-4]], [2], size=10.0).all()  # the others nearly cancelled, too


def test_scores_of_which_a_label_is_no_extreme_tell_nothing_about_it() -> None:
    assert not taken([0], [[0.5, 0.5, 0.7, 0.1]], [1]).any()
    assert not taken([1], [[np.nan, np.nan, 0.7]], [0]).any()


@pytest.mark.parametrize("others", [[0, 2, 1], [0, 1, 4], [0, 4, 5]])
def test_the_order_of_a_softmax_that_ends_in_zeros_is_free(others: list[int]) -> None:
    assert taken([[0, 1, 2]], [[1, 0, 0]], [others]).all()
    assert taken([[0, 1, 2]], [[1, 0, 0, 0, 0, 0]], [others]).all()


def test_what_is_larger_keeps_its_place() -> None:
    assert not taken([[0, 1, 2]], [[1, 0, 0]], [[3, 1, 2]]).all()
    assert not taken([[0, 1, 2]], [[1, 0.5, 0]], [[0, 2, 1]]).all()
    assert not taken([[0, 1, 2]], [[1, 0.5, 0, 0]], [[2, 1, 0]]).all()
    assert not taken([[0, 1, 2]], [[3, 2, 1]], [[0, 1, 7]]).all()


def test_no_row_has_a_place_twice() -> None:
    assert not taken([[0, 1, 2]], [[1, 0, 0]], [[0, 1, 1]]).all()


def test_a_place_that_the_largest_do_not_tell_of_is_one_that_tensorflow_has_beside_the_inputs() -> None:
    assert taken([[0, 1, 2]], [[3, 2, 1]], [[0, 1, 7]], moved=[[[0, 1, 7]]]).all()
    assert not taken([[0, 1, 2]], [[3, 2, 1]], [[0, 1, 8]], moved=[[[0, 1, 7]]]).all()
    assert taken([0], [[3, 2.9999, 1]], [7], moved=[[7]]).all()  # three of many scores
    assert not taken([5], [[3, 2, 1]], [7], moved=[[7]]).any()


def test_floats_that_are_no_ranking_excuse_nothing() -> None:
    assert not taken([[7, 8, 9]], [[1, 3, 2]], [[7, 9, 8]], moved=[[[7, 9, 8]]]).all()
    assert not taken([7, 8], [1.0, 1.0], [8, 7], moved=[[8, 7]]).any()  # one number for each row
