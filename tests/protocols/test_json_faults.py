"""What RapidJSON 1.1 says of texts that are no JSON (checked against it), and what we say."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import ServingError
from appliance.protocols.json_faults import syntax_fault
from appliance.protocols.json_text import load

FAULTS = [
    (b"   ", "The document is empty. at offset: 3"),
    (b"nope", "Invalid value. at offset: 1"),
    (b'{"a": tru}', "Invalid value. at offset: 9"),
    (b'{"a": -}', "Invalid value. at offset: 7"),
    (b"[+1]", "Invalid value. at offset: 1"),
    (b"[1, ]", "Invalid value. at offset: 4"),
    (b'{"instances": [1.0,}', "Invalid value. at offset: 19"),
    (b"[NaN, ]", "Invalid value. at offset: 6"),
    (b"[-NaN, ]", "Invalid value. at offset: 7"),
    (b"[Inf, ]", "Invalid value. at offset: 6"),
    (b"[+Inf]", "Invalid value. at offset: 1"),
    (b"[inf]", "Invalid value. at offset: 1"),
    (b"[nan]", "Invalid value. at offset: 2"),
    (b"[INF]", "Invalid value. at offset: 2"),
    (b"[Na]", "Invalid value. at offset: 3"),
    (b"[In", "Invalid value. at offset: 3"),
    (b"[-N]", "Invalid value. at offset: 3"),
    (b"[--NaN]", "Invalid value. at offset: 2"),
    (b"[- Inf]", "Invalid value. at offset: 2"),
    (b"[Infi]", "Invalid value. at offset: 5"),
    (b'{"a":-Infinit}', "Invalid value. at offset: 13"),
    (b"[", "Invalid value. at offset: 1"),
    (b'{"a":', "Invalid value. at offset: 5"),
    (b"[fals", "Invalid value. at offset: 5"),
    (b"{", "Missing a name for object member. at offset: 1"),
    (b'{"a":1,', "Missing a name for object member. at offset: 7"),
    (b'{"a":1, }', "Missing a name for object member. at offset: 8"),
    (b"{'a':1}", "Missing a name for object member. at offset: 1"),
    (b'{"a"', "Missing a colon after a name of object member. at offset: 4"),
    (b'{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
    (b"{Inf:1}", "Missing a name for object member. at offset: 1"),
    (b'{"a":Inf', "Missing a comma or } after an object member. at offset: 8"),
    (b'{"a":1', "Missing a comma or } after an object member. at offset: 6"),
    (b'{"a":"b"', "Missing a comma or } after an object member. at offset: 8"),
    (b'{"a":1 "b":2}', "Missing a comma or } after an object member. at offset: 7"),
    (b'{"a":{"b":1]', "Missing a comma or } after an object member. at offset: 11"),
    (b'{"a": 01}', "Missing a comma or } after an object member. at offset: 7"),
    (b"[1", "Missing a comma or ] after an array element. at offset: 2"),
    (b"[Infx]", "Missing a comma or ] after an array element. at offset: 4"),
    (b"[NaN1]", "Missing a comma or ] after an array element. at offset: 4"),
    (b"[Inf.5]", "Missing a comma or ] after an array element. at offset: 4"),
    (b"[1-NaN]", "Missing a comma or ] after an array element. at offset: 2"),
    (b"[InfInf", "Missing a comma or ] after an array element. at offset: 4"),
    (b"[Infinity", "Missing a comma or ] after an array element. at offset: 9"),
    (b"[1 2]", "Missing a comma or ] after an array element. at offset: 3"),
    (b'[[1,"]["]', "Missing a comma or ] after an array element. at offset: 9"),
    (b'{"a":[1,2}', "Missing a comma or ] after an array element. at offset: 9"),
    ('["ü" 1]'.encode(), "Missing a comma or ] after an array element. at offset: 6"),
    (b"{} x", "The document root must not be followed by other values. at offset: 3"),
    (b"Inf 1", "The document root must not be followed by other values. at offset: 4"),
    (b"01", "The document root must not be followed by other values. at offset: 1"),
    (b'{"a": "x', "Missing a closing quotation mark in string. at offset: 8"),
    (b'["\\"', "Missing a closing quotation mark in string. at offset: 4"),
    (b'["\\', "Invalid escape character in string. at offset: 2"),
    (b'{"a": "\\x"}', "Invalid escape character in string. at offset: 7"),
    (b'{"a": "\\uzz"}', "Incorrect hex digit after \\u escape in string. at offset: 7"),
    (b'{"a": "\\ud800"}', "The surrogate pair in string is invalid. at offset: 7"),
    (b'{"a": 1.}', "Miss fraction part in number. at offset: 8"),
    (b"[1.", "Miss fraction part in number. at offset: 3"),
    (b'{"a": 1e}', "Miss exponent in number. at offset: 8"),
    (b"[1e", "Miss exponent in number. at offset: 3"),
    (b'{"a": 1e999}', "Number too big to be stored in double. at offset: 6"),
]


@pytest.mark.parametrize(("body", "fault"), FAULTS, ids=[repr(body) for body, _ in FAULTS])
def test_a_fault_has_rapidjsons_words_and_place(body: bytes, fault: str) -> None:
    assert syntax_fault(body) == fault
    with pytest.raises(ServingError) as caught:
        load(body)
    assert caught.value.message == f"JSON Parse error: {fault}"


def test_an_empty_body_is_told_as_tensorflow_serving_does() -> None:
    with pytest.raises(ServingError) as caught:
        load(b"")
    assert caught.value.message == "JSON Parse error: The document is empty"


@pytest.mark.parametrize("body", [b"{}", b"[NaN, -Infinity]", b"[-NaN,Inf,-Inf]", b'{"a": [1, "]"]}'])
def test_what_is_json_has_no_fault(body: bytes) -> None:
    assert syntax_fault(body) is None


@given(st.text(st.sampled_from('{}[],:"01.eE- tnx\\NaNInfity')) | st.text(), st.integers(0, 40))
def test_whatever_is_no_json_has_a_fault_or_orjsons_own_words(text: str, cut: int) -> None:
    for body in (text.encode(), json.dumps({"a": [text, 1.5], text: None}).encode()[:cut]):
        fault = syntax_fault(body)
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError:
            assert fault is None or fault.rpartition(" ")[2].isdigit()
        else:
            assert fault is None


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 2**22, b"[" + b'"a",' * 2**21, b"[" * 2**22, b'{"":"' + b"x" * 2**23])
def test_a_large_text_is_not_searched_for_its_fault(body: bytes) -> None:
    assert syntax_fault(body) is None


@pytest.mark.timeout(60)  # a search that is not one pass would take minutes
@pytest.mark.parametrize(
    ("text", "is_told"),
    [
        (b'"' + b'\\"' * 2**19, True),
        (b"[" + b'"a",' * 2**18, True),
        (b"[" * 2**20, False),
        (b'{"":"' + b"x" * 2**20, True),
    ],
)
def test_the_fault_of_the_largest_text_that_is_searched_is_found_in_one_pass(text: bytes, is_told: bool) -> None:
    assert (syntax_fault(text[: 2**20]) is not None) == is_told


@pytest.mark.timeout(60)
def test_a_long_number_before_the_end_takes_no_longer_than_its_length() -> None:
    body = b"[[1." + b"0" * 1_000_000 + b"]"
    assert syntax_fault(body) == f"Missing a comma or ] after an array element. at offset: {len(body)}"
