"""Calls of TensorFlow Serving's gRPC API and what it answers: the cases of its own tests (`predict_impl_test`,
`classifier_test`, `regressor_test`, `multi_inference_test`, `get_model_metadata_impl_test`,
`get_model_status_impl_test`, `server_core_test`, `tensorflow_model_server_test`), on the models of
`test_conformance_pairs`, as text protos.

Where no test of theirs has a case, the answer is what their sources say, and TensorFlow's `Tensor::FromProto`.
"""

# ruff: noqa: E501, UP031 -- text protos are full of braces, and a long one reads better than its parts

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from google.protobuf import text_format

from appliance.protocols import protos
from tests.support.official_protos import samples

__all__ = ["PAIRS", "Call"]


class Call(NamedTuple):
    """`answer` is the response's text proto, or (the code, the error's text as in `rest_pairs`)."""

    rpc: str
    request: str
    answer: str | tuple[str, str]


INVALID = "INVALID_ARGUMENT"
TEST = "name: 'test_model'"

X = "inputs { key: 'x' value { dtype: DT_FLOAT tensor_shape { dim { size: 1 } } float_val: 2 } }"
Y = "outputs { key: 'y' value { dtype: DT_FLOAT tensor_shape { dim { size: 1 } } float_val: 3 } }"


def _spec(name: str, version: int, signature: str = "serving_default") -> str:
    signature = f" signature_name: '{signature}'" if signature else ""
    return f"model_spec {{ name: '{name}' version {{ value: {version} }}{signature} }}"


def _float(name: str, shape: tuple[int, ...], *values: float) -> str:
    dims = " ".join(f"dim {{ size: {size} }}" for size in shape)
    listed = " ".join(f"float_val: {value}" for value in values)
    return f"key: '{name}' value {{ dtype: DT_FLOAT tensor_shape {{ {dims} }} {listed} }}"


def _parsed_spec(text: str) -> Any:
    return text_format.Parse(text, protos.ModelSpec(), descriptor_pool=protos.POOL)


def _predict(request: str, answer: str | tuple[str, str], spec: str = TEST, version: int = 123) -> Call:
    wanted = _parsed_spec(spec)
    signature = wanted.signature_name or "serving_default"
    if isinstance(answer, str):
        answer = f"{answer} {_spec(wanted.name, version, signature)}"
    return Call("Predict", f"model_spec {{ {spec} }} {request}", answer)


_PREDICT = [
    _predict(X, Y),
    _predict(f"{X} output_filter: 'y'", Y),
    _predict(X, Y, f"{TEST} signature_name: 'serving_default'"),
    _predict(X, Y, f"{TEST} version {{ value: 123 }}"),
    _predict(X, Y, f"{TEST} version_label: 'Version_Label'"),
    # A scalar: shapes are the graph's business.
    _predict("inputs { %s }" % _float("x", (), 2), "outputs { %s }" % _float("y", (), 3)),
    _predict("inputs { %s }" % _float("x", (1, 1), 2), "outputs { %s }" % _float("y", (1, 1), 3)),
    _predict("inputs { %s }" % _float("x", (1, 2, 1), 2, 4), "outputs { %s }" % _float("y", (1, 2, 1), 3, 4)),
    _predict("inputs { %s }" % _float("x", (0,)), "outputs { %s }" % _float("y", (0,))),
    _predict("inputs { %s }" % _float("x", (2, 0)), "outputs { %s }" % _float("y", (2, 0))),
    _predict(
        "inputs { %s }" % _float("inputs", (), 2),
        "outputs { %s }" % _float("outputs", (), 4),
        f"{TEST} signature_name: 'regress_x2_to_y3'",
    ),
    _predict(
        "inputs { %s }" % _float("inputs", (), 2),
        "outputs { %s }" % _float("scores", (), 4),
        f"{TEST} signature_name: 'classify_x2_to_y3'",
    ),
    _predict(
        "inputs { %s }" % _float("x", (1,), 2), "outputs { %s }" % _float("y", (1,), 4), "name: 'half_plus_two'", 2
    ),
    _predict(X, Y, "name: 'half_plus_two' version { value: 1 }", 1),
    _predict(X, Y, "name: 'half_plus_two' version_label: 'stable'", 1),
    _predict(
        "inputs { %s }" % _float("x", (1,), 2),
        "outputs { %s }" % _float("y", (1,), 4),
        "name: 'half_plus_two' version_label: 'canary'",
        2,
    ),
    _predict(X, Y, "name: 'half plus'", 7),
    # Every way to write a tensor.
    _predict("inputs { %s }" % _float("x", (3,), 2), "outputs { %s }" % _float("y", (3,), 3, 3, 3)),
    _predict("inputs { %s }" % _float("x", (3,), 2, 4), "outputs { %s }" % _float("y", (3,), 3, 4, 4)),
    _predict("inputs { %s }" % _float("x", (2,)), "outputs { %s }" % _float("y", (2,), 2, 2)),
    _predict("inputs { %s }" % _float("x", (1,), 2, 4, 6), "outputs { %s }" % _float("y", (1,), 3)),
    _predict(
        "inputs { key: 'x' value { dtype: DT_FLOAT tensor_shape { dim { size: 2 } } "
        "tensor_content: '\\000\\000\\000@\\000\\000\\200@' } }",
        "outputs { %s }" % _float("y", (2,), 3, 4),
    ),
    _predict(
        "inputs { key: 'x' value { dtype: DT_FLOAT tensor_content: '\\000\\000\\000@' float_val: 9 } }",
        "outputs { %s }" % _float("y", (), 3),
    ),
    _predict(
        "inputs { key: 'x' value { dtype: DT_FLOAT tensor_shape { dim { size: 1 name: 'batch' } } version_number: 1 "
        "float_val: 2 int_val: 7 } }",
        Y,
    ),
    _predict(
        "inputs { key: 'x' value { dtype: DT_FLOAT tensor_shape { unknown_rank: true } float_val: 2 } }",
        "outputs { %s }" % _float("y", (), 3),
    ),
    _predict(
        "inputs { key: 'x' value { dtype: DT_FLOAT tensor_shape { dim { size: 2 } } tensor_content: '\\000\\000\\000@' } }",
        (INVALID, "tensor parsing error: x: …"),
    ),
    _predict(
        "inputs { key: 'x' value { dtype: DT_FLOAT tensor_shape { dim { size: -1 } } float_val: 2 } }",
        (INVALID, "tensor parsing error: x: …"),
    ),
    _predict("inputs { key: 'x' value { } }", (INVALID, "tensor parsing error: x: …")),
    _predict("inputs { key: 'x' }", (INVALID, "tensor parsing error: x: …")),
    # Inputs and outputs that the signature has not.
    _predict(
        "",
        (
            INVALID,
            "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing but required: {x}.",
        ),
    ),
    _predict(
        f"{X} inputs {{ {_float('z', (), 1)} }}",
        (
            INVALID,
            "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. Missing but required: {}.",
        ),
    ),
    _predict(
        "inputs { key: 'key' value { dtype: DT_STRING tensor_shape { dim { size: 1 } } string_val: 'any' } }",
        (INVALID, "…x…"),
    ),
    _predict(
        "inputs { key: 'x' value { dtype: DT_STRING tensor_shape { dim { size: 1 } } string_val: 'any_key' } } output_filter: 'y'",
        (INVALID, "Expects arg[0] to be float but string is provided"),
    ),
    _predict(
        "inputs { key: 'x' value { dtype: DT_INT64 int64_val: 1 } }",
        (INVALID, "Expects arg[0] to be float but int64 is provided"),
    ),
    _predict(
        "inputs { key: 'x' value { dtype: DT_DOUBLE double_val: 1 } }",
        (INVALID, "Expects arg[0] to be float but double is provided"),
    ),
    _predict(
        f"{X} output_filter: 'output_filter'",
        (INVALID, "output tensor alias not found in signature: output_filter Outputs expected to be in the set {y}."),
    ),
    _predict(f"{X} output_filter: 'y' output_filter: 'y'", (INVALID, "duplicate output tensor alias: y")),
    _predict(X, ("FAILED_PRECONDITION", 'Serving signature key "nope" not found.'), f"{TEST} signature_name: 'nope'"),
    _predict(X, ("FAILED_PRECONDITION", 'Serving signature key "serving_default" not found.'), "name: 'dtypes'"),
    # Models that are not there.
    Call("Predict", "", (INVALID, "Missing ModelSpec")),
    Call("Predict", X, (INVALID, "Missing ModelSpec")),
    Call("Predict", "model_spec { }", (INVALID, "ModelSpec has no name specified.")),
    Call("Predict", "model_spec { version { value: 1 } }", (INVALID, "ModelSpec has no name specified.")),
    _predict("", ("NOT_FOUND", "Servable not found for request: Latest(test)"), "name: 'test'"),
    _predict(
        "",
        ("NOT_FOUND", "Servable not found for request: Latest(intentionally_missing_model)"),
        "name: 'intentionally_missing_model'",
    ),
    _predict(
        X, ("NOT_FOUND", "Servable not found for request: Specific(test_model, 1)"), f"{TEST} version {{ value: 1 }}"
    ),
    _predict(X, ("NOT_FOUND", "Servable not found for request: Specific(test_model, 0)"), f"{TEST} version {{ }}"),
    _predict(
        X, ("NOT_FOUND", "Servable not found for request: Specific(test_model, -5)"), f"{TEST} version {{ value: -5 }}"
    ),
    _predict(X, ("NOT_FOUND", "Servable not found for request: Latest(broken)"), "name: 'broken'"),
    _predict(
        X,
        (INVALID, "Unrecognized servable version label: nonexistent label"),
        f"{TEST} version_label: 'nonexistent label'",
    ),
    _predict(X, (INVALID, "Unrecognized servable version label: stable"), f"{TEST} version_label: 'stable'"),
    _predict(X, (INVALID, "Unrecognized servable version label: no"), "name: 'unknown' version_label: 'no'"),
    # Several inputs and outputs.
    _predict(
        "inputs { %s } inputs { key: 'b' value { dtype: DT_INT32 tensor_shape { dim { size: 1 } } int_val: 2 } }"
        % _float("a", (1, 3), 1, 2, 3),
        "outputs { %s } outputs { %s }" % (_float("scaled", (1, 3), 2, 4, 6), _float("total", (1,), 8)),
        "name: 'multi_io'",
        1,
    ),
    _predict(
        "inputs { %s } inputs { key: 'b' value { dtype: DT_INT32 tensor_shape { dim { size: 1 } } int_val: 2 } } "
        "output_filter: 'total'" % _float("a", (1, 3), 1, 2, 3),
        "outputs { %s }" % _float("total", (1,), 8),
        "name: 'multi_io'",
        1,
    ),
    _predict(
        "inputs { %s }" % _float("a", (1, 3), 1, 2, 3),
        (
            INVALID,
            "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. Missing but required: {b}.",
        ),
        "name: 'multi_io'",
    ),
    _predict(
        "",
        "outputs { key: 'answer' value { dtype: DT_INT64 tensor_shape { } int64_val: 42 } }",
        "name: 'multi_io' signature_name: 'constant'",
        1,
    ),
    # Inputs with defaults.
    _predict(
        "inputs { %s }" % _float("x", (2,), 1, 2),
        "outputs { %s } outputs { key: 'label' value { dtype: DT_STRING tensor_shape { dim { size: 2 } } "
        "string_val: 'm' string_val: 'm' } }" % _float("y", (2,), 2, 4),
        "name: 'defaults'",
        1,
    ),
    _predict(
        "inputs { %s } inputs { %s } output_filter: 'y'" % (_float("x", (2,), 1, 2), _float("scale", (), 5)),
        "outputs { %s }" % _float("y", (2,), 5, 10),
        "name: 'defaults'",
        1,
    ),
    _predict(
        "inputs { %s }" % _float("scale", (), 5),
        (
            INVALID,
            "Signature input alias: x(feed name: …) not found in request and no default value provided. Inputs expected to be in the request {scale}, or default input alias set: scale,unit",
        ),
        "name: 'defaults'",
    ),
    # Strings; what the graph itself refuses.
    _predict(
        "inputs { key: 'text' value { dtype: DT_STRING tensor_shape { dim { size: 2 } } string_val: 'a' "
        "string_val: '\\377\\000z' } } output_filter: 'echo_bytes' output_filter: 'length'",
        "outputs { key: 'echo_bytes' value { dtype: DT_STRING tensor_shape { dim { size: 2 } } string_val: 'a' "
        "string_val: '\\377\\000z' } } outputs { key: 'length' value { dtype: DT_INT32 tensor_shape { dim { size: 2 } } "
        "int_val: 1 int_val: 3 } }",
        "name: 'strings'",
        1,
    ),
    _predict("inputs { %s }" % _float("x", (1,), -1), (INVALID, "…x must not be negative…"), "name: 'fails'"),
    _predict("inputs { %s }" % _float("x", (2,), 4, 9), "outputs { %s }" % _float("y", (2,), 2, 3), "name: 'fails'", 1),
]

_LISTS = {
    "float32": "float_val",
    "float64": "double_val",
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), "int_val"),
    "int64": "int64_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
    "string": "string_val",
    "float16": "half_val",
    "bfloat16": "half_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
}
_PROTO_NAMES = {"float32": "DT_FLOAT", "float64": "DT_DOUBLE", "float16": "DT_HALF"}


def _escaped(data: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in data)


def _tensor(dtype: str, array: np.ndarray, content: bool) -> str:
    """The array [N] in the list of its type, or as its memory."""
    head = f"dtype: {_PROTO_NAMES.get(dtype, f'DT_{dtype.upper()}')} tensor_shape {{ dim {{ size: {array.size} }} }} "
    if content:
        return head + f"tensor_content: '{_escaped(array.tobytes())}'"
    if dtype == "string":
        listed = [f"'{_escaped(value)}'" for value in array]
    elif dtype == "bool":
        listed = [str(bool(value)).lower() for value in array]
    elif _LISTS[dtype] == "half_val":
        listed = [str(value) for value in array.view(np.uint16)]
    else:
        plain = array.view(array.real.dtype)
        listed = [repr(value.item()) for value in plain]
    return head + " ".join(f"{_LISTS[dtype]}: {value}" for value in listed)


def _every_type() -> list[Call]:
    calls = []
    for dtype, array in samples().items():
        flat = array.reshape(-1)
        outputs = "".join(
            f"outputs {{ key: '{name}' value {{ {_tensor(dtype, values, False)} }} }} "
            for name, values in (("double", np.concatenate([flat, flat])), ("y", flat))
        )
        for content in (False, True):
            if dtype != "string" or not content:
                inputs = f"inputs {{ key: 'x' value {{ {_tensor(dtype, flat, content)} }} }}"
                calls.append(_predict(inputs, outputs, f"name: 'dtypes' signature_name: '{dtype}'", 1))
    return calls


def _examples(*xs: float | None, context: float | None = None) -> str:
    def features(x: float | None) -> str:
        return "" if x is None else f"features {{ feature {{ key: 'x' value {{ float_list {{ value: {x} }} }} }} }}"

    listed = " ".join(f"examples {{ {features(x)} }}" for x in xs)
    if context is None:
        return f"input {{ example_list {{ {listed} }} }}"
    return f"input {{ example_list_with_context {{ {listed} context {{ {features(context)} }} }} }}"


def _scores(*scores: float) -> str:
    return " ".join(f"classifications {{ classes {{ score: {score} }} }}" for score in scores)


def _values(*values: float) -> str:
    return " ".join(f"regressions {{ value: {value} }}" for value in values)


def _both(request: str, error: tuple[str, str], spec: str = TEST, signature: str = "") -> list[Call]:
    """The same to Classify and Regress, each by its own signature unless `signature` says otherwise."""
    names = {"Classify": signature or "classify_x_to_y", "Regress": signature or "regress_x_to_y"}
    return [
        Call(rpc, f"model_spec {{ {spec} signature_name: '{name}' }} {request}", error) for rpc, name in names.items()
    ]


_CLASSIFY, _REGRESS = (
    "model_spec { %s signature_name: '%s' }" % (TEST, name) for name in ("classify_x_to_y", "regress_x_to_y")
)
_CLASSIFIED, _REGRESSED = (_spec("test_model", 123, name) for name in ("classify_x_to_y", "regress_x_to_y"))

_EXAMPLES = [
    Call("Classify", f"{_CLASSIFY} {_examples(2)}", f"result {{ {_scores(3)} }} {_CLASSIFIED}"),
    Call("Classify", f"{_CLASSIFY} {_examples(2, 4)}", f"result {{ {_scores(3, 4)} }} {_CLASSIFIED}"),
    Call("Classify", f"{_CLASSIFY} {_examples(None, 4, context=2)}", f"result {{ {_scores(3, 4)} }} {_CLASSIFIED}"),
    Call("Classify", f"{_CLASSIFY} {_examples(-4)}", f"result {{ {_scores(0)} }} {_CLASSIFIED}"),
    Call(
        "Classify",
        "model_spec { name: 'parsed_examples' } input { example_list { examples { features { feature { key: 'n' "
        "value { int64_list { value: 7 } } } feature { key: 's' value { bytes_list { value: 'dos' } } } } } } }",
        "result { classifications { classes { label: '7' score: 7 } classes { label: '0.00' score: 0 } "
        f"classes {{ label: 'dos' score: 7 }} }} }} {_spec('parsed_examples', 1)}",
    ),
    Call(
        "Classify",
        "model_spec { name: 'parsed_examples' signature_name: 'classify_text' } input { example_list { examples { } } }",
        "result { classifications { classes { label: '0' } classes { label: '0.00' } classes { } } } "
        + _spec("parsed_examples", 1, "classify_text"),
    ),
    Call(
        "Classify",
        f"model_spec {{ name: 'half_plus_two' version_label: 'stable' signature_name: 'classify_x_to_label' }} {_examples(2)}",
        "result { classifications { classes { label: 'plus' score: 3 } classes { label: 'minus' score: -3 } } } "
        + _spec("half_plus_two", 1, "classify_x_to_label"),
    ),
    Call("Regress", f"{_REGRESS} {_examples(2)}", f"result {{ {_values(3)} }} {_REGRESSED}"),
    Call("Regress", f"{_REGRESS} {_examples(2, 4, 6)}", f"result {{ {_values(3, 4, 5)} }} {_REGRESSED}"),
    Call("Regress", f"{_REGRESS} {_examples(None, None, context=2)}", f"result {{ {_values(3, 3)} }} {_REGRESSED}"),
    Call("Regress", f"{_REGRESS} {_examples(-4)}", f"result {{ {_values(0)} }} {_REGRESSED}"),
    Call(
        "Regress",
        "model_spec { name: 'parsed_examples' signature_name: 'regress_column' } input { example_list { examples { } } }",
        f"result {{ {_values(0)} }} {_spec('parsed_examples', 1, 'regress_column')}",
    ),
    *_both("", (INVALID, "Input is empty.")),
    *_both("input { }", (INVALID, "Input is empty.")),
    *_both("input { example_list { } }", (INVALID, "Input is empty.")),
    *_both(_examples(context=2), (INVALID, "Input is empty.")),
    *_both(_examples(None), (INVALID, "…x…")),
    *_both(_examples(2), (INVALID, "No signature was found with the name: nope"), signature="nope"),
    *_both(_examples(2), ("NOT_FOUND", "Servable not found for request: Latest(unknown)"), "name: 'unknown'"),
    *_both(
        _examples(2),
        ("NOT_FOUND", "Servable not found for request: Specific(test_model, 9)"),
        f"{TEST} version {{ value: 9 }}",
    ),
    *_both(_examples(2), (INVALID, "Unrecognized servable version label: no"), f"{TEST} version_label: 'no'"),
    *_both("", ("NOT_FOUND", "Servable not found for request: Latest(broken)"), "name: 'broken'"),
    *_both("", (INVALID, "Expected one input Tensor."), "name: 'parsed_examples'", "two_inputs"),
    *[Call(rpc, "", (INVALID, "Missing ModelSpec")) for rpc in ("Classify", "Regress")],
    *[Call(rpc, "model_spec { }", (INVALID, "ModelSpec has no name specified.")) for rpc in ("Classify", "Regress")],
]


def _tasks(*tasks: tuple[str, str, str], examples: str | None = None) -> str:
    """(model, signature, method) of each."""
    written = [
        f"tasks {{ model_spec {{ name: '{model}' signature_name: '{signature}' }} method_name: 'tensorflow/serving/{method}' }}"
        for model, signature, method in tasks
    ]
    return " ".join([*written, _examples(2) if examples is None else examples])


_R = ("test_model", "regress_x_to_y", "regress")
_R2 = ("test_model", "regress_x_to_y2", "regress")
_C = ("test_model", "classify_x_to_y", "classify")
_RESULT = {
    _R: f"results {{ {_REGRESSED} regression_result {{ {_values(3)} }} }}",
    _R2: f"results {{ {_spec('test_model', 123, 'regress_x_to_y2')} regression_result {{ {_values(4)} }} }}",
    _C: f"results {{ {_CLASSIFIED} classification_result {{ {_scores(3)} }} }}",
}

_MULTI = [
    *[
        Call("MultiInference", _tasks(*tasks), " ".join(_RESULT[task] for task in tasks))
        for tasks in ([_R], [_C], [_R, _R2], [_R, _C], [_C, _R], [_R, _C, _R2])
    ],
    # Each signature of a TensorFlow 2 export has an input tensor of its own; each gets the same examples.
    Call(
        "MultiInference",
        _tasks(
            ("parsed_examples", "classify_text", "classify"),
            ("parsed_examples", "regress_column", "regress"),
            ("parsed_examples", "", "classify"),
            examples="input { example_list { examples { features { feature { key: 'n' value { int64_list { value: 7 } } } "
            "feature { key: 'f' value { float_list { value: 0.5 } } } } } } }",
        ),
        f"results {{ {_spec('parsed_examples', 1, 'classify_text')} classification_result {{ classifications {{ "
        "classes { label: '7' } classes { label: '0.50' } classes { } } } } "
        f"results {{ {_spec('parsed_examples', 1, 'regress_column')} regression_result {{ {_values(7.5)} }} }} "
        f"results {{ {_spec('parsed_examples', 1)} classification_result {{ classifications {{ "
        "classes { label: '7' score: 7 } classes { label: '0.50' score: 0.5 } classes { score: 7 } } } }",
    ),
    Call("MultiInference", _tasks(_R, examples=""), (INVALID, "Input is empty.")),
    Call("MultiInference", _tasks(_R, _C, examples="input { example_list { } }"), (INVALID, "Input is empty.")),
    Call(
        "MultiInference",
        _tasks(("test_model", "ThisSignatureDoesNotExist", "regress")),
        (INVALID, "Requested signature not found in model graph: ThisSignatureDoesNotExist"),
    ),
    Call(
        "MultiInference",
        _tasks(_R, ("ModelDoesNotExist", "regress_x_to_y", "regress")),
        (INVALID, "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
    ),
    Call("MultiInference", _tasks(_R, ("", "x", "regress")), (INVALID, "Found ModelSpec with an empty model name.")),
    Call("MultiInference", _tasks(_R, _R), (INVALID, "Duplicate evaluation of signature: regress_x_to_y")),
    Call(
        "MultiInference",
        _tasks(("test_model", "serving_default", "predict")),
        ("UNIMPLEMENTED", "Unsupported signature method_name: tensorflow/serving/predict"),
    ),
    Call(
        "MultiInference",
        _tasks(_R, ("test_model", "regress_x2_to_y3", "regress")),
        (INVALID, "Expects arg[1] to be float but string is provided"),
    ),
    Call(
        "MultiInference",
        _tasks(("unknown", "regress_x_to_y", "regress")),
        ("NOT_FOUND", "Servable not found for request: Latest(unknown)"),
    ),
    Call("MultiInference", _tasks(("", "regress_x_to_y", "regress")), (INVALID, "ModelSpec has no name specified.")),
    Call("MultiInference", "", (INVALID, "ModelSpec has no name specified.")),
    # The tasks are looked at one after the other.
    Call(
        "MultiInference",
        _tasks(("test_model", "nope", "regress"), ("other", "regress_x_to_y", "regress")),
        (INVALID, "Requested signature not found in model graph: nope"),
    ),
]


def _version(version: int, state: str = "AVAILABLE", status: str = "") -> str:
    return f"model_version_status {{ version: {version} state: {state} status {{ {status} }} }}"


_STATUS = [
    Call("GetModelStatus", f"model_spec {{ {TEST} }}", _version(123)),
    Call("GetModelStatus", f"model_spec {{ {TEST} version {{ value: 123 }} }}", _version(123)),
    Call("GetModelStatus", f"model_spec {{ {TEST} version_label: 'nonexistent' }}", _version(123)),
    Call("GetModelStatus", f"model_spec {{ {TEST} signature_name: 'ignored' }}", _version(123)),
    Call("GetModelStatus", "model_spec { name: 'half_plus_two' }", _version(2) + _version(1)),
    Call("GetModelStatus", "model_spec { name: 'half_plus_two' version { value: 1 } }", _version(1)),
    Call("GetModelStatus", "", (INVALID, "Missing ModelSpec")),
    Call(
        "GetModelStatus",
        f"model_spec {{ {TEST} version {{ value: 7 }} }}",
        ("NOT_FOUND", "Could not find version 7 of model test_model"),
    ),
    Call(
        "GetModelStatus",
        "model_spec { name: 'unknown' }",
        ("NOT_FOUND", "Could not find any versions of model unknown"),
    ),
    Call(
        "GetModelStatus",
        "model_spec { name: 'unknown' version { value: 1 } }",
        ("NOT_FOUND", "Could not find … of model unknown"),
    ),
]


def _info(side: str, alias: str, tensor: str, column: bool = True) -> str:
    shape = "dim { size: -1 } dim { size: 1 }" if column else "unknown_rank: true"
    dtype = "DT_FLOAT" if column else "DT_STRING"
    return f"{side} {{ key: '{alias}' value {{ name: '{tensor}:0' dtype: {dtype} tensor_shape {{ {shape} }} }} }}"


def _signature(key: str, method: str, source: tuple[str, str], result: tuple[str, str]) -> str:
    inputs = _info("inputs", *source, column=source[1] != "tf_example")
    return (
        f"signature_def {{ key: '{key}' value {{ {inputs} {_info('outputs', *result)} "
        f"method_name: 'tensorflow/serving/{method}' }} }}"
    )


_ON_EXAMPLES = ("inputs", "tf_example")
_SIGNATURES = " ".join(
    [
        _signature("classify_x2_to_y3", "classify", ("inputs", "x2"), ("scores", "y3")),
        _signature("classify_x_to_y", "classify", _ON_EXAMPLES, ("scores", "y")),
        _signature("regress_x2_to_y3", "regress", ("inputs", "x2"), ("outputs", "y3")),
        _signature("regress_x_to_y", "regress", _ON_EXAMPLES, ("outputs", "y")),
        _signature("regress_x_to_y2", "regress", _ON_EXAMPLES, ("outputs", "y2")),
        _signature("serving_default", "predict", ("x", "x"), ("y", "y")),
    ]
)
_METADATA_OF_TEST = (
    f"{_spec('test_model', 123, '')} metadata {{ key: 'signature_def' value {{ "
    f"[type.googleapis.com/tensorflow.serving.SignatureDefMap] {{ {_SIGNATURES} }} }} }}"
)

_METADATA = [
    *[
        Call(
            "GetModelMetadata", f"model_spec {{ {TEST} {version} }} metadata_field: 'signature_def'", _METADATA_OF_TEST
        )
        for version in ("", "version { value: 123 }", "version_label: 'Version_Label'", "signature_name: 'ignored'")
    ],
    Call("GetModelMetadata", "", (INVALID, "Missing ModelSpec")),
    Call("GetModelMetadata", "metadata_field: 'signature_def'", (INVALID, "Missing ModelSpec")),
    Call(
        "GetModelMetadata",
        f"model_spec {{ {TEST} }}",
        (INVALID, "GetModelMetadataRequest must specify at least one metadata_field"),
    ),
    Call(
        "GetModelMetadata",
        f"model_spec {{ {TEST} }} metadata_field: 'some_stuff'",
        (INVALID, "Metadata field … is not supported"),
    ),
    Call(
        "GetModelMetadata",
        f"model_spec {{ {TEST} }} metadata_field: 'signature_def' metadata_field: 'some_stuff'",
        (INVALID, "Metadata field … is not supported"),
    ),
    Call(
        "GetModelMetadata",
        "model_spec { } metadata_field: 'signature_def'",
        (INVALID, "ModelSpec has no name specified."),
    ),
    Call(
        "GetModelMetadata",
        "model_spec { name: 'test' } metadata_field: 'signature_def'",
        ("NOT_FOUND", "Servable not found for request: Latest(test)"),
    ),
    Call(
        "GetModelMetadata",
        f"model_spec {{ {TEST} version {{ value: 7 }} }} metadata_field: 'signature_def'",
        ("NOT_FOUND", "Servable not found for request: Specific(test_model, 7)"),
    ),
    Call(
        "GetModelMetadata",
        f"model_spec {{ {TEST} version_label: 'no' }} metadata_field: 'signature_def'",
        (INVALID, "Unrecognized servable version label: no"),
    ),
]


def _reload(entries: str, answer: tuple[str, str]) -> Call:
    return Call("HandleReloadConfigRequest", f"config {{ {entries} }}", answer)


_UNSUPPORTED = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
)
_ENTRY = "config { name: 'a' base_path: '%s' model_platform: 'tensorflow' }"

_RELOAD = [
    Call("HandleReloadConfigRequest", "", (INVALID, _UNSUPPORTED)),
    _reload("", (INVALID, _UNSUPPORTED)),
    _reload("custom_model_config { type_url: 'nothing' }", (INVALID, _UNSUPPORTED)),
    _reload(
        f"model_config_list {{ {_ENTRY % '/a'} {_ENTRY % '/b'} }}",
        (INVALID, "…Illegal to list model a multiple times in config list"),
    ),
    _reload(
        f"model_config_list {{ {_ENTRY % 'models/a'} }}",
        (INVALID, "…Expected model a to have an absolute path or URI; got base_path()=models/a"),
    ),
    _reload(
        "model_config_list { config { name: 'a' base_path: '/a' model_platform: 'caffe' } }",
        (INVALID, "…Model a requests unsupported platform caffe"),
    ),
]

PAIRS = [*_PREDICT, *_every_type(), *_EXAMPLES, *_MULTI, *_STATUS, *_METADATA, *_RELOAD]
