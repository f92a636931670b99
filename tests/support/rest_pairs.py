"""Requests to TensorFlow Serving's REST API and what it answers: the cases of its own tests
(`http_rest_api_handler_test`, `json_tensor_test`, `tensorflow_model_server_test`) and of its documentation
(`api_rest.md`), on the models of `test_conformance_pairs`. Where no test of theirs has a case, the answer is what their
sources say.
"""

# ruff: noqa: UP031 -- JSON is full of braces

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["PAIRS", "Rest"]

NAN, INF = float("nan"), float("inf")


class Rest(NamedTuple):
    """`request`: a verb and a path, or a path below /v1/models/ (POST with a body, else GET).

    `answer`: the JSON document; or the error's text, in which "…" stands for anything, and to whose end we may add what
    to do; or None where only the status counts.
    """

    request: str
    body: str | None
    status: int
    answer: Any


def _get(request: str, status: int, answer: Any) -> Rest:
    return Rest(request, None, status, answer)


def _predict(body: str, answer: Any, model: str = "test_model", status: int | None = None) -> Rest:
    """A predict: 400 with an error, else 200."""
    return Rest(f"{model}:predict", body, status or (400 if isinstance(answer, str) else 200), answer)


def _row(value: str, answer: Any, model: str = "test_model") -> Rest:
    return _predict('{"instances": %s}' % value, answer if isinstance(answer, str) else {"predictions": answer}, model)


def _column(value: str, answer: Any, model: str = "test_model") -> Rest:
    return _predict('{"inputs": %s}' % value, answer if isinstance(answer, str) else {"outputs": answer}, model)


def _typed(dtype: str, value: str, answer: Any) -> Rest:
    """`value` to the input of that type, and back. An error of one value, or the values."""
    outputs = answer if isinstance(answer, str) else {"outputs": {"double": answer * 2, "y": answer}}
    return _predict('{"signature_name": "%s", "inputs": %s}' % (dtype, value), outputs, "dtypes")


def _classify(body: str, answer: Any, model: str = "test_model", status: int | None = None) -> Rest:
    wanted = answer if isinstance(answer, str) else {"results": answer}
    return Rest(f"{model}:classify", body, status or (400 if isinstance(answer, str) else 200), wanted)


def _regress(body: str, answer: Any, model: str = "test_model", status: int | None = None) -> Rest:
    wanted = answer if isinstance(answer, str) else {"results": answer}
    return Rest(f"{model}:regress", body, status or (400 if isinstance(answer, str) else 200), wanted)


def _example(features: str, answer: Any) -> list[Rest]:
    """One example to both methods: what it makes of n, f and s, or the error."""
    text = '{"signature_name": "classify_text", "examples": [%s]}' % features
    wanted = answer if isinstance(answer, str) else [[[label, 0.0] for label in answer]]
    pairs = [_classify(text, wanted, "parsed_examples")]
    if isinstance(answer, str):
        pairs.append(_regress(text.replace("classify_text", "regress_column"), answer, "parsed_examples"))
    return pairs


def _of(dtype: str, value: str, kind: str = "Number") -> str:
    return f"JSON Value: {value} Type: {kind} is not of expected type: {dtype}"


def _element(index: int, error: str, key: str = "") -> str:
    key = f" key: {key}" if key else ""
    return f"Failed to process element: {index}{key} of 'instances' list. Error: INVALID_ARGUMENT: {error}"


_BIGGEST = 2**64 - 1


def _available(*versions: int) -> Any:
    return {
        "model_version_status": [
            {"version": str(version), "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
            for version in versions
        ]
    }


def _malformed(request: str) -> Rest:
    verb, path = request.split(" ", 1)
    return Rest(request, "" if verb in ("POST", "PUT", "PATCH") else None, 400, f"Malformed request: {verb} {path}")


_PATHS = [
    _malformed("GET /v1/foo"),
    _malformed("POST /v1/foo"),
    _malformed("GET /v1/"),
    _malformed("GET /v1/models/debug/model_name"),
    _malformed("POST /v1/models"),
    _malformed("POST /v1/models/test_model"),
    _malformed("POST /v1/models/test_model:explain"),
    _malformed("GET /v1/models/test_model/"),
    _malformed("GET /v1/models/test_model/nothing"),
    _malformed("GET /v1/models/foo:predict"),
    _malformed("GET /v1/models/foo/version/50:predict"),
    _malformed("POST /v1/models/foo/version/50:regress"),
    _malformed("POST /v1/models/foo/versions/HELLO:regress"),
    _malformed("POST /v1/models/foo/versions/-1:regress"),
    _malformed("POST /v1/models/foo/versions/:regress"),
    _malformed("POST /v1/models/foo/metadata"),
    _malformed("POST /v1/models/foo/label/some_label:regress"),
    _malformed("POST /v1/models/foo/versions/50/labels/some_label:regress"),
    _malformed("POST /v1/models/foo/versions/some_label:regress"),
    _malformed("PUT /v1/models/test_model:predict"),
    _malformed("DELETE /v1/models/test_model"),
    _malformed("PATCH /v1/models/test_model"),
    _malformed("OPTIONS /v1/models/test_model:predict"),
    _get("versions/5", 400, "Missing model name in request."),
    _get("labels/stable/metadata", 400, "Missing model name in request."),
    Rest(f"foo/versions/{_BIGGEST}:regress", "", 400, f"Failed to convert version: {_BIGGEST} to numeric."),
    _get(f"test_model/versions/{2**63}", 400, f"Failed to convert version: {2**63} to numeric."),
    _get("GET /", 404, None),
    _get("GET /index", 404, None),
    _get("GET /statuspage", 404, None),
    _get("GET /v1", 404, None),
    _get("GET /v3/models/test_model", 404, None),  # /v2 is the Open Inference Protocol
    Rest("POST /models/test_model:predict", "{}", 404, None),
]


def _info(tensor: str, column: bool = True) -> Any:
    dims = [{"name": "", "size": "-1"}, {"name": "", "size": "1"}] if column else []
    shape = {"dim": dims, "unknown_rank": not column}
    return {"dtype": "DT_FLOAT" if column else "DT_STRING", "name": f"{tensor}:0", "tensor_shape": shape}


def _signature(method: str, source: tuple[str, str], result: tuple[str, str]) -> Any:
    return {
        "inputs": {source[0]: _info(source[1], source[1] != "tf_example")},
        "outputs": {result[0]: _info(result[1])},
        "method_name": f"tensorflow/serving/{method}",
        "defaults": {},
    }


# As half_plus_two_model_metadata.json has it, with the field that SignatureDef has since got.
_METADATA = {
    "model_spec": {"name": "test_model", "signature_name": "", "version": "123"},
    "metadata": {
        "signature_def": {
            "signature_def": {
                "classify_x2_to_y3": _signature("classify", ("inputs", "x2"), ("scores", "y3")),
                "classify_x_to_y": _signature("classify", ("inputs", "tf_example"), ("scores", "y")),
                "regress_x2_to_y3": _signature("regress", ("inputs", "x2"), ("outputs", "y3")),
                "regress_x_to_y": _signature("regress", ("inputs", "tf_example"), ("outputs", "y")),
                "regress_x_to_y2": _signature("regress", ("inputs", "tf_example"), ("outputs", "y2")),
                "serving_default": _signature("predict", ("x", "x"), ("y", "y")),
            }
        }
    },
}

_STATUS = [
    _get("test_model/metadata", 200, _METADATA),
    _get("test_model/versions/123/metadata", 200, _METADATA),
    _get("test_model/labels/Version_Label/metadata", 200, _METADATA),
    _get("test_model", 200, _available(123)),
    _get("test_model/versions/123", 200, _available(123)),
    _get("test_model/versions/0000123", 200, _available(123)),
    _get("test_model/labels/Version_Label", 200, _available(123)),
    _get("test_model/labels/nonexistent", 200, _available(123)),
    _get("GET /V1/MODELS/test_model", 200, _available(123)),
    _get("test%5Fmodel", 200, _available(123)),
    _get("half%20plus", 200, _available(7)),
    _get("half_plus_two", 200, _available(2, 1)),
    _get("half_plus_two/versions/1", 200, _available(1)),
    _get("half_plus_two/labels/stable", 200, _available(2, 1)),
    _get("test_model/versions/7", 404, "Could not find version 7 of model test_model"),
    _get("unknown", 404, "Could not find any versions of model unknown"),
    _get("unknown/versions/1", 404, "Could not find … of model unknown"),
    _get("TEST_MODEL", 404, "Could not find any versions of model TEST_MODEL"),
    _get("metadata", 404, "Could not find any versions of model metadata"),
    _get("unknown/metadata", 404, "Servable not found for request: Latest(unknown)"),
    _get("test_model/versions/7/metadata", 404, "Servable not found for request: Specific(test_model, 7)"),
    _get("test_model/labels/no/metadata", 400, "Unrecognized servable version label: no"),
    _get("broken/metadata", 404, "Servable not found for request: Latest(broken)"),
]

_LOOKUP = [
    _predict('{"instances": [1]}', "Servable not found for request: Latest(foo)", "foo", 404),
    _predict('{"instances": [1]}', "Servable not found for request: Specific(foo, 50)", "foo/versions/50", 404),
    _predict('{"instances": [1]}', "Servable not found for request: Latest(test_model99)", "test_model99", 404),
    _predict(
        '{"instances": [1]}', "Servable not found for request: Specific(test_model, 99)", "test_model/versions/99", 404
    ),
    _predict('{"instances": [1]}', "Servable not found for request: Latest(broken)", "broken", 404),
    _predict('{"instances": ["x"]}', "Unrecognized servable version label: no", "test_model/labels/no"),
    _predict('{"instances": [1]}', "Unrecognized servable version label: no", "foo/labels/no"),
    _predict("instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0", "foo"),
    _predict('{"signature_name": 1}', "… 'signature_name' key must be a string value.", "foo"),
    _predict('{"instances": 1}', "Servable not found for request: Latest(foo)", "foo", 404),
    _classify('{"examples": [{}]}', "Servable not found for request: Latest(foo)", "foo", 404),
    _classify("{}", "…key 'examples' is expected and was not found", "foo"),
    _regress('{"examples": [{}]}', "Servable not found for request: Specific(foo, 2)", "foo/versions/2", 404),
    _regress('{"examples": [{}]}', "Unrecognized servable version label: no", "test_model/labels/no"),
    _row("[1.0, 2.0]", [2.5, 3.0], "test_model/versions/123"),
    _row("[1.0, 2.0]", [2.5, 3.0], "test_model/versions/00123"),
    _row("[1.0, 2.0]", [2.5, 3.0], "test_model/labels/Version_Label"),
    _row("[1.0, 2.0, 5.0]", [3.5, 4.0, 5.5], "half_plus_two"),
    _row("[1.0, 2.0, 5.0]", [2.5, 3.0, 4.5], "half_plus_two/versions/1"),
    _row("[1.0, 2.0, 5.0]", [2.5, 3.0, 4.5], "half_plus_two/labels/stable"),
    _row("[1.0, 2.0, 5.0]", [3.5, 4.0, 5.5], "half_plus_two/labels/canary"),
    _row("[2.0]", [3.0], "half%20plus"),
]

_DOCUMENTS = [
    _predict("", "JSON Parse error: The document is empty"),
    _predict("   ", "JSON Parse error: The document is empty. at offset: 3"),
    _predict("instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
    _predict('{"instances": [1, 2]', "JSON Parse error: Missing a comma or } after an object member. at offset: 20"),
    _predict('{"instances": [1 2]}', "JSON Parse error: Missing a comma or ] after an array element. at offset: 17"),
    _predict('{"instances" [1]}', "JSON Parse error: Missing a colon after a name of object member. at offset: 13"),
    _predict("{instances: [1]}", "JSON Parse error: Missing a name for object member. at offset: 1"),
    _predict(
        '{"inputs": [1]} {}', "JSON Parse error: The document root must not be followed by other values. at offset: 16"
    ),
    _predict('{"inputs": ["\\q"]}', "JSON Parse error: Invalid escape character in string. at offset: 13"),
    _predict('{"inputs": [1.]}', "JSON Parse error: Miss fraction part in number. at offset: …"),
    _predict("[]", "JSON Value: [] Is not object"),
    _predict("[1, 2]", "JSON Value: [… Is not object"),
    _predict("5", "JSON Value: 5 Is not object"),
    _predict("null", "JSON Value: null Is not object"),
    _predict('"instances"', 'JSON Value: "instances" Is not object'),
    _predict("{}", "Missing 'inputs' or 'instances' key"),
    _predict('{"Instances": [1.0]}', "Missing 'inputs' or 'instances' key"),
    _predict('{"signature_name": "serving_default"}', "Missing 'inputs' or 'instances' key"),
    _predict(
        '{"instances": [1], "inputs": [1]}',
        "JSON Value: {… Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist",
    ),
    _predict('{"instances": 5}', "JSON Value: {… Excepting 'instances' to be an list/array"),
    _predict('{"instances": {"x": 5}}', "JSON Value: {… Excepting 'instances' to be an list/array"),
    _predict('{"instances": "abc"}', "JSON Value: {… Excepting 'instances' to be an list/array"),
    _predict('{"instances": []}', "JSON Value: {… No values in 'instances' array"),
    _predict(
        '{"signature_name": 100}',
        "JSON Value: {… not formatted correctly. 'signature_name' key must be a string value.",
    ),
    _predict('{"signature_name": null, "instances": [1]}', "… 'signature_name' key must be a string value."),
    _predict(
        '{"signature_name": "nope", "instances": [1]}',
        'Serving signature name: "nope" not found in signature def',
    ),
    _predict('{"instances": [1]}', 'Serving signature name: "serving_default" not found in signature def', "dtypes"),
    _predict(
        '{"signature_name": "constant", "inputs": {}}', "Failed to get input map for signature: constant", "multi_io"
    ),
    _predict('{"signature_name": "", "instances": [3.0]}', {"predictions": [3.5]}),
    _predict('{"signature_name": "serving_default", "instances": [3.0, 4.0]}', {"predictions": [3.5, 4.0]}),
    _predict('{"signature_name": "serving_default", "inputs": [3.0, 4.0]}', {"outputs": [3.5, 4.0]}),
    _predict('{"signature_name": "regress_x2_to_y3", "instances": [2.0]}', {"predictions": [4.0]}),
    _predict('{"signature_name": "classify_x2_to_y3", "inputs": {"inputs": [[2.0]]}}', {"outputs": [[4.0]]}),
    _predict('{"parameters": {"a": 1}, "instances": [2.0]}', {"predictions": [3.0]}),
    _predict('\ufeff{"instances": [2.0]}', {"predictions": [3.0]}),
    _predict(' \r\n\t{"instances":[2.0]}\n', {"predictions": [3.0]}),
]

_ROWS = [
    _row("[2.0, 3.0, 4.0]", [3.0, 3.5, 4.0]),
    _row("[[1.0, 2.0], [3.0, 4.0]]", [[2.5, 3.0], [3.5, 4.0]]),
    _row("[[[1, 2]], [[3, 4]]]", [[[2.5, 3.0]], [[3.5, 4.0]]]),
    _row("[1, 2.0, 3, 4, 5.003, 0.007, 0.0]", [2.5, 3.0, 3.5, 4.0, 4.5015, 2.0035, 2.0]),
    _row('[{"x": 1.0}, {"x": 2.0}]', [2.5, 3.0]),
    _row('[{"x": [1.0]}, {"x": [2.0]}]', [[2.5], [3.0]]),
    _row("[[], []]", [[], []]),
    _row("[NaN, Infinity, -Infinity]", [NAN, INF, -INF]),
    _row("[-NaN, Inf, -Inf]", [NAN, INF, -INF]),
    _row("[1e1, 1E-1, -0.0]", [7.0, 2.05, 2.0]),
    _row("[1e39, -1e39, 1e-60]", [INF, -INF, 2.0]),
    _row("[16777217]", [8388610.0]),
    _row('["x", "y"]', _element(0, _of("float", '"x"', "String"))),
    _row("[1.0, null]", _element(1, _of("float", "null", "Null"))),
    _row("[true]", _element(0, _of("float", "true", "True"))),
    _row("[false]", _element(0, _of("float", "false", "False"))),
    _row('[[1, 2], ["a", "b"]]', _element(1, _of("float", '"a"', "String"))),
    _row("[[1, 2], [3, 4], [5, 6, 7]]", _element(2, "Expecting tensor size: 2 but got: 3")),
    _row("[[1, 2], [3, 4], [[5, 6]]]", _element(2, "Expecting shape [2] but got: [1,2]")),
    _row("[1, [1]]", _element(1, "Expecting shape [] but got: [1]")),
    _row("[[1], 1]", _element(1, "Expecting shape [1] but got: []")),
    _row("[[1], []]", _element(1, "Expecting tensor size: 1 but got: 0")),
    _row("[[1, [2]]]", _element(0, "Encountered list at unexpected level: 1 expected < 1")),
    _row(
        "[[[1], 2]]",
        _element(0, "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    ),
    _row("[[[1, 2], [3]]]", _element(0, "Encountered list at unexpected size: 1 at level: 1 expected size: 2")),
    _row('[{"x": [1.0]}, [1.0]]', "Expecting object but got list at item 1 of input list"),
    _row('[{"x": [1.0]}, 1.0]', "Expecting object but got list at item 1 of input list"),
    _row('[[1.0], {"x": [1.0]}]', "Expecting value/list but got object at item 1 of input list"),
    _row('[{"z": 1.0}]', _element(0, "JSON object: does not have named input: z", "z")),
    _row('[{"x": 1.0, "z": 1.0}]', _element(0, "JSON object: does not have named input: z", "z")),
    _row("[{}]", "Failed to process element: 0 of 'instances' list. JSON object: {} keys must be equal to: x"),
    _row('[{"x": 1.0}, {"x": [2.0]}]', _element(1, "Expecting shape [] but got: [1]", "x")),
    _row('[{"x": "a"}]', _element(0, _of("float", '"a"', "String"), "x")),
    _row('[{"x": {"b64": "YQ=="}}]', _element(0, "JSON Value: {… Type: Object is not of expected type: float", "x")),
    _row('[{"b64": "YQ=="}]', _element(0, "JSON Value: {… Type: Object is not of expected type: float")),
    # Several inputs and outputs.
    _row(
        '[{"a": [1, 2, 3], "b": 2}, {"a": [0, 0, 1.5], "b": -1}]',
        [{"scaled": [2.0, 4.0, 6.0], "total": 8.0}, {"scaled": [-0.0, -0.0, -1.5], "total": 0.5}],
        "multi_io",
    ),
    _row('[{"b": 1, "a": [0, 0, 0]}]', [{"scaled": [0.0, 0.0, 0.0], "total": 1.0}], "multi_io"),
    _row(
        "[[1, 2, 3]]",
        "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
        "tensorinfo_map",
        "multi_io",
    ),
    _row(
        '[{"a": [1, 2, 3]}]',
        "Failed to process element: 0 of 'instances' list. JSON object: {… keys must be equal to: a,b",
        "multi_io",
    ),
    _row(
        '[{"a": [1, 2, 3], "b": 1}, {"b": 1}]',
        "Failed to process element: 1 of 'instances' list. JSON object: {… keys must be equal to: a,b",
        "multi_io",
    ),
    _row(
        '[{"a": [1, 2, 3], "b": 1, "c": 1}]',
        _element(0, "JSON object: does not have named input: c", "c"),
        "multi_io",
    ),
    _row('[{"a": [1, 2, 3], "b": 1.0}]', _element(0, _of("int32", "1.0"), "b"), "multi_io"),
    _row(
        '[{"a": [1, 2, 3], "b": 1}, {"a": [[1, 2, 3]], "b": 1}]',
        _element(1, "Expecting shape [3] but got: [1,3]", "a"),
        "multi_io",
    ),
    _row(
        '[{"a": [1, 2, 3], "b": 1}, {"a": [1, 2], "b": 1}]',
        _element(1, "Expecting tensor size: 3 but got: 2", "a"),
        "multi_io",
    ),
    _row('[{"a": [1, 2, 3], "b": 1}, [1, 2]]', "Expecting object but got list at item 1 of input list", "multi_io"),
    # Strings and bytes.
    _row(
        '["ab", "caf\\u00e9"]',
        [
            {"echo_bytes": {"b64": "YWI="}, "length": 2, "upper": "AB"},
            {"echo_bytes": {"b64": "Y2Fmw6k="}, "length": 5, "upper": "CAFé"},
        ],
        "strings",
    ),
    _row(
        '[{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}]',
        [
            {"echo_bytes": {"b64": "aGVsbG8="}, "length": 5, "upper": "HELLO"},
            {"echo_bytes": {"b64": "d29ybGQ="}, "length": 5, "upper": "WORLD"},
        ],
        "strings",
    ),
    _row(
        '[{"text": {"b64": "aGVsbG8="}}, {"text": "hello"}]',
        [{"echo_bytes": {"b64": "aGVsbG8="}, "length": 5, "upper": "HELLO"}] * 2,
        "strings",
    ),
    _row('[""]', [{"echo_bytes": {"b64": ""}, "length": 0, "upper": ""}], "strings"),
    _row('[{"b64": "aGk"}]', [{"echo_bytes": {"b64": "aGk="}, "length": 2, "upper": "HI"}], "strings"),
    _row(
        '[["a"], ["b"]]',
        [
            {"echo_bytes": [{"b64": "YQ=="}], "length": [1], "upper": ["A"]},
            {"echo_bytes": [{"b64": "Yg=="}], "length": [1], "upper": ["B"]},
        ],
        "strings",
    ),
    _row("[1]", _element(0, _of("string", "1")), "strings"),
    _row('[{"b64": "!"}]', _element(0, "Unable to base64 decode"), "strings"),
    _row('[{"b64": 5}]', _element(0, "JSON object: does not have named input: b64", "b64"), "strings"),
    _row(
        '[{"text": {"b64": 5}}]',
        _element(0, "JSON Value: {… not formatted correctly for base64 data", "text"),
        "strings",
    ),
    _row(
        '[{"text": {"b64": "YQ==", "c": 1}}]',
        _element(0, "JSON Value: {… not formatted correctly for base64 data", "text"),
        "strings",
    ),
    _row('["a", {"text": "b"}]', "Expecting value/list but got object at item 1 of input list", "strings"),
    # Rows that the outputs do not have.
    _predict(
        '{"signature_name": "int32", "instances": [1, 2]}',
        "Tensor name: … has inconsistent batch size: … expecting: …",
        "dtypes",
    ),
    _row("[-1.0]", "…x must not be negative…", "fails"),
]

_COLUMNS = [
    _column("[2.0, 3.0, 4.0]", [3.0, 3.5, 4.0]),
    _column("2.0", 3.0),
    _column("[]", []),
    _column("[[]]", [[]]),
    _column("[[1], [2]]", [[2.5], [3.0]]),
    _column('{"x": [1.0]}', [2.5]),
    _column('{"x": 1.0}', 2.5),
    _column('{"x": [1.0], "other": "ignored"}', [2.5]),
    _column("{}", "Missing named input: x in 'inputs' object."),
    _column('{"X": [1.0]}', "Missing named input: x in 'inputs' object."),
    _column('"a"', _of("float", '"a"', "String")),
    _column("null", _of("float", "null", "Null")),
    _column('{"x": null}', _of("float", "null", "Null")),
    _column('{"x": {"y": 1}}', "JSON Value: {… Type: Object is not of expected type: float"),
    _column("[1, [2]]", "Encountered list at unexpected level: 1 expected < 1"),
    _column("[[1], 2]", "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
    _column("[[1, 2], [3]]", "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    _column(
        '{"a": [[1, 2, 3], [4, 5, 6]], "b": [1, 10]}',
        {"scaled": [[1.0, 2.0, 3.0], [40.0, 50.0, 60.0]], "total": [7.0, 25.0]},
        "multi_io",
    ),
    _column(
        "[[1, 2, 3]]",
        "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
        "tensorinfo_map",
        "multi_io",
    ),
    _column('{"b": [1]}', "Missing named input: a in 'inputs' object.", "multi_io"),
    _column('{"a": [[1, 2, 3]], "b": [1.0]}', _of("int32", "1.0"), "multi_io"),
    _column('{"x": 1.5, "n": 2, "s": "a"}', {"m": 3, "t": "a!", "y": 3.0}, "scalars"),
    _column('{"x": 1, "n": 2, "s": {"b64": "YQ=="}}', {"m": 3, "t": "a!", "y": 2.0}, "scalars"),
    _column('{"b64": "aGk="}', {"echo_bytes": {"b64": "aGk="}, "length": 2, "upper": "HI"}, "strings"),
    _column(
        '["a", {"b64": "Yg=="}]',
        {"echo_bytes": [{"b64": "YQ=="}, {"b64": "Yg=="}], "length": [1, 1], "upper": ["A", "B"]},
        "strings",
    ),
    _column('{"text": {"b64": "!!"}}', "Unable to base64 decode", "strings"),
    _column('[{"b64": 1}]', "JSON Value: {… not formatted correctly for base64 data", "strings"),
    _column('["alpha", "gamma", "no"]', [0, 2, -1], "assets_vocab"),
    _column("[4.0, 9.0]", [2.0, 3.0], "fails"),
    _predict(
        '{"signature_name": "swapped", "inputs": {"a": [[1, 2, 3]], "b": [2]}}',
        {"outputs": {"same_b": [2], "scaled": [8.0], "total": [[2.0, 4.0, 6.0]]}},
        "multi_io",
    ),
]

_TYPES = [
    _typed("int32", "[1, -2]", [1, -2]),
    _typed("int32", "[1.0]", _of("int32", "1.0")),
    _typed("int32", "[1.5]", _of("int32", "1.5")),
    _typed("int32", "[2147483647, -2147483648]", [2**31 - 1, -(2**31)]),
    _typed("int32", "[2147483648]", _of("int32", "2147483648")),
    _typed("int32", '["1"]', _of("int32", '"1"', "String")),
    _typed("int32", "[true]", _of("int32", "true", "True")),
    _typed("int64", "[9223372036854775807, -9223372036854775808]", [2**63 - 1, -(2**63)]),
    _typed("int64", "[9223372036854775808]", _of("int64", "9223372036854775808")),
    _typed("int64", "[1e3]", _of("int64", "1000.0")),
    _typed("int16", "[32767]", [32767]),
    _typed("int16", "[0.5]", _of("int16", "0.5")),
    _typed("int8", "[-128, 127]", [-128, 127]),
    _typed("uint8", "[0, 255]", [0, 255]),
    _typed("uint8", '["a"]', _of("uint8", '"a"', "String")),
    _typed("uint32", "[4294967295]", [2**32 - 1]),
    _typed("uint32", "[-1]", _of("uint32", "-1")),
    _typed("uint64", "[18446744073709551615]", [2**64 - 1]),
    _typed("uint64", "[-1]", _of("uint64", "-1")),
    _typed("bool", "[true, false]", [True, False]),
    _typed("bool", "[1]", _of("bool", "1")),
    _typed("bool", '["true"]', _of("bool", '"true"', "String")),
    _typed("float32", "[9000000, 999999, 0.5, 0.0003, 0.00003]", [9e6, 999999.0, 0.5, 0.0003, 0.00003]),
    _typed("float32", "[555557.5, 0.1, 16777216, 3.4028235e38]", [555557.5, 0.1, 16777216.0, 3.4028235e38]),
    _typed("float32", "[NaN, Infinity, 3, -Infinity]", [NAN, INF, 3.0, -INF]),
    _typed("float32", "[3.14159274, -1e-10, 1.17549435e-38]", [3.1415927, -1e-10, 1.1754944e-38]),
    _typed("float64", "[0.1, 1, 1e300, 2.5]", [0.1, 1.0, 1e300, 2.5]),
    _typed("float64", "[9007199254740992, 3.141592653589793]", [9007199254740992.0, 3.141592653589793]),
    _typed("float64", "[NaN, -Infinity, Inf]", [NAN, -INF, INF]),
    _typed("float64", '["1"]', _of("double", '"1"', "String")),
    _typed("string", '["a", "b"]', ["a", "b"]),
    _typed("string", '["\\u00e9\\n\\"", {"b64": "YQ=="}]', ['é\n"', "a"]),
    _typed("string", "[null]", _of("string", "null", "Null")),
    _typed("string", "[1.5]", _of("string", "1.5")),
    _predict(
        '{"signature_name": "complex64", "inputs": [1.0]}', "Conversion of JSON … to type: complex64", "dtypes", 501
    ),
    _predict(
        '{"signature_name": "complex64", "instances": [1.0]}', "…Conversion of JSON … to type: complex64", "dtypes"
    ),
]

_EXAMPLES = [
    _regress('{"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}]}', [42.0]),
    _regress('{"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}]}', [42.0], "test_model/versions/123"),
    _regress(
        '{"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]}', [3.0], "test_model/labels/Version_Label"
    ),
    _regress('{"signature_name": "regress_x_to_y2", "examples": [{"x": 2.0}, {"x": [4.0]}]}', [4.0, 5.0]),
    _regress('{"signature_name": "regress_x_to_y", "context": {"x": 2.0}, "examples": [{}, {"x": 4.0}]}', [3.0, 4.0]),
    _regress('{"signature_name": "regress_x_to_y", "examples": [{"x": NaN}, {"x": -Inf}]}', [NAN, -INF]),
    _regress('{"signature_name": "regress_x_to_y", "examples": [{"x": 1e39}]}', [INF]),
    _regress('{"signature_name": "regress_column", "examples": [{"n": 2, "f": 0.5}]}', [2.5], "parsed_examples"),
    _classify('{"signature_name": "classify_x_to_y", "examples": [{"x": 20.0}]}', [[["", 12.0]]]),
    _classify(
        '{"signature_name": "classify_x_to_y", "examples": [{"x": 10.0}]}', [[["", 7.0]]], "test_model/versions/123"
    ),
    _classify(
        '{"signature_name": "classify_x_to_y", "examples": [{"x": 10.0}]}',
        [[["", 7.0]]],
        "test_model/labels/Version_Label",
    ),
    _classify(
        '{"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}, {"x": 4.0}]}', [[["", 3.0]], [["", 4.0]]]
    ),
    _classify(
        '{"signature_name": "classify_x_to_label", "examples": [{"x": 2.0}]}',
        [[["plus", 3.0], ["minus", -3.0]]],
        "half_plus_two/labels/stable",
    ),
    _classify(
        '{"examples": [{"n": 7, "f": 0.5, "s": "a"}]}', [[["7", 7.0], ["0.50", 0.5], ["a", 7.0]]], "parsed_examples"
    ),
    *_example('{"n": 3, "f": 1.5, "s": "b"}', ["3", "1.50", "b"]),
    *_example('{"n": [3], "f": [1.5], "s": ["b"]}', ["3", "1.50", "b"]),
    *_example('{"n": true}', ["1", "0.00", ""]),
    *_example('{"s": {"b64": "aGVsbG8="}}', ["0", "0.00", "hello"]),
    *_example("{}", ["0", "0.00", ""]),
    *_example('{"other": [1, true, false], "n": 1}', ["1", "0.00", ""]),
    *_example('{"n": []}', ["0", "0.00", ""]),
    *_example('{"n": [10, null]}', "Feature: n has element with unexpected JSON type: Null"),
    *_example('{"n": null}', "Feature: n has element with unexpected JSON type: Null"),
    *_example('{"n": [10, 10.0]}', "Unexpected element type in feature: n expecting type: int64"),
    *_example('{"f": [1.5, 2]}', "Unexpected element type in feature: f expecting type: float"),
    *_example('{"s": ["a", 2]}', "Unexpected element type in feature: s expecting type: bytes"),
    *_example('{"n": [1, "a"]}', "Unexpected element type in feature: n expecting type: int64"),
    *_example('{"f": [1.5, true]}', "Unexpected element type in feature: f expecting type: float"),
    *_example('{"n": [10, {"test": 10}]}', "Feature: n has element with unexpected JSON type: Object"),
    *_example('{"n": [[10], 20]}', "Feature: n has element with unexpected JSON type: Array"),
    *_example('{"n": [20, 18446744073709551603]}', "Feature: n has uint64 element. Only int64 is supported."),
    *_example('{"s": {"b64": "!"}}', "Unable to base64 decode"),
    *_example("[1]", "Example must be JSON object but got JSON Array"),
    *_example("1", "Example must be JSON object but got JSON Number"),
    *_example('"a"', "Example must be JSON object but got JSON String"),
    *_example("null", "Example must be JSON object but got JSON Null"),
]
for _method in (_classify, _regress):
    _EXAMPLES += [
        _method("", "JSON Parse error: The document is empty"),
        _method("{", "JSON Parse error: Missing a name for object member. at offset: 1"),
        _method("[]", "JSON Value: [] Is not object"),
        _method('{"signature_name": ["hello"], "examples": [{}]}', "… 'signature_name' key must be a string value."),
        _method('{"context": [{"x": 1.0}]}', "Example must be JSON object but got JSON Array"),
        _method(
            '{"context": {"x": 1.0}}',
            "JSON Value: {… When method is classify, key 'examples' is expected and was not found",
        ),
        _method('{"examples": {"x": 1.0}}', "JSON Value: {… Expecting 'examples' value to be an list/array"),
        _method('{"examples": []}', "JSON Value: {… 'examples' value is an empty array"),
        _method('{"examples": [[{"x": 1.0}]]}', "Example must be JSON object but got JSON Array"),
        _method('{"signature_name": "nope", "examples": [{}]}', "No signature was found with the name: nope"),
        _method('{"signature_name": "three_outputs", "examples": [{}]}', "Expected one or…", "parsed_examples")
        if _method is _classify
        else _method(
            '{"signature_name": "three_outputs", "examples": [{}]}', "Expected one output Tensor.", "parsed_examples"
        ),
        _method('{"signature_name": "two_inputs", "examples": [{}]}', "Expected one input Tensor.", "parsed_examples"),
        _method('{"signature_name": "regress_x_to_y", "examples": [{}]}', "…x…")
        if _method is _regress
        else _method('{"signature_name": "classify_x_to_y", "examples": [{}]}', "…x…"),
    ]

_SHAPES = [
    _classify(
        '{"signature_name": "classify_flat", "examples": [{}]}',
        "Expected Tensor shape: [batch_size num_classes] but got [1]",
        "parsed_examples",
    ),
    _classify(
        '{"signature_name": "classify_int_scores", "examples": [{}]}',
        "Expected scores Tensor of DT_FLOAT. Got: DT_INT64",
        "parsed_examples",
    ),
    _classify(
        '{"signature_name": "classify_shorter", "examples": [{}, {}]}',
        "Expected scores output batch size of 2. Got: 1",
        "parsed_examples",
    ),
    _classify(
        '{"signature_name": "classify_uneven", "examples": [{}]}',
        "Tensors class and score should match in dim_size(1). Got 2 vs. 3",
        "parsed_examples",
    ),
    _classify(
        '{"signature_name": "other_names", "examples": [{}]}',
        "No classification inputs found in SignatureDef: …",
        "parsed_examples",
    ),
    _classify(
        '{"signature_name": "regress_column", "examples": [{}]}',
        'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature was: …',
        "parsed_examples",
    ),
    _regress(
        '{"signature_name": "regress_wide", "examples": [{}]}',
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]",
        "parsed_examples",
    ),
    _regress(
        '{"signature_name": "regress_shorter", "examples": [{}, {}]}',
        "Input batch size did not match output batch size: 2 vs. 1",
        "parsed_examples",
    ),
    _regress(
        '{"signature_name": "regress_int", "examples": [{}]}',
        "Expected output Tensor of DT_FLOAT.  Got: DT_INT64",
        "parsed_examples",
    ),
    _regress(
        '{"signature_name": "other_names", "examples": [{}]}',
        "No regression inputs found in SignatureDef: …",
        "parsed_examples",
    ),
    _regress(
        '{"signature_name": "classify_text", "examples": [{}]}',
        "No regression outputs found in SignatureDef: …",
        "parsed_examples",
    ),
]

PAIRS = [*_PATHS, *_STATUS, *_LOOKUP, *_DOCUMENTS, *_ROWS, *_COLUMNS, *_TYPES, *_EXAMPLES, *_SHAPES]
