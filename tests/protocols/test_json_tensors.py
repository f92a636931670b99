"""REST predict bodies to arrays and back, on real bodies; the rules are those of `json_tensor.cc`."""

from __future__ import annotations

import base64
import gc
import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from appliance.core.errors import Code, ServingError
from appliance.protocols.json_output import encode_predict, fewest_bytes, json_bytes
from appliance.protocols.json_pieces import predict_pieces
from appliance.protocols.json_tensors import parse_predict
from backends.contract import Signature, TensorSpec
from backends.dtypes import BY_NAME

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMBERS = FLOATS + INTEGERS
# Blanks after the document: large enough to be read by simdjson, without another meaning.
BLANKS = b" " * 4096


def signature(**inputs: str) -> Signature:
    return Signature({name: TensorSpec(dtype, None) for name, dtype in inputs.items()}, {})


def decode(body: bytes, **inputs: str) -> dict[str, np.ndarray]:
    return parse_predict(body).inputs(signature(**inputs))


def refusal(body: bytes, **inputs: str) -> str:
    with pytest.raises(ServingError) as caught:
        decode(body, **(inputs or {"x": "float32"}))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()
    return caught.value.message


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype == object:
        assert actual.tolist() == expected.tolist()
    else:
        wide = np.float64 if actual.dtype.name in FLOATS else actual.dtype
        np.testing.assert_array_equal(actual.astype(wide), expected.astype(wide))


# ---- Requests


@pytest.mark.parametrize("blanks", [b"", BLANKS])
def test_rows_of_one_input_are_batched(blanks: bytes) -> None:
    body = parse_predict(b'{"instances": [[1.0, 2], [5, -0.5]]}' + blanks)
    assert (body.signature_name, body.row_format) == ("", True)
    assert_same(body.inputs(signature(x="float32"))["x"], np.array([[1, 2], [5, -0.5]], np.float32))


@pytest.mark.parametrize("blanks", [b"", BLANKS])
def test_columns_of_several_inputs_may_differ_in_shape_and_come_in_any_order(blanks: bytes) -> None:
    document = b'{"signature_name": "s", "inputs": {"b": true, "c": [[[1]]], "a": [[1, 2], [3, 4]], "d": "text"}}'
    body = parse_predict(document + blanks)
    assert (body.signature_name, body.row_format) == ("s", False)
    arrays = body.inputs(signature(a="int8", b="bool", c="uint64", d="string"))
    assert_same(arrays["a"], np.array([[1, 2], [3, 4]], np.int8))
    assert_same(arrays["b"], np.array(True))
    assert_same(arrays["c"], np.array([[[1]]], np.uint64))
    assert_same(arrays["d"], np.array(b"text", object))


@pytest.mark.parametrize("blanks", [b"", BLANKS])
def test_columns_ignore_other_names(blanks: bytes) -> None:
    body = b'{"inputs": {"a": [1], "other": [[1], 2, {"y": null}]}}' + blanks
    assert_same(decode(body, a="float32")["a"], np.array([1], np.float32))


def test_rows_of_objects_become_one_array_a_name() -> None:
    body = b'{"instances": [{"a": 1.5, "b": [1, 2]}, {"b": [3, 4], "a": 2}]}'
    arrays = decode(body, a="float64", b="int64")
    assert_same(arrays["a"], np.array([1.5, 2.0]))
    assert_same(arrays["b"], np.array([[1, 2], [3, 4]]))


def test_one_input_may_be_bare_or_named_in_both_formats() -> None:
    for body in (b'{"instances": [1, 2]}', b'{"instances": [{"x": 1}, {"x": 2}]}'):
        assert_same(decode(body, x="int32")["x"], np.array([1, 2], np.int32))
    for body in (b'{"inputs": 7}', b'{"inputs": {"x": 7}}'):
        assert_same(decode(body, x="int32")["x"], np.array(7, np.int32))


def test_a_lone_b64_object_is_a_value() -> None:
    data = b"\x89PNG\x00\xff"
    value = {"b64": base64.b64encode(data).decode()}
    for document in ({"instances": [value]}, {"instances": [{"x": value}]}, {"inputs": [value]}):
        assert_same(decode(json.dumps(document).encode(), x="string")["x"], np.array([data], object))
    assert_same(decode(json.dumps({"inputs": value}).encode(), x="string")["x"], np.array(data, object))
    assert_same(decode(json.dumps({"instances": [value]}).encode(), b64="string")["b64"], np.array([data], object))


def test_strings_and_b64_mix_and_strings_are_utf8() -> None:
    body = '{"instances": [["grün", {"b64": "/w=="}], ["\\u0000\\ud83d\\ude00", {"b64": "aGk"}]]}'.encode()
    expected = np.array([["grün".encode(), b"\xff"], ["\0😀".encode(), b"hi"]], object)
    assert_same(decode(body, x="string")["x"], expected)


def test_empty_dimensions_keep_their_shape() -> None:
    assert decode(b'{"instances": [[], []]}', x="float32")["x"].shape == (2, 0)
    assert decode(b'{"inputs": []}', x="string")["x"].shape == (0,)
    assert decode(b'{"inputs": [[[], []]]}' + BLANKS, x="float32")["x"].shape == (1, 2, 0)


@pytest.mark.parametrize("blanks", [b"", BLANKS])
def test_floats_overflow_to_inf_and_underflow_to_zero(blanks: bytes) -> None:
    x = decode(b'{"instances": [1e300, -1e39, 1e-300, 0.1, 18446744073709551616]}' + blanks, x="float32")["x"]
    assert_same(x, np.array([np.inf, -np.inf, 0, 0.1, 2.0**64], np.float32))
    half = decode(b'{"instances": [70000, 0.1]}' + blanks, x="float16")["x"]
    assert_same(half, np.array([np.inf, 0.1], np.float16))


@pytest.mark.parametrize("blanks", [b"", BLANKS])
def test_nan_and_infinity_are_numbers(blanks: bytes) -> None:
    x = decode(b'{"instances": [[NaN, 1], [Infinity, -Infinity]]}' + blanks, x="float32")["x"]
    assert_same(x, np.array([[np.nan, 1], [np.inf, -np.inf]], np.float32))
    assert "not of expected type: int32" in refusal(b'{"instances": [NaN]}' + blanks, x="int32")
    assert decode(b'{"instances": ["NaN"]}' + blanks, x="string")["x"].tolist() == [b"NaN"]


@pytest.mark.parametrize("blanks", [b"", BLANKS])
def test_the_short_names_of_infinity_and_a_negative_nan_are_numbers_too(blanks: bytes) -> None:
    matrix = np.array([[np.inf, -np.inf], [np.nan, np.inf]], np.float32)
    for body in (b'{"instances": [[Inf,-Inf],[-NaN,Infinity]]}', b'{"inputs":{"x":[[Inf,-Inf],[-NaN,Infinity]]}}'):
        assert_same(decode(body + blanks, x="float32")["x"], matrix)
    rows = b'{"instances": [{"x":[Inf],"s":"Inf"},{"x":[-Inf],"s":"\\"-Inf, -NaN"}]}' + blanks
    arrays = decode(rows, x="float64", s="string")
    assert_same(arrays["x"], np.array([[np.inf], [-np.inf]]))
    assert arrays["s"].tolist() == [b"Inf", b'"-Inf, -NaN']
    assert "not of expected type: int32" in refusal(b'{"instances": [-Inf]}' + blanks, x="int32")


@pytest.mark.parametrize("text", [b"+Inf", b"inf", b"INF", b"Infin", b"--Inf", b"1Inf", b"Inf1", b"1-NaN", b"InfInf"])
def test_what_only_resembles_infinity_is_refused(text: bytes) -> None:
    assert refusal(b'{"instances": [' + text + b"]}", x="float32").startswith("JSON Parse error: ")
    assert refusal(b'{"instances": [NaN, ' + text + b"]}", x="float32").startswith("JSON Parse error: ")


@pytest.mark.parametrize("blanks", [b"", BLANKS])
def test_64_bit_integers_are_exact(blanks: bytes) -> None:
    body = b'{"inputs": [9223372036854775807, -9223372036854775808, 9007199254740993]}' + blanks
    assert decode(body, x="int64")["x"].tolist() == [2**63 - 1, -(2**63), 2**53 + 1]
    body = b'{"inputs": [18446744073709551615, 9223372036854775808, 1]}' + blanks
    assert decode(body, x="uint64")["x"].tolist() == [2**64 - 1, 2**63, 1]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("blanks", [b"", BLANKS])
def test_integers_out_of_range_are_refused(dtype: str, blanks: bytes) -> None:
    limits = np.iinfo(BY_NAME[dtype].numpy)
    ends = b'{"instances": [%d, %d]}' % (limits.min, limits.max)
    assert decode(ends + blanks, x=dtype)["x"].tolist() == [limits.min, limits.max]
    for value in (limits.min - 1, limits.max + 1, -(10**30), 10**30):
        message = refusal(b'{"instances": [0, %d]}' % value + blanks, x=dtype)
        assert message.startswith(
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value"
        )
        assert f"is not of expected type: {dtype}" in message


ERROR_IN_ROW = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: "
ERRORS: list[tuple[str, dict[str, str], str]] = [
    ("", {}, "JSON Parse error: The document is empty"),
    ("[1]", {}, "JSON Value: [1] Is not object"),
    ("null", {}, "JSON Value: null Is not object"),
    ('{"instances": [1', {}, "JSON Parse error: "),
    ("{}", {}, "Missing 'inputs' or 'instances' key"),
    ('{"instances": [1], "inputs": [1]}', {}, "expecting only one of 'inputs' or 'instances' keys to exist"),
    ('{"instances": []}', {}, "No values in 'instances' array"),
    ('{"instances": 1}', {}, "'instances' to be an list/array"),
    ('{"instances": [1], "signature_name": 1}', {}, "'signature_name' key must be a string value."),
    ('{"instances": [1.0]}', {"x": "int32"}, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
    ('{"inputs": 1.0}', {"x": "int32"}, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
    ('{"inputs": [1e2]}', {"x": "uint64"}, "JSON Value: 100.0 Type: Number is not of expected type: uint64"),
    ('{"inputs": [true]}', {}, "JSON Value: true Type: True is not of expected type: float"),
    ('{"inputs": [false]}', {"x": "int8"}, "JSON Value: false Type: False is not of expected type: int8"),
    ('{"inputs": [1, null]}', {}, "JSON Value: null Type: Null is not of expected type: float"),
    ('{"inputs": [1]}', {"x": "bool"}, "JSON Value: 1 Type: Number is not of expected type: bool"),
    ('{"inputs": ["1"]}', {"x": "bfloat16"}, 'JSON Value: "1" Type: String is not of expected type: bfloat16'),
    ('{"inputs": [1]}', {"x": "string"}, "JSON Value: 1 Type: Number is not of expected type: string"),
    ('{"inputs": {"b64": "AA=="}}', {}, 'JSON Value: {"b64": "AA=="} Type: Object is not of expected type: float'),
    ('{"inputs": [{"b64": "A"}]}', {"x": "string"}, "Unable to base64 decode"),
    ('{"inputs": [{"b64": "A*=="}]}', {"x": "string"}, "Unable to base64 decode"),
    ('{"inputs": [{"b64": "ä"}]}', {"x": "string"}, "Unable to base64 decode"),
    ('{"inputs": [{"b64": 1}]}', {"x": "string"}, 'JSON Value: {"b64": 1} not formatted correctly for base64 data'),
    ('{"instances": [1]}', {"x": "complex64"}, "Conversion of JSON values to type: complex64 is not supported"),
    ('{"instances": [[1, 2], [3]]}', {}, ERROR_IN_ROW.format(1) + "Expecting tensor size: 2 but got: 1"),
    ('{"instances": [[[1, 2]], [[1], [2]]]}', {}, ERROR_IN_ROW.format(1) + "Expecting shape [1,2] but got: [2,1]"),
    ('{"instances": [1, [2]]}', {}, ERROR_IN_ROW.format(1) + "Expecting shape [] but got: [1]"),
    ('{"instances": [[[1, 2], [3]]]}', {}, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ('{"instances": [[1, [2]]]}', {}, "Encountered list at unexpected level: 1 expected < 1"),
    (
        '{"instances": [[[1], 2]]}',
        {},
        "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
    ('{"inputs": [[1, 2], [3]]}', {}, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ('{"instances": [1, {"x": 1}]}', {}, "Expecting value/list but got object at item 1 of input list"),
    ('{"instances": [{"x": 1}, 1]}', {}, "Expecting object but got list at item 1 of input list"),
    ('{"instances": [1]}', {"a": "int8", "b": "int8"}, "instances is a plain list, but expecting list of objects"),
    ('{"inputs": [1]}', {"a": "int8", "b": "int8"}, "inputs is a plain value/list, but expecting an object"),
    ('{"inputs": {"a": 1}}', {"a": "int8", "b": "int8"}, "Missing named input: b in 'inputs' object."),
    (
        '{"instances": [{"x": 1, "y": 2}]}',
        {},
        "element: 0 key: y of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have named input: y",
    ),
    (
        '{"instances": [{"b": 1}]}',
        {"b": "int8", "a": "int8"},
        "Failed to process element: 0 of 'instances' list. JSON object: {\"b\": 1} keys must be equal to: a,b",
    ),
    (
        '{"instances": [{"a": 1, "b": [1]}, {"a": 1, "b": [true]}]}',
        {"a": "int8", "b": "int8"},
        "Failed to process element: 1 key: b of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: true Type: True",
    ),
]


@pytest.mark.parametrize(("body", "inputs", "message"), ERRORS)
def test_errors_have_the_servers_words(body: str, inputs: dict[str, str], message: str) -> None:
    assert message in refusal(body.encode(), **inputs)
    if body:
        refusal(body.encode() + BLANKS, **inputs)


def test_the_first_ragged_row_is_named_with_both_sizes() -> None:
    rows = [np.zeros((10, 9, 3)).tolist(), np.zeros((10, 9, 3)).tolist(), np.zeros((12, 7, 3)).tolist(), [1]]
    message = refusal(json.dumps({"instances": rows}).encode())
    assert message == ERROR_IN_ROW.format(2) + "Expecting tensor size: 270 but got: 252"


def test_a_signature_without_inputs_is_refused() -> None:
    with pytest.raises(ServingError, match="Failed to get input map for signature: DEFAULT"):
        parse_predict(b'{"instances": [1]}').inputs(Signature({}, {}))


def test_of_equal_keys_the_last_counts_in_small_and_large_bodies() -> None:
    for blanks in (b"", BLANKS):
        assert decode(b'{"inputs": [1], "inputs": [2, 3]}' + blanks, x="int8")["x"].tolist() == [2, 3]
        assert decode(b'{"inputs": {"x": [1], "x": [2, 3]}}' + blanks, x="int8")["x"].tolist() == [2, 3]
        assert decode(b'{"inputs": {"x": 1, "x": 2}}' + blanks, x="int8")["x"].tolist() == 2


def test_a_byte_order_mark_is_skipped() -> None:
    assert decode(b'\xef\xbb\xbf{"inputs": 1}', x="int8")["x"].tolist() == 1


def test_a_body_can_be_read_while_another_is_held() -> None:
    first = parse_predict(b'{"instances": [1, 2, 3]}' + BLANKS)
    second = parse_predict(b'{"instances": [4, 5, 6]}' + BLANKS)
    assert second.inputs(signature(x="int8"))["x"].tolist() == [4, 5, 6]
    assert first.inputs(signature(x="int8"))["x"].tolist() == [1, 2, 3]
    assert first.inputs(signature(x="float32"))["x"].tolist() == [1, 2, 3]


def test_strings_that_look_like_the_tensor_do_not_hide_its_raggedness() -> None:
    for body in (
        b'{"k": "[[1,2],[3,4]]", "instances": [[1, 2], [3, 4, 5], [6]]}',
        b'{"k": "[[,],[,]]", "instances": [[1, 2], [3], 4]}',
        b'{"k": "[", "instances": [[1, 2], [3], 4]}',
        b'{"instances": [[1, 2], [3], [4, 5, 6]], "inputs2": [[1, 2], [3, 4], [5, 6]]}',
    ):
        assert refusal(body + BLANKS) == refusal(body)


def test_the_collector_is_on_again_after_a_large_body() -> None:
    decode(b'{"instances": [' + b"true," * 50_000 + b"false]}", x="bool")
    refusal(b'{"instances": [' + b"true," * 50_000 + b"]}", x="bool")
    assert gc.isenabled()


# ---- Hostile requests

DEEP = 100_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"instances": ' + b"[" * DEEP,
        b'{"instances": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        b'{"instances": [NaN,' + b"[" * DEEP + b"]" * DEEP + b"]}",
        b'{"instances": [NaN, "]]]]", "' + b'\\"' * DEEP + b'", ' + b'{"a":[' * DEEP,
        b'{"instances": [NaN, "' + b'\\"' * DEEP,
        b'{"instances": ' + b"[" * 1000 + b"1" + b"]" * 1000 + b"}",
        b'{"instances": ' + b"[" * 65 + b"1" + b"]" * 65 + b"}",
        b'{"inputs": ' + b"[" * 65 + b"1" + b"]" * 65 + b"}",
        b'{"inputs": [1,' + b"[" * 900 + b"1" + b"]" * 900 + b"]}",
        b'{"instances": [[' + b"0," * 100_000 + b"0]" + b",[0]" * 100_000 + b"]}",
        b'{"inputs": [[' + b"[]," * 50_000 + b"[]]" + b",[]" * 50_000 + b"]}",
        b'{"instances": [1e999]}',
        b'{"instances": [NaN, -1e999]}',
        b'{"instances": [' + b"9" * 5000 + b"]}",
        b'{"instances": [NaN, ' + b"9" * 5000 + b"]}",
        b'{"instances": [NaN, ' + b"9" * 1000 + b"]}",
        b'{"instances": ["\\ud800"]}',
        b'{"instances": ["\\ud800", NaN]}',
        b'{"instances": [NaN], "signature_name": "\\udfff"}',
        b'{"instances": [Inf, "' + b'\\"' * DEEP,
        b'{"instances": [' + b"-Inf" * DEEP + b"]}",
        b'{"instances": [' + b"-NaN," * DEEP + b"]}",
        b'{"instances": ["\xff"]}',
        b'{"instances": ["\xff", NaN]}',
        b'{"instances": ["' + b"x" * 1_000_000 + b'"]}',
        b'{"instances": [{"' + b"x" * 1_000_000 + b'": 1}]}',
        b'{"instances": [1]}\0',
        '{"instances": [1]}'.encode("utf-16"),
    ],
    ids=range(29),
)
def test_hostile_bodies_are_refused_in_few_words(body: bytes) -> None:
    assert refusal(body)


def test_64_dimensions_are_the_most() -> None:
    assert decode(b'{"inputs": ' + b"[" * 64 + b"1" + b"]" * 64 + b"}", x="int8")["x"].shape == (1,) * 64
    assert decode(b'{"instances": ' + b"[" * 64 + b"1" + b"]" * 64 + b"}" + BLANKS, x="int8")["x"].shape == (1,) * 64


def outcome(body: bytes, inputs: dict[str, str]) -> dict[str, np.ndarray] | ServingError:
    try:
        return decode(body, **inputs)
    except ServingError as error:
        refused = error
    assert refused.code is Code.INVALID_ARGUMENT
    str(refused).encode()
    return refused


FRAGMENTS = [
    b'{"instances":',
    b'{"inputs":',
    b'"x":',
    b'{"x":',
    b'"b64"',
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b'"',
    b"1",
]
FRAGMENTS += [
    b"-",
    b".5",
    b"1e400",
    b"NaN",
    b"-Infinity",
    b"-Inf",
    b"true",
    b"null",
    b"\\ud800",
    b"\xff",
    b"\x00",
    b" ",
    b"AA==",
]
ANY_SIGNATURE = st.dictionaries(st.sampled_from(["x", "b64", ""]), st.sampled_from([*BY_NAME]), max_size=2)


@given(st.binary() | st.lists(st.sampled_from(FRAGMENTS), max_size=30).map(b"".join), ANY_SIGNATURE)
def test_whatever_the_bytes_only_a_serving_error_is_raised(body: bytes, inputs: dict[str, str]) -> None:
    outcome(body, inputs)
    outcome(body + BLANKS, inputs)


NUMBER_VALUES = st.integers(-3, 300) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=True, allow_infinity=True)
TENSOR_LIKE = st.integers(0, 3).flatmap(
    lambda size: st.recursive(
        st.integers(0, 9), lambda inner: st.lists(inner, min_size=max(size - 1, 0), max_size=size), max_leaves=12
    )
)
LEAVES = (
    st.none() | st.booleans() | NUMBER_VALUES | st.text(max_size=3) | st.just({"b64": "AAA="}) | st.just({"b64": 1})
)
VALUES = TENSOR_LIKE | st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "b64"]), inner, max_size=2),
    max_leaves=8,
)


@given(
    key=st.sampled_from(["instances", "inputs"]),
    value=VALUES,
    other=st.just("") | st.sampled_from(['"k": "[[],[,]]", ', '"k": [[1]], ', '"inputs": [1], ']),
    inputs=st.dictionaries(
        st.sampled_from(["x", "y"]), st.sampled_from(["float32", "int8", "uint64", "bool", "string"])
    ),
)
@example(
    key="inputs",
    value={"x": [[1, 2], [3], [4, 5, 6]], "y": [[1, 2], [3, 4], [5, 6]]},
    other="",
    inputs={"x": "int8", "y": "int8"},
)
@example(key="instances", value=[[], [5]], other="", inputs={"x": "int8"})
@example(key="instances", value=[[[5], []]], other="", inputs={"x": "int8"})
def test_large_bodies_give_what_small_ones_give(key: str, value: Any, other: str, inputs: dict[str, str]) -> None:
    body = f'{{{other}"{key}": {json.dumps(value)}}}'.encode()
    small, large = outcome(body, inputs), outcome(body + BLANKS, inputs)
    if isinstance(small, ServingError) or isinstance(large, ServingError):
        assert str(small) == str(large)
        return
    assert small.keys() == large.keys() == inputs.keys()
    for name, array in small.items():
        assert_same(large[name], array)


def arrays_of(dtype: str) -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
    if dtype == "bfloat16":
        return hnp.arrays(np.float32, shapes).map(lambda array: array.astype(ml_dtypes.bfloat16))
    return hnp.arrays(BY_NAME[dtype].numpy, shapes)


@pytest.mark.parametrize("dtype", [*NUMBERS, "bool"])
@given(data=st.data(), row_format=st.booleans(), blanks=st.sampled_from([b"", BLANKS]))
def test_numbers_come_in_and_go_out_as_they_are(
    dtype: str, data: st.DataObject, row_format: bool, blanks: bytes
) -> None:
    with np.errstate(over="ignore"):
        array = data.draw(arrays_of(dtype))
    body = json.dumps({"instances" if row_format else "inputs": array.tolist()}).encode()
    assert_same(decode(body + blanks, x=dtype)["x"], array)

    answer = json.loads(encode_predict({"y": array}, row_format))["predictions" if row_format else "outputs"]
    with np.errstate(over="ignore"):
        assert_same(np.array(answer, np.float64 if dtype in FLOATS else array.dtype).astype(array.dtype), array)


@given(hnp.arrays(object, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3), elements=st.binary(max_size=5)))
def test_bytes_go_out_and_come_in_as_base64(array: np.ndarray) -> None:
    answer = json.loads(encode_predict({"image_bytes": array}, row_format=False))
    body = json.dumps({"inputs": answer["outputs"]}).encode()
    assert_same(decode(body, x="string")["x"], array)


@given(hnp.arrays(object, hnp.array_shapes(min_dims=1, max_dims=3, max_side=3), elements=st.text(max_size=5)))
def test_text_goes_out_and_comes_in_as_it_is(texts: np.ndarray) -> None:
    array = np.vectorize(str.encode, otypes=[object])(texts)
    answer = json.loads(encode_predict({"label": array}, row_format=True))
    assert answer == {"predictions": texts.tolist()}
    assert_same(decode(json.dumps({"instances": answer["predictions"]}).encode(), x="string")["x"], array)


# ---- Responses


def test_a_single_output_is_bare_and_several_are_objects() -> None:
    a, b = np.array([[1.5, 2], [3, 4]], np.float32), np.array([7, 8])
    assert encode_predict({"a": a}, True) == b'{"predictions":[[1.5,2.0],[3.0,4.0]]}'
    assert encode_predict({"a": a}, False) == b'{"outputs":[[1.5,2.0],[3.0,4.0]]}'
    assert encode_predict({"a": a, "b": b}, True) == b'{"predictions":[{"a":[1.5,2.0],"b":7},{"a":[3.0,4.0],"b":8}]}'
    assert encode_predict({"a": a, "b": b}, False) == b'{"outputs":{"a":[[1.5,2.0],[3.0,4.0]],"b":[7,8]}}'


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array(0.1, np.float32), b"0.1"),
        (np.array(3, np.float32), b"3.0"),
        (np.array(0.1), b"0.1"),
        (np.array(2**64 - 1, np.uint64), b"18446744073709551615"),
        (np.array(True), b"true"),
        (np.array(-5, np.int8), b"-5"),
        (np.array(1.5, np.float16), b"1.5"),
        (np.array(np.nan, np.float32), b"NaN"),
        (np.array(-np.inf, ml_dtypes.bfloat16), b"-Infinity"),
        (np.array(b"text", object), b'"text"'),
    ],
)
def test_scalars_are_bare_numbers_in_columns(array: np.ndarray, text: bytes) -> None:
    assert encode_predict({"y": array}, False) == b'{"outputs":' + text + b"}"
    expected = b'{"outputs":{"y":' + text + b',"z":' + text + b"}}"
    assert encode_predict({"y": array, "z": array}, False) == expected


def test_float32_has_its_own_shortest_digits_everywhere() -> None:
    a = np.array([0.1, 16777216, 1e-7], np.float32)
    assert encode_predict({"a": a}, True) == b'{"predictions":[0.1,16777216.0,1e-7]}'
    assert b'{"a":0.1,"b":0.1}' in encode_predict({"a": a, "b": a}, True)
    assert b"[0.1,NaN]" in encode_predict({"a": np.array([[0.1, np.nan]], np.float32)}, True)
    assert b"[0.1015625]" in encode_predict({"a": np.array([0.1015625], ml_dtypes.bfloat16)}, True)


def test_nan_and_infinity_go_out_bare_in_every_form() -> None:
    a = np.array([[np.nan, 1], [np.inf, -np.inf], [2, 3]])
    assert encode_predict({"a": a}, True) == b'{"predictions":[[NaN,1.0],[Infinity,-Infinity],[2.0,3.0]]}'
    both = encode_predict({"a": a, "null": a[:, 0]}, True)
    assert both.startswith(b'{"predictions":[{"a":[NaN,1.0],"null":NaN},{"a":[Infinity,-Infinity],"null":Infinity}')
    assert encode_predict({"a": a[0], "b": a[2]}, False) == b'{"outputs":{"a":[NaN,1.0],"b":[2.0,3.0]}}'


def test_views_and_foreign_byte_orders_are_written_too() -> None:
    a = np.arange(6, dtype=">f4").reshape(2, 3).T
    assert encode_predict({"a": a}, True) == b'{"predictions":[[0.0,3.0],[1.0,4.0],[2.0,5.0]]}'
    assert encode_predict({"a": a[::2, 1]}, False) == b'{"outputs":[3.0,5.0]}'


def test_empty_outputs_keep_their_shape() -> None:
    for dtype in ("f4", object, ml_dtypes.bfloat16):
        assert encode_predict({"a": np.zeros((2, 0), dtype)}, True) == b'{"predictions":[[],[]]}'
        assert encode_predict({"a": np.zeros((0, 2), dtype)}, False) == b'{"outputs":[]}'
        assert encode_predict({"a": np.zeros(0, dtype), "b": np.zeros((0, 2), dtype)}, True) == b'{"predictions":[]}'


def test_only_outputs_named_bytes_are_base64() -> None:
    a = np.array([b"hi", b"\xc3\xa4"], object)
    expected = {"predictions": [{"a": "hi", "a_bytes": {"b64": "aGk="}}, {"a": "ä", "a_bytes": {"b64": "w6Q="}}]}
    assert json.loads(encode_predict({"a": a, "a_bytes": a}, True)) == expected


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "Cannot convert empty tensor map to JSON"),
        ({"a": np.float32(1) * np.ones(())}, "Tensor name: a has no shape information"),
        ({"a": np.ones(2), "b": np.ones(3)}, "Tensor name: b has inconsistent batch size: 3 expecting: 2"),
        ({"a": np.ones(2, np.complex64)}, "Failed to write JSON value for tensor type: complex64"),
        ({"a": np.array([b"ok", b"\xff\xfe"], object)}, "Output a holds bytes that are not UTF-8 text"),
    ],
)
def test_outputs_without_rows_or_json_form_are_refused(outputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ServingError) as caught:
        encode_predict(outputs, True)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert message in caught.value.message


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4)))
def test_float32_answers_never_have_more_digits_than_needed(array: np.ndarray) -> None:
    answer = json.loads(encode_predict({"y": array}, False), parse_float=str, parse_constant=str)["outputs"]
    for token, value in zip(np.array(answer, object).ravel(), array.ravel(), strict=True):
        if math.isfinite(value):
            digits = token.lower().split("e")[0].replace(".", "").replace("-", "").strip("0")
            assert np.float32(token) == value
            assert len(digits) <= len(
                np.format_float_scientific(value, trim="-").split("e")[0].replace(".", "").lstrip("-")
            )


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=3),
    st.sampled_from(["<f4", "<i8", "?", "O"]),
    st.integers(1, 40),
    st.booleans(),
    st.integers(1, 3),
)
def test_an_answer_in_pieces_is_the_answer(
    shape: list[int], dtype: str, piece_bytes: int, row_format: bool, count: int
) -> None:
    flat = np.arange(math.prod(shape))
    array = np.array([b'a "%d"\x01' % n for n in flat], object) if dtype == "O" else (flat % 3).astype(dtype)
    if dtype == "<f4":
        array[::5] = np.nan
    outputs = {name: array.reshape(shape) for name in ("a", "b_bytes", "c")[:count]}
    whole = encode_predict(outputs, row_format)
    assert b"".join(predict_pieces(outputs, row_format, piece_bytes)) == whole
    assert fewest_bytes(outputs) <= len(whole)
    assert len(whole) <= json_bytes(outputs) + 100 * max(math.prod(shape[:1]), 1)  # and the names


def test_an_answer_of_rows_without_elements_is_counted_and_written_in_pieces() -> None:
    outputs = {"y": np.zeros((1_000_000, 0), np.float32)}
    assert fewest_bytes(outputs) >= 2_000_000
    pieces = list(predict_pieces(outputs, row_format=True))
    assert len(b"".join(pieces)) == 3_000_000 + len(b'{"predictions":[]}') - 1
    assert max(map(len, pieces)) <= 1 << 20


def test_a_string_is_counted_as_it_is_written() -> None:
    for name, value in (
        ("y", b"\x01" * 100_000),
        ("y", b'"' * 100_000),
        ("y", b"a" * 100_000),
        ("y_bytes", b"a" * 100_000),
    ):
        outputs = {name: np.array([value], object)}
        written = len(encode_predict(outputs, row_format=True))
        assert fewest_bytes(outputs) == pytest.approx(written, abs=100)
        assert json_bytes(outputs) == pytest.approx(written, abs=100)
