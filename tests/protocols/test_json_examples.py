"""REST classify and regress bodies to Examples, and results to bodies; the rules are those of `json_tensor.cc`."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import Code, ServingError
from appliance.protocols import protos
from appliance.protocols.classify_regress import Classification, Regression
from appliance.protocols.json_examples import parse_examples
from appliance.protocols.json_output import encode_result


def features(data: bytes) -> dict[str, Any]:
    """Kind and values of each feature of a serialized Example."""
    found = {}
    for name, feature in protos.Example.FromString(data).features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, list(getattr(feature, kind).value)) if kind else (None, [])
    return found


def parsed(body: bytes) -> list[dict[str, Any]]:
    return [features(data) for data in parse_examples(body).examples.array()]


def refusal(body: bytes) -> str:
    with pytest.raises(ServingError) as caught:
        parse_examples(body)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()
    return caught.value.message


def one(feature: str) -> bytes:
    """A body with one example, whose feature "x" is that JSON text."""
    return b'{"examples": [{"x": %b}]}' % feature.encode()


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("1", "int64_list", [1]),
        ("[1, -2, 9223372036854775807, -9223372036854775808]", "int64_list", [1, -2, 2**63 - 1, -(2**63)]),
        ("[true, false, 5]", "int64_list", [1, 0, 5]),
        ("true", "int64_list", [1]),
        ("1.5", "float_list", [1.5]),
        ("[1.0, 2.5, -0.25]", "float_list", [1.0, 2.5, -0.25]),
        ("1e2", "float_list", [100.0]),
        ("[1e300, -1e300, 1e-300]", "float_list", [math.inf, -math.inf, 0.0]),
        ("[18446744073709551616]", "float_list", [2.0**64]),
        ("[Infinity, -Infinity]", "float_list", [math.inf, -math.inf]),
        ("[Inf, -Inf, 1.5]", "float_list", [math.inf, -math.inf, 1.5]),
        ('"text"', "bytes_list", [b"text"]),
        ('["grün", "", "\\u0000"]', "bytes_list", ["grün".encode(), b"", b"\0"]),
        ('{"b64": "/wA="}', "bytes_list", [b"\xff\0"]),
        ('["a", {"b64": "/w"}]', "bytes_list", [b"a", b"\xff"]),
        ("[]", None, []),
    ],
)
def test_a_feature_has_the_kind_of_its_values(text: str, kind: str | None, values: list[Any]) -> None:
    assert parsed(one(text)) == [{"x": (kind, values)}]


def test_nan_is_a_decimal_even_beside_integers_beyond_64_bits() -> None:
    ((kind, values),) = parsed(one("[NaN, 18446744073709551617]"))[0].values()
    assert kind == "float_list"
    assert math.isnan(values[0])
    assert values[1] == 2.0**64


def test_examples_keep_their_order_and_an_empty_one_counts() -> None:
    assert parsed(b'{"examples": [{"x": 1, "y": "a"}, {}, {"x": 2}]}') == [
        {"x": ("int64_list", [1]), "y": ("bytes_list", [b"a"])},
        {},
        {"x": ("int64_list", [2])},
    ]


def test_the_context_is_shared_and_an_example_overrides_it() -> None:
    body = b'{"context": {"a": 1, "b": "c"}, "examples": [{"x": 2.5}, {"a": 7}]}'
    assert parsed(body) == [
        {"a": ("int64_list", [1]), "b": ("bytes_list", [b"c"]), "x": ("float_list", [2.5])},
        {"a": ("int64_list", [7]), "b": ("bytes_list", [b"c"])},
    ]


def test_other_keys_are_ignored_and_the_signature_is_told() -> None:
    body = b'{"signature_name": "s", "more": [1], "examples": [{"x": 1}]}'
    assert parse_examples(body).signature_name == "s"
    assert parse_examples(one("1")).signature_name == ""


def test_the_same_features_are_the_same_bytes() -> None:
    first = parse_examples(b'{"examples": [{"a": 1, "b": 2}, {"b": 2, "a": 1}]}').examples.examples
    assert first[0] == first[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("[]", "JSON Value: [] Is not object"),
        ("{", "JSON Parse error: "),
        ('{"signature_name": 1, "examples": [{}]}', "'signature_name' key must be a string value."),
        ("{}", "When method is classify, key 'examples' is expected and was not found"),
        ('{"instances": [1]}', "key 'examples' is expected and was not found"),
        ('{"examples": {}}', "Expecting 'examples' value to be an list/array"),
        ('{"examples": null}', "Expecting 'examples' value to be an list/array"),
        ('{"examples": []}', "'examples' value is an empty array"),
        ('{"examples": [[1]]}', "Example must be JSON object but got JSON Array"),
        ('{"examples": [{}, 1.5]}', "Example must be JSON object but got JSON Number"),
        ('{"examples": [null]}', "Example must be JSON object but got JSON Null"),
        ('{"examples": [true]}', "Example must be JSON object but got JSON True"),
        ('{"context": [], "examples": [{}]}', "Example must be JSON object but got JSON Array"),
        ('{"context": 1}', "Example must be JSON object but got JSON Number"),
        ('{"examples": [{"x": null}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": [{"x": [1, null]}]}', "Feature: x has element with unexpected JSON type: Null"),
        ('{"examples": [{"x": [[1]]}]}', "Feature: x has element with unexpected JSON type: Array"),
        ('{"examples": [{"x": {"y": 1}}]}', "Feature: x has element with unexpected JSON type: Object"),
        ('{"examples": [{"x": {"b64": 1}}]}', "Feature: x has element with unexpected JSON type: Object"),
        ('{"examples": [{"x": [1, {"y": 2}]}]}', "Feature: x has element with unexpected JSON type: Object"),
        ('{"examples": [{"x": [1, 2.5]}]}', "Unexpected element type in feature: x expecting type: int64"),
        ('{"examples": [{"x": [true, 2.5]}]}', "Unexpected element type in feature: x expecting type: int64"),
        ('{"examples": [{"x": [2.5, 1]}]}', "Unexpected element type in feature: x expecting type: float"),
        ('{"examples": [{"x": ["a", 1]}]}', "Unexpected element type in feature: x expecting type: bytes"),
        ('{"examples": [{"x": [1, {"b64": ""}]}]}', "Unexpected element type in feature: x expecting type: int64"),
        ('{"examples": [{"x": [1, 18446744073709551616]}]}', "feature: x expecting type: int64"),
        (
            '{"examples": [{"x": [1, 18446744073709551615]}]}',
            "Feature: x has uint64 element. Only int64 is supported.",
        ),
        ('{"examples": [{"x": {"b64": "!"}}]}', "Unable to base64 decode"),
        ('{"examples": [{"x": [NaN, 1' + "0" * 400 + "]}]}", "Number too big to be stored in double."),
    ],
)
def test_what_is_no_request_says_why(body: str, message: str) -> None:
    assert message in refusal(body.encode())


def test_errors_quote_only_the_beginning() -> None:
    long = "x" * 100_000
    assert len(refusal(json.dumps({"examples": [{long: None}]}).encode())) < 300
    assert len(refusal(json.dumps({long: 1}).encode())) < 300


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(), inner, max_size=3)
        | inner.map(lambda value: {"b64": value})
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["examples", "context", "signature_name", "x"]), VALUES) | VALUES)
def test_whatever_the_json_is_the_answer_is_examples_or_an_error(document: Any) -> None:
    check(json.dumps(document).encode())


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=3), VALUES)
def test_whatever_the_features_are_the_answer_is_examples_or_an_error(examples: Any, context: Any) -> None:
    check(json.dumps({"examples": examples, "context": {"c": context}}).encode())


@given(st.binary(max_size=100))
def test_whatever_the_bytes_are_the_answer_is_examples_or_an_error(body: bytes) -> None:
    check(body)


def check(body: bytes) -> None:
    try:
        examples = parse_examples(body).examples
    except ServingError as error:
        code = error.code
        str(error).encode()
    else:
        code = Code.INVALID_ARGUMENT
        for data in examples.array():
            protos.Example.FromString(data)
    assert code is Code.INVALID_ARGUMENT


FEATURES = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4).map(lambda v: ("int64_list", v)),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4).map(lambda v: ("float_list", v)),
    st.lists(st.binary(), min_size=1, max_size=4).map(lambda v: ("bytes_list", v)),
)


@given(st.lists(st.dictionaries(st.text(), FEATURES, max_size=4), min_size=1, max_size=4))
def test_every_feature_arrives_as_it_is(examples: list[dict[str, Any]]) -> None:
    def written(kind: str, values: list[Any]) -> list[Any]:
        return [{"b64": base64.b64encode(value).decode()} for value in values] if kind == "bytes_list" else values

    document = [{name: written(*feature) for name, feature in each.items()} for each in examples]
    assert parsed(json.dumps({"examples": document}).encode()) == examples


# ---- Answers


def labels(*rows: list[str]) -> np.ndarray:
    return np.array([[label.encode() for label in row] for row in rows], object)


SCORES = np.array([[0.1, 3.0], [1e-7, -2.5]], np.float32)


@pytest.mark.parametrize(
    ("result", "body"),
    [
        (Classification(None, SCORES), b'{"results":[[["",0.1],["",3.0]],[["",1e-7],["",-2.5]]]}'),
        (
            Classification(labels(["a", "ü"], ["c", '"']), SCORES),
            '{"results":[[["a",0.1],["ü",3.0]],[["c",1e-7],["\\"",-2.5]]]}'.encode(),
        ),
        (Classification(labels(["a"], ["b"]), None), b'{"results":[[["a",0.0]],[["b",0.0]]]}'),
        (Classification(None, SCORES[:, :0]), b'{"results":[[],[]]}'),
        (
            Classification(None, np.array([[np.nan, np.inf, -np.inf, 1]], np.float32)),
            b'{"results":[[["",NaN],["",Infinity],["",-Infinity],["",1.0]]]}',
        ),
        (Regression(SCORES[0]), b'{"results":[0.1,3.0]}'),
        (Regression(np.array([np.nan, 1], np.float32)), b'{"results":[NaN,1.0]}'),
    ],
)
def test_results_are_labels_and_scores_or_numbers(result: Classification | Regression, body: bytes) -> None:
    assert encode_result(result) == body


def test_labels_that_are_no_text_are_refused() -> None:
    with pytest.raises(ServingError, match="not UTF-8") as caught:
        encode_result(Classification(np.array([[b"\xff"]], object), None))
    assert caught.value.code is Code.INVALID_ARGUMENT
