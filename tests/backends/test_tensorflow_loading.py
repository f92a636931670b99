"""Variables without a value: which signatures read them, where the values are had, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from backends import tensorflow_backend
from backends.contract import BackendError, Code, Remarked
from backends.tensorflow_backend import TensorFlowBackend
from tests.support.object_graph_answers import Arrays, answers

v1 = tf.compat.v1
SERVING = "serving_default"
ROWS = np.random.default_rng(7)

X = {"x": ROWS.normal(size=(3, 4)).astype(np.float32)}
INPUTS: Mapping[str, Mapping[str, Arrays]] = {
    "keras3_saved": {SERVING: {"inputs": X["x"]}},
    "keras3_saved_with_signatures": {SERVING: X, "half": X},
    "keras3_in_module": {SERVING: X},
    "keras3_trained": {SERVING: {"inputs": ROWS.normal(size=(3, 5, 4)).astype(np.float32)}},
    "keras3_text": {
        SERVING: {
            "kind": np.array([[b"a"], [b"c"], [b"z"]], object),
            "text": np.array([b"the cat sat", b"mat", b"unheard of"], object),
        }
    },
    "without_saver": {SERVING: {"x": np.array([1.0, -2.0], np.float32)}},
    "keras3": {"serve": {"keras_tensor": X["x"]}},
}
COPIES = "got those of their copies"
OBJECT_GRAPH = "loaded by its object graph"


@pytest.fixture(scope="module")
def loaded(zoo: Path) -> Callable[[str], TensorFlowBackend]:
    backends: dict[str, TensorFlowBackend] = {}

    def load_once(name: str) -> TensorFlowBackend:
        if name not in backends:
            backends[name] = tensorflow_backend.load(str(zoo / name))
        return backends[name]

    return load_once


@pytest.fixture(scope="module")
def expected(zoo: Path, loaded: Callable[[str], TensorFlowBackend]) -> dict[str, dict[str, Arrays]]:
    return answers({name: (str(zoo / name), by_inputs(loaded(name), name)) for name in INPUTS})


def by_inputs(backend: TensorFlowBackend, name: str) -> dict[str, Arrays]:
    """Keras makes up names of its own for inputs, in the order of those that they were given."""
    found = {}
    for signature, arrays in INPUTS[name].items():
        names = backend.signatures[signature].inputs
        found[signature] = arrays if arrays.keys() == names.keys() else dict(zip(names, arrays.values(), strict=True))
    return found


@pytest.mark.parametrize("name", INPUTS)
def test_answers_are_those_of_the_object_graph_in_a_fresh_process(
    loaded: Callable[[str], TensorFlowBackend], expected: dict[str, dict[str, Arrays]], name: str
) -> None:
    backend = loaded(name)
    for signature, inputs in by_inputs(backend, name).items():
        outputs = sorted(backend.signatures[signature].outputs)
        assert outputs == sorted(expected[name][signature])
        for output, array in zip(outputs, backend.run(signature, inputs, outputs), strict=True):
            assert np.ptp(array) > 0
            np.testing.assert_allclose(array, expected[name][signature][output], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        *((name, COPIES) for name in INPUTS if name not in ("without_saver", "keras3")),
        ("without_saver", OBJECT_GRAPH),
        ("keras3", ""),
        ("keras2", ""),
        ("half_plus_two", ""),
        ("runs", ""),
        ("assets_vocab", ""),
    ],
)
def test_remarks_tell_which_way_was_taken(loaded: Callable[[str], TensorFlowBackend], name: str, remark: str) -> None:
    backend = loaded(name)
    assert isinstance(backend, Remarked)
    assert len(backend.remarks) == bool(remark)
    assert remark in "".join(backend.remarks)


def test_object_graph_refuses_like_the_session(loaded: Callable[[str], TensorFlowBackend]) -> None:
    with pytest.raises(BackendError) as caught:
        loaded("without_saver").run(SERVING, {"x": np.array(["no number"], object)}, ["y"])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "Traceback" not in caught.value.message


def test_initialiser_that_reads_what_the_restore_has_left_unset(tmp_path: Path) -> None:
    module = tf.Module()
    module.number = tf.Variable([2.0])

    class FromVariable(tf.lookup.KeyValueTensorInitializer):  # no initialiser of TensorFlow's own reads a variable
        def initialize(self, table: tf.lookup.StaticHashTable) -> tf.Operation:
            values = module.number.read_value()
            return tf.raw_ops.LookupTableImportV2(table_handle=table.resource_handle, keys=["a"], values=values)

    module.table = tf.lookup.StaticHashTable(FromVariable(["a"], [2.0]), 0.0)
    function = tf.function(lambda x: {"y": x * module.table.lookup(tf.constant("a"))})
    signatures = {SERVING: function.get_concrete_function(tf.TensorSpec([None], tf.float32, "x"))}
    options = tf.saved_model.SaveOptions(experimental_skip_saver=True)
    tf.saved_model.save(module, str(tmp_path), signatures, options)
    values, remark = run(str(tmp_path))
    assert values == [2.0, 4.0]
    assert "loaded by its object graph, as tf.saved_model.load does, because the session's way fails" in remark


def test_names_of_inputs_are_those_of_the_file(loaded: Callable[[str], TensorFlowBackend]) -> None:
    assert loaded("without_saver").signatures[SERVING].inputs["x"].tensor_name == "serving_default_x:0"


# --- Models of TensorFlow 1 whose saver leaves a variable out


def saved(out: Path, build: Callable[[], dict[str, tuple[Any, Any]]], keep: str = "a") -> str:
    """Exports the graph of `build`, which returns (x, y) for each signature; only the variable `keep` is saved."""
    with tf.Graph().as_default(), v1.Session() as session:
        signatures = build()
        for variable in v1.global_variables():
            session.run(variable.initializer)
        info = v1.saved_model.build_tensor_info
        builder = v1.saved_model.Builder(str(out))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                name: v1.saved_model.build_signature_def({"x": info(x)}, {"y": info(y)}, "tensorflow/serving/predict")
                for name, (x, y) in signatures.items()
            },
            saver=v1.train.Saver([v for v in v1.global_variables() if v.op.name == keep]),
        )
        builder.save()
    return str(out)


def variables(*, resource: bool) -> tuple[Any, Any, Any]:
    """x, a variable that is saved, and one that is not."""
    x = v1.placeholder(tf.float32, [None])
    return x, *(v1.Variable(value, name=name, use_resource=resource) for value, name in ((0.5, "a"), (2.0, "left_out")))


def run(path: str, signature: str = SERVING) -> tuple[list[float], str]:
    backend = tensorflow_backend.load(path)
    (y,) = backend.run(signature, {"x": np.array([1.0, 2.0], np.float32)}, ["y"])
    return y.tolist(), "; ".join(backend.remarks)


@pytest.mark.parametrize("resource", [False, True])
def test_model_whose_only_signature_reads_an_unset_variable_has_failed(tmp_path: Path, resource: bool) -> None:
    def build() -> dict[str, tuple[Any, Any]]:
        x, a, left_out = variables(resource=resource)
        return {SERVING: (x, a * x + left_out)}

    path = saved(tmp_path / "m", build)
    with pytest.raises(BackendError, match=r"variables that have no value after loading: left_out\. .*model\.export"):
        tensorflow_backend.load(path)


def test_function_that_reads_an_unset_argument_is_seen_through(tmp_path: Path) -> None:
    def build() -> dict[str, tuple[Any, Any]]:
        x, a, left_out = variables(resource=True)
        inner = tf.function(lambda x: x + left_out)
        return {SERVING: (x, tf.function(lambda x: inner(a * x))(x))}

    with pytest.raises(BackendError, match="left_out") as caught:
        tensorflow_backend.load(saved(tmp_path / "m", build))
    assert caught.value.code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize("resource", [False, True])
def test_unset_variable_that_no_signature_reads_is_nobodys_trouble(tmp_path: Path, resource: bool) -> None:
    def build() -> dict[str, tuple[Any, Any]]:
        x, a, left_out = variables(resource=resource)
        tf.identity(left_out + 1.0)
        return {SERVING: (x, a * x)}

    assert run(saved(tmp_path / "m", build)) == ([0.5, 1.0], "")


def reading_for(how: str) -> Callable[[], dict[str, tuple[Any, Any]]]:
    """A model that reads an unset variable, and does not compute its answer from it."""

    def build() -> dict[str, tuple[Any, Any]]:
        x, a, left_out = variables(resource=True)
        deaf = tf.function(lambda x, _: a * x)

        def scaled(x: Any) -> Any:
            read = left_out.read_value()
            if how == "an argument":
                return deaf(x, read)
            with tf.control_dependencies([read] if how == "a dependency" else []):
                return (a * x, read * x) if how.endswith("output") else a * x

        inner = tf.function(scaled)
        if how == "an inner output":
            return {SERVING: (x, tf.function(lambda x: inner(x)[0])(x))}
        return {SERVING: (x, inner(x)[0] if how == "another output" else inner(x))}

    return build


@pytest.mark.parametrize("how", ["nothing", "an argument", "an inner output"])
def test_unset_variable_that_is_read_for_nothing_is_served(tmp_path: Path, how: str) -> None:
    """TensorFlow prunes such reads, though they count among what a function does."""
    assert run(saved(tmp_path / "m", reading_for(how)))[0] == [0.5, 1.0]


@pytest.mark.parametrize("how", ["a dependency", "another output"])
def test_unset_variable_that_may_be_read_for_nothing_is_left_to_the_first_request(tmp_path: Path, how: str) -> None:
    path = saved(tmp_path / "m", reading_for(how))
    assert "may read variables that have no value: left_out" in "".join(tensorflow_backend.load(path).remarks)


@pytest.mark.parametrize("resource", [False, True])
def test_other_signatures_are_served_with_a_remark(tmp_path: Path, resource: bool) -> None:
    def build() -> dict[str, tuple[Any, Any]]:
        x, a, left_out = variables(resource=resource)
        return {SERVING: (x, a * x), "broken": (x, left_out * x)}

    path = saved(tmp_path / "m", build)
    assert run(path) == ([0.5, 1.0], "signature 'broken' reads variables that have no value: left_out")
    with pytest.raises(BackendError) as caught:
        run(path, "broken")
    assert caught.value.code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize("resource", [False, True])
def test_signature_that_assigns_before_it_reads_is_served(tmp_path: Path, resource: bool) -> None:
    def build() -> dict[str, tuple[Any, Any]]:
        x, a, left_out = variables(resource=resource)
        with tf.control_dependencies([v1.assign(left_out, 3.0)]):
            return {SERVING: (x, a * x + left_out.read_value())}

    values, remark = run(saved(tmp_path / "m", build))
    assert values == [3.5, 4.0]
    assert remark == "signature 'serving_default' may read variables that have no value: left_out"


def test_function_that_assigns_before_it_reads_is_served(tmp_path: Path) -> None:
    def build() -> dict[str, tuple[Any, Any]]:
        x, a, left_out = variables(resource=True)

        def assigning(x: Any) -> Any:
            left_out.assign(3.0)
            return a * x + left_out

        return {SERVING: (x, tf.function(assigning)(x))}

    assert run(saved(tmp_path / "m", build))[0] == [3.5, 4.0]


@pytest.mark.parametrize("control_flow_v2", [False, True])
def test_signature_that_reads_only_in_a_branch_is_served(tmp_path: Path, control_flow_v2: bool) -> None:
    def build() -> dict[str, tuple[Any, Any]]:
        x, a, left_out = variables(resource=True)
        fine = tf.reduce_all(x > 0.0)
        if control_flow_v2:
            choose = tf.function(lambda x: tf.cond(fine, lambda: a * x, lambda: left_out * x))
            return {SERVING: (x, choose(x))}
        return {SERVING: (x, v1.cond(fine, lambda: a * x, lambda: left_out * x))}

    values, remark = run(saved(tmp_path / "m", build))
    assert values == [0.5, 1.0]
    assert "may read variables that have no value: left_out" in remark


def test_copy_without_an_object_graph_gives_no_value(tmp_path: Path) -> None:
    """A target network that was initialised from another one: by now, their values may differ."""

    def build() -> dict[str, tuple[Any, Any]]:
        x = v1.placeholder(tf.float32, [None])
        original = v1.Variable(0.5, name="original", use_resource=True)
        v1.Variable(original.read_value(), name="target", use_resource=True)
        return {SERVING: (x, original * x)}

    with pytest.raises(BackendError, match="original"):
        tensorflow_backend.load(saved(tmp_path / "m", build, keep="target"))
