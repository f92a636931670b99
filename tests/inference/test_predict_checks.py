"""What a Predict request is refused for, in TensorFlow Serving's words."""

from __future__ import annotations

import numpy as np
import pytest

from appliance.core.errors import Code, ServingError
from appliance.inference.predict_checks import check_dtypes, check_method_name, check_names, wanted_outputs
from backends.contract import Signature, TensorSpec

SIGNATURE = Signature(
    {
        "a": TensorSpec("float32", None, "z:0"),
        "b": TensorSpec("int32", None, "y:0"),
        "c": TensorSpec("string", (), "x"),
    },
    {"p": TensorSpec("float32", None), "q": TensorSpec("float32", None)},
    defaults={"c": b""},
)
STRICT = Signature(SIGNATURE.inputs, SIGNATURE.outputs)


@pytest.mark.parametrize(
    ("signature", "sent", "message"),
    [
        (
            STRICT,
            "ab",
            (
                "input size does not match signature: 2!=3 len({a,b}) != len({a,b,c}). Sent extra: {}. "
                "Missing but required: {c}."
            ),
        ),
        (
            SIGNATURE,
            "abcd",
            (
                "input size does not match signature: 4!=3 len({a,b,c,d}) != len({a,b,c}). Sent extra: {d}. "
                "Missing but required: {}."
            ),
        ),
        (
            SIGNATURE,
            "a",
            (
                "Signature input alias: b(feed name: y:0) not found in request and no default value provided. "
                "Inputs expected to be in the request {a}, or default input alias set: c"
            ),
        ),
        (
            STRICT,
            "abd",
            (
                "Signature input alias: c(feed name: x) not found in request and no default value provided. "
                "Inputs expected to be in the request {a,b,d}, or default input alias set: "
            ),
        ),
        (
            SIGNATURE,
            "abd",
            "Inputs contains invalid name. Used request inputs: a,b, request input: a,b,d",
        ),
    ],
)
def test_a_wrong_set_of_inputs_is_told_as_tensorflow_serving_tells_it(
    signature: Signature, sent: str, message: str
) -> None:
    with pytest.raises(ServingError) as caught:
        check_names(set(sent), signature)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, message)


def test_inputs_with_defaults_may_be_missing() -> None:
    check_names(set("ab"), SIGNATURE)
    check_names(set("abc"), SIGNATURE)
    check_names(set("abc"), STRICT)
    check_names(set(), Signature({}, {}))


def test_a_wrong_type_is_told_with_its_place_in_the_order_of_the_tensors_names() -> None:
    right = {"a": np.zeros(1, "f4"), "b": np.zeros(1, "i4"), "c": np.array([b""], object)}
    check_dtypes(right, SIGNATURE)
    check_dtypes({"a": right["a"], "b": right["b"]}, SIGNATURE)
    with pytest.raises(ServingError) as caught:
        check_dtypes(right | {"a": np.zeros(1, "f8"), "b": np.zeros(1, "?")}, SIGNATURE)
    assert caught.value.message == "Expects arg[1] to be int32 but bool is provided"
    assert caught.value.remedy == "send the input b as DT_INT32"


def test_outputs_are_all_or_those_of_the_filter_in_its_order() -> None:
    assert wanted_outputs((), SIGNATURE) == ["p", "q"]
    assert wanted_outputs(("q", "p"), SIGNATURE) == ["q", "p"]
    for wrong, message in (
        (("r",), "output tensor alias not found in signature: r Outputs expected to be in the set {p,q}."),
        (("q", "q"), "duplicate output tensor alias: q"),
    ):
        with pytest.raises(ServingError) as caught:
            wanted_outputs(wrong, SIGNATURE)
        assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, message)


@pytest.mark.parametrize("method", ["predict", "classify", "regress"])
def test_the_three_method_names_are_accepted(method: str) -> None:
    check_method_name(Signature({}, {}, f"tensorflow/serving/{method}"))


def test_another_method_name_is_refused() -> None:
    with pytest.raises(ServingError) as caught:
        check_method_name(Signature({}, {}, "mine"))
    assert caught.value.code is Code.INTERNAL
    assert caught.value.message == (
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: mine"
    )
