"""Predict's messages on the wire, against TensorFlow's own packages (in another process) and arbitrary bytes."""

from __future__ import annotations

import base64
import json
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from appliance.core.errors import Code, ServingError
from appliance.core.servable import ModelSpec
from appliance.protocols import protos
from appliance.protocols.metadata import metadata_json, signature_def_map
from appliance.protocols.predict_messages import encode_predict_response, open_predict_request
from appliance.protocols.tensor_protos import EXPANDED_BYTES, decode_tensor
from backends.contract import Signature, TensorSpec
from backends.dtypes import DTYPES
from tests.support import official_protos
from tests.support.official_protos import CORNERS, corner, samples
from tests.support.tensor_messages import decode_predict_request, encode_tensor

SAMPLES = samples()


@pytest.fixture(scope="module")
def official() -> Any:
    """What TensorFlow writes, and what it reads of ours."""
    outputs = SAMPLES | {"scalar": np.array(2.5, "f4"), "empty": np.zeros((3, 0), "i8"), "turned": SAMPLES["int16"].T}
    given = {
        name: base64.b64encode(encode_predict_response("m", 3, "serve", outputs, content)).decode()
        for name, content in (("lists", False), ("content", True))
    }
    answer = json.loads(official_protos.ask("tensors", json.dumps(given)))
    return {**answer, "outputs": outputs}


def same(actual: np.ndarray, expected: np.ndarray) -> bool:
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    if actual.dtype == object:
        return bool(actual.tolist() == expected.tolist())
    return actual.tobytes() == expected.tobytes()  # NaNs and signed zeros too


def refusal(data: bytes) -> str:
    with pytest.raises(ServingError) as caught:
        decode_tensor(data)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


def tensor(**fields: Any) -> bytes:
    """A serialized TensorProto, of float32 unless `fields` says otherwise."""
    return corner(protos.TensorProto(), {"dtype": 1, **fields})


def request(**inputs: bytes) -> Any:
    message = protos.PredictRequest()
    message.model_spec.name = "m"
    for name, data in inputs.items():
        message.inputs[name].MergeFromString(data)
    return message


# Against TensorFlow


def test_every_served_dtype_has_a_sample() -> None:
    assert set(SAMPLES) == {dtype.name for dtype in DTYPES}


@pytest.mark.parametrize("encoding", ["default", "list"])
@pytest.mark.parametrize("dtype", SAMPLES)
def test_official_requests_decode_to_their_arrays(official: Any, dtype: str, encoding: str) -> None:
    message = decode_predict_request(base64.b64decode(official["requests"][dtype][encoding]))
    assert message.spec == ModelSpec("m", 3)
    assert message.signature_name == "serve"
    assert message.output_filter == ("b", "a")
    assert list(message.inputs) == ["x"]
    assert same(message.inputs["x"], SAMPLES[dtype])


@pytest.mark.parametrize("name", CORNERS)
def test_unusual_tensors_are_read_as_tensorflow_reads_them(official: Any, name: str) -> None:
    expected = official["corners"][name]
    data = corner(protos.TensorProto(), CORNERS[name])
    if expected is None:
        assert refusal(data).startswith("tensor parsing error: ")
    else:
        assert same(decode_tensor(data), official_protos.from_json(expected))


@pytest.mark.parametrize("encoding", ["lists", "content"])
def test_official_client_reads_our_responses(official: Any, encoding: str) -> None:
    response = official["responses"][encoding]
    assert response["spec"] == ["m", 3, "serve"]
    assert response["outputs"].keys() == official["outputs"].keys()
    for name, array in official["outputs"].items():
        assert same(official_protos.from_json(response["outputs"][name]), array), name


# Requests


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"version": protos.Int64Value(value=7)}, ModelSpec("m", 7)),
        ({"version": protos.Int64Value()}, ModelSpec("m", 0)),
        ({"version_label": "stable"}, ModelSpec("m", None, "stable")),
        ({}, ModelSpec("m")),
    ],
)
def test_model_spec_has_at_most_one_of_version_and_label(fields: dict[str, Any], expected: ModelSpec) -> None:
    message = protos.PredictRequest(model_spec=protos.ModelSpec(name="m", **fields))
    assert decode_predict_request(message.SerializeToString()).spec == expected


def test_request_without_a_model_is_refused() -> None:
    for data, expected in ((b"", "Missing ModelSpec"), (b"\x0a\x00", "ModelSpec has no name specified.")):
        with pytest.raises(ServingError, match=expected) as caught:
            decode_predict_request(data)
        assert caught.value.code is Code.INVALID_ARGUMENT


def test_last_of_two_inputs_with_one_name_wins() -> None:
    data = request(x=tensor(float_val=[1])).SerializeToString() + request(x=tensor(float_val=[2])).SerializeToString()
    assert decode_predict_request(data).inputs["x"] == 2


def test_unknown_fields_are_skipped() -> None:
    unknown = b"\x2a\x02hi\x98\x06\x01\xa5\x06abcd\xa3\x06\x08\x01\xa4\x06"  # bytes, varint, fixed, group
    data = unknown + request(x=tensor(float_val=[1]) + unknown[4:]).SerializeToString() + unknown
    assert decode_predict_request(data).inputs["x"] == 1


def test_unpacked_and_chunked_lists_are_joined() -> None:
    one, two = np.float32(1).tobytes(), np.float32(2).tobytes()
    shape = b"\x12\x04\x12\x02\x08\x02"
    for floats in (
        b"\x2d" + one + b"\x2d" + two,
        b"\x2a\x04" + one + b"\x2a\x04" + two,
        b"\x2d" + one + b"\x2a\x04" + two,
    ):
        for data in (b"\x08\x01" + shape + floats, floats + shape + b"\x08\x01"):
            assert decode_tensor(data).tolist() == [1, 2]
    assert decode_tensor(b"\x08\x03" + shape + b"\x38\x05" + b"\x3a\x01\x06").tolist() == [5, 6]


def test_shape_in_two_parts_is_merged() -> None:
    assert decode_tensor(b"\x08\x01" + b"\x12\x04\x12\x02\x08\x02" * 2).shape == (2, 2)


def test_large_tensors_are_views_of_the_request() -> None:
    array = np.arange(1000, dtype="f4")
    for content in (False, True):
        data = request(x=encode_tensor(array, content)).SerializeToString()
        decoded = decode_predict_request(data).inputs["x"]
        assert np.shares_memory(decoded, np.frombuffer(data, np.uint8))
        assert not decoded.flags.writeable


# Refusals


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dtype": 20}, "dtype DT_RESOURCE is not supported"),
        ({"dtype": 101}, "dtype DT_FLOAT_REF is not supported"),
        ({"dtype": -1}, "dtype"),
        ({"dtype": 0}, "dtype DT_INVALID is not supported"),
        ({"shape": [3], "tensor_content": b"1234"}, "tensor_content has 4 bytes, the shape and dtype ask for 12"),
        ({"shape": [2, -3]}, r"the shape \[2, -3\] has a negative dimension"),
        ({"shape": [1] * 65, "float_val": [1]}, "65 dimensions"),
        ({"shape": [10**12], "float_val": [1]}, "takes more than"),
        ({"shape": [2**40, 2**40], "float_val": [1]}, "takes more than"),
        ({"dtype": 18, "shape": [0, 2**59]}, "too large"),
        ({"dtype": 7, "shape": [1000], "string_val": [b"x" * 100_000]}, "repeated 999 times is too large"),
        ({"dtype": 7, "shape": [10**6 + 1], "string_val": [b"x"]}, r"has 1,000,001 strings, more than 1,000,000"),
        ({"dtype": 7, "shape": [10**6 + 1], "tensor_content": b"\0" * (10**6 + 1)}, r"has 1,000,001 strings"),
        ({"dtype": 7, "shape": [1], "string_val": [b""] * (2**20 + 1)}, r"more than 1,048,576 fields; .* in several"),
    ],
)
def test_refusal_says_what_is_wrong(fields: dict[str, Any], reason: str) -> None:
    data = request(x=tensor(**fields)).SerializeToString()
    with pytest.raises(ServingError, match=f"tensor parsing error: x: .*{reason}") as caught:
        decode_predict_request(data)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_tensor_is_read_only_when_it_is_asked_for() -> None:
    envelope = open_predict_request(request(x=tensor(shape=[-1])).SerializeToString())
    assert (envelope.spec, envelope.names) == (ModelSpec("m"), {"x"})
    with pytest.raises(ServingError, match=r"tensor parsing error: x: .*negative"):
        envelope.arrays()


def test_list_of_part_of_a_float_is_refused() -> None:
    assert "float_val has 3 bytes" in refusal(b"\x08\x01\x2a\x03123")


def test_repetition_is_bounded_over_all_inputs_of_a_request() -> None:
    one = tensor(shape=[EXPANDED_BYTES // 4], float_val=[1])
    assert decode_predict_request(request(x=one).SerializeToString()).inputs["x"].nbytes == EXPANDED_BYTES
    with pytest.raises(ServingError, match="takes more than the 0 bytes left"):
        decode_predict_request(request(x=one, y=one).SerializeToString())


def test_malformed_list_of_another_dtype_is_refused() -> None:
    assert "could not parse" in refusal(b"\x08\x0a\x2a\x03123")


def test_names_that_are_not_utf8_are_refused() -> None:
    data = request(x=tensor(float_val=[1])).SerializeToString().replace(b"\x0a\x01x", b"\x0a\x01\xff")
    with pytest.raises(ServingError, match=r"could not parse tensorflow\.serving\.PredictRequest"):
        decode_predict_request(data)


def test_output_of_a_type_that_the_api_lacks_is_an_internal_error() -> None:
    with pytest.raises(ServingError, match="datetime64") as caught:
        encode_tensor(np.zeros(2, "M8[s]"))
    assert caught.value.code is Code.INTERNAL


def valid_requests() -> list[bytes]:
    found = []
    for name, array in SAMPLES.items():
        message = request(x=encode_tensor(array), **{name: encode_tensor(array, True)})
        message.model_spec.version.value = 300
        message.output_filter.append("out")
        found.append(message.SerializeToString())
    return found + [request(x=corner(protos.TensorProto(), fields)).SerializeToString() for fields in CORNERS.values()]


VALID = valid_requests()


def is_decoded_or_refused(data: bytes) -> None:
    for decode in (decode_predict_request, decode_tensor):
        try:
            decode(data)
        except ServingError as error:
            code = error.code
        else:
            code = Code.INVALID_ARGUMENT
        assert code is Code.INVALID_ARGUMENT


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_decoded_or_refused(data: bytes) -> None:
    is_decoded_or_refused(data)
    message = request(x=b"").SerializeToString()
    is_decoded_or_refused(message + bytes([0x12, len(data) % 128]) + data)


def test_truncated_requests_are_decoded_or_refused() -> None:
    for data in VALID:
        for end in range(len(data)):
            is_decoded_or_refused(data[:end])


@given(st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=500)
def test_mutated_requests_are_decoded_or_refused(data: bytes, changes: list[tuple[int, int]]) -> None:
    mutated = bytearray(data)
    for position, byte in changes:
        mutated[position % len(mutated)] = byte
    is_decoded_or_refused(bytes(mutated))


@given(st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=3))
def test_the_walk_and_the_parser_agree(data: bytes, changes: list[tuple[int, int]]) -> None:
    """A message is read alike whether it is walked or, because of an unknown field in front, parsed."""
    mutated = bytearray(data)
    for position, byte in changes:
        mutated[position % len(mutated)] = byte

    def read(data: bytes) -> Any:
        try:
            message = decode_predict_request(data)
        except ServingError:
            return None
        arrays = {name: official_protos.to_json(array) for name, array in message.inputs.items()}
        return message._replace(inputs={}), arrays

    assert read(bytes(mutated)) == read(b"\xa0\x06\x01" + bytes(mutated))


# Round trips


def arrays() -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
    numbers = [dtype.numpy for dtype in DTYPES if dtype.numpy.kind not in "OV"]
    strings = shapes.flatmap(lambda shape: hnp.arrays(object, shape, elements=st.binary(max_size=9)))
    brain = hnp.arrays("f4", shapes).map(lambda array: array.astype(ml_dtypes.bfloat16))
    return st.one_of(st.sampled_from(numbers).flatmap(lambda dtype: hnp.arrays(dtype, shapes)), strings, brain)


@given(arrays(), st.booleans(), st.booleans())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # float32 beyond bfloat16
def test_tensors_survive_a_round_trip(array: np.ndarray, tensor_content: bool, turned: bool) -> None:
    array = array.T if turned else array
    data = encode_tensor(array, tensor_content)
    assert same(decode_tensor(data), array)
    assert same(decode_tensor(protos.TensorProto.FromString(data).SerializeToString()), array)


def test_response_is_in_the_order_of_its_fields() -> None:
    outputs = {"b": np.ones(2, "f4"), "a": np.zeros((), "i8")}
    data = encode_predict_response("m", 300, "serve", outputs)
    message = protos.PredictResponse.FromString(data)
    assert data.index(b"\x0a\x01b") < data.index(b"\x0a\x01a") < data.index(message.model_spec.SerializeToString())
    assert (message.model_spec.name, message.model_spec.version.value) == ("m", 300)
    assert message.outputs["a"].tensor_shape == protos.TensorShapeProto()


@pytest.mark.parametrize("dtype", SAMPLES)
def test_only_strings_stay_in_their_list_when_content_is_asked_for(dtype: str) -> None:
    response = encode_predict_response("m", 1, "serve", {"y": SAMPLES[dtype]}, tensor_content=True)
    output = protos.PredictResponse.FromString(response).outputs["y"]
    assert bool(output.tensor_content) == (dtype != "string")
    assert list(output.string_val) == (SAMPLES[dtype].reshape(-1).tolist() if dtype == "string" else [])


# Metadata

SIGNATURES = {
    "serve": Signature(
        {"x": TensorSpec("float32", (-1, 3), "x:0"), "s": TensorSpec("string", None, "s:0")},
        {"y": TensorSpec("int64", (), "y:0")},
    )
}


def test_signature_def_map_tells_names_types_and_shapes() -> None:
    definition = signature_def_map(SIGNATURES).signature_def["serve"]
    assert definition.method_name == "tensorflow/serving/predict"
    assert definition.inputs["x"].name == "x:0"
    assert definition.inputs["x"].dtype == protos.DataType.Value("DT_FLOAT")
    assert [dim.size for dim in definition.inputs["x"].tensor_shape.dim] == [-1, 3]
    assert definition.inputs["s"].tensor_shape.unknown_rank
    assert not definition.outputs["y"].tensor_shape.unknown_rank


def test_signature_def_map_tells_the_defaults() -> None:
    value = encode_tensor(np.array([2.5], "f4"))
    signature = Signature({"x": TensorSpec("float32", (-1,), "x:0")}, {}, defaults={"x": value})
    definition = signature_def_map({"serve": msgspec.convert(msgspec.to_builtins(signature), Signature)}).signature_def[
        "serve"
    ]
    assert definition.defaults["x"] == protos.TensorProto.FromString(value)


def test_metadata_json_is_tensorflow_servings() -> None:
    def info(name: str, dtype: str, dims: list[str], unknown: bool = False) -> dict[str, Any]:
        shape = {"dim": [{"size": size, "name": ""} for size in dims], "unknown_rank": unknown}
        return {"name": name, "dtype": dtype, "tensor_shape": shape}

    assert metadata_json("m", 123, SIGNATURES) == {
        "model_spec": {"name": "m", "signature_name": "", "version": "123"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serve": {
                        "inputs": {"x": info("x:0", "DT_FLOAT", ["-1", "3"]), "s": info("s:0", "DT_STRING", [], True)},
                        "outputs": {"y": info("y:0", "DT_INT64", [])},
                        "method_name": "tensorflow/serving/predict",
                        "defaults": {},
                    }
                }
            }
        },
    }
