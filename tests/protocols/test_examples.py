"""What Classify, Regress and MultiInference do besides running a model, on plain values."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core.errors import Code, ServingError
from appliance.core.servable import ModelSpec
from appliance.protocols import protos
from appliance.protocols.classify_regress import Classification, Method, Regression, Task, result_of, task, tasks
from appliance.protocols.example_inputs import Examples
from appliance.protocols.example_messages import (
    decode_multi_request,
    decode_request,
    encode_multi_response,
    encode_response,
)
from backends.contract import Signature, TensorSpec

CLASSIFY, REGRESS = Method.CLASSIFY, Method.REGRESS
LARGE = 1 << 20

STRING = TensorSpec("string", (-1,), "tf_example:0")
ANY = TensorSpec("float32", (-1,), "y:0")


def signature(inputs: str = "inputs", outputs: str = "scores", method: str = "tensorflow/serving/predict") -> Signature:
    return Signature(dict.fromkeys(inputs.split(), STRING), dict.fromkeys(outputs.split(), ANY), method)


def example(**features: float | list[int] | bytes) -> bytes:
    message = protos.Example()
    for name, value in features.items():
        feature = message.features.feature[name]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, list):
            feature.int64_list.value.extend(value)
        else:
            feature.float_list.value.append(value)
    return bytes(message.SerializeToString(deterministic=True))


def refused(caught: pytest.ExceptionInfo[ServingError]) -> tuple[Code, str]:
    return caught.value.code, caught.value.message


# ---- Examples


def request(*, context: bytes | None = None, examples: tuple[bytes, ...] = (), name: str = "m") -> bytes:
    message = protos.ClassificationRequest()
    message.model_spec.name = name
    message.model_spec.signature_name = "s"
    if context is None:
        message.input.example_list.SetInParent()
        found = message.input.example_list
    else:
        found = message.input.example_list_with_context
        found.context.MergeFromString(context)
    for data in examples:
        found.examples.add().MergeFromString(data)
    return bytes(message.SerializeToString(deterministic=True))


def test_examples_pass_as_the_bytes_that_they_are() -> None:
    given_examples = (example(x=1.0), example(), example(x=2.0, n=[1, 2, 3], s=b"\xff\x00"))
    message = decode_request(request(examples=given_examples))
    assert (message.spec, message.signature_name) == (ModelSpec("m"), "s")
    array = message.examples.array()
    assert array.dtype == object
    assert array.tolist() == list(given_examples)


def test_a_regression_request_and_a_version_are_read_likewise() -> None:
    message = protos.RegressionRequest()
    message.model_spec.name = "m"
    message.model_spec.version.value = 7
    message.input.example_list.examples.add().MergeFromString(example(x=1.0))
    found = decode_request(message.SerializeToString())
    assert found.spec == ModelSpec("m", 7)
    assert found.examples.array().tolist() == [example(x=1.0)]


def test_each_example_is_merged_into_the_context() -> None:
    context = example(a=1.0, b=b"shared")
    data = request(context=context, examples=(example(x=2.0), example(a=3.0), b""))
    merged = [protos.Example.FromString(each) for each in decode_request(data).examples.array()]
    expected = []
    for own in (example(x=2.0), example(a=3.0), b""):
        both = protos.Example.FromString(context)
        both.MergeFrom(protos.Example.FromString(own))
        expected.append(both)
    assert merged == expected


def test_a_context_in_two_parts_is_merged() -> None:
    data = request(context=example(a=1.0), examples=(example(x=1.0),)) + request(context=example(b=2.0))
    (merged,) = decode_request(data).examples.array()
    assert set(protos.Example.FromString(merged).features.feature) == {"a", "b", "x"}


def without_input() -> bytes:
    message = protos.RegressionRequest()
    message.model_spec.name = "m"
    return bytes(message.SerializeToString())


@pytest.mark.parametrize(
    "data",
    [request(), request(context=example(a=1.0)), without_input()],
    ids=["no example", "only a context", "no input"],
)
def test_no_example_is_an_error(data: bytes) -> None:
    with pytest.raises(ServingError) as caught:
        decode_request(data).examples.check(LARGE)
    assert refused(caught) == (Code.INVALID_ARGUMENT, "Input is empty.")


def test_a_context_that_grows_too_large_is_an_error() -> None:
    examples = Examples([b""] * 1000, b"x" * 1000)
    assert examples.nbytes == 1_000_000
    examples.check(1_000_000)
    assert sum(map(len, examples.array())) == 1_000_000
    with pytest.raises(ServingError, match=r"1,000 examples takes 1,000,000 bytes.*at most 999,999"):
        examples.check(999_999)


def test_a_request_without_a_model_is_an_error() -> None:
    with pytest.raises(ServingError) as caught:
        decode_request(b"")
    assert refused(caught) == (Code.INVALID_ARGUMENT, "Missing ModelSpec")
    with pytest.raises(ServingError) as caught:
        decode_request(request(name=""))
    assert caught.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(ServingError, match="ModelSpec has no name specified"):
        decode_multi_request(b"")


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_the_answer_is_a_request_or_an_error(data: bytes) -> None:
    for decode in (decode_request, decode_multi_request):
        with contextlib.suppress(ServingError):
            examples = decode(data).examples
            examples.check(LARGE)
            assert len(examples.array()) == len(examples.examples)


@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5), st.binary(max_size=30))
def test_examples_that_are_no_examples_are_left_for_the_model_to_refuse(examples: list[bytes], context: bytes) -> None:
    view = protos.ExamplesRequest()
    view.model_spec.name = "m"
    view.input.example_list_with_context.examples.extend(examples)
    view.input.example_list_with_context.context.append(context)
    assert decode_request(view.SerializeToString()).examples.array().tolist() == [context + data for data in examples]


# ---- Signatures


@pytest.mark.parametrize(
    ("method", "outputs", "asked"),
    [
        (CLASSIFY, "scores", ("scores",)),
        (CLASSIFY, "classes", ("classes",)),
        (CLASSIFY, "scores classes", ("classes", "scores")),
        (CLASSIFY, "scores more", ("scores",)),
        (REGRESS, "outputs", ("outputs",)),
    ],
)
def test_a_signature_with_the_right_names_is_taken(method: Method, outputs: str, asked: tuple[str, ...]) -> None:
    found = task(method, "s", {"s": signature(outputs=outputs)}, check_method_name=False)
    assert found == Task(method, "s", asked)


def test_the_default_signature_is_serving_default() -> None:
    signatures = {"serving_default": signature(), "other": signature()}
    assert task(CLASSIFY, "", signatures, check_method_name=False).signature_name == "serving_default"


@pytest.mark.parametrize(
    ("method", "inputs", "outputs", "message"),
    [
        (CLASSIFY, "inputs more", "scores", "Expected one input Tensor."),
        (CLASSIFY, "", "scores", "Expected one input Tensor."),
        (CLASSIFY, "inputs", "a b c", "Expected one or two output Tensors, found 3"),
        (CLASSIFY, "inputs", "", "Expected one or two output Tensors, found 0"),
        (CLASSIFY, "x", "scores", "No classification inputs found in SignatureDef: "),
        (
            CLASSIFY,
            "inputs",
            "outputs",
            'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature',
        ),
        (REGRESS, "inputs more", "outputs", "Expected one input Tensor."),
        (REGRESS, "inputs", "outputs more", "Expected one output Tensor."),
        (REGRESS, "x", "outputs", "No regression inputs found in SignatureDef: "),
        (REGRESS, "inputs", "y", "No regression outputs found in SignatureDef: "),
    ],
)
def test_a_signature_that_does_not_fit_says_what_is_missing(
    method: Method, inputs: str, outputs: str, message: str
) -> None:
    with pytest.raises(ServingError) as caught:
        task(method, "s", {"s": signature(inputs, outputs)}, check_method_name=False)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message.startswith(message)


def test_an_unknown_signature_is_named_beside_those_that_exist() -> None:
    with pytest.raises(ServingError) as caught:
        task(REGRESS, "nope", {"b": signature(), "a": signature()}, check_method_name=False)
    assert refused(caught) == (Code.INVALID_ARGUMENT, "No signature was found with the name: nope")
    assert "a, b" in str(caught.value)


def test_an_input_that_is_no_string_cannot_take_examples() -> None:
    unparsed = Signature({"inputs": TensorSpec("int64", (-1,))}, {"outputs": ANY})
    with pytest.raises(ServingError) as caught:
        task(REGRESS, "s", {"s": unparsed}, check_method_name=False)
    assert refused(caught) == (Code.INVALID_ARGUMENT, "Expects arg[0] to be int64 but string is provided")


@pytest.mark.parametrize(("method", "outputs"), [(CLASSIFY, "scores"), (REGRESS, "outputs")])
def test_the_method_name_counts_only_when_it_is_checked(method: Method, outputs: str) -> None:
    right = {"s": signature(outputs=outputs, method=method.value)}
    other = {"s": signature(outputs=outputs)}
    assert task(method, "s", right, check_method_name=True) == task(method, "s", other, check_method_name=False)
    with pytest.raises(ServingError) as caught:
        task(method, "s", other, check_method_name=True)
    assert refused(caught) == (
        Code.INVALID_ARGUMENT,
        f"Expected {method.noun} signature method_name to be {method.value}. Was: tensorflow/serving/predict",
    )


SIGNATURES = {
    "serving_default": signature(outputs="classes scores"),
    "regress": signature(outputs="outputs"),
    "elsewhere": Signature({"inputs": TensorSpec("string", (-1,), "other:0")}, {"outputs": ANY}),
    "numbers": Signature({"inputs": TensorSpec("float32", (-1,), "numbers:0")}, {"outputs": ANY}),
    "x2": Signature({"inputs": TensorSpec("float32", (-1,), "x2:0")}, {"outputs": ANY}),
}


def test_several_tasks_keep_their_order() -> None:
    found = tasks([("m", "regress", REGRESS.value), ("m", "", CLASSIFY.value)], SIGNATURES, check_method_name=False)
    assert [(one.method, one.signature_name) for one in found] == [(REGRESS, "regress"), (CLASSIFY, "serving_default")]


def test_tasks_on_different_input_tensors_run_together() -> None:
    wanted = [("m", "elsewhere", REGRESS.value), ("m", "regress", REGRESS.value), ("m", "", CLASSIFY.value)]
    found = tasks(wanted, SIGNATURES, check_method_name=False)
    assert [one.signature_name for one in found] == ["elsewhere", "regress", "serving_default"]


@pytest.mark.parametrize(
    ("wanted", "code", "message"),
    [
        (
            [("m", "", CLASSIFY.value), ("m", "serving_default", CLASSIFY.value)],
            Code.INVALID_ARGUMENT,
            "Duplicate evaluation of signature: serving_default",
        ),
        ([("m", "nope", CLASSIFY.value)], Code.INVALID_ARGUMENT, "Requested signature not found in model graph: nope"),
        (
            [("m", "regress", "tensorflow/serving/predict")],
            Code.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
        ([("m", "regress", "")], Code.UNIMPLEMENTED, "Unsupported signature method_name: "),
        ([("m", "regress", CLASSIFY.value)], Code.INVALID_ARGUMENT, "Expected classification signature outputs to"),
        (
            [("m", "regress", REGRESS.value), ("n", "", CLASSIFY.value)],
            Code.INVALID_ARGUMENT,
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            [("m", "regress", REGRESS.value), ("", "", CLASSIFY.value)],
            Code.INVALID_ARGUMENT,
            "Found ModelSpec with an empty model name.",
        ),
        (
            [("m", "nope", CLASSIFY.value), ("n", "", CLASSIFY.value)],
            Code.INVALID_ARGUMENT,
            "Requested signature not found in model graph: nope",
        ),
        (
            [("m", "regress", REGRESS.value), ("m", "numbers", REGRESS.value)],
            Code.INVALID_ARGUMENT,
            "Expects arg[0] to be float but string is provided",
        ),
        ([("m", "numbers", REGRESS.value)], Code.INVALID_ARGUMENT, "Expects arg[0] to be float but string is provided"),
        (  # The tensors are counted in the order of their names: tf_example:0, then x2:0.
            [("m", "x2", REGRESS.value), ("m", "regress", REGRESS.value), ("m", "", CLASSIFY.value)],
            Code.INVALID_ARGUMENT,
            "Expects arg[1] to be float but string is provided",
        ),
    ],
)
def test_tasks_that_cannot_run_together_say_why(wanted: list[tuple[str, str, str]], code: Code, message: str) -> None:
    with pytest.raises(ServingError) as caught:
        tasks(wanted, SIGNATURES, check_method_name=False)
    assert caught.value.code is code
    assert caught.value.message.startswith(message)


def multi(*models: str) -> bytes:
    message = protos.MultiInferenceRequest()
    for model in models:
        added = message.tasks.add(method_name=CLASSIFY.value)
        added.model_spec.name = model
    message.input.example_list.examples.add().MergeFromString(example(x=1.0))
    return bytes(message.SerializeToString())


def test_a_request_for_several_tasks_is_read() -> None:
    message = decode_multi_request(multi("m", "n"))
    assert message.spec.model == "m"
    assert message.wanted == (("m", "", CLASSIFY.value), ("n", "", CLASSIFY.value))
    assert message.examples.array().tolist() == [example(x=1.0)]


# ---- Results


def ran(method: Method, **outputs: np.ndarray) -> Classification | Regression:
    return result_of(Task(method, "s", tuple(outputs)), outputs, 2)


def strings(*rows: list[str]) -> np.ndarray:
    return np.array([[label.encode() for label in row] for row in rows], object)


FLOATS = np.array([[0.5, 1.5], [2.5, 0.0]], np.float32)


@pytest.mark.parametrize("values", [np.array([1, 2], np.float32), np.array([[1], [2]], np.float32)])
def test_a_regression_is_one_number_an_example(values: np.ndarray) -> None:
    result = ran(REGRESS, outputs=values)
    assert isinstance(result, Regression)
    assert result.values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("method", "outputs", "message"),
    [
        (CLASSIFY, {"scores": FLOATS[0]}, "Expected Tensor shape: [batch_size num_classes] but got [2]"),
        (CLASSIFY, {"classes": strings(["a"])[0]}, "Expected Tensor shape: [batch_size num_classes] but got [1]"),
        (CLASSIFY, {"scores": FLOATS.astype(np.float64)}, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        (CLASSIFY, {"classes": FLOATS}, "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        (CLASSIFY, {"scores": FLOATS[:1]}, "Expected scores output batch size of 2. Got: 1"),
        (CLASSIFY, {"classes": strings(["a"])}, "Expected classes output batch size of 2. Got: 1"),
        (
            CLASSIFY,
            {"classes": strings(["a"], ["b"]), "scores": FLOATS},
            "Tensors class and score should match in dim_size(1). Got 1 vs. 2",
        ),
        (
            REGRESS,
            {"outputs": FLOATS},
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]",
        ),
        (
            REGRESS,
            {"outputs": np.float32(1).reshape(())},
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []",
        ),
        (REGRESS, {"outputs": FLOATS[0][:1]}, "Input batch size did not match output batch size: 2 vs. 1"),
        (REGRESS, {"outputs": np.array([1, 2])}, "Expected output Tensor of DT_FLOAT.  Got: DT_INT64"),
    ],
)
def test_outputs_that_are_no_result_say_what_is_wrong(
    method: Method, outputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ServingError) as caught:
        ran(method, **outputs)
    assert refused(caught) == (Code.INVALID_ARGUMENT, message)


# ---- Answers


def test_scores_alone_have_empty_labels() -> None:
    done = task(CLASSIFY, "", SIGNATURES, check_method_name=False)
    data = encode_response("m", 3, done, ran(CLASSIFY, scores=FLOATS))
    message = protos.ClassificationResponse.FromString(data)
    spec = message.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 3, "serving_default")
    found = [[(one.label, one.score) for one in row.classes] for row in message.result.classifications]
    assert found == [[("", 0.5), ("", 1.5)], [("", 2.5), ("", 0.0)]]


def test_classes_alone_have_no_scores_and_both_stand_together() -> None:
    labels = strings(["grün", "b"], ["c", ""])
    done = task(CLASSIFY, "", SIGNATURES, check_method_name=False)

    def found(result: Classification | Regression) -> list[list[tuple[str, float]]]:
        message = protos.ClassificationResponse.FromString(encode_response("m", 3, done, result))
        return [[(one.label, one.score) for one in row.classes] for row in message.result.classifications]

    assert found(ran(CLASSIFY, classes=labels)) == [[("grün", 0.0), ("b", 0.0)], [("c", 0.0), ("", 0.0)]]
    assert found(ran(CLASSIFY, classes=labels, scores=FLOATS)) == [[("grün", 0.5), ("b", 1.5)], [("c", 2.5), ("", 0.0)]]


def test_labels_that_are_no_text_are_refused() -> None:
    done = task(CLASSIFY, "", SIGNATURES, check_method_name=False)
    classes = np.array([[b"\xff"], [b"a"]], object)
    with pytest.raises(ServingError, match="not UTF-8") as caught:
        encode_response("m", 3, done, ran(CLASSIFY, classes=classes))
    assert caught.value.code is Code.INVALID_ARGUMENT


@given(st.lists(st.floats(width=32), min_size=1, max_size=300), st.integers(1, 2))
def test_every_float_arrives_as_it_is(values: list[float], columns: int) -> None:
    array = np.array(values, np.float32)
    regression = Task(REGRESS, "s", ("outputs",))
    message = protos.RegressionResponse.FromString(encode_response("m", 1, regression, Regression(array)))
    np.testing.assert_array_equal([one.value for one in message.result.regressions], array)
    scores = np.tile(array, (columns, 1))
    data = encode_response("m", 1, Task(CLASSIFY, "s", ("scores",)), Classification(None, scores))
    rows = protos.ClassificationResponse.FromString(data).result.classifications
    np.testing.assert_array_equal([[one.score for one in row.classes] for row in rows], scores)


def test_answers_of_several_tasks_keep_their_order() -> None:
    done = tasks([("m", "regress", REGRESS.value), ("m", "", CLASSIFY.value)], SIGNATURES, check_method_name=False)
    results = [ran(REGRESS, outputs=FLOATS[0]), ran(CLASSIFY, scores=FLOATS)]
    message = protos.MultiInferenceResponse.FromString(encode_multi_response("m", 3, done, results))
    assert [one.WhichOneof("result") for one in message.results] == ["regression_result", "classification_result"]
    assert [one.model_spec.signature_name for one in message.results] == ["regress", "serving_default"]
    assert {(one.model_spec.name, one.model_spec.version.value) for one in message.results} == {("m", 3)}
    assert [one.value for one in message.results[0].regression_result.regressions] == [0.5, 1.5]
