"""The Open Inference Protocol's requests and answers, in each form that it has."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from appliance.core.errors import Code, ServingError
from appliance.core.servable import ModelSpec
from appliance.protocols import protos
from appliance.protocols.v2.datatypes import BY_DATATYPE, datatype
from appliance.protocols.v2.infer_messages import encode_infer_response, open_infer_request
from appliance.protocols.v2.inference import InferRequest
from appliance.protocols.v2.json_inference import answer_pieces, binary_contents, parse_request
from appliance.protocols.wire_format import varint
from backends.contract import Signature, TensorSpec

LISTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
NAMES = sorted(BY_DATATYPE)


def signature_of(name: str, outputs: Sequence[str] = ("y",)) -> Signature:
    spec = TensorSpec(BY_DATATYPE[name].name, None)
    return Signature({"x": spec}, dict.fromkeys(outputs, spec))


@st.composite
def tensors(draw: st.DrawFn, names: Sequence[str] = NAMES, text: bool = False) -> tuple[str, np.ndarray]:
    """A datatype and an array of it, of any shape; `text`: strings are UTF-8."""
    name = draw(st.sampled_from(names))
    shape = draw(arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = int(np.prod(shape))
    element = BY_DATATYPE[name]
    if name == "BYTES":
        one = st.text().map(str.encode) if text else st.binary(max_size=20)
        values = np.empty(size, object)
        values[:] = draw(st.lists(one, min_size=size, max_size=size))
    elif name == "BF16":
        bits = draw(st.lists(st.integers(0, 2**16 - 1), min_size=size, max_size=size))
        values = np.array(bits, np.uint16).view(ml_dtypes.bfloat16)
    else:
        values = draw(arrays_of.arrays(element.numpy, (size,)))
    return name, values.reshape(shape)


def equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether both are the same, NaN included, whatever its bits."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.dtype == object:
        return bool(one.tolist() == other.tolist())
    if one.dtype.kind in "fV":
        nan = np.isnan(one)
        return bool((nan == np.isnan(other)).all()) and bool((one[~nan] == other[~nan]).all())
    return bool((one == other).all())


def raw(array: np.ndarray) -> bytes:
    """The binary data of an array, as the documentation describes it."""
    if array.dtype != object:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(value)) + value for value in array.ravel())


def body_of(name: str, array: np.ndarray, **more: Any) -> tuple[bytes, int]:
    """A request with the array as binary data, and the size of its JSON."""
    contents = raw(array)
    tensor = {"name": "x", "datatype": name, "shape": array.shape, "parameters": {"binary_data_size": len(contents)}}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + contents, len(head)


def json_values(array: np.ndarray) -> Any:
    """The flat list of an array's elements, for JSON."""
    if array.dtype == object:
        return [value.decode() for value in array.ravel()]
    wide = array.astype(np.float32) if array.dtype.kind == "V" else array
    return wide.ravel().tolist()


@given(tensors())
def test_binary_data_is_read_as_it_was_written(sent: tuple[str, np.ndarray]) -> None:
    name, array = sent
    body, size = body_of(name, array)
    assert equal(parse_request(body, size).arrays(signature_of(name))["x"], array)


@given(tensors(text=True), st.booleans())
def test_json_data_is_read_flat_and_nested(sent: tuple[str, np.ndarray], nested: bool) -> None:
    name, array = sent
    values = json_values(array)
    if nested and array.size and array.ndim:
        grid = np.empty(array.size, object)
        grid[:] = values
        values = grid.reshape(array.shape).tolist()
    tensor = {"name": "x", "datatype": name, "shape": array.shape, "data": values}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert equal(parse_request(body, None).arrays(signature_of(name))["x"], array)


@given(tensors())
def test_raw_contents_are_read_as_they_were_written(sent: tuple[str, np.ndarray]) -> None:
    name, array = sent
    message = protos.ModelInferRequest(model_name="m", id="7", raw_input_contents=[raw(array)])
    message.inputs.add(name="x", datatype=name, shape=array.shape)
    opened = open_infer_request(message.SerializeToString())
    assert opened.request.id == "7"
    assert equal(opened.request.arrays(signature_of(name))["x"], array)


@given(tensors(names=sorted(LISTS)))
def test_typed_contents_are_read_as_they_were_written(sent: tuple[str, np.ndarray]) -> None:
    name, array = sent
    message = protos.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=name, shape=array.shape)
    getattr(tensor.contents, LISTS[name]).extend(array.ravel().tolist())
    assert equal(open_infer_request(message.SerializeToString()).request.arrays(signature_of(name))["x"], array)


def read_json_answer(request: InferRequest, outputs: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """The answer's JSON, and what follows it."""
    binary = binary_contents(request, outputs)
    sizes = {name: len(contents) for name, contents in binary.items()}
    text = b"".join(answer_pieces(request, "m", 3, outputs, sizes))
    return json.loads(text), b"".join(binary.values())


@given(tensors(text=True), st.booleans())
def test_an_answer_is_what_the_model_gave(given_: tuple[str, np.ndarray], binary: bool) -> None:
    name, array = given_
    request = parse_request(
        b'{"id":"a","inputs":[],"parameters":{"binary_data_output":%s}}' % (b"true" if binary else b"false"), None
    )
    document, rest = read_json_answer(request, {"y": array})
    (output,) = document["outputs"]
    assert (document["model_name"], document["model_version"], document["id"]) == ("m", "3", "a")
    assert (output["name"], output["datatype"], output["shape"]) == ("y", name, list(array.shape))
    if binary:
        assert (output["parameters"], rest) == ({"binary_data_size": len(rest)}, raw(array))
        return
    read = np.empty(array.size, array.dtype)
    read[:] = [value.encode() for value in output["data"]] if name == "BYTES" else output["data"]
    assert equal(read.reshape(array.shape), array)


@given(tensors())
def test_an_answer_over_grpc_has_raw_contents(given_: tuple[str, np.ndarray]) -> None:
    name, array = given_
    request = InferRequest([], id="q")
    message = protos.ModelInferResponse.FromString(encode_infer_response(request, "m", 3, {"y": array, "z": array}))
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "q")
    assert [(out.name, out.datatype, tuple(out.shape)) for out in message.outputs] == [
        ("y", name, array.shape),
        ("z", name, array.shape),
    ]
    assert list(message.raw_output_contents) == [raw(array)] * 2


def one_input(**changed: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2], **changed}
    return {name: value for name, value in tensor.items() if value is not None}


SIGNATURE = signature_of("FP32", ("y", "z"))


def read_whole(body: bytes, json_bytes: int | None) -> dict[str, np.ndarray]:
    request = parse_request(body, json_bytes)
    request.wanted(SIGNATURE)
    return request.arrays(SIGNATURE)


BINARY = {"binary_data_size": 8}


@pytest.mark.parametrize(
    ("document", "tail", "reason"),
    [
        ({}, b"", "no inputs"),
        ({"inputs": {}}, b"", "inputs is no list of objects"),
        ({"inputs": [1]}, b"", "inputs is no list of objects"),
        ({"inputs": []}, b"", "missing input 'x'"),
        ({"inputs": [one_input(), one_input()]}, b"", "sent twice"),
        ({"inputs": [one_input(name="w")]}, b"", "unexpected input 'w'; the signature takes x"),
        ({"inputs": [one_input(name=None)]}, b"", "inputs[0] has no name"),
        ({"inputs": [one_input(name=5)]}, b"", "name of inputs[0] is no text"),
        ({"inputs": [one_input(datatype="FP64")]}, b"", "sent as FP64, but the model takes FP32"),
        ({"inputs": [one_input(datatype="FP99")]}, b"", "sent as FP99, but the model takes FP32"),
        ({"inputs": [one_input(datatype=None)]}, b"", "no datatype"),
        ({"inputs": [one_input(shape=None)]}, b"", "no shape"),
        ({"inputs": [one_input(shape=[2.0])]}, b"", "no shape"),
        ({"inputs": [one_input(shape=[True, 2])]}, b"", "no shape"),
        ({"inputs": [one_input(shape=[-1])]}, b"", "negative dimension"),
        ({"inputs": [one_input(shape=[3])]}, b"", "data has the shape [2], but the shape [3] is stated"),
        ({"inputs": [one_input(shape=[2**62, 4])]}, b"", "too large"),
        ({"inputs": [one_input(shape=[2**62, 0])]}, b"", "too large"),
        ({"inputs": [one_input(shape=[2**61, 0], data=[])]}, b"", "too large"),
        ({"inputs": [one_input(shape=[1] * 65)]}, b"", "65 dimensions"),
        ({"inputs": [one_input(data=[1, "2"])]}, b"", "a value that is no FP32"),
        ({"inputs": [one_input(data=[[1], [2, 3]])]}, b"", "different lengths"),
        ({"inputs": [one_input(data=7)]}, b"", "data is no list"),
        ({"inputs": [one_input(data=None)]}, b"", "neither data nor binary_data_size"),
        ({"inputs": [one_input(parameters=BINARY)]}, b"12345678", "both data and binary_data_size"),
        ({"inputs": [one_input(data=None, parameters=BINARY)]}, b"1234567", "7 bytes are left"),
        ({"inputs": [one_input(data=None, parameters=BINARY)]}, b"123456789", "1 bytes follow the last"),
        ({"inputs": [one_input(data=None, parameters={"binary_data_size": -8})]}, b"", "no whole number from 0"),
        ({"inputs": [one_input(data=None, parameters={"binary_data_size": 2**70})]}, b"", "no whole number from 0"),
        ({"inputs": [one_input(data=None, parameters={"binary_data_size": 4})]}, b"1234", "takes 8"),
        ({"inputs": [one_input(parameters=[])]}, b"", "the parameters of inputs[0] are no object"),
        ({"inputs": [one_input()], "outputs": [{"name": "q"}]}, b"", "unexpected output 'q'; the signature gives y, z"),
        ({"inputs": [one_input()], "outputs": [{"name": "y"}, {"name": "y"}]}, b"", "requested twice"),
        ({"inputs": [one_input()], "outputs": [{}]}, b"", "outputs[0] has no name"),
        ({"inputs": [one_input()], "id": 5}, b"", "id of the request is no text"),
        ({"inputs": [one_input()], "parameters": {"signature_name": 1}}, b"", "signature_name"),
        ({"inputs": [one_input()], "parameters": {"binary_data_output": 1}}, b"", "neither true nor false"),
        ({"inputs": [one_input(name=f"x{i}") for i in range(10_000)]}, b"", "unexpected input"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_the_reason(
    document: Mapping[str, Any], tail: bytes, reason: str
) -> None:
    head = json.dumps(document).encode()
    with pytest.raises(ServingError) as caught:
        read_whole(head + tail, len(head) if tail else None)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert reason in str(caught.value)


@pytest.mark.parametrize("size", [0, 3, 10**18])
def test_a_header_that_states_another_size_of_the_json_is_refused(size: int) -> None:
    with pytest.raises(ServingError) as caught:
        parse_request(b'{"inputs":[]}', size)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("contents", "shape", "reason"),
    [
        (b"\x01\x00\x00\x00", [1], "BYTES element 0 should have 1 bytes, of which 0 are there"),
        (b"\xff\xff\xff\xffab", [1], "should have 4,294,967,295 bytes"),
        (b"\x01\x00\x00\x00ab", [1], "1 bytes follow the last"),
        (b"\x02\x00\x00\x00a", [2], "too few for 2 BYTES elements"),
        (b"\x04\x00\x00\x00abcd\x00", [2], "end before the length of element 1"),
        (b"", [10**6], "too few for 1,000,000 BYTES elements"),
        (b"", [10**6 + 1], "1,000,001 BYTES elements are more than 1,000,000"),
    ],
)
def test_strings_whose_lengths_lie_are_refused(contents: bytes, shape: list[int], reason: str) -> None:
    tensor = {"name": "x", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(contents)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(ServingError, match=reason):
        parse_request(head + contents, len(head)).arrays(signature_of("BYTES"))


def test_a_bool_is_the_byte_0_or_1() -> None:
    tensor = {"name": "x", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}}
    head = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(ServingError, match="neither 0 nor 1"):
        parse_request(head + b"\x01\x02", len(head)).arrays(signature_of("BOOL"))


@pytest.mark.parametrize("name", ["shared_memory_region", "classification"])
@pytest.mark.parametrize("owner", ["inputs", "outputs"])
def test_what_this_server_does_not_do_is_said(name: str, owner: str) -> None:
    document = {"inputs": [one_input()], "outputs": [{"name": "y"}]}
    document[owner][0]["parameters"] = {name: 1}
    with pytest.raises(ServingError) as caught:
        parse_request(json.dumps(document).encode(), None)
    assert caught.value.code is Code.UNIMPLEMENTED


def test_each_output_is_sent_as_it_was_asked_for() -> None:
    document = {
        "inputs": [one_input()],
        "outputs": [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}],
        "parameters": {"binary_data_output": True, "signature_name": "other", "timeout": 1500},
    }
    request = parse_request(json.dumps(document).encode(), None)
    assert (request.signature_name, request.timeout_us) == ("other", 1500)
    assert request.wanted(SIGNATURE) == ["z", "y"]
    assert [request.is_binary(name) for name in ("z", "y")] == [False, True]


def test_text_that_is_not_utf8_needs_binary_data() -> None:
    array = np.array([b"\xff"], object)
    with pytest.raises(ServingError, match=r"'y' holds bytes that are not UTF-8 text.*binary_data"):
        list(answer_pieces(InferRequest([]), "m", 1, {"y": array}, {}))


def test_complex_numbers_are_refused_and_shown_by_tensorflows_name() -> None:
    array = np.zeros(2, np.complex64)
    with pytest.raises(ServingError) as caught:
        encode_infer_response(InferRequest([]), "m", 1, {"y": array})
    assert caught.value.code is Code.UNIMPLEMENTED
    assert datatype(TensorSpec("complex64", None).element) == "COMPLEX64"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.ClearField("model_name"), "names no model"),
        (lambda m: m.raw_input_contents.append(b"1"), "2 raw_input_contents were sent for 1 inputs"),
        (lambda m: m.inputs[0].contents.fp32_contents.append(1), "contents beside raw_input_contents"),
        (lambda m: m.parameters["signature_name"].__setattr__("int64_param", 1), "signature_name is no text"),
        (lambda m: m.__setattr__("model_version", "9" * 19), "too large"),
    ],
)
def test_a_message_that_does_not_fit_is_refused_with_the_reason(change: Any, reason: str) -> None:
    message = protos.ModelInferRequest(model_name="m", raw_input_contents=[b"\0\0\0\0"])
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    change(message)
    with pytest.raises(ServingError, match=reason):
        open_infer_request(message.SerializeToString())


@pytest.mark.parametrize(
    ("name", "field", "values", "reason"),
    [
        ("INT8", "int_contents", [128], "a number that is no INT8"),
        ("UINT8", "uint_contents", [256], "a number that is no UINT8"),
        ("FP32", "fp64_contents", [1.0], "1 elements are in fp64_contents; those of FP32 go in fp32_contents"),
        ("FP32", "fp32_contents", [1.0, 2.0], "has 2 elements, but the shape .1. has 1"),
        ("FP16", "fp32_contents", [1.0], "no typed contents"),
    ],
)
def test_typed_contents_that_do_not_fit_are_refused(name: str, field: str, values: list[Any], reason: str) -> None:
    message = protos.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=name, shape=[1])
    getattr(tensor.contents, field).extend(values)
    with pytest.raises(ServingError, match=reason):
        open_infer_request(message.SerializeToString()).request.arrays(signature_of(name))


def _inputs_with(count: int, data: bytes) -> bytes:
    """A request of `count` inputs, each with these fields."""
    return b"\x0a\x01m" + (b"\x2a" + varint(len(data)) + data) * count


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_inputs_with(20_000, b"\x0a\x05abcde"), "more than 10,000 fields"),
        (_inputs_with(9_000, b"\x22\x08\x0a\x02ab\x12\x02\x08\x01" * 2), "more than 10,000 fields"),
        (_inputs_with(400, b"\x78\x01" * 5000), "more than 10,000 fields"),
        (_inputs_with(10, b"\x2a" + varint(400_000) + b"\x08\x01" * 200_000), "typed contents more than 1,000,000"),
        (_inputs_with(1, b"\x1a" + varint(200_000) + b"\x01" * 200_000), "the shapes take 200,000 bytes"),
        (_inputs_with(1, (b"\x1a" + varint(65_536) + b"\x01" * 65_536) * 4), "the shapes take 262,144 bytes"),
        (_inputs_with(1, b"\x1a" + varint(65) + b"\x01" * 65), "65 dimensions"),
        (_inputs_with(1, b"\x2a" + varint(2_400_000) + b"\x42\x00" * 1_200_000), "typed contents more than 1,000,000"),
    ],
)
def test_so_many_fields_that_parsing_would_take_memory_are_refused_before(data: bytes, reason: str) -> None:
    with pytest.raises(ServingError, match=reason):
        open_infer_request(data)


@pytest.mark.parametrize("data", [b"\x0a\x05m", b"\xff\xff", b"\x3a\xff\xff\xff\xff\x0f", b"\x0a\x01\xff"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(ServingError) as caught:
        open_infer_request(data)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_length_with_more_bytes_than_it_needs_is_read_too() -> None:
    message = protos.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype="UINT8", shape=[2])
    data = message.SerializeToString() + b"\x3a\x82\x00ab"
    assert open_infer_request(data).request.arrays(signature_of("UINT8"))["x"].tobytes() == b"ab"


@pytest.mark.parametrize(
    ("version", "spec"),
    [("", ModelSpec("m")), ("007", ModelSpec("m", 7)), ("stable", ModelSpec("m", label="stable"))],
)
def test_a_version_is_a_number_or_a_label(version: str, spec: ModelSpec) -> None:
    message = protos.ModelInferRequest(model_name="m", model_version=version)
    assert open_infer_request(message.SerializeToString()).spec == spec
