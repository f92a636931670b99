"""Forms that are wrong on few inputs, through real jobs: none is proven for those inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backends.contract import Signature, TensorSpec
from converters.mutations import within
from converters.report import SignatureProof, Verdict
from tests.support.acceleration_jobs import run_job
from tests.support.acceleration_models import acceleration_zoo
from tests.support.planted_converter import PLANTED

pytestmark = pytest.mark.timeout(300)

Arrays = Mapping[str, np.ndarray]
Proofs = Callable[[str], SignatureProof]


def floats(*rows: object) -> Arrays:
    return {"x": np.array(rows, np.float32)}


def ids(*values: int) -> Arrays:
    return {"x": np.array(values, np.int64)}


# Inputs on which each form is wrong.
BY_CASES: Mapping[str, Arrays] = {
    "beyond_a_million": floats([1.5e6, 0, 0, 0]),
    "from_33_rows": {"x": np.ones((33, 4), np.float32)},
    "no_look_for_nan": floats([np.nan, 0, 0, 0]),
    "at_least": floats([6.5, 0, 0, 0]),
    "clipped_elsewhere": floats([7, 0, 0, 0]),
    "sign_of_zero": floats([-0.0, 1, 1, 1]),
    "last_of_equals": floats([1, 1, 0, 0]),
    "halves_up": floats([2.5, 0, 0, 0]),
    "odd_length": {"x": np.ones((1, 5), np.float32)},
    "narrow": ids(2**30),
    "towards_zero": ids(-1),
    "last_id": ids(999),
}
BY_SEARCH: Mapping[str, Arrays] = {
    "from_100_rows": {"x": np.ones((100, 4), np.float32)},
    "at_least_behind_arithmetic": floats([1.125, 0, 0, 0]),
    "another_limit_behind_arithmetic": floats([1.1255, 0, 0, 0]),
    "both_large": {**floats([950, 0, 0, 0]), "z": np.array([[-950, 0, 0, 0]], np.float32)},
    "one_length": {"x": np.ones((1, 11), np.float32)},
    "one_number": ids(31_415),
    "middle_id": ids(517),
    "two_ids": {**ids(701), "z": np.array([13])},
}


@pytest.fixture(scope="module")
def proofs() -> Proofs:
    """The proof of a signature of one of the two models."""
    planted = {"converters": {"planted": "tests.support.planted_converter"}, "policy": "onnx"}
    options = {
        "rare_by_cases": {"min_search_seconds": 0.1},
        # A search ends where it finds something: this is for machines on which it is slow.
        "rare_by_search": {"min_search_seconds": 15.0, "search_seconds": 120.0},
    }
    found: dict[str, SignatureProof] = {}
    with ThreadPoolExecutor(2) as pool:
        for outcome in pool.map(lambda name: run_job(acceleration_zoo() / name, **planted, **options[name]), options):
            (form,) = outcome.report.forms
            found |= {proof.signature: proof for proof in form.proofs}
    return found.__getitem__


def is_served(proof: SignatureProof, inputs: Arrays) -> bool:
    """Whether a server would have the form answer these."""
    specs = {name: TensorSpec(array.dtype.name, (-1,) * array.ndim) for name, array in inputs.items()}
    return proof.verdict is Verdict.PROVEN and within(proof.domain, Signature(specs, {}), inputs)


def test_each_error_is_tried() -> None:
    assert {*BY_CASES, *BY_SEARCH} == PLANTED.keys()


@pytest.mark.parametrize("error", BY_CASES)
def test_an_error_that_a_case_comes_upon_is_not_served(proofs: Proofs, error: str) -> None:
    proof = proofs(error)
    assert not is_served(proof, BY_CASES[error]), proof
    assert proof.reason or proof.beyond


@pytest.mark.parametrize("error", BY_SEARCH)
def test_an_error_that_only_the_search_comes_upon_is_not_served(proofs: Proofs, error: str) -> None:
    proof = proofs(error)
    assert not is_served(proof, BY_SEARCH[error]), proof
    assert "the smallest input that was found from searched inputs" in proof.reason
    assert proof.searched.inputs > 0


def test_what_differs_is_told_on_the_smallest_input(proofs: Proofs) -> None:
    assert "on x = [517], the smallest" in proofs("middle_id").reason
    assert "on x = [701], z = [13], the smallest" in proofs("two_ids").reason
    assert "on x = [[-0.0, 0.0, 0.0, 0.0]], the smallest" in proofs("sign_of_zero").reason
    assert "on x = float32 of shape [33, 4], " in proofs("from_33_rows").reason
